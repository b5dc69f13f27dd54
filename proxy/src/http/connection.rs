//! Serves one client's connection from its first byte to its end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use palisade_supervisor::chain;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::{Activity, Closed, Doing};
use super::alarm::Alarm;
use super::body::Incoming;
use super::counted::Counted;
use super::http1;
use super::io::{Guarded, Protocol, sniff};
use super::linger::lend;
use super::{BoxError, BoxStream, Client};
use crate::config::Limits;
use crate::listener::Slot;
use crate::overload::{Load, Overload};
use crate::respond::{Failure, Reason};

/// How long a connection that was asked to end may take to say goodbye when it has no request.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long a drain waits for the first request of a connection.
pub(super) const UNASKED: Duration = Duration::from_secs(1);

/// Before an idle connection is closed, it is looked at once more after this: when the whole process has stood still, its
/// time is up before what came meanwhile has been read.
pub(super) const LAST_LOOK: Duration = Duration::from_millis(20);

/// How long an idle connection may wait for one more request, to be told to go by its answer, where another process
/// serves already: closing it could meet a request that is on its way.
pub(super) const LAST_REQUEST: Duration = Duration::from_secs(5);

/// A send buffer drains in steps: the kernel says that there is room when a third of it is free, so a slow client looks
/// for longer as if it did not read. TCP_USER_TIMEOUT finds those that really don't.
pub(super) const STEPS: u32 = 4;

/// HTTP/2 pings to a silent client, and how long each may take.
const PING: Duration = Duration::from_secs(20);

/// Bytes of one HTTP/2 response that are taken over before the client takes them.
const SEND_BUFFER: usize = 32 * 1024;

/// What a field costs in memory beyond its name and value.
const FIELD: usize = 100;

/// Roughly what a request's headers take up.
pub(super) fn memory(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum()
}

/// Connections: who may still work, and who must end now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections {
    /// Every connection and tunnel is a task in here.
    pub(crate) tasks: TaskTracker,
    /// Cancelled: finish what is in flight, take no more.
    pub(crate) drain: CancellationToken,
    /// Cancelled: end now.
    pub(crate) end: CancellationToken,
    /// What all of them together cost.
    pub(crate) overload: Arc<Overload>,
    /// Cancelled: another process takes connections in the place of this one, so clients may be asked to go there one by
    /// one, with an answer.
    pub(crate) succeeded: CancellationToken,
}

impl Connections {
    /// Some of these, that can be asked to end by themselves.
    pub(crate) fn some(&self) -> Self {
        Self {
            tasks: self.tasks.clone(),
            drain: self.drain.child_token(),
            end: self.end.child_token(),
            overload: Arc::clone(&self.overload),
            succeeded: self.succeeded.child_token(),
        }
    }

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
pub(crate) async fn serve(
    mut io: BoxStream,
    protocol: Option<Protocol>,
    client: Arc<Client>,
    limits: &Limits,
    slot: Arc<Slot>,
    connections: &Connections,
) {
    let (protocol, seen) = match protocol {
        Some(protocol) => (protocol, Vec::new()),
        None => {
            let sniffed = tokio::select! {
                sniffed = sniff(&mut io, limits.first_byte_timeout, limits.header_timeout) => sniffed,
                () = connections.drained_of_silent() => return,
                () = connections.end.cancelled() => return,
            };
            match sniffed {
                // Gone, or silent: nothing was asked, so nothing is answered.
                Ok(Some((_, seen))) if seen.is_empty() => return,
                Ok(Some(known)) => known,
                Ok(None) => return,
                Err(late) => {
                    slot.service().metrics.closed(&client.listener, late);
                    return;
                }
            }
        }
    };
    match protocol {
        Protocol::Http1 => http1::serve(io, seen, client, limits, slot, connections).await,
        // Not in the future of every connection of the other kind.
        Protocol::Http2 => Box::pin(serve_http2(io, seen, client, *limits, slot, connections)).await,
    }
}

async fn serve_http2(
    io: BoxStream,
    seen: Vec<u8>,
    client: Arc<Client>,
    limits: Limits,
    slot: Arc<Slot>,
    connections: &Connections,
) {
    // Its place among the listener's connections stays taken while it lingers.
    let held = Arc::clone(&client);
    let activity = Activity::new();
    let (io, back) = lend(io);
    let io = TokioIo::new(Guarded::new(io, seen, activity.clone(), limits.max_glitches, limits.header_timeout));
    let counter = activity.clone();
    let enough = CancellationToken::new();
    let (stop, overload) = (enough.clone(), Arc::clone(&connections.overload));
    let metrics = Arc::clone(&slot.service().metrics);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let (fields, taken) = (request.headers().len(), memory(request.headers()));
        let load = overload.load();
        if load >= Load::High || counter.begun() + 1 >= limits.max_requests {
            counter.close_for(if load >= Load::High { Closed::Overload } else { Closed::Requests });
            stop.cancel();
        }
        let all = counter.headers() + taken;
        let refused = if load == Load::Over {
            Some(Failure::new(Reason::Overloaded))
        } else if fields > limits.max_headers {
            Some(Failure::new(Reason::HeadersTooLarge).with(format!("{fields} header fields")))
        } else if all > limits.max_header_memory {
            Some(Failure::new(Reason::HeaderMemory).with(format!("{all} bytes")))
        } else {
            None
        };
        if refused.is_some() {
            // Not kept until it is this request's turn to be refused: there may be many of them.
            *request.headers_mut() = HeaderMap::new();
        }
        let guard = counter.begin(if refused.is_some() { 0 } else { taken });
        // The request's own from its first step to its last, whatever is loaded meanwhile.
        let proxy = slot.proxy();
        let slot = Arc::clone(&slot);
        let client = Arc::clone(&client);
        // What it takes to answer is given back with the answer's head: the stream stays until its client has read it.
        Box::pin(async move {
            let response = proxy
                .handle(request.map(|body| Incoming::Http2(body.into())), &client, &Alarm::default(), refused)
                .await;
            Ok::<_, Infallible>(response.map(|body| Counted::new(body, guard, slot, client)))
        })
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(io, service);
    let served = drive(pin!(connection), &activity, &limits, &enough, connections).await;
    if let Some(reason) = activity.closed() {
        metrics.closed(&held.listener, reason);
    }
    match served {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            tracing::debug!(target: "palisade::http", error = %chain(&error), "connection ended");
            if !error.is_parse() {
                return;
            }
        }
        None => return,
    }
    tokio::select! {
        () = back.linger() => {}
        () = connections.end.cancelled() => {}
    }
}

