//! Heads and chunks as they go out.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, BytesMut};
use http::header::{self, HeaderMap};
use http::{Method, StatusCode, Version};
use httpdate::HttpDate;
use tokio::time::Instant;

/// How a message that is written ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It has no body, and its head says nothing about one, or just what the fields say: an answer to `HEAD`.
    AtHead,
    /// After so many bytes.
    Length(u64),
    /// With a last chunk.
    Chunked,
    /// With the connection.
    Closed,
}

/// Writes the first line of a request.
pub(crate) fn request_line(out: &mut BytesMut, method: &Method, target: &str) {
    for piece in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.put_slice(piece.as_bytes());
    }
}

/// Writes the head of a response. `close`: the connection ends with it.
pub(crate) fn response(
    out: &mut BytesMut,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    ends: Ends,
    close: bool,
) {
    out.put_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    fields(out, headers, ends);
    if close {
        out.put_slice(b"connection: close\r\n");
    } else if version == Version::HTTP_10 {
        out.put_slice(b"connection: keep-alive\r\n");
    }
    if !headers.contains_key(header::DATE) {
        date(out);
    }
    end(out, ends);
}

/// Writes fields, but not those that frame a message: [`end`] writes them.
pub(crate) fn fields(out: &mut BytesMut, headers: &HeaderMap, ends: Ends) {
    for (name, value) in headers {
        // An answer to `HEAD` says how long the one to `GET` would be.
        if name == header::TRANSFER_ENCODING || (name == header::CONTENT_LENGTH && ends != Ends::AtHead) {
            continue;
        }
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        out.reserve(name.len() + value.len() + 4);
        out.put_slice(name);
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }
}

/// Writes how the message ends, and the end of its head.
pub(crate) fn end(out: &mut BytesMut, ends: Ends) {
    match ends {
        Ends::AtHead | Ends::Closed => {}
        Ends::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Ends::Length(length) => {
            out.put_slice(b"content-length: ");
            number(out, length);
            out.put_slice(b"\r\n");
        }
    }
    out.put_slice(b"\r\n");
}

/// Writes what stands before a chunk's bytes; behind them goes a line end.
pub(crate) fn chunk(out: &mut BytesMut, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(DIGITS[(length >> (digit * 4)) & 15]);
    }
    out.put_slice(b"\r\n");
}

/// Writes the end of a chunked body.
pub(crate) fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(out, trailers, Ends::Chunked);
    }
    out.put_slice(b"\r\n");
}

fn number(out: &mut BytesMut, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = number;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// Writes the `date` field, which is made once a second.
fn date(out: &mut BytesMut) {
    thread_local! {
        static DATE: RefCell<Option<(Instant, String)>> = const { RefCell::new(None) };
    }
    DATE.with_borrow_mut(|date| {
        let now = Instant::now();
        if date.as_ref().is_none_or(|(made, _)| now.duration_since(*made) >= Duration::from_secs(1)) {
            *date = Some((now, format!("date: {}\r\n", HttpDate::from(SystemTime::now()))));
        }
        if let Some((_, date)) = date {
            out.put_slice(date.as_bytes());
        }
    });
}
