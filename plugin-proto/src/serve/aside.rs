//! Where calls are begun that may block: beside the threads of the runtime, which answers health checks, too.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot};

/// Threads at a time that may be blocked. A runtime has 512 unless the program says otherwise, and others need some.
pub(super) const PLACES: usize = 256;

/// Places for calls that may block.
pub(super) struct Aside(Arc<Semaphore>);

impl Aside {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(PLACES)))
    }

    /// Begins work on a thread that may be blocked; what it waits for, and the rest from there on, is the caller's.
    /// `None`: it panicked, or the runtime ends. Who drops this while it blocks leaves the thread to it, and its place.
    pub(super) async fn begin<T: Send + 'static>(&self, mut work: BoxFuture<'static, T>) -> Option<T> {
        let place = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let (sender, begun) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            // Nobody may wait any more, if the runtime has fewer threads.
            if !sender.is_closed() {
                let begun = (&mut work).now_or_never().ok_or(work);
                sender.send(begun).ok();
            }
        });
        match begun.await.ok()? {
            Ok(output) => Some(output),
            Err(work) => Some(work.await),
        }
    }
}
