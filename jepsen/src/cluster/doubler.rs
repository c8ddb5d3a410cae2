//! Messages from one node to the others that arrive twice.
//!
//! TCP drops a packet that comes twice, so the doubles are made above it: what a node sends to its peers is led to a
//! proxy of ours in the node's namespace, which speaks the peers' protocol, passes on every call and every message of a
//! stream, and sends some of them twice. Its own connections go to another port, which the packet filter turns into that
//! of the peers: so they come from the node's address, and links that are cut are cut for them too.
//!
//! Only what Raft says is doubled, and what only reads: what proposes something is done twice when it comes twice, and a
//! connection that breaks never makes it come twice.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::{Stream, StreamExt as _};
use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Context as Polled, Poll, Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::{Cluster, PEER_PORT};

/// The first port on which the proxy listens; each peer has one of its own.
const LISTEN: u16 = 17_710;
/// The port to which it connects.
const CONNECT: u16 = 17_702;
/// Our chain, which OUTPUT goes through while messages are doubled.
const CHAIN: &str = "QJ-DOUBLES";
/// What is doubled: a message of a stream, or a call.
const STREAMS: [&str; 2] = ["/Heartbeats", "/Append"];
const CALLS: [&str; 3] = ["/Vote", "/ReadPosition", "/TransferLeader"];
/// Of the calls between nodes the kinds that only read: `node/src/peers.rs`.
const READS: [u8; 3] = [4, 5, 7];

/// The thread that has what a node says in its hands.
#[derive(Debug)]
pub(super) struct Doubler {
    stop: CancellationToken,
    doubled: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Doubler {
    /// Begins to listen in the namespace. Ready when it returns.
    fn start(namespace: PathBuf, peers: Vec<Ipv4Addr>, part: f64, seed: u64) -> Result<Doubler> {
        let (stop, doubled) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let dice = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        let proxy = Proxy { part, dice, doubled: doubled.clone(), channels: Arc::default(), peer: None };
        let stopping = stop.clone();
        let thread = std::thread::Builder::new().name("doubles".into()).spawn(move || -> Result<()> {
            // Only this thread moves into the namespace; its sockets stay there as long as they are open.
            setns(File::open(&namespace)?, CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut serving = tokio::task::JoinSet::new();
                for (port, peer) in (LISTEN..).zip(peers) {
                    let incoming = TcpIncoming::from(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?);
                    let server = Server::builder().add_service(Proxy { peer: Some(peer), ..proxy.clone() });
                    let stopped = stopping.clone();
                    serving
                        .spawn(async move { server.serve_with_incoming_shutdown(incoming, stopped.cancelled()).await });
                }
                let _ = ready.send(());
                // Streams never end by themselves: they go with the runtime.
                stopping.cancelled().await;
                Ok(())
            })
        })?;
        let mut doubler = Doubler { stop, doubled, thread: Some(thread) };
        match is_ready.recv() {
            Ok(()) => Ok(doubler),
            Err(_) => {
                Err(doubler.end().err().unwrap_or_else(|| anyhow!("it ended at once")).context("starting a proxy"))
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        self.stop.cancel();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| bail!("the thread that doubles messages panicked"))
    }
}

impl Drop for Doubler {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A connection: to which peer, and from which port of the node.
type Way = (Option<Ipv4Addr>, Option<SocketAddr>);

/// What is said to one peer.
#[derive(Clone)]
struct Proxy {
    part: f64,
    dice: Arc<Mutex<StdRng>>,
    doubled: Arc<AtomicU64>,
    /// One for each connection, so that those stay apart that nodes keep apart.
    channels: Arc<Mutex<HashMap<Way, Channel>>>,
    peer: Option<Ipv4Addr>,
}

impl NamedService for Proxy {
    const NAME: &'static str = "quorate.raft.v1.Peer";
}

impl Service<http::Request<Body>> for Proxy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = PathAndQuery::try_from(request.uri().path()).expect("the path of a request is one");
        let from = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let call = Call { proxy: self.clone(), path, channel: self.channel(from) };
        Box::pin(async move {
            let server = tonic::server::Grpc::new(Raw);
            Ok(server.max_decoding_message_size(usize::MAX).streaming(call, request).await)
        })
    }
}

