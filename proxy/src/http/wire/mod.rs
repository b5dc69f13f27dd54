//! HTTP/1 as it stands on the wire, in both directions.
//!
//! What two servers could read in two ways is refused: line ends without a CR, `content-length` beside
//! `transfer-encoding`, equal lengths twice, `gzip, chunked`. A head is read only when the whole of it is well-formed
//! and says in one way where its message ends; each body is read to that end, and the next head is expected there.
//! What is written is written anew, from what was read: no byte goes through as it came but those of a body.
//!
//! [`head`] reads one head, [`chunked`] a chunked body, [`reader`] one message behind the other; [`write`] writes heads
//! and chunks, [`outgoing`] a whole message as its body comes.

mod chunked;
mod head;
#[cfg(any(test, fuzzing))]
mod judge;
mod outgoing;
mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod write;

pub(crate) use self::head::{Bounds, Framing, Request, Response};
#[cfg(any(test, fuzzing))]
pub(crate) use self::judge::{Side, read};
pub(crate) use self::outgoing::{Cut, Outgoing};
pub(crate) use self::reader::{Piece, Reader};
pub(crate) use self::write::Ends;

use crate::respond::{Failure, Reason};

/// Why a message was not let through: for the log, and the reason for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    pub(crate) detail: &'static str,
}

impl Fault {
    pub(crate) const fn new(reason: Reason, detail: &'static str) -> Self {
        Self { reason, detail }
    }

    /// The head did not come in time.
    pub(crate) const fn late() -> Self {
        Self::new(Reason::HeaderTimeout, "the head did not come in time")
    }

    /// It is no HTTP at all.
    const fn foreign() -> Self {
        Self::malformed("neither a method nor a version of HTTP")
    }

    /// Whether it is no HTTP at all.
    pub(crate) fn is_foreign(&self) -> bool {
        *self == Self::foreign()
    }

    const fn malformed(detail: &'static str) -> Self {
        Self::new(Reason::Malformed, detail)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::new(fault.reason).with(fault.detail)
    }
}
