//! One error for the node, the wire and the client.
//!
//! The reason decides everything that a caller acts on: the gRPC code, whether to retry, and the next step that is
//! appended to the message. Nothing else may be read from the text.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::v1;
use crate::v1::ErrorReason;

/// The domain of every `google.rpc.ErrorInfo` that Quorate sends.
pub const DOMAIN: &str = "quorate";

const PREFIX: &str = "ERROR_REASON_";

/// Why a call was refused, and what to do about it.
///
/// Converts without loss to and from [`tonic::Status`] (`ErrorInfo`, `RetryInfo`, `BadRequest`) and [`v1::Error`]; only
/// the retry hint is rounded up to a whole millisecond.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("[{}] {message}", reason.name())]
pub struct ApiError {
    /// The reason; it decides the code and whether a retry is safe.
    pub reason: ErrorReason,
    /// What happened and what to do next, for a person.
    pub message: String,
    /// Facts for a program; `ERRORS.md` names the keys of each reason.
    pub metadata: BTreeMap<String, String>,
    /// How long to wait before the next try, where the server knows.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error whose message is `what` happened followed by the reason's next step.
    #[must_use]
    pub fn new(reason: ErrorReason, what: impl Display) -> Self {
        Self {
            reason,
            message: format!("{what}; {}", reason.next_step()),
            metadata: BTreeMap::new(),
            retry_after: None,
        }
    }

    /// This node does not lead. Where the leader is known its node id and client address go along as a hint.
    #[must_use]
    pub fn not_leader(leader: Option<(&str, &str)>) -> Self {
        match leader {
            Some((node, address)) => {
                Self::new(ErrorReason::NotLeader, format!("this node does not lead, node {node} at {address} does"))
                    .with("leader_node", node)
                    .with("leader_address", address)
            }
            None => Self::new(ErrorReason::NoLeader, "no leader is known at this moment"),
        }
    }

    /// Adds one fact to the metadata.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// States when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The error that a node put into the status; `None` for a status of anybody else (the transport, a proxy).
    #[must_use]
    pub fn carried_by(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        Some(Self {
            reason: ErrorReason::from_name(&info.reason).unwrap_or_default(),
            message: status.message().to_owned(),
            metadata: info.metadata.clone().into_iter().collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        })
    }

    /// The gRPC code of the reason.
    #[must_use]
    pub fn code(&self) -> Code {
        self.reason.code()
    }

    /// Whether the same request, with the same request id, may be sent again and may then succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.reason.is_retryable()
    }

    /// The client address of the leader, where the error carries it.
    #[must_use]
    pub fn leader_address(&self) -> Option<&str> {
        self.metadata.get("leader_address").map(String::as_str).filter(|address| !address.is_empty())
    }
}

