//! Heartbeats of all groups to one peer, gathered into frames.
//!
//! A heartbeat may wait as long as its group can spare, an eighth of its interval, for others to travel with; when one
//! must go, all that wait go with it. With slower timers for most groups they ride along with the fastest one.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::link::{OPEN_TIMEOUT, Target};
use crate::proto;
use crate::proto::outcome::Result as Outcome;
use crate::proto::peer_client::PeerClient;

/// A heartbeat on its way.
pub(crate) struct Beat {
    pub(crate) heartbeat: proto::Heartbeat,
    /// How long it may wait for others.
    pub(crate) patience: Duration,
    /// Dropped when the peer cannot be reached.
    pub(crate) outcome: oneshot::Sender<Outcome>,
}

struct Open {
    frames: mpsc::UnboundedSender<proto::HeartbeatFrame>,
    outcomes: Streaming<proto::Outcomes>,
}

/// Gathers, sends and matches answers until the link is gone.
pub(crate) async fn run_beats(target: Target, client: PeerClient<Channel>, mut queue: mpsc::UnboundedReceiver<Beat>) {
    let mut next_id = 0_u64;
    let mut frame = proto::HeartbeatFrame::default();
    let mut waiting: HashMap<u64, oneshot::Sender<Outcome>> = HashMap::new();
    let mut open: Option<Open> = None;
    let due = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(due);
    loop {
        tokio::select! {
            beat = queue.recv() => {
                let Some(mut beat) = beat else { return };
                next_id += 1;
                beat.heartbeat.id = next_id;
                let deadline = Instant::now() + beat.patience;
                if frame.beats.is_empty() || deadline < due.deadline() {
                    due.as_mut().reset(deadline);
                }
                frame.beats.push(beat.heartbeat);
                waiting.insert(next_id, beat.outcome);
            }
            () = &mut due, if !frame.beats.is_empty() => {
                let frame = std::mem::take(&mut frame);
                waiting.retain(|_, outcome| !outcome.is_closed());
                if open.is_none() {
                    open = connect(&target, client.clone()).await;
                }
                target.metrics.heartbeat_frames.inc();
                target.metrics.heartbeats.inc_by(frame.beats.len() as u64);
                if open.as_ref().is_none_or(|open| open.frames.send(frame).is_err()) {
                    open = None;
                    waiting.clear();
                }
            }
            outcomes = answers(&mut open), if open.is_some() => match outcomes {
                Some(outcomes) => {
                    for outcome in outcomes.outcomes {
                        if let (Some(sender), Some(result)) = (waiting.remove(&outcome.id), outcome.result) {
                            // The worker may have given up on it.
                            let _ = sender.send(result);
                        }
                    }
                }
                None => {
                    open = None;
                    // Those that were not sent yet get another connection; the rest have failed.
                    waiting.retain(|id, _| frame.beats.iter().any(|beat| beat.id == *id));
                }
            },
        }
    }
}

async fn answers(open: &mut Option<Open>) -> Option<proto::Outcomes> {
    match open {
        Some(open) => open.outcomes.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn connect(target: &Target, mut client: PeerClient<Channel>) -> Option<Open> {
    let (frames, queue) = mpsc::unbounded_channel();
    let request = target.hellos.sign(target.node, UnboundedReceiverStream::new(queue)).ok()?;
    match tokio::time::timeout(OPEN_TIMEOUT, client.heartbeats(request)).await {
        Ok(Ok(response)) => Some(Open { frames, outcomes: response.into_inner() }),
        Ok(Err(status)) => {
            tracing::debug!(node = %target.node, address = %target.address, %status, "no heartbeat stream");
            None
        }
        Err(_) => None,
    }
}