impl Proxy {
    fn channel(&self, from: Option<SocketAddr>) -> Channel {
        let peer = self.peer.unwrap_or(Ipv4Addr::LOCALHOST);
        let connect = || {
            let endpoint = Endpoint::from_shared(format!("http://{peer}:{CONNECT}"));
            endpoint.expect("an address and a port are an endpoint").tcp_nodelay(true).connect_lazy()
        };
        self.channels.lock().entry((self.peer, from)).or_insert_with(connect).clone()
    }

    fn doubles(&self) -> bool {
        self.dice.lock().random_bool(self.part)
    }
}

/// A message so many times. A second one counts when whoever sends them has taken it and asks for what comes next:
/// what is never sent, because there is no connection, was not doubled.
fn repeated(message: Bytes, times: usize, doubled: Arc<AtomicU64>) -> impl Stream<Item = Bytes> + Send {
    let copies = std::iter::repeat_n(Some(message), times).chain((times > 1).then_some(None));
    futures::stream::iter(copies).filter_map(move |copy| {
        doubled.fetch_add(copy.is_none().into(), Ordering::Relaxed);
        std::future::ready(copy)
    })
}

/// Waits for the answer to a second call, which counts when there is one.
async fn answered<T>(call: impl Future<Output = Result<T, Status>>, doubled: &AtomicU64) -> Option<T> {
    let answer = call.await.ok()?;
    doubled.fetch_add(1, Ordering::Relaxed);
    Some(answer)
}

/// One call, or one stream.
#[derive(Clone)]
struct Call {
    proxy: Proxy,
    path: PathAndQuery,
    channel: Channel,
}

impl Service<Request<Streaming<Bytes>>> for Call {
    type Response = Response<Streaming<Bytes>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let call = self.clone();
        let (metadata, _, messages) = request.into_parts();
        let is_of = |names: &[&str]| names.iter().any(|name| call.path.path().ends_with(name));
        let (is_call, reads, is_stream) = (is_of(&CALLS), is_of(&["/Call"]), is_of(&STREAMS));
        Box::pin(async move {
            if is_call || reads {
                call.once(metadata, messages, is_call).await
            } else {
                call.pass(metadata, messages, is_stream).await
            }
        })
    }
}

impl Call {
    /// Passes on a call of one message, perhaps twice. The first answer counts.
    async fn once(
        self,
        metadata: MetadataMap,
        mut messages: Streaming<Bytes>,
        may_double: bool,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let message = messages.message().await?.ok_or_else(|| Status::internal("a call without a message"))?;
        let reads = matches!(message[..], [8, kind, ..] if READS.contains(&kind));
        if (may_double || reads) && self.proxy.doubles() {
            let (second, metadata, message) = (self.clone(), metadata.clone(), message.clone());
            tokio::spawn(async move {
                let call = second.send(metadata, futures::stream::iter([message]));
                if let Some(answer) = answered(call, &second.proxy.doubled).await {
                    answer.into_inner().for_each(|_| std::future::ready(())).await;
                }
            });
        }
        self.send(metadata, futures::stream::iter([message])).await
    }

    /// Passes on a stream, some of its messages twice.
    async fn pass(
        self,
        metadata: MetadataMap,
        messages: Streaming<Bytes>,
        may_double: bool,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let proxy = self.proxy.clone();
        // One that breaks ends.
        let whole = messages
            .take_while(|message| std::future::ready(message.is_ok()))
            .filter_map(|message| std::future::ready(message.ok()));
        let doubled = whole.flat_map(move |message| {
            let times = if may_double && proxy.doubles() { 2 } else { 1 };
            repeated(message, times, proxy.doubled.clone())
        });
        self.send(metadata, doubled).await
    }

    async fn send(
        &self,
        metadata: MetadataMap,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = Request::from_parts(metadata, Extensions::default(), messages);
        client.streaming(request, self.path.clone(), Raw).await
    }
}

/// Messages as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The rules that lead what is for the peers to the proxy, and what the proxy sends on to the peers.
fn redirects(peers: &[Ipv4Addr]) -> String {
    let redirect =
        |(port, peer)| format!("-A {CHAIN} -p tcp -d {peer} --dport {PEER_PORT} -j REDIRECT --to-ports {port}\n");
    let turn = format!("-A {CHAIN} -p tcp --dport {CONNECT} -j DNAT --to-destination :{PEER_PORT}\n");
    (LISTEN..).zip(peers).map(redirect).chain([turn]).collect()
}