impl ErrorReason {
    /// Every reason but `UNSPECIFIED`, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..).map_while(|number| Self::try_from(number).ok())
    }

    /// The name on the wire: the enum's name without its prefix, e.g. `NOT_LEADER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix(PREFIX).unwrap_or(name)
    }

    /// The reason of that name; `None` for one that this version does not know.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::from_str_name(&format!("{PREFIX}{name}"))
    }

    /// The gRPC code that goes with the reason.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::NotLeader | Self::NoLeader | Self::ShardUnavailable | Self::StaleRoute | Self::ShuttingDown => {
                Code::Unavailable
            }
            Self::OutcomeUnknown => Code::DeadlineExceeded,
            Self::Overloaded => Code::ResourceExhausted,
            Self::InvalidArgument | Self::TooLarge | Self::WrongDimension | Self::NotFinite => Code::InvalidArgument,
            Self::TaskNotFound | Self::SessionNotFound | Self::CollectionNotFound | Self::NodeNotFound => {
                Code::NotFound
            }
            Self::CollectionExists | Self::AlreadyInitialized => Code::AlreadyExists,
            Self::VersionConflict => Code::Aborted,
            Self::TaskFinished
            | Self::StaleToken
            | Self::WouldBreakQuorum
            | Self::FewerReplicas
            | Self::OtherCluster
            | Self::NotInitialized
            | Self::RequestExpired => Code::FailedPrecondition,
            Self::Internal => Code::Internal,
            Self::Unspecified => Code::Unknown,
        }
    }

    /// Whether the same request, with the same request id, may be sent again and may then succeed.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::NotLeader
                | Self::NoLeader
                | Self::OutcomeUnknown
                | Self::Overloaded
                | Self::ShardUnavailable
                | Self::StaleRoute
                | Self::ShuttingDown
        )
    }

    /// What the caller should do next, as the end of a sentence.
    #[must_use]
    pub fn next_step(self) -> &'static str {
        match self {
            Self::NotLeader => "send the request to the leader",
            Self::NoLeader => "retry in a moment; if it lasts, look at `quorate cluster status` for a lost quorum",
            Self::OutcomeUnknown => {
                "it may have been applied: retry with the same request_id, or read before you write again"
            }
            Self::Overloaded => "wait for the stated delay, then retry with fewer requests in flight",
            Self::InvalidArgument => "correct the named field and send the request again",
            Self::TooLarge => "split it or make it smaller than the limit",
            Self::TaskNotFound => "check the id; finished tasks are kept for 24 hours",
            Self::TaskFinished => "nothing is left to do; read the task to see how it ended",
            Self::StaleToken => "drop this attempt and its result; the task was given to another attempt or ended",
            Self::SessionNotFound => "open a new session; attempts of the old one are lost",
            Self::CollectionNotFound => "check the name with `quorate collection list`, or create the collection",
            Self::CollectionExists => "use the collection as it is, or delete it first",
            Self::WrongDimension => "send vectors of the collection's dimension",
            Self::NotFinite => "remove NaN and infinite components from the vector",
            Self::VersionConflict => "read the point again and decide anew",
            Self::ShardUnavailable => {
                "retry in a moment; if it lasts, look at `quorate cluster status` for the nodes of this shard"
            }
            Self::StaleRoute => "retry; the node reads the new shard map by itself",
            Self::NodeNotFound => "check the id with `quorate cluster status`",
            Self::WouldBreakQuorum => "bring the other nodes back or add a node first",
            Self::FewerReplicas => "add a node first, or allow fewer replicas explicitly (`--allow-fewer-replicas`)",
            Self::OtherCluster => "use the address or the data directory of the right cluster",
            Self::NotInitialized => {
                "run `quorate cluster init` on one node once, or `quorate cluster join` on this one"
            }
            Self::AlreadyInitialized => "use the cluster that exists; to start anew, use an empty data directory",
            Self::RequestExpired => "read whether the request took effect, then send it with a new request_id",
            Self::ShuttingDown => "retry on another node",
            Self::Internal => "look at the node's log, and report it as a bug",
            Self::Unspecified => "upgrade this program; it does not know the reason",
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut details = ErrorDetails::new();
        if let Some(field) = error.metadata.get("field") {
            details.add_bad_request_violation(field.clone(), error.message.clone());
        }
        if let Some(delay) = error.retry_after {
            details.set_retry_info(Some(delay));
        }
        let metadata: HashMap<_, _> = error.metadata.into_iter().collect();
        details.set_error_info(error.reason.name(), DOMAIN, metadata);
        Self::with_error_details(error.reason.code(), error.message, details)
    }
}

impl From<&Status> for ApiError {
    /// A status of our domain comes back as the error that was sent. Any other one (of the transport, of a proxy) gets
    /// the reason that is safe to act on: what may have reached a node has an unknown outcome.
    fn from(status: &Status) -> Self {
        Self::carried_by(status).unwrap_or_else(|| {
            let what = format!("{:?}: {}", status.code(), status.message());
            let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
            Self { retry_after, ..Self::new(reason_of_foreign(status.code()), what) }
        })
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self::from(&status)
    }
}

fn reason_of_foreign(code: Code) -> ErrorReason {
    match code {
        // HTTP/2 resets of a node that goes away come as `Internal` too.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => ErrorReason::OutcomeUnknown,
        Code::InvalidArgument | Code::FailedPrecondition => ErrorReason::InvalidArgument,
        // tonic answers a message above the size limit so.
        Code::OutOfRange => ErrorReason::TooLarge,
        Code::ResourceExhausted => ErrorReason::Overloaded,
        _ => ErrorReason::Internal,
    }
}

impl From<ApiError> for v1::Error {
    fn from(error: ApiError) -> Self {
        Self {
            code: i32::from(error.reason.code()),
            reason: error.reason.name().to_owned(),
            message: error.message,
            metadata: error.metadata,
            retry_after_ms: error.retry_after.map_or(0, whole_ms),
        }
    }
}

impl From<v1::Error> for ApiError {
    fn from(error: v1::Error) -> Self {
        Self {
            reason: ErrorReason::from_name(&error.reason).unwrap_or_default(),
            message: error.message,
            metadata: error.metadata,
            retry_after: (error.retry_after_ms > 0).then(|| Duration::from_millis(error.retry_after_ms)),
        }
    }
}

