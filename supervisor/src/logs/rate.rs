//! Bounds how much one plugin may write to the host's log.

use tokio::time::Instant;

/// Bytes each second, and at once after a quiet second.
const BYTES_PER_SECOND: f64 = 1024.0 * 1024.0;

/// A token bucket that counts what it refused.
#[derive(Debug)]
pub(crate) struct Rate {
    tokens: f64,
    filled: Instant,
    dropped: u64,
}

/// What to do with some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// Pass, and report that so many bytes before were dropped.
    PassAfter {
        dropped: u64,
    },
    Drop,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { tokens: BYTES_PER_SECOND, filled: now, dropped: 0 }
    }

    pub(crate) fn take(&mut self, bytes: usize, now: Instant) -> Verdict {
        let elapsed = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * BYTES_PER_SECOND).min(BYTES_PER_SECOND);
        self.filled = now;
        // After a drop the bucket fills up by a tenth first, so that a flood gives ten reports a second at most, not
        // one for each line.
        let cost = bytes as f64;
        let needed = if self.dropped == 0 { cost } else { cost + BYTES_PER_SECOND / 10.0 };
        if self.tokens < needed {
            self.dropped += bytes as u64;
            return Verdict::Drop;
        }
        self.tokens -= cost;
        match std::mem::take(&mut self.dropped) {
            0 => Verdict::Pass,
            dropped => Verdict::PassAfter { dropped },
        }
    }

    /// What has been dropped and not reported yet.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_passes_one_mebibyte_a_second_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let (mut passed, mut reported, mut reports) = (0u64, 0u64, 0);
        // 10 MiB/s in lines of 1 KiB for 5 seconds.
        let total = 50 * 1024;
        for index in 0..total {
            let now = start + Duration::from_secs_f64(f64::from(index) / 10_240.0);
            match rate.take(1024, now) {
                Verdict::Pass => passed += 1024,
                Verdict::PassAfter { dropped } => {
                    passed += 1024;
                    reported += dropped;
                    reports += 1;
                }
                Verdict::Drop => {}
            }
        }
        reported += rate.take_dropped();
        assert_eq!(passed + reported, u64::from(total as u32) * 1024);
        assert!((5 << 20..=(6 << 20) + 1024).contains(&passed), "{passed}");
        assert!(reports <= 60, "{reports}");
    }

    #[test]
    fn a_quiet_plugin_is_never_cut() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for second in 0..100 {
            assert_eq!(rate.take(512 * 1024, start + Duration::from_secs(second)), Verdict::Pass);
        }
    }
}
