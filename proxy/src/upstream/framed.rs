//! A connection to a server of HTTP/1.1 whose responses are read along, strictly: see [`crate::http::wire`].
//!
//! What can be read in two ways, or comes without having been asked for, ends the connection. So no client ever gets a
//! part of what was meant for another one.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::wire::{Bounds, Fault, Framer, Passed, Side};

/// What is known about a connection's exchanges by those who send on it and those who read from it.
#[derive(Debug, Clone)]
pub(super) struct Exchanges(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    framer: Framer,
    fault: Option<Fault>,
}

impl Exchanges {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Mutex::new(Known { framer: Framer::new(Side::Server, bounds), fault: None })))
    }

    /// A request is sent now. `headless`: its response has no body, whatever the response says.
    pub(super) fn expect(&self, headless: bool) {
        self.known().framer.expect(headless);
    }

    /// Whether the last response has come whole, with nothing behind it.
    pub(super) fn is_done(&self) -> bool {
        self.known().framer.is_done()
    }

    /// What the server did wrong.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.known().fault
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in a critical section panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is read along.
pub(super) struct Framed<I> {
    io: I,
    exchanges: Exchanges,
    /// A head that is not whole yet.
    pending: Vec<u8>,
    /// How much of `pending` was judged and may be handed on.
    judged: usize,
}

impl<I> Framed<I> {
    pub(super) fn new(io: I, exchanges: Exchanges) -> Self {
        Self { io, exchanges, pending: Vec::new(), judged: 0 }
    }

    fn judge(&self, bytes: &[u8]) -> usize {
        let mut known = self.exchanges.known();
        match known.framer.pass(bytes) {
            Passed::Some(count) | Passed::Held(count) => count,
            Passed::Fault(count, fault) => {
                known.fault = Some(fault);
                count
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Framed<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.judged > 0 {
                let count = this.judged.min(buf.remaining());
                buf.put_slice(&this.pending[..count]);
                this.pending.drain(..count);
                this.judged -= count;
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = this.exchanges.fault() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let new = &buf.filled()[before..];
            if new.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.pending.is_empty() {
                let count = this.judge(new);
                this.pending.extend_from_slice(&new[count..]);
                buf.set_filled(before + count);
                if count > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.pending.extend_from_slice(new);
                buf.set_filled(before);
                this.judged = this.judge(&this.pending);
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Framed<I> {
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
