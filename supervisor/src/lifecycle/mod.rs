//! The life of one plugin as a pure state machine: an event and the time in, the next state and a list of actions out.
//!
//! Nothing here waits, spawns or reads a clock. The instance performs the actions, feeds what happens back in, and
//! wakes the machine when [`Lifecycle::deadline`] has passed.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::restart::{Backoff, Failure, Hope, Verdict};
use crate::spec::PluginSpec;
use crate::status::{NotServing, WontRetry};

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
    /// Whether starts are put off until they are released.
    held: bool,
}

/// The part of the spec that decisions depend on.
#[derive(Debug, Clone)]
struct Limits {
    handshake: Duration,
    ready: Duration,
    drain: Duration,
    shutdown_call: Duration,
    term: Duration,
    misses: u32,
    frozen: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No process, and none wanted.
    Stopped,
    /// No process; one is started when starts are released.
    Held,
    /// The process is being made. An order that came meanwhile is carried out as soon as that is done.
    Starting {
        order: Option<Next>,
    },
    AwaitHandshake {
        until: Instant,
    },
    /// It is being connected to, and asked whether it is healthy.
    AwaitHealth {
        until: Instant,
    },
    /// The host's contract is being set up, within what is left of the same time.
    AwaitReady {
        until: Instant,
    },
    Serving {
        since: Instant,
        misses: u32,
    },
    /// It runs, and calls are kept from it.
    NotServing {
        since: Instant,
        misses: u32,
        why: Why,
    },
    /// No new calls; it is asked to end when those under way have ended, or at `until`.
    Draining {
        until: Instant,
        next: Next,
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

/// Why calls are kept from a process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It says so itself.
    Reported,
    /// Calls got no answer; a health check is under way, and decides.
    Suspect,
    /// It was stopped by a signal; killed at `until`.
    Frozen { until: Instant },
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
    /// There is no process to be made: the plugin runs somewhere, and where it listens is known.
    Found,
    SpawnFailed(Hope),
    /// The line was read and what it says is acceptable.
    Handshaken,
    /// Handshake, connection, health or the host's contract failed while the process still runs.
    StartFailed(Hope),
    /// It is connected, and says that it serves.
    Healthy,
    /// A client is there.
    Ready,
    HealthAnswered,
    HealthMissed,
    /// It answered that it does not serve.
    HealthRefused,
    /// Its process was found stopped.
    Frozen,
    /// It was about to be killed for that, and was found running.
    Thawed,
    /// So many calls in a row got no answer that it is to be checked now.
    CallsMissed,
    /// No call is under way any more.
    Drained,
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
    /// Start nothing more before [`Order::Release`]. What serves goes on; a start under way is ended.
    Hold,
    Release,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Finish | Self::Discard => "stop for good",
            Self::Hold => "hold",
            Self::Release => "release",
        })
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Spawn,
    /// Connect, check health, set up the host's contract.
    Prepare,
    /// Offer the client to callers and watch the plugin's health.
    Serve,
    /// Take the client back from callers; health is still watched.
    Withhold,
    /// Offer the client again.
    Offer,
    /// Check health now.
    Check,
    /// Take the client back from callers, for good.
    Withdraw,
    /// Tell when no call is under way any more.
    Drain,
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
    Unresponsive,
    Frozen,
}

