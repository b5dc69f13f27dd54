//! A client's connection as hyper sees it: told apart by its first bytes, bounded while a request's head comes in.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the first bytes tell the protocol. They are kept, to be read again.
///
/// Not cancel safe: bytes that were read are lost.
pub(super) async fn sniff<I: AsyncRead + Unpin>(io: &mut I) -> io::Result<(Protocol, Vec<u8>)> {
    let mut seen = Vec::with_capacity(PREFACE.len());
    while seen.len() < PREFACE.len() {
        let mut chunk = [0; PREFACE.len()];
        let count = io.read(&mut chunk[seen.len()..]).await?;
        if count == 0 {
            break;
        }
        let from = seen.len();
        seen.extend_from_slice(&chunk[from..from + count]);
        if seen != PREFACE[..seen.len()] {
            break;
        }
    }
    let protocol = if seen == PREFACE { Protocol::Http2 } else { Protocol::Http1 };
    Ok((protocol, seen))
}

/// How many requests a connection works on, and when the last one ended.
#[derive(Debug, Clone)]
pub(super) struct InFlight(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    count: AtomicUsize,
    /// Requests that were ever begun.
    begun: AtomicU64,
    start: Instant,
    /// Milliseconds from `start` to the end of the last request.
    ended: AtomicU64,
    /// Responses of which a piece was taken over and none was asked for since: the client does not read on.
    unread: AtomicUsize,
    /// Milliseconds from `start` to when a piece of any response was last asked for.
    asked: AtomicU64,
    /// Set when the connection has switched protocols.
    switched: AtomicBool,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self(Arc::new(Counters {
            count: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            start: Instant::now(),
            ended: AtomicU64::new(0),
            unread: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            switched: AtomicBool::new(false),
        }))
    }

    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    fn begun(&self) -> u64 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// When the last request ended, or the connection began.
    pub(super) fn idle_since(&self) -> Instant {
        self.0.start + Duration::from_millis(self.0.ended.load(Ordering::Relaxed))
    }

    /// Since when the client has read nothing of any response, if it has not read all of what is there for it.
    pub(super) fn unread_since(&self) -> Option<Instant> {
        let count = self.count();
        let unread = count > 0 && self.0.unread.load(Ordering::Relaxed) >= count;
        unread.then(|| self.0.start + Duration::from_millis(self.0.asked.load(Ordering::Relaxed)))
    }

    /// From now on this is no HTTP connection.
    pub(super) fn switch(&self) {
        self.0.switched.store(true, Ordering::Relaxed);
    }

    fn is_switched(&self) -> bool {
        self.0.switched.load(Ordering::Relaxed)
    }

    /// Counts one more, for as long as the guard lives.
    pub(super) fn begin(&self) -> InFlightGuard {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        InFlightGuard { in_flight: self.clone(), unread: false }
    }
}

