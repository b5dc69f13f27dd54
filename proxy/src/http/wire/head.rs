//! One head, whole: the grammar of RFC 9112 and nothing beside it.
//!
//! | on the wire | what happens |
//! | --- | --- |
//! | a line end without CR, a CR without LF, NUL and other control characters | refused |
//! | a line that begins with a space or tab (folding) | refused |
//! | a space before the colon, an empty name, a name that is no token | refused |
//! | a start line with anything but single spaces between its parts | refused |
//! | an empty line before a request | one is skipped (RFC 9112 section 2.2), more are refused |
//! | HTTP versions other than 1.0 and 1.1 | refused |
//! | a first line with neither a method nor a version of HTTP | another protocol: closed without an answer |
//! | a target with bytes that are not visible ASCII, or with a `#` | refused |
//! | `content-length` twice, even if equal; anything but 1 to 19 digits; leading zeros | refused |
//! | `transfer-encoding` twice, or with `content-length`, or in HTTP/1.0 | refused |
//! | a `transfer-encoding` other than `chunked` | refused |

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};

use super::Fault;
use crate::respond::Reason;

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// All of it, in bytes.
    pub(crate) bytes: usize,
    /// Its fields.
    pub(crate) fields: usize,
    /// A request's target, in bytes.
    pub(crate) target: usize,
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Methods by which a line is known for one of HTTP, whatever else is wrong with it.
const METHODS: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// Where a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// It has no framing of its own: a request without a body, a response until the connection ends.
    Unframed,
    Length(u64),
    Chunked,
}

/// A request's head.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// 1.0 or 1.1.
    pub(crate) version: Version,
    /// Without a `connection` field that says no more than `stays`.
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// Whether the connection may be used for another exchange (RFC 9112 section 9.3).
    pub(crate) stays: bool,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    /// As with a request, and without `transfer-encoding` and `keep-alive`.
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// As with a request.
    pub(crate) stays: bool,
}

/// Looks for the end of a head as its bytes come in.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Scan {
    /// Bytes that were looked at.
    at: usize,
    /// Where the current line begins.
    line: usize,
    /// Lines with anything on them that have ended.
    lines: usize,
    /// Whether an empty line came before it.
    skipped: bool,
}

/// A whole head among the bytes that have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Its bytes.
    pub(super) length: usize,
    /// Its lines behind the start line, without the empty one.
    pub(super) fields: usize,
}

impl Scan {
    /// The head that `bytes` begin with, if all of it is there. `bytes` must begin with those of the call before.
    pub(super) fn end(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<Found>, Fault> {
        loop {
            // What no control character is may stand anywhere but behind a carriage return.
            if self.at == self.line || bytes.get(self.at - 1) != Some(&b'\r') {
                let seen = bytes.get(self.at..bytes.len().min(bounds.bytes)).unwrap_or_default();
                self.at += position(seen, |byte| byte.is_ascii_control()).unwrap_or(seen.len());
            }
            let Some(&byte) = bytes.get(self.at) else { return Ok(None) };
            if self.at >= bounds.bytes {
                return Err(self.too_large(bytes, bounds));
            }
            match byte {
                b'\n' => {
                    if self.at == self.line || bytes[self.at - 1] != b'\r' {
                        return Err(Fault::malformed("a line ends without a carriage return"));
                    }
                    let empty = self.at - self.line == 1;
                    self.line = self.at + 1;
                    if empty && self.lines > 0 {
                        return Ok(Some(Found { length: self.at + 1, fields: self.lines - 1 }));
                    }
                    if empty && self.skipped {
                        return Err(Fault::malformed("more than one empty line before the request"));
                    }
                    self.skipped |= empty;
                    self.lines += usize::from(!empty);
                }
                _ if self.at > self.line && bytes[self.at - 1] == b'\r' => {
                    return Err(Fault::malformed("a carriage return without a line feed"));
                }
                b'\r' | b'\t' => {}
                0..=0x1f | 0x7f => return Err(Fault::malformed("a control character")),
                _ => {}
            }
            self.at += 1;
        }
    }

    fn too_large(&self, bytes: &[u8], bounds: &Bounds) -> Fault {
        if self.lines == 0 && target(&bytes[self.line..self.at]).is_some_and(|target| target.len() > bounds.target) {
            return Fault::new(Reason::TargetTooLong, "the target is too long");
        }
        Fault::new(Reason::HeadersTooLarge, "the head is too large")
    }
}

/// Where the first byte is that `is` tells. A block at a time, of which all bytes are looked at at once.
fn position(bytes: &[u8], is: impl Fn(u8) -> bool) -> Option<usize> {
    let (blocks, _) = bytes.as_chunks::<16>();
    let without = |block: &&[u8; 16]| !block.iter().fold(false, |any, byte| any | is(*byte));
    let from = blocks.iter().take_while(without).count() * 16;
    bytes[from..].iter().position(|byte| is(*byte)).map(|at| from + at)
}

/// The target of a start line that may have been cut off.
fn target(line: &[u8]) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ').nth(1)
}

