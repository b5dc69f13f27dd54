//! What the errors of gRPC mean for a call.

use std::error::Error;
use std::iter::successors;

use palisade_supervisor::{ConnectError, chain};
use tonic::{Code, Status, TimeoutExpired};

use super::{CallError, clip};

/// Whose fault an error of a call is.
pub(super) fn call_error(status: &Status) -> CallError {
    // What tonic itself makes of a broken connection has a source; what came over the wire has none.
    if status.source().is_some() {
        return match status.code() {
            Code::DeadlineExceeded => CallError::Timeout,
            // tonic looks at the deadline that it sends, which may be over a moment before ours.
            _ if has_cause(status, |cause| cause.is::<TimeoutExpired>()) => CallError::Timeout,
            _ if has_cause(status, |cause| cause.is::<ConnectError>()) => CallError::Unsent(clip(&chain(status))),
            _ if has_cause(status, |cause| cause.downcast_ref().is_some_and(is_breach)) => {
                CallError::Unreadable(clip(&chain(status)))
            }
            _ => CallError::Lost(clip(&chain(status))),
        };
    }
    match status.code() {
        // tonic's server says that the deadline which it was told has passed.
        Code::DeadlineExceeded | Code::Cancelled => CallError::Timeout,
        // go-plugin's way to say that it is on its way out.
        Code::Unavailable => CallError::Lost(status_text(status)),
        Code::ResourceExhausted => CallError::Busy(status_text(status)),
        _ => CallError::Failed(status_text(status)),
    }
}

/// Code and message of a status, fit for a log line.
pub(super) fn status_text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), clip(status.message()))
}

/// Whether the proxy itself has reset the stream of a call, since what came of the answer is not HTTP/2 or too large: it
/// may have been a refusal.
pub(super) fn is_breach(error: &h2::Error) -> bool {
    error.is_reset() && error.is_library()
}

/// Whether there is such an error among the causes of `error`.
pub(super) fn has_cause(error: &dyn Error, is_such: impl FnMut(&(dyn Error + 'static)) -> bool) -> bool {
    successors(error.source(), |cause| (*cause).source()).any(is_such)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line() {
        let status = Status::unknown(format!("a\n2026 ERROR forged {}", "x".repeat(10_000)));
        let CallError::Failed(text) = call_error(&status) else { panic!("no failure") };
        assert!(!text.contains('\n') && text.len() < 1000, "{text}");
    }
}
