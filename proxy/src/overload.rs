//! When the proxy has too much to do: first connections end with their next response, and none to upstreams are kept, then
//! requests are answered 503, so that what is under way comes to its end.
//!
//! Two things run out: memory and file descriptors. One task looks at both; everybody else reads one number.

mod memory;
mod places;

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub(crate) use self::places::{Places, Taken};
use crate::config::{self, Config};

/// Between looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Descriptors that the proxy needs for itself and its plugins, beside those of its workers.
const OWN_DESCRIPTORS: u64 = 32;

/// Descriptors that each worker needs for itself, beside those for listeners and plugins.
const OF_A_WORKER: u64 = 4;

/// Descriptors of each worker for each listener: the socket, and one in reserve.
const OF_A_LISTENER: usize = 2;

/// Client connections that there is always room for.
const FEWEST: usize = 4;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// Nothing runs out.
    Normal,
    /// Connections end with their next response, and those to upstreams that nobody uses.
    High,
    /// Requests are refused.
    Over,
}

/// The load, and the connections of all listeners together.
#[derive(Debug)]
pub(crate) struct Overload {
    load: AtomicU8,
    pub(crate) places: Arc<Places>,
    /// Whenever it is higher than before.
    rises: Notify,
    /// What operators say, and how many descriptors are not there for connections.
    marks: Mutex<(config::Overload, u64)>,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            load: AtomicU8::new(0),
            places: Arc::new(Places::new(usize::MAX)),
            rises: Notify::new(),
            marks: Mutex::default(),
        }
    }
}

impl Overload {
    pub(crate) fn load(&self) -> Load {
        match self.load.load(Ordering::Relaxed) {
            0 => Load::Normal,
            1 => Load::High,
            _ => Load::Over,
        }
    }

    /// Returns when the load is higher than at the moment of this call.
    pub(crate) fn rises(&self) -> Notified<'_> {
        self.rises.notified()
    }

    /// From the next look on, these hold.
    pub(crate) fn set(&self, config: &Config) {
        let instances: usize = config.plugins.values().map(|plugin| plugin.instances).sum();
        let of_a_worker = OF_A_WORKER + (OF_A_LISTENER * config.listeners.len() + instances) as u64;
        let own = OWN_DESCRIPTORS + config.workers as u64 * of_a_worker;
        *self.marks.lock().unwrap_or_else(PoisonError::into_inner) = (config.overload, own);
    }

    /// Looks at memory and descriptors, without end.
    pub(crate) async fn watch(&self) {
        let limit = descriptors();
        // The other half is for plugins, the kernel's buffers, and whatever else runs here.
        let half = memory::available().map(|available| available / 2);
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (marks, own) = *self.marks.lock().unwrap_or_else(PoisonError::into_inner);
            let most = marks.max_connections.unwrap_or(usize::MAX).min(affordable(limit, own));
            self.places.set(most);
            let memory = marks.memory.map(|memory| memory as u64).or(half);
            let memory = memory.and_then(|memory| percent(resident()?, memory));
            let descriptors = open_descriptors().and_then(|open| percent(open, limit));
            let fullest = memory.into_iter().chain(descriptors).max().unwrap_or(0);
            let load = if fullest >= marks.shed_at {
                Load::Over
            } else if fullest >= marks.close_at {
                Load::High
            } else {
                Load::Normal
            };
            let before = self.load();
            self.load.store(load as u8, Ordering::Relaxed);
            if load > before {
                self.rises.notify_waiters();
                tracing::warn!(target: "palisade", ?memory, ?descriptors, ?load, "load is high (in percent of what there is)");
            } else if load < before {
                tracing::info!(target: "palisade", ?memory, ?descriptors, ?load, "load is lower again");
            }
        }
    }
}

/// As many client connections as can each have a connection to an upstream.
fn affordable(descriptors: u64, own: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(own) / 2).unwrap_or(usize::MAX).max(FEWEST)
}

/// Takes as many file descriptors as the host allows. Where it can't be asked, the other bounds hold.
fn descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return u64::MAX };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

fn percent(part: u64, whole: u64) -> Option<u8> {
    u8::try_from((part.saturating_mul(100) / whole.max(1)).min(100)).ok()
}

/// Bytes of memory in use.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

/// Open descriptors. Newer kernels tell as the directory's size (Linux 6.2), others are counted.
fn open_descriptors() -> Option<u64> {
    let directory = Path::new("/proc/self/fd");
    match std::fs::metadata(directory).ok()?.len() {
        0 => u64::try_from(std::fs::read_dir(directory).ok()?.count()).ok(),
        open => Some(open),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_the_host_tells() {
        assert!(resident().unwrap() > 1 << 20);
        assert!(open_descriptors().unwrap() >= 3);
        assert_eq!((affordable(64, 32), affordable(0, 32), affordable(20_032, 32)), (16, FEWEST, 10_000));
        assert_eq!((percent(1, 2), percent(5, 2), percent(1, 0)), (Some(50), Some(100), Some(100)));
    }
}
