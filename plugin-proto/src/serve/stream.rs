//! gRPC for batches alone: a server for `Filter.CheckBatches`, on a unix socket of its own.
//!
//! What a server in general does for one message costs more than ten verdicts, and most of all time, since it is done by
//! several tasks and threads, of which each waits to be woken. Here each connection is a thread's (`thread`), and a batch
//! is judged where it is read from the socket, and what it comes to is written at once. A host has a connection for each
//! of its own threads, so calls are judged on as many cores as it has put to work.
//!
//! Filters find the runtime of the program there as anywhere else, and what waits for something is finished by it. One
//! that blocks before it waits holds up the calls of its own connection, and neither the runtime nor others.
//!
//! HTTP/2 is the h2 crate's; this is gRPC on top of it, for one method, and what a server owes itself:
//!
//! - Whatever a peer sends, it harms its own connection at most. What breaks HTTP/2 ends it with GOAWAY.
//! - Connections, streams, messages, and what a peer does not read are bounded. No batches are taken of a peer that does
//!   not read its answers.
//! - A connection has to begin with HTTP/2 soon. After that, it may be idle: hosts connect before they have calls.
//!
//! `grpc-timeout` is not looked at: whoever sets it resets the stream when it is over, and calls have deadlines of
//! their own.

use std::future::poll_fn;
use std::os::unix::net;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use std::{io, thread};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use prost::Message;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use super::services::Shared;
use super::thread::{Socket, Waiting};
use super::{GRACE, MAX_MESSAGE, report};
use crate::pieces::{PREFIX, Pieces, PiecesError};
use crate::v1::{CheckBatch, CheckBatchAnswer};

const PATH: &str = "/palisade.plugin.v1.Filter/CheckBatches";

/// Connections, each of which is a thread. A host has one for each of its own, and Palisade has no more than 1024 of those.
pub(super) const MAX_CONNECTIONS: u16 = 2048;

/// Streams of one connection.
const MAX_STREAMS: u32 = 8;

/// Streams of one connection in a row that are opened without a message on any.
const MAX_OPENED: u32 = 100;

/// How long a connection has to begin with HTTP/2.
const PATIENCE: Duration = Duration::from_secs(10);

/// A batch is 80 KiB at most: one frame, and the next one fits into the window too.
const MAX_FRAME: u32 = 128 << 10;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Largest headers of a request, in bytes as HTTP/2 counts them.
const MAX_HEADERS: u32 = 16 << 10;

/// How long nobody is accepted after that has failed, mostly since there are no descriptors left.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Answers the batches of one stream.
pub(super) type Judge = Arc<dyn Fn(Batches) -> Answers + Send + Sync>;
pub(super) type Batches = BoxStream<'static, Result<CheckBatch, Status>>;
pub(super) type Answers = BoxStream<'static, Result<CheckBatchAnswer, Status>>;

