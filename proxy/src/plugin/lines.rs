//! Connections to one instance: each worker has its own.

use std::fmt::Display;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::workers::PerWorker;

/// How long a worker may take to connect. One that stands still is not to keep the plugin from serving the others.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What `open` makes, once for each of `workers`, beside `first`, the connection that was checked, for everything but
/// requests. A worker that can't have one of its own does with the first: there may be no other, or the plugin takes no
/// more.
pub(super) async fn open<T, E, F>(first: T, workers: &[Handle], open: impl Fn() -> F) -> PerWorker<T>
where
    T: Clone + Send + 'static,
    E: Display + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let each = workers.iter().map(|worker| {
        // Whoever makes it works for it.
        let opening = AbortOnDropHandle::new(worker.spawn(open()));
        one(first.clone(), async { opening.await.map_err(|error| error.to_string())?.map_err(|why| why.to_string()) })
    });
    let each = join_all(each).await;
    PerWorker::of(first, each)
}

/// What `open` makes, or `first` where that can't be had.
pub(super) async fn one<T, E: Display>(first: T, open: impl Future<Output = Result<T, E>>) -> T {
    let why = match tokio::time::timeout(PATIENCE, open).await {
        Ok(Ok(line)) => return line,
        Ok(Err(why)) => why.to_string(),
        Err(_) => format!("it was not made within {PATIENCE:?}"),
    };
    tracing::debug!(target: "palisade::plugin", why, "calls go over the first connection");
    first
}
