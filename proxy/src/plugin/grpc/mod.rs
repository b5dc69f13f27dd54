//! gRPC to plugins: calls that are made by themselves, each a request of its own, and streams that stay open.
//!
//! A worker has a connection for itself, and speaks HTTP/2 over it without anything between: what layers in general use
//! do for a call costs more than the call. A connection that takes no more calls, because it broke, the plugin said
//! GOAWAY or ran out of streams, is made anew by whoever calls next: one attempt at a time, for all that wait, and with
//! everything that is checked of the first one.
//!
//! A plugin to which there is only one connection is called over that one, which is its supervisor's.

mod answer;
mod backlog;
mod stream;

use std::error::Error;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::buf::Chain;
use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, poll_fn};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use palisade_supervisor::{ConnectError, Connector, Stream, chain};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

#[cfg(any(test, fuzzing))]
pub(super) use self::answer::{Messages, in_pieces, read as read_one};
use self::backlog::{Backlog, Noted};
pub(super) use self::stream::Outgoing;
use super::lines::PATIENCE;
use super::status::{call_error, has_cause, is_breach};
use super::{CallError, clip};

/// What the plugin may send before it is read: as hyper's default, with which every answer of a call has room.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;

/// Largest headers and trailers of an answer together, in bytes as HTTP/2 counts them.
const MAX_HEADERS: u32 = 16 << 10;

/// Calls at a time before the plugin has said how many it takes.
const FIRST_CALLS: usize = 100;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What is called.
#[derive(Debug)]
pub(super) struct Rpc(LazyLock<Uri>);

impl Rpc {
    /// `uri`: `http://localhost/SERVICE/METHOD`. The authority is never resolved; servers see it in `:authority`.
    pub(super) const fn new(uri: fn() -> Uri) -> Self {
        Self(LazyLock::new(uri))
    }

    fn service(&'static self) -> &'static str {
        self.0.path().split('/').nth(1).unwrap_or_default()
    }
}

/// A connection for calls. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Line {
    /// For these calls alone.
    Own(Arc<Own>),
    /// One that has other users.
    Shared(Channel),
}

impl Line {
    /// Connects. The runtime in which this is called works for it. Cancel safe. The error is for a log line.
    pub(super) async fn open(connector: Connector) -> Result<Self, Arc<str>> {
        let dial = move || {
            let connector = connector.clone();
            async move { connector.stream().await }.boxed()
        };
        Own::open(Box::new(dial)).await.map(|own| Self::Own(Arc::new(own)))
    }

    /// What is asked from now on goes over another connection than before, where it is this one's to make: what serves the
    /// one that there is may stand still.
    pub(super) fn renew(&self) {
        if let Self::Own(own) = self {
            own.renew();
        }
    }

    /// Asks, and gives the one message of the answer, of at most `most` bytes.
    pub(super) fn call(
        &self,
        rpc: &'static Rpc,
        message: Vec<u8>,
        most: usize,
        deadline: Instant,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send + use<> {
        let line = self.clone();
        async move {
            let answer = async {
                match &line {
                    Self::Own(own) => own.call(rpc, message.into(), most, deadline).await,
                    // Boxed: it is large, and rare.
                    Self::Shared(channel) => {
                        Box::pin(shared(channel.clone(), rpc, message.into(), most, deadline)).await
                    }
                }
            };
            tokio::time::timeout_at(deadline, answer).await.unwrap_or(Err(CallError::Timeout))
        }
    }
}

/// What is sent for a message: whether it is compressed, how long it is, and itself.
type Payload = Chain<Cursor<[u8; 5]>, Bytes>;

fn payload(message: Bytes) -> Result<Payload, CallError> {
    let length = u32::try_from(message.len());
    let length = length.map_err(|_| CallError::Unrepresentable("a message of more than 4 GiB".to_owned()))?;
    let mut prefix = [0; 5];
    prefix[1..].copy_from_slice(&length.to_be_bytes());
    Ok(Cursor::new(prefix).chain(message))
}

fn request(rpc: &Rpc) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    request.uri_mut().clone_from(&rpc.0);
    let headers = request.headers_mut();
    headers.reserve(4);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("palisade/", env!("CARGO_PKG_VERSION"))));
    request
}

