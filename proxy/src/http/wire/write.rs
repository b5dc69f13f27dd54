//! Heads and chunks as they go out.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

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
pub(crate) fn request_line(out: &mut Vec<u8>, method: &Method, path: &str, query: Option<&str>) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes a field; `name` and `value` are well-formed.
pub(crate) fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of a response. `close`: the connection ends with it.
pub(crate) fn response(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    ends: Ends,
    close: bool,
) {
    out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    fields(out, headers, ends);
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if version == Version::HTTP_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !headers.contains_key(header::DATE) {
        date(out);
    }
    end(out, ends);
}

/// Writes fields, but not those that frame a message: [`end`] writes them.
pub(crate) fn fields(out: &mut Vec<u8>, headers: &HeaderMap, ends: Ends) {
    for (name, value) in headers {
        // An answer to `HEAD` says how long the one to `GET` would be.
        if name == header::TRANSFER_ENCODING || (name == header::CONTENT_LENGTH && ends != Ends::AtHead) {
            continue;
        }
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Writes how the message ends, and the end of its head.
pub(crate) fn end(out: &mut Vec<u8>, ends: Ends) {
    match ends {
        Ends::AtHead | Ends::Closed => {}
        Ends::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Ends::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            number(out, length);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes what stands before a chunk's bytes; behind them goes a line end.
pub(crate) fn chunk(out: &mut Vec<u8>, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(DIGITS[(length >> (digit * 4)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a chunked body.
pub(crate) fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(out, trailers, Ends::Chunked);
    }
    out.extend_from_slice(b"\r\n");
}

fn number(out: &mut Vec<u8>, number: u64) {
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
    out.extend_from_slice(&digits[at..]);
}

/// Writes the `date` field, which is made once a second.
fn date(out: &mut Vec<u8>) {
    thread_local! {
        static DATE: RefCell<Option<(Instant, String)>> = const { RefCell::new(None) };
    }
    DATE.with_borrow_mut(|date| {
        let now = Instant::now();
        if date.as_ref().is_none_or(|(made, _)| now.duration_since(*made) >= Duration::from_secs(1)) {
            *date = Some((now, format!("date: {}\r\n", HttpDate::from(SystemTime::now()))));
        }
        if let Some((_, date)) = date {
            out.extend_from_slice(date.as_bytes());
        }
    });
}
