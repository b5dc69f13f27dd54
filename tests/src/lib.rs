//! The harness of the end to end tests: the proxy as a process, clients and upstreams to put around it, and a plugin
//! that misbehaves by name (`src/bin/fake-plugin`).
//!
//! - [`Proxy`]: starts the `palisade` binary with a configuration, reads its log and its status, and makes sure that
//!   nothing of it is left.
//! - [`Upstream`]: a server in this process that behaves by path and remembers what it was asked.
//! - [`Load`]: clients that ask all the time and want every answer to be right.
//! - [`Client`], [`Raw`]: clients, one that speaks HTTP properly and one that sends what it is told.
//! - [`tls`]: a certificate authority and TLS clients.
//! - [`process`]: what runs on this host.
//! - [`GoPlugin`]: genuine go-plugin programs, where Go is there.
//!
//! Tests wait for events with long deadlines and never sleep for luck.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod go;
mod load;
pub mod process;
mod proxy;
mod raw;
pub mod tls;
mod upstream;

use std::fmt;
use std::time::Duration;

pub use self::client::{Client, Reply, Stream, body_of, get};
pub use self::go::GoPlugin;
pub use self::load::Load;
pub use self::proxy::{
    Options, Outcome, Proxy, cli_in, fake, filtered, place, programs_in, run_to_exit, run_to_exit_with, validate,
};
pub use self::raw::{Raw, RawReply};
pub use self::upstream::{Refusing, Scripted, Seen, TREASURE, Upstream, is_blocked, read_head};

/// The header by which the fake, where it is a filter, lets a request pass.
pub const ADMIN: (&str, &str) = ("user", "admin");

/// Long enough for a loaded machine; nothing waits that long unless it is broken.
pub const LONG: Duration = Duration::from_secs(30);

/// Bounds anything by [`LONG`].
///
/// # Panics
///
/// When it takes longer.
pub async fn soon<T>(what: impl fmt::Display, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing came within {LONG:?}"),
    }
}

/// Waits for something that has no event of its own.
///
/// # Panics
///
/// When it takes longer than [`LONG`].
pub async fn eventually(what: impl fmt::Display, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, waiting).await;
}
