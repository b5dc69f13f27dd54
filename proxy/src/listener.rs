//! Listeners: sockets that are bound at start, opened once there is something to serve with, and closed by a drain.

use std::future::poll_fn;
use std::io;
use std::net::{self, IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, UnixAddr, getsockname, setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::runtime;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Address, Cidr, Limits};
use crate::http::{BoxStream, Client, Closed, Connections, Place, Protocol, TlsFacts, serve};
use crate::overload::{Places, Taken};
use crate::proxy::Proxy;
use crate::telemetry::Metrics;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Before accepting is tried again when it failed for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a drain goes on to take connections out of the kernel's queue.
const QUEUED: Duration = Duration::from_millis(50);

/// Idle seconds before the kernel asks whether a client, or an upstream, is still there.
const KEEPALIVE: u32 = 60;

/// A socket that has its address but takes no connections yet.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(TcpSocket),
    Unix(UnixSocket, SocketFile),
    /// One that this process was given: connections wait in its queue already.
    Given(Open),
}

/// A listening socket that this process was given, by its predecessor or by a service manager.
#[derive(Debug)]
pub(crate) struct Inherited {
    name: String,
    socket: OwnedFd,
    /// Whether its file, where it is a unix socket, is removed with it.
    ours: bool,
}

impl Inherited {
    /// `name` is the listener's; `ours`: whether its file, where it is a unix socket, is to be removed in the end.
    pub(crate) fn new(name: String, socket: OwnedFd, ours: bool) -> Self {
        Self { name, socket, ours }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a listener's, by its address or, where the kernel chose the port or the address may be written in
    /// several ways, by its name.
    pub(crate) fn is_of(&self, listener: &config::Listener) -> bool {
        let listens_at = |address: &Address| match address {
            Address::Tcp(address) => {
                getsockname::<SockaddrStorage>(self.socket.as_raw_fd()).is_ok_and(|found| match address {
                    SocketAddr::V4(address) => {
                        found.as_sockaddr_in().is_some_and(|it| SocketAddrV4::from(*it) == *address)
                    }
                    SocketAddr::V6(address) => {
                        found.as_sockaddr_in6().is_some_and(|it| SocketAddrV6::from(*it) == *address)
                    }
                })
            }
            Address::Unix(path) => {
                getsockname::<UnixAddr>(self.socket.as_raw_fd()).is_ok_and(|found| found.path() == Some(path))
            }
        };
        let kind = getsockname::<SockaddrStorage>(self.socket.as_raw_fd()).ok().and_then(|found| found.family());
        let same_kind = match &listener.address {
            Address::Tcp(_) => matches!(kind, Some(AddressFamily::Inet | AddressFamily::Inet6)),
            Address::Unix(_) => kind == Some(AddressFamily::Unix),
        };
        same_kind && (listens_at(&listener.address) || self.name == listener.name)
    }

    /// Takes it as a listener's.
    pub(crate) fn bound(self, address: &Address) -> io::Result<Bound> {
        let open = match address {
            Address::Tcp(_) => {
                let listener = net::TcpListener::from(self.socket);
                listener.set_nonblocking(true)?;
                Open::Tcp(listener)
            }
            Address::Unix(path) => {
                let listener = unix::net::UnixListener::from(self.socket);
                listener.set_nonblocking(true)?;
                Open::Unix(listener, Arc::new(SocketFile::given(path, self.ours)))
            }
        };
        Ok(Bound::Given(open))
    }
}

/// A socket that takes connections. The last of its copies removes its file.
#[derive(Debug)]
pub(crate) enum Open {
    Tcp(net::TcpListener),
    Unix(unix::net::UnixListener, Arc<SocketFile>),
}

/// A unix socket's file, removed when the listener goes, where it is this process's.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Whether this process is the one that is to remove it, once it is in charge.
    ours: bool,
    /// Set: another process is in charge.
    left: Left,
}

/// Set: the file is another process's.
pub(crate) type Left = Arc<AtomicBool>;

impl SocketFile {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), ours: true, left: Left::default() }
    }

    /// Of a socket that this process was given. Left alone until [`SocketFile::claim`], and for ever where it is not
    /// `ours`.
    pub(crate) fn given(path: &Path, ours: bool) -> Self {
        Self { path: path.to_owned(), ours, left: Arc::new(AtomicBool::new(true)) }
    }

    /// This process is in charge.
    pub(crate) fn claim(&self) {
        self.left.store(!self.ours, Ordering::Release);
    }
}

