//! A client's connection as hyper sees it: told apart by its first bytes, each request read along and bounded in time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::activity::{Activity, Closed};
use super::frames::Frames;
use super::wire::{Bounds, Fault, Framer, Passed, Side};
use crate::respond::Reason;

/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that may wait for the answer to a request to switch protocols.
const MOST_HELD: usize = 64 * 1024;

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

/// Makes the whole reply to a head that could not be read, from why it was not let through, or else from the status that
/// hyper has chosen for it.
pub(super) type Refuse = Box<dyn Fn(Result<Fault, StatusCode>) -> Vec<u8> + Send>;

/// What hyper gets in place of a head that is refused: it can't be parsed either, so hyper answers in its turn, behind
/// the answers to what came before, and reads no more.
const UNREADABLE: &[u8] = b"\0\r\n\r\n";

/// A connection whose requests' heads were read strictly, and came in time, before hyper gets them.
///
/// Heads that are refused never become requests: hyper answers them itself, with a bare status. It is told from
/// answers to requests by what it comes after, exactly: nothing is in flight, and everything before it was flushed.
/// [`Refuse`] says what goes out in its place.
pub(super) struct Guarded<I> {
    io: I,
    activity: Activity,
    /// Reads HTTP/1 along.
    framer: Option<Framer>,
    /// Reads HTTP/2 along.
    frames: Option<Frames>,
    /// Read, and not handed on.
    pending: Vec<u8>,
    /// How much of it was handed on.
    given: usize,
    /// How much of what is left was judged and may be handed on.
    judged: usize,
    /// Whether the rest has something that was not looked at.
    unseen: bool,
    /// Why nothing more may be handed on.
    fault: Option<Fault>,
    /// Whether hyper got to know.
    told: bool,
    /// Bounds each head.
    head_timeout: Option<Duration>,
    /// Runs while a head is there in part.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Which one, in HTTP/2, where the next may have begun already.
    timed: u64,
    refuse: Option<Refuse>,
    /// Requests whose answers have been written and flushed.
    answered: u64,
    /// What is written instead of a refusal, and how much of it was.
    refusal: Option<(Vec<u8>, usize)>,
}

impl<I> Guarded<I> {
    /// `seen` are the connection's first bytes.
    pub(super) fn new(io: I, seen: Vec<u8>, activity: Activity) -> Self {
        if !seen.is_empty() {
            activity.hear();
        }
        Self {
            io,
            activity,
            framer: None,
            frames: None,
            judged: seen.len(),
            pending: seen,
            given: 0,
            unseen: false,
            fault: None,
            told: false,
            head_timeout: None,
            head_timer: None,
            timed: 0,
            refuse: None,
            answered: 0,
            refusal: None,
        }
    }

    /// Reads HTTP/1 along: each head is within `bounds` and comes within `timeout`, else `refuse` makes the answer.
    pub(super) fn framed(self, bounds: Bounds, timeout: Duration, refuse: Refuse) -> Self {
        let framer = Framer::new(Side::Client, bounds);
        Self {
            framer: Some(framer),
            judged: 0,
            unseen: true,
            head_timeout: Some(timeout),
            refuse: Some(refuse),
            ..self
        }
    }

    /// Reads HTTP/2 along: whatever is no body comes within `timeout`, and there are no more than so many glitches.
    pub(super) fn counted(self, most_glitches: u32, timeout: Duration) -> Self {
        let frames = Some(Frames::new(most_glitches));
        // Its first bytes are looked at like the rest.
        Self { frames, judged: 0, unseen: true, head_timeout: Some(timeout), ..self }
    }

