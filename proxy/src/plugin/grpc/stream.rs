//! A stream of messages both ways, over the same connections as calls that are made by themselves.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use h2::SendStream;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use palisade_supervisor::chain;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::PollSemaphore;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::super::status::call_error;
use super::super::{CallError, clip};
use super::answer::Messages;
use super::{Line, Open, Own, Payload, Received, Rpc, of_tonic, payload, request, unanswered};

/// What the plugin sends, from when the head of its answer is there, which may be with its first message.
pub(in crate::plugin) type Incoming = BoxFuture<'static, Result<Messages<UnsyncBoxBody<Bytes, CallError>>, CallError>>;

/// Sends messages. The stream ends with it.
#[derive(Debug)]
pub(in crate::plugin) enum Outgoing {
    /// With the connection that it keeps.
    Own(SendStream<Payload>, #[expect(dead_code, reason = "it is kept")] Arc<Open>),
    Shared {
        sender: mpsc::UnboundedSender<Payload>,
        /// A permit whenever the connection has room for a message.
        asked: PollSemaphore,
        /// Whether that was taken.
        has_room: bool,
    },
}

impl Line {
    /// Opens a stream, on which the plugin may send messages of `most` bytes. Waits for a connection, and for the plugin
    /// to take one more call, as long as it takes. Cancel safe.
    pub(in crate::plugin) async fn stream(
        &self,
        rpc: &'static Rpc,
        most: usize,
    ) -> Result<(Outgoing, Incoming), CallError> {
        match self {
            Self::Own(own) => over_own(own, rpc, most).await,
            Self::Shared(channel) => over_shared(channel.clone(), rpc, most).await,
        }
    }
}

async fn over_own(own: &Own, rpc: &'static Rpc, most: usize) -> Result<(Outgoing, Incoming), CallError> {
    let open = own.open_connection().await?;
    let (answer, body) = open.send(request(rpc)).await?;
    let incoming = async move {
        let answer = answer.await.map_err(|error| unanswered(&error))?;
        Messages::of(answer.map(|body| Received(body).boxed_unsync()), most, rpc.service())
    };
    Ok((Outgoing::Own(body, open), incoming.boxed()))
}

async fn over_shared(mut channel: Channel, rpc: &'static Rpc, most: usize) -> Result<(Outgoing, Incoming), CallError> {
    let ready = channel.ready().await.map_err(|error| CallError::Unsent(clip(&chain(&error))))?;
    let (sender, mut receiver) = mpsc::unbounded_channel::<Payload>();
    let asked = Arc::new(Semaphore::new(0));
    let (asks, mut waits) = (Arc::clone(&asked), false);
    // It is asked for a message when there is a connection that has room for one.
    let frames = stream::poll_fn(move |cx| {
        if !waits {
            waits = true;
            asks.add_permits(1);
        }
        let mut payload = ready!(receiver.poll_recv(cx));
        waits = false;
        let bytes = payload.as_mut().map(|payload| payload.copy_to_bytes(payload.remaining()));
        Poll::Ready(bytes.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))))
    });
    let answer = ready.call(request(rpc).map(|()| tonic::body::Body::new(StreamBody::new(frames))));
    let incoming = async move {
        let answer = answer.await.map_err(of_tonic)?;
        let answer = answer.map(|body| body.map_err(|status| call_error(&status)).boxed_unsync());
        Messages::of(answer, most, rpc.service())
    };
    let outgoing = Outgoing::Shared { sender, asked: PollSemaphore::new(asked), has_room: false };
    Ok((outgoing, incoming.boxed()))
}

impl Outgoing {
    /// Whether a message can be sent now, as far as can be seen without waiting.
    pub(in crate::plugin) fn has_room(&mut self) -> bool {
        match self {
            Self::Own(body, _) => {
                body.reserve_capacity(1);
                body.capacity() > 0
            }
            Self::Shared { has_room, .. } => *has_room,
        }
    }

    /// Ready when a message can be sent. Never where the stream is over: what is received says that it is.
    ///
    /// There is room as soon as the plugin takes one more byte: what it doesn't take of a message waits here, but no other
    /// one behind it.
    pub(in crate::plugin) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        match self {
            Self::Own(body, _) => match ready!(body.poll_capacity(cx)) {
                Some(Ok(_)) => Poll::Ready(()),
                Some(Err(_)) | None => Poll::Pending,
            },
            Self::Shared { asked, has_room, .. } => {
                let Some(permit) = ready!(asked.poll_acquire(cx)) else { return Poll::Pending };
                permit.forget();
                *has_room = true;
                Poll::Ready(())
            }
        }
    }

    /// Sends a message, for which there is room. One that can't be sent is lost with the stream.
    pub(in crate::plugin) fn send(&mut self, message: Bytes) {
        let Ok(payload) = payload(message) else { return };
        match self {
            Self::Own(body, _) => body.send_data(payload, false).ok(),
            Self::Shared { sender, has_room, .. } => {
                *has_room = false;
                sender.send(payload).ok()
            }
        };
    }
}