/// An open socket once more, to be handed to another process.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) socket: OwnedFd,
    /// Whether who has it removes its file.
    pub(crate) ours: bool,
    left: Left,
}

impl Handle {
    pub(crate) fn new(socket: &impl AsFd, file: Option<&SocketFile>) -> io::Result<Self> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        Ok(Self {
            socket,
            ours: file.is_some_and(|file| file.ours),
            left: file.map(|file| Arc::clone(&file.left)).unwrap_or_default(),
        })
    }

    /// Whether the socket's file is another process's from here on.
    pub(crate) fn leave(&self, left: bool) {
        self.left.store(left || !self.ours, Ordering::Release);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.left.load(Ordering::Acquire) {
            return;
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(target: "palisade::listener", path = %self.path.display(), %error, "a socket could not be removed");
            }
            _ => {}
        }
    }
}

/// Takes an address.
pub(crate) fn bind(address: &Address) -> io::Result<Bound> {
    match address {
        Address::Tcp(address) => {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Else connections of a proxy that ended a moment ago keep the address.
            socket.set_reuseaddr(true)?;
            socket.bind(*address)?;
            Ok(Bound::Tcp(socket))
        }
        Address::Unix(path) => {
            remove_stale(path)?;
            let socket = UnixSocket::new_stream()?;
            socket.bind(path)?;
            Ok(Bound::Unix(socket, SocketFile::new(path)))
        }
    }
}

/// Removes a socket that nobody listens on: a proxy that was killed leaves one.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Bound {
    /// Begins to take connections.
    pub(crate) fn open(self) -> io::Result<Open> {
        match self {
            Self::Tcp(socket) => socket.listen(BACKLOG)?.into_std().map(Open::Tcp),
            Self::Unix(socket, file) => {
                let listener = socket.listen(BACKLOG)?.into_std()?;
                Ok(Open::Unix(listener, Arc::new(file)))
            }
            Self::Given(open) => Ok(open),
        }
    }
}

impl Open {
    /// The address, with the port that the kernel chose for 0.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }

    /// The socket once more, to be handed to another process.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        match self {
            Self::Tcp(listener) => Handle::new(listener, None),
            Self::Unix(listener, file) => Handle::new(listener, Some(file)),
        }
    }

    /// This process is in charge of it.
    pub(crate) fn claim(&self) {
        if let Self::Unix(_, file) = self {
            file.claim();
        }
    }

    /// For a worker, to take connections from. All of them share the kernel's queue: a worker that is busy, or stands
    /// still, leaves it to the others, and none is lost with a worker.
    pub(crate) fn acceptor(&self, worker: &runtime::Handle) -> io::Result<Acceptor> {
        let _in_its_runtime = worker.enter();
        match self {
            Self::Tcp(listener) => TcpListener::from_std(listener.try_clone()?).map(Acceptor::Tcp),
            Self::Unix(listener, file) => {
                let listener = UnixListener::from_std(listener.try_clone()?)?;
                Ok(Acceptor::Unix(listener, Arc::clone(file)))
            }
        }
    }
}

/// An open socket, as one worker has it.
#[derive(Debug)]
pub(crate) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "is removed with the last acceptor")] Arc<SocketFile>),
}

impl Acceptor {
    /// The next connection, if there is one.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        match self {
            Self::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, peer)| Socket::Tcp(stream, peer)),
            Self::Unix(listener, _) => listener.poll_accept(cx).map_ok(|(stream, _)| Socket::Unix(stream)),
        }
    }
}

/// An open listener: what serves its connections at the moment.
#[derive(Debug)]
pub(crate) struct Slot {
    serving: ArcSwap<Serving>,
    /// Of its connections.
    places: Arc<Places>,
    /// Cancelled: takes no more connections.
    drain: CancellationToken,
}

impl Slot {
    /// `drain` ends it, and [`Slot::close`].
    pub(crate) fn new(serving: Arc<Serving>, drain: &CancellationToken) -> Self {
        let places = Arc::new(Places::new(serving.service.limits.max_connections));
        Self { serving: ArcSwap::new(serving), places, drain: drain.child_token() }
    }

    /// What serves the next connection.
    pub(crate) fn service(&self) -> Arc<Service> {
        Arc::clone(&self.serving.load().service)
    }

