//! From the address of a plugin, announced or configured, to an HTTP/2 connection.
//!
//! No HTTP/2 keep-alive pings: gRPC servers in Go, Python and Java close connections that ping more often than every
//! five minutes ("too_many_pings"). Health checks find what pings would.

mod paced;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use palisade_plugin_proto::env::MAX_SOCKET_PATH;
use palisade_plugin_proto::handshake::Address;
use palisade_plugin_proto::socket::UnixSocket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Uri};
use tower::service_fn;

use self::paced::Paced;
use crate::mtls::Secure;
use crate::spec::TcpPolicy;
use crate::trust::directory;
use crate::trust::peer::{Owner, PeerError, Trusted};

/// How long one attempt may take. Local sockets answer at once or not at all.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long a TLS handshake may take: a JVM's first one on a busy machine.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// Between attempts while a plugin that announced its socket is about to listen.
const FIRST_RETRY: Duration = Duration::from_millis(2);
const LAST_RETRY: Duration = Duration::from_millis(100);

/// Where a plugin listens, and may be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket, by its path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// Why an announced address must not be connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// A socket that is not in the directory of this start.
    #[error("socket {path:?} is not in {private:?}; listen in the directory that PLUGIN_UNIX_SOCKET_DIR names")]
    Elsewhere {
        /// What was announced.
        path: PathBuf,
        /// Where it should be.
        private: PathBuf,
    },
    /// An address beyond this machine.
    #[error(
        "{0} is not a loopback address; listen on 127.0.0.1 or on a unix socket (`allow_remote_tcp: true` lifts this)"
    )]
    NotLoopback(SocketAddr),
    /// An address for listening only.
    #[error("{0} is for listening on every interface; listen on 127.0.0.1, and announce that")]
    Unspecified(SocketAddr),
}