/// Reads the head of a request of so many fields, from [`Scan::end`].
pub(super) fn request(head: &Bytes, fields: usize, bounds: &Bounds) -> Result<Request, Fault> {
    let (start, lines) = split(head);
    let (method, target, version) = request_line(start, bounds)?;
    let method = Method::from_bytes(method).map_err(|_| Fault::malformed("the method is not a token"))?;
    let uri = Uri::from_maybe_shared(head.slice_ref(target)).map_err(|_| Fault::malformed("the target is no URI"))?;
    let mut said = Said::default();
    let headers = said.fields(head, lines, fields, bounds, |_| true)?;
    Ok(Request { method, uri, version, headers, framing: said.framing(version)?, stays: said.stays(version) })
}

/// Reads the head of a response of so many fields, from [`Scan::end`].
pub(super) fn response(head: &Bytes, fields: usize, bounds: &Bounds) -> Result<Response, Fault> {
    let (start, lines) = split(head);
    let (version, status) = status_line(start)?;
    let mut said = Said::default();
    let kept = |name: &HeaderName| *name != header::TRANSFER_ENCODING && *name != KEEP_ALIVE;
    let headers = said.fields(head, lines, fields, bounds, kept)?;
    Ok(Response { status, headers, framing: said.framing(version)?, stays: said.stays(version) })
}

/// Reads so many fields that stand alone: trailers. `lines` ends with the empty line.
pub(super) fn trailers(lines: &Bytes, fields: usize, bounds: &Bounds) -> Result<HeaderMap, Fault> {
    // Framing that comes with trailers frames nothing, and is taken out with all that may not stand there.
    Said::default().fields(lines, lines, fields, bounds, |_| true)
}

/// The start line, and the lines of the fields with their line ends and the empty one.
fn split(head: &[u8]) -> (&[u8], &[u8]) {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    line(head)
}

/// The first line without its end, and what follows it.
fn line(lines: &[u8]) -> (&[u8], &[u8]) {
    let end = position(lines, |byte| byte == b'\n').map_or(lines.len(), |at| at + 1);
    let (line, rest) = lines.split_at(end);
    (line.strip_suffix(b"\r\n").unwrap_or(line), rest)
}

/// `METHOD TARGET HTTP/1.x`.
fn request_line<'a>(line: &'a [u8], bounds: &Bounds) -> Result<(&'a [u8], &'a [u8], Version), Fault> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::malformed("the request line is not `METHOD TARGET VERSION`"));
    };
    if !is_token(method) {
        return Err(Fault::malformed("the method is not a token"));
    }
    if !version.contains(&b'/') && !METHODS.contains(&method) {
        return Err(Fault::foreign());
    }
    let version = self::version(version)?;
    if target.len() > bounds.target {
        return Err(Fault::new(Reason::TargetTooLong, "the target is too long"));
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Fault::malformed("the target is empty or has a character that must be percent-encoded"));
    }
    if target.contains(&b'#') {
        // `Uri` would cut it off.
        return Err(Fault::new(Reason::BadPath, "the target has a fragment"));
    }
    Ok((method, target, version))
}

