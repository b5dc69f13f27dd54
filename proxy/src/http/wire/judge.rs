//! What HTTP/1 says, as plain values: for tests and fuzz targets, which compare readings with each other.

use super::head::{Bounds, Framing};
use super::reader::{Piece, Reader};
use crate::respond::Reason;

/// Whose messages they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Requests, from a client.
    Client,
    /// Responses, from a server.
    Server,
}

/// Everything that was read: start lines, fields and bodies, and why no more. Pieces of a body are joined.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) messages: Vec<String>,
    /// Whether the last message is whole, and nothing came behind it.
    pub(crate) whole: bool,
    pub(crate) fault: Option<Reason>,
}

/// Reads `bytes` as they come in pieces that end at `cuts`, and then end.
pub(crate) fn read(side: Side, bounds: Bounds, bytes: &[u8], cuts: &[usize]) -> Reading {
    let mut reader = Reader::new(bounds);
    let mut reading = Reading { whole: true, ..Reading::default() };
    let mut from = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        let end = end.clamp(from, bytes.len());
        reader.feed(&bytes[from..end]);
        from = end;
        if let Err(fault) = take(side, &mut reader, &mut reading) {
            reading.fault = Some(fault.reason);
            reading.whole = false;
            return reading;
        }
    }
    reading.whole &= reader.is_empty() && reader.finish();
    reading
}

fn take(side: Side, reader: &mut Reader, reading: &mut Reading) -> Result<(), super::Fault> {
    loop {
        if !reader.is_at_end() {
            let piece = match reader.body() {
                Ok(piece) => piece,
                Err(fault) => {
                    stays(fault, reader);
                    return Err(fault);
                }
            };
            let Some(message) = reading.messages.last_mut() else { return Ok(()) };
            match piece {
                Piece::Data(data) => message.push_str(&data.escape_ascii().to_string()),
                Piece::Trailers(trailers) => message.push_str(&format!("{trailers:?}")),
                Piece::End => {}
                Piece::More => return Ok(()),
            }
            continue;
        }
        let message = match side {
            Side::Client => reader.request()?.map(|head| format!("{head:?}")),
            Side::Server => reader.response()?.map(|head| {
                let bodiless = head.status.is_informational() || matches!(head.status.as_u16(), 204 | 304);
                reader.begin(if bodiless { Framing::Length(0) } else { head.framing });
                format!("{head:?}")
            }),
        };
        match message {
            Some(message) => reading.messages.push(message + " "),
            None => return Ok(()),
        }
    }
}

/// A body that was refused once stays so, whatever is read of what follows: it would be read as what it is not.
fn stays(fault: super::Fault, reader: &mut Reader) {
    for more in [&b""[..], b"\r\n0\r\n\r\n", b"\n\r\n"] {
        reader.feed(more);
        assert_eq!(reader.body().err(), Some(fault), "it is read on behind {fault}");
        assert!(!reader.is_at_end() && !reader.finish(), "it has an end behind {fault}");
    }
}
