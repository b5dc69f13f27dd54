//! Whether and when to start again after a failure. Pure but for the [`Stagger`] that instances share: no clock, no random
//! source but its own seed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::spec::{RestartMode, RestartPolicy};
use crate::status::WontRetry;

/// Counts failures in a row and restarts in the window, and says what follows each failure.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    policy: RestartPolicy,
    /// Failures in a row.
    streak: u32,
    /// Pauses taken in a row; the immediate restart is none.
    pauses: u32,
    /// When restarts were decided on, the oldest first. Never more than the policy's `max_restarts`.
    recent: VecDeque<Instant>,
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

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry { delay: Duration, crash_looped: bool },
    GiveUp(WontRetry),
}

impl Backoff {
    pub(crate) fn new(policy: RestartPolicy, seed: u64) -> Self {
        // Xorshift has one fixed point, which is 0.
        Self { policy, streak: 0, pauses: 0, recent: VecDeque::new(), random: seed | 1 }
    }

    /// An operator's word: what was before does not count.
    pub(crate) fn reset(&mut self) {
        self.forget_streak();
        self.recent.clear();
    }

    fn forget_streak(&mut self) {
        self.streak = 0;
        self.pauses = 0;
    }

    /// Whether a plugin that ended by itself with exit status 0, after it had served, is left alone.
    pub(crate) fn rests_after_clean_exit(&self) -> bool {
        self.policy.mode != RestartMode::Always
    }

    pub(crate) fn failures(&self) -> u32 {
        self.streak
    }

    pub(crate) fn failed(&mut self, failure: Failure, now: Instant) -> Verdict {
        if failure.served.is_some_and(|served| served >= self.policy.reset_after) {
            self.forget_streak();
        }
        self.streak = self.streak.saturating_add(1);
        if self.policy.mode == RestartMode::Never {
            return Verdict::GiveUp(WontRetry::Policy);
        }
        if !self.within_intensity(now) {
            return Verdict::GiveUp(WontRetry::TooManyRestarts);
        }
        let crash_looped = self.streak >= self.policy.crash_loop_after;
        let base = match failure.hope {
            Hope::Permanent => self.policy.max,
            Hope::Transient if failure.served.is_some() && self.streak == 1 => {
                let delay = self.policy.stagger.delay(Duration::ZERO, now);
                return Verdict::Retry { delay, crash_looped };
            }
            Hope::Transient => self.next_step(),
        };
        let pause = self.vary(base);
        Verdict::Retry { delay: self.policy.stagger.delay(pause, now), crash_looped }
    }

