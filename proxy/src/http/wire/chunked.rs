//! Follows a chunked body to its end (RFC 9112 section 7.1), byte by byte where it matters and in strides where not.
//!
//! | on the wire | what happens |
//! | --- | --- |
//! | a size of anything but 1 to 15 hexadecimal digits, or with space around it | refused |
//! | chunk extensions | ignored, up to 4 KiB in a body; refused with control characters |
//! | a line end without CR, data longer or shorter than its size | refused |
//! | trailers that would be refused as fields of a head | refused |

use bytes::{Buf, Bytes, BytesMut};

use super::head::{self, Bounds, is_token_byte};
use super::{Fault, Piece};
use crate::respond::Reason;

/// Bytes of extensions in one body.
const MOST_EXTENSIONS: usize = 4096;

/// Digits of a chunk's size.
const MOST_DIGITS: u8 = 15;

/// What comes next in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another digit of the size, of which there are so many.
    Size(u8),
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The first byte of a trailer's line, or the end.
    Line,
    Name,
    Value,
    ValueLf,
    LastLf,
    End,
}

/// Where in a body we are.
#[derive(Debug)]
pub(super) struct Chunked {
    next: Next,
    /// Of the chunk, not yet seen.
    left: u64,
    extensions: usize,
    /// The lines of the trailers, and the empty one.
    trailers: Vec<u8>,
    trailer_fields: usize,
}

impl Chunked {
    pub(super) const fn new() -> Self {
        Self { next: Next::Size(0), left: 0, extensions: 0, trailers: Vec::new(), trailer_fields: 0 }
    }

    /// Whether all of the body has been taken.
    pub(super) fn is_at_end(&self) -> bool {
        self.next == Next::End
    }

    /// Takes the next piece of the body from what came.
    pub(super) fn take(&mut self, buffer: &mut BytesMut, bounds: &Bounds) -> Result<Piece, Fault> {
        let mut at = 0;
        while let Some(&byte) = buffer.get(at)
            && !matches!(self.next, Next::Data | Next::End)
        {
            self.step(byte, bounds)?;
            at += 1;
        }
        buffer.advance(at);
        match self.next {
            Next::End => {
                let trailers = Bytes::from(std::mem::take(&mut self.trailers));
                match self.trailer_fields {
                    0 => Ok(Piece::End),
                    fields => head::trailers(&trailers, fields, bounds).map(Piece::Trailers),
                }
            }
            Next::Data if !buffer.is_empty() => {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
                self.left -= here as u64;
                if self.left == 0 {
                    self.next = Next::DataCr;
                }
                Ok(Piece::Data(buffer.split_to(here).freeze()))
            }
            _ => Ok(Piece::More),
        }
    }

    fn step(&mut self, byte: u8, bounds: &Bounds) -> Result<(), Fault> {
        if matches!(self.next, Next::Line | Next::Name | Next::Value | Next::ValueLf | Next::LastLf) {
            self.trailers.push(byte);
        }
        self.next = match (self.next, byte) {
            (Next::Size(digits), byte) if byte.is_ascii_hexdigit() && digits < MOST_DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                Next::Size(digits + 1)
            }
            (Next::Size(1..), b';') => Next::Extension,
            (Next::Size(1..), b'\r') | (Next::Extension, b'\r') => Next::SizeLf,
            (Next::Size(_), _) => return bad("a chunk's size is not a hexadecimal number"),
            (Next::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extensions += 1;
                if self.extensions > MOST_EXTENSIONS {
                    return bad("the chunk extensions are too long");
                }
                Next::Extension
            }
            (Next::Extension, _) => return bad("a control character in a chunk extension"),
            (Next::SizeLf, b'\n') if self.left == 0 => Next::Line,
            (Next::SizeLf, b'\n') => Next::Data,
            (Next::DataCr, b'\r') => Next::DataLf,
            (Next::DataLf, b'\n') => Next::Size(0),
            (Next::DataCr | Next::DataLf, _) => return bad("a chunk is longer than its size"),
            (Next::Line, b'\r') => Next::LastLf,
            (Next::Line, byte) if is_token_byte(byte) => {
                self.trailer_fields += 1;
                Next::Name
            }
            (Next::Name, byte) if is_token_byte(byte) => Next::Name,
            (Next::Name, b':') => Next::Value,
            (Next::Line | Next::Name, _) => return bad("a trailer's name is malformed"),
            (Next::Value, b'\r') => Next::ValueLf,
            (Next::Value, b'\t' | b' '..=b'~' | 0x80..) => Next::Value,
            (Next::Value, _) => return bad("a control character in a trailer"),
            (Next::ValueLf, b'\n') => Next::Line,
            (Next::LastLf, b'\n') => Next::End,
            (Next::SizeLf | Next::ValueLf | Next::LastLf, _) => return bad("a carriage return without a line feed"),
            (Next::Data | Next::End, _) => self.next,
        };
        if self.trailers.len() > bounds.bytes || self.trailer_fields > bounds.fields {
            return bad("the trailers are too large");
        }
        Ok(())
    }
}

fn bad<T>(detail: &'static str) -> Result<T, Fault> {
    Err(Fault::new(Reason::BadBody, detail))
}
