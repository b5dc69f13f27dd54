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

/// Methods by which a line is known for one of HTTP, whatever else is wrong with it.
const METHODS: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// Where a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// It has no framing of its own: a request without a body, a response until the connection ends.
    Unframed,
    Length(u64),
    Chunked,
}

/// What a request's head says about what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) framing: Framing,
    /// It asks to switch protocols.
    pub(super) upgrade: bool,
}

/// What a response's head says about what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) framing: Framing,
}

/// Looks for the end of a head as its bytes come in.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Scan {
    /// Bytes that were looked at.
    at: usize,
    /// Where the current line begins.
    line: usize,
    /// Whether a line with anything on it has ended.
    begun: bool,
    /// Whether an empty line came before it.
    skipped: bool,
}

impl Scan {
    /// The length of the head that `bytes` begin with, if all of it is there. `bytes` must begin with those of the
    /// call before.
    pub(super) fn end(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<usize>, Fault> {
        while let Some(&byte) = bytes.get(self.at) {
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
                    if empty && self.begun {
                        return Ok(Some(self.at + 1));
                    }
                    if empty && self.skipped {
                        return Err(Fault::malformed("more than one empty line before the request"));
                    }
                    self.skipped |= empty;
                    self.begun |= !empty;
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
        Ok(None)
    }

    fn too_large(&self, bytes: &[u8], bounds: &Bounds) -> Fault {
        if !self.begun && target(&bytes[self.line..self.at]).is_some_and(|target| target.len() > bounds.target) {
            return Fault::new(Reason::TargetTooLong, "the target is too long");
        }
        Fault::new(Reason::HeadersTooLarge, "the head is too large")
    }
}

/// The target of a start line that may have been cut off.
fn target(line: &[u8]) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ').nth(1)
}

/// Judges the head of a request, from [`Scan::end`].
pub(super) fn request(head: &[u8], bounds: &Bounds) -> Result<Request, Fault> {
    let (start, fields) = lines(head);
    let minor = request_line(start, bounds)?;
    let mut said = Said::default();
    for (count, line) in fields.enumerate() {
        if count >= bounds.fields {
            return Err(Fault::new(Reason::HeadersTooLarge, "too many fields"));
        }
        said.field(line)?;
    }
    Ok(Request { framing: said.framing(minor)?, upgrade: said.upgrade && minor == 1 })
}

/// Judges the head of a response, from [`Scan::end`].
pub(super) fn response(head: &[u8], bounds: &Bounds) -> Result<Response, Fault> {
    let (start, fields) = lines(head);
    let (minor, status) = status_line(start)?;
    let mut said = Said::default();
    for (count, line) in fields.enumerate() {
        if count >= bounds.fields {
            return Err(Fault::new(Reason::HeadersTooLarge, "too many fields"));
        }
        said.field(line)?;
    }
    Ok(Response { status, framing: said.framing(minor)? })
}

/// The start line and the fields' lines, without their line ends.
fn lines(head: &[u8]) -> (&[u8], impl Iterator<Item = &[u8]>) {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let head = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    (lines.next().unwrap_or_default(), lines)
}

/// `METHOD TARGET HTTP/1.x`. Returns x.
fn request_line(line: &[u8], bounds: &Bounds) -> Result<u8, Fault> {
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
    let minor = minor(version)?;
    if target.len() > bounds.target {
        return Err(Fault::new(Reason::TargetTooLong, "the target is too long"));
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Fault::malformed("the target is empty or has a character that must be percent-encoded"));
    }
    if target.contains(&b'#') {
        // hyper would cut it off.
        return Err(Fault::new(Reason::BadPath, "the target has a fragment"));
    }
    Ok(minor)
}

/// `HTTP/1.x STATUS REASON`. Returns x and the status.
fn status_line(line: &[u8]) -> Result<(u8, u16), Fault> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let minor = minor(parts.next().unwrap_or_default())?;
    let status = match parts.next() {
        Some(&[a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ => return Err(Fault::malformed("the status is not one of 100 to 599")),
    };
    Ok((minor, status))
}

fn minor(version: &[u8]) -> Result<u8, Fault> {
    match version {
        b"HTTP/1.1" => Ok(1),
        b"HTTP/1.0" => Ok(0),
        _ => Err(Fault::malformed("the version is not HTTP/1.1 or HTTP/1.0")),
    }
}

/// What the fields say about the message.
#[derive(Debug, Default)]
struct Said {
    length: Option<u64>,
    coding: Option<Coding>,
    upgrade: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// Others, or others too.
    Other,
    Nonsense,
}

impl Said {
    fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        let (name, value) = field(line)?;
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
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn framing(&self, minor: u8) -> Result<Framing, Fault> {
        let bad = |detail| Err(Fault::new(Reason::BadFraming, detail));
        match (self.coding, self.length) {
            (None, None) => Ok(Framing::Unframed),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (Some(_), Some(_)) => bad("content-length beside transfer-encoding"),
            (Some(_), None) if minor == 0 => bad("transfer-encoding in HTTP/1.0"),
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

/// Name and value of a field's line.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Err(Fault::malformed("a field without a colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err(match name.first() {
            Some(b' ' | b'\t') => Fault::malformed("a line that continues the one before"),
            _ => Fault::malformed("a field's name is empty or has a character that no name has"),
        });
    }
    Ok((name, value.trim_ascii()))
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
pub(super) fn is_token(bytes: &[u8]) -> bool {
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
