//! Connections to one endpoint: kept for reuse with HTTP/1.1, shared with HTTP/2.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use palisade_supervisor::chain;
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::connect::{Target, connect};
use super::framed::{Exchanges, Framed};
use crate::config::{self, UpstreamProtocol};
use crate::http::RequestBody;
use crate::http::wire::{Bounds, Fault};
use crate::respond::{Failure, Reason};

/// How long a connection whose response has been read may take to be ready for the next request.
const READY: Duration = Duration::from_secs(5);

/// HTTP/2 pings to a silent server, and how long each may take.
const PING: Duration = Duration::from_secs(10);

/// Requests that went over one shared HTTP/2 connection are not bounded here: the server's own limit of streams holds.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// Held while connecting, so that a burst makes one connection.
    http2: tokio::sync::Mutex<Option<Kept>>,
}

/// A connection that requests share.
#[derive(Debug)]
struct Kept {
    sender: http2::SendRequest<RequestBody>,
    used: Instant,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    protocol: UpstreamProtocol,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_idle: usize,
    /// Of responses' heads.
    bounds: Bounds,
    tasks: TaskTracker,
    /// Last in, first out: the connection used last is the least likely to have been closed.
    idle: Mutex<VecDeque<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Instant,
}

/// A connection for one request at a time. Its task is ended with it: one that still sends a request's body would keep
/// the socket for as long as the client likes.
#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    exchanges: Exchanges,
    _driver: AbortOnDropHandle<()>,
}

impl Http1 {
    /// Whether another request can go over it, now.
    fn is_ready(&self) -> bool {
        self.sender.is_ready() && self.exchanges.is_done()
    }
}

impl Shared {
    /// Nothing in a critical section can panic, and a queue is whole between its calls.
    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection for one request.
#[derive(Debug)]
pub(super) struct Connection {
    sender: Sender,
    reused: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Sender {
    Http1(Http1),
    Http2(http2::SendRequest<RequestBody>),
}

/// Why a request got no response.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) error: hyper::Error,
    /// What the server did wrong, if that is why.
    pub(super) fault: Option<Fault>,
    /// The server says that it has not looked at the request.
    pub(super) refused: bool,
    /// The body, if nothing of the request has been sent.
    pub(super) unsent: Option<RequestBody>,
}

impl Pool {
    pub(super) fn new(endpoint: &config::Endpoint, config: &config::Upstream, tasks: TaskTracker) -> Self {
        let shared = Shared {
            target: Target::new(endpoint),
            protocol: config.protocol,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            max_idle: config.max_idle,
            bounds: Bounds { bytes: config.max_header_bytes, fields: config.max_headers, target: 0 },
            tasks,
            idle: Mutex::new(VecDeque::new()),
        };
        Self { shared: Arc::new(shared), http2: tokio::sync::Mutex::new(None) }
    }

