//! The simulated network behind the seams of nodes and clients.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use quorate_client::host_and_port;
use quorate_raft::BoxIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::ToSocketAddrs;
use turmoil::net::{TcpListener, TcpStream};

/// After how long TCP sends a lost SYN again.
const SYN_LOST: Duration = Duration::from_secs(1);

/// Connects. turmoil refuses a connection at once when a partition swallows it; a network would say nothing.
async fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let begun = Instant::now();
    let connected = TcpStream::connect(address).await;
    if connected.is_err() && begun.elapsed().is_zero() {
        sleep(SYN_LOST).await;
    }
    connected
}

/// Connects over the simulated network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SimulatedTcp;

#[async_trait]
impl quorate_raft::Connector for SimulatedTcp {
    async fn connect(&self, address: &str) -> io::Result<BoxIo> {
        Ok(Box::new(connect(address.to_owned()).await?))
    }
}

impl quorate_client::Connector for SimulatedTcp {
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn quorate_client::Io>>> {
        Box::pin(async move {
            let (host, port) = host_and_port(&uri)?;
            let stream = connect((host.to_owned(), port)).await?;
            Ok(Box::new(stream) as Box<dyn quorate_client::Io>)
        })
    }
}

/// A channel to a client address.
pub(crate) async fn channel(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let connect = tower::service_fn(|uri: Uri| async move {
        let (host, port) = host_and_port(&uri)?;
        Ok::<_, io::Error>(TokioIo::new(connect((host.to_owned(), port)).await?))
    });
    Ok(endpoint.connect_with_connector(connect).await?)
}

/// The connections to a port of this host, for ever.
pub(crate) async fn listen(port: u16) -> io::Result<impl Stream<Item = io::Result<Accepted>>> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    Ok(stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    }))
}

/// A connection as tonic's server wants it.
pub(crate) struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
