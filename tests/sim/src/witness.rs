//! An agent without the SDK, that does what an agent may do and the SDK seldom does: it moves its session from node to
//! node, and says a late word on the stream that it has left. It takes no tasks; what it is told of its session is held
//! against the log.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::ApiError;
use quorate_client::v1::agents_service_client::AgentsServiceClient;
use quorate_client::v1::work_request::Frame as Said;
use quorate_client::v1::work_response::Frame as Told;
use quorate_client::v1::{self, ErrorReason};
use quorate_state::SessionId;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::network::channel;
use crate::world::{SLOTS, World, endpoints};

/// The host of the witness.
pub(crate) const HOST: &str = "witness";
const TTL: Duration = Duration::from_secs(1);
/// What the SDK keeps back of a lease of that length.
const MARGIN: Duration = Duration::from_millis(100);
const BEAT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_millis(500);

/// A stream that carries the session.
struct Stream {
    said: mpsc::UnboundedSender<v1::WorkRequest>,
    told: Streaming<v1::WorkResponse>,
}

impl Stream {
    fn say(&self, frame: Said) {
        // A stream that is over is noticed by its other half.
        let _ = self.said.send(v1::WorkRequest { frame: Some(frame) });
    }
}

/// Why there is no stream.
enum Refused {
    /// The session is over.
    Over,
    /// Another node, or another time.
    Again,
}

fn refused(status: &Status) -> Refused {
    match ApiError::from(status).reason {
        ErrorReason::SessionNotFound => Refused::Over,
        _ => Refused::Again,
    }
}

/// Opens a stream on a node by its first word. Returns the session too.
async fn attach(node: usize, first: Said) -> Result<(Stream, u64), Refused> {
    let address = endpoints(node).swap_remove(0);
    let opening = async {
        let channel = channel(&address).await.map_err(|_| Refused::Again)?;
        let (said, frames) = mpsc::unbounded_channel();
        let _ = said.send(v1::WorkRequest { frame: Some(first) });
        let told = AgentsServiceClient::new(channel).work(UnboundedReceiverStream::new(frames)).await;
        let mut stream = Stream { said, told: told.map_err(|status| refused(&status))?.into_inner() };
        match stream.told.message().await.map_err(|status| refused(&status))?.and_then(|word| word.frame) {
            Some(Told::Opened(opened)) => Ok((stream, opened.session_id)),
            Some(Told::Gone(_)) => Err(Refused::Over),
            _ => Err(Refused::Again),
        }
    };
    timeout(PATIENCE, opening).await.unwrap_or(Err(Refused::Again))
}

/// The process of the witness, until it is killed.
pub(crate) async fn run(world: Arc<World>) -> turmoil::Result {
    loop {
        let node = world.choose(0..SLOTS as u64) as usize;
        let opened_ms = now_ms();
        let open = v1::OpenSession {
            request_id: Uuid::now_v7().to_string(),
            agent: HOST.to_owned(),
            roles: vec![HOST.to_owned()],
            slots: 1,
            ttl_ms: u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX),
        };
        match attach(node, Said::Open(open)).await {
            Ok((stream, session)) => {
                let mut visit = Visit { world: world.clone(), session: SessionId(session), attachment: 1, seq: 0 };
                visit.renewed(opened_ms);
                visit.live(stream, node).await;
            }
            Err(_) => sleep(world.pause(50..200)).await,
        }
    }
}

fn now_ms() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// One session.
struct Visit {
    world: Arc<World>,
    session: SessionId,
    attachment: u64,
    seq: u64,
}

/// What ends the time on one stream.
enum Left {
    Over,
    Broken,
    Bored,
}

impl Visit {
    /// What was sent at that time was acknowledged: the lease runs from then.
    fn renewed(&self, sent_ms: u64) {
        let lease = u64::try_from((TTL - MARGIN).as_millis()).unwrap_or(u64::MAX);
        self.world.with_history(|history| {
            let wrong = history.sessions.holds(self.session, sent_ms + lease);
            history.note(wrong);
        });
    }

    /// Holds the session on one node after another until it is over.
    async fn live(&mut self, mut stream: Stream, mut node: usize) {
        loop {
            let left = self.stay(&mut stream).await;
            match left {
                Left::Over => return self.over(),
                Left::Bored if self.world.choose(0..10) == 0 => return self.close(&stream).await,
                Left::Bored | Left::Broken => {}
            }
            let Some((next, there)) = self.move_on(node).await else { return };
            let old = std::mem::replace(&mut stream, next);
            node = there;
            if self.world.choose(0..2) == 0 {
                // The word of a process that was told to end, and did not know that its session has moved.
                old.say(Said::Close(v1::CloseSession {}));
            }
            let lingers = self.world.pause(1..400);
            tokio::spawn(async move {
                sleep(lingers).await;
                drop(old);
            });
        }
    }

    /// Heartbeats, until the stream breaks or it is time to move.
    async fn stay(&mut self, stream: &mut Stream) -> Left {
        let bored = sleep(self.world.pause(100..2_500));
        tokio::pin!(bored);
        let mut sent = std::collections::BTreeMap::new();
        loop {
            tokio::select! {
                () = &mut bored => return Left::Bored,
                () = sleep(BEAT) => {
                    self.seq += 1;
                    sent.insert(self.seq, now_ms());
                    stream.say(Said::Heartbeat(v1::Heartbeat { seq: self.seq, draining: false }));
                }
                told = stream.told.message() => match told.map(|word| word.and_then(|word| word.frame)) {
                    Ok(Some(Told::HeartbeatAck(ack))) => {
                        if let Some(sent_ms) = sent.remove(&ack.seq) {
                            self.renewed(sent_ms);
                        }
                        sent.retain(|seq, _| *seq > ack.seq);
                    }
                    Ok(Some(Told::Gone(_))) => return Left::Over,
                    Ok(Some(_)) => {}
                    Ok(None) => return Left::Broken,
                    Err(status) => return match refused(&status) {
                        Refused::Over => Left::Over,
                        Refused::Again => Left::Broken,
                    },
                },
            }
        }
    }

    /// Finds another node for the session. `None` if the session is over.
    async fn move_on(&mut self, node: usize) -> Option<(Stream, usize)> {
        let mut there = node;
        loop {
            there = (there + 1 + self.world.choose(0..SLOTS as u64 - 1) as usize) % SLOTS;
            self.attachment += 1;
            let resume =
                v1::ResumeSession { session_id: self.session.0, attachment: self.attachment, holding: Vec::new() };
            match attach(there, Said::Resume(resume)).await {
                Ok((stream, _)) => return Some((stream, there)),
                Err(Refused::Over) => {
                    self.over();
                    return None;
                }
                Err(Refused::Again) => sleep(self.world.pause(10..60)).await,
            }
        }
    }

    /// Ends the session in good order, if the stream still is.
    async fn close(&self, stream: &Stream) {
        self.world.with_history(|history| history.sessions.closes(self.session));
        stream.say(Said::Close(v1::CloseSession {}));
        sleep(PATIENCE).await;
    }

    fn over(&self) {
        self.world.with_history(|history| {
            let wrong = history.sessions.told_over(self.session);
            history.note(wrong);
        });
    }
}