/// A request of which the plugin is told how long it has.
fn request_until(rpc: &Rpc, deadline: Instant) -> Request<()> {
    let mut request = request(rpc);
    request.headers_mut().insert(GRPC_TIMEOUT, timeout(deadline));
    request
}

/// How long the plugin has, as gRPC writes it: at most eight digits and a unit.
fn timeout(deadline: Instant) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let left = deadline.saturating_duration_since(Instant::now());
    let text = match left.as_micros() {
        micros @ 0..=MOST => format!("{micros}u"),
        _ => format!("{}m", left.as_millis().min(MOST)),
    };
    let mut value = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0u"));
    // No two are the same: they would only push what is worth it out of the table of header compression.
    value.set_sensitive(true);
    value
}

/// Makes a connection.
type Dial = Box<dyn Fn() -> BoxFuture<'static, Result<Box<dyn Stream>, ConnectError>> + Send + Sync>;

/// An attempt to connect, that all wait for together; and what has come of it.
type Attempt = Shared<BoxFuture<'static, Result<Arc<Open>, Arc<str>>>>;

/// A connection of its own, made anew when it takes no more calls.
pub(super) struct Own {
    dial: Dial,
    last: Mutex<Attempt>,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

impl Own {
    /// The error is for a log line.
    async fn open(dial: Dial) -> Result<Self, Arc<str>> {
        let first = attempt(&dial);
        first.clone().await?;
        Ok(Self { dial, last: Mutex::new(first) })
    }

    async fn call(
        &self,
        rpc: &'static Rpc,
        message: Bytes,
        most: usize,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let payload = payload(message)?;
        let open = self.open_connection().await?;
        let (answer, mut body) = open.send(request_until(rpc, deadline)).await?;
        body.send_data(payload, true).map_err(|error| unanswered(&error))?;
        let answer = answer.await.map_err(|error| unanswered(&error))?;
        answer::read(answer.map(Received), most, rpc.service()).await
    }

    fn renew(&self) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Ok(open)) = last.now_or_never() {
            open.retired.store(true, Ordering::Relaxed);
        }
    }

    async fn open_connection(&self) -> Result<Arc<Open>, CallError> {
        match self.connection() {
            Ok(open) => Ok(open),
            Err(attempt) => attempt.await.map_err(|why| CallError::Unsent(why.to_string())),
        }
    }

    /// The connection, if there is one that takes calls; else the attempt to make one.
    fn connection(&self) -> Result<Arc<Open>, Attempt> {
        // Nothing in here can panic half-way.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.clone().now_or_never() {
            Some(Ok(open)) if open.takes_calls() => return Ok(open),
            Some(Ok(_) | Err(_)) => *last = attempt(&self.dial),
            None => {}
        }
        Err(last.clone())
    }
}

/// Connects, whether or not who asks for it stays: a handshake may take longer than a call.
fn attempt(dial: &Dial) -> Attempt {
    let dialled = dial();
    let opened = tokio::spawn(async move { Open::over(dialled.await?).await });
    let opened = AbortOnDropHandle::new(opened);
    async move {
        match opened.await {
            Ok(Ok(open)) => Ok(Arc::new(open)),
            Ok(Err(error)) => Err(clip(&chain(&*error)).into()),
            Err(error) => Err(error.to_string().into()),
        }
    }
    .boxed()
    .shared()
}

/// A connection. It is there for as long as somebody has it, and then not even half.
#[derive(Debug)]
pub(super) struct Open {
    /// Whose turn it is waits here until the plugin takes one more call. What would wait in h2 is sent in the end, even if
    /// nobody waits for its answer any more.
    turn: tokio::sync::Mutex<SendRequest<Payload>>,
    state: SendRequest<Payload>,
    backlog: Arc<Backlog>,
    /// Whether the next calls are to go over another one.
    retired: AtomicBool,
    _driver: AbortOnDropHandle<()>,
}

