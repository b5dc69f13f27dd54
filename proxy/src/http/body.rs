//! Bodies on their way through: streamed with a bound on standing still, or held whole for a filter.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use super::http1::Http1Body;
use super::{Switched, headers};
use crate::config::Limits;
use crate::respond::{Failure, Reason};
use crate::upstream::UpstreamBody;

/// Any error of a body.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a response on its way to the client.
pub(crate) enum Body {
    /// All there.
    Whole(Bytes),
    /// As it comes from the upstream.
    Streaming(Box<UpstreamBody>),
    /// Another protocol follows.
    Switched(Box<Switched>),
}

/// No body.
pub(crate) fn empty() -> Body {
    Body::Whole(Bytes::new())
}

impl Body {
    /// Whether it comes to its end only when the request has gone out, too, which its owner sends meanwhile.
    pub(crate) fn carries_request(&self) -> bool {
        matches!(self, Self::Streaming(body) if body.carries_request())
    }
}

/// A body that is all there.
pub(crate) fn full(bytes: Bytes) -> Body {
    Body::Whole(bytes)
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streaming(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Switched(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Streaming(body) => body.is_end_stream(),
            Self::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streaming(body) => body.size_hint(),
            Self::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

/// The body of a request as its connection has it.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// There is none.
    None,
    Http1(Http1Body),
    Http2(Http2Body),
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::None => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::None => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::None => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// The body of an HTTP/2 message, which is whole when its sender says so.
///
/// A stream that is reset without an error (RFC 9113 section 8.1 lets servers do so that need no more of a request), and
/// one that a GOAWAY leaves out, is at its end for hyper, also amid a body: that would pass for a whole one.
#[derive(Debug)]
pub(crate) struct Http2Body(hyper::body::Incoming);

impl From<hyper::body::Incoming> for Http2Body {
    fn from(incoming: hyper::body::Incoming) -> Self {
        Self(incoming)
    }
}

/// The stream was closed before the end of its message.
#[derive(Debug, thiserror::Error)]
#[error("the stream was closed before the end of the body")]
struct CutShort;

impl http_body::Body for Http2Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
            None if !self.0.is_end_stream() => Some(Err(CutShort.into())),
            frame => frame.map(|frame| frame.map_err(BoxError::from)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// No byte of the request's body came for too long.
#[derive(Debug, thiserror::Error)]
#[error("no byte of the body arrived for {0:?}")]
pub(crate) struct BodyStalled(Duration);

/// More of the request's body came than the listener takes.
#[derive(Debug, thiserror::Error)]
#[error("the body is larger than the listener takes")]
pub(crate) struct BodyTooLarge;

/// When a request's body last moved, and whether the response has begun.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    /// Milliseconds since `start`.
    moved: AtomicU64,
    /// From then on a client may send as slowly as the upstream reads, which bidirectional streams rely on.
    answered: AtomicBool,
    /// Whether more of the body is wanted than the client has sent.
    wanted: AtomicBool,
    /// Why the client's body came to no good end.
    fault: OnceLock<Reason>,
}

impl Progress {
    /// Of a request that begins now.
    pub(crate) fn new(start: Instant) -> Arc<Self> {
        let (answered, wanted) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { start, moved: AtomicU64::new(0), answered, wanted, fault: OnceLock::new() })
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

    /// Whether it is the client who is waited for, with more of its body.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Why the client's body came to no good end, if it did not.
    pub(crate) fn fault(&self) -> Option<Reason> {
        self.fault.get().copied()
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

/// The body of a request on its way to filters and the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// As it comes from the client.
    Streaming(Box<Streaming>),
    /// Whole: read for a filter, or empty.
    Whole {
        /// All of it.
        bytes: Bytes,
        /// What came behind it.
        trailers: Option<Box<HeaderMap>>,
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
            return Self::Whole { bytes: Bytes::new(), trailers: None };
        }
        let (trailers, progress) = (Arc::clone(trailers), Arc::clone(progress));
        let (idle, left) = (limits.body_idle_timeout, limits.max_body);
        Self::Streaming(Box::new(Streaming { incoming, idle, left, trailers, progress, timer: None }))
    }

    /// No body.
    pub(crate) fn nothing() -> Self {
        Self::Whole { bytes: Bytes::new(), trailers: None }
    }

    /// Refuses a body that says itself that it is too large.
    pub(crate) fn check_length(&self) -> Result<(), Failure> {
        let Self::Streaming(streaming) = self else { return Ok(()) };
        let size = http_body::Body::size_hint(&**streaming).lower();
        if size > streaming.left {
            return Err(Failure::new(Reason::RequestTooLarge).with(format!("{size} bytes, at most {}", streaming.left)));
        }
        Ok(())
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
            let size = http_body::Body::size_hint(&**streaming).lower();
            if size > limit as u64 {
                return Err(Failure::new(Reason::BodyTooLarge).with(format!("{size} bytes, at most {limit}")));
            }
            *self = streaming.whole(limit).await?;
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
            Self::Streaming(streaming) => Pin::new(&mut **streaming).poll_frame(cx),
            Self::Whole { bytes, trailers } => Poll::Ready(if bytes.is_empty() {
                trailers.take().map(|trailers| Ok(Frame::trailers(*trailers)))
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

impl Streaming {
    /// All of it, in one piece: pieces of a byte each would keep what was read around them, and take far more memory than
    /// `limit`.
    async fn whole(&mut self, limit: usize) -> Result<RequestBody, Failure> {
        /// What a body says of its size is taken on trust up to here.
        const TRUSTED: usize = 64 * 1024;
        let said = usize::try_from(http_body::Body::size_hint(self).lower()).unwrap_or(TRUSTED);
        let (mut bytes, mut trailers) = (BytesMut::with_capacity(said.min(TRUSTED)), None);
        while let Some(frame) = self.frame().await {
            let frame = frame.map_err(|error| {
                let reason = match () {
                    () if error.is::<BodyStalled>() => Reason::BodyTimeout,
                    () if error.is::<BodyTooLarge>() => Reason::RequestTooLarge,
                    () => Reason::BadBody,
                };
                Failure::new(reason).with(error)
            })?;
            match frame.into_data() {
                Ok(data) if data.len() > limit - bytes.len() => {
                    return Err(Failure::new(Reason::BodyTooLarge).with(format!("more than {limit} bytes")));
                }
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok().map(Box::new),
            }
        }
        Ok(RequestBody::Whole { bytes: bytes.freeze(), trailers })
    }
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) {
            this.timer = None;
            this.progress.wanted.store(false, Ordering::Relaxed);
            this.progress.mark();
            if let Some(Err(_)) = &frame {
                this.progress.fault.set(Reason::BadBody).ok();
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
                Some(Err(error)) => Some(Err(error)),
                None => None,
            });
        }
        this.progress.wanted.store(true, Ordering::Relaxed);
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
