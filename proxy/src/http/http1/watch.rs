//! What can end a wait: a deadline, or the end of all connections.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::super::alarm::Alarm;
use super::super::connection::{Connections, LAST_REQUEST, UNASKED};

/// Why a wait ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The connection is to end now.
    End,
    /// The deadline has passed.
    Late,
}

/// What all connections are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Finish what is in flight, take no more. `succeeded`: another process takes connections in the place of this one.
    Drain { succeeded: bool },
    /// End now.
    End,
}

type Orders = FuturesUnordered<Pin<Box<dyn Future<Output = Order> + Send>>>;

/// One connection's watch on orders and time. Waiting costs little: orders are looked at only when there is one, and
/// the timer is the connection's [`Alarm`].
pub(super) struct Watch {
    /// Each is polled only when it has been woken; a token by itself takes a lock that all connections share.
    orders: Orders,
    draining: Option<(Instant, bool)>,
    ended: bool,
}

impl Watch {
    pub(super) fn new(connections: &Connections) -> Self {
        let orders = Orders::new();
        let (drain, succeeded) = (connections.drain.clone(), connections.succeeded.clone());
        orders.push(Box::pin(async move {
            drain.cancelled_owned().await;
            Order::Drain { succeeded: succeeded.is_cancelled() }
        }));
        let end = connections.end.clone();
        orders.push(Box::pin(async move {
            end.cancelled_owned().await;
            Order::End
        }));
        Self { orders, draining: None, ended: false }
    }

    /// Whether connections are to take no more requests.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// When a connection that waits for a request goes, if it is to: a client that has asked nothing yet has a moment
    /// to do so, for its request may be on its way. `asked`: it has. Then it goes at once, unless another process
    /// serves already: closing could meet a request that is on its way, and its answer can say it.
    pub(super) fn leaves(&self, asked: bool) -> Option<Instant> {
        self.draining.map(|(since, succeeded)| {
            since
                + match (asked, succeeded) {
                    (false, _) => UNASKED,
                    (true, true) => LAST_REQUEST,
                    (true, false) => Duration::ZERO,
                }
        })
    }

    /// Whether the connection is to end now.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(Some(order)) = self.orders.poll_next_unpin(cx) {
            match order {
                Order::Drain { succeeded } => {
                    self.draining = Some((Instant::now(), succeeded));
                    // The deadline may be another one from here on.
                    cx.waker().wake_by_ref();
                }
                Order::End => self.ended = true,
            }
        }
        self.ended
    }

    /// Ready when a wait is to end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, alarm: &Alarm, deadline: Option<Instant>) -> Poll<Stop> {
        if self.is_over(cx) {
            return Poll::Ready(Stop::End);
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        alarm.poll(cx, deadline).map(|()| Stop::Late)
    }
}