    /// What serves the next request, on whichever connection it comes: connections outlive a reload.
    pub(crate) fn proxy(&self) -> Arc<Proxy> {
        Arc::clone(&self.serving.load().proxy)
    }

    /// From here on the next connections and requests are served by this. If there are more connections than it takes,
    /// they stay.
    pub(crate) fn serve_by(&self, serving: Arc<Serving>) {
        self.places.set(serving.service.limits.max_connections);
        self.serving.store(serving);
    }

    /// Takes no more connections, and asks those there are to end; after `timeout` they are ended.
    pub(crate) async fn close(&self, timeout: Duration) {
        self.drain.cancel();
        let connections = self.service().connections.clone();
        connections.drain.cancel();
        tokio::select! {
            () = self.places.empty() => {}
            () = tokio::time::sleep(timeout) => connections.end.cancel(),
        }
    }

    /// The next connection, once there is a place for it, of this listener's and `all`: those without one wait in the
    /// kernel's queue, where their turn is kept, and from where another worker or another process can take them.
    /// Cancel safe.
    async fn next(&self, acceptor: &Acceptor, all: &Arc<Places>) -> io::Result<(Socket, Taken, Taken)> {
        loop {
            self.places.room().await;
            all.room().await;
            let next = poll_fn(|cx| {
                // Given back where there is no connection: who has one may need them.
                let (Some(of_this), Some(of_all)) = (self.places.take(), all.take()) else { return Poll::Ready(None) };
                acceptor.poll_next(cx).map(|next| Some(next.map(|socket| (socket, of_this, of_all))))
            });
            if let Some(next) = next.await {
                return next;
            }
        }
    }
}

/// What serves a listener. Its parts have lives of their own: a connection goes on with the service that it began with,
/// each of its requests takes the proxy of its moment.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) service: Arc<Service>,
    pub(crate) proxy: Arc<Proxy>,
}

/// What a listener does with its connections.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: Arc<str>,
    pub(crate) address: Address,
    pub(crate) limits: Limits,
    /// Set: TLS only.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) trusted_proxies: Vec<Cidr>,
    pub(crate) connections: Connections,
    pub(crate) metrics: Arc<Metrics>,
}

