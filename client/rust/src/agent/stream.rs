//! One stream that carries a session: how it is opened on a node, and how it ends in good order.

use std::sync::Arc;
use std::time::Duration;

use quorate_api::ApiError;
use quorate_api::v1::work_request::Frame as Out;
use quorate_api::v1::work_response::Frame as In;
use quorate_api::v1::{self, ErrorReason, SessionOpened, WorkResponse};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};

use crate::agent::outbox::Outbox;
use crate::call::is_ours;
use crate::client::agents;
use crate::nodes::{Address, Nodes};

const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream that carries the session.
pub(crate) struct Stream {
    pub(crate) address: Address,
    pub(crate) outbox: Outbox,
    pub(crate) attached_at: Instant,
    incoming: Streaming<WorkResponse>,
}

/// Why a stream was not attached, or has ended.
pub(crate) enum Refusal {
    /// The session does not live any more.
    Gone(String),
    /// Another try may succeed.
    Again(String),
}

impl Stream {
    /// Opens a stream whose first frame opens or resumes a session.
    pub(crate) async fn attach(
        nodes: &Nodes,
        address: &Address,
        first: Out,
    ) -> Result<(Stream, SessionOpened), Refusal> {
        let channel = match nodes.channel(address).await {
            Ok(channel) => channel,
            Err(why) => {
                nodes.failed(address);
                return Err(Refusal::Again(why));
            }
        };
        let (outbox, frames) = Outbox::new(first);
        let opening = async {
            let mut incoming = agents(channel).work(frames).await?.into_inner();
            let first = incoming.message().await?;
            Ok::<_, Status>((incoming, first.and_then(|response| response.frame)))
        };
        let opened = timeout(OPEN_TIMEOUT, opening).await;
        let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("the session was not confirmed in time")));
        match opened {
            Ok((incoming, Some(In::Opened(opened)))) => {
                nodes.answered(address);
                let stream = Stream { address: Arc::clone(address), outbox, attached_at: Instant::now(), incoming };
                Ok((stream, opened))
            }
            Ok((_, Some(In::Gone(gone)))) => {
                Err(Refusal::Gone(gone.error.map_or_else(|| "the session is gone".into(), |error| error.message)))
            }
            Ok(_) => {
                nodes.failed(address);
                Err(Refusal::Again(format!("{address}: the stream ended before the session was confirmed")))
            }
            Err(status) => Err(refusal(nodes, address, &status)),
        }
    }

    /// What the node says next, or why it says nothing more.
    pub(crate) async fn next(&mut self, nodes: &Nodes) -> Result<WorkResponse, Refusal> {
        match self.incoming.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(Refusal::Again(format!("{}: the stream was closed", self.address))),
            Err(status) => Err(refusal(nodes, &self.address, &status)),
        }
    }

    /// Ends the session, and waits a moment for the node to hear it. None of its attempts may be performed any more.
    pub(crate) async fn close(self) {
        let Stream { outbox, mut incoming, .. } = self;
        outbox.send(Out::Close(v1::CloseSession {}));
        drop(outbox);
        // What still comes concerns attempts that were given back.
        let _ = timeout(CLOSE_TIMEOUT, async { while let Ok(Some(_)) = incoming.message().await {} }).await;
    }
}

fn refusal(nodes: &Nodes, address: &Address, status: &Status) -> Refusal {
    let error = ApiError::from(status);
    let why = format!("{address}: {}", error.message);
    if error.reason == ErrorReason::SessionNotFound {
        return Refusal::Gone(why);
    }
    if !is_ours(status) || error.reason == ErrorReason::ShuttingDown {
        nodes.failed(address);
    }
    Refusal::Again(why)
}
