//! The client's end of a connection: who answers a request writes to it, while who takes its body reads from it.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::super::BoxStream;
use super::super::wire::{Bounds, Fault, Piece, Reader};

/// What asks for a body (RFC 9110 section 15.2.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The socket, and what has been read from it.
pub(super) struct Side {
    /// `None` once the connection has ended.
    io: Option<BoxStream>,
    pub(super) reader: Reader,
    /// The client waits to be asked for its body.
    expects: bool,
    /// What is left to be written before a response is.
    interim: &'static [u8],
}

/// Nothing in a critical section panics, and each leaves a whole state.
pub(super) fn lock(side: &Mutex<Side>) -> MutexGuard<'_, Side> {
    side.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Side {
    /// `seen` has been read from `io` already.
    pub(super) fn new(io: BoxStream, bounds: Bounds, seen: &[u8]) -> Self {
        let mut reader = Reader::new(bounds);
        reader.feed(seen);
        Self { io: Some(io), reader, expects: false, interim: b"" }
    }

    /// Ends the connection for all others who use it. What came and was not taken is with it.
    pub(super) fn take(&mut self) -> Option<(BoxStream, Bytes)> {
        let io = self.io.take()?;
        Some((io, self.reader.rest()))
    }

    /// Has the connection end in a way that nobody takes for the end of a whole message.
    pub(super) fn reset(&mut self) {
        if let Some(io) = &self.io {
            io.reset_on_close();
        }
    }

    /// Whether the client is to be asked before its body is read.
    pub(super) fn expects(&mut self, expects: bool) {
        self.expects = expects;
    }

    /// Whether the client waits to be asked.
    pub(super) fn is_expecting(&self) -> bool {
        self.expects
    }

    fn io(&mut self) -> io::Result<Pin<&mut BoxStream>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads more. Ready with 0 at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = self.io.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        self.reader.poll_read(Pin::new(io), cx)
    }

    /// Ready when the client has left. It is not known while it may have sent, or send, something that is to be read
    /// later.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.reader.is_at_end() || !self.reader.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.poll_read(cx)) {
            Ok(1..) => Poll::Pending,
            Ok(0) | Err(_) => Poll::Ready(()),
        }
    }

    /// The next piece of the body.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Piece>> {
        loop {
            let piece = self.reader.body().map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
            if !matches!(piece, Piece::More) {
                return Poll::Ready(Ok(piece));
            }
            if std::mem::take(&mut self.expects) {
                self.interim = CONTINUE;
            }
            ready!(self.poll_interim(cx))?;
            if ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Passes over what has come of a body that nobody wanted. Whether that is all of it. The error: it never will be.
    pub(super) fn skip_body(&mut self) -> Result<bool, Fault> {
        loop {
            match self.reader.body()? {
                Piece::Data(_) => {}
                Piece::End | Piece::Trailers(_) => return Ok(true),
                Piece::More => return Ok(false),
            }
        }
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.interim.is_empty() {
            let interim = self.interim;
            let count = ready!(self.io()?.poll_write(cx, interim))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim = &interim[count..];
        }
        self.io()?.poll_flush(cx)
    }
}

/// The socket for a response. It is locked for one call at a time: the response's body may read the request's.
pub(super) struct Writing<'a>(pub(super) &'a Mutex<Side>);

impl AsyncWrite for Writing<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut side = lock(self.0);
        ready!(side.poll_interim(cx))?;
        side.io()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut side = lock(self.0);
        ready!(side.poll_interim(cx))?;
        side.io()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(self.0).io()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(self.0).io()?.poll_shutdown(cx)
    }
}
