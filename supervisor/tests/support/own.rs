//! What this very process holds.

use std::fmt;
use std::fs;

use tokio::runtime::Handle;

/// Counted at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    /// Of the runtime that asks.
    pub(crate) tasks: usize,
    /// Resident, in bytes.
    pub(crate) memory: u64,
}

impl Held {
    pub(crate) fn now() -> Self {
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            tasks: Handle::current().metrics().num_alive_tasks(),
            memory: resident("self"),
        }
    }

    /// Whether there is not more of anything than before, memory aside.
    pub(crate) fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors && self.threads <= before.threads && self.tasks <= before.tasks
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, tasks, memory } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, {tasks} tasks, {} KiB resident", memory / 1024)
    }
}

/// Of a process, in bytes.
pub(crate) fn resident(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Children of this process, zombies included.
pub(crate) fn children() -> Vec<String> {
    let mut children = vec![];
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().map(str::to_owned));
    }
    children
}
