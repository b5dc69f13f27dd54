//! What operators see of a running proxy without asking a client: its log and its metrics.

pub(crate) mod logs;
mod metrics;
mod queue;
mod shards;

pub(crate) use metrics::{Connection, Metrics, Observed, Outcome};