/// Rounded up, so that a short delay does not become "none".
fn whole_ms(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(reason: ErrorReason) -> ApiError {
        ApiError::new(reason, "something happened")
            .with("field", "queue")
            .with("leader_address", "http://10.0.0.1:7701")
            .with_retry_after(Duration::from_millis(250))
    }

    #[test]
    fn every_reason_survives_a_status() {
        for reason in ErrorReason::all() {
            let error = sample(reason);
            let status = Status::from(error.clone());
            assert_eq!(status.code(), reason.code(), "{reason:?}");
            assert_eq!(ApiError::from(status), error);
        }
    }

    #[test]
    fn every_reason_survives_a_frame() {
        for reason in ErrorReason::all() {
            for error in [sample(reason), ApiError::new(reason, "bare")] {
                let wire = v1::Error::from(error.clone());
                assert_eq!(wire.reason, reason.name());
                assert_eq!(wire.code, i32::from(reason.code()));
                assert_eq!(ApiError::from(wire), error);
            }
        }
    }

    #[test]
    fn all_lists_the_whole_enum() {
        assert_eq!(ErrorReason::all().count(), 26);
        assert_eq!(ErrorReason::all().last(), Some(ErrorReason::Internal));
        for reason in ErrorReason::all() {
            assert_eq!(ErrorReason::from_name(reason.name()), Some(reason));
        }
    }

    #[test]
    fn a_message_ends_with_the_next_step() {
        for reason in ErrorReason::all() {
            let error = ApiError::new(reason, "it failed");
            assert_eq!(error.message, format!("it failed; {}", reason.next_step()));
            assert!(error.to_string().starts_with(&format!("[{}] it failed", reason.name())));
        }
    }

    #[test]
    fn codes_follow_the_conventions() {
        assert_eq!(ErrorReason::NotLeader.code(), Code::Unavailable);
        assert_eq!(ErrorReason::VersionConflict.code(), Code::Aborted);
        assert_eq!(ErrorReason::StaleToken.code(), Code::FailedPrecondition);
        assert_eq!(ErrorReason::Overloaded.code(), Code::ResourceExhausted);
        assert!(!ErrorReason::VersionConflict.is_retryable());
        assert!(!ErrorReason::StaleToken.is_retryable());
        assert!(ErrorReason::OutcomeUnknown.is_retryable());
    }

    #[test]
    fn a_hint_names_the_leader() {
        let error = ApiError::not_leader(Some(("ab12", "10.0.0.2:7701")));
        assert_eq!(error.leader_address(), Some("10.0.0.2:7701"));
        assert_eq!(error.metadata["leader_node"], "ab12");
        let none = ApiError::not_leader(None);
        assert_eq!(none.reason, ErrorReason::NoLeader);
        assert_eq!(none.leader_address(), None);
    }

    #[test]
    fn a_foreign_status_is_never_called_a_failure_it_may_not_be() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::Internal] {
            let error = ApiError::from(Status::new(code, "connection reset"));
            assert_eq!(error.reason, ErrorReason::OutcomeUnknown);
            assert!(error.message.contains("connection reset"), "{}", error.message);
        }
        let foreign = Status::with_error_details(
            Code::Unavailable,
            "other",
            ErrorDetails::with_error_info("NOT_LEADER", "example.com", HashMap::new()),
        );
        assert_eq!(ApiError::from(foreign).reason, ErrorReason::OutcomeUnknown);
        let large = ApiError::from(Status::new(Code::OutOfRange, "message length too large"));
        assert_eq!(large.reason, ErrorReason::TooLarge);
    }

    #[test]
    fn a_reason_of_a_later_version_keeps_its_message() {
        let wire = v1::Error {
            code: 9,
            reason: "INVENTED_LATER".into(),
            message: "new".into(),
            metadata: BTreeMap::new(),
            retry_after_ms: 0,
        };
        let error = ApiError::from(wire);
        assert_eq!(error.reason, ErrorReason::Unspecified);
        assert_eq!(error.message, "new");
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_retry_hint_is_rounded_up() {
        let error = sample(ErrorReason::Overloaded).with_retry_after(Duration::from_micros(1));
        assert_eq!(v1::Error::from(error).retry_after_ms, 1);
    }

    #[test]
    fn an_invalid_field_is_a_bad_request() {
        let status = Status::from(sample(ErrorReason::InvalidArgument));
        let bad = status.get_details_bad_request().expect("bad request");
        assert_eq!(bad.field_violations[0].field, "queue");
    }
}
