//! Requests between nodes that arrive twice.
//!
//! TCP repeats nothing, but requests do come twice: whoever got no answer asks again, while the first request is still on its
//! way or long obeyed. So half of the connections between nodes pass a repeater, which stands in front of the server for peers,
//! and while a fault says so it lets come again what is a request of its own:
//!
//! - votes, hand-overs, questions for a read position and calls of the node, with the proposals that are relayed in them: the
//!   same request, some time after the first;
//! - a snapshot: all of it, in another request, when the first has ended;
//! - heartbeats: the same frame, at once or behind a later one;
//! - appends: the same request, at once or behind a later one, in a session of its own.
//!
//! No frame is repeated where the meaning hangs on its place in the stream: an append within its session, whose answers are
//! counted; a chunk of a snapshot, which is the next bytes of a file; the streams by which nodes relay the sessions of agents.
//! HTTP/2 delivers the frames of a stream once and in order, or breaks the stream, and the product may rely on that.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{StreamExt as _, future, stream};
use http::request::Parts;
use http::{Request, Response, Uri};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quorate_raft::BoxIo;
use tokio::io::DuplexStream;
use tokio::time::sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tower::{Service, ServiceExt as _};

use crate::network::Accepted;
use crate::world::World;

/// How much later a request comes again.
const LATER_MS: Range<u64> = 0..400;
/// As the product's server: a connection on which no ping is answered for so long is dead.
const KEEPALIVE: Duration = Duration::from_secs(5);
const PIPE_BYTES: usize = 64 << 10;
/// What stands before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// Sessions of appends that are repeated have numbers from here on; no leader comes that far.
const SESSIONS_FROM: u64 = 1 << 40;

/// Puts a repeater between a connection of a peer and the server, which gets what is returned.
pub(crate) fn through(world: &Arc<World>, node: usize, accepted: Accepted) -> BoxIo {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let repeater = Repeater { server: channel(near), world: world.clone(), node };
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(repeater)
        .serve_with_incoming(stream::iter([Ok::<_, io::Error>(accepted)]));
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::debug!(%error, "a connection was not taken");
        }
    });
    Box::new(far)
}

