//! How a node comes into a cluster: it makes one, or joins one.
//!
//! Both are idempotent and can be cut off at any point. The order of the durable steps makes that safe: the control
//! group's log is first given to its replica, then the cluster is adopted, and only then does the replica become a voter
//! or receive the log. The replica id of a founder is [`FOUNDER`], which no member that joins ever gets, so an interrupted
//! init can be told from an interrupted join.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_api::limits;
use quorate_api::v1::cluster_service_client::ClusterServiceClient;
use quorate_api::v1::{AddMemberRequest, AddMemberResponse, StatusRequest};
use quorate_raft::{ClusterId, Group, GroupId, IdentityError, Member, OpenError, ReplicaId, StoredReplica, failpoint};
use quorate_state::control::{Command, NodeRecord, Reply};
use quorate_state::{Operation, RequestId};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};

use super::hosting::{known, stored_replica};
use super::{in_state, new_request, own_record};
use crate::context::Context;
use crate::error::{Error, ErrorReason};
use crate::limits::PEER_PROTOCOL;

/// The replica of control on the node that made the cluster.
pub const FOUNDER: ReplicaId = 1;

const LEAD_TIMEOUT: Duration = Duration::from_secs(10);
const SHARDS_TIMEOUT: Duration = Duration::from_secs(15);
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);
const SEED_TIMEOUT: Duration = Duration::from_secs(5);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Forms clusters, one attempt at a time, and gets this node's replica of control back when it is lost ([`super::healing`]).
pub struct Formation {
    pub(super) context: Context,
    pub(super) one_at_a_time: Mutex<()>,
    /// For which lost replica another one was asked, and under which request id: asked again it is the same request.
    pub(super) asked: parking_lot::Mutex<Option<(Option<ReplicaId>, RequestId)>>,
}

impl Formation {
    /// For this node.
    pub fn new(context: Context) -> Formation {
        Formation { context, one_at_a_time: Mutex::new(()), asked: parking_lot::Mutex::new(None) }
    }

    /// Starts the control group that is stored here, if this node belongs to a cluster. A replica that is damaged, or lost
    /// with its log, becomes a case that [`Formation::heal`] takes up.
    ///
    /// # Errors
    /// If it cannot be started for another reason than damage.
    pub async fn resume(&self) -> Result<(), OpenError> {
        if self.context.groups.identity().cluster.is_none() {
            return Ok(());
        }
        let quarantine = &self.context.quarantine;
        match self.stored_replica() {
            // The log is claimed before the cluster is adopted, so there was one.
            None => {
                quarantine.known(GroupId::CONTROL, None, "its log is gone, and with it all that said how far it went")
            }
            Some(StoredReplica { replica, quarantined: Some(reason), .. }) => {
                quarantine.known(GroupId::CONTROL, known(replica), &reason);
            }
            Some(StoredReplica { replica, quarantined: None, .. }) => match self.start_control(replica).await {
                Err(error) if error.is_damage() => {
                    quarantine.found(GroupId::CONTROL, replica, &error.to_string());
                }
                started => drop(started?),
            },
        }
        Ok(())
    }

    /// Makes a cluster of this one node with `shards` shards (0: the default), and waits until they are served.
    ///
    /// # Errors
    /// `ALREADY_INITIALIZED` where there is a cluster, `INVALID_ARGUMENT` for too many shards.
    pub async fn init(&self, shards: u32) -> Result<ClusterId, Error> {
        let shards = if shards == 0 { limits::SHARDS_DEFAULT } else { shards };
        limits::check_range("shards", u64::from(shards), 1, u64::from(limits::SHARDS))?;
        let _alone = self.one_at_a_time.lock().await;
        let cluster = self.cluster_to_found()?;
        let group = match self.context.control.group() {
            Some(group) => group,
            None => self.start_control(FOUNDER).await.map_err(unusable)?,
        };
        self.context.groups.pass(failpoint::CONTROL_STARTED).await;
        self.adopt(cluster)?;
        self.context.groups.pass(failpoint::CLUSTER_ADOPTED).await;
        if group.status().members.is_empty() {
            let member = Member { node: self.context.node, address: self.context.addresses.peer.clone() };
            group.initialize(BTreeMap::from([(FOUNDER, member)])).await?;
        }
        self.context.groups.pass(failpoint::GROUP_MADE).await;
        self.wait_for_lead().await?;
        let command = Command::InitCluster {
            cluster: cluster.0,
            shards,
            node: own_record(&self.context),
            control_replica: FOUNDER,
        };
        for reply in self.context.control.propose(vec![Operation::new(command)]).await? {
            reply?;
        }
        tracing::info!(%cluster, shards, "made a new cluster");
        self.wait_for_shards().await;
        Ok(cluster)
    }

