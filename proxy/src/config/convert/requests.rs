//! How a listener reads requests.

use super::super::written;
use super::super::{Ambiguous, DoubleSlashes, Requests, Underscores};
use super::Reading;

impl Reading<'_> {
    pub(super) fn requests(&mut self, written: &written::Requests) -> Requests {
        Requests {
            underscores: written.underscores.value().copied().map(Into::into).unwrap_or_default(),
            encoded_slashes: written.encoded_slashes.value().copied().map(Into::into).unwrap_or_default(),
            parameters: written.parameters.value().copied().map(Into::into).unwrap_or_default(),
            double_slashes: written.double_slashes.value().copied().map(Into::into).unwrap_or_default(),
            trailers: self.header_names(&written.trailers),
        }
    }

    /// Names of headers that are no part of the connection or the framing.
    pub(super) fn header_names(&mut self, written: &written::List<String>) -> Vec<http::HeaderName> {
        self.list(written, |reading, name, node| reading.header_name(name, node))
    }
}

impl From<written::Underscores> for Underscores {
    fn from(written: written::Underscores) -> Self {
        match written {
            written::Underscores::Refuse => Self::Refuse,
            written::Underscores::Drop => Self::Drop,
            written::Underscores::Keep => Self::Keep,
        }
    }
}

impl From<written::Ambiguous> for Ambiguous {
    fn from(written: written::Ambiguous) -> Self {
        match written {
            written::Ambiguous::Refuse => Self::Refuse,
            written::Ambiguous::Keep => Self::Keep,
        }
    }
}

impl From<written::DoubleSlashes> for DoubleSlashes {
    fn from(written: written::DoubleSlashes) -> Self {
        match written {
            written::DoubleSlashes::Merge => Self::Merge,
            written::DoubleSlashes::Refuse => Self::Refuse,
            written::DoubleSlashes::Keep => Self::Keep,
        }
    }
}
