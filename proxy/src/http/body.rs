//! Bodies on their way through: streamed with a bound on standing still, or held whole for a filter.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::headers;
use crate::config::Limits;
use crate::respond::{Failure, Reason};

/// Any error of a body.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a response on its way to the client.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that is all there.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// No byte of the request's body came for too long.
#[derive(Debug, thiserror::Error)]
#[error("no byte of the body arrived for {0:?}")]
pub(crate) struct BodyStalled(Duration);

/// More of the request's body came than the listener takes.
#[derive(Debug, thiserror::Error)]
#[error("the body is larger than the listener takes")]
pub(crate) struct BodyTooLarge;

/// Of a request's body that nobody wants, this much is passed over to keep the connection.
const MOST_UNWANTED: usize = 256 * 1024;

/// In a response's extensions: the request's body was not all there when it was made, so that an HTTP/1 connection ends
/// with it, and has to say so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyUnread;

/// When a request's body last moved, and whether the response has begun.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    /// Milliseconds since `start`.
    moved: AtomicU64,
    /// From then on a client may send as slowly as the upstream reads, which bidirectional streams rely on.
    answered: AtomicBool,
    /// All of it has been read.
    ended: AtomicBool,
    /// Why the client's body came to no good end.
    fault: OnceLock<Reason>,
}

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            moved: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            fault: OnceLock::new(),
        })
    }

    /// When the body last moved.
    pub(crate) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    /// It moves now.
    pub(crate) fn mark(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.fetch_max(now, Ordering::Relaxed);
    }

    /// The response's head is there.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Why the client's body came to no good end, if it did not.
    pub(crate) fn fault(&self) -> Option<Reason> {
        self.fault.get().copied()
    }

    /// Whether all of the body has been read.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

/// The body of a request on its way to filters and the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// As it comes from the client.
    Streaming(Streaming),
    /// Whole: read for a filter, or empty.
    Whole {
        /// All of it.
        bytes: Bytes,
        /// What came behind it.
        trailers: Option<HeaderMap>,
    },
}

impl RequestBody {
    /// Of its trailers, `trailers` are passed on.
    pub(crate) fn new(
        incoming: Incoming,
        limits: &Limits,
        trailers: &Arc<[HeaderName]>,
        progress: &Arc<Progress>,
    ) -> Self {
        if http_body::Body::is_end_stream(&incoming) {
            progress.ended.store(true, Ordering::Relaxed);
            return Self::Whole { bytes: Bytes::new(), trailers: None };
        }
        let (trailers, progress) = (Arc::clone(trailers), Arc::clone(progress));
        let (idle, left) = (limits.body_idle_timeout, limits.max_body);
        Self::Streaming(Streaming { incoming, idle, left, trailers, progress, timer: None })
    }

    /// No body.
    pub(crate) fn nothing() -> Self {
        Self::Whole { bytes: Bytes::new(), trailers: None }
    }

    /// Refuses a body that says itself that it is too large.
    pub(crate) fn check_length(&self) -> Result<(), Failure> {
        let Self::Streaming(streaming) = self else { return Ok(()) };
        let size = http_body::Body::size_hint(streaming).lower();
        if size > streaming.left {
            return Err(Failure::new(Reason::RequestTooLarge).with(format!("{size} bytes, at most {}", streaming.left)));
        }
        Ok(())
    }

