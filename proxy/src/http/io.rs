//! A client's connection: told apart by its first bytes; one of HTTP/2 is read along as hyper gets it, and bounded in
//! time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::activity::{Activity, Closed};
use super::frames::Frames;
use super::wire::Fault;

/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of requests' heads that are taken over at a time. Compressed, they may be a hundredth of what they take up: so
/// those that came are judged before more come.
const HEADS: usize = 4 * 1024;

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the first bytes tell the protocol: the first one within `idle`, the others within `head`. They are kept,
/// to be read again. `None`: the connection broke. The error is the limit that it has passed.
///
/// Not cancel safe: bytes that were read are lost.
pub(super) async fn sniff<I: AsyncRead + Unpin>(
    io: &mut I,
    idle: Duration,
    head: Duration,
) -> Result<Option<(Protocol, Vec<u8>)>, Closed> {
    let mut seen = Vec::with_capacity(PREFACE.len());
    let mut deadline = Instant::now() + idle;
    while seen.len() < PREFACE.len() {
        let mut chunk = [0; PREFACE.len()];
        let read = tokio::time::timeout_at(deadline, io.read(&mut chunk[seen.len()..])).await;
        let late = if seen.is_empty() { Closed::FirstByte } else { Closed::Header };
        let Ok(count) = read.map_err(|_| late)? else { return Ok(None) };
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
    Ok(Some((protocol, seen)))
}

/// A connection of HTTP/2 that is read along: whatever is no body comes in time, and there are few glitches.
pub(super) struct Guarded<I> {
    io: I,
    activity: Activity,
    frames: Frames,
    /// The connection's first bytes, which were read to tell its protocol.
    seen: Vec<u8>,
    /// Bounds what is no body.
    timeout: Duration,
    /// Runs while a frame is there in part, or a head.
    timer: Option<Pin<Box<Sleep>>>,
    /// Which one: the next may have begun already.
    timed: u64,
    /// In which turn of its task enough of heads had come.
    enough: Option<u64>,
}

impl<I> Guarded<I> {
    /// `seen` are the connection's first bytes. Whatever is no body comes within `timeout`, and there are no more than
    /// so many glitches.
    pub(super) fn new(io: I, seen: Vec<u8>, activity: Activity, most_glitches: u32, timeout: Duration) -> Self {
        if !seen.is_empty() {
            activity.hear();
        }
        Self { io, activity, frames: Frames::new(most_glitches), seen, timeout, timer: None, timed: 0, enough: None }
    }

    /// Looks at what came.
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.frames.pass(bytes).map_err(|glitches| {
            self.activity.close_for(Closed::Glitches);
            io::Error::new(io::ErrorKind::InvalidData, glitches)
        })
    }

    /// Whether more is read only once the task has been at work again, on what came so far.
    fn has_enough(&mut self, cx: &Context<'_>) -> bool {
        if self.frames.heads() < HEADS {
            return false;
        }
        let turn = self.activity.turn();
        match self.enough {
            None => {
                self.enough = Some(turn);
                cx.waker().wake_by_ref();
            }
            Some(before) if before == turn => {}
            Some(_) => {
                self.enough = None;
                self.frames.forget_heads();
            }
        }
        self.enough.is_some()
    }

    /// Bounds the time that a head takes.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.frames.is_amid() {
            self.timer = None;
            return Ok(());
        }
        let whole = self.frames.whole();
        if std::mem::replace(&mut self.timed, whole) != whole {
            self.timer = None;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.timeout)));
        if timer.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        self.timer = None;
        self.activity.close_for(Closed::Header);
        Err(io::Error::new(io::ErrorKind::InvalidData, Fault::late()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.seen.is_empty() {
            let count = this.seen.len().min(buf.remaining());
            let rest = this.seen.split_off(count);
            let seen = std::mem::replace(&mut this.seen, rest);
            buf.put_slice(&seen);
            this.look(&seen)?;
            return Poll::Ready(Ok(()));
        }
        if this.has_enough(cx) {
            return Poll::Pending;
        }
        this.watch(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if !new.is_empty() {
            this.activity.hear();
            this.look(new)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.activity.written(written.is_ready());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.activity.written(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has handed over all that it had; TLS takes more than the socket has room for.
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.activity.written(flushed.is_ready());
        flushed
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
                let (protocol, seen) = sniff(&mut server, LONG, LONG).await.unwrap().unwrap();
                assert_eq!(protocol, expected, "{sent:?} by {size}");
                let mut all = seen;
                server.read_to_end(&mut all).await.unwrap();
                sender.await.unwrap();
                assert_eq!(all, sent);
            }
        }
    }
}
