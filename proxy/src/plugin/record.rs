//! How the calls of one process have ended lately: one that fails them while others do not gets no more for a while.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::CallError;

/// When a process is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quarantine {
    /// Failures in a row.
    pub(super) failures: u32,
    /// From the last failure to the next try.
    pub(super) time: Duration,
}

/// Of one process: the next one begins anew.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Streak>);

#[derive(Debug, Default, Clone, Copy)]
struct Streak {
    failures: u32,
    /// The last failure, or the last try after it.
    since: Option<Instant>,
}

impl Record {
    /// A call has ended. What is no fault of the process does not count.
    pub(super) fn note<T>(&self, answer: &Result<T, CallError>) {
        let mut streak = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(_) => *streak = Streak::default(),
            Err(CallError::Overloaded | CallError::Unrepresentable(_) | CallError::Poison) => {}
            Err(
                CallError::Lost(_)
                | CallError::Unsent(_)
                | CallError::Timeout
                | CallError::Failed(_)
                | CallError::Busy(_)
                | CallError::Invalid(_)
                | CallError::Unreadable(_)
                | CallError::OtherConfig(_)
                | CallError::InvalidReply(_),
            ) => {
                streak.failures = streak.failures.saturating_add(1);
                streak.since = Some(Instant::now());
            }
        }
    }

    /// Whether it fails its calls.
    pub(super) fn fails(&self, quarantine: Quarantine) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failures >= quarantine.failures
    }

    /// Whether one that fails may be tried once more. Who asks is the one that tries: others get `false` for a while.
    pub(super) fn may_be_tried(&self, quarantine: Quarantine) -> bool {
        let mut streak = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = streak.since.is_none_or(|since| now >= since + quarantine.time);
        if due {
            streak.since = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::super::status::call_error;
    use super::*;

    const QUARANTINE: Quarantine = Quarantine { failures: 2, time: Duration::from_secs(10) };

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_count_and_one_answer_forgets_them() {
        let record = Record::default();
        let failed = Err::<(), _>(CallError::Timeout);
        record.note(&failed);
        record.note(&Err::<(), _>(CallError::Overloaded));
        assert!(!record.fails(QUARANTINE));
        // That it has no room is what it says itself, and others may have some.
        record.note(&Err::<(), _>(call_error(&Status::resource_exhausted(""))));
        assert!(record.fails(QUARANTINE) && !record.may_be_tried(QUARANTINE));
        tokio::time::advance(QUARANTINE.time).await;
        // One, not all that wait.
        assert!(record.may_be_tried(QUARANTINE) && !record.may_be_tried(QUARANTINE));
        record.note(&Ok(()));
        assert!(!record.fails(QUARANTINE));
    }
}
