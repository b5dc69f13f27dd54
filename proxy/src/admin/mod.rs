//! For operators of the machine: what the proxy is doing, and orders to its plugins, as HTTP on a unix socket.
//!
//! Whoever may connect may stop plugins, so the socket is its owner's alone, in a directory that is its owner's alone.

mod change;
mod in_force;
mod readiness;
mod routes;
mod socket;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

pub(crate) use self::change::{Change, Changed, Differences, MOST_ORDERS, Order, Refused};
pub(crate) use self::in_force::InForce;
pub(crate) use self::readiness::Readiness;
pub(crate) use self::socket::{Retirement, adopt, bind, spawn};
use crate::config::Config;
use crate::plugin::Events;
use crate::telemetry::Metrics;

/// How long an order is waited for before the plugin's state is told as it is. Less than what the client waits.
pub(crate) const ORDER_TIMEOUT: Duration = Duration::from_secs(50);

/// How long a change of what is in force is waited for: processes start, last through their probation, and end. It goes
/// on when the time is up. Less than what the client waits.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(150);

/// How long a question for events waits for the next one.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The socket's name in the runtime directory.
pub(crate) const SOCKET: &str = "admin.sock";

/// What can be asked about and ordered.
#[derive(Debug)]
pub(crate) struct Admin {
    config_file: PathBuf,
    started: SystemTime,
    in_force: Arc<InForce>,
    events: Events,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    orders: mpsc::Sender<Order>,
}

impl Admin {
    /// For a proxy that starts now.
    pub(crate) fn new(
        config: &Config,
        in_force: &Arc<InForce>,
        events: &Events,
        metrics: &Arc<Metrics>,
        readiness: &Arc<Readiness>,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        // As the operator would find it from elsewhere.
        let config_file = std::path::absolute(&config.file).unwrap_or_else(|_| config.file.clone());
        let (in_force, metrics, readiness) = (Arc::clone(in_force), Arc::clone(metrics), Arc::clone(readiness));
        Self { config_file, started: SystemTime::now(), in_force, events: events.clone(), metrics, readiness, orders }
    }
}