/// Why nothing could be connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A file, a directory, a FIFO, a symbolic link.
    #[error("{0:?} is not a socket")]
    NotASocket(PathBuf),
    /// A directory in which everybody may put another socket in the place of this one.
    #[error("{open:?} can be written to by everybody, who could put another socket in the place of {socket:?}")]
    OpenToEverybody {
        /// The socket.
        socket: PathBuf,
        /// The directory.
        open: PathBuf,
    },
    /// A socket that is not the plugin's own.
    #[error("{endpoint} is not the plugin's own")]
    NotOwn {
        /// The address.
        endpoint: String,
        /// Whose it is.
        #[source]
        source: PeerError,
    },
    /// connect(2).
    #[error("connect to {endpoint}")]
    Dial {
        /// The address.
        endpoint: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The attempt took too long.
    #[error("connect to {0}: no answer within {ATTEMPT:?}")]
    Slow(String),
    /// AutoMTLS. There is no falling back to plaintext.
    #[error("TLS to {endpoint} (AutoMTLS)")]
    Tls {
        /// The address.
        endpoint: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A second connection to a plugin that somebody else has started: behind it may be another process than the one that
    /// was checked and configured.
    #[error("{0} was started by somebody else: there is one connection to it")]
    OnlyOne(String),
    /// A second socket by something that is more, or less, than a name.
    #[error("{0:?} is not the name of a socket in the directory of the first one")]
    NotAName(String),
    /// A second socket beside a port.
    #[error("a second socket can only be beside a unix socket, and the plugin listens on {0}")]
    NotBeside(String),
    /// HTTP/2.
    #[error("HTTP/2 to {endpoint}")]
    Http2 {
        /// The address.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

impl Endpoint {
    /// Decides on an address. Looks at the file system where a path is written in an unusual way.
    pub(crate) async fn accept(address: &Address, private: &Path, tcp: TcpPolicy) -> Result<Self, EndpointError> {
        match address {
            Address::Unix(path) => {
                let elsewhere = || EndpointError::Elsewhere { path: path.clone(), private: private.to_owned() };
                let name = path.file_name().ok_or_else(elsewhere)?;
                let parent = path.parent().ok_or_else(elsewhere)?;
                // The usual case needs no look. Otherwise not on this thread: the plugin chose the path, and some
                // file systems never answer.
                if parent != private && real(parent).await.as_deref() != Some(private) {
                    return Err(elsewhere());
                }
                Ok(Self::Unix(private.join(name)))
            }
            Address::Tcp(address) => {
                let ip = address.ip();
                if ip.to_canonical().is_unspecified() {
                    return Err(EndpointError::Unspecified(*address));
                }
                if tcp == TcpPolicy::LoopbackOnly && !ip.is_loopback() {
                    return Err(EndpointError::NotLoopback(*address));
                }
                Ok(Self::Tcp(*address))
            }
        }
    }

    /// Connects, and sees whose socket that is before anything is sent.
    async fn dial(&self, alive: &Alive) -> Result<Box<dyn Stream>, ConnectError> {
        let not_own = |source| ConnectError::NotOwn { endpoint: self.to_string(), source };
        let dialled = timeout(ATTEMPT, async {
            match self {
                Self::Unix(path) => {
                    // Not through a symbolic link, which could lead to any socket of this user.
                    let found = fs::symlink_metadata(path).map_err(|source| self.failed(source))?;
                    if !found.file_type().is_socket() {
                        return Err(ConnectError::NotASocket(path.clone()));
                    }
                    if let Alive::Line { .. } = alive {
                        self.check_directory(path).await?;
                    }
                    let stream = UnixStream::connect(path).await.map_err(|source| self.failed(source))?;
                    match alive {
                        Alive::Process { owner, .. } => owner.check_unix(&stream),
                        Alive::Line { trusted, .. } => trusted.check_unix(&stream),
                    }
                    .map_err(not_own)?;
                    let stream = UnixSocket::new(stream).map_err(|source| self.failed(source))?;
                    Ok(Box::new(stream) as Box<dyn Stream>)
                }
                Self::Tcp(address) => {
                    let stream = TcpStream::connect(address).await.map_err(|source| self.failed(source))?;
                    // Whose an address of another machine is can't be seen from here.
                    if address.ip().to_canonical().is_loopback() {
                        let (address, alive) = (*address, alive.clone());
                        let look = move || match alive {
                            Alive::Process { owner, .. } => owner.check_tcp(address),
                            Alive::Line { trusted, .. } => trusted.check_tcp(address),
                        };
                        let looked = spawn_blocking(look).await;
                        looked.map_err(|error| self.failed(error.into()))?.map_err(not_own)?;
                    }
                    stream.set_nodelay(true).map_err(|source| self.failed(source))?;
                    Ok(Box::new(stream) as Box<dyn Stream>)
                }
            }
        });
        dialled.await.map_err(|_| ConnectError::Slow(self.to_string()))?
    }

    /// A connection for HTTP/2: as it was dialled, or inside TLS.
    async fn open(&self, secure: Option<&Secure>, alive: &Alive) -> Result<Box<dyn Stream>, ConnectError> {
        let stream = self.dial(alive).await?;
        let Some(secure) = secure else { return Ok(Box::new(Paced(stream))) };
        let failed = |source| ConnectError::Tls { endpoint: self.to_string(), source };
        match timeout(TLS_HANDSHAKE, secure.over(stream)).await {
            Ok(secured) => Ok(Box::new(Paced(secured.map_err(failed)?))),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Not on this thread: a path may lie on a file system that never answers.
    async fn check_directory(&self, socket: &Path) -> Result<(), ConnectError> {
        let path = socket.to_owned();
        let looked = spawn_blocking(move || directory::open_to_everybody(&path)).await;
        match looked.map_err(|error| self.failed(error.into()))?.map_err(|source| self.failed(source))? {
            Some(open) => Err(ConnectError::OpenToEverybody { socket: socket.to_owned(), open }),
            None => Ok(()),
        }
    }

    fn failed(&self, source: io::Error) -> ConnectError {
        ConnectError::Dial { endpoint: self.to_string(), source }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

async fn real(path: &Path) -> Option<PathBuf> {
    let path = path.to_owned();
    spawn_blocking(move || path.canonicalize()).await.ok()?.ok()
}

/// What a connection is, whatever is below it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a run consists of, for as long as which it may be connected to.
#[derive(Debug, Clone)]
pub(crate) enum Alive {
    /// The process that announced the address. A connection that broke is made anew only as long as it runs: later, a
    /// TCP port may belong to somebody else.
    Process { running: Arc<AtomicBool>, owner: Owner },
    /// The one connection to a plugin that somebody else has started. It is never made anew: behind the next one may be
    /// another process, which has been neither checked nor configured. So with the connection the run is over.
    Line { over: CancellationToken, trusted: Trusted },
}

impl Alive {
    pub(crate) fn process(owner: Owner) -> Self {
        Self::Process { running: Arc::new(AtomicBool::new(true)), owner }
    }

    pub(crate) fn end(&self) {
        match self {
            Self::Process { running, .. } => running.store(false, Ordering::Release),
            Self::Line { over, .. } => over.cancel(),
        }
    }

    /// Whether a second connection may be made.
    fn check(&self, endpoint: &Endpoint) -> Result<(), ConnectError> {
        let gone = match self {
            Self::Process { running, .. } if running.load(Ordering::Acquire) => return Ok(()),
            Self::Process { .. } => "the plugin's process has gone",
            // Asked for as soon as the first one takes no more calls.
            Self::Line { over, .. } => {
                over.cancel();
                "the connection is over"
            }
        };
        Err(endpoint.failed(io::Error::new(io::ErrorKind::NotConnected, gone)))
    }

    /// Ties the first connection to the run.
    fn tie(&self, stream: Box<dyn Stream>) -> Box<dyn Stream> {
        match self {
            Self::Process { .. } => stream,
            Self::Line { over, .. } => Box::new(Line {
                stream,
                over: Box::pin(over.clone().cancelled_owned()),
                _ends_the_run: over.clone().drop_guard(),
            }),
        }
    }
}

/// A connection that ends with its run, and its run with it.
struct Line {
    stream: Box<dyn Stream>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    _ends_the_run: DropGuard,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // HTTP/2 reads at all times, so it learns of the end here.
        if self.over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a start waits for, for the report of a timeout.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<String>>);

impl Progress {
    pub(crate) fn set(&self, text: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    pub(crate) fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Makes connections to one start of a plugin, each with everything that is checked of the first: whose socket it is,
/// that the process still runs, AutoMTLS. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    endpoint: Endpoint,
    secure: Option<Secure>,
    alive: Alive,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, secure: Option<Secure>, alive: Alive) -> Self {
        Self { endpoint, secure, alive }
    }

    /// One more connection, beside that of [`crate::Adapter::attach`]: for hosts with several runtimes, each of which
    /// does best with a connection of its own, and speaks HTTP/2 over it itself. Nothing has been sent over it, and nobody
    /// makes it anew. The runtime in which this is called works for it. Cancel safe: a connection under way is closed.
    ///
    /// # Errors
    ///
    /// As for the first one, within 2 s, or 12 s with AutoMTLS, and after the process has gone.
    /// [`ConnectError::OnlyOne`] where somebody else has started the plugin.
    pub async fn stream(&self) -> Result<Box<dyn Stream>, ConnectError> {
        self.check_several()?;
        self.alive.check(&self.endpoint)?;
        self.endpoint.open(self.secure.as_ref(), &self.alive).await
    }

    /// To a second socket of the plugin, by its name in the directory of the first. Connects once, so that what will never
    /// be connected to is found now, and for its own reason.
    ///
    /// # Errors
    ///
    /// As for [`Connector::stream`], and where `name` is anything but a name, or the first address is a port.
    pub async fn beside(&self, name: &str) -> Result<Self, ConnectError> {
        self.check_several()?;
        let Endpoint::Unix(first) = &self.endpoint else {
            return Err(ConnectError::NotBeside(self.endpoint.to_string()));
        };
        let mut components = Path::new(name).components();
        let is_name = components.next() == Some(Component::Normal(name.as_ref())) && components.next().is_none();
        if !is_name || name.len() > MAX_SOCKET_PATH || name.contains(char::is_control) {
            return Err(ConnectError::NotAName(name.chars().take(MAX_SOCKET_PATH).collect()));
        }
        let beside = Self { endpoint: Endpoint::Unix(first.with_file_name(name)), ..self.clone() };
        drop(beside.stream().await?);
        Ok(beside)
    }

    /// Whether more connections than the first may be made: not to a plugin that somebody else has started.
    pub fn has_several(&self) -> bool {
        matches!(self.alive, Alive::Process { .. })
    }

    fn check_several(&self) -> Result<(), ConnectError> {
        if self.has_several() { Ok(()) } else { Err(ConnectError::OnlyOne(self.endpoint.to_string())) }
    }

    /// Connects, waiting for a socket that is not there yet or has no listener yet. Has no deadline of its own: the
    /// lifecycle's covers the whole.
    pub(crate) async fn first(&self, progress: &Progress) -> Result<Channel, ConnectError> {
        let stream = first_connection(&self.endpoint, self.secure.as_ref(), &self.alive, progress).await?;
        self.channel(Some(self.alive.tie(stream))).await
    }

    async fn channel(&self, first: Option<Box<dyn Stream>>) -> Result<Channel, ConnectError> {
        // The authority is never resolved; servers see it in `:authority`.
        let channel = tonic::transport::Endpoint::from_static("http://localhost");
        let failed = |source| ConnectError::Http2 { endpoint: self.endpoint.to_string(), source };
        channel.connect_with_connector(self.service(first)).await.map_err(failed)
    }

    /// Gives `first` if there is one, and then connects: a server may close a connection of a certain age.
    fn service(
        &self,
        first: Option<Box<dyn Stream>>,
    ) -> impl tower::Service<Uri, Response = TokioIo<Box<dyn Stream>>, Error = ConnectError, Future = Connecting>
    + Send
    + 'static {
        let this = self.clone();
        let first = Arc::new(Mutex::new(first));
        service_fn(move |_: Uri| {
            let Self { endpoint, secure, alive } = this.clone();
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            Box::pin(async move {
                if let Some(stream) = first {
                    return Ok(TokioIo::new(stream));
                }
                alive.check(&endpoint)?;
                endpoint.open(secure.as_ref(), &alive).await.map(TokioIo::new)
            }) as Connecting
        })
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<TokioIo<Box<dyn Stream>>, ConnectError>> + Send>>;

/// Waits until the plugin listens. Has no deadline of its own.
pub(crate) async fn await_listener(
    endpoint: &Endpoint,
    alive: &Alive,
    progress: &Progress,
) -> Result<(), ConnectError> {
    first_connection(endpoint, None, alive, progress).await.map(drop)
}

async fn first_connection(
    endpoint: &Endpoint,
    secure: Option<&Secure>,
    alive: &Alive,
    progress: &Progress,
) -> Result<Box<dyn Stream>, ConnectError> {
    let mut pause = FIRST_RETRY;
    loop {
        match endpoint.open(secure, alive).await {
            Ok(stream) => return Ok(stream),
            Err(error) if may_pass(&error) => progress.set(crate::report::chain(&error)),
            Err(error) => return Err(error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

fn may_pass(error: &ConnectError) -> bool {
    match error {
        ConnectError::Dial { source, .. } => matches!(
            source.kind(),
            // WouldBlock: the backlog of a unix socket is full.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
        ),
        ConnectError::NotASocket(_)
        | ConnectError::OpenToEverybody { .. }
        | ConnectError::NotOwn { .. }
        | ConnectError::Slow(_)
        | ConnectError::Tls { .. }
        | ConnectError::OnlyOne(_)
        | ConnectError::NotAName(_)
        | ConnectError::NotBeside(_)
        | ConnectError::Http2 { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;

    use super::*;

    fn this_process() -> Alive {
        let pid = i32::try_from(std::process::id()).unwrap();
        Alive::process(Owner { pid, uid: nix::unistd::geteuid().as_raw() })
    }

    async fn tcp(address: &str, policy: TcpPolicy) -> Result<Endpoint, EndpointError> {
        Endpoint::accept(&Address::Tcp(address.parse().unwrap()), Path::new("/run/p-1"), policy).await
    }

    #[tokio::test]
    async fn only_loopback_unless_allowed_and_never_every_interface() {
        for address in ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1"] {
            assert!(tcp(address, TcpPolicy::LoopbackOnly).await.is_ok(), "{address}");
        }
        for address in ["10.0.0.5:80", "[::ffff:10.0.0.5]:1", "[::ffff:127.0.0.1]:1", "[2001:db8::1]:1"] {
            assert!(matches!(tcp(address, TcpPolicy::LoopbackOnly).await, Err(EndpointError::NotLoopback(_))));
            assert!(tcp(address, TcpPolicy::Any).await.is_ok(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1"] {
            for policy in [TcpPolicy::LoopbackOnly, TcpPolicy::Any] {
                assert!(matches!(tcp(address, policy).await, Err(EndpointError::Unspecified(_))), "{address}");
            }
        }
    }

    #[tokio::test]
    async fn a_socket_must_be_in_its_own_directory() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (own, other) = (root.join("own"), root.join("other"));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&other).unwrap();
        symlink(&own, root.join("alias")).unwrap();
        symlink(&other, own.join("out")).unwrap();
        let accept = async |path: PathBuf| Endpoint::accept(&Address::Unix(path), &own, TcpPolicy::LoopbackOnly).await;
        assert_eq!(accept(own.join("s")).await.unwrap(), Endpoint::Unix(own.join("s")));
        assert_eq!(accept(root.join("alias/s")).await.unwrap(), Endpoint::Unix(own.join("s")));
        for path in [other.join("s"), own.join("out/s"), own.join("deep/s"), own.clone(), "/".into(), "/s".into()] {
            assert!(accept(path.clone()).await.is_err(), "{path:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("dir")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(path("real")).unwrap();
        symlink(path("real"), path("link")).unwrap();
        for name in ["file", "dir", "fifo", "link"] {
            let error = Connector::new(Endpoint::Unix(path(name)), None, this_process())
                .first(&Progress::default())
                .await
                .unwrap_err();
            assert!(matches!(error, ConnectError::NotASocket(_)), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn a_second_socket_is_as_good_as_the_first_and_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        fs::create_dir(&own).unwrap();
        let listen = |path: PathBuf| std::os::unix::net::UnixListener::bind(path).unwrap();
        let _listeners = [listen(own.join("first")), listen(own.join("second")), listen(root.path().join("other"))];
        fs::write(own.join("file"), "").unwrap();
        symlink(own.join("second"), own.join("link")).unwrap();
        let first = Connector::new(Endpoint::Unix(own.join("first")), None, this_process());
        let second = first.beside("second").await.unwrap();
        assert_eq!(second.endpoint, Endpoint::Unix(own.join("second")));
        for name in ["", ".", "..", "/", "second/", "./second", "../other", "x/../second", "/etc/x", "a\0", "\x1b[m"] {
            let error = first.beside(name).await.unwrap_err();
            assert!(matches!(error, ConnectError::NotAName(_)), "{name:?}: {error}");
        }
        assert!(
            matches!(first.beside(&"x".repeat(1 << 18)).await, Err(ConnectError::NotAName(name)) if name.len() < 200)
        );
        for name in ["file", "link"] {
            assert!(matches!(first.beside(name).await, Err(ConnectError::NotASocket(_))), "{name}");
        }
        assert!(matches!(first.beside("none").await, Err(ConnectError::Dial { .. })));
        let port = Connector::new(Endpoint::Tcp("127.0.0.1:1".parse().unwrap()), None, this_process());
        assert!(matches!(port.beside("second").await, Err(ConnectError::NotBeside(_))));
        let gone = this_process();
        gone.end();
        let gone = Connector::new(Endpoint::Unix(own.join("first")), None, gone);
        assert!(matches!(gone.beside("second").await, Err(ConnectError::Dial { .. })));
        let Alive::Process { owner, .. } = this_process() else { unreachable!() };
        let other = Alive::process(Owner { pid: 1, uid: owner.uid + 1 });
        let others = Connector::new(Endpoint::Unix(own.join("first")), None, other);
        assert!(matches!(others.beside("second").await, Err(ConnectError::NotOwn { .. })));
    }

    #[tokio::test]
    async fn a_late_listener_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let progress = Progress::default();
        let connector = Connector::new(Endpoint::Unix(path.clone()), None, this_process());
        let connecting = connector.first(&progress);
        let listening = async {
            while !progress.get().contains("No such file") {
                tokio::task::yield_now().await;
            }
            tokio::net::UnixListener::bind(&path).unwrap()
        };
        let (channel, _listener) = tokio::join!(connecting, listening);
        channel.unwrap();
    }
}
