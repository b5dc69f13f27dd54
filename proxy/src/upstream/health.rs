//! Which endpoints get requests: those that have not failed too often in a row, and that answer when they are asked.
//!
//! Two witnesses: what happened to requests (an endpoint that fails `failures` of them in a row gets none for
//! `eject_for`, longer each time), and checks, where the configuration asks for them. When fewer than `panic_below`
//! percent are left, neither is believed: better a few that may fail than too few that are overrun.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How often the time that an endpoint gets nothing is doubled at most.
const MOST_DOUBLINGS: u32 = 5;

/// What is known about one endpoint.
#[derive(Debug)]
pub(super) struct Health {
    start: Instant,
    /// Requests that failed in a row.
    failures: AtomicU32,
    /// Milliseconds since `start` until which it gets nothing.
    ejected: AtomicU64,
    /// How often in a row it was ejected.
    ejections: AtomicU32,
    /// What the last checks say.
    answers: AtomicBool,
    /// Checks in a row that said otherwise.
    against: AtomicU32,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            failures: AtomicU32::new(0),
            ejected: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            answers: AtomicBool::new(true),
            against: AtomicU32::new(0),
        }
    }

    /// Whether it gets requests.
    pub(super) fn is_up(&self) -> bool {
        self.answers.load(Ordering::Relaxed) && self.ejected.load(Ordering::Relaxed) <= self.now()
    }

    /// A request was answered.
    pub(super) fn succeeded(&self) {
        // Most of the time there is nothing to forget.
        if self.failures.load(Ordering::Relaxed) > 0 || self.ejections.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// A request failed by its fault. Returns for how long it gets nothing now, if that is new. 0 `most`: never.
    pub(super) fn failed(&self, most: u32, period: Duration) -> Option<Duration> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if most == 0 || failures < most || !self.is_up() {
            return None;
        }
        self.failures.store(0, Ordering::Relaxed);
        let doublings = self.ejections.fetch_add(1, Ordering::Relaxed).min(MOST_DOUBLINGS);
        let period = period * 2_u32.pow(doublings);
        let until = self.now().saturating_add(u64::try_from(period.as_millis()).unwrap_or(u64::MAX));
        self.ejected.store(until, Ordering::Relaxed);
        Some(period)
    }

    /// A check said whether it answers. Returns whether that changes anything, which takes so many in a row.
    pub(super) fn checked(&self, answers: bool, falls_after: u32, rises_after: u32) -> bool {
        if self.answers.load(Ordering::Relaxed) == answers {
            self.against.store(0, Ordering::Relaxed);
            return false;
        }
        let against = self.against.fetch_add(1, Ordering::Relaxed) + 1;
        if against < if answers { rises_after } else { falls_after } {
            return false;
        }
        self.against.store(0, Ordering::Relaxed);
        self.answers.store(answers, Ordering::Relaxed);
        true
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject_for_longer_each_time() {
        let health = Health::new();
        for _ in 0..3 {
            assert_eq!(health.failed(3, PERIOD), None);
            assert_eq!(health.failed(3, PERIOD), None);
            health.succeeded();
        }
        for seconds in [10, 20, 40, 80, 160, 320, 320] {
            assert_eq!((health.failed(3, PERIOD), health.failed(3, PERIOD)), (None, None));
            assert!(health.is_up());
            assert_eq!(health.failed(3, PERIOD), Some(Duration::from_secs(seconds)));
            assert!(!health.is_up());
            assert_eq!(health.failed(3, PERIOD), None, "of those that were under way");
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert!(health.is_up());
            health.failures.store(0, Ordering::Relaxed);
        }
        health.succeeded();
        assert_eq!(health.failed(1, PERIOD), Some(PERIOD));
        let never = Health::new();
        assert!((0..100).all(|_| never.failed(0, PERIOD).is_none()));
    }

    #[tokio::test]
    async fn checks_need_company() {
        let health = Health::new();
        assert!(!health.checked(false, 2, 2) && health.is_up());
        assert!(!health.checked(true, 2, 2) && health.is_up());
        assert!(!health.checked(false, 2, 2));
        assert!(health.checked(false, 2, 2) && !health.is_up());
        assert!(!health.checked(true, 2, 2) && !health.is_up());
        assert!(health.checked(true, 2, 2) && health.is_up());
    }
}
