//! Places for connections: those of one listener, and those of all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// So many and no more, at most as [`Places::set`] says.
#[derive(Debug)]
pub(crate) struct Places {
    taken: AtomicUsize,
    most: AtomicUsize,
    /// Whenever one is given back, or there are more.
    changed: Notify,
}

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Places>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Places {
    pub(crate) fn new(most: usize) -> Self {
        Self { taken: AtomicUsize::new(0), most: AtomicUsize::new(most), changed: Notify::new() }
    }

    /// From here on there are `most`. If more are taken already, those stay so.
    pub(crate) fn set(&self, most: usize) {
        if self.most.swap(most, Ordering::SeqCst) < most {
            self.changed.notify_waiters();
        }
    }

    /// One of them, if there is one left.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Taken> {
        let most = self.most.load(Ordering::SeqCst);
        let take = |taken| (taken < most).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        taken.ok().map(|_| Taken(Arc::clone(self)))
    }

    /// Returns when there is one left, which others may take meanwhile. Cancel safe.
    pub(crate) async fn room(&self) {
        self.until(|taken| taken < self.most.load(Ordering::SeqCst)).await;
    }

    /// Returns when none is taken. Cancel safe.
    pub(crate) async fn empty(&self) {
        self.until(|taken| taken == 0).await;
    }

    async fn until(&self, is: impl Fn(usize) -> bool) {
        loop {
            // Before it is looked: what changes from here on wakes the wait.
            let changed = self.changed.notified();
            if is(self.taken.load(Ordering::SeqCst)) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn there_are_so_many_and_no_more() {
        let places = Arc::new(Places::new(2));
        let (first, second) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none());
        let room = || {
            tokio::spawn({
                let places = Arc::clone(&places);
                async move { places.room().await }
            })
        };
        // Everybody who waits is told: who is told first may stand still.
        let waiting = [room(), room()];
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|one| !one.is_finished()));
        drop(first);
        for one in waiting {
            one.await.unwrap();
        }
        let first = places.take().unwrap();
        places.set(1);
        drop(first);
        assert!(places.room().now_or_never().is_none() && places.take().is_none());
        let more = room();
        tokio::task::yield_now().await;
        places.set(2);
        more.await.unwrap();
        assert!(places.empty().now_or_never().is_none());
        drop(second);
        places.empty().await;
    }
}
