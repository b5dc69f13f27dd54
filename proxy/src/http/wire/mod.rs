//! HTTP/1 as it stands on the wire, read strictly, before a parser that is made for talking to everybody sees it.
//!
//! hyper accepts what two servers could read in two ways, and then hides it: line ends without a CR, `content-length`
//! beside `transfer-encoding`, equal lengths twice, `gzip, chunked`. So a [`Framer`] reads along, in both directions:
//! it lets through a head only when the whole of it is well-formed and says in one way where the message ends, follows
//! the body to that end, and expects the next head there. Where it and hyper could see different messages, there is no
//! message. It neither changes nor copies what it lets through.
//!
//! [`head`] judges one head, [`chunked`] follows a chunked body, [`framer`] puts the two in order.

mod chunked;
mod framer;
mod head;
#[cfg(test)]
mod tests;

pub(crate) use self::framer::{Framer, Passed, Side};
pub(crate) use self::head::Bounds;

use crate::respond::{Failure, Reason};

/// Why a message was not let through: for the log, and the reason for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    pub(crate) detail: &'static str,
}

impl Fault {
    const fn new(reason: Reason, detail: &'static str) -> Self {
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
