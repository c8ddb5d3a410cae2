//! `quorate.v1.ClusterService`.

use quorate_api::v1::cluster_service_server::ClusterService;
use quorate_api::v1::{
    AddMemberRequest, AddMemberResponse, InitRequest, InitResponse, JoinRequest, JoinResponse, LeaveRequest,
    LeaveResponse, StatusRequest, StatusResponse,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

use super::formation::{Formation, add_member};
use super::leave::leave;
use super::status::status;
use crate::context::Context;

/// Answers calls about the cluster.
pub struct ClusterApi {
    context: Context,
    formation: Arc<Formation>,
}

impl ClusterApi {
    /// For this node.
    pub fn new(context: Context, formation: Arc<Formation>) -> ClusterApi {
        ClusterApi { context, formation }
    }
}

#[tonic::async_trait]
impl ClusterService for ClusterApi {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        // A call that is given up must not leave a node half made: it goes on by itself.
        let formation = self.formation.clone();
        let shards = request.into_inner().shards;
        let made = tokio::spawn(async move { formation.init(shards).await });
        let cluster = made.await.map_err(crate::Error::internal)??;
        let node_id = self.context.node.to_string();
        Ok(Response::new(InitResponse { cluster_id: cluster.to_string(), node_id }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let formation = self.formation.clone();
        let seed = request.into_inner().seed;
        let joined = tokio::spawn(async move { formation.join(&seed).await });
        let cluster = joined.await.map_err(crate::Error::internal)??;
        let node_id = self.context.node.to_string();
        Ok(Response::new(JoinResponse { cluster_id: cluster.to_string(), node_id }))
    }

    async fn add_member(&self, request: Request<AddMemberRequest>) -> Result<Response<AddMemberResponse>, Status> {
        Ok(Response::new(add_member(&self.context, request.into_inner()).await?))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        leave(&self.context, &request.into_inner()).await?;
        Ok(Response::new(LeaveResponse {}))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.context).await))
    }
}
