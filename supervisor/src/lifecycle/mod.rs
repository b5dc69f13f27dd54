//! The life of one plugin as a pure state machine: an event and the time in, the next state and a list of actions out.
//!
//! Nothing here waits, spawns or reads a clock. The instance performs the actions, feeds what happens back in, and
//! wakes the machine when [`Lifecycle::deadline`] has passed.

use std::time::Duration;

use tokio::time::Instant;

use crate::restart::{Backoff, Failure, Hope, Verdict};
use crate::spec::PluginSpec;
use crate::status::WontRetry;

#[cfg(test)]
mod tests;

/// How long a process may take to go after SIGKILL. Only one stuck inside the kernel takes that long; it is given up
/// on, so that a stop stays bounded.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    phase: Phase,
    backoff: Backoff,
    limits: Limits,
    /// Starts so far.
    starts: u64,
}

/// The part of the spec that decisions depend on.
#[derive(Debug, Clone)]
struct Limits {
    handshake: Duration,
    ready: Duration,
    shutdown_call: Duration,
    term: Duration,
    misses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No process, and none wanted.
    Stopped,
    /// The process is being made. An order that came meanwhile is carried out as soon as that is done.
    Starting {
        order: Option<Next>,
    },
    AwaitHandshake {
        until: Instant,
    },
    AwaitReady {
        until: Instant,
    },
    Serving {
        since: Instant,
        misses: u32,
    },
    /// No process; a start is due at `until`.
    Waiting {
        until: Instant,
        crash_looped: bool,
    },
    /// The process is being ended; `step` is what has been tried and `until` how long that may take.
    Ending {
        step: Step,
        until: Instant,
        next: Next,
    },
    /// No process, and none before an operator asks.
    Disabled {
        why: WontRetry,
    },
    /// No process, never again.
    Finished,
}

/// What has been done to end a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was asked by `GRPCController.Shutdown`.
    Asked,
    /// SIGTERM to the group.
    Terminated,
    /// SIGKILL to the group.
    Killed,
}

/// What follows when a process has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Stay,
    Again,
    BackOff(Failure),
    Finish,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Order(Order),
    Spawned,
    SpawnFailed,
    /// The line was read and what it says is acceptable.
    Handshaken,
    /// Handshake, connection, health or the host's contract failed while the process still runs.
    StartFailed(Hope),
    /// A client is there.
    Ready,
    HealthAnswered,
    HealthMissed,
    /// The plugin does not support being asked to end.
    ShutdownRefused,
    /// The process has gone and has been cleaned up after.
    Exited(Exit),
    /// The deadline has passed.
    Deadline,
}

/// How a process went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with status 0.
    Clean,
    Failed(Hope),
}

/// What an operator, or the end of the program, asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Start,
    Restart,
    Stop,
    /// Stop for good.
    Finish,
    /// Stop for good without asking: nobody is left to wait.
    Discard,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Spawn,
    /// Connect, check health, set up the host's contract.
    Prepare,
    /// Offer the client to callers and watch the plugin's health.
    Serve,
    /// Take the client back from callers.
    Withdraw,
    /// Call `GRPCController.Shutdown`.
    AskShutdown,
    Terminate,
    Kill,
    /// The process outlived SIGKILL: leave it to whoever reaps it.
    Abandon,
    /// Note why the process is about to be ended.
    Blame(Blame),
}

/// Why a process is ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    Requested,
    HandshakeTimeout,
    ReadyTimeout,
    Unhealthy,
}

impl Lifecycle {
    /// A machine that starts its plugin with the first [`Order::Start`].
    pub(crate) fn new(spec: &PluginSpec, seed: u64) -> Self {
        let limits = Limits {
            handshake: spec.handshake.timeout,
            ready: spec.ready_timeout,
            shutdown_call: spec.stop.rpc_timeout,
            term: spec.stop.term_timeout,
            misses: spec.health.failures.max(1),
        };
        Self { phase: Phase::Stopped, backoff: Backoff::new(spec.restart.clone(), seed), limits, starts: 0 }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.starts.saturating_sub(1)
    }

