//! A server behind the proxy, in this process, that behaves by path.
//!
//! | path | answer |
//! | --- | --- |
//! | `/echo...` | the request's body, as it comes, and its trailers |
//! | `/hold...` | 200, once the test calls [`Upstream::release`] |
//! | `/hang...` | none |
//! | `/close...` | none, and the connection is closed |
//! | `/ws...` | 101 to a WebSocket, then an echo of every byte |
//! | `/hop...` | 200 with fields that concern one connection only |
//! | `/trailers...` | 200 with the trailer `x-checksum: abc` |
//! | `/bytes/N` | 200 with a body of N bytes |
//! | `/blockedz`, however it is spelled | 200 with the secret [`TREASURE`] |
//! | others | 200 `hello from NAME` |

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::eventually;

type Body = BoxBody<Bytes, hyper::Error>;

/// A request as the upstream got it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `host`, or `:authority`.
    pub authority: String,
    /// Header fields.
    pub headers: HeaderMap,
    /// Set once it was read: only where the answer is not an echo.
    pub body: Bytes,
    /// What came behind the body.
    pub trailers: HeaderMap,
}

impl Seen {
    /// All values of a header.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<Vec<u8>> {
        self.headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect()
    }

    /// A header as text, empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        self.values(name).first().map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }
}

/// A server that ends with this value.
#[derive(Debug)]
pub struct Upstream {
    address: Option<SocketAddr>,
    protocol: Protocol,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    released: watch::Sender<bool>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

impl Upstream {
    /// A server of HTTP/1.1 on a free port.
    pub async fn http1(name: &str) -> Self {
        Self::tcp(name, Protocol::Http1).await
    }

    /// A server of HTTP/2 on a free port, without TLS.
    pub async fn http2(name: &str) -> Self {
        Self::tcp(name, Protocol::Http2).await
    }

    async fn tcp(name: &str, protocol: Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new(name);
        let task = tokio::spawn(Arc::clone(&shared).listen(listener, protocol));
        Self { address: Some(address), protocol, shared, task }
    }

    /// Ends with all of its connections, as a process does, and begins again at the same address.
    ///
    /// # Panics
    ///
    /// When the address has been taken meanwhile.
    pub async fn restart(&mut self) {
        self.task.abort();
        // Dropping the task closes its connections; that it was cancelled is what was asked for.
        let _cancelled = (&mut self.task).await;
        let listener = TcpListener::bind(self.address()).await.unwrap();
        self.task = tokio::spawn(Arc::clone(&self.shared).listen(listener, self.protocol));
    }

    /// A server of HTTP/1.1 on a unix socket.
    ///
    /// # Panics
    ///
    /// When the socket can't be made.
    #[must_use]
    pub fn unix(name: &str, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Shared::new(name);
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(Arc::clone(&serving).serve(stream, Protocol::Http1));
            }
        });
        Self { address: None, protocol: Protocol::Http1, shared, task }
    }

    /// Where it listens.
    ///
    /// # Panics
    ///
    /// When it is on a unix socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// What it was asked so far.
    ///
    /// # Panics
    ///
    /// Never: nothing panics while it holds the lock.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How often it was asked so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seen().len()
    }

    /// What it was asked last.
    ///
    /// # Panics
    ///
    /// When it was asked nothing.
    #[must_use]
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the upstream was asked")
    }

    /// How many connections it took so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many of them are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Waits until it was asked so often.
    pub async fn until_asked(&self, times: usize) {
        eventually(format_args!("the upstream was asked {times} times"), || self.count() >= times).await;
    }

    /// Lets requests for `/hold` be answered.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }
}