/// A channel over a pipe. It connects once: what is broken stays so, and the peer makes another connection.
fn channel(pipe: DuplexStream) -> Channel {
    let pipe = Arc::new(Mutex::new(Some(pipe)));
    let connect = tower::service_fn(move |_: Uri| {
        let pipe = pipe.lock().take();
        future::ready(pipe.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://peer").connect_with_connector_lazy(connect)
}

/// Stands in front of the server of a node, on one connection.
#[derive(Clone)]
struct Repeater {
    server: Channel,
    world: Arc<World>,
    node: usize,
}

impl NamedService for Repeater {
    const NAME: &'static str = "quorate.raft.v1.Peer";
}

impl Service<Request<Body>> for Repeater {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let request = self.prepare(request);
        let answer = self.server.clone().oneshot(request);
        Box::pin(
            async move { Ok(answer.await.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http())) },
        )
    }
}

impl Repeater {
    fn prepare(&self, request: Request<Body>) -> Request<Body> {
        match request.uri().path().rsplit('/').next() {
            Some("Vote") => self.later(request, "vote"),
            Some("TransferLeader") => self.later(request, "transfer"),
            Some("ReadPosition") => self.later(request, "read_position"),
            Some("Call") => self.later(request, "call"),
            Some("Snapshot") => self.later(request, "snapshot"),
            Some("Heartbeats") => self.within(request, "heartbeat", Bytes::clone),
            Some("Append") => {
                let world = self.world.clone();
                self.within(request, "append", move |message| in_session(message, SESSIONS_FROM + world.number()))
            }
            _ => request,
        }
    }

    /// Whether something comes again. Counted as what it is.
    fn strikes(&self, what: &'static str) -> bool {
        let strikes = self.world.slots[self.node].repeats.load(Ordering::Relaxed) && self.world.one_in(2);
        if strikes {
            *self.world.repeated.lock().entry(what).or_default() += 1;
        }
        strikes
    }

    /// Lets the whole request come again some time after its end, if it comes to its end.
    fn later(&self, request: Request<Body>, what: &'static str) -> Request<Body> {
        if !self.strikes(what) {
            return request;
        }
        let (head, body) = request.into_parts();
        let again = Again { server: self.server.clone(), wait: self.world.pause(LATER_MS), head: head.clone() };
        let passing = stream::unfold((body, Some((again, Vec::new()))), |(mut body, mut kept)| async move {
            match (body.frame().await, &mut kept) {
                (Some(Ok(frame)), Some((_, data))) => {
                    data.extend(frame.data_ref().cloned());
                    Some((Ok(frame), (body, kept)))
                }
                (None, _) => {
                    let (again, data) = kept?;
                    tokio::spawn(again.send(data));
                    None
                }
                (Some(broken), _) => Some((broken, (body, None))),
            }
        });
        Request::from_parts(head, Body::new(StreamBody::new(passing)))
    }

    /// Lets messages of a stream come again in it, each as `again` makes it.
    fn within(
        &self,
        request: Request<Body>,
        what: &'static str,
        again: impl Fn(&Bytes) -> Bytes + Send + 'static,
    ) -> Request<Body> {
        let (head, body) = request.into_parts();
        let repeater = self.clone();
        let mut messages = Messages::default();
        let mut held = None;
        let passing = BodyStream::new(body).filter_map(move |frame| {
            let doubled = frame.map(|frame| {
                frame.map_data(|data| {
                    let mut out = BytesMut::new();
                    for message in messages.cut(&data) {
                        out.put(&*framed(&message));
                        // One that was held comes behind a later one.
                        out.extend(held.take());
                        if repeater.strikes(what) {
                            let copy = again(&message);
                            if repeater.world.one_in(2) { out.extend(copy) } else { held = Some(copy) }
                        }
                    }
                    out.freeze()
                })
            });
            // The rest of a message is still to come.
            let is_empty = matches!(&doubled, Ok(frame) if frame.data_ref().is_some_and(Bytes::is_empty));
            future::ready((!is_empty).then_some(doubled))
        });
        Request::from_parts(head, Body::new(StreamBody::new(passing)))
    }
}

/// A request that comes again.
struct Again {
    server: Channel,
    wait: Duration,
    head: Parts,
}

impl Again {
    async fn send(self, data: Vec<Bytes>) {
        sleep(self.wait).await;
        let frames = stream::iter(data.into_iter().map(|data| Ok::<_, Status>(Frame::data(data))));
        let request = Request::from_parts(self.head, Body::new(StreamBody::new(frames)));
        // Nobody waits for what is answered, but a stream goes on only while it is taken.
        if let Ok(answer) = self.server.oneshot(request).await {
            let _ = answer.into_body().collect().await;
        }
    }
}

/// The messages of a stream, which arrive in pieces of any size.
#[derive(Default)]
struct Messages(BytesMut);

impl Messages {
    /// The messages that are whole with this piece, without what stands before each.
    fn cut(&mut self, piece: &Bytes) -> Vec<Bytes> {
        self.0.extend_from_slice(piece);
        let mut whole = Vec::new();
        while let Some(mut prefix) = self.0.get(1..PREFIX_BYTES) {
            let end = PREFIX_BYTES + prefix.get_u32() as usize;
            if self.0.len() < end {
                break;
            }
            whole.push(self.0.split_to(end).freeze().slice(PREFIX_BYTES..));
        }
        whole
    }
}

/// A message with what stands before it: it is not compressed, and so long.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

/// An `AppendFrame` as the only one of another session: it opens that, and a second frame closes it. What is said of a field
/// last counts in a message, so the rest of it stays as it is.
fn in_session(message: &Bytes, session: u64) -> Bytes {
    const SESSION: u8 = 1 << 3;
    const OPENS: u8 = 2 << 3;
    const CLOSES: u8 = 3 << 3;
    let mut number = vec![SESSION];
    let mut rest = session;
    while rest > 0x7f {
        number.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    number.push(rest as u8);
    let first = [message, &number[..], &[OPENS, 1]].concat();
    let last = [&number[..], &[CLOSES, 1]].concat();
    [framed(&first), framed(&last)].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_they_arrive() {
        let sent = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for size in 1..=sent.len() {
            let mut messages = Messages::default();
            let pieces = sent.chunks(size).map(Bytes::copy_from_slice);
            let whole: Vec<Bytes> = pieces.flat_map(|piece| messages.cut(&piece)).collect();
            assert_eq!(whole, [&b"one"[..], b"", b"three"], "in pieces of {size}");
        }
    }

    #[test]
    fn an_append_comes_again_in_a_session_of_its_own() {
        let mut messages = Messages::default();
        let frames = messages.cut(&in_session(&Bytes::from_static(b"\x08\x07"), 300));
        assert_eq!(frames, [&b"\x08\x07\x08\xac\x02\x10\x01"[..], b"\x08\xac\x02\x18\x01"]);
    }
}
