//! HTTP as the client sees it: reading requests into their one canonical form, and serving connections.

mod activity;
mod alarm;
mod body;
mod connection;
mod counted;
mod frames;
pub(crate) mod headers;
mod http1;
mod io;
mod linger;
pub(crate) mod path;
mod request;
pub(crate) mod wire;

pub(crate) use self::activity::Closed;
pub(crate) use self::alarm::Alarm;
pub(crate) use self::body::{Body, BoxError, Http2Body, Incoming, Progress, RequestBody, empty, full};
pub(crate) use self::connection::{Connections, serve};
pub(crate) use self::io::Protocol;
pub(crate) use self::request::{Client, Place, Request, Rules, TlsFacts, read};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Has closing it break it off, where it can tell that from an end.
    fn reset_on_close(&self) {}
}

impl Stream for TcpStream {
    fn reset_on_close(&self) {
        self.set_zero_linger().ok();
    }
}

/// There is no such thing as a reset here.
impl Stream for UnixStream {}

impl Stream for TlsStream<BoxStream> {
    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }
}

#[cfg(any(test, fuzzing))]
impl Stream for tokio::io::DuplexStream {}

pub(crate) type BoxStream = Box<dyn Stream>;

/// The upstream's end of a connection that has switched protocols.
pub(crate) struct Switched {
    pub(crate) io: BoxStream,
    /// What the upstream has sent already.
    pub(crate) rest: Bytes,
    /// What is occupied for as long as it is used.
    pub(crate) held: Box<dyn std::any::Any + Send>,
}

impl std::fmt::Debug for Switched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switched").finish_non_exhaustive()
    }
}
