//! The proxy, in the order in which a request meets its rooms: `listener` and `tls` take connections, `http` reads
//! requests into their one canonical form, `proxy` leads each through `filter`, `route`, `upstream` and back, and
//! `respond` alone turns a failure into a status. Beside them: `plugin` speaks the plugins' contracts, `config` reads
//! the file, `runtime` is the proxy's own life, `cli` what operators type, `admin` what a running proxy answers them,
//! `telemetry` its log and its metrics.

mod admin;
#[cfg(feature = "bench")]
pub mod bench;
pub mod cli;
pub mod config;
mod filter;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod http;
mod known;
mod listener;
mod overload;
mod plugin;
mod proxy;
mod respond;
mod route;
pub mod runtime;
mod telemetry;
mod tls;
mod tunnel;
mod upstream;
mod workers;