    /// A connection that is ready to send: one that is open, or a new one.
    ///
    /// Cancel safe: a connection under way is closed, one in hand too.
    pub(super) async fn checkout(&self) -> Result<Connection, Failure> {
        let shared = &self.shared;
        let connected = tokio::time::timeout(shared.connect_timeout, async {
            match shared.protocol {
                UpstreamProtocol::Http1 => self.http1().await,
                UpstreamProtocol::Http2 => self.http2().await,
            }
        });
        match connected.await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::new(Reason::UpstreamConnectTimeout).with(format!("{:?}", shared.connect_timeout))),
        }
    }

    /// Closes connections that have been idle for too long; the shared one only if it is `unused`.
    pub(super) fn evict(&self, unused: bool) {
        let idle_timeout = self.shared.idle_timeout;
        self.shared.idle().retain(|idle| !idle.connection.sender.is_closed() && idle.since.elapsed() < idle_timeout);
        // Locked: somebody uses it.
        if let Ok(mut kept) = self.http2.try_lock()
            && unused
            && kept.as_ref().is_some_and(|kept| kept.used.elapsed() >= idle_timeout)
        {
            *kept = None;
        }
    }

    async fn http1(&self) -> Result<Connection, Failure> {
        let connection =
            |sender, reused| Connection { sender: Sender::Http1(sender), reused, shared: Arc::clone(&self.shared) };
        loop {
            let Some(idle) = self.shared.idle().pop_back() else { break };
            if idle.connection.is_ready() && idle.since.elapsed() < self.shared.idle_timeout {
                return Ok(connection(idle.connection, true));
            }
        }
        let stream = connect(&self.shared.target).await.map_err(unreachable)?;
        let exchanges = Exchanges::new(self.shared.bounds);
        let stream = TokioIo::new(Framed::new(stream, exchanges.clone()));
        let (sender, driver) = http1::Builder::new()
            .max_headers(self.shared.bounds.fields)
            // Never the tighter bound: `Framed` has judged the head.
            .max_buf_size(self.shared.bounds.bytes + 8 * 1024)
            .handshake(stream)
            .await
            .map_err(refused)?;
        let driver = self.shared.tasks.spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(target: "palisade::upstream", error = %chain(&error), "connection ended");
            }
        });
        Ok(connection(Http1 { sender, exchanges, _driver: AbortOnDropHandle::new(driver) }, false))
    }

    async fn http2(&self) -> Result<Connection, Failure> {
        let mut kept = self.http2.lock().await;
        let connection =
            |sender, reused| Connection { sender: Sender::Http2(sender), reused, shared: Arc::clone(&self.shared) };
        if let Some(kept) = kept.as_mut().filter(|kept| !kept.sender.is_closed()) {
            kept.used = Instant::now();
            return Ok(connection(kept.sender.clone(), true));
        }
        let stream = connect(&self.shared.target).await.map_err(unreachable)?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_header_list_size(u32::try_from(self.shared.bounds.bytes).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(refused)?;
        self.shared.tasks.spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(target: "palisade::upstream", error = %chain(&error), "connection ended");
            }
        });
        *kept = Some(Kept { sender: sender.clone(), used: Instant::now() });
        Ok(connection(sender, false))
    }
}

fn unreachable(error: std::io::Error) -> Failure {
    Failure::new(Reason::UpstreamConnect).with(error)
}

fn refused(error: hyper::Error) -> Failure {
    Failure::new(Reason::UpstreamConnect).with(chain(&error))
}

impl Connection {
    /// Whether other requests went over it before.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a request and waits for the response's head.
    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let sent = match &mut self.sender {
            Sender::Http1(connection) => {
                connection.exchanges.expect(request.method() == Method::HEAD);
                connection.sender.try_send_request(request).await
            }
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let fault = match &self.sender {
                Sender::Http1(connection) => connection.exchanges.fault(),
                Sender::Http2(_) => None,
            };
            let unsent = error.take_message().map(Request::into_body);
            let error = error.into_error();
            let refused = is_refused(&error);
            SendError { error, fault, refused, unsent }
        })
    }

    /// Gives the connection back when its response has been read to the end.
    pub(super) fn release(self) {
        let Sender::Http1(mut connection) = self.sender else { return };
        let shared = self.shared;
        let tasks = shared.tasks.clone();
        if connection.is_ready() {
            keep(&shared, connection);
            return;
        }
        // The connection's own task has yet to notice that the response has ended.
        tasks.spawn(async move {
            if let Ok(Ok(())) = tokio::time::timeout(READY, connection.sender.ready()).await {
                keep(&shared, connection);
            }
        });
    }
}

/// Whether an HTTP/2 server says that it has done nothing (RFC 9113 sections 6.8 and 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let reset = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    reset.filter(|reset| reset.is_remote()).is_some_and(|reset| {
        reset.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (reset.is_go_away() && reset.reason() == Some(h2::Reason::NO_ERROR))
    })
}

fn keep(shared: &Shared, connection: Http1) {
    if !connection.exchanges.is_done() {
        return;
    }
    let mut idle = shared.idle();
    idle.push_back(Idle { connection, since: Instant::now() });
    if idle.len() > shared.max_idle {
        idle.pop_front();
    }
}