impl Lifecycle {
    /// A machine that starts its plugin with the first [`Order::Start`].
    pub(crate) fn new(spec: &PluginSpec, seed: u64) -> Self {
        let limits = Limits {
            handshake: spec.handshake.timeout,
            ready: spec.ready_timeout,
            drain: spec.stop.drain_timeout,
            shutdown_call: spec.stop.rpc_timeout,
            term: spec.stop.term_timeout,
            misses: spec.health.failures.max(1),
            frozen: spec.health.stopped_timeout,
        };
        Self {
            phase: Phase::Stopped,
            backoff: Backoff::new(spec.restart.clone(), seed),
            limits,
            starts: 0,
            held: false,
        }
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

    /// Health checks in a row that the process has not passed.
    pub(crate) fn misses(&self) -> u32 {
        match self.phase {
            Phase::Serving { misses, .. } | Phase::NotServing { misses, .. } => misses,
            _ => 0,
        }
    }

    /// When to send [`Event::Deadline`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::AwaitHandshake { until }
            | Phase::AwaitHealth { until }
            | Phase::AwaitReady { until }
            | Phase::NotServing { why: Why::Frozen { until }, .. }
            | Phase::Draining { until, .. }
            | Phase::Waiting { until, .. }
            | Phase::Ending { until, .. } => Some(until),
            // What a suspect is checked by has a deadline of its own.
            Phase::Stopped
            | Phase::Held
            | Phase::Starting { .. }
            | Phase::Serving { .. }
            | Phase::NotServing { why: Why::Reported | Why::Suspect, .. }
            | Phase::Disabled { .. }
            | Phase::Finished => None,
        }
    }

    /// Takes one event. Events that a phase does not expect are late echoes of an earlier one, and change nothing.
    pub(crate) fn on(mut self, event: Event, now: Instant) -> (Self, Vec<Action>) {
        let actions = match event {
            Event::Order(order) => self.obey(order, now),
            Event::Spawned => self.spawned(now),
            Event::Found => self.found(now),
            Event::SpawnFailed(hope) => self.spawn_failed(hope, now),
            Event::Handshaken => match self.phase {
                Phase::AwaitHandshake { .. } => {
                    self.phase = Phase::AwaitHealth { until: now + self.limits.ready };
                    vec![Action::Prepare]
                }
                _ => vec![],
            },
            Event::Healthy => match self.phase {
                Phase::AwaitHealth { until } => self.rest(Phase::AwaitReady { until }),
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
                Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. } => {
                    self.kill(Next::BackOff(Failure { served: None, hope }), None, now)
                }
                _ => vec![],
            },
            Event::HealthAnswered => self.answered(),
            Event::HealthMissed => self.missed(now),
            Event::HealthRefused => match self.phase {
                Phase::Serving { since, misses } | Phase::NotServing { since, misses, .. } => {
                    self.failed_check(since, misses + 1, Some(Why::Reported), now)
                }
                _ => vec![],
            },
            Event::Frozen => self.frozen(now),
            Event::Thawed => match self.phase {
                Phase::NotServing { since, misses, why: Why::Frozen { .. } } => {
                    self.phase = Phase::Serving { since, misses };
                    vec![Action::Offer, Action::Check]
                }
                _ => vec![],
            },
            Event::CallsMissed => match self.phase {
                Phase::Serving { since, misses } => {
                    self.phase = Phase::NotServing { since, misses, why: Why::Suspect };
                    vec![Action::Withhold, Action::Check]
                }
                _ => vec![],
            },
            Event::Drained => match self.phase {
                Phase::Draining { next, .. } => self.ask(next, now),
                _ => vec![],
            },
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

            (_, Order::Hold) => self.hold(now),
            (phase, Order::Release) => {
                self.held = false;
                if phase == Phase::Held { self.start() } else { vec![] }
            }

            (Phase::Stopped | Phase::Held | Phase::Disabled { .. } | Phase::Waiting { .. }, order) => {
                self.follow(next_of(order), now)
            }

            // What is being started is as good as restarted.
            (Phase::Starting { order: Some(Next::Finish) }, _) => vec![],
            (Phase::Starting { .. }, Order::Start | Order::Restart) => self.rest(Phase::Starting { order: None }),
            (Phase::Starting { .. }, Order::Stop) => self.rest(Phase::Starting { order: Some(Next::Stay) }),
            (Phase::Starting { .. }, Order::Finish | Order::Discard) => {
                self.rest(Phase::Starting { order: Some(Next::Finish) })
            }

            (
                Phase::AwaitHandshake { .. }
                | Phase::AwaitHealth { .. }
                | Phase::AwaitReady { .. }
                | Phase::Serving { .. }
                | Phase::NotServing { .. },
                Order::Start,
            ) => vec![],
            (Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. }, Order::Discard) => {
                self.kill(Next::Finish, Some(Blame::Requested), now)
            }
            (Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. }, order) => {
                let mut actions = vec![Action::Blame(Blame::Requested)];
                actions.extend(self.terminate(next_of(order), now));
                actions
            }
            (Phase::Serving { .. } | Phase::NotServing { .. }, Order::Discard) => {
                let mut actions = vec![Action::Withdraw];
                actions.extend(self.kill(Next::Finish, Some(Blame::Requested), now));
                actions
            }
            (Phase::Serving { .. } | Phase::NotServing { .. }, order) => {
                self.phase = Phase::Draining { until: now + self.limits.drain, next: next_of(order) };
                vec![Action::Withdraw, Action::Blame(Blame::Requested), Action::Drain]
            }

            (Phase::Draining { .. } | Phase::Ending { step: Step::Asked | Step::Terminated, .. }, Order::Discard) => {
                self.kill(Next::Finish, None, now)
            }
            (Phase::Draining { next: Next::Finish, .. } | Phase::Ending { next: Next::Finish, .. }, _) => vec![],
            (Phase::Draining { until, .. }, order) => self.rest(Phase::Draining { until, next: next_of(order) }),
            (Phase::Ending { step, until, .. }, order) => {
                self.rest(Phase::Ending { step, until, next: next_of(order) })
            }
        }
    }

    fn hold(&mut self, now: Instant) -> Vec<Action> {
        self.held = true;
        match self.phase {
            Phase::Waiting { .. } => self.rest(Phase::Held),
            Phase::Starting { order: None } => self.rest(Phase::Starting { order: Some(Next::Again) }),
            Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. } => {
                let mut actions = vec![Action::Blame(Blame::Requested)];
                actions.extend(self.terminate(Next::Again, now));
                actions
            }
            _ => vec![],
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

    fn found(&mut self, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Starting { order: None } => {
                self.phase = Phase::AwaitHealth { until: now + self.limits.ready };
                vec![Action::Prepare]
            }
            Phase::Starting { order: Some(next) } => self.kill(next, Some(Blame::Requested), now),
            _ => vec![],
        }
    }

    fn spawn_failed(&mut self, hope: Hope, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Starting { order: None } => self.follow(Next::BackOff(Failure { served: None, hope }), now),
            Phase::Starting { order: Some(next) } => self.follow(next, now),
            _ => vec![],
        }
    }

    fn answered(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Serving { since, .. } => self.rest(Phase::Serving { since, misses: 0 }),
            Phase::NotServing { since, .. } => {
                self.phase = Phase::Serving { since, misses: 0 };
                vec![Action::Offer]
            }
            _ => vec![],
        }
    }

    fn missed(&mut self, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Serving { since, misses } => self.failed_check(since, misses + 1, None, now),
            Phase::NotServing { since, misses, why: Why::Reported } => {
                self.failed_check(since, misses + 1, Some(Why::Reported), now)
            }
            // Neither calls nor checks: nothing is left to wait for.
            Phase::NotServing { since, why: Why::Suspect, .. } => self.give_up_on(since, Blame::Unresponsive, now),
            // It runs again, and is as any other that misses a check.
            Phase::NotServing { since, misses, why: Why::Frozen { .. } } => {
                self.failed_check(since, misses + 1, None, now)
            }
            _ => vec![],
        }
    }

    /// Counts a check that did not say that it serves. `why` is what keeps calls from it from now on, if anything.
    fn failed_check(&mut self, since: Instant, misses: u32, why: Option<Why>, now: Instant) -> Vec<Action> {
        if misses >= self.limits.misses {
            return self.give_up_on(since, Blame::Unhealthy, now);
        }
        let withheld = matches!(self.phase, Phase::NotServing { .. });
        self.phase = match why {
            Some(why) => Phase::NotServing { since, misses, why },
            None => Phase::Serving { since, misses },
        };
        match (withheld, why) {
            (false, Some(_)) => vec![Action::Withhold],
            (true, None) => vec![Action::Offer],
            (false, None) | (true, Some(_)) => vec![],
        }
    }

    fn frozen(&mut self, now: Instant) -> Vec<Action> {
        let (since, misses, withheld) = match self.phase {
            Phase::Serving { since, misses } => (since, misses, false),
            Phase::NotServing { since, misses, why: Why::Reported | Why::Suspect } => (since, misses, true),
            _ => return vec![],
        };
        let why = Why::Frozen { until: now + self.limits.frozen };
        self.phase = Phase::NotServing { since, misses, why };
        if withheld { vec![] } else { vec![Action::Withhold] }
    }

    /// Not asked first: what does not answer a check does not answer a shutdown call either.
    fn give_up_on(&mut self, since: Instant, blame: Blame, now: Instant) -> Vec<Action> {
        let failure = Failure { served: Some(now - since), hope: Hope::Transient };
        let mut actions = vec![Action::Withdraw];
        actions.extend(self.kill(Next::BackOff(failure), Some(blame), now));
        actions
    }

    fn exited(&mut self, exit: Exit, now: Instant) -> Vec<Action> {
        let hope = match exit {
            Exit::Clean => Hope::Transient,
            Exit::Failed(hope) => hope,
        };
        match self.phase {
            // Before it has served, status 0 is as good as any other: it failed to start.
            Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. } => {
                self.follow(Next::BackOff(Failure { served: None, hope }), now)
            }
            Phase::Serving { .. } | Phase::NotServing { .. }
                if exit == Exit::Clean && self.backoff.rests_after_clean_exit() =>
            {
                self.phase = Phase::Stopped;
                vec![Action::Withdraw]
            }
            Phase::Serving { since, .. } | Phase::NotServing { since, .. } => {
                let failure = Failure { served: Some(now - since), hope };
                let mut actions = vec![Action::Withdraw];
                actions.extend(self.follow(Next::BackOff(failure), now));
                actions
            }
            Phase::Draining { next, .. } | Phase::Ending { next, .. } => self.follow(next, now),
            Phase::Stopped
            | Phase::Held
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
            Phase::AwaitHealth { .. } | Phase::AwaitReady { .. } => self.kill(unborn, Some(Blame::ReadyTimeout), now),
            Phase::NotServing { since, why: Why::Frozen { .. }, .. } => self.give_up_on(since, Blame::Frozen, now),
            Phase::Draining { next, .. } => self.ask(next, now),
            Phase::Waiting { .. } => self.start(),
            Phase::Ending { step: Step::Asked, next, .. } => self.terminate(next, now),
            Phase::Ending { step: Step::Terminated, next, .. } => self.kill(next, None, now),
            Phase::Ending { step: Step::Killed, next, .. } => {
                let mut actions = vec![Action::Abandon];
                actions.extend(self.follow(next, now));
                actions
            }
            Phase::Stopped
            | Phase::Held
            | Phase::Starting { .. }
            | Phase::Serving { .. }
            | Phase::NotServing { .. }
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
            Next::BackOff(_) if self.held => self.rest(Phase::Held),
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
        if self.held {
            return self.rest(Phase::Held);
        }
        self.starts += 1;
        self.phase = Phase::Starting { order: None };
        vec![Action::Spawn]
    }

    fn ask(&mut self, next: Next, now: Instant) -> Vec<Action> {
        self.phase = Phase::Ending { step: Step::Asked, until: now + self.limits.shutdown_call, next };
        vec![Action::AskShutdown]
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

impl From<Why> for NotServing {
    fn from(why: Why) -> Self {
        match why {
            Why::Reported => Self::Reported,
            Why::Suspect => Self::Suspect,
            Why::Frozen { .. } => Self::Frozen,
        }
    }
}

fn next_of(order: Order) -> Next {
    match order {
        Order::Start | Order::Restart | Order::Hold | Order::Release => Next::Again,
        Order::Stop => Next::Stay,
        Order::Finish | Order::Discard => Next::Finish,
    }
}
