//! One exchange over one HTTP/1.1 connection to an endpoint: a request out, a response in, both at once.
//!
//! No task stands behind it: whoever waits for the response moves the request on. What can be read in two ways, or
//! comes without having been asked for, ends the connection, so that no client ever gets a part of what was meant for
//! another one.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use http::header;
use http::{HeaderMap, Method, StatusCode};
use http_body::Body;
use tokio::io::{AsyncRead, ReadBuf, ReadHalf, WriteHalf};
use tokio::task::coop::unconstrained;
use tokio_util::task::AbortOnDropHandle;

use super::pool::SendError;
use crate::http::wire::{self, Bounds, Cut, Ends, Fault, Framing, Outgoing, Piece, Reader, write};
use crate::http::{BoxError, BoxStream, Request, RequestBody, headers};
use crate::respond::Reason;

/// Interim responses before a final one.
const MOST_INTERIM: usize = 10;

/// Most of a head that is written.
const HEAD: usize = 1024;

/// A connection between two exchanges: what they need is made once, and goes from hand to hand in its box.
pub(super) struct Http1(Box<Exchange>);

/// What is sent: the head, and where its body ends.
pub(super) struct Head {
    bytes: Vec<u8>,
    ends: Ends,
    /// The answer has no body, whatever it says.
    headless: bool,
}

/// A response's head.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

/// An exchange whose response's head is there.
pub(super) struct Exchange {
    io: Io,
    reader: Reader,
    outgoing: Outgoing,
    /// The request's, until it has gone out.
    body: Option<RequestBody>,
    /// Nobody takes it any more.
    unsendable: Option<io::Error>,
    /// The connection ends with this exchange.
    last: bool,
}

/// The connection of an exchange.
enum Io {
    Whole(BoxStream),
    /// The rest of the request goes out by itself: the response does not wait for it, nor it for whoever reads the
    /// response. `None`: it has ended.
    Split(ReadHalf<BoxStream>, Option<Rest>),
    /// Only while it is put together again.
    Gone,
}

/// What is left of a request on its way out; the other half of the connection comes back with it.
type Rest = AbortOnDropHandle<(WriteHalf<BoxStream>, Result<(), Cut>)>;

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Whole(io) => Pin::new(io).poll_read(cx, buf),
            Self::Split(io, _) => Pin::new(io).poll_read(cx, buf),
            Self::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl std::fmt::Debug for Http1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Head {
    /// Of a request on its way to `authority`. `upgrade`: the protocol that it asks for.
    pub(super) fn new(request: &Request, authority: &str, upgrade: Option<&str>, body: &RequestBody) -> Self {
        let length = body.size_hint().exact();
        // Of an empty body, the length is said where the method gives a body a meaning (RFC 9110 section 8.6).
        let silent = !matches!(request.method, Method::POST | Method::PUT | Method::PATCH)
            && !request.headers.contains_key(header::CONTENT_LENGTH);
        let ends = match length {
            Some(0) if silent => Ends::AtHead,
            Some(length) => Ends::Length(length),
            None => Ends::Chunked,
        };
        let mut bytes = Vec::with_capacity(HEAD);
        write::request_line(&mut bytes, &request.method, &request.path, request.query.as_deref());
        field(&mut bytes, "host", authority);
        write::fields(&mut bytes, &request.headers, ends);
        field(&mut bytes, "via", headers::via(request.version));
        // `te` concerns this connection (RFC 9110 section 10.1.4).
        let te = request.headers.contains_key(header::TE);
        match upgrade {
            Some(protocol) => {
                field(&mut bytes, "connection", if te { "te, upgrade" } else { "upgrade" });
                field(&mut bytes, "upgrade", protocol);
            }
            None if te => field(&mut bytes, "connection", "te"),
            None => {}
        }
        write::end(&mut bytes, ends);
        Self { bytes, ends, headless: request.method == Method::HEAD }
    }

    /// Of a `GET` that asks whether the endpoint is well.
    pub(super) fn check(path: &str, authority: &str) -> Self {
        let mut bytes = Vec::with_capacity(HEAD);
        write::request_line(&mut bytes, &Method::GET, path, None);
        field(&mut bytes, "host", authority);
        write::end(&mut bytes, Ends::AtHead);
        Self { bytes, ends: Ends::AtHead, headless: false }
    }
}

