//! Connections to one endpoint: kept for reuse with HTTP/1.1, shared with HTTP/2.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use palisade_supervisor::chain;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::House;
use super::connect::{Target, connect};
use super::http1::Http1;
use crate::config::{self, UpstreamProtocol};
use crate::http::wire::{Bounds, Fault};
use crate::http::{BoxError, RequestBody};
use crate::overload::{Load, Overload};
use crate::respond::{Failure, Reason};
use crate::workers::PerWorker;

/// HTTP/2 pings to a silent server, and how long each may take.
const PING: Duration = Duration::from_secs(10);

/// Bytes of one HTTP/2 response that wait for a client that does not take them.
const STREAM_WINDOW: u32 = 256 << 10;

/// The same of a whole connection: so many that no number of clients who do not read stops the responses of others.
/// Half of it is also what h2 lets small frames cost that wait, before it ends the connection.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// Requests that went over one shared HTTP/2 connection are not bounded here: the server's own limit of streams holds.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Shared,
    /// Held while connecting, so that a burst makes one connection.
    http2: PerWorker<tokio::sync::Mutex<Option<Kept>>>,
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
    overload: Arc<Overload>,
    /// Last in, first out: the connection used last is the least likely to have been closed.
    idle: PerWorker<Mutex<VecDeque<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Instant,
}

fn lock(idle: &Mutex<VecDeque<Idle>>) -> MutexGuard<'_, VecDeque<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Nothing in a critical section can panic, and a queue is whole between its calls.
    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        lock(self.idle.here())
    }

    /// Whether there is too little memory, or too few descriptors, to keep what nobody uses.
    fn is_short(&self) -> bool {
        self.overload.load() >= Load::High
    }
}

/// A connection for one request.
#[derive(Debug)]
pub(super) enum Connection {
    Http1 {
        connection: Http1,
        /// Other requests went over it before.
        reused: bool,
    },
    Http2 {
        sender: http2::SendRequest<RequestBody>,
        /// As with HTTP/1.1.
        reused: bool,
    },
}

impl Connection {
    pub(super) fn is_reused(&self) -> bool {
        let (Self::Http1 { reused, .. } | Self::Http2 { reused, .. }) = self;
        *reused
    }
}

/// Why a request got no response.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) error: BoxError,
    /// The server's answer is none.
    pub(super) invalid: bool,
    /// The server has not looked at the request, or says so.
    pub(super) refused: bool,
    /// The body, if nothing of the request has been sent.
    pub(super) unsent: Option<RequestBody>,
}

impl SendError {
    pub(super) fn new(error: BoxError) -> Self {
        Self { error, invalid: false, refused: false, unsent: None }
    }

    /// The server's answer is none.
    pub(super) fn invalid(fault: Fault) -> Self {
        Self { invalid: true, ..Self::new(fault.into()) }
    }
}

impl Pool {
    /// Each worker keeps its share of `max_idle` connections, rounded up.
    pub(super) fn new(endpoint: &config::Endpoint, config: &config::Upstream, house: &House<'_>) -> Self {
        let shared = Shared {
            target: Target::new(endpoint),
            protocol: config.protocol,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            max_idle: config.max_idle.div_ceil(house.workers),
            bounds: Bounds { bytes: config.max_header_bytes, fields: config.max_headers, target: 0 },
            tasks: house.tasks.clone(),
            overload: Arc::clone(house.overload),
            idle: PerWorker::new(house.workers, Mutex::default),
        };
        Self { shared, http2: PerWorker::new(house.workers, tokio::sync::Mutex::default) }
    }

