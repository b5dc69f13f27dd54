//! Connections to one endpoint: kept for reuse with HTTP/1.1, shared with HTTP/2.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::connect::connect;
use crate::config::{self, UpstreamProtocol};
use crate::http::{Chain, RequestBody};
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
    http2: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
}

#[derive(Debug)]
struct Shared {
    endpoint: config::Endpoint,
    protocol: UpstreamProtocol,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_idle: usize,
    tasks: TaskTracker,
    /// Last in, first out: the connection used last is the least likely to have been closed.
    idle: Mutex<VecDeque<Idle>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
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
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// Why a request got no response.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) error: hyper::Error,
    /// The body, if nothing of the request has been sent.
    pub(super) unsent: Option<RequestBody>,
}

impl Pool {
    pub(super) fn new(endpoint: config::Endpoint, config: &config::Upstream, tasks: TaskTracker) -> Self {
        let shared = Shared {
            endpoint,
            protocol: config.protocol,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            max_idle: config.max_idle,
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

    /// Closes connections that have been idle for too long.
    pub(super) fn evict(&self) {
        let idle_timeout = self.shared.idle_timeout;
        self.shared.idle().retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < idle_timeout);
    }

    async fn http1(&self) -> Result<Connection, Failure> {
        let connection =
            |sender, reused| Connection { sender: Sender::Http1(sender), reused, shared: Arc::clone(&self.shared) };
        loop {
            let Some(idle) = self.shared.idle().pop_back() else { break };
            if idle.sender.is_ready() && idle.since.elapsed() < self.shared.idle_timeout {
                return Ok(connection(idle.sender, true));
            }
        }
        let stream = connect(&self.shared.endpoint).await.map_err(unreachable)?;
        let (sender, driver) = http1::Builder::new().handshake(stream).await.map_err(refused)?;
        self.shared.tasks.spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(target: "palisade::upstream", error = %Chain(&error), "connection ended");
            }
        });
        Ok(connection(sender, false))
    }

    async fn http2(&self) -> Result<Connection, Failure> {
        let mut kept = self.http2.lock().await;
        let connection =
            |sender, reused| Connection { sender: Sender::Http2(sender), reused, shared: Arc::clone(&self.shared) };
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(connection(sender.clone(), true));
        }
        let stream = connect(&self.shared.endpoint).await.map_err(unreachable)?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake(stream)
            .await
            .map_err(refused)?;
        self.shared.tasks.spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(target: "palisade::upstream", error = %Chain(&error), "connection ended");
            }
        });
        *kept = Some(sender.clone());
        Ok(connection(sender, false))
    }
}

fn unreachable(error: std::io::Error) -> Failure {
    Failure::new(Reason::UpstreamConnect).with(error)
}

fn refused(error: hyper::Error) -> Failure {
    Failure::new(Reason::UpstreamConnect).with(Chain(&error))
}

impl Connection {
    /// Whether other requests went over it before.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a request and waits for the response's head.
    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let sent = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().map(Request::into_body);
            SendError { error: error.into_error(), unsent }
        })
    }

    /// Gives the connection back when its response has been read to the end.
    pub(super) fn release(self) {
        let Sender::Http1(mut sender) = self.sender else { return };
        let shared = self.shared;
        let tasks = shared.tasks.clone();
        if sender.is_ready() {
            keep(&shared, sender);
            return;
        }
        // The connection's own task has yet to notice that the response has ended.
        tasks.spawn(async move {
            if let Ok(Ok(())) = tokio::time::timeout(READY, sender.ready()).await {
                keep(&shared, sender);
            }
        });
    }
}

fn keep(shared: &Shared, sender: http1::SendRequest<RequestBody>) {
    let mut idle = shared.idle();
    if idle.len() >= shared.max_idle {
        idle.pop_front();
    }
    idle.push_back(Idle { sender, since: Instant::now() });
}
