//! HTTP as the client sees it: reading requests into their one canonical form, and serving connections.

mod activity;
mod body;
mod connection;
mod counted;
mod frames;
pub(crate) mod headers;
mod io;
mod linger;
pub(crate) mod path;
mod request;
pub(crate) mod wire;

pub(crate) use self::activity::Closed;
pub(crate) use self::body::{Body, BodyUnread, BoxError, Progress, RequestBody, empty, full};
pub(crate) use self::connection::{Connections, serve};
pub(crate) use self::io::Protocol;
pub(crate) use self::request::{Client, Place, Request, Rules, TlsFacts, read};
