//! Connects to an endpoint.

use std::io;

use hyper_util::rt::TokioIo;
use hyperlocal::UnixConnector;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower::Service;

use crate::config::Endpoint;

/// A connection to an endpoint of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects once. The caller bounds the time.
///
/// Cancel safe: a connection under way is closed.
pub(super) async fn connect(endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Endpoint::Unix(path) => {
            let stream = UnixConnector.call(hyperlocal::Uri::new(path, "/").into()).await?;
            Ok(Box::new(TokioIo::new(stream)))
        }
    }
}

/// The endpoint as an authority.
pub(super) fn authority(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        // The path is no host, and the server at its end is on this one.
        Endpoint::Unix(_) => "localhost".to_owned(),
    }
}