impl Shared {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            released: watch::Sender::new(false),
        })
    }

    async fn listen(self: Arc<Self>, listener: TcpListener, protocol: Protocol) {
        // Connections end with the server, as they do when a process ends.
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            connections.spawn(Arc::clone(&self).serve(stream, protocol));
        }
    }

    async fn serve<I>(self: Arc<Self>, io: I, protocol: Protocol)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let _open = OpenConnection::new(&self);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&self);
            async move { shared.answer(request).await }
        });
        let io = TokioIo::new(io);
        // How a connection ends is the client's to judge.
        let _ended = match protocol {
            Protocol::Http1 => http1::Builder::new().serve_connection(io, service).with_upgrades().await,
            Protocol::Http2 => http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await,
        };
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        let path = request.uri().path().to_owned();
        let index = self.record(&request);
        if path.starts_with("/echo") {
            return Ok(echo(request));
        }
        if path.starts_with("/ws") {
            return Ok(web_socket(&mut request));
        }
        if path.starts_with("/hang") {
            std::future::pending::<()>().await;
        }
        if path.starts_with("/close") {
            return Err(Closed);
        }
        if path.starts_with("/hold") {
            // The sender lives in `self`, so waiting can't fail.
            let mut released = self.released.subscribe();
            let _released = released.wait_for(|released| *released).await;
        }
        if let Ok(body) = request.into_body().collect().await {
            let seen = &mut self.seen.lock().unwrap()[index];
            seen.trailers = body.trailers().cloned().unwrap_or_default();
            seen.body = body.to_bytes();
        }
        let length = path.strip_prefix("/bytes/").map(|length| length.parse().unwrap());
        let mut response = Response::new(match length {
            Some(length) => full(vec![b'x'; length]),
            None if is_blocked(&path) => full(TREASURE),
            None => full(format!("hello from {}", self.name)),
        });
        let headers = response.headers_mut();
        headers.insert("x-upstream", HeaderValue::from_str(&self.name).unwrap());
        if path.starts_with("/hop") {
            headers.insert("connection", HeaderValue::from_static("x-for-the-connection, close"));
            headers.insert("x-for-the-connection", HeaderValue::from_static("1"));
            headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
            headers.insert("proxy-authenticate", HeaderValue::from_static("Basic"));
        }
        if path.starts_with("/trailers") {
            headers.insert("trailer", HeaderValue::from_static("x-checksum"));
            let trailers = HeaderMap::from_iter([("x-checksum".parse().unwrap(), HeaderValue::from_static("abc"))]);
            let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
            *response.body_mut() = StreamBody::new(tokio_stream::iter(frames)).boxed();
        }
        Ok(response)
    }

    fn record(&self, request: &Request<Incoming>) -> usize {
        let host = request.headers().get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        let authority = request.uri().authority().map(ToString::to_string).or(host).unwrap_or_default();
        let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let mut seen = self.seen.lock().unwrap();
        seen.push(Seen {
            method: request.method().to_string(),
            target,
            authority,
            headers: request.headers().clone(),
            body: Bytes::new(),
            trailers: HeaderMap::new(),
        });
        seen.len() - 1
    }
}

/// What `/blockedz` answers with.
pub const TREASURE: &str = "the hidden treasure";

/// Whether a careless server would take this target for `/blockedz`: one that decodes, cuts parameters and fragments
/// off, takes `\\` for `/`, and resolves what is left.
#[must_use]
pub fn is_blocked(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest.find('/').map_or("", |at| &rest[at..]));
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| byte == b'%') {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &behind[2..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    let decoded = String::from_utf8_lossy(&bytes).replace('\\', "/").replace('\0', "");
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    segments == ["blockedz"]
}

/// Counts a connection until it ends, however it ends.
struct OpenConnection(Arc<Shared>);

impl OpenConnection {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a service returns to have its connection closed.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Closed {}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(body.boxed());
    for name in ["content-type", "trailer"] {
        if let Some(value) = parts.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

fn web_socket(request: &mut Request<Incoming>) -> Response<Body> {
    if request.headers().get("upgrade").is_none_or(|upgrade| upgrade != "websocket") {
        return Response::new(full("not an upgrade"));
    }
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        // Ends when either side does.
        let _ended = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    response
}

/// A server that does with each connection what the test says.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    /// Calls `script` with each connection and its number, from 0.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub async fn start<F, T>(script: F) -> Self
    where
        F: Fn(TcpStream, usize) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    /// The same at this address.
    ///
    /// # Panics
    ///
    /// When it is taken.
    pub async fn start_at<F, T>(address: SocketAddr, script: F) -> Self
    where
        F: Fn(TcpStream, usize) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(script(stream, number));
                number += 1;
            }
        });
        Self { address, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address at which nobody listens, and nobody begins to for as long as this lives: connections are refused.
#[derive(Debug)]
pub struct Refusing(TcpSocket);

impl Refusing {
    /// Takes a port.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it takes something of the machine's")]
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self(socket)
    }

    /// Where.
    ///
    /// # Panics
    ///
    /// Never: it has one.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// Reads a request's head, and what comes along with it. Whether there was one.
pub async fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    // A body that comes along with its head is read with it.
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(count) if count > 0 => {}
            _ => return false,
        }
    }
    true
}