/// The rules that break the connections which peers have without the proxy, so that they come through it. Nobody leads
/// what is for a node that joins later to the proxy, so its connections must stay.
fn refusals(peers: &[Ipv4Addr]) -> String {
    let refuse = "-m conntrack ! --ctstate DNAT -j REJECT --reject-with tcp-reset";
    peers.iter().map(|peer| format!("-A {CHAIN} -p tcp -d {peer} --dport {PEER_PORT} {refuse}\n")).collect()
}

impl Cluster {
    /// Doubles a part (0 to 1) of what a node says to the others, until [`Cluster::stop_doubling`]. Its connections to
    /// them are made anew for that.
    pub async fn double(&self, node: usize, part: f64, seed: u64) -> Result<()> {
        self.stop_doubling(node).await?;
        let namespace = PathBuf::from("/run/netns").join(self.run.namespace(node));
        let peers: Vec<Ipv4Addr> = self.others(node).collect();
        let (redirects, refusals) = (redirects(&peers), refusals(&peers));
        let doubler = tokio::task::spawn_blocking(move || Doubler::start(namespace, peers, part, seed)).await??;
        self.node(node).doubler.lock().replace(doubler);
        self.filter(node, "nat", &format!(":{CHAIN} - [0:0]\n-A OUTPUT -j {CHAIN}\n{redirects}")).await?;
        self.filter(node, "filter", &format!(":{CHAIN} - [0:0]\n-A OUTPUT -j {CHAIN}\n{refusals}")).await
    }

    /// How many messages of a node were doubled since the last [`Cluster::double`].
    pub fn doubled(&self, node: usize) -> u64 {
        self.node(node).doubler.lock().as_ref().map_or(0, |doubler| doubler.doubled.load(Ordering::Relaxed))
    }

    /// Ends [`Cluster::double`]: the node's connections are made anew once more. Does nothing if nothing is doubled.
    pub async fn stop_doubling(&self, node: usize) -> Result<()> {
        let Some(mut doubler) = self.node(node).doubler.lock().take() else { return Ok(()) };
        let remove = format!("-D OUTPUT -j {CHAIN}\n-F {CHAIN}\n-X {CHAIN}\n");
        for table in ["nat", "filter"] {
            self.filter(node, table, &remove).await.context("ending doubles")?;
        }
        tokio::task::spawn_blocking(move || doubler.end()).await?
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn only_connections_to_those_behind_the_proxy_are_broken() {
        let peers = [Ipv4Addr::new(198, 18, 7, 2), Ipv4Addr::new(198, 18, 7, 3)];
        let of = |rules: &str| -> Vec<String> {
            let to = |rule: &str| rule.split(" -d ").nth(1)?.split(' ').next().map(str::to_owned);
            rules
                .lines()
                .filter(|rule| rule.contains("--dport 7702"))
                .map(|rule| to(rule).unwrap_or_default())
                .collect()
        };
        let named = peers.map(|peer| peer.to_string());
        assert_eq!((of(&redirects(&peers)), of(&refusals(&peers))), (named.to_vec(), named.to_vec()));
        assert!(redirects(&peers).ends_with("--dport 17702 -j DNAT --to-destination :7702\n"));
    }

    #[test]
    fn what_was_not_sent_twice_was_not_doubled() {
        let doubled = Arc::new(AtomicU64::new(0));
        let count = || doubled.load(Ordering::Relaxed);
        let mut once = Box::pin(repeated(Bytes::from_static(b"x"), 1, doubled.clone()));
        assert_eq!((once.next().now_or_never().flatten().is_some(), once.next().now_or_never()), (true, Some(None)));
        let mut twice = Box::pin(repeated(Bytes::from_static(b"x"), 2, doubled.clone()));
        for _ in 0..2 {
            assert_eq!((twice.next().now_or_never().flatten().is_some(), count()), (true, 0));
        }
        assert_eq!((twice.next().now_or_never(), count()), (Some(None), 1));
        let refused = answered(std::future::ready(Err::<(), _>(Status::unavailable("cut"))), &doubled);
        assert_eq!((refused.now_or_never(), count()), (Some(None), 1));
        let answer = answered(std::future::ready(Ok(5)), &doubled);
        assert_eq!((answer.now_or_never(), count()), (Some(Some(5)), 2));
    }
}
