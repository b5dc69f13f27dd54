//! One timer for all that one task waits for.

use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is moved only when it rings, or would ring too late: most waits end long before their deadline, and the
/// next one has a later one.
///
/// All waits that use it at a time must be of one task, and be polled whenever that is: it rings for the first of them.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Mutex<Option<Pin<Box<Sleep>>>>);

impl Alarm {
    /// Ready when `deadline` has passed.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        // Nothing in here panics half-way.
        let mut timer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        // However much the task has done for now: what never waits would never be late.
        while pin!(unconstrained(timer.as_mut())).poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Waits until `deadline` at most, which may move on meanwhile. `None`: it has passed.
    pub(crate) async fn bound<T>(
        &self,
        mut future: Pin<&mut impl Future<Output = T>>,
        deadline: impl Fn() -> Instant,
    ) -> Option<T> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(cx, deadline()).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::coop::poll_proceed;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_rings_for_each_wait_in_time() {
        let (alarm, start) = (Alarm::default(), Instant::now());
        for (seconds, at) in [(9, 9), (2, 11), (5, 16)] {
            let deadline = Instant::now() + SECOND * seconds;
            assert_eq!(alarm.bound(pin!(std::future::pending::<()>()), || deadline).await, None);
            assert_eq!(start.elapsed().as_secs(), at);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_within_another_one_has_its_own_deadline() {
        for (inner, outer) in [(2, 5), (5, 2)] {
            let (alarm, start) = (Alarm::default(), Instant::now());
            let never = pin!(std::future::pending::<()>());
            let within = pin!(alarm.bound(never, || start + SECOND * inner));
            let waited = alarm.bound(within, || start + SECOND * outer).await;
            assert_eq!((waited, start.elapsed().as_secs()), (if inner < outer { Some(None) } else { None }, 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_on_is_waited_for() {
        let (alarm, start) = (Alarm::default(), Instant::now());
        // It has moved after three seconds, and then no more.
        let deadline = || if start.elapsed() < SECOND * 3 { start + SECOND * 3 } else { start + SECOND * 7 };
        assert_eq!(alarm.bound(pin!(std::future::pending::<()>()), deadline).await, None);
        assert_eq!(start.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_always_busy_is_late_too() {
        let (alarm, deadline) = (Alarm::default(), Instant::now() + SECOND);
        let busy = || {
            std::future::poll_fn(|cx| {
                while let Poll::Ready(done) = poll_proceed(cx) {
                    done.made_progress();
                }
                Poll::Ready(alarm.poll(cx, deadline))
            })
        };
        assert!(busy().await.is_pending());
        tokio::time::advance(SECOND).await;
        assert!(busy().await.is_ready());
    }
}
