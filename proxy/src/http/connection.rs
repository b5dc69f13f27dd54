//! Serves one client's connection from its first byte to its end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use palisade_supervisor::chain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::{Activity, Doing, InFlight};
use super::io::{Guarded, Protocol, sniff};
use super::{Body, BoxError, Client};
use crate::config::Limits;
use crate::proxy::Proxy;

/// How long a connection that was asked to end may take to say goodbye when it has no request.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long a drain waits for the first request of a connection.
const UNASKED: Duration = Duration::from_secs(1);

/// A send buffer drains in steps: the kernel says that there is room when a third of it is free, so a slow client looks
/// for longer as if it did not read. TCP_USER_TIMEOUT finds those that really don't.
const STEPS: u32 = 4;

/// HTTP/2 pings to a silent client, and how long each may take.
const PING: Duration = Duration::from_secs(20);

/// All connections: who may still work, and who must end now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections {
    /// Every connection and tunnel is a task in here.
    pub(crate) tasks: TaskTracker,
    /// Cancelled: finish what is in flight, take no more.
    pub(crate) drain: CancellationToken,
    /// Cancelled: end now.
    pub(crate) end: CancellationToken,
}

impl Connections {
    /// Returns when a drain has given clients that have asked nothing yet the time to do so: their request may be on its
    /// way, and closing loses it.
    pub(crate) async fn drained_of_silent(&self) {
        self.drain.cancelled().await;
        tokio::time::sleep(UNASKED).await;
    }
}

/// Serves `io` until it ends. `protocol` is given where ALPN has told it.
///
/// Cancelled by [`Connections::end`]; dropping the future closes the connection.
pub(crate) async fn serve<I>(
    mut io: I,
    protocol: Option<Protocol>,
    client: Arc<Client>,
    limits: Limits,
    proxy: Arc<Proxy>,
    connections: Connections,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (protocol, seen) = match protocol {
        Some(protocol) => (protocol, Vec::new()),
        None => {
            let sniffed = tokio::select! {
                sniffed = sniff(&mut io, limits.idle_timeout, limits.header_timeout) => sniffed,
                () = connections.drained_of_silent() => return,
                () = connections.end.cancelled() => return,
            };
            match sniffed {
                // Gone, or silent: nothing was asked, so nothing is answered.
                Ok((_, seen)) if seen.is_empty() => return,
                Ok(known) => known,
                Err(_) => return,
            }
        }
    };
    let activity = Activity::new();
    let head_timeout = (protocol == Protocol::Http1).then_some(limits.header_timeout);
    let mut io = Guarded::new(io, seen, activity.clone(), head_timeout);
    if protocol == Protocol::Http1 {
        let (proxy, client) = (Arc::clone(&proxy), Arc::clone(&client));
        io = io.refusing(Box::new(move |status| proxy.refuse(status, &client)));
    }
    let io = TokioIo::new(io);
    let counter = activity.clone();
    let cuts = Arc::clone(&proxy);
    let service = service_fn(move |request: Request<Incoming>| {
        let guard = counter.begin();
        let proxy = Arc::clone(&proxy);
        let client = Arc::clone(&client);
        let activity = counter.clone();
        let cuts = Arc::clone(&cuts);
        let listener = Arc::clone(&client);
        async move {
            let response = proxy.handle(request, &client).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                activity.switch();
            }
            let counted = |body| Counted { body, guard, state: Sent::NotYet, proxy: cuts, client: listener };
            Ok::<Response<Body>, Infallible>(response.map(|body| counted(body).boxed_unsync()))
        }
    });
    let served = match protocol {
        Protocol::Http1 => {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                // `Guarded` bounds heads; hyper's own timer also runs while a connection is idle.
                .header_read_timeout(None)
                .max_headers(limits.max_headers)
                .max_buf_size(limits.max_header_bytes.max(8 * 1024))
                .serve_connection(io, service)
                .with_upgrades();
            drive(pin!(connection), &activity, &limits, &connections).await
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.max_streams)
                .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
                .keep_alive_interval(PING)
                .keep_alive_timeout(PING)
                .serve_connection(io, service);
            drive(pin!(connection), &activity, &limits, &connections).await
        }
    };
    if let Err(error) = served {
        tracing::debug!(target: "palisade::http", error = %chain(&error), "connection ended");
    }
}

/// A connection of either protocol that can be asked to end.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, S> Graceful for http1::UpgradeableConnection<I, S>
where
    Self: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<BoxError>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::UpgradeableConnection::graceful_shutdown(self);
    }
}

impl<I, S> Graceful for http2::Connection<I, S, TokioExecutor>
where
    Self: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    TokioExecutor: hyper::rt::bounds::Http2ServerConnExec<S::Future, Body>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
    }
}

/// Runs a connection to its end; asks it to end when it has been idle for too long, or when everything drains, and ends
/// it when the client does not read on.
async fn drive(
    mut connection: Pin<&mut impl Graceful>,
    activity: &Activity,
    limits: &Limits,
    connections: &Connections,
) -> hyper::Result<()> {
    let often = limits.idle_timeout.min(limits.body_idle_timeout);
    let mut check = Instant::now() + often;
    let mut ending = false;
    let draining = async {
        connections.drain.cancelled().await;
        if activity.begun() == 0 {
            tokio::time::sleep(UNASKED).await;
        }
    };
    let mut draining = pin!(draining);
    loop {
        tokio::select! {
            served = connection.as_mut() => return served,
            () = connections.end.cancelled() => return Ok(()),
            () = draining.as_mut(), if !ending => {
                connection.as_mut().graceful_shutdown();
                ending = true;
                check = Instant::now() + GOODBYE;
            }
            () = tokio::time::sleep_until(check) => {
                let now = Instant::now();
                check = match activity.doing() {
                    Doing::Blocked(since) => since + limits.body_idle_timeout * STEPS,
                    Doing::Unread(since) => since + limits.body_idle_timeout,
                    Doing::Working => now + often,
                    Doing::Idle(_) if ending => return Ok(()),
                    Doing::Idle(since) => since + limits.idle_timeout,
                };
                if check <= now {
                    if !matches!(activity.doing(), Doing::Idle(_)) {
                        tracing::debug!(target: "palisade::http", "the client does not read its responses");
                        return Ok(());
                    }
                    connection.as_mut().graceful_shutdown();
                    ending = true;
                    check = now + GOODBYE;
                }
            }
        }
    }
}

/// A response's body that counts its request as in flight until it has been sent or given up.
struct Counted {
    body: Body,
    guard: InFlight,
    state: Sent,
    proxy: Arc<Proxy>,
    client: Arc<Client>,
}

/// How much of a response has been taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// The answer to a `HEAD` stays like this.
    NotYet,
    Partly,
    /// All there is, or all that will come.
    Whole,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.state == Sent::Partly {
            self.proxy.cut(&self.client, &"the client left");
        }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.guard.asked();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.state = match &polled {
            Poll::Ready(Some(Ok(_))) => {
                self.guard.taken();
                if self.body.is_end_stream() { Sent::Whole } else { Sent::Partly }
            }
            Poll::Ready(None) => Sent::Whole,
            Poll::Ready(Some(Err(error))) => {
                self.proxy.cut(&self.client, error);
                Sent::Whole
            }
            Poll::Pending => Sent::Partly,
        };
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
