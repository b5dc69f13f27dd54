//! The socket itself: who may connect, how many at a time, and for how long.
//!
//! It is served by a thread of its own: operators are answered when every worker has its hands full.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as Listener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Admin, routes};
use crate::listener::{Handle, SocketFile};

/// Open connections; more wait in the accept queue.
const MOST_CONNECTIONS: usize = 64;
const BACKLOG: i32 = 64;
/// For a request's head, and between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection as a whole: nobody keeps a place by not reading.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(240);
/// For answers under way when the proxy ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// For the first question of a connection that was made just before the end: closing it could meet the question.
const UNASKED: Duration = Duration::from_secs(1);
/// For the loop that takes connections to hear that it is to take no more.
const RETIREMENT: Duration = Duration::from_secs(1);
/// After accepting failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the socket at `path`, for its owner alone. The caller holds the lock that says there is no other proxy here,
/// so a socket that is there already was left by a proxy that was killed.
pub(crate) fn bind(path: &Path) -> io::Result<Socket> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the socket's mode, so it never exists with another one.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    let file = SocketFile::new(path);
    Ok(Socket { listener: socket.into(), file })
}

/// The open socket. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Non-blocking.
    listener: Listener,
    file: SocketFile,
}

/// Takes over the socket at `path` from another process.
pub(crate) fn adopt(socket: OwnedFd, path: &Path) -> io::Result<Socket> {
    let listener = Listener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(Socket { listener, file: SocketFile::given(path, true) })
}

impl Socket {
    /// The socket once more, to be handed to another process.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        Handle::new(&self.listener, Some(&self.file))
    }

    /// This process is in charge of it.
    fn claim(&self) {
        self.file.claim();
    }
}

/// Ends the taking of connections, which are another process's from then on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retirement {
    asked: CancellationToken,
    done: CancellationToken,
}

impl Retirement {
    /// Returns when no more connections are taken here: who connects from then on is answered by the other process.
    pub(crate) async fn retire(&self) {
        self.asked.cancel();
        if tokio::time::timeout(RETIREMENT, self.done.cancelled()).await.is_err() {
            tracing::warn!(target: "palisade::admin", "the admin socket may still be served by this process");
        }
    }
}

/// Answers from `turn` until `stop`, then ends within [`LAST_ANSWERS`] and removes the socket. What is returned resolves
/// when that is done.
///
/// # Errors
///
/// When there can be no thread, or no event loop in it.
pub(crate) fn spawn(
    socket: Socket,
    admin: Arc<Admin>,
    turn: CancellationToken,
    retirement: Retirement,
    stop: CancellationToken,
) -> io::Result<oneshot::Receiver<()>> {
    let events = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = oneshot::channel();
    thread::Builder::new().name("palisade-admin".to_owned()).spawn(move || {
        events.block_on(async {
            if stop.run_until_cancelled(turn.cancelled()).await.is_some() {
                socket.claim();
                serve(socket, admin, retirement, stop.clone()).await;
            }
        });
        // Nobody waits for it any more where the proxy has ended already.
        done.send(()).ok();
    })?;
    Ok(ended)
}

async fn serve(socket: Socket, admin: Arc<Admin>, retirement: Retirement, stop: CancellationToken) {
    let Socket { listener, file } = socket;
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(target: "palisade::admin", %error, "the admin socket can't be served");
            return;
        }
    };
    let routes = routes::routes(admin, stop.clone());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = retirement.asked.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, routes.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(target: "palisade::admin", %error, "the admin socket took no connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    retirement.done.cancel();
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            Some(_) = connections.join_next() => {}
        }
    }
    drop(file);
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::time::timeout(LAST_ANSWERS, ended).await.ok();
    connections.shutdown().await;
}

async fn converse(stream: UnixStream, routes: axum::Router, stop: CancellationToken) {
    let asked = CancellationToken::new();
    let first = asked.clone();
    let routes = routes.map_request(move |request| {
        first.cancel();
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let conversation = async {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = asked.cancelled() => {}
                    () = tokio::time::sleep(UNASKED) => {}
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    match tokio::time::timeout(CONNECTION_TIMEOUT, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(target: "palisade::admin", %error, "a connection broke"),
        Err(_) => tracing::debug!(target: "palisade::admin", "a connection was open for too long"),
    }
}