/// `HTTP/1.x STATUS REASON`.
fn status_line(line: &[u8]) -> Result<(Version, StatusCode), Fault> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let version = version(parts.next().unwrap_or_default())?;
    let status = parts.next().filter(|status| matches!(status.first(), Some(b'1'..=b'5')));
    let status = status.and_then(|status| StatusCode::from_bytes(status).ok());
    Ok((version, status.ok_or(Fault::malformed("the status is not one of 100 to 599"))?))
}

fn version(version: &[u8]) -> Result<Version, Fault> {
    match version {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        _ => Err(Fault::malformed("the version is not HTTP/1.1 or HTTP/1.0")),
    }
}

/// What the fields say about the message.
#[derive(Debug, Default)]
struct Said {
    length: Option<u64>,
    coding: Option<Coding>,
    close: bool,
    keep_alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// Others, or others too.
    Other,
    Nonsense,
}

impl Said {
    /// Reads `count` fields, of which `kept` stay. `lines` is a part of `head`, which the values go on to share.
    fn fields(
        &mut self,
        head: &Bytes,
        mut lines: &[u8],
        count: usize,
        bounds: &Bounds,
        kept: impl Fn(&HeaderName) -> bool,
    ) -> Result<HeaderMap, Fault> {
        if count > bounds.fields {
            return Err(Fault::new(Reason::HeadersTooLarge, "too many fields"));
        }
        let mut headers = HeaderMap::with_capacity(count);
        for _ in 0..count {
            let (line, rest) = line(lines);
            lines = rest;
            let (name, value) = field(line)?;
            self.field(name, value)?;
            let name = HeaderName::from_bytes(name).map_err(|_| BAD_NAME)?;
            if (name == header::CONNECTION && self.connection(value)) || !kept(&name) {
                continue;
            }
            let value = HeaderValue::from_maybe_shared(head.slice_ref(value))
                .map_err(|_| Fault::malformed("a control character"))?;
            // It holds 32,768 fields, whatever the bounds are.
            headers.try_append(name, value).map_err(|_| Fault::new(Reason::HeadersTooLarge, "too many fields"))?;
        }
        Ok(headers)
    }

    /// Notes what a `connection` field says. Whether it says nothing else.
    fn connection(&mut self, value: &[u8]) -> bool {
        let mut plain = true;
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else {
                plain = false;
            }
        }
        plain
    }

    fn stays(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        // By length first: most names are none of these.
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let before = self.length.replace(length(value)?);
                once(before.is_none(), "more than one content-length")
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let before = self.coding.replace(coding(value));
                once(before.is_none(), "more than one transfer-encoding")
            }
            _ => Ok(()),
        }
    }

    fn framing(&self, version: Version) -> Result<Framing, Fault> {
        let bad = |detail| Err(Fault::new(Reason::BadFraming, detail));
        match (self.coding, self.length) {
            (None, None) => Ok(Framing::Unframed),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (Some(_), Some(_)) => bad("content-length beside transfer-encoding"),
            (Some(_), None) if version == Version::HTTP_10 => bad("transfer-encoding in HTTP/1.0"),
            (Some(Coding::Chunked), None) => Ok(Framing::Chunked),
            (Some(Coding::Other), None) => {
                Err(Fault::new(Reason::CodingRefused, "a transfer coding other than chunked"))
            }
            (Some(Coding::Nonsense), None) => bad("transfer-encoding is not exactly one chunked"),
        }
    }
}

fn once(first: bool, detail: &'static str) -> Result<(), Fault> {
    if first { Ok(()) } else { Err(Fault::new(Reason::BadFraming, detail)) }
}

const BAD_NAME: Fault = Fault::malformed("a field's name is empty or has a character that no name has");

/// Name and value of a field's line.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    // No name has a colon in it, so it ends where the token does.
    let end = line.iter().position(|byte| !is_token_byte(*byte));
    match end.map(|end| (&line[..end], &line[end..])) {
        Some((name, [b':', value @ ..])) if !name.is_empty() => Ok((name, value.trim_ascii())),
        _ if !line.contains(&b':') => Err(Fault::malformed("a field without a colon")),
        _ if matches!(line.first(), Some(b' ' | b'\t')) => {
            Err(Fault::malformed("a line that continues the one before"))
        }
        _ => Err(BAD_NAME),
    }
}