    pub(crate) fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// When to send [`Event::Deadline`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::AwaitHandshake { until }
            | Phase::AwaitReady { until }
            | Phase::Waiting { until, .. }
            | Phase::Ending { until, .. } => Some(until),
            Phase::Stopped
            | Phase::Starting { .. }
            | Phase::Serving { .. }
            | Phase::Disabled { .. }
            | Phase::Finished => None,
        }
    }

    /// Takes one event. Events that a phase does not expect are late echoes of an earlier one, and change nothing.
    pub(crate) fn on(mut self, event: Event, now: Instant) -> (Self, Vec<Action>) {
        let actions = match event {
            Event::Order(order) => self.obey(order, now),
            Event::Spawned => self.spawned(now),
            Event::SpawnFailed => self.spawn_failed(now),
            Event::Handshaken => match self.phase {
                Phase::AwaitHandshake { .. } => {
                    self.phase = Phase::AwaitReady { until: now + self.limits.ready };
                    vec![Action::Prepare]
                }
                _ => vec![],
            },
            Event::Ready => match self.phase {
                Phase::AwaitReady { .. } => {
                    self.phase = Phase::Serving { since: now, misses: 0 };
                    vec![Action::Serve]
                }
                _ => vec![],
            },
            Event::StartFailed(hope) => match self.phase {
                Phase::AwaitHandshake { .. } | Phase::AwaitReady { .. } => {
                    self.kill(Next::BackOff(Failure { served: None, hope }), None, now)
                }
                _ => vec![],
            },
            Event::HealthAnswered => {
                if let Phase::Serving { misses, .. } = &mut self.phase {
                    *misses = 0;
                }
                vec![]
            }
            Event::HealthMissed => self.missed(now),
            Event::ShutdownRefused => match self.phase {
                Phase::Ending { step: Step::Asked, next, .. } => self.terminate(next, now),
                _ => vec![],
            },
            Event::Exited(exit) => self.exited(exit, now),
            Event::Deadline => self.overdue(now),
        };
        (self, actions)
    }

    fn obey(&mut self, order: Order, now: Instant) -> Vec<Action> {
        if matches!(order, Order::Start | Order::Restart) {
            self.backoff.reset();
        }
        match (self.phase, order) {
            (Phase::Finished, _) => vec![],

            (Phase::Stopped | Phase::Disabled { .. } | Phase::Waiting { .. }, order) => match order {
                Order::Start | Order::Restart => self.start(),
                Order::Stop => self.rest(Phase::Stopped),
                Order::Finish | Order::Discard => self.rest(Phase::Finished),
            },

            // What is being started is as good as restarted.
            (Phase::Starting { order: Some(Next::Finish) }, _) => vec![],
            (Phase::Starting { .. }, Order::Start | Order::Restart) => self.rest(Phase::Starting { order: None }),
            (Phase::Starting { .. }, Order::Stop) => self.rest(Phase::Starting { order: Some(Next::Stay) }),
            (Phase::Starting { .. }, Order::Finish | Order::Discard) => {
                self.rest(Phase::Starting { order: Some(Next::Finish) })
            }

            (Phase::AwaitHandshake { .. } | Phase::AwaitReady { .. } | Phase::Serving { .. }, Order::Start) => vec![],
            (Phase::AwaitHandshake { .. } | Phase::AwaitReady { .. }, Order::Discard) => {
                self.kill(Next::Finish, Some(Blame::Requested), now)
            }
            (Phase::AwaitHandshake { .. } | Phase::AwaitReady { .. }, order) => {
                let mut actions = vec![Action::Blame(Blame::Requested)];
                actions.extend(self.terminate(next_of(order), now));
                actions
            }
            (Phase::Serving { .. }, Order::Discard) => {
                let mut actions = vec![Action::Withdraw];
                actions.extend(self.kill(Next::Finish, Some(Blame::Requested), now));
                actions
            }
            (Phase::Serving { .. }, order) => {
                let until = now + self.limits.shutdown_call;
                self.phase = Phase::Ending { step: Step::Asked, until, next: next_of(order) };
                vec![Action::Withdraw, Action::Blame(Blame::Requested), Action::AskShutdown]
            }

            (Phase::Ending { step: Step::Asked | Step::Terminated, .. }, Order::Discard) => {
                self.kill(Next::Finish, None, now)
            }
            (Phase::Ending { next: Next::Finish, .. }, _) => vec![],
            (Phase::Ending { step, until, .. }, order) => {
                self.rest(Phase::Ending { step, until, next: next_of(order) })
            }
        }
    }

    fn spawned(&mut self, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Starting { order: None } => {
                self.phase = Phase::AwaitHandshake { until: now + self.limits.handshake };
                vec![]
            }
            Phase::Starting { order: Some(next) } => self.kill(next, Some(Blame::Requested), now),
            _ => vec![],
        }
    }

    fn spawn_failed(&mut self, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Starting { order: None } => {
                self.follow(Next::BackOff(Failure { served: None, hope: Hope::Transient }), now)
            }
            Phase::Starting { order: Some(next) } => self.follow(next, now),
            _ => vec![],
        }
    }

    fn missed(&mut self, now: Instant) -> Vec<Action> {
        let Phase::Serving { since, misses } = self.phase else { return vec![] };
        let misses = misses + 1;
        if misses < self.limits.misses {
            self.phase = Phase::Serving { since, misses };
            return vec![];
        }
        // Not asked first: what does not answer a health check does not answer a shutdown call either.
        let failure = Failure { served: Some(now - since), hope: Hope::Transient };
        let mut actions = vec![Action::Withdraw];
        actions.extend(self.kill(Next::BackOff(failure), Some(Blame::Unhealthy), now));
        actions
    }

    fn exited(&mut self, exit: Exit, now: Instant) -> Vec<Action> {
        let hope = match exit {
            Exit::Clean => Hope::Transient,
            Exit::Failed(hope) => hope,
        };
        match self.phase {
            // Before it has served, status 0 is as good as any other: it failed to start.
            Phase::AwaitHandshake { .. } | Phase::AwaitReady { .. } => {
                self.follow(Next::BackOff(Failure { served: None, hope }), now)
            }
            Phase::Serving { .. } if exit == Exit::Clean && self.backoff.rests_after_clean_exit() => {
                self.phase = Phase::Stopped;
                vec![Action::Withdraw]
            }
            Phase::Serving { since, .. } => {
                let failure = Failure { served: Some(now - since), hope };
                let mut actions = vec![Action::Withdraw];
                actions.extend(self.follow(Next::BackOff(failure), now));
                actions
            }
            Phase::Ending { next, .. } => self.follow(next, now),
            Phase::Stopped
            | Phase::Starting { .. }
            | Phase::Waiting { .. }
            | Phase::Disabled { .. }
            | Phase::Finished => vec![],
        }
    }

    fn overdue(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|until| now < until) {
            return vec![];
        }
        let unborn = Next::BackOff(Failure { served: None, hope: Hope::Transient });
        match self.phase {
            Phase::AwaitHandshake { .. } => self.kill(unborn, Some(Blame::HandshakeTimeout), now),
            Phase::AwaitReady { .. } => self.kill(unborn, Some(Blame::ReadyTimeout), now),
            Phase::Waiting { .. } => self.start(),
            Phase::Ending { step: Step::Asked, next, .. } => self.terminate(next, now),
            Phase::Ending { step: Step::Terminated, next, .. } => self.kill(next, None, now),
            Phase::Ending { step: Step::Killed, next, .. } => {
                let mut actions = vec![Action::Abandon];
                actions.extend(self.follow(next, now));
                actions
            }
            Phase::Stopped
            | Phase::Starting { .. }
            | Phase::Serving { .. }
            | Phase::Disabled { .. }
            | Phase::Finished => vec![],
        }
    }

    /// Where there is no process any more.
    fn follow(&mut self, next: Next, now: Instant) -> Vec<Action> {
        match next {
            Next::Stay => self.rest(Phase::Stopped),
            Next::Finish => self.rest(Phase::Finished),
            Next::Again => self.start(),
            Next::BackOff(failure) => match self.backoff.failed(failure, now) {
                Verdict::GiveUp(why) => self.rest(Phase::Disabled { why }),
                Verdict::Retry { delay, .. } if delay.is_zero() => self.start(),
                Verdict::Retry { delay, crash_looped } => {
                    self.rest(Phase::Waiting { until: now + delay, crash_looped })
                }
            },
        }
    }

    fn start(&mut self) -> Vec<Action> {
        self.starts += 1;
        self.phase = Phase::Starting { order: None };
        vec![Action::Spawn]
    }

    fn terminate(&mut self, next: Next, now: Instant) -> Vec<Action> {
        self.phase = Phase::Ending { step: Step::Terminated, until: now + self.limits.term, next };
        vec![Action::Terminate]
    }

    fn kill(&mut self, next: Next, blame: Option<Blame>, now: Instant) -> Vec<Action> {
        self.phase = Phase::Ending { step: Step::Killed, until: now + KILL_TIMEOUT, next };
        blame.map(Action::Blame).into_iter().chain([Action::Kill]).collect()
    }

    fn rest(&mut self, phase: Phase) -> Vec<Action> {
        self.phase = phase;
        vec![]
    }
}

fn next_of(order: Order) -> Next {
    match order {
        Order::Start | Order::Restart => Next::Again,
        Order::Stop => Next::Stay,
        Order::Finish | Order::Discard => Next::Finish,
    }
}
