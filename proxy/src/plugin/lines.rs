//! Connections to one instance: each worker has its own.

use std::error::Error;
use std::time::Duration;

use futures_util::future::join_all;
use palisade_supervisor::{ConnectError, Connector, chain};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::workers::PerWorker;

/// How long a worker may take to connect. One that stands still is not to keep the plugin from serving the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// The connection that was checked first, for everything but requests, and those of the workers.
#[derive(Debug)]
pub(super) struct Lines(PerWorker<Channel>);

impl Lines {
    /// Connects for each of `workers`. One that can't have a connection of its own does with the first: there may be no
    /// other, or the plugin takes no more.
    pub(super) async fn open(first: Channel, connector: &Connector, workers: &[Handle]) -> Self {
        let open = |worker: &Handle| {
            let connector = connector.clone();
            // Whoever makes it works for it.
            let opened = worker.spawn(async move { connector.another().await });
            tokio::time::timeout(PATIENCE, AbortOnDropHandle::new(opened))
        };
        let opened = join_all(workers.iter().map(open)).await;
        let each = opened.into_iter().map(|opened| {
            let why = match opened {
                Ok(Ok(Ok(channel))) => return channel,
                Ok(Ok(Err(error))) => chain(&error).to_string(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("it was not made within {PATIENCE:?}"),
            };
            tracing::debug!(target: "palisade::plugin", why, "a worker has no connection of its own");
            first.clone()
        });
        let each = each.collect();
        Self(PerWorker::of(first, each))
    }

    /// What is not a worker's.
    pub(super) fn first(&self) -> &Channel {
        self.0.rest()
    }

    /// That of the worker whose thread this is.
    pub(super) fn here(&self) -> &Channel {
        self.0.here()
    }

    /// Something for each of them.
    pub(super) fn map<T>(&self, make: impl FnMut(&Channel) -> T) -> PerWorker<T> {
        self.0.map(make)
    }
}

/// Whether a call came to nothing for want of a connection.
pub(super) fn is_unsent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
