//! When to start again after a failure. Pure: no clock, no random source but its own seed.

use std::time::Duration;

use crate::spec::RestartPolicy;

/// Counts failures in a row and gives the pause after each.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    policy: RestartPolicy,
    /// Failures in a row.
    streak: u32,
    /// Pauses taken in a row; the immediate restart is none.
    pauses: u32,
    random: u64,
}

/// How a run failed, as far as the pause depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How long it had served; `None` where it never did.
    pub(crate) served: Option<Duration>,
    pub(crate) hope: Hope,
}

/// Whether starting the same thing again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hope {
    Transient,
    /// It will fail the same way until somebody replaces the plugin, such as with a version that the host does not
    /// speak: tried again at the longest pause only.
    Permanent,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) delay: Duration,
    pub(crate) crash_looped: bool,
}

impl Backoff {
    pub(crate) fn new(policy: RestartPolicy, seed: u64) -> Self {
        // Xorshift has one fixed point, which is 0.
        Self { policy, streak: 0, pauses: 0, random: seed | 1 }
    }

    /// An operator's word: what was before does not count.
    pub(crate) fn reset(&mut self) {
        self.streak = 0;
        self.pauses = 0;
    }

    pub(crate) fn failures(&self) -> u32 {
        self.streak
    }

    pub(crate) fn failed(&mut self, failure: Failure) -> Pause {
        if failure.served.is_some_and(|served| served >= self.policy.reset_after) {
            self.reset();
        }
        self.streak = self.streak.saturating_add(1);
        let crash_looped = self.streak >= self.policy.crash_loop_after;
        let base = match failure.hope {
            Hope::Permanent => self.policy.max,
            Hope::Transient if failure.served.is_some() && self.streak == 1 => {
                return Pause { delay: Duration::ZERO, crash_looped };
            }
            Hope::Transient => self.next_step(),
        };
        Pause { delay: self.vary(base), crash_looped }
    }

    fn next_step(&mut self) -> Duration {
        let factor = self.policy.multiplier.max(1.0).powi(i32::try_from(self.pauses).unwrap_or(i32::MAX));
        self.pauses = self.pauses.saturating_add(1);
        // Bounded before the conversion, which panics on infinity.
        let seconds = (self.policy.initial.as_secs_f64() * factor).min(self.policy.max.as_secs_f64());
        Duration::from_secs_f64(seconds)
    }

    /// Varies a pause so that plugins felled by the same cause do not come back in step. Never beyond the maximum.
    fn vary(&mut self, base: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let unit = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        let factor = 1.0 + self.policy.jitter.clamp(0.0, 1.0) * (2.0 * unit - 1.0);
        base.mul_f64(factor).min(self.policy.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn exact() -> Backoff {
        Backoff::new(RestartPolicy { jitter: 0.0, ..RestartPolicy::default() }, 7)
    }

    fn failure(served: Option<Duration>) -> Failure {
        Failure { served, hope: Hope::Transient }
    }

    #[test]
    fn a_crash_loop_doubles_up_to_the_cap() {
        let mut backoff = exact();
        let pauses: Vec<_> = (0..12).map(|_| backoff.failed(failure(None))).collect();
        let millis: Vec<_> = pauses.iter().map(|pause| pause.delay.as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000]);
        assert_eq!(pauses.iter().position(|pause| pause.crash_looped), Some(4));
    }

    #[test]
    fn the_first_restart_after_serving_is_immediate_the_second_is_not() {
        let mut backoff = exact();
        assert_eq!(backoff.failed(failure(Some(5 * MS))).delay, Duration::ZERO);
        assert_eq!(backoff.failed(failure(Some(5 * MS))).delay, 100 * MS);
        assert_eq!(backoff.failed(failure(Some(5 * MS))).delay, 200 * MS);
    }

    #[test]
    fn a_long_healthy_run_and_an_operator_make_failures_forgotten() {
        let mut backoff = exact();
        for _ in 0..8 {
            backoff.failed(failure(None));
        }
        let healthy = backoff.failed(failure(Some(Duration::from_secs(60))));
        assert_eq!(healthy, Pause { delay: Duration::ZERO, crash_looped: false });
        backoff.reset();
        assert_eq!(backoff.failed(failure(None)).delay, 100 * MS);
    }

    #[test]
    fn a_permanent_failure_waits_for_the_longest_pause() {
        let pause = exact().failed(Failure { served: None, hope: Hope::Permanent });
        assert_eq!(pause.delay, Duration::from_secs(30));
    }

    #[test]
    fn jitter_stays_within_its_share_and_below_the_cap() {
        for seed in 0..500 {
            let mut backoff = Backoff::new(RestartPolicy::default(), seed);
            let first = backoff.failed(failure(None)).delay;
            assert!((80 * MS..=120 * MS).contains(&first), "{first:?}");
            for _ in 0..2_000 {
                assert!(backoff.failed(failure(None)).delay <= Duration::from_secs(30));
            }
        }
    }
}
