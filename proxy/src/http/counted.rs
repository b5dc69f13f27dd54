//! A response's body as it goes to hyper: counted as in flight until it has been written or given up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};

use super::activity::{InFlight, Piece};
use super::{Body, BoxError, Client};
use crate::listener::Slot;

/// A response's body, and what must be known about it: that its request is in flight, and whether all of it was sent.
pub(super) struct Counted {
    body: Body,
    guard: InFlight,
    state: Sent,
    slot: Arc<Slot>,
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

impl Counted {
    pub(super) fn new(body: Body, guard: InFlight, slot: Arc<Slot>, client: Arc<Client>) -> Self {
        Self { body, guard, state: Sent::NotYet, slot, client }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.state == Sent::Partly {
            self.slot.proxy().cut(&self.client, &"the client left");
        }
    }
}

impl http_body::Body for Counted {
    type Data = Piece;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BoxError>>> {
        self.guard.asked();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.state = match &polled {
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => Sent::Partly,
            Poll::Ready(Some(Ok(_)) | None) => Sent::Whole,
            Poll::Ready(Some(Err(error))) => {
                self.slot.proxy().cut(&self.client, error);
                Sent::Whole
            }
            Poll::Pending => Sent::Partly,
        };
        polled.map_ok(|frame| frame.map_data(|bytes| self.guard.taken(bytes)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
