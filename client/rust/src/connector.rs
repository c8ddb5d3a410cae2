//! The seam between the client and the network.
//!
//! In production a connection is TCP. A simulated network stands in by implementing [`Connector`]; everything above,
//! HTTP/2 included, stays the same.

use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::Uri;

/// A byte stream to a node.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens byte streams to nodes.
pub trait Connector: Send + Sync + 'static {
    /// Connects to the host and port of `uri`. The caller bounds the time that this may take.
    ///
    /// # Errors
    /// Whatever the network says; the caller tries another node.
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// Plain TCP without Nagle's delay.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let (host, port) = host_and_port(&uri)?;
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

/// The host (without the brackets of an IPv6 address) and the port of an address.
///
/// # Errors
/// `InvalidInput` where the address has no host. A missing port is 80.
pub fn host_and_port(uri: &Uri) -> io::Result<(&str, u16)> {
    let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the address has no host"))?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Ok((bare, uri.port_u16().unwrap_or(80)))
}
