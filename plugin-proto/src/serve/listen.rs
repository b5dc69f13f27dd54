//! The plugin's socket, the handshake line, and the end.

use std::env;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use nix::unistd::{Group, getppid};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::service::Routes;
use tonic::transport::Server;

use super::GRACE;
use super::services::Shared;
use super::stream::{self, Judge, MAX_CONNECTIONS, PAUSE};
use crate::env::{APP_VERSION, COOKIE, MAX_SOCKET_PATH, PROTOCOL_VERSIONS, UNIX_SOCKET_DIR, UNIX_SOCKET_GROUP};
use crate::handshake::{Address, Handshake};
use crate::socket::UnixSocket;

/// How often the parent is looked at. The host's own means (parent-death signal, process group) are faster; this one
/// also works behind a wrapper that forks.
const PARENT_CHECK: Duration = Duration::from_secs(1);

/// Why a plugin could not serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error(
        "this program is a plugin: Palisade starts it (put it under `plugins:` in palisade.yaml); it does nothing when started by hand"
    )]
    NoCookie,
    #[error("the host speaks application versions {0:?}, this plugin speaks {APP_VERSION}")]
    Version(String),
    #[error("the socket's path {path} is {length} bytes long, at most {MAX_SOCKET_PATH} fit")]
    PathTooLong { path: PathBuf, length: usize },
    #[error("can't listen on {0}")]
    Listen(String, #[source] io::Error),
    #[error("can't give the socket to the group {0} (PLUGIN_UNIX_SOCKET_GROUP)")]
    Group(String, #[source] io::Error),
    #[error("can't print the handshake line")]
    Print(#[source] io::Error),
    #[error("can't handle signals")]
    Signal(#[source] io::Error),
    #[error("can't serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Refuses to run without a host, or with one that speaks another version.
pub(super) fn check_environment() -> Result<(), ServeError> {
    if env::var(COOKIE.0).as_deref() != Ok(COOKIE.1) {
        return Err(ServeError::NoCookie);
    }
    match env::var(PROTOCOL_VERSIONS) {
        Ok(versions) if !versions.split(',').any(|version| version.trim() == APP_VERSION.to_string()) => {
            Err(ServeError::Version(versions))
        }
        _ => Ok(()),
    }
}

/// Where the plugin listens.
pub(super) enum Listening {
    Unix {
        path: PathBuf,
        listener: UnixListener,
        /// Beside it, for batches alone.
        batches: Option<(UnixListener, Judge)>,
    },
    Tcp(TcpListener),
}

/// Names of the sockets. Each plugin has a directory to itself.
const SOCKET: &str = "plugin.sock";
const BATCHES: &str = "stream.sock";

impl Listening {
    /// Listens where the host wants it: from here on, whoever connects waits.
    pub(super) async fn choose(batches: Option<Judge>) -> Result<Self, ServeError> {
        let Some(directory) = env::var_os(UNIX_SOCKET_DIR).map(PathBuf::from) else {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
            return listener.map(Self::Tcp).map_err(|error| ServeError::Listen("127.0.0.1".to_owned(), error));
        };
        let path = directory.join(SOCKET);
        let listener = bind(&path)?;
        let batches = match batches {
            Some(judge) => Some((bind(&directory.join(BATCHES))?, judge)),
            None => None,
        };
        Ok(Self::Unix { path, listener, batches })
    }

    /// What `FilterNeeds.stream_socket` is.
    pub(super) fn beside(&self) -> &'static str {
        match self {
            Self::Unix { batches: Some(_), .. } => BATCHES,
            Self::Unix { .. } | Self::Tcp(_) => "",
        }
    }

    /// Prints the line and serves until the end.
    pub(super) async fn run(self, routes: Routes, shared: &Arc<Shared>) -> Result<(), ServeError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
        // A terminal's Ctrl-C is for the host, which stops its plugins when it has drained.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
        let ender = Arc::clone(shared);
        let watcher = tokio::spawn(async move {
            let parent = getppid();
            let mut checks = tokio::time::interval(PARENT_CHECK);
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => {}
                    _ = checks.tick() => if getppid() != parent { break },
                }
            }
            ender.end();
        });
        let server = Server::builder().add_routes(routes);
        let end = shared.ended();
        let served = match self {
            Self::Unix { path, listener, batches } => {
                announce(Address::Unix(path))?;
                let sockets = paced(UnixListenerStream::new(listener)).map(|accepted| UnixSocket::new(accepted?));
                let serve = server.serve_with_incoming_shutdown(sockets, end);
                match batches {
                    Some((listener, judge)) => {
                        let streams = stream::serve(listener, judge, Arc::clone(shared), MAX_CONNECTIONS);
                        bounded(async { tokio::try_join!(serve, streams.map(Ok)).map(drop) }, shared).await
                    }
                    None => bounded(serve, shared).await,
                }
            }
            Self::Tcp(listener) => {
                let address = listener.local_addr();
                let address = address.map_err(|error| ServeError::Listen("127.0.0.1".to_owned(), error))?;
                announce(Address::Tcp(address))?;
                bounded(server.serve_with_incoming_shutdown(paced(TcpListenerStream::new(listener)), end), shared).await
            }
        };
        watcher.abort();
        served.map_err(ServeError::Serve)
    }
}

/// Listens on a socket for the host alone, and for a group if there is one that it is in.
fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(ServeError::PathTooLong { path: path.to_owned(), length });
    }
    let listener = UnixListener::bind(path).map_err(|error| ServeError::Listen(path.display().to_string(), error))?;
    if let Some(group) = env::var(UNIX_SOCKET_GROUP).ok().filter(|group| !group.is_empty()) {
        share(path, &group).map_err(|error| ServeError::Group(group, error))?;
    }
    Ok(listener)
}

/// Lets a group connect, which the host is in.
fn share(socket: &Path, group: &str) -> io::Result<()> {
    let gid = match group.parse() {
        Ok(gid) => gid,
        Err(_) => Group::from_name(group)?.ok_or(io::ErrorKind::NotFound)?.gid.as_raw(),
    };
    chown(socket, None, Some(gid))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
}

/// Nobody is accepted for a while after that has failed: a server tries again at once, for as long as there are no
/// descriptors left.
fn paced<T>(accepted: impl Stream<Item = io::Result<T>>) -> impl Stream<Item = io::Result<T>> {
    accepted.then(async |accepted| {
        if accepted.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        accepted
    })
}

/// Waits for `serve`, but no longer than [`GRACE`] behind the end.
async fn bounded(
    serve: impl Future<Output = Result<(), tonic::transport::Error>>,
    shared: &Shared,
) -> Result<(), tonic::transport::Error> {
    let cut = async {
        shared.ended().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serve => served,
        () = cut => Ok(()),
    }
}

/// Prints the handshake line. The listener is bound by then, so a host that connects at once waits in its queue.
fn announce(address: Address) -> Result<(), ServeError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", Handshake::grpc(APP_VERSION, address))
        .and_then(|()| stdout.flush())
        .map_err(ServeError::Print)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn what_can_not_be_accepted_is_not_tried_without_end() {
        let began = Instant::now();
        let mut failing = pin!(paced(futures_util::stream::repeat_with(|| Err::<(), _>(io::ErrorKind::Other.into()))));
        for _ in 0..2 {
            assert!(failing.next().await.is_some_and(|accepted| accepted.is_err()));
        }
        assert!(began.elapsed() >= 2 * PAUSE);
    }
}
