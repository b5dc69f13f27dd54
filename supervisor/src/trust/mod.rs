//! What a plugin is believed: that its program is the one that was pinned, and that the socket it announces is its own.

pub(crate) mod checksum;
pub(crate) mod directory;
pub(crate) mod peer;