impl Counters {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct InFlightGuard {
    in_flight: InFlight,
    unread: bool,
}

impl InFlightGuard {
    /// Another piece of its response is asked for.
    pub(super) fn asked(&mut self) {
        let counters = &self.in_flight.0;
        counters.asked.fetch_max(counters.now(), Ordering::Relaxed);
        if std::mem::take(&mut self.unread) {
            counters.unread.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A piece of its response was taken over.
    pub(super) fn taken(&mut self) {
        self.unread = true;
        self.in_flight.0.unread.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let counters = &self.in_flight.0;
        if self.unread {
            counters.unread.fetch_sub(1, Ordering::Relaxed);
        }
        counters.ended.store(counters.now(), Ordering::Relaxed);
        counters.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes the whole reply to a head that could not be parsed, from the status that was chosen for it.
pub(super) type Refuse = Box<dyn Fn(StatusCode) -> Vec<u8> + Send>;

/// A connection whose first bytes were read already, and whose requests' heads must come in time.
///
/// Heads that can't be parsed never become requests: hyper answers them itself, with a bare status. It is told from
/// answers to requests by what it comes after, exactly: nothing is in flight, and everything before it was flushed.
/// [`Refuse`] says what goes out in its place.
pub(super) struct Guarded<I> {
    io: I,
    seen: Vec<u8>,
    given: usize,
    in_flight: InFlight,
    head_timeout: Option<Duration>,
    /// Runs from the first byte of a head until a request is in flight.
    head_timer: Option<Pin<Box<Sleep>>>,
    refuse: Option<Refuse>,
    /// Requests whose answers have been written and flushed.
    answered: u64,
    /// What is written instead of a refusal, and how much of it was.
    refusal: Option<(Vec<u8>, usize)>,
}

impl<I> Guarded<I> {
    /// `head_timeout`: bounds each head; `None` where heads can't be told from other traffic (HTTP/2).
    pub(super) fn new(io: I, seen: Vec<u8>, in_flight: InFlight, head_timeout: Option<Duration>) -> Self {
        Self { io, seen, given: 0, in_flight, head_timeout, head_timer: None, refuse: None, answered: 0, refusal: None }
    }

    /// Has hyper's own answers replaced.
    pub(super) fn refusing(self, refuse: Refuse) -> Self {
        Self { refuse: Some(refuse), ..self }
    }
}

impl<I: AsyncWrite + Unpin> Guarded<I> {
    /// Whether what is written now is a refusal; prepares it.
    fn refuses(&mut self, head: &[u8]) -> bool {
        if self.refusal.is_some() {
            return true;
        }
        if self.in_flight.is_switched() || self.in_flight.count() > 0 || self.in_flight.begun() != self.answered {
            return false;
        }
        let Some(refuse) = &self.refuse else { return false };
        let status = head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let Some(status) = status.and_then(|status| StatusCode::from_bytes(status).ok()) else { return false };
        self.refusal = Some((refuse(status), 0));
        true
    }

    /// Writes the refusal; ready when all of it is out.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, written)) = &mut self.refusal {
            let rest = &bytes[*written..];
            if rest.is_empty() {
                self.refusal = None;
                break;
            }
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *written += count,
            }
        }
        // Nothing is refused twice: the connection ends with it.
        self.refuse = None;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.in_flight.count() > 0 || this.in_flight.is_switched() {
            this.head_timer = None;
        }
        // Before bytes are taken: a head that drips in is late all the same.
        if this.head_timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the request's head did not arrive in time",
            )));
        }
        let before = buf.filled().len();
        if this.given < this.seen.len() {
            let rest = &this.seen[this.given..];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            this.given += count;
            if this.given == this.seen.len() {
                this.seen = Vec::new();
                this.given = 0;
            }
        } else {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        }
        if let Some(timeout) = this.head_timeout
            && this.head_timer.is_none()
            && this.in_flight.count() == 0
            && !this.in_flight.is_switched()
            && buf.filled().len() > before
        {
            // Polled, and so armed, by the read that follows.
            this.head_timer = Some(Box::pin(tokio::time::sleep(timeout)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.refuses(buf) {
            ready!(self.poll_refusal(cx))?;
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.refuses(bufs.iter().find(|buf| !buf.is_empty()).map_or(&[], |buf| &**buf)) {
            ready!(self.poll_refusal(cx))?;
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has handed over all that it had.
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if self.in_flight.count() == 0 {
            self.answered = self.in_flight.begun();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_tell_the_protocol_however_they_are_cut() {
        for (sent, expected) in [
            (PREFACE, Protocol::Http2),
            (b"PRI * HTTP/1.1\r\n\r\n", Protocol::Http1),
            (b"GET / HTTP/1.1\r\n\r\n", Protocol::Http1),
            (b"PRI", Protocol::Http1),
            (b"", Protocol::Http1),
        ] {
            for size in [1, 7, 64] {
                let (mut client, server) = duplex(64);
                let sender = tokio::spawn(async move {
                    for piece in sent.chunks(size) {
                        // A server that knows enough stops reading.
                        if client.write_all(piece).await.is_err() {
                            break;
                        }
                    }
                });
                let mut server = server;
                let (protocol, seen) = sniff(&mut server).await.unwrap();
                assert_eq!(protocol, expected, "{sent:?} by {size}");
                let mut all = Vec::new();
                Guarded::new(server, seen, InFlight::new(), None).read_to_end(&mut all).await.unwrap();
                sender.await.unwrap();
                assert_eq!(all, sent);
            }
        }
    }

    #[tokio::test]
    async fn only_what_answers_no_request_is_replaced() {
        let (mut client, server) = duplex(1024);
        let in_flight = InFlight::new();
        let refuse = |status: StatusCode| format!("refused with {}", status.as_u16()).into_bytes();
        let mut server = Guarded::new(server, Vec::new(), in_flight.clone(), None).refusing(Box::new(refuse));
        let bare = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        // An answer whose body has ended before anything of it is written.
        drop(in_flight.begin());
        server.write_all(bare).await.unwrap();
        server.flush().await.unwrap();
        let guard = in_flight.begin();
        server.write_all(bare).await.unwrap();
        server.flush().await.unwrap();
        drop(guard);
        server.write_all(bare).await.unwrap();
        server.flush().await.unwrap();
        server.write_all(bare).await.unwrap();
        server.flush().await.unwrap();
        drop(server);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [&bare.repeat(3)[..], b"refused with 400"].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_in_is_late() {
        let (mut client, server) = duplex(64);
        let mut server = Guarded::new(server, Vec::new(), InFlight::new(), Some(Duration::from_secs(10)));
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap_err().kind()
        });
        let started = tokio::time::Instant::now();
        while client.write_all(b"x").await.is_ok() && !reader.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(reader.await.unwrap(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    }
}
