//! The calls under way to one start of a plugin, as its host tells: what a crash has hit, when a drain is over, and
//! whether calls still come back.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many calls are known by their ids at a time. Of more, the rest is only counted.
const MOST_IDS: usize = 32;

/// Longest id that is kept, in bytes.
const LONGEST_ID: usize = 128;

/// Calls whose connection broke so short a time before the end of a process were broken by it: the kernel closes a
/// process's connections before it reports the end.
const BROKEN_BY_END: Duration = Duration::from_secs(1);

/// What a host tells of its calls to one start of a plugin. Cheap to clone; all clones are the same.
///
/// Telling is up to the host, and worth it: a report of a crash then names the calls that were under way, a stop waits
/// for them, and a plugin that leaves several in a row without an answer is checked at once
/// ([`crate::HealthPolicy::call_misses`]) instead of at the next beat.
#[derive(Clone)]
pub struct Calls(Arc<Shared>);

struct Shared {
    counts: Mutex<Counts>,
    /// Misses in a row that raise suspicion; 0: never.
    limit: u32,
    suspicion: Notify,
    idle: Notify,
}

#[derive(Default)]
struct Counts {
    under_way: usize,
    /// Of the calls under way, those that fit, in the order of their beginning.
    ids: Vec<(u64, Box<str>)>,
    next: u64,
    /// Those whose connection broke, the latest last.
    broken: VecDeque<(Instant, Box<str>)>,
    /// Calls in a row that got no answer in time.
    misses: u32,
}

/// One call. It is under way for as long as this is there; tell how it ended by [`Call::answered`], [`Call::missed`] or
/// [`Call::broken`]. Dropped without, as when the caller lost interest, it says nothing about the plugin.
#[must_use = "the call counts as under way while this is held"]
pub struct Call {
    calls: Calls,
    number: u64,
}

/// The calls that the end of a process has hit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CallsHit {
    /// How many.
    pub count: usize,
    /// The ids of the first of them, at most 32, as the host gave them to [`Calls::begin`].
    pub ids: Vec<String>,
}

impl Calls {
    pub(crate) fn new(limit: u32) -> Self {
        let shared = Shared { counts: Mutex::default(), limit, suspicion: Notify::new(), idle: Notify::new() };
        Self(Arc::new(shared))
    }

    /// Begins a call. `id` is shown in the report if the plugin ends meanwhile: 128 bytes of it, control characters
    /// escaped.
    pub fn begin(&self, id: &str) -> Call {
        let mut counts = self.counts();
        let number = counts.next;
        counts.next += 1;
        counts.under_way += 1;
        if counts.ids.len() < MOST_IDS {
            counts.ids.push((number, cut(id).into()));
        }
        drop(counts);
        Call { calls: self.clone(), number }
    }

    /// How many calls are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.counts().under_way
    }

    /// What an end of the process at this moment has hit.
    pub(crate) fn hit(&self) -> CallsHit {
        let now = Instant::now();
        let counts = self.counts();
        let broken = counts.broken.iter().filter(|(at, _)| now.duration_since(*at) <= BROKEN_BY_END);
        let broken: Vec<_> = broken.map(|(_, id)| id).collect();
        let ids = broken.iter().copied().chain(counts.ids.iter().map(|(_, id)| id)).take(MOST_IDS);
        let ids = ids.map(|id| crate::logs::escape_text(id)).collect();
        CallsHit { count: counts.under_way + broken.len(), ids }
    }

    /// Returns when so many calls in a row have got no answer that the plugin should be checked. Cancel safe.
    pub(crate) async fn suspicious(&self) {
        self.0.suspicion.notified().await;
    }

    /// Returns when no call is under way. Cancel safe.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            if self.under_way() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Whole between its lines: nothing panics under the lock.
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(id: &str) -> &str {
    let end = (0..=LONGEST_ID.min(id.len())).rev().find(|end| id.is_char_boundary(*end));
    &id[..end.unwrap_or_default()]
}

impl Call {
    /// The plugin answered, whatever it said.
    pub fn answered(self) {
        self.calls.counts().misses = 0;
    }

    /// The connection broke before an answer came.
    pub fn broken(self) {
        let mut counts = self.calls.counts();
        let Some(id) = counts.take_id(self.number) else { return };
        if counts.broken.len() == MOST_IDS {
            counts.broken.pop_front();
        }
        counts.broken.push_back((Instant::now(), id));
    }

    /// The plugin did not answer in time.
    pub fn missed(self) {
        let mut counts = self.calls.counts();
        counts.misses += 1;
        // From here on it takes as many again.
        if self.calls.0.limit > 0 && counts.misses >= self.calls.0.limit {
            counts.misses = 0;
            drop(counts);
            self.calls.0.suspicion.notify_one();
        }
    }
}

impl Counts {
    fn take_id(&mut self, number: u64) -> Option<Box<str>> {
        let place = self.ids.iter().position(|(of, _)| *of == number)?;
        Some(self.ids.remove(place).1)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut counts = self.calls.counts();
        counts.under_way -= 1;
        counts.take_id(self.number);
        let idle = counts.under_way == 0;
        drop(counts);
        if idle {
            self.calls.0.idle.notify_waiters();
        }
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("under_way", &self.under_way()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether suspicion has been raised since the last look.
    async fn raised(calls: &Calls) -> bool {
        tokio::select! {
            biased;
            () = calls.suspicious() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn only_misses_in_a_row_raise_suspicion() {
        let calls = Calls::new(3);
        let miss = || calls.begin("x").missed();
        miss();
        miss();
        calls.begin("x").answered();
        miss();
        miss();
        drop(calls.begin("x"));
        assert!(!raised(&calls).await);
        miss();
        assert!(raised(&calls).await);
        // As many again.
        miss();
        miss();
        assert!(!raised(&calls).await);
        miss();
        assert!(raised(&calls).await);
        let never = Calls::new(0);
        never.begin("x").missed();
        assert!(!raised(&never).await);
    }

    #[tokio::test]
    async fn what_is_under_way_is_known_within_bounds() {
        let calls = Calls::new(3);
        let first = calls.begin("a\u{1b}b");
        let mut more: Vec<_> = (0..MOST_IDS).map(|_| calls.begin(&"é".repeat(LONGEST_ID))).collect();
        let now = calls.hit();
        assert_eq!((now.count, now.ids.len()), (MOST_IDS + 1, MOST_IDS));
        assert_eq!((now.ids[0].as_str(), now.ids[1].len()), (r"a\u{1b}b", LONGEST_ID));
        first.answered();
        more.clear();
        assert_eq!(calls.hit(), CallsHit::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_broke_just_before_the_end_was_broken_by_it() {
        let calls = Calls::new(3);
        calls.begin("old").broken();
        tokio::time::advance(BROKEN_BY_END + Duration::from_millis(1)).await;
        calls.begin("new").broken();
        let _under_way = calls.begin("open");
        assert_eq!(calls.hit(), CallsHit { count: 2, ids: vec!["new".into(), "open".into()] });
        for _ in 0..2 * MOST_IDS {
            calls.begin("more").broken();
        }
        assert_eq!(calls.counts().broken.len(), MOST_IDS);
        assert_eq!(calls.hit().ids.len(), MOST_IDS);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_call() {
        let calls = Calls::new(3);
        calls.idle().await;
        let (first, second) = (calls.begin("a"), calls.begin("b"));
        let waiting = tokio::spawn({
            let calls = calls.clone();
            async move { calls.idle().await }
        });
        first.answered();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        second.missed();
        assert!(waiting.await.is_ok());
    }
}
