//! The seam below the transport: a way to a byte stream.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A byte stream of any kind.
pub type BoxIo = Box<dyn Io>;

/// How to reach a peer address. A simulation gives streams of its own network.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to `host:port`.
    async fn connect(&self, address: &str) -> io::Result<BoxIo>;
}

/// TCP with the options that let a dead peer be noticed fast.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

/// Unacknowledged data for this long breaks a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(2);

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self, address: &str) -> io::Result<BoxIo> {
        let stream = TcpStream::connect(address).await?;
        prepare(&stream)?;
        Ok(Box::new(stream))
    }
}

/// Sets no delay and the user time-out, on either end.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}
