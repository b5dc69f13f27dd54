//! What one connection is doing: whether it may be ended, and whether its client still takes what it asked for.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::Instant;

/// Shared by everything that works for one connection.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Counters>);

/// Times are milliseconds since `start`.
#[derive(Debug)]
struct Counters {
    start: Instant,
    /// Requests in flight: from their head until the last piece of the response has been taken over.
    count: AtomicUsize,
    /// Requests that were ever begun.
    begun: AtomicU64,
    /// When the last request ended.
    ended: AtomicU64,
    /// Responses of which a piece was taken over and none was asked for since.
    unread: AtomicUsize,
    /// Pieces of responses that were taken over and not yet written.
    held: AtomicUsize,
    /// When a piece of any response was last asked for, or written in part.
    asked: AtomicU64,
    /// Whether the socket has no room.
    blocked: AtomicBool,
    /// When the socket last took something.
    wrote: AtomicU64,
    /// Whether any byte has come.
    heard: AtomicBool,
    /// Estimated bytes of the headers of requests in flight.
    headers: AtomicUsize,
    /// How often its task has been at work.
    turns: AtomicU64,
    /// Set once the connection is to end for a limit's sake.
    closed: OnceLock<Closed>,
}

/// Why a connection was closed by the proxy though its client had not asked for it: each is a limit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// `tls_handshake_timeout`
    TlsHandshake,
    /// `first_byte_timeout`
    FirstByte,
    /// `header_timeout`
    Header,
    /// `idle_timeout`
    Idle,
    /// `body_idle_timeout`, of a client that reads nothing.
    Unread,
    /// `max_glitches`
    Glitches,
    /// `max_requests`
    Requests,
    /// `overload`
    Overload,
    /// No file descriptor was left.
    Descriptors,
    /// It speaks another protocol.
    NotHttp,
}

impl Closed {
    /// As metrics call it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TlsHandshake => "tls_handshake_timeout",
            Self::FirstByte => "first_byte_timeout",
            Self::Header => "header_timeout",
            Self::Idle => "idle_timeout",
            Self::Unread => "body_idle_timeout",
            Self::Glitches => "max_glitches",
            Self::Requests => "max_requests",
            Self::Overload => "overload",
            Self::Descriptors => "descriptors",
            Self::NotHttp => "not_http",
        }
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// The socket has had no room since then.
    Blocked(Instant),
    /// There is room, and the client has let no response go on since then (HTTP/2 has windows of its own).
    Unread(Instant),
    /// Somebody works on a request.
    Working,
    /// Nothing was asked since then.
    Idle(Instant),
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Counters {
            start: Instant::now(),
            count: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            unread: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            wrote: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            headers: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
            closed: OnceLock::new(),
        }))
    }

    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Estimated bytes of the headers of requests in flight.
    pub(super) fn headers(&self) -> usize {
        self.0.headers.load(Ordering::Relaxed)
    }

    /// The connection's task is at work once more.
    pub(super) fn next_turn(&self) {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has been.
    pub(super) fn turn(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }

    /// A byte has come.
    pub(super) fn hear(&self) {
        self.0.heard.store(true, Ordering::Relaxed);
    }

    /// Whether any byte has come.
    pub(super) fn heard(&self) -> bool {
        self.0.heard.load(Ordering::Relaxed)
    }

    /// The connection ends for this.
    pub(super) fn close_for(&self, reason: Closed) {
        self.0.closed.set(reason).ok();
    }

    /// Why the connection ends, if that is a limit's doing.
    pub(super) fn closed(&self) -> Option<Closed> {
        self.0.closed.get().copied()
    }

    /// Requests that were ever begun.
    pub(super) fn begun(&self) -> u64 {
        self.0.begun.load(Ordering::Relaxed)
    }

    pub(super) fn doing(&self) -> Doing {
        let at = |time: &AtomicU64| self.0.start + Duration::from_millis(time.load(Ordering::Relaxed));
        let count = self.count();
        if self.0.blocked.load(Ordering::Relaxed) {
            Doing::Blocked(at(&self.0.wrote))
        } else if count == 0 && self.0.held.load(Ordering::Relaxed) == 0 {
            Doing::Idle(at(&self.0.ended))
        } else if self.0.unread.load(Ordering::Relaxed) >= count {
            Doing::Unread(at(&self.0.asked))
        } else {
            Doing::Working
        }
    }

    /// Whether the socket had room for what was to be written or flushed.
    pub(super) fn written(&self, room: bool) {
        if room {
            self.0.blocked.store(false, Ordering::Relaxed);
        } else if !self.0.blocked.swap(true, Ordering::Relaxed) {
            self.0.mark(&self.0.wrote);
        }
    }

    /// Counts one more request with so many bytes of headers, for as long as the guard lives.
    pub(super) fn begin(&self, headers: usize) -> InFlight {
        self.0.headers.fetch_add(headers, Ordering::Relaxed);
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        InFlight { activity: self.clone(), headers, unread: false }
    }
}

impl Counters {
    fn mark(&self, time: &AtomicU64) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        time.fetch_max(now, Ordering::Relaxed);
    }
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Activity,
    headers: usize,
    unread: bool,
}

impl InFlight {
    /// Another piece of its response is asked for.
    pub(super) fn asked(&mut self) {
        let counters = &self.activity.0;
        counters.mark(&counters.asked);
        if std::mem::take(&mut self.unread) {
            counters.unread.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A piece of its response was taken over.
    pub(super) fn taken(&mut self, bytes: Bytes) -> Piece {
        if !std::mem::replace(&mut self.unread, true) {
            self.activity.0.unread.fetch_add(1, Ordering::Relaxed);
        }
        self.activity.0.held.fetch_add(1, Ordering::Relaxed);
        Piece { bytes, activity: self.activity.clone() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let counters = &self.activity.0;
        if self.unread {
            counters.unread.fetch_sub(1, Ordering::Relaxed);
        }
        counters.mark(&counters.ended);
        counters.headers.fetch_sub(self.headers, Ordering::Relaxed);
        counters.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of a response's body that knows when it has been written: hyper takes over more than a client lets it send.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    activity: Activity,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.activity.0.mark(&self.activity.0.asked);
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        self.activity.0.mark(&self.activity.0.asked);
        self.bytes.copy_to_bytes(count)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let counters = &self.activity.0;
        counters.mark(&counters.ended);
        counters.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_does() {
        let activity = Activity::new();
        assert!(matches!(activity.doing(), Doing::Idle(_)));
        let mut one = activity.begin(10);
        let mut other = activity.begin(10);
        assert_eq!(activity.doing(), Doing::Working);
        let mut first = one.taken(Bytes::from_static(b"first"));
        assert_eq!(activity.doing(), Doing::Working);
        let second = other.taken(Bytes::from_static(b"second"));
        assert!(matches!(activity.doing(), Doing::Unread(_)));
        one.asked();
        assert_eq!(activity.doing(), Doing::Working);
        drop(one);
        assert!(matches!(activity.doing(), Doing::Unread(_)));
        drop(other);
        drop(second);
        first.advance(4);
        assert!(matches!(activity.doing(), Doing::Unread(_)), "a piece is not written yet");
        drop(first);
        assert!(matches!(activity.doing(), Doing::Idle(_)));
        activity.written(false);
        assert!(matches!(activity.doing(), Doing::Blocked(_)));
        activity.written(true);
        assert!(matches!(activity.doing(), Doing::Idle(_)));
        assert_eq!((activity.count(), activity.begun()), (0, 2));
    }
}