    /// Looks at what goes on in HTTP/2.
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.frames.as_mut().map(|frames| frames.pass(bytes)) {
            Some(Err(glitches)) => {
                self.activity.close_for(Closed::Glitches);
                Err(io::Error::new(io::ErrorKind::InvalidData, glitches))
            }
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Judges what came, which is in `pending`.
    fn judge(&mut self) {
        let rest = &self.pending[self.given + self.judged..];
        let passed = self.framer.as_mut().map_or(Passed::Some(rest.len()), |framer| framer.pass(rest));
        self.unseen = false;
        self.judged += self.note(passed);
    }

    /// Keeps why no more may be handed on, if so. Returns how much may.
    fn note(&mut self, passed: Passed) -> usize {
        match passed {
            Passed::Some(count) | Passed::Held(count) => count,
            Passed::Fault(count, fault) => {
                self.fault = Some(fault);
                count
            }
        }
    }

    /// Hands on what may be. Whether there was anything.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        if self.judged == 0 && self.unseen {
            self.judge();
            let seen = std::mem::take(&mut self.pending);
            self.look(&seen)?;
            self.pending = seen;
        }
        if self.judged > 0 {
            let count = self.judged.min(buf.remaining());
            buf.put_slice(&self.pending[self.given..self.given + count]);
            self.given += count;
            self.judged -= count;
            if self.given == self.pending.len() {
                self.pending = Vec::new();
                self.given = 0;
            } else if self.judged == 0 {
                self.pending.drain(..self.given);
                self.given = 0;
            }
            return Ok(true);
        }
        match self.fault {
            // Within a body, or in HTTP/2: whoever reads it learns that there is no more.
            Some(fault) if fault.reason == Reason::BadBody || self.frames.is_some() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, fault))
            }
            Some(fault) => {
                // Another protocol has no use for an answer of this one: hyper sees the end.
                let foreign = fault.is_foreign() && self.framer.as_ref().is_some_and(|framer| framer.heads() == 0);
                if foreign {
                    self.activity.close_for(Closed::NotHttp);
                }
                if !std::mem::replace(&mut self.told, true) && !foreign {
                    buf.put_slice(UNREADABLE);
                }
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Decides what follows a request to switch protocols, once it is known what came of it.
    fn decide(&mut self) -> io::Result<()> {
        let Some(framer) = self.framer.as_mut().filter(|framer| framer.is_undecided()) else { return Ok(()) };
        if self.activity.is_switched() {
            // Nobody knew then that it would not be read as a request.
            if self.pending.len() > self.given + self.judged {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes before the protocol was switched"));
            }
            framer.switch();
        } else if self.activity.count() == 0 && self.activity.begun() >= framer.heads() {
            framer.go_on();
            self.unseen = true;
        }
        Ok(())
    }

    /// Whether a head is there in part, and nothing else is being worked on.
    fn awaits_head(&self) -> bool {
        if let Some(frames) = &self.frames {
            return frames.is_amid();
        }
        self.framer.as_ref().is_some_and(Framer::is_at_head)
            && self.pending.len() > self.given + self.judged
            && self.activity.count() == 0
    }

    /// Bounds the time that a head takes.
    fn watch_head(&mut self, cx: &mut Context<'_>) {
        let Some(timeout) = self.head_timeout.filter(|_| self.fault.is_none() && self.awaits_head()) else {
            self.head_timer = None;
            return;
        };
        let whole = self.frames.as_ref().map_or(0, Frames::whole);
        if std::mem::replace(&mut self.timed, whole) != whole {
            self.head_timer = None;
        }
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if timer.as_mut().poll(cx).is_ready() {
            self.head_timer = None;
            self.activity.close_for(Closed::Header);
            self.fault = Some(Fault::late());
        }
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
        self.refusal = Some((refuse(self.fault.ok_or(status)), 0));
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
        if !this.pending.is_empty() {
            this.activity.wait(cx);
        }
        this.decide()?;
        loop {
            if this.hand_on(buf)? {
                return Poll::Ready(Ok(()));
            }
            this.watch_head(cx);
            if this.fault.is_some() {
                continue;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let new = &buf.filled()[before..];
            if new.is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.activity.hear();
            this.look(new)?;
            if this.pending.is_empty() {
                // What is whole goes on where it is.
                let passed = this.framer.as_mut().map_or(Passed::Some(new.len()), |framer| framer.pass(new));
                let count = this.note(passed);
                let new = &buf.filled()[before..];
                this.pending.extend_from_slice(&new[count..]);
                buf.set_filled(before + count);
                if count > 0 {
                    return Poll::Ready(Ok(()));
                }
                this.activity.wait(cx);
            } else {
                this.pending.extend_from_slice(new);
                buf.set_filled(before);
                // A head has its own bound; what waits behind a request to switch protocols needs one, too.
                let undecided = this.framer.as_ref().is_some_and(Framer::is_undecided);
                if undecided && this.pending.len() > MOST_HELD {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too much before the answer")));
                }
                this.unseen = true;
            }
        }
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

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 10, target: 100 };

    fn framed(server: DuplexStream, activity: &Activity) -> Guarded<DuplexStream> {
        let refuse = |why: Result<Fault, StatusCode>| match why {
            Ok(fault) => format!("refused for {}", fault.reason).into_bytes(),
            Err(status) => format!("refused with {}", status.as_u16()).into_bytes(),
        };
        Guarded::new(server, Vec::new(), activity.clone()).framed(BOUNDS, Duration::from_secs(10), Box::new(refuse))
    }

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
                Guarded::new(server, seen, Activity::new()).read_to_end(&mut all).await.unwrap();
                sender.await.unwrap();
                assert_eq!(all, sent);
            }
        }
    }

    #[tokio::test]
    async fn only_what_answers_no_request_is_replaced() {
        let (mut client, server) = duplex(1024);
        let activity = Activity::new();
        let mut server = framed(server, &activity);
        let bare = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        // An answer whose body has ended before anything of it is written.
        drop(activity.begin(0));
        server.write_all(bare).await.unwrap();
        server.flush().await.unwrap();
        let guard = activity.begin(0);
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
        let mut server = framed(server, &Activity::new());
        let reader = tokio::spawn(async move {
            let mut first = [0; 64];
            let count = server.read(&mut first).await.unwrap();
            first[..count].to_vec()
        });
        let started = tokio::time::Instant::now();
        while client.write_all(b"x").await.is_ok() && !reader.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(reader.await.unwrap(), UNREADABLE);
        assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    }
}
