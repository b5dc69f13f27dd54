//! What a plugin is believed: that the socket it announces is its own.

pub(crate) mod peer;
