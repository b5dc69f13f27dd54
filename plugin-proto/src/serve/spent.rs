//! Whether a thread was slow itself, or lost its core to others.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// What a thread has done so far, where the kernel tells (getrusage(2)).
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent(Option<Counted>);

#[derive(Debug, Clone, Copy)]
struct Counted {
    cpu: Duration,
    /// How many times it gave its core up, to wait for something.
    waits: i64,
}

impl Spent {
    pub(super) fn by_this_thread() -> Self {
        let time = |spent: TimeVal| {
            let seconds = u64::try_from(spent.tv_sec()).unwrap_or(0);
            Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(spent.tv_usec()).unwrap_or(0))
        };
        Self(getrusage(UsageWho::RUSAGE_THREAD).ok().map(|usage| Counted {
            cpu: time(usage.user_time()) + time(usage.system_time()),
            waits: usage.voluntary_context_switches(),
        }))
    }

    #[cfg(test)]
    pub(super) fn of(micros: u64, waits: i64) -> Self {
        Self(Some(Counted { cpu: Duration::from_micros(micros), waits }))
    }

    /// Whether it has waited for something since `before`, or computed for longer than `most`. What took long without
    /// either is the doing of others on its core.
    pub(super) fn held_its_thread(self, before: Self, most: Duration) -> bool {
        match (before.0, self.0) {
            (Some(before), Some(now)) => now.waits != before.waits || now.cpu.saturating_sub(before.cpu) > most,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const MOST: Duration = Duration::from_millis(1);

    #[test]
    fn whoever_waits_or_computes_holds_its_thread() {
        let before = Spent::by_this_thread();
        std::thread::sleep(Duration::from_millis(1));
        assert!(Spent::by_this_thread().held_its_thread(before, MOST));

        let before = Spent::by_this_thread();
        let mut now = before;
        let began = Instant::now();
        while !now.held_its_thread(before, MOST) {
            assert!(began.elapsed() < Duration::from_secs(60));
            now = Spent::by_this_thread();
        }
    }

    #[test]
    fn whoever_lost_its_core_does_not() {
        assert!(!Spent::of(12_500, 7).held_its_thread(Spent::of(12_000, 7), MOST));
        assert!(Spent::of(12_500, 8).held_its_thread(Spent::of(12_000, 7), MOST));
        assert!(Spent::of(13_500, 7).held_its_thread(Spent::of(12_000, 7), MOST));
        // What the kernel does not tell may be anything.
        assert!(Spent(None).held_its_thread(Spent::of(12_000, 7), MOST));
    }
}
