//! What a process had used by its end.

use std::time::Duration;

use serde::Serialize;

use crate::status::duration_seconds;

/// What the kernel counted for a process and for those of its children that it waited for (getrusage(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Processor time of its own. Serialised in seconds.
    #[serde(serialize_with = "duration_seconds")]
    pub user: Duration,
    /// Processor time of the kernel for it. Serialised in seconds.
    #[serde(serialize_with = "duration_seconds")]
    pub system: Duration,
    /// The most memory it had at a time, in bytes. Never less than the host had when it started the process, since the
    /// process begins as a copy of the host.
    pub max_memory: u64,
    /// How often it had to wait for memory that was on disk.
    pub major_faults: u64,
}

impl From<libc::rusage> for Usage {
    fn from(usage: libc::rusage) -> Self {
        let number = |count: libc::c_long| u64::try_from(count).unwrap_or_default();
        let time = |time: libc::timeval| {
            Duration::from_secs(number(time.tv_sec)) + Duration::from_micros(number(time.tv_usec))
        };
        Self {
            user: time(usage.ru_utime),
            system: time(usage.ru_stime),
            max_memory: number(usage.ru_maxrss) * 1024,
            major_faults: number(usage.ru_majflt),
        }
    }
}
