//! One direction of a connection: what has come, cut into heads and the pieces of bodies.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, ReadBuf};

use super::Fault;
use super::chunked::Chunked;
use super::head::{self, Bounds, Found, Framing, Scan};

/// Bytes that are read at a time where a head may come. They stand on the stack, so that a connection that waits for
/// one has no memory for it.
const HEAD_READ: usize = 4 * 1024;

/// Bytes that are read at a time within a body: at first, and at most. It is at most where a read before has filled what
/// it had, for more has come then: one that comes in bits does not take up what one does that is there.
const BODY_READ: (usize, usize) = (8 * 1024, 32 * 1024);

/// What a body has next.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Some of it, never empty.
    Data(Bytes),
    /// Its trailers, never empty, and its end.
    Trailers(HeaderMap),
    /// Its end.
    End,
    /// Nothing yet: more must be read.
    More,
}

/// The body of the message under way.
#[derive(Debug)]
enum Content {
    /// There is none, or no more of it.
    End,
    Length(u64),
    Chunked(Box<Chunked>),
    /// Until the connection ends.
    Rest,
    /// It could not be read on: nobody knows where it ends, or what follows it.
    Broken(Fault),
}

/// Reads one message behind the other: where each head begins is known exactly, for each body is read to its end.
///
/// It has no socket of its own; [`Reader::poll_read`] fills it from one.
#[derive(Debug)]
pub(crate) struct Reader {
    bounds: Bounds,
    /// Has come, and was not taken.
    buffer: BytesMut,
    scan: Scan,
    content: Content,
    /// Bytes that are read next within the body.
    stride: usize,
}

impl Reader {
    /// Heads, and trailers, are within `bounds`.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, buffer: BytesMut::new(), scan: Scan::default(), content: Content::End, stride: BODY_READ.0 }
    }

    /// Adds what has come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Reads what there is from `io`, at most as much as makes sense at this place. Ready with 0 at its end.
    pub(crate) fn poll_read<I>(&mut self, io: Pin<&mut I>, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        I: AsyncRead + ?Sized,
    {
        if matches!(self.content, Content::End) {
            let mut bytes = [MaybeUninit::uninit(); HEAD_READ];
            let mut read = ReadBuf::uninit(&mut bytes);
            ready!(io.poll_read(cx, &mut read))?;
            self.stride = if read.remaining() == 0 { BODY_READ.1 } else { BODY_READ.0 };
            self.buffer.extend_from_slice(read.filled());
            return Poll::Ready(Ok(read.filled().len()));
        }
        let most = self.stride;
        let wanted = self.left().map_or(most, |left| usize::try_from(left).unwrap_or(most).min(most));
        if self.buffer.capacity() - self.buffer.len() < wanted.div_ceil(2) {
            self.buffer.reserve(wanted);
        }
        let count = ready!(tokio_util::io::poll_read_buf(io, cx, &mut self.buffer))?;
        if count >= most / 2 {
            self.stride = (most * 2).min(BODY_READ.1);
        }
        Poll::Ready(Ok(count))
    }

    /// Whether nothing has come that was not taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether the last message has been taken to its end.
    pub(crate) fn is_at_end(&self) -> bool {
        match &self.content {
            Content::End => true,
            Content::Length(_) | Content::Rest | Content::Broken(_) => false,
            Content::Chunked(chunked) => chunked.is_at_end(),
        }
    }

    /// What is left: bytes of another protocol, once this one was left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.buffer).freeze()
    }

    /// The next request's head, once it is whole. Its body comes next.
    pub(crate) fn request(&mut self) -> Result<Option<head::Request>, Fault> {
        let Some((head, fields)) = self.head()? else { return Ok(None) };
        let request = head::request(&head, fields, &self.bounds)?;
        // A request without framing has no body (RFC 9112 section 6.3).
        self.begin(if request.framing == Framing::Unframed { Framing::Length(0) } else { request.framing });
        Ok(Some(request))
    }

    /// The next response's head, once it is whole. What follows it is for [`Reader::begin`].
    pub(crate) fn response(&mut self) -> Result<Option<head::Response>, Fault> {
        let Some((head, fields)) = self.head()? else { return Ok(None) };
        head::response(&head, fields, &self.bounds).map(Some)
    }

    /// A body follows, which ends like this.
    pub(crate) fn begin(&mut self, framing: Framing) {
        self.content = match framing {
            Framing::Length(0) => Content::End,
            Framing::Length(length) => Content::Length(length),
            Framing::Chunked => Content::Chunked(Box::new(Chunked::new())),
            Framing::Unframed => Content::Rest,
        };
    }

    /// The next head, and how many fields it has.
    fn head(&mut self) -> Result<Option<(Bytes, usize)>, Fault> {
        if !self.is_at_end() {
            // A bug of whoever asks, and smuggling if it were let through.
            return Err(Fault::malformed("a head is read within a body"));
        }
        let Some(Found { length, fields }) = self.scan.end(&self.buffer, &self.bounds)? else { return Ok(None) };
        self.scan = Scan::default();
        let head = if length == self.buffer.len() {
            // No capacity is left behind for a connection to sit on.
            std::mem::take(&mut self.buffer)
        } else {
            self.buffer.split_to(length)
        };
        Ok(Some((head.freeze(), fields)))
    }

    /// The next piece of the body, from what has come. An error is final: from then on there is no other answer.
    pub(crate) fn body(&mut self) -> Result<Piece, Fault> {
        let piece = match &mut self.content {
            Content::End => Piece::End,
            Content::Length(_) | Content::Rest if self.buffer.is_empty() => Piece::More,
            Content::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                *left -= here as u64;
                let data = self.buffer.split_to(here).freeze();
                if *left == 0 {
                    self.content = Content::End;
                }
                Piece::Data(data)
            }
            Content::Rest => Piece::Data(self.buffer.split().freeze()),
            Content::Chunked(chunked) => match chunked.take(&mut self.buffer, &self.bounds) {
                Ok(piece) => piece,
                Err(fault) => {
                    self.content = Content::Broken(fault);
                    return Err(fault);
                }
            },
            Content::Broken(fault) => return Err(*fault),
        };
        if matches!(piece, Piece::End | Piece::Trailers(_)) {
            self.content = Content::End;
        }
        if self.buffer.is_empty() && matches!(self.content, Content::End) {
            self.buffer = BytesMut::new();
        }
        Ok(piece)
    }

    /// The connection has ended. Whether the body ends with it.
    pub(crate) fn finish(&mut self) -> bool {
        let ended = matches!(self.content, Content::Rest | Content::End);
        if ended {
            self.content = Content::End;
        }
        ended
    }

    /// What is known of how much of the body is still to come: all of it, or nothing.
    pub(crate) fn left(&self) -> Option<u64> {
        match &self.content {
            Content::End => Some(0),
            Content::Length(left) => Some(*left),
            Content::Chunked(chunked) if chunked.is_at_end() => Some(0),
            Content::Chunked(_) | Content::Rest | Content::Broken(_) => None,
        }
    }
}
