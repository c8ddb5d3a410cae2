//! `quorate.v1.MemoryService`: takes the words of the wire apart and puts the answers into them.

use std::sync::Arc;

use quorate_api::limits::MESSAGE_BYTES;
use quorate_api::v1;
use quorate_api::v1::memory_service_server::{MemoryService, MemoryServiceServer};
use tonic::{Request, Response, Status};

use super::{Inner, Memory};
use crate::request::{deadline, request_id};

/// The gRPC service over a [`Memory`].
pub struct MemoryApi {
    inner: Arc<Inner>,
}

impl Memory {
    /// The service, with the limits of messages set.
    pub fn service(&self) -> MemoryServiceServer<MemoryApi> {
        MemoryServiceServer::new(MemoryApi { inner: self.inner.clone() })
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl MemoryService for MemoryApi {
    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Result<Response<v1::CreateCollectionResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let id = request_id(&request.request_id, self.inner.context.now_us())?;
        Ok(Response::new(self.inner.create(request, id, deadline).await?))
    }

    async fn list_collections(
        &self,
        request: Request<v1::ListCollectionsRequest>,
    ) -> Result<Response<v1::ListCollectionsResponse>, Status> {
        Ok(Response::new(self.inner.list(deadline(request.metadata())).await?))
    }

    async fn delete_collection(
        &self,
        request: Request<v1::DeleteCollectionRequest>,
    ) -> Result<Response<v1::DeleteCollectionResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let id = request_id(&request.request_id, self.inner.context.now_us())?;
        Ok(Response::new(self.inner.drop_collection(request, id, deadline).await?))
    }

    async fn upsert(&self, request: Request<v1::UpsertRequest>) -> Result<Response<v1::UpsertResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let id = request_id(&request.request_id, self.inner.context.now_us())?;
        Ok(Response::new(self.inner.upsert(request, id, deadline).await?))
    }

    async fn get_points(
        &self,
        request: Request<v1::GetPointsRequest>,
    ) -> Result<Response<v1::GetPointsResponse>, Status> {
        let deadline = deadline(request.metadata());
        Ok(Response::new(self.inner.get(request.into_inner(), deadline).await?))
    }

    async fn delete_points(
        &self,
        request: Request<v1::DeletePointsRequest>,
    ) -> Result<Response<v1::DeletePointsResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let id = request_id(&request.request_id, self.inner.context.now_us())?;
        Ok(Response::new(self.inner.delete(request, id, deadline).await?))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        let deadline = deadline(request.metadata());
        Ok(Response::new(self.inner.search(request.into_inner(), deadline).await?))
    }
}