    /// Counts one more restart, as Erlang/OTP's supervisors do: at most so many within the window that ends now.
    fn within_intensity(&mut self, now: Instant) -> bool {
        let Some(most) = self.policy.max_restarts else { return true };
        while self.recent.front().is_some_and(|at| now.duration_since(*at) > self.policy.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= most as usize {
            return false;
        }
        self.recent.push_back(now);
        true
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

/// Keeps restarts apart that would come in the same moment, such as those of several instances that one cause has felled:
/// the first is back sooner if it need not share the machine with the others. Clones share it, so give the same to all
/// instances of a plugin. Default: no distance.
#[derive(Debug, Clone, Default)]
pub struct Stagger {
    distance: Duration,
    /// When restarts are due, in no order.
    due: Arc<Mutex<Vec<Instant>>>,
}

impl Stagger {
    /// So that between any two there is at least this time.
    #[must_use]
    pub fn new(distance: Duration) -> Self {
        Self { distance, due: Arc::default() }
    }

    /// The pause before a restart that would be due after `pause`: as long, or longer by as little as is enough.
    fn delay(&self, pause: Duration, now: Instant) -> Duration {
        if self.distance.is_zero() {
            return pause;
        }
        // Whole between its lines: nothing panics under the lock.
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.retain(|at| *at + self.distance > now);
        due.sort();
        let mut at = now + pause;
        for other in &*due {
            if at < *other + self.distance && *other < at + self.distance {
                at = *other + self.distance;
            }
        }
        due.push(at);
        at - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_that_share_a_stagger_are_apart() {
        let stagger = Stagger::new(100 * MS);
        let now = Instant::now();
        let millis = |pause: u64, at: u64| stagger.clone().delay(pause as u32 * MS, now + at as u32 * MS).as_millis();
        assert_eq!([millis(0, 0), millis(0, 0), millis(0, 30)], [0, 100, 170]);
        // A long pause is nobody's reason to wait.
        assert_eq!([millis(30_000, 30), millis(0, 30)], [30_000, 270]);
        // One that fits between others goes there; none is kept for ever.
        assert_eq!([millis(400, 30), millis(0, 320), millis(29_950, 30)], [400, 210, 30_100]);
        assert_eq!(millis(0, 60_000), 0);
        assert_eq!(stagger.due.lock().map(|due| due.len()).ok(), Some(1));
        let none = Stagger::default();
        assert_eq!([none.delay(MS, now), none.delay(MS, now)], [MS, MS]);
    }

    #[test]
    fn the_first_restart_of_two_that_die_together_is_immediate() {
        let policy = RestartPolicy { jitter: 0.0, stagger: Stagger::new(250 * MS), ..RestartPolicy::default() };
        let [mut first, mut second] = [Backoff::new(policy.clone(), 1), Backoff::new(policy, 2)];
        assert_eq!(pause(&mut first, Some(MS)).0, Duration::ZERO);
        let (delay, _) = pause(&mut second, Some(MS));
        assert!(delay > 200 * MS && delay <= 250 * MS, "{delay:?}");
    }

    const MS: Duration = Duration::from_millis(1);

    fn with(change: impl FnOnce(&mut RestartPolicy)) -> Backoff {
        let mut policy = RestartPolicy { jitter: 0.0, ..RestartPolicy::default() };
        change(&mut policy);
        Backoff::new(policy, 7)
    }

    fn exact() -> Backoff {
        with(|_| {})
    }

    fn failure(served: Option<Duration>) -> Failure {
        Failure { served, hope: Hope::Transient }
    }

    /// The pause after a failure, and whether it shows as crash looped.
    fn pause(backoff: &mut Backoff, served: Option<Duration>) -> (Duration, bool) {
        match backoff.failed(failure(served), Instant::now()) {
            Verdict::Retry { delay, crash_looped } => (delay, crash_looped),
            Verdict::GiveUp(why) => unreachable!("{why}"),
        }
    }

    #[test]
    fn a_crash_loop_grows_up_to_the_cap() {
        let mut backoff = exact();
        let pauses: Vec<_> = (0..12).map(|_| pause(&mut backoff, None)).collect();
        let millis: Vec<_> = pauses.iter().map(|(delay, _)| delay.as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000]);
        assert_eq!(pauses.iter().position(|(_, crash_looped)| *crash_looped), Some(4));
        let mut steep = with(|policy| policy.multiplier = 10.0);
        let millis: Vec<_> = (0..4).map(|_| pause(&mut steep, None).0.as_millis()).collect();
        assert_eq!(millis, [100, 1_000, 10_000, 30_000]);
    }

    #[test]
    fn the_first_restart_after_serving_is_immediate_the_second_is_not() {
        let mut backoff = exact();
        let millis: Vec<_> = (0..3).map(|_| pause(&mut backoff, Some(5 * MS)).0.as_millis()).collect();
        assert_eq!(millis, [0, 100, 200]);
    }

    #[test]
    fn a_long_healthy_run_and_an_operator_make_failures_forgotten() {
        let mut backoff = exact();
        for _ in 0..8 {
            pause(&mut backoff, None);
        }
        assert_eq!(pause(&mut backoff, Some(Duration::from_secs(60))), (Duration::ZERO, false));
        backoff.reset();
        assert_eq!(pause(&mut backoff, None).0, 100 * MS);
    }

    #[test]
    fn a_permanent_failure_waits_for_the_longest_pause() {
        let verdict = exact().failed(Failure { served: None, hope: Hope::Permanent }, Instant::now());
        assert_eq!(verdict, Verdict::Retry { delay: Duration::from_secs(30), crash_looped: false });
    }

    #[test]
    fn without_restarts_the_first_failure_is_the_last() {
        let mut backoff = with(|policy| policy.mode = RestartMode::Never);
        let verdict = backoff.failed(failure(Some(Duration::from_secs(3_600))), Instant::now());
        assert_eq!((verdict, backoff.failures()), (Verdict::GiveUp(WontRetry::Policy), 1));
    }

    #[test]
    fn more_restarts_than_allowed_within_the_window_are_the_end() {
        let intense = |policy: &mut RestartPolicy| {
            policy.max_restarts = Some(3);
            policy.window = 1_000 * MS;
        };
        let start = Instant::now();
        let fails = |backoff: &mut Backoff, at: u32| {
            backoff.failed(failure(Some(MS)), start + at * MS) == Verdict::GiveUp(WontRetry::TooManyRestarts)
        };
        let given_up = |moments: &[u32]| {
            let mut backoff = with(intense);
            moments.iter().map(|at| fails(&mut backoff, *at)).collect::<Vec<_>>()
        };
        assert_eq!(given_up(&[0, 1, 2, 3]), [false, false, false, true]);
        // The window slides: the first restart is out of it, then the second.
        assert_eq!(given_up(&[0, 500, 900, 1_001, 1_501, 1_502]), [false, false, false, false, false, true]);
        // A restart at the window's very edge counts.
        assert_eq!(given_up(&[0, 1, 2, 1_000]), [false, false, false, true]);
        // A healthy run forgets the streak, not how often it was started; an operator forgets both.
        let mut backoff = with(|policy| {
            intense(policy);
            policy.reset_after = Duration::ZERO;
        });
        assert_eq!([0, 1, 2, 3].map(|at| fails(&mut backoff, at)), [false, false, false, true]);
        backoff.reset();
        assert!(!fails(&mut backoff, 4));
    }

    #[test]
    fn jitter_stays_within_its_share_and_below_the_cap() {
        for seed in 0..500 {
            let mut backoff = Backoff::new(RestartPolicy::default(), seed);
            let (first, _) = pause(&mut backoff, None);
            assert!((80 * MS..=120 * MS).contains(&first), "{first:?}");
            for _ in 0..2_000 {
                assert!(pause(&mut backoff, None).0 <= Duration::from_secs(30));
            }
        }
    }
}
