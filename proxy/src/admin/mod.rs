//! For operators of the machine: what the proxy is doing, and orders to its plugins, as HTTP on a unix socket.
//!
//! Whoever may connect may stop plugins, so the socket is its owner's alone, in a directory that is its owner's alone.

mod readiness;
mod routes;
mod socket;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use self::readiness::Readiness;
pub(crate) use self::socket::{bind, serve};
use crate::config::Config;
use crate::plugin::Plugins;
use crate::telemetry::Metrics;

/// How long an order is waited for before the plugin's state is told as it is. Less than what the client waits.
pub(crate) const ORDER_TIMEOUT: Duration = Duration::from_secs(50);

/// The socket's name in the runtime directory.
pub(crate) const SOCKET: &str = "admin.sock";

/// What can be asked about and ordered.
#[derive(Debug)]
pub(crate) struct Admin {
    config_file: PathBuf,
    started: SystemTime,
    plugins: Arc<Plugins>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

impl Admin {
    /// For a proxy that starts now.
    pub(crate) fn new(
        config: &Config,
        plugins: Arc<Plugins>,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
    ) -> Self {
        // As the operator would find it from elsewhere.
        let config_file = std::path::absolute(&config.file).unwrap_or_else(|_| config.file.clone());
        Self { config_file, started: SystemTime::now(), plugins, metrics, readiness }
    }
}
