//! One message on its way out: its head, and its body as it comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::Body;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::write::{self, Ends};
use crate::http::BoxError;

/// Pieces of a body up to so many bytes are copied behind what is to be written anyway: one system call is dearer.
const SMALL: usize = 16 * 1024;

/// Why a message did not go out whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    /// Its body came to no good end.
    #[error(transparent)]
    Body(BoxError),
    /// Nobody takes it.
    #[error(transparent)]
    Io(io::Error),
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The head, chunk sizes, and small pieces.
    out: Vec<u8>,
    /// A large piece, which goes behind them.
    large: Bytes,
    /// Whether a chunk ends behind it.
    chunk_open: bool,
    ends: Ends,
    /// Bytes of the body that are still to come, where that is known.
    left: u64,
    /// All of the body is in `out` and `large`.
    whole: bool,
    flushed: bool,
    /// Whether any byte has gone out.
    begun: bool,
    head_first: bool,
    /// Since when nobody has taken any.
    blocked: Option<Instant>,
}

impl Outgoing {
    /// `bodiless`: nothing follows the head, whatever it says. `head_first`: the body is not touched before the head has
    /// begun to go out.
    pub(crate) fn new(head: Vec<u8>, ends: Ends, bodiless: bool, head_first: bool) -> Self {
        let left = if let Ends::Length(length) = ends { length } else { 0 };
        let whole = bodiless || matches!(ends, Ends::AtHead | Ends::Length(0));
        Self {
            out: head,
            large: Bytes::new(),
            chunk_open: false,
            ends,
            left,
            whole,
            flushed: false,
            begun: false,
            head_first,
            blocked: None,
        }
    }

    /// One that has gone out.
    pub(crate) fn done() -> Self {
        Self { flushed: true, ..Self::new(Vec::new(), Ends::AtHead, true, false) }
    }

    /// Whether any byte has gone out.
    pub(crate) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether all of it has gone out.
    pub(crate) fn is_done(&self) -> bool {
        self.whole && self.flushed && self.out.is_empty() && self.large.is_empty() && !self.chunk_open
    }

    /// Since when there has been no room for what is to go out.
    pub(crate) fn blocked(&self) -> Option<Instant> {
        self.blocked
    }

    /// Goes on with it, and says when all of it has gone out.
    pub(crate) fn poll<I, B>(
        &mut self,
        cx: &mut Context<'_>,
        mut io: Pin<&mut I>,
        mut body: Pin<&mut B>,
    ) -> Poll<Result<(), Cut>>
    where
        I: AsyncWrite + ?Sized,
        B: Body<Data = Bytes, Error = BoxError>,
    {
        loop {
            let waits =
                if self.begun || !self.head_first { self.gather(cx, body.as_mut()).map_err(Cut::Body)? } else { false };
            ready!(self.poll_write(cx, io.as_mut())).map_err(Cut::Io)?;
            if self.chunk_open {
                self.chunk_open = false;
                self.out.extend_from_slice(b"\r\n");
                continue;
            }
            if self.whole || waits {
                ready!(self.poll_flush(cx, io.as_mut())).map_err(Cut::Io)?;
            }
            if self.whole {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Takes over what the body has, up to a bound. Whether it has nothing more now.
    fn gather<B>(&mut self, cx: &mut Context<'_>, mut body: Pin<&mut B>) -> Result<bool, BoxError>
    where
        B: Body<Data = Bytes, Error = BoxError>,
    {
        while !self.whole && self.large.is_empty() && self.out.len() < SMALL {
            let frame = match body.as_mut().poll_frame(cx) {
                // The message has ended, and what waits is something beside it.
                Poll::Pending if body.is_end_stream() => {
                    self.end(None)?;
                    break;
                }
                Poll::Pending => return Ok(true),
                Poll::Ready(None) => {
                    self.end(None)?;
                    break;
                }
                Poll::Ready(Some(frame)) => frame?,
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => self.data(data)?,
                Err(frame) => self.end(frame.into_trailers().ok().as_ref())?,
            }
        }
        Ok(false)
    }

    fn data(&mut self, data: Bytes) -> Result<(), BoxError> {
        match self.ends {
            Ends::Chunked => write::chunk(&mut self.out, data.len()),
            Ends::Length(_) => {
                let left = self.left.checked_sub(data.len() as u64);
                self.left = left.ok_or("the body is longer than was said")?;
                // Who waits for its end gets it with the last byte.
                self.whole = self.left == 0;
            }
            Ends::Closed | Ends::AtHead => {}
        }
        if self.out.len() + data.len() <= SMALL {
            self.out.extend_from_slice(&data);
            if self.ends == Ends::Chunked {
                self.out.extend_from_slice(b"\r\n");
            }
        } else {
            self.large = data;
            self.chunk_open = self.ends == Ends::Chunked;
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&http::HeaderMap>) -> Result<(), BoxError> {
        if self.left > 0 {
            return Err("the body is shorter than was said".into());
        }
        if self.ends == Ends::Chunked {
            write::last_chunk(&mut self.out, trailers);
        }
        self.whole = true;
        Ok(())
    }

    fn poll_write<I: AsyncWrite + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        mut io: Pin<&mut I>,
    ) -> Poll<io::Result<()>> {
        while !self.out.is_empty() || !self.large.is_empty() {
            let polled = match (self.out.is_empty(), self.large.is_empty()) {
                (false, false) => {
                    io.as_mut().poll_write_vectored(cx, &[IoSlice::new(&self.out), IoSlice::new(&self.large)])
                }
                (false, true) => io.as_mut().poll_write(cx, &self.out),
                (true, _) => io.as_mut().poll_write(cx, &self.large),
            };
            let count = ready!(self.noted(polled))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
            self.flushed = false;
            let of_out = count.min(self.out.len());
            // Mostly all of it: what is left then is little.
            self.out.drain(..of_out);
            self.large.advance(count - of_out);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush<I: AsyncWrite + ?Sized>(&mut self, cx: &mut Context<'_>, io: Pin<&mut I>) -> Poll<io::Result<()>> {
        if !self.flushed {
            // TLS takes more than the socket has room for.
            let polled = io.poll_flush(cx);
            ready!(self.noted(polled))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn noted<T>(&mut self, polled: Poll<T>) -> Poll<T> {
        match polled {
            Poll::Ready(_) => self.blocked = None,
            Poll::Pending => self.blocked = self.blocked.or_else(|| Some(Instant::now())),
        }
        polled
    }
}