    /// The id of the cluster to make: a new one, or that of an attempt that was cut off.
    fn cluster_to_found(&self) -> Result<ClusterId, Error> {
        let made = self.context.control.read(|control| control.cluster());
        let adopted = self.context.groups.identity().cluster;
        let refused = |cluster: ClusterId| {
            Err(Error::new(ErrorReason::AlreadyInitialized, format!("this node belongs to cluster {cluster} already")))
        };
        match (made, adopted) {
            (Some(cluster), _) => refused(ClusterId(cluster)),
            (None, Some(cluster)) if !self.is_founding() => refused(cluster),
            (None, Some(cluster)) => Ok(cluster),
            (None, None) => Ok(ClusterId(rand::random_range(1..=u64::MAX))),
        }
    }

    /// Whether the control group here is what an init that was cut off has left.
    fn is_founding(&self) -> bool {
        let stored = self.stored_replica();
        let lost = self.context.quarantine.case(GroupId::CONTROL).is_some();
        stored.is_some_and(|stored| stored.replica == FOUNDER) && !lost
    }

    /// Joins the cluster of `seed`, a client address of any of its members, and waits until this node has read of its own
    /// membership.
    ///
    /// # Errors
    /// `OTHER_CLUSTER` if this node's data belongs to another one, `INVALID_ARGUMENT` for a seed that is no address,
    /// `NO_LEADER` if the seed cannot be reached or has no quorum.
    pub async fn join(&self, seed: &str) -> Result<ClusterId, Error> {
        self.join_through(seed, connect(seed).await?).await
    }

    /// The same over a channel to the seed that the caller has made, as on a simulated network.
    ///
    /// # Errors
    /// As [`Formation::join`].
    pub async fn join_through(&self, seed: &str, seed_channel: Channel) -> Result<ClusterId, Error> {
        let _alone = self.one_at_a_time.lock().await;
        let mut seed_client = ClusterServiceClient::new(seed_channel);
        let found = ask(seed, seed_client.status(StatusRequest {})).await?;
        let theirs = parse_id(&found.cluster_id).map(ClusterId).ok_or_else(|| {
            Error::new(ErrorReason::NotInitialized, format!("the seed {seed} belongs to no cluster yet"))
        })?;
        if let Some(ours) = self.context.groups.identity().cluster.filter(|ours| *ours != theirs) {
            return Err(other_cluster(ours, theirs));
        }
        let listed = found.nodes.iter().any(|node| node.node_id == self.context.node.to_string());
        if self.context.groups.identity().cluster.is_some() && !listed {
            return Err(Error::new(
                ErrorReason::AlreadyInitialized,
                format!(
                    "this node was a member of cluster {theirs} and was removed; empty its data directory and start it \
                     again to join as a new node"
                ),
            ));
        }
        let case = self.context.quarantine.case(GroupId::CONTROL);
        if self.context.groups.identity().cluster.is_some() && case.is_some() {
            self.heal_through(theirs, &found.nodes).await?;
            return Ok(theirs);
        }
        let own = own_record(&self.context);
        let request = AddMemberRequest {
            node_id: self.context.node.to_string(),
            peer_address: own.peer_address,
            client_address: own.client_address,
            label: own.name,
            protocol: PEER_PROTOCOL,
        };
        let admitted = ask(seed, seed_client.add_member(request)).await?;
        self.context.groups.pass(failpoint::ADMITTED).await;
        if self.context.control.group().is_none() {
            self.start_as(admitted.control_replica_id).await?;
        }
        self.context.groups.pass(failpoint::CONTROL_STARTED).await;
        self.adopt(theirs)?;
        self.context.groups.pass(failpoint::CLUSTER_ADOPTED).await;
        self.wait_for_membership().await?;
        tracing::info!(cluster = %theirs, "joined the cluster");
        Ok(theirs)
    }

    /// Starts control as the replica that the cluster gave to this node. A log of another replica in a directory that
    /// belongs to no cluster is what an init left that was cut off: it holds nothing.
    async fn start_as(&self, replica: ReplicaId) -> Result<(), Error> {
        let found = self.stored_replica();
        if self.context.groups.identity().cluster.is_none() && found.is_some_and(|found| found.replica != replica) {
            self.context.groups.destroy_group(GroupId::CONTROL).await.map_err(unusable)?;
        }
        self.start_control(replica).await.map(|_| ()).map_err(unusable)
    }

    pub(super) async fn start_control(&self, replica: ReplicaId) -> Result<Group, OpenError> {
        let machine = self.context.control.machine();
        let group = self.context.groups.start_group(GroupId::CONTROL, replica, machine).await?;
        self.context.control.attach(group.clone());
        self.context.watch_group(group.clone());
        Ok(group)
    }

    pub(super) fn stored_replica(&self) -> Option<StoredReplica> {
        stored_replica(&self.context.groups, GroupId::CONTROL)
    }

    fn adopt(&self, cluster: ClusterId) -> Result<(), Error> {
        self.context.groups.adopt_cluster(cluster).map_err(|error| match error {
            IdentityError::OtherCluster { found, wanted } => other_cluster(found, wanted),
            other => Error::internal(other),
        })
    }

