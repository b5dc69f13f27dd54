//! How many calls an instance gets at a time, and how many wait for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::CallError;

/// In front of one instance.
#[derive(Debug)]
pub(super) struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    most_waiting: usize,
}

/// Who waits is counted, and no longer when it leaves.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    pub(super) fn new(most: usize, most_waiting: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), waiting: AtomicUsize::new(0), most_waiting }
    }

    /// A place, if there is one at this moment.
    pub(super) fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place, held for as long as the call is under way. Cancel safe: whoever leaves gives its place in the queue up.
    pub(super) async fn enter(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, CallError> {
        if let Some(place) = self.try_enter() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.most_waiting {
            return Err(CallError::Overloaded);
        }
        match timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(CallError::Overloaded),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn places_then_a_queue_then_a_refusal() {
        let gate = Arc::new(Gate::new(2, 1));
        let soon = Instant::now() + Duration::from_secs(1);
        let first = gate.enter(soon).await.unwrap();
        let _second = gate.enter(soon).await.unwrap();
        let waits = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter(soon).await.map(drop) }
        });
        tokio::task::yield_now().await;
        // At once, not at the deadline.
        assert_eq!(gate.enter(soon).await.unwrap_err(), CallError::Overloaded);
        assert!(Instant::now() < soon);
        drop(first);
        waits.await.unwrap().unwrap();
        // The queue has room for one again; its deadline is its end.
        let _third = gate.enter(soon).await.unwrap();
        assert_eq!(gate.enter(soon).await.unwrap_err(), CallError::Overloaded);
        assert!(Instant::now() >= soon);
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_the_queue_makes_room_in_it() {
        let gate = Gate::new(1, 1);
        let soon = Instant::now() + Duration::from_secs(1);
        let place = gate.enter(soon).await.unwrap();
        tokio::select! {
            biased;
            _ = gate.enter(soon) => unreachable!("there is no place"),
            () = std::future::ready(()) => {}
        }
        let waits = gate.enter(soon);
        tokio::pin!(waits);
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        drop(place);
        drop(waits.await.unwrap());
    }
}
