//! A client's connection as hyper sees it: told apart by its first bytes, bounded while a request's head comes in.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::activity::Activity;

/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the first bytes tell the protocol: the first one within `idle`, the others within `head`. They are kept,
/// to be read again.
///
/// Not cancel safe: bytes that were read are lost.
pub(super) async fn sniff<I: AsyncRead + Unpin>(
    io: &mut I,
    idle: Duration,
    head: Duration,
) -> io::Result<(Protocol, Vec<u8>)> {
    let mut seen = Vec::with_capacity(PREFACE.len());
    let mut deadline = Instant::now() + idle;
    while seen.len() < PREFACE.len() {
        let mut chunk = [0; PREFACE.len()];
        let count = tokio::time::timeout_at(deadline, io.read(&mut chunk[seen.len()..])).await??;
        if count == 0 {
            break;
        }
        if seen.is_empty() {
            deadline = Instant::now() + head;
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
    activity: Activity,
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
    pub(super) fn new(io: I, seen: Vec<u8>, activity: Activity, head_timeout: Option<Duration>) -> Self {
        Self { io, seen, given: 0, activity, head_timeout, head_timer: None, refuse: None, answered: 0, refusal: None }
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
        if self.activity.is_switched() || self.activity.count() > 0 || self.activity.begun() != self.answered {
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
        if this.activity.count() > 0 || this.activity.is_switched() {
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
            && this.activity.count() == 0
            && !this.activity.is_switched()
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
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.activity.written(written.is_ready());
        written
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
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.activity.written(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has handed over all that it had.
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        // TLS takes more than the socket has room for.
        self.activity.written(flushed.is_ready());
        ready!(flushed)?;
        if self.activity.count() == 0 {
            self.answered = self.activity.begun();
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

    const LONG: Duration = Duration::from_secs(60);

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
                let (protocol, seen) = sniff(&mut server, LONG, LONG).await.unwrap();
                assert_eq!(protocol, expected, "{sent:?} by {size}");
                let mut all = Vec::new();
                Guarded::new(server, seen, Activity::new(), None).read_to_end(&mut all).await.unwrap();
                sender.await.unwrap();
                assert_eq!(all, sent);
            }
        }
    }

    #[tokio::test]
    async fn only_what_answers_no_request_is_replaced() {
        let (mut client, server) = duplex(1024);
        let activity = Activity::new();
        let refuse = |status: StatusCode| format!("refused with {}", status.as_u16()).into_bytes();
        let mut server = Guarded::new(server, Vec::new(), activity.clone(), None).refusing(Box::new(refuse));
        let bare = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        // An answer whose body has ended before anything of it is written.
        drop(activity.begin());
        server.write_all(bare).await.unwrap();
        server.flush().await.unwrap();
        let guard = activity.begin();
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
        let mut server = Guarded::new(server, Vec::new(), Activity::new(), Some(Duration::from_secs(10)));
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