impl Open {
    async fn over(stream: Box<dyn Stream>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let backlog = Arc::<Backlog>::default();
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .initial_max_send_streams(FIRST_CALLS)
            .enable_push(false)
            .handshake(Noted { stream, backlog: Arc::clone(&backlog) });
        // Nothing is waited for but room for a few bytes.
        let (send, connection) = tokio::time::timeout(PATIENCE, handshake).await??;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                let error = clip(&error.to_string());
                tracing::debug!(target: "palisade::plugin", error, "a connection for calls ended");
            }
        });
        let driver = AbortOnDropHandle::new(driver);
        Ok(Self { turn: send.clone().into(), state: send, backlog, retired: AtomicBool::new(false), _driver: driver })
    }

    /// Sends a call's head, when its turn has come. Cancel safe.
    async fn send(&self, request: Request<()>) -> Result<(ResponseFuture, SendStream<Payload>), CallError> {
        let unsent = |error: h2::Error| CallError::Unsent(clip(&error.to_string()));
        let mut turn = self.turn.lock().await;
        let ready = poll_fn(|cx| {
            ready!(self.backlog.poll_gone(cx));
            turn.poll_ready(cx)
        });
        ready.await.map_err(unsent)?;
        turn.send_request(request, false).map_err(unsent)
    }

    /// Whether the next call can be sent: there was neither an end nor a GOAWAY, and there are numbers left for streams.
    fn takes_calls(&self) -> bool {
        let ready = self.state.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(()))) && !self.retired.load(Ordering::Relaxed)
    }
}

/// A call that ended before anything of its answer was there.
fn unanswered(error: &h2::Error) -> CallError {
    match is_refused(error) {
        true => CallError::Unsent(clip(&error.to_string())),
        false => lost(error),
    }
}

/// Whether the plugin says that it has not looked at it (RFC 9113, 8.7). If that is a lie, the verdict that counts is its
/// own all the same.
fn is_refused(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

fn lost(error: &h2::Error) -> CallError {
    let text = clip(&error.to_string());
    match is_breach(error) {
        true => CallError::Unreadable(text),
        false => CallError::Lost(text),
    }
}

/// The body of an answer. What is read makes room for more.
struct Received(RecvStream);

impl Body for Received {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let lost = |error| lost(&error);
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            let data = data.map_err(lost)?;
            self.0.flow_control().release_capacity(data.len()).map_err(lost)?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.0.poll_trailers(cx)).map_err(lost)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Asks over a connection of tonic's.
async fn shared(
    mut channel: Channel,
    rpc: &'static Rpc,
    message: Bytes,
    most: usize,
    deadline: Instant,
) -> Result<Bytes, CallError> {
    let mut payload = payload(message)?;
    let body = tonic::body::Body::new(Full::new(payload.copy_to_bytes(payload.remaining())));
    let ready = channel.ready().await.map_err(|error| CallError::Unsent(clip(&chain(&error))))?;
    let answer = ready.call(request_until(rpc, deadline).map(|()| body)).await.map_err(of_tonic)?;
    answer::read(answer.map(|body| body.map_err(|status| call_error(&status))), most, rpc.service()).await
}

/// As [`unanswered`], of an error of tonic's.
fn of_tonic(error: tonic::transport::Error) -> CallError {
    let unsent = has_cause(&error, |cause| {
        // Canceled is what hyper has not given to HTTP/2.
        cause.downcast_ref().is_some_and(is_refused) || cause.downcast_ref().is_some_and(hyper::Error::is_canceled)
    });
    match unsent {
        true => CallError::Unsent(clip(&chain(&error))),
        false => call_error(&Status::from_error(Box::new(error))),
    }
}

#[cfg(test)]
mod floods;
#[cfg(test)]
pub(super) mod scripted;
#[cfg(test)]
mod tests;
