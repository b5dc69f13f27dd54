//! The contract between Palisade and its plugins, shared by both sides.
//!
//! - [`v1`]: the native contract, package `palisade.plugin.v1`.
//! - [`mosn`]: MOSN's one call, package `proto`.
//! - [`goplugin`]: the services of HashiCorp go-plugin, package `plugin`.
//! - [`handshake`]: the line that a plugin prints when it listens.
//! - [`env`]: names of the variables that a host puts into a plugin's environment.
//! - [`socket`]: what both talk over.
//! - [`pieces`]: gRPC's messages in a stream of bytes.
//! - [`serve`]: writes a plugin in Rust; start there to make one.
//!
//! The messages are generated from the .proto files in `proto/`, which hold their documentation.

pub mod env;
pub mod handshake;
pub mod pieces;
mod request;
pub mod serve;
pub mod socket;

/// `palisade.plugin.v1`: what Palisade and its plugins say to each other.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from proto/palisade/plugin/v1, which is documented"
    )]
    tonic::include_proto!("palisade.plugin.v1");
}

/// `proto`: MOSN's `Plugin/Call`.
pub mod mosn {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from proto/mosn/plugin.proto, which is documented"
    )]
    tonic::include_proto!("proto");
}

/// `plugin`: the services of HashiCorp go-plugin.
pub mod goplugin {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from proto/goplugin/plugin.proto, which is documented"
    )]
    tonic::include_proto!("plugin");
}