/// A connection that can be asked to end.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, S> Graceful for http2::Connection<I, S, TokioExecutor>
where
    Self: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Counted>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    TokioExecutor: hyper::rt::bounds::Http2ServerConnExec<S::Future, Counted>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
    }
}

/// Runs a connection to its end; asks it to end when it has been idle for too long, or when everything drains, and ends
/// it when the client does not read on.
///
/// `enough`: cancelled once there has been enough of it.
///
/// Returns how it ended by itself, or nothing when there was no waiting for that.
async fn drive(
    mut connection: Pin<&mut impl Graceful>,
    activity: &Activity,
    limits: &Limits,
    enough: &CancellationToken,
    connections: &Connections,
) -> Option<hyper::Result<()>> {
    let often = limits.idle_timeout.min(limits.body_idle_timeout);
    let mut check = Instant::now() + often.min(limits.first_byte_timeout);
    let mut ending = false;
    let mut looked = false;
    let draining = async {
        connections.drain.cancelled().await;
        if activity.begun() == 0 {
            tokio::time::sleep(UNASKED).await;
        }
    };
    let mut draining = pin!(draining);
    loop {
        tokio::select! {
            served = std::future::poll_fn(|cx| {
                activity.next_turn();
                connection.as_mut().poll(cx)
            }) => return Some(served),
            () = connections.end.cancelled() => return None,
            () = draining.as_mut(), if !ending => {
                connection.as_mut().graceful_shutdown();
                ending = true;
                check = Instant::now() + GOODBYE;
            }
            () = enough.cancelled(), if !ending => {
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
                    Doing::Idle(_) if ending => return None,
                    Doing::Idle(since) if !activity.heard() => since + limits.first_byte_timeout,
                    Doing::Idle(since) => since + limits.idle_timeout,
                };
                let due = check <= now;
                if due && !looked && matches!(activity.doing(), Doing::Idle(_)) {
                    check = now + LAST_LOOK;
                    looked = true;
                    continue;
                }
                looked = false;
                if due {
                    if !matches!(activity.doing(), Doing::Idle(_)) {
                        tracing::debug!(target: "palisade::http", "the client does not read its responses");
                        activity.close_for(Closed::Unread);
                        return None;
                    }
                    activity.close_for(if activity.heard() { Closed::Idle } else { Closed::FirstByte });
                    connection.as_mut().graceful_shutdown();
                    ending = true;
                    check = now + GOODBYE;
                }
            }
        }
    }
}