/// Serves `most` connections at a time, until the plugin is asked to end, and all that have connected are gone. A thread ends by itself: with its
/// connection, or [`GRACE`] behind the end, which is that of this future too.
pub(super) async fn serve(listener: UnixListener, judge: Judge, shared: Arc<Shared>, most: u16) {
    let places = Arc::new(Semaphore::new(most.into()));
    let end = EndsWith(Arc::clone(&shared));
    let accept = async {
        loop {
            let place = match listener.accept().await {
                // One too many is closed at once.
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => stream.into_std().map(|stream| (stream, place)),
                    Err(_) => continue,
                },
                Err(error) => Err(error),
            };
            let (judge, shared, runtime) = (Arc::clone(&judge), Arc::clone(&shared), Handle::current());
            let begun = place.and_then(|(stream, place)| {
                // Made here, so that one who has no descriptors left for it pauses, too.
                let pipe = io::pipe()?;
                thread::Builder::new().name("batches".to_owned()).spawn(move || {
                    let _place = place;
                    let _entered = runtime.enter();
                    if let Err(error) = Connection::serve(stream, pipe, judge, &shared) {
                        report(&error);
                    }
                })
            });
            if let Err(error) = begun {
                report(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.ended() => {}
        () = accept => {}
    }
    drop(listener);
    // It is never closed.
    places.acquire_many(most.into()).await.ok();
    drop(end);
}

/// Asks everything to end when it is dropped.
struct EndsWith(Arc<Shared>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Connection {
    http2: h2::server::Connection<Socket, Bytes>,
    streams: FuturesUnordered<BoxFuture<'static, ()>>,
    judge: Judge,
    /// Streams that were opened since the last message.
    opened: Arc<AtomicU32>,
}

impl Connection {
    /// The whole of a connection, on this thread. One that breaks is the host's to open again.
    fn serve(
        stream: net::UnixStream,
        pipe: (io::PipeReader, io::PipeWriter),
        judge: Judge,
        shared: &Shared,
    ) -> io::Result<()> {
        let (mut waiting, socket) = Waiting::on(stream, pipe)?;
        let mut ended = pin!(shared.ended());
        let begin = h2::server::Builder::new()
            .max_concurrent_streams(MAX_STREAMS)
            .max_frame_size(MAX_FRAME)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .handshake(socket);
        let until = Instant::now() + PATIENCE;
        let Some(Either::Left((Ok(http2), _))) = waiting.block_on(select(pin!(begin), &mut ended), Some(until)) else {
            return Ok(());
        };
        let mut connection = Self { http2, streams: FuturesUnordered::new(), judge, opened: Arc::default() };
        let over = poll_fn(|cx| connection.poll(cx));
        if let Some(Either::Right(_)) = waiting.block_on(select(over, &mut ended), None) {
            connection.http2.graceful_shutdown();
            waiting.block_on(poll_fn(|cx| connection.poll(cx)), Some(Instant::now() + GRACE));
        }
        Ok(())
    }

    /// Ready when it is over. What streams send is written at the next turn, for which they wake the thread.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(opened) = self.http2.poll_accept(cx) {
            // What breaks it has been told to the peer, as far as it could be.
            let Some(Ok((request, respond))) = opened else { return Poll::Ready(()) };
            if self.opened.fetch_add(1, Ordering::Relaxed) >= MAX_OPENED {
                self.streams.clear();
                self.http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            let stream = serve_stream(request, respond, Arc::clone(&self.judge), Arc::clone(&self.opened));
            // An error of HTTP/2 is one of a stream that is over.
            self.streams.push(stream.map(drop).boxed());
        }
        while let Poll::Ready(Some(())) = self.streams.poll_next_unpin(cx) {}
        Poll::Pending
    }
}

/// One call of the method, or of another one.
async fn serve_stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    judge: Judge,
    opened: Arc<AtomicU32>,
) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    if request.method() != Method::POST || !is_grpc(request.headers()) {
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return respond.send_response(response, true).map(drop);
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if request.uri().path() != PATH {
        let refusal = Status::unimplemented("only batches are served here").into_http();
        return respond.send_response(refusal, true).map(drop);
    }
    let mut outgoing = respond.send_response(response, false)?;
    let incoming = Incoming { body: request.into_body(), pieces: Pieces::new(MAX_MESSAGE), opened };
    let batches = stream::unfold(incoming, |mut incoming| async move { Some((incoming.next().await?, incoming)) });
    let mut answers = judge(batches.boxed());
    let status = loop {
        match poll_fn(|cx| poll_answer(&mut outgoing, &mut answers, cx)).await? {
            Some(Ok(message)) => outgoing.send_data(framed(&message), false)?,
            Some(Err(status)) => break status,
            None => break Status::new(Code::Ok, ""),
        }
    };
    outgoing.send_trailers(status.into_http::<()>().into_parts().0.headers)
}

/// The next message for the host, when there is room for one. An error where nobody waits for it any more.
///
/// There is room as soon as the host takes one more byte: what it doesn't take of a message waits in h2, but no other one
/// behind it.
fn poll_answer(
    outgoing: &mut SendStream<Bytes>,
    answers: &mut Answers,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Result<CheckBatchAnswer, Status>>, h2::Error>> {
    // The host may have ended its half already, so that nothing else would tell.
    if let Poll::Ready(reset) = outgoing.poll_reset(cx) {
        return Poll::Ready(Err(reset?.into()));
    }
    outgoing.reserve_capacity(1);
    while outgoing.capacity() == 0 {
        match ready!(outgoing.poll_capacity(cx)) {
            Some(room) => room?,
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        };
    }
    answers.poll_next_unpin(cx).map(Ok)
}

/// A message as it stands in a stream.
fn framed(message: &CheckBatchAnswer) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // It has room for all of it.
    message.encode(&mut framed).ok();
    framed.freeze()
}

/// What the host sends on one stream.
struct Incoming {
    body: RecvStream,
    pieces: Pieces,
    /// Streams that were opened since the last message.
    opened: Arc<AtomicU32>,
}

impl Incoming {
    /// The next batch; `None`: the host has ended the stream.
    async fn next(&mut self) -> Option<Result<CheckBatch, Status>> {
        loop {
            match self.pieces.take() {
                Ok(None) => {}
                Ok(Some(message)) => {
                    self.opened.store(0, Ordering::Relaxed);
                    return Some(CheckBatch::decode(message).map_err(|error| Status::internal(error.to_string())));
                }
                Err(error @ PiecesError::Compressed) => return Some(Err(Status::unimplemented(error.to_string()))),
                Err(error @ PiecesError::TooLarge { .. }) => {
                    return Some(Err(Status::resource_exhausted(error.to_string())));
                }
            }
            let received = match self.body.data().await {
                Some(received) => received.and_then(|piece| {
                    self.body.flow_control().release_capacity(piece.len())?;
                    Ok(piece)
                }),
                None if self.pieces.held() == 0 => return None,
                None => return Some(Err(Status::internal("the stream ended within a message"))),
            };
            match received {
                Ok(piece) => self.pieces.push(piece),
                // Nobody is there to be told.
                Err(error) => return Some(Err(Status::unavailable(error.to_string()))),
            }
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[cfg(test)]
mod tests;
