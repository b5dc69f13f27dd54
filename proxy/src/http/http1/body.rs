//! The body of a request, read from its connection by whoever takes it.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::super::BoxError;
use super::super::wire::Piece;
use super::side::{self, Side};

/// A body on its way from the client.
pub(crate) struct Http1Body {
    side: Arc<Mutex<Side>>,
    /// Bytes that are still to come, where its head has said it.
    left: Option<u64>,
    ended: bool,
}

impl std::fmt::Debug for Http1Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1Body").field("left", &self.left).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Http1Body {
    pub(super) fn new(side: &Arc<Mutex<Side>>, left: Option<u64>) -> Self {
        Self { side: Arc::clone(side), left, ended: false }
    }
}

impl http_body::Body for Http1Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(side::lock(&self.side).poll_body(cx));
        Poll::Ready(match piece {
            Ok(Piece::Data(data)) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                self.ended = self.left == Some(0);
                Some(Ok(Frame::data(data)))
            }
            Ok(Piece::Trailers(trailers)) => {
                self.ended = true;
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(Piece::End | Piece::More) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error.into()))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.ended => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}
