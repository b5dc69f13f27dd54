//! Connects to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};

use super::resolve::Name;
use crate::config::Endpoint;
use crate::http::BoxStream;
use crate::listener::keep_alive;

/// Where connections to an endpoint go.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Address(SocketAddr),
    Name(Arc<Name>),
    Unix(PathBuf),
}

impl Target {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Tcp { host, port } => match host.parse() {
                Ok(address) => Self::Address(SocketAddr::new(address, *port)),
                Err(_) => Self::Name(Name::new(host, *port)),
            },
            Endpoint::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

/// Connects once; to a name, at the first of its addresses that accepts. The caller bounds the time.
///
/// Cancel safe: a connection under way is closed.
pub(super) async fn connect(target: &Target) -> io::Result<BoxStream> {
    match target {
        Target::Address(address) => tcp(&[*address]).await,
        Target::Name(name) => tcp(&name.addresses().await?).await,
        Target::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}

async fn tcp(addresses: &[SocketAddr]) -> io::Result<BoxStream> {
    let stream = TcpStream::connect(addresses).await?;
    stream.set_nodelay(true)?;
    // No bound on what it leaves untaken: how long an answer may take is the route's affair, and a tunnel's nobody's.
    keep_alive(&stream);
    Ok(Box::new(stream))
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
