//! Why a node refused or could not do something, as a caller is told.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use quorate_raft::{MembershipError, NodeId, PeerError, ProposeError, ReadError};
use quorate_state::Reject;

pub use quorate_api::v1::ErrorReason;

/// One failure, with everything that its `ErrorInfo` and `RetryInfo` carry on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// The reason; it decides the code and whether a retry makes sense.
    pub reason: ErrorReason,
    /// A sentence for people that says what to do next.
    pub message: String,
    /// Facts for programs, by name; which ones is said beside each reason in `error.proto`.
    pub metadata: BTreeMap<String, String>,
    /// How long to wait before a retry, where that is known.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl Error {
    /// An error without metadata: says `what` happened, and appends the reason's next step.
    pub fn new(reason: ErrorReason, what: impl fmt::Display) -> Error {
        quorate_api::ApiError::new(reason, what).into()
    }

    /// Adds one fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Error {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// States how long to wait before a retry.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Error {
        self.retry_after = Some(wait);
        self
    }

    /// Another node leads, if one is known (its id and an address, which may be empty).
    pub fn not_leader(leader: Option<(NodeId, String)>) -> Error {
        match leader {
            Some((node, address)) => Error::new(ErrorReason::NotLeader, format!("node {node} leads this group"))
                .with("leader_node", node)
                .with("leader_address", address),
            None => Error::no_leader(),
        }
    }

    /// No leader is known now.
    pub fn no_leader() -> Error {
        Error::new(ErrorReason::NoLeader, "no leader is known now").retry_after(Duration::from_millis(100))
    }

    /// The operation may have been applied or not.
    pub fn unknown() -> Error {
        Error::new(ErrorReason::OutcomeUnknown, "no answer came before the leader changed or the time was up")
    }

    /// Shed before anything was proposed.
    pub fn overloaded(wait: Duration) -> Error {
        Error::new(ErrorReason::Overloaded, "more operations wait than this node takes, and nothing was done")
            .retry_after(wait)
    }

    /// A field of the request is not acceptable.
    pub fn invalid(field: &str, message: impl fmt::Display) -> Error {
        Error::new(ErrorReason::InvalidArgument, message).with("field", field)
    }

    /// Something is larger than its limit, both in bytes.
    pub fn too_large(what: &str, limit: usize, size: usize) -> Error {
        Error::new(ErrorReason::TooLarge, format!("{what} has {size} bytes, more than the limit of {limit}"))
            .with("limit", limit)
            .with("size", size)
    }

    /// A defect, or damage: worth a report.
    pub fn internal(message: impl fmt::Display) -> Error {
        Error::new(ErrorReason::Internal, message)
    }

    /// The node is stopping.
    pub fn shutting_down() -> Error {
        Error::new(ErrorReason::ShuttingDown, "this node is stopping")
    }

    /// The node belongs to no cluster yet.
    pub fn not_initialized() -> Error {
        Error::new(ErrorReason::NotInitialized, "this node belongs to no cluster yet")
    }

    /// The node is a member and has no replica of control now: it was damaged, and another one is on its way. Other nodes
    /// can answer.
    pub fn control_away() -> Error {
        Error::new(ErrorReason::ShuttingDown, "this node's replica of control was damaged and is being replaced")
    }

    /// This node's replica of control does not read back, which says nothing of the others.
    pub fn unreadable(error: &io::Error) -> Error {
        let message =
            format!("this node cannot read its state database: {error}; other nodes can, and its disk wants a look");
        Error::new(ErrorReason::ShuttingDown, message)
    }

    /// What went wrong after the operation of the call was committed. Reasons that promise that nothing was done do not
    /// hold any more; with the same request id the call finds out.
    pub fn after_commit(self) -> Error {
        if !self.reason.is_retryable() {
            return self;
        }
        Error {
            message: format!("it is done, and what became of it cannot be read now: {}", self.message),
            ..Error::unknown()
        }
    }

    /// The error as it travels inside a message.
    pub fn to_wire(&self) -> quorate_api::v1::Error {
        quorate_api::ApiError::from(self.clone()).into()
    }

    /// The error that a message carried.
    pub fn from_wire(error: quorate_api::v1::Error) -> Error {
        quorate_api::ApiError::from(error).into()
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Error {
        match error {
            ProposeError::NotLeader { leader } => {
                Error::not_leader(leader.map(|(_, member)| (member.node, member.address)))
            }
            ProposeError::Unknown => Error::unknown(),
            ProposeError::Stopped => Error::shutting_down(),
            ProposeError::TooLarge { bytes, limit } => Error::too_large("the entry", limit, bytes),
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Error {
        match error {
            ReadError::NoLeader => Error::no_leader(),
            ReadError::TimedOut => {
                Error::new(ErrorReason::NoLeader, "the leader did not confirm a read position in time")
                    .retry_after(Duration::from_millis(100))
            }
            ReadError::Stopped => Error::shutting_down(),
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Error {
        match error {
            PeerError::TimedOut => Error::unknown(),
            PeerError::ShuttingDown => Error::shutting_down(),
            PeerError::OtherCluster { .. } => Error::new(ErrorReason::OtherCluster, error),
            // The connection may have broken after the request was sent.
            PeerError::Unreachable { .. } => Error::new(ErrorReason::OutcomeUnknown, error),
            PeerError::Refused { .. } => Error::new(ErrorReason::NoLeader, error),
        }
    }
}

impl From<MembershipError> for Error {
    fn from(error: MembershipError) -> Error {
        Error::internal(format!("the change of membership did not go through: {error}"))
    }
}

impl From<Reject> for Error {
    fn from(reject: Reject) -> Error {
        rejection(reject)
    }
}

impl From<quorate_api::ApiError> for Error {
    fn from(error: quorate_api::ApiError) -> Error {
        let quorate_api::ApiError { reason, message, metadata, retry_after } = error;
        Error { reason, message, metadata, retry_after }
    }
}

impl From<Error> for quorate_api::ApiError {
    fn from(error: Error) -> quorate_api::ApiError {
        let Error { reason, message, metadata, retry_after } = error;
        quorate_api::ApiError { reason, message, metadata, retry_after }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        quorate_api::ApiError::from(error).into()
    }
}

/// What a caller is told about a refusal of the replicated machine.
fn rejection(reject: Reject) -> Error {
    let reason = match &reject {
        Reject::InvalidArgument { .. } | Reject::EntryFull | Reject::LimitReached { .. } => {
            ErrorReason::InvalidArgument
        }
        Reject::RequestExpired { .. } => ErrorReason::RequestExpired,
        Reject::AlreadyInitialized | Reject::NodeRemoved { .. } => ErrorReason::AlreadyInitialized,
        Reject::NotInitialized => ErrorReason::NotInitialized,
        Reject::NodeNotFound { .. } => ErrorReason::NodeNotFound,
        Reject::LastNode { .. } => ErrorReason::WouldBreakQuorum,
        Reject::FewerReplicas { .. } => ErrorReason::FewerReplicas,
        Reject::CollectionExists { .. } => ErrorReason::CollectionExists,
        Reject::CollectionNotFound { .. } => ErrorReason::CollectionNotFound,
        Reject::TaskNotFound { .. } => ErrorReason::TaskNotFound,
        Reject::TaskFinished { .. } => ErrorReason::TaskFinished,
        Reject::StaleToken { .. } => ErrorReason::StaleToken,
        Reject::SessionNotFound { .. } => ErrorReason::SessionNotFound,
        Reject::NodeLeaving { .. }
        | Reject::StillHolding { .. }
        | Reject::ShardNotFound { .. }
        | Reject::ReplicaNotFound { .. }
        | Reject::ReplicaRetiring { .. }
        | Reject::ReplicaInUse { .. }
        | Reject::LastReplica { .. } => ErrorReason::StaleRoute,
        // Only a leader can meet these, of grants and streams that it proposes, and it handles them.
        Reject::StreamLeft { .. }
        | Reject::TaskNotReady { .. }
        | Reject::NoFreeSlot { .. }
        | Reject::RoleMissing { .. } => ErrorReason::Internal,
    };
    // The text of a refusal says by itself what to do next.
    Error { reason, message: reject.to_string(), metadata: BTreeMap::new(), retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_after_the_commit_is_not_told_as_undone() {
        for promise in [Error::no_leader(), Error::shutting_down(), Error::not_leader(Some((NodeId(2), "h:1".into())))]
        {
            let told = promise.after_commit();
            assert_eq!(told.reason, ErrorReason::OutcomeUnknown, "{told}");
            assert!(told.metadata.is_empty(), "no hint to follow: {told:?}");
        }
        let gone = Error::new(ErrorReason::TaskNotFound, "planted");
        assert_eq!(gone.clone().after_commit(), gone);
    }
}
