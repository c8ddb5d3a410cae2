//! What a call of the client can end with.

use quorate_api::ApiError;
use quorate_api::v1::ErrorReason;

/// Why a call has no answer.
///
/// [`Error::Refused`] and [`Error::Unreachable`] say that nothing took effect; only [`Error::OutcomeUnknown`] leaves
/// that open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cluster refused the call. It took no effect.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The deadline passed, the connection broke for good, or the call was refused, after an earlier try of it may have
    /// been applied.
    #[error(
        "the outcome is unknown, it may have been applied ({last}); {}read before you write again",
        retry(request_id)
    )]
    OutcomeUnknown {
        /// The id that the call carried. A retry with it takes effect at most once. Empty for a change of the members, which has
        /// none.
        request_id: String,
        /// What the last try said.
        last: String,
    },
    /// No node gave an answer before the deadline. The call took no effect.
    #[error("no answer from {endpoints} before the deadline ({last}); check the addresses and that the nodes run")]
    Unreachable {
        /// The addresses that the client was given.
        endpoints: String,
        /// What the last try said.
        last: String,
    },
    /// The client was given no usable address.
    #[error("`{endpoint}` is not an address of a node: {why}; write host:port or http://host:port")]
    InvalidEndpoint {
        /// The address as it was given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The agent was started outside a tokio runtime, or its thread could not be started.
    #[error("the agent cannot start: {why}; start it from within a tokio runtime")]
    CannotStart {
        /// What is missing.
        why: String,
    },
}

fn retry(request_id: &str) -> String {
    match request_id {
        "" => String::new(),
        id => format!("retry with the same request_id {id} (`Client::retry_as`), or "),
    }
}

impl Error {
    /// The reason of a refusal.
    #[must_use]
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Refused(error) => Some(error.reason),
            _ => None,
        }
    }

    /// The request id to retry with, where the outcome is unknown.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::OutcomeUnknown { request_id, .. } => Some(request_id),
            _ => None,
        }
    }
}
