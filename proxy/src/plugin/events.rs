//! What has happened to plugins: the last transitions of all of them, in order, for those who look or wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_supervisor::Transition;
use serde::Serialize;
use tokio::sync::watch;

/// How many are kept.
const KEPT: usize = 1000;

/// The last events of all plugins. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: Mutex<VecDeque<Event>>,
    /// The number of the latest; 0 before the first.
    latest: watch::Sender<u64>,
}

/// One transition of one instance.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Event {
    /// Counts from 1, over all plugins.
    pub(crate) number: u64,
    /// Counts from 1; absent where the plugin has only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<usize>,
    #[serde(flatten)]
    pub(crate) transition: Transition,
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Shared { ring: Mutex::default(), latest: watch::Sender::new(0) }))
    }
}

impl Events {
    pub(crate) fn record(&self, instance: Option<usize>, transition: &Transition) {
        let mut ring = self.ring();
        // All under the lock, so that numbers are in the order of the ring.
        let number = *self.0.latest.borrow() + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Event { number, instance, transition: transition.clone() });
        self.0.latest.send_replace(number);
    }

    /// Those after the event `after` that are still there.
    pub(crate) fn after(&self, after: u64) -> Vec<Event> {
        self.ring().iter().filter(|event| event.number > after).cloned().collect()
    }

    /// Returns when there is an event after `after`. Cancel safe.
    pub(crate) async fn wait_after(&self, after: u64) {
        // The sender lives as long as this.
        self.0.latest.subscribe().wait_for(|latest| *latest > after).await.map(drop).ok();
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // Whole between its lines: nothing panics under the lock.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use palisade_supervisor::State;

    use super::*;

    fn transition() -> Transition {
        Transition {
            plugin: "auth".to_owned(),
            at: SystemTime::UNIX_EPOCH,
            start: 1,
            pid: None,
            from: State::Stopped,
            to: State::Starting,
            reason: None,
        }
    }

    #[test]
    fn the_last_thousand_are_kept_in_order() {
        let events = Events::default();
        for _ in 0..KEPT + 5 {
            events.record(None, &transition());
        }
        let numbers: Vec<_> = events.after(0).iter().map(|event| event.number).collect();
        assert_eq!((numbers.len(), numbers.first(), numbers.last()), (KEPT, Some(&6), Some(&1005)));
        assert!(numbers.is_sorted());
        assert_eq!(events.after(1003).len(), 2);
        assert!(events.after(u64::MAX).is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_told_of_the_next() {
        let events = Events::default();
        events.record(Some(2), &transition());
        events.wait_after(0).await;
        let waiting = tokio::spawn({
            let events = events.clone();
            async move { events.wait_after(1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        events.record(None, &transition());
        assert!(waiting.await.is_ok());
        let json = serde_json::to_value(&events.after(0)[0]).unwrap_or_default();
        let expected = serde_json::json!({
            "number": 1, "instance": 2, "plugin": "auth", "at": 0.0, "start": 1, "pid": null, "from": "stopped",
            "to": "starting", "reason": null,
        });
        assert_eq!(json, expected);
    }
}
