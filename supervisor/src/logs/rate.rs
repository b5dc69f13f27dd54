//! Bounds what one plugin's output may cost: how much of it reaches the host's log, and how fast it is read.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes each second into the log, and at once after a quiet second.
const LOGGED: f64 = 1024.0 * 1024.0;

/// What a line costs beyond its bytes: an event of one byte is as much work as one of a hundred.
const LINE: usize = 128;

/// Bytes each second off a stream. Far beyond what a log is for; a plugin that prints more is slowed down, since
/// throwing its output away takes the host's time too.
const READ: f64 = 16.0 * 1024.0 * 1024.0;

/// Bytes off a stream that may come at once.
const READ_BURST: f64 = 64.0 * 1024.0 * 1024.0;

/// What may reach the log: a token bucket that counts what it refused.
#[derive(Debug)]
pub(crate) struct Rate {
    bucket: Bucket,
    dropped: u64,
}

/// What to do with a line.
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
        Self { bucket: Bucket { level: LOGGED, capacity: LOGGED, per_second: LOGGED, filled: now }, dropped: 0 }
    }

    pub(crate) fn take(&mut self, line: usize, now: Instant) -> Verdict {
        self.bucket.fill(now);
        let cost = (line + LINE) as f64;
        // After a drop the bucket fills up by a tenth first, so that a flood gives ten reports a second at most, not
        // one for each line.
        let needed = if self.dropped == 0 { cost } else { cost + LOGGED / 10.0 };
        if self.bucket.level < needed {
            self.dropped += line as u64;
            return Verdict::Drop;
        }
        self.bucket.level -= cost;
        match self.take_dropped() {
            0 => Verdict::Pass,
            dropped => Verdict::PassAfter { dropped },
        }
    }

    /// What has been dropped and not reported yet.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// How fast one stream is read.
#[derive(Debug)]
pub(crate) struct Pace(Bucket);

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Bucket { level: READ_BURST, capacity: READ_BURST, per_second: READ, filled: now })
    }

    /// How long to wait after reading so many bytes.
    pub(crate) fn pause(&mut self, bytes: usize, now: Instant) -> Duration {
        self.0.fill(now);
        self.0.level -= bytes as f64;
        Duration::from_secs_f64((-self.0.level / READ).max(0.0))
    }
}

#[derive(Debug)]
struct Bucket {
    level: f64,
    capacity: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.level = (self.level + elapsed.as_secs_f64() * self.per_second).min(self.capacity);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_passes_at_its_rate_and_the_rest_is_counted() {
        // 10 MiB/s for 5 seconds: in long lines, and in empty ones that cost as much in all.
        for (length, lines_per_second) in [(1024 - LINE, 10_240u32), (0, 81_920)] {
            let start = Instant::now();
            let mut rate = Rate::new(start);
            let (mut passed, mut reported, mut reports) = (0, 0, 0);
            let total = 5 * lines_per_second;
            for index in 0..total {
                let now = start + Duration::from_secs_f64(f64::from(index) / f64::from(lines_per_second));
                match rate.take(length, now) {
                    Verdict::Pass => passed += length + LINE,
                    Verdict::PassAfter { dropped } => {
                        passed += length + LINE;
                        reported += dropped;
                        reports += 1;
                    }
                    Verdict::Drop => {}
                }
            }
            reported += rate.take_dropped();
            assert!(passed <= (6 << 20) + 1024, "{passed}");
            assert!(reports <= 60, "{reports}");
            if length > 0 {
                assert!(passed >= 5 << 20, "{passed}");
                let printed = u64::from(total) * length as u64;
                assert_eq!(printed - reported, (passed / (length + LINE) * length) as u64);
            }
        }
    }

    #[test]
    fn a_quiet_plugin_is_never_cut_nor_slowed() {
        let start = Instant::now();
        let (mut rate, mut pace) = (Rate::new(start), Pace::new(start));
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            assert_eq!(rate.take(512 * 1024, now), Verdict::Pass);
            assert_eq!(pace.pause(512 * 1024, now), Duration::ZERO);
        }
    }

    #[test]
    fn a_flood_is_read_fast_at_first_and_at_the_rate_later() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut read) = (start, 0u64);
        while now - start < Duration::from_secs(10) {
            read += 4096;
            now += pace.pause(4096, now) + Duration::from_nanos(1);
        }
        let limit = (READ_BURST + 10.0 * READ) as u64;
        assert!((limit - (1 << 20)..limit + (1 << 20)).contains(&read), "{read}");
    }
}