/// RFC 9110 section 8.6: digits only. No leading zeros, for they are octal to some.
fn length(value: &[u8]) -> Result<u64, Fault> {
    let digits = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let plain = digits && (value.len() == 1 || value[0] != b'0');
    let length = std::str::from_utf8(value).ok().filter(|_| plain).and_then(|digits| digits.parse().ok());
    length.ok_or(Fault::new(Reason::BadFraming, "content-length is not a number"))
}

fn coding(value: &[u8]) -> Coding {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Coding::Chunked;
    }
    let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).rev().peekable();
    let chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    // `chunked` comes once, at the end, if at all (RFC 9112 section 6.1).
    codings.next_if(chunked);
    let others = codings.all(|coding| is_token(coding) && !chunked(&coding));
    if others { Coding::Other } else { Coding::Nonsense }
}

/// RFC 9110 section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] |= byte.is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    /// The same as [`Scan::end`], one byte after the other.
    fn reference(bytes: &[u8], bounds: &Bounds) -> Result<Option<Found>, Fault> {
        let (mut line, mut lines, mut skipped) = (0, 0, false);
        for (at, byte) in bytes.iter().copied().enumerate() {
            let behind_return = at > line && bytes[at - 1] == b'\r';
            if at >= bounds.bytes {
                return Err(Scan { at, line, lines, skipped }.too_large(bytes, bounds));
            }
            match byte {
                b'\n' if !behind_return => return Err(Fault::malformed("a line ends without a carriage return")),
                b'\n' => {
                    let empty = at - line == 1;
                    if empty && lines > 0 {
                        return Ok(Some(Found { length: at + 1, fields: lines - 1 }));
                    }
                    if empty && skipped {
                        return Err(Fault::malformed("more than one empty line before the request"));
                    }
                    (skipped, lines, line) = (skipped | empty, lines + usize::from(!empty), at + 1);
                }
                _ if behind_return => return Err(Fault::malformed("a carriage return without a line feed")),
                b'\r' | b'\t' => {}
                0..=0x1f | 0x7f => return Err(Fault::malformed("a control character")),
                _ => {}
            }
        }
        Ok(None)
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => "[ -~]{0,40}".prop_map(String::into_bytes),
            6 => Just(b"\r\n".to_vec()),
            1 => Just(b"\r".to_vec()),
            1 => Just(b"\n".to_vec()),
            1 => Just(b"\t".to_vec()),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
        ]
    }

    proptest! {
        #[test]
        fn a_head_ends_where_one_byte_after_the_other_says(
            pieces in prop::collection::vec(piece(), 0..12),
            cuts in prop::collection::vec(0..200_usize, 0..3),
            most in prop_oneof![Just(1000_usize), 0..200_usize],
        ) {
            let bytes = pieces.concat();
            let bounds = Bounds { bytes: most, fields: 100, target: 20 };
            let mut scan = Scan::default();
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < bytes.len()).chain([bytes.len()]).collect();
            cuts.sort_unstable();
            let found = cuts.into_iter().map(|cut| scan.end(&bytes[..cut], &bounds)).find(|found| *found != Ok(None));
            prop_assert_eq!(found.unwrap_or(Ok(None)), reference(&bytes, &bounds));
        }

        #[test]
        fn a_field_is_what_stands_before_and_behind_its_first_colon(line in "[a-z :\t\u{e9}-]{0,12}") {
            let expected = match line.split_once(':') {
                None => Err(Fault::malformed("a field without a colon")),
                Some((name, value)) if is_token(name.as_bytes()) => {
                    Ok((name.as_bytes(), value.as_bytes().trim_ascii()))
                }
                Some((name, _)) if name.starts_with([' ', '\t']) => {
                    Err(Fault::malformed("a line that continues the one before"))
                }
                Some(_) => Err(BAD_NAME),
            };
            prop_assert_eq!(field(line.as_bytes()), expected);
        }
    }
}