/// Takes connections until a drain begins; a worker's task. Nothing that goes wrong with one of them ends it.
pub(crate) async fn accept(acceptor: Acceptor, slot: Arc<Slot>) {
    let all = Arc::clone(&slot.service().connections.overload.places);
    let taking = async {
        let mut reserve = None;
        loop {
            // Nothing is taken without one: of several workers, one would take what another has given up.
            let next = async {
                if reserve.is_none() {
                    reserve = Some(self::reserve()?);
                }
                slot.next(&acceptor, &all).await
            };
            match next.await {
                Ok((socket, of_this, of_all)) => slot.begin(socket, of_this, of_all),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) if is_out_of_descriptors(&error) && reserve.take().is_some() => {
                    // Else it would wait in the queue for nobody knows how long, and wake us up all the while. Another
                    // worker may have done so already: the next one is not to be refused for it.
                    let refused = poll_fn(|cx| Poll::Ready(acceptor.poll_next(cx))).await;
                    if let Poll::Ready(Ok(connection)) = refused {
                        drop(connection);
                        let service = slot.service();
                        service.metrics.closed(&service.name, Closed::Descriptors);
                        tracing::warn!(target: "palisade::listener", listener = &*service.name, "no descriptor left: a connection is refused");
                    }
                    reserve = self::reserve().ok();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => {
                    let name = &*slot.service().name;
                    tracing::error!(target: "palisade::listener", listener = name, %error, "accepting failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = taking => {}
        () = slot.drain.cancelled() => {}
    }
    // Those who were let into the queue are served: closing it would reset them.
    let deadline = Instant::now() + QUEUED;
    while let Ok(Ok((socket, of_this, of_all))) = tokio::time::timeout_at(deadline, slot.next(&acceptor, &all)).await {
        slot.begin(socket, of_this, of_all);
    }
}

/// A descriptor to give up when there are no others. It needs nothing but itself: no file that may not be there.
fn reserve() -> io::Result<UnixDatagram> {
    UnixDatagram::unbound()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Errors that `accept` passes on from a connection that broke before it was taken (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

enum Socket {
    Tcp(TcpStream, std::net::SocketAddr),
    Unix(UnixStream),
}

impl Slot {
    fn begin(self: &Arc<Self>, socket: Socket, of_this: Taken, of_all: Taken) {
        let (slot, service) = (Arc::clone(self), self.service());
        let place = Place::new(of_this, of_all, service.metrics.connection(&service.name));
        let tasks = service.connections.tasks.clone();
        tasks.spawn(service.connection(slot, socket, place));
    }
}

impl Service {
    /// Serves a connection to its end. There are many, and most wait: what this future has room for, each of them costs.
    async fn connection(self: Arc<Self>, slot: Arc<Slot>, socket: Socket, place: Place) {
        let (io, client) = self.client(socket, place);
        let (io, protocol, client) = match self.tls.clone() {
            None => (io, None, client),
            Some(tls) => match Box::pin(self.handshake(tls, io, client)).await {
                Some((stream, protocol, client)) => (stream, Some(protocol), client),
                None => return,
            },
        };
        serve(io, protocol, Arc::new(client), &self.limits, slot, &self.connections).await;
    }

    /// What is known of a client once it has connected.
    fn client(&self, socket: Socket, place: Place) -> (BoxStream, Client) {
        let mut client = Client {
            place: Some(place),
            listener: Arc::clone(&self.name),
            peer: None,
            forwarded: std::sync::OnceLock::new(),
            local: self.address.clone(),
            tls: None,
            trusted: false,
        };
        match socket {
            Socket::Tcp(stream, peer) => {
                // Without these a connection is slower or dies later, but works.
                stream.set_nodelay(true).ok();
                bound(&stream, self.limits.body_idle_timeout);
                client.peer = Some(peer);
                client.trusted = self.is_trusted(peer.ip());
                if let Ok(local) = stream.local_addr() {
                    client.local = Address::Tcp(local);
                }
                (Box::new(stream), client)
            }
            Socket::Unix(stream) => (Box::new(stream), client),
        }
    }

    fn is_trusted(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(peer))
    }

    /// Has TLS begun. `None`: the connection is over.
    ///
    /// Cancel safe: dropping the future closes the connection.
    async fn handshake(
        &self,
        tls: Arc<ServerConfig>,
        io: BoxStream,
        mut client: Client,
    ) -> Option<(BoxStream, Protocol, Client)> {
        let handshake = TlsAcceptor::from(tls).accept(io);
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(self.limits.tls_handshake_timeout, handshake) => accepted,
            () = self.connections.drained_of_silent() => return None,
            () = self.connections.end.cancelled() => return None,
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.handshake_failed(&client, &error);
                return None;
            }
            Err(_) => {
                self.metrics.closed(&self.name, Closed::TlsHandshake);
                self.handshake_failed(&client, &"not complete in time");
                return None;
            }
        };
        let (_, session) = stream.get_ref();
        let protocol = match session.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            // A client without ALPN speaks HTTP/1.1 (RFC 9113 section 3.2).
            _ => Protocol::Http1,
        };
        client.tls = Some(TlsFacts {
            server_name: session.server_name().unwrap_or_default().to_ascii_lowercase(),
            alpn: session.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned()).unwrap_or_default(),
            version: match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            peer_certificates: Vec::new(),
        });
        Some((Box::new(stream), protocol, client))
    }

    fn handshake_failed(&self, client: &Client, error: &dyn std::fmt::Display) {
        self.metrics.handshake_failed(&self.name);
        tracing::debug!(
            target: "palisade::tls", listener = &*self.name, peer = ?client.peer, %error, "handshake failed",
        );
    }
}

/// Has the kernel find clients that have gone without a word, and those that take nothing of what is sent (tcp(7),
/// TCP_USER_TIMEOUT). Where it can't, the other bounds hold.
fn bound(stream: &impl AsFd, untaken: Duration) {
    let untaken = u32::try_from(untaken.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &untaken).ok();
    keep_alive(stream);
}

/// Has the kernel find out whether the other side is still there when it has been silent for [`KEEPALIVE`].
pub(crate) fn keep_alive(stream: &impl AsFd) {
    if setsockopt(stream, sockopt::KeepAlive, &true).is_ok() {
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE).ok();
        setsockopt(stream, sockopt::TcpKeepInterval, &(KEEPALIVE / 4)).ok();
    }
}