    /// A connection that is ready to send: one that is open, or a new one.
    ///
    /// Cancel safe: a connection under way is closed, one in hand too.
    pub(super) async fn checkout(&self) -> Result<Connection, Failure> {
        let shared = &self.shared;
        if shared.protocol == UpstreamProtocol::Http1
            && let Some(connection) = self.idle()
        {
            return Ok(connection);
        }
        let connected = tokio::time::timeout(shared.connect_timeout, async {
            match shared.protocol {
                // Not in the future of every request: it is large, and mostly there is a connection.
                UpstreamProtocol::Http1 => Box::pin(self.http1()).await,
                UpstreamProtocol::Http2 => self.http2().await,
            }
        });
        match connected.await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::new(Reason::UpstreamConnectTimeout).with(format!("{:?}", shared.connect_timeout))),
        }
    }

    /// Closes connections that have been idle for too long, or at all where others need their descriptors; the shared one
    /// only if it is `unused`.
    pub(super) fn evict(&self, unused: bool) {
        let idle_timeout = if self.shared.is_short() { Duration::ZERO } else { self.shared.idle_timeout };
        for idle in self.shared.idle.iter() {
            lock(idle).retain_mut(|idle| idle.since.elapsed() < idle_timeout && idle.connection.is_ready());
        }
        for kept in self.http2.iter().filter(|_| unused) {
            // Locked: somebody uses it.
            if let Ok(mut kept) = kept.try_lock()
                && kept.as_ref().is_some_and(|kept| kept.used.elapsed() >= idle_timeout)
            {
                *kept = None;
            }
        }
    }

    /// A connection that was kept and can still be used.
    fn idle(&self) -> Option<Connection> {
        loop {
            let mut idle = self.shared.idle().pop_back()?;
            if idle.since.elapsed() < self.shared.idle_timeout && idle.connection.is_ready() {
                return Some(Connection::Http1 { connection: idle.connection, reused: true });
            }
        }
    }

    async fn http1(&self) -> Result<Connection, Failure> {
        let stream = connect(&self.shared.target).await.map_err(unreachable)?;
        Ok(Connection::Http1 { connection: Http1::new(stream, self.shared.bounds), reused: false })
    }

    /// Keeps a connection for another exchange.
    pub(super) fn keep(&self, connection: Http1) {
        if self.shared.is_short() {
            return;
        }
        let mut idle = self.shared.idle();
        idle.push_back(Idle { connection, since: Instant::now() });
        if idle.len() > self.shared.max_idle {
            idle.pop_front();
        }
    }

    async fn http2(&self) -> Result<Connection, Failure> {
        let mut kept = self.http2.here().lock().await;
        let connection = |sender, reused| Connection::Http2 { sender, reused };
        if let Some(kept) = kept.as_mut().filter(|kept| !kept.sender.is_closed()) {
            kept.used = Instant::now();
            return Ok(connection(kept.sender.clone(), true));
        }
        let sender = Box::pin(self.http2_sender()).await?;
        *kept = Some(Kept { sender: sender.clone(), used: Instant::now() });
        Ok(connection(sender, false))
    }

    async fn http2_sender(&self) -> Result<http2::SendRequest<RequestBody>, Failure> {
        let stream = connect(&self.shared.target).await.map_err(unreachable)?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(self.shared.bounds.bytes).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(refused)?;
        self.shared.tasks.spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(target: "palisade::upstream", error = %chain(&error), "connection ended");
            }
        });
        Ok(sender)
    }
}

fn unreachable(error: std::io::Error) -> Failure {
    Failure::new(Reason::UpstreamConnect).with(error)
}

fn refused(error: hyper::Error) -> Failure {
    Failure::new(Reason::UpstreamConnect).with(chain(&error))
}

/// Sends a request over HTTP/2 and waits for the response's head.
pub(super) async fn send_http2(
    sender: &mut http2::SendRequest<RequestBody>,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, SendError> {
    sender.try_send_request(request).await.map_err(|mut error| {
        let unsent = error.take_message().map(Request::into_body);
        let error = error.into_error();
        SendError {
            refused: is_refused(&error),
            invalid: error.is_parse(),
            error: chain(&error).to_string().into(),
            unsent,
        }
    })
}

/// Whether an HTTP/2 server says that it has done nothing (RFC 9113 sections 6.8 and 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let reset = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    reset.filter(|reset| reset.is_remote()).is_some_and(|reset| {
        reset.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (reset.is_go_away() && reset.reason() == Some(h2::Reason::NO_ERROR))
    })
}