    /// Passes over what has come already of a body that nobody wants.
    pub(crate) async fn pass_over(&mut self) {
        let Self::Streaming(streaming) = self else { return };
        let (mut left, mut waited) = (MOST_UNWANTED, false);
        while !streaming.progress.is_ended() {
            let next =
                std::future::poll_fn(|cx| Poll::Ready(http_body::Body::poll_frame(Pin::new(&mut *streaming), cx)))
                    .await;
            match next {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    let Some(rest) = left.checked_sub(length) else { return };
                    (left, waited) = (rest, false);
                }
                Poll::Ready(_) => return,
                // The connection gets a turn to read what there is.
                Poll::Pending if !waited => {
                    waited = true;
                    tokio::task::yield_now().await;
                }
                Poll::Pending => return,
            }
        }
    }

    /// Whether nothing needs to be sent, so that sending it again is as good as sending it once.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Whole { bytes, trailers: None } if bytes.is_empty())
    }

    /// Another body of the same content, where that costs nothing.
    pub(crate) fn duplicate(&self) -> Option<Self> {
        match self {
            Self::Streaming(_) => None,
            Self::Whole { bytes, trailers } => Some(Self::Whole { bytes: bytes.clone(), trailers: trailers.clone() }),
        }
    }

    /// Reads all of it, at most `limit` bytes, and keeps it for those who come later.
    ///
    /// Not cancel safe: what was read is lost, and the request with it.
    pub(crate) async fn hold(&mut self, limit: usize) -> Result<Bytes, Failure> {
        if let Self::Streaming(streaming) = self {
            let size = http_body::Body::size_hint(streaming).lower();
            if size > limit as u64 {
                return Err(Failure::new(Reason::BodyTooLarge).with(format!("{size} bytes, at most {limit}")));
            }
            let collected = Limited::new(streaming, limit).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Failure::new(Reason::BodyTooLarge).with(format!("more than {limit} bytes"))
                } else if error.is::<BodyStalled>() {
                    Failure::new(Reason::BodyTimeout).with(error)
                } else if error.is::<BodyTooLarge>() {
                    Failure::new(Reason::RequestTooLarge).with(error)
                } else {
                    Failure::new(Reason::BadBody).with(error)
                }
            })?;
            let trailers = collected.trailers().cloned();
            *self = Self::Whole { bytes: collected.to_bytes(), trailers };
        }
        match self {
            Self::Whole { bytes, .. } if bytes.len() > limit => {
                Err(Failure::new(Reason::BodyTooLarge).with(format!("{} bytes, at most {limit}", bytes.len())))
            }
            Self::Whole { bytes, .. } => Ok(bytes.clone()),
            Self::Streaming(_) => Err(Failure::new(Reason::Internal)),
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Streaming(streaming) => Pin::new(streaming).poll_frame(cx),
            Self::Whole { bytes, trailers } => Poll::Ready(if bytes.is_empty() {
                trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))
            } else {
                Some(Ok(Frame::data(std::mem::take(bytes))))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streaming(streaming) => streaming.incoming.is_end_stream(),
            Self::Whole { bytes, trailers } => bytes.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streaming(streaming) => streaming.incoming.size_hint(),
            // Trailers need a framing that has room for them.
            Self::Whole { trailers: Some(_), .. } => SizeHint::new(),
            Self::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// A client's body that may not stand still.
#[derive(Debug)]
pub(crate) struct Streaming {
    incoming: Incoming,
    idle: Duration,
    /// Bytes that may still come.
    left: u64,
    trailers: Arc<[HeaderName]>,
    progress: Arc<Progress>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) {
            this.timer = None;
            this.progress.mark();
            match &frame {
                Some(Err(_)) => {
                    this.progress.fault.set(Reason::BadBody).ok();
                }
                Some(Ok(frame)) if frame.is_data() && !this.incoming.is_end_stream() => {}
                _ => this.progress.ended.store(true, Ordering::Relaxed),
            }
            return Poll::Ready(match frame {
                Some(Ok(frame)) => match frame.into_trailers() {
                    Ok(trailers) => headers::kept_trailers(trailers, &this.trailers).map(Frame::trailers).map(Ok),
                    Err(data) => {
                        let length = data.data_ref().map_or(0, Bytes::len) as u64;
                        match this.left.checked_sub(length) {
                            Some(left) => {
                                this.left = left;
                                Some(Ok(data))
                            }
                            None => {
                                this.progress.fault.set(Reason::RequestTooLarge).ok();
                                Some(Err(BodyTooLarge.into()))
                            }
                        }
                    }
                },
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            });
        }
        if this.progress.is_answered() {
            this.timer = None;
            return Poll::Pending;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.idle)));
        ready!(timer.as_mut().poll(cx));
        this.timer = None;
        if this.progress.is_answered() {
            return Poll::Pending;
        }
        this.progress.fault.set(Reason::BodyTimeout).ok();
        Poll::Ready(Some(Err(BodyStalled(this.idle).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
