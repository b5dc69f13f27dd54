//! A client's connection as hyper sees it: told apart by its first bytes, bounded while a request's head comes in.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

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
    start: Instant,
    /// Milliseconds from `start` to the end of the last request.
    ended: AtomicU64,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self(Arc::new(Counters { count: AtomicUsize::new(0), start: Instant::now(), ended: AtomicU64::new(0) }))
    }

    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// When the last request ended, or the connection began.
    pub(super) fn idle_since(&self) -> Instant {
        self.0.start + Duration::from_millis(self.0.ended.load(Ordering::Relaxed))
    }

    /// Counts one more, for as long as the guard lives.
    pub(super) fn begin(&self) -> InFlightGuard {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(self.clone())
    }
}

#[derive(Debug)]
pub(super) struct InFlightGuard(InFlight);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let counters = &self.0.0;
        let now = u64::try_from(counters.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        counters.ended.store(now, Ordering::Relaxed);
        counters.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection whose first bytes were read already, and whose requests' heads must come in time.
#[derive(Debug)]
pub(super) struct Guarded<I> {
    io: I,
    seen: Vec<u8>,
    given: usize,
    in_flight: InFlight,
    head_timeout: Option<Duration>,
    /// Runs from the first byte of a head until a request is in flight.
    head_timer: Option<Pin<Box<Sleep>>>,
}

impl<I> Guarded<I> {
    /// `head_timeout`: bounds each head; `None` where heads can't be told from other traffic (HTTP/2).
    pub(super) fn new(io: I, seen: Vec<u8>, in_flight: InFlight, head_timeout: Option<Duration>) -> Self {
        Self { io, seen, given: 0, in_flight, head_timeout, head_timer: None }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.in_flight.count() > 0 {
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
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
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
