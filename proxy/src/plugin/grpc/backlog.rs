//! Whether a plugin takes what it is sent.
//!
//! What a call sends stays with HTTP/2 until it is written, even when nobody waits for the answer any more. To a plugin
//! that reads nothing and says that it takes any number of calls, each call would add to that, without end. So no call is
//! sent while something is still to be written: at most those are kept that were under way when the plugin ceased to read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use palisade_supervisor::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What HTTP/2 could not write yet.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    exists: AtomicBool,
    waits: AtomicWaker,
}

impl Backlog {
    /// Ready when there is none, or no connection any more. For one waiter at a time.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.exists.load(Ordering::Acquire) {
            self.waits.register(cx.waker());
            if self.exists.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    fn note(&self, exists: bool) {
        if self.exists.load(Ordering::Relaxed) != exists {
            self.exists.store(exists, Ordering::Release);
            self.waits.wake();
        }
    }
}

/// A connection that notes its backlog.
pub(super) struct Noted {
    pub(super) stream: Box<dyn Stream>,
    pub(super) backlog: Arc<Backlog>,
}

impl Noted {
    fn noted<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.backlog.note(written.is_pending());
        written
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.backlog.note(false);
    }
}

impl AsyncRead for Noted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