    async fn wait_for_lead(&self) -> Result<(), Error> {
        let mut leadership = self.context.control.leadership();
        let lead = leadership.wait_for(|leadership| leadership.mine);
        match timeout(LEAD_TIMEOUT, lead).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::no_leader()),
        }
    }

    /// Waits until every shard has a group. One that takes longer comes by itself, so that is no error.
    async fn wait_for_shards(&self) {
        let mut map = self.context.control.map_changes();
        let all = async {
            while !self.context.control.read(|control| control.shards().all(|shard| shard.initialized)) {
                if map.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(SHARDS_TIMEOUT, all).await.is_err() {
            tracing::warn!("not all shards are served yet; see `quorate cluster status`");
        }
    }

    pub(super) async fn wait_for_membership(&self) -> Result<(), Error> {
        let me = in_state(self.context.node);
        let mut map = self.context.control.map_changes();
        let member = async {
            while self.context.control.read(|control| control.member(me).is_none()) {
                if map.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(CATCH_UP_TIMEOUT, member).await.map_err(|_| Error {
            reason: ErrorReason::OutcomeUnknown,
            message:
                "this node was admitted and has not received the control log yet; it goes on by itself: check that \
                      the members reach its peer address, and look at `quorate cluster status`"
                    .into(),
            ..Error::unknown()
        })
    }
}

/// Takes a node in, asked of any member. The control leader makes it a learner when it reads of it.
///
/// # Errors
/// `INVALID_ARGUMENT` for a field that makes no sense, and what a proposal can meet.
pub async fn add_member(context: &Context, request: AddMemberRequest) -> Result<AddMemberResponse, Error> {
    if request.protocol != PEER_PROTOCOL {
        let found = request.protocol;
        return Err(Error::invalid(
            "protocol",
            format!("this cluster speaks version {PEER_PROTOCOL} of the peer protocol and the node version {found}"),
        ));
    }
    let node =
        parse_id(&request.node_id).ok_or_else(|| Error::invalid("node_id", "the node id is not 16 hex digits"))?;
    limits::check_name("label", &request.label)?;
    limits::check_name("peer_address", &request.peer_address)?;
    limits::check_name("client_address", &request.client_address)?;
    let node = quorate_state::NodeId(node);
    let http_address = context
        .control
        .read(|control| control.member(node).map(|member| member.node.http_address.clone()))
        .unwrap_or_default();
    let record = NodeRecord {
        node,
        name: request.label,
        peer_address: request.peer_address,
        client_address: request.client_address,
        http_address,
    };
    let operation = Operation { request: new_request(context), command: Command::AddMember { node: record } };
    let reply = context.control.propose_anywhere(operation, Instant::now() + PROPOSE_TIMEOUT).await??;
    let cluster = context.groups.identity().cluster.ok_or_else(Error::not_initialized)?;
    match reply {
        Reply::Member { control_replica } => {
            Ok(AddMemberResponse { cluster_id: cluster.to_string(), control_replica_id: control_replica })
        }
        other => Err(Error::internal(format!("a member was admitted with the reply {other:?}"))),
    }
}

/// An id as it is shown: 16 hex digits. 0 is none.
pub fn parse_id(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(text, 16).ok().filter(|id| *id != 0)
}

fn other_cluster(ours: ClusterId, theirs: ClusterId) -> Error {
    Error::new(
        ErrorReason::OtherCluster,
        format!("this node has the data directory of another cluster: {ours}, not {theirs}"),
    )
    .with("found", ours)
    .with("wanted", theirs)
}

pub(super) fn unusable(error: OpenError) -> Error {
    Error::internal(error)
}

fn unreachable_seed(seed: &str, what: impl std::fmt::Display) -> Error {
    let message = format!("the seed {seed} cannot be reached ({what}); check the address, and that the node runs");
    Error { reason: ErrorReason::NoLeader, message, ..Error::no_leader() }
}

async fn connect(seed: &str) -> Result<Channel, Error> {
    let url = if seed.contains("://") { seed.to_owned() } else { format!("http://{seed}") };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|_| Error::invalid("seed", format!("{seed:?} is not an address; write host:port")))?
        .connect_timeout(SEED_TIMEOUT);
    endpoint.connect().await.map_err(|error| unreachable_seed(seed, chain(&error)))
}

/// The last cause says what the system said; tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn ask<T>(seed: &str, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Error> {
    match timeout(SEED_TIMEOUT + PROPOSE_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(quorate_api::ApiError::from(status).into()),
        Err(_) => Err(unreachable_seed(seed, "no answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex_digits_and_never_zero() {
        assert_eq!(parse_id("00000000000000ff"), Some(255));
        assert_eq!(parse_id("ff"), Some(255));
        for wrong in ["", "0", "xyz", "+1", "12345678901234567"] {
            assert_eq!(parse_id(wrong), None, "{wrong}");
        }
    }
}