/// `name` and `value` are well-formed.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    write::field(out, name.as_bytes(), value.as_bytes());
}

impl Http1 {
    /// Responses' heads are within `bounds`.
    pub(super) fn new(io: BoxStream, bounds: Bounds) -> Self {
        Self(Box::new(Exchange {
            io: Io::Whole(io),
            reader: Reader::new(bounds),
            outgoing: Outgoing::done(),
            body: None,
            unsendable: None,
            last: false,
        }))
    }

    /// Whether another request can go over it, as far as is known now: the server has neither ended it nor said
    /// anything unasked.
    pub(super) fn is_ready(&mut self) -> bool {
        let mut byte = [0];
        let read = std::future::poll_fn(|cx| Pin::new(&mut self.0.io).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        // Else a task that has done its share for now would be told to wait, and take that for silence.
        let read = pin!(unconstrained(read));
        read.poll(&mut Context::from_waker(noop_waker_ref())).is_pending()
    }

    /// Sends a request and waits for the response's head.
    ///
    /// Not cancel safe: dropping the future ends the connection.
    pub(super) async fn send(self, head: Head, body: RequestBody) -> Result<(Answer, Box<Exchange>), SendError> {
        // What is whole can be had again, what streams was not touched before anything has gone out.
        let spare = body.duplicate();
        let bodiless = head.ends == Ends::AtHead;
        let mut exchange = self.0;
        exchange.outgoing = Outgoing::new(head.bytes, head.ends, bodiless, spare.is_none());
        exchange.body = Some(body);
        let (headless, mut interim) = (head.headless, 0);
        let received = std::future::poll_fn(|cx| exchange.poll_head(cx, headless, &mut interim)).await;
        match received {
            Ok(answer) => {
                exchange.split();
                Ok((answer, exchange))
            }
            Err(error) => {
                let unsent = !exchange.outgoing.is_begun();
                let unsent = if unsent { spare.or(exchange.body) } else { None };
                Err(SendError { refused: unsent.is_some(), unsent, ..error })
            }
        }
    }
}

impl Exchange {
    /// Moves the request on. An error is its body's.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), BoxError> {
        let (Some(body), Io::Whole(io)) = (&mut self.body, &mut self.io) else { return Ok(()) };
        match self.outgoing.poll(cx, Pin::new(io), Pin::new(body)) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.body = None,
            Poll::Ready(Err(Cut::Body(error))) => return Err(error),
            // The server may have answered before it stopped reading.
            Poll::Ready(Err(Cut::Io(error))) => self.unsendable = Some(error),
        }
        if self.unsendable.is_some() && self.outgoing.is_begun() {
            self.body = None;
        }
        Ok(())
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        headless: bool,
        interim: &mut usize,
    ) -> Poll<Result<Answer, SendError>> {
        if let Err(error) = self.poll_send(cx) {
            return Poll::Ready(Err(SendError::new(error)));
        }
        if !self.outgoing.is_begun()
            && let Some(error) = self.unsendable.take()
        {
            return Poll::Ready(Err(SendError::new(error.into())));
        }
        loop {
            match self.reader.response() {
                Ok(Some(response)) => {
                    if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
                        *interim += 1;
                        if *interim > MOST_INTERIM {
                            let fault = Fault::new(Reason::UpstreamInvalid, "too many interim responses");
                            return Poll::Ready(Err(SendError::invalid(fault)));
                        }
                        continue;
                    }
                    return Poll::Ready(Ok(self.begin(response, headless)));
                }
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Err(SendError::invalid(fault))),
            }
            match ready!(self.reader.poll_read(Pin::new(&mut self.io), cx)) {
                Ok(1..) => {}
                Ok(0) => {
                    let error = self
                        .unsendable
                        .take()
                        .map_or_else(|| BoxError::from("the connection ended before the response did"), BoxError::from);
                    return Poll::Ready(Err(SendError::new(error)));
                }
                Err(error) => return Poll::Ready(Err(SendError::new(error.into()))),
            }
        }
    }

    fn begin(&mut self, response: wire::Response, headless: bool) -> Answer {
        let wire::Response { status, headers, framing, stays } = response;
        let bodiless = headless
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::SWITCHING_PROTOCOLS);
        let framing = if bodiless { Framing::Length(0) } else { framing };
        self.reader.begin(framing);
        self.last = framing == Framing::Unframed || !stays;
        Answer { status, headers }
    }

    /// Sends what is left of the request beside the response.
    fn split(&mut self) {
        let (io, mut body) = match (std::mem::replace(&mut self.io, Io::Gone), self.body.take()) {
            (Io::Whole(io), Some(body)) => (io, body),
            (io, body) => {
                (self.io, self.body) = (io, body);
                return;
            }
        };
        let mut outgoing = std::mem::replace(&mut self.outgoing, Outgoing::done());
        let (reading, mut writing) = tokio::io::split(io);
        let sending = tokio::spawn(async move {
            let send = |cx: &mut Context<'_>| outgoing.poll(cx, Pin::new(&mut writing), Pin::new(&mut body));
            let sent = std::future::poll_fn(send).await;
            (writing, sent)
        });
        self.io = Io::Split(reading, Some(AbortOnDropHandle::new(sending)));
    }

    /// Looks after what is left of the request. Ready when there is nothing any more; an error is its body's.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Io::Split(_, rest) = &mut self.io else { return Poll::Ready(Ok(())) };
        let Some(sending) = rest else { return Poll::Ready(Ok(())) };
        let sent = ready!(Pin::new(sending).poll(cx));
        *rest = None;
        match sent {
            Ok((writing, Ok(()))) => {
                if let Io::Split(reading, _) = std::mem::replace(&mut self.io, Io::Gone) {
                    self.io = Io::Whole(reading.unsplit(writing));
                }
                Poll::Ready(Ok(()))
            }
            Ok((_, Err(Cut::Body(error)))) => Poll::Ready(Err(error)),
            // What the server does not read is its own affair.
            _ => {
                self.last = true;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The next piece of the response's body. The end comes when the request has ended, too.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, BoxError>> {
        let rest = self.poll_rest(cx)?;
        loop {
            let piece = self.reader.body()?;
            if matches!(piece, Piece::End) {
                return rest.map(|()| Ok(Piece::End));
            }
            if !matches!(piece, Piece::More) {
                return Poll::Ready(Ok(piece));
            }
            if ready!(self.reader.poll_read(Pin::new(&mut self.io), cx))? == 0 {
                self.last = true;
                if self.reader.finish() {
                    return Poll::Ready(Ok(Piece::End));
                }
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
        }
    }

    /// Whether the response has come to its end.
    pub(super) fn is_at_end(&self) -> bool {
        self.reader.is_at_end()
    }

    /// Whether the request has, too.
    pub(super) fn is_over(&self) -> bool {
        self.is_at_end() && !matches!(self.io, Io::Split(_, Some(_)))
    }

    /// Whether the request had gone out when the response's head came.
    pub(super) fn is_sent(&self) -> bool {
        self.outgoing.is_done() && matches!(self.io, Io::Whole(_))
    }

    /// How much of the response's body is still to come, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.reader.left()
    }

    /// The connection, for another exchange, if this one is over in both directions and left nothing behind.
    pub(super) fn into_idle(mut self: Box<Self>) -> Option<Http1> {
        let over = self.outgoing.is_done() && self.reader.is_at_end() && self.reader.is_empty() && !self.last;
        if !over || !matches!(self.io, Io::Whole(_)) {
            return None;
        }
        // It sits on no buffer, and knows nothing of what it was used for.
        self.outgoing = Outgoing::done();
        self.body = None;
        self.unsendable = None;
        Some(Http1(self))
    }

    /// The connection, if it has switched protocols, and what has come of the new one.
    pub(super) fn into_switched(mut self) -> Option<(BoxStream, Bytes)> {
        match self.io {
            Io::Whole(io) => Some((io, self.reader.rest())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::coop::poll_proceed;

    use super::*;

    #[tokio::test]
    async fn what_came_unasked_is_seen_however_much_its_task_has_done() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"poison").await.unwrap();
        stream.readable().await.unwrap();
        let mut connection = Http1::new(Box::new(stream), Bounds { bytes: 100, fields: 10, target: 0 });
        let ready = std::future::poll_fn(|cx| {
            while let Poll::Ready(done) = poll_proceed(cx) {
                done.made_progress();
            }
            Poll::Ready(connection.is_ready())
        });
        assert!(!ready.await);
    }
}
