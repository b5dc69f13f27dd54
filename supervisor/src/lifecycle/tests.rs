//! Every phase against every event: what the table lists happens, and nothing else changes anything.

use super::*;
use crate::spec::{PluginSpec, RestartMode};

const MS: Duration = Duration::from_millis(1);

const EXITS: [Exit; 3] = [Exit::Clean, Exit::Failed(Hope::Transient), Exit::Failed(Hope::Permanent)];

/// No jitter, two misses, and limits that tell each other apart.
fn spec() -> PluginSpec {
    let mut spec = PluginSpec::new("auth", ["x"], "/run");
    spec.handshake.timeout = 1_000 * MS;
    spec.ready_timeout = 2_000 * MS;
    spec.stop.drain_timeout = 5 * MS;
    spec.stop.rpc_timeout = 10 * MS;
    spec.stop.term_timeout = 20 * MS;
    spec.health.failures = 2;
    spec.health.stopped_timeout = 40 * MS;
    spec.restart.jitter = 0.0;
    spec.restart.crash_loop_after = 2;
    spec
}

fn at(phase: Phase) -> Lifecycle {
    Lifecycle { phase, ..Lifecycle::new(&spec(), 1) }
}

/// What is expected of a phase and an event.
type Row = (Phase, Event, Phase, Vec<Action>);

#[test]
fn every_phase_meets_every_event() {
    use Action as A;
    use Event as E;
    use Next::{Again, Finish, Stay};
    use Order as O;
    use Phase as P;

    let now = Instant::now();
    let due = now - MS;
    let unborn = Failure { served: None, hope: Hope::Transient };
    let served = |for_how_long| Failure { served: Some(for_how_long), hope: Hope::Transient };
    let back_off = Next::BackOff(unborn);

    let starting = |order| P::Starting { order };
    let (handshake, health, ready) =
        (P::AwaitHandshake { until: due }, P::AwaitHealth { until: due }, P::AwaitReady { until: due });
    let serving = |misses| P::Serving { since: now - 5 * MS, misses };
    let waiting = P::Waiting { until: due, crash_looped: true };
    let disabled = P::Disabled { why: WontRetry::Policy };
    let withheld = |misses, why| P::NotServing { since: now - 5 * MS, misses, why };
    let frozen = Why::Frozen { until: due };
    let froze = Why::Frozen { until: now + 40 * MS };
    let draining = |next| P::Draining { until: due, next };
    let ending = |step, next| P::Ending { step, until: due, next };
    let (asked, terminated, killed) = (Step::Asked, Step::Terminated, Step::Killed);
    let begun = |step, next| {
        let limit = match step {
            Step::Asked => 10 * MS,
            Step::Terminated => 20 * MS,
            Step::Killed => KILL_TIMEOUT,
        };
        P::Ending { step, until: now + limit, next }
    };
    let paused = P::Waiting { until: now + 100 * MS, crash_looped: false };
    let blame = A::Blame;

    let mut rows: Vec<Row> = vec![
        // Without a process.
        (P::Held, E::Order(O::Release), starting(None), vec![A::Spawn]),
        (waiting, E::Deadline, starting(None), vec![A::Spawn]),
        // While it is made.
        (starting(None), E::Order(O::Stop), starting(Some(Stay)), vec![]),
        (starting(None), E::Order(O::Finish), starting(Some(Finish)), vec![]),
        (starting(None), E::Order(O::Discard), starting(Some(Finish)), vec![]),
        (starting(None), E::Spawned, P::AwaitHandshake { until: now + 1_000 * MS }, vec![]),
        (starting(None), E::Found, P::AwaitHealth { until: now + 2_000 * MS }, vec![A::Prepare]),
        (starting(None), E::SpawnFailed(Hope::Transient), paused, vec![]),
        (starting(Some(Stay)), E::Order(O::Start), starting(None), vec![]),
        (starting(Some(Stay)), E::Order(O::Restart), starting(None), vec![]),
        (starting(Some(Stay)), E::Order(O::Finish), starting(Some(Finish)), vec![]),
        (starting(Some(Stay)), E::Order(O::Discard), starting(Some(Finish)), vec![]),
        (starting(Some(Stay)), E::Spawned, begun(killed, Stay), vec![blame(Blame::Requested), A::Kill]),
        (starting(Some(Stay)), E::Found, begun(killed, Stay), vec![blame(Blame::Requested), A::Kill]),
        (starting(Some(Stay)), E::SpawnFailed(Hope::Transient), P::Stopped, vec![]),
        (starting(Some(Finish)), E::Spawned, begun(killed, Finish), vec![blame(Blame::Requested), A::Kill]),
        (starting(Some(Finish)), E::Found, begun(killed, Finish), vec![blame(Blame::Requested), A::Kill]),
        (starting(Some(Finish)), E::SpawnFailed(Hope::Transient), P::Finished, vec![]),
        // Before it serves.
        (handshake, E::Handshaken, P::AwaitHealth { until: now + 2_000 * MS }, vec![A::Prepare]),
        (handshake, E::Deadline, begun(killed, back_off), vec![blame(Blame::HandshakeTimeout), A::Kill]),
        // The time is one for both.
        (health, E::Healthy, ready, vec![]),
        (health, E::Deadline, begun(killed, back_off), vec![blame(Blame::ReadyTimeout), A::Kill]),
        (ready, E::Ready, P::Serving { since: now, misses: 0 }, vec![A::Serve]),
        (ready, E::Deadline, begun(killed, back_off), vec![blame(Blame::ReadyTimeout), A::Kill]),
    ];
    // A check that fails once too often, for a process that has served for 5 ms.
    let given_up = |cause| {
        let actions = vec![A::Withdraw, blame(cause), A::Kill];
        (begun(killed, Next::BackOff(served(5 * MS))), actions)
    };
    let gives_up = |phase, event, cause| {
        let (next, actions) = given_up(cause);
        (phase, event, next, actions)
    };
    rows.extend([
        // Serving.
        (serving(0), E::HealthMissed, serving(1), vec![]),
        (serving(1), E::HealthAnswered, serving(0), vec![]),
        gives_up(serving(1), E::HealthMissed, Blame::Unhealthy),
        (serving(0), E::HealthRefused, withheld(1, Why::Reported), vec![A::Withhold]),
        gives_up(serving(1), E::HealthRefused, Blame::Unhealthy),
        // Not serving: it says so, ...
        (withheld(1, Why::Reported), E::HealthAnswered, serving(0), vec![A::Offer]),
        gives_up(withheld(1, Why::Reported), E::HealthRefused, Blame::Unhealthy),
        gives_up(withheld(1, Why::Reported), E::HealthMissed, Blame::Unhealthy),
        (withheld(1, Why::Reported), E::Frozen, withheld(1, froze), vec![]),
        // ... its calls got no answer, ...
        (withheld(0, Why::Suspect), E::HealthAnswered, serving(0), vec![A::Offer]),
        gives_up(withheld(0, Why::Suspect), E::HealthMissed, Blame::Unresponsive),
        (withheld(0, Why::Suspect), E::HealthRefused, withheld(1, Why::Reported), vec![]),
        (withheld(0, Why::Suspect), E::Frozen, withheld(0, froze), vec![]),
        // ... or its process is stopped.
        (withheld(0, frozen), E::HealthAnswered, serving(0), vec![A::Offer]),
        (withheld(0, frozen), E::HealthMissed, serving(1), vec![A::Offer]),
        (withheld(0, frozen), E::HealthRefused, withheld(1, Why::Reported), vec![]),
        (withheld(0, frozen), E::Thawed, serving(0), vec![A::Offer, A::Check]),
        gives_up(withheld(0, frozen), E::Deadline, Blame::Frozen),
    ]);
    for misses in [0, 1] {
        rows.extend([
            (serving(misses), E::Frozen, withheld(misses, froze), vec![A::Withhold]),
            (serving(misses), E::CallsMissed, withheld(misses, Why::Suspect), vec![A::Withhold, A::Check]),
        ]);
    }
    for phase in [P::Stopped, P::Held, waiting, disabled] {
        rows.extend([
            (phase, E::Order(O::Start), starting(None), vec![A::Spawn]),
            (phase, E::Order(O::Restart), starting(None), vec![A::Spawn]),
            (phase, E::Order(O::Stop), P::Stopped, vec![]),
            (phase, E::Order(O::Finish), P::Finished, vec![]),
            (phase, E::Order(O::Discard), P::Finished, vec![]),
        ]);
    }
    for phase in [handshake, health, ready] {
        let terminate = || vec![blame(Blame::Requested), A::Terminate];
        let permanent = Failure { served: None, hope: Hope::Permanent };
        rows.extend([
            (phase, E::Order(O::Stop), begun(terminated, Stay), terminate()),
            (phase, E::Order(O::Restart), begun(terminated, Again), terminate()),
            (phase, E::Order(O::Finish), begun(terminated, Finish), terminate()),
            (phase, E::Order(O::Discard), begun(killed, Finish), vec![blame(Blame::Requested), A::Kill]),
            (phase, E::StartFailed(Hope::Transient), begun(killed, back_off), vec![A::Kill]),
            (phase, E::StartFailed(Hope::Permanent), begun(killed, Next::BackOff(permanent)), vec![A::Kill]),
            (phase, E::Exited(Exit::Clean), paused, vec![]),
            (phase, E::Exited(Exit::Failed(Hope::Transient)), paused, vec![]),
            (
                phase,
                E::Exited(Exit::Failed(Hope::Permanent)),
                P::Waiting { until: now + 30_000 * MS, crash_looped: false },
                vec![],
            ),
        ]);
    }
    let withheld_phases = [withheld(1, Why::Reported), withheld(0, Why::Suspect), withheld(0, frozen)];
    for phase in [serving(0), serving(1)].into_iter().chain(withheld_phases) {
        let drain = || vec![A::Withdraw, blame(Blame::Requested), A::Drain];
        let drains = |next| P::Draining { until: now + 5 * MS, next };
        rows.extend([
            (phase, E::Order(O::Stop), drains(Stay), drain()),
            (phase, E::Order(O::Restart), drains(Again), drain()),
            (phase, E::Order(O::Finish), drains(Finish), drain()),
            (phase, E::Order(O::Discard), begun(killed, Finish), vec![A::Withdraw, blame(Blame::Requested), A::Kill]),
            // It had served: at once.
            (phase, E::Exited(Exit::Clean), starting(None), vec![A::Withdraw, A::Spawn]),
            (phase, E::Exited(Exit::Failed(Hope::Transient)), starting(None), vec![A::Withdraw, A::Spawn]),
            (
                phase,
                E::Exited(Exit::Failed(Hope::Permanent)),
                P::Waiting { until: now + 30_000 * MS, crash_looped: false },
                vec![A::Withdraw],
            ),
        ]);
    }
    let nexts = [Stay, Again, back_off, Finish];
    for next in nexts {
        let after = match next {
            Stay => (P::Stopped, vec![]),
            Again => (starting(None), vec![A::Spawn]),
            Next::BackOff(_) => (paused, vec![]),
            Finish => (P::Finished, vec![]),
        };
        for exit in EXITS {
            rows.push((draining(next), E::Exited(exit), after.0, after.1.clone()));
        }
        if next != Finish {
            rows.extend([
                (draining(next), E::Order(O::Start), draining(Again), vec![]),
                (draining(next), E::Order(O::Restart), draining(Again), vec![]),
                (draining(next), E::Order(O::Stop), draining(Stay), vec![]),
                (draining(next), E::Order(O::Finish), draining(Finish), vec![]),
            ]);
        }
        rows.extend([
            (draining(next), E::Order(O::Discard), begun(killed, Finish), vec![A::Kill]),
            (draining(next), E::Drained, begun(asked, next), vec![A::AskShutdown]),
            (draining(next), E::Deadline, begun(asked, next), vec![A::AskShutdown]),
        ]);
        for step in [asked, terminated, killed] {
            let from = ending(step, next);
            for exit in EXITS {
                rows.push((from, E::Exited(exit), after.0, after.1.clone()));
            }
            if next != Finish {
                rows.extend([
                    (from, E::Order(O::Start), ending(step, Again), vec![]),
                    (from, E::Order(O::Restart), ending(step, Again), vec![]),
                    (from, E::Order(O::Stop), ending(step, Stay), vec![]),
                    (from, E::Order(O::Finish), ending(step, Finish), vec![]),
                ]);
            }
            if step == killed {
                rows.push((from, E::Order(O::Discard), ending(killed, Finish), vec![]));
            } else {
                rows.push((from, E::Order(O::Discard), begun(killed, Finish), vec![A::Kill]));
            }
        }
        rows.push((ending(asked, next), E::ShutdownRefused, begun(terminated, next), vec![A::Terminate]));
        rows.push((ending(asked, next), E::Deadline, begun(terminated, next), vec![A::Terminate]));
        rows.push((ending(terminated, next), E::Deadline, begun(killed, next), vec![A::Kill]));
        let mut abandoned = vec![A::Abandon];
        abandoned.extend(after.1);
        rows.push((ending(killed, next), E::Deadline, after.0, abandoned));
    }

    let mut phases =
        vec![P::Stopped, P::Held, waiting, disabled, handshake, health, ready, serving(0), serving(1), P::Finished];
    phases.extend([None, Some(Stay), Some(Finish)].map(starting));
    phases.extend(withheld_phases);
    phases.extend(nexts.map(draining));
    for step in [asked, terminated, killed] {
        phases.extend(nexts.map(|next| ending(step, next)));
    }
    let orders = [O::Start, O::Restart, O::Stop, O::Finish, O::Discard, O::Release].map(E::Order);
    let exits = EXITS.map(E::Exited);
    let others = [
        E::Spawned,
        E::Found,
        E::SpawnFailed(Hope::Transient),
        E::Handshaken,
        E::StartFailed(Hope::Transient),
        E::StartFailed(Hope::Permanent),
        E::Healthy,
        E::Ready,
        E::HealthAnswered,
        E::HealthMissed,
        E::HealthRefused,
        E::Frozen,
        E::Thawed,
        E::CallsMissed,
        E::Drained,
        E::ShutdownRefused,
        E::Deadline,
    ];
    for phase in phases {
        for event in orders.into_iter().chain(others).chain(exits) {
            let listed = rows.iter().find(|row| (row.0, row.1) == (phase, event));
            let (next, actions) = listed.map_or((phase, vec![]), |row| (row.2, row.3.clone()));
            let (machine, done) = at(phase).on(event, now);
            assert_eq!((machine.phase, done), (next, actions), "{phase:?} on {event:?}");
        }
    }
}

#[test]
fn while_starts_are_held_nothing_starts() {
    let now = Instant::now();
    let failure = Failure { served: None, hope: Hope::Transient };
    let serving = Phase::Serving { since: now, misses: 0 };
    let exited = Event::Exited(Exit::Failed(Hope::Transient));
    let restart = Event::Order(Order::Restart);
    let awaited = |phase: fn(Instant) -> Phase| (phase(now), vec![exited]);
    let cases = [
        (Phase::Waiting { until: now, crash_looped: false }, vec![]),
        (Phase::Starting { order: None }, vec![Event::Found, exited]),
        awaited(|until| Phase::AwaitHandshake { until }),
        awaited(|until| Phase::AwaitHealth { until }),
        awaited(|until| Phase::AwaitReady { until }),
        (serving, vec![exited]),
        (serving, vec![restart, exited]),
        (Phase::Draining { until: now, next: Next::Again }, vec![exited]),
        (Phase::Ending { step: Step::Killed, until: now, next: Next::BackOff(failure) }, vec![exited]),
    ];
    for (phase, events) in cases {
        let mut machine = at(phase).on(Event::Order(Order::Hold), now).0;
        for event in events.into_iter().chain([restart, Event::Deadline]) {
            let (next, actions) = machine.on(event, now);
            machine = next;
            assert!(!actions.contains(&Action::Spawn), "{phase:?} on {event:?}");
        }
        assert_eq!(machine.phase, Phase::Held, "{phase:?}");
        let (machine, actions) = machine.on(Event::Order(Order::Release), now);
        assert_eq!((machine.phase, actions), (Phase::Starting { order: None }, vec![Action::Spawn]));
    }
    // What serves goes on; what is stopped stays so.
    for phase in [serving, Phase::Stopped] {
        let machine = at(phase).on(Event::Order(Order::Hold), now).0;
        assert_eq!(machine.on(Event::Order(Order::Release), now).0.phase, phase);
    }
}

#[test]
fn a_deadline_counts_only_when_it_has_passed() {
    let now = Instant::now();
    let phase = Phase::AwaitHandshake { until: now + MS };
    let (machine, actions) = at(phase).on(Event::Deadline, now);
    assert_eq!((machine.phase, actions), (phase, vec![]));
    assert_eq!(machine.deadline(), Some(now + MS));
}

/// Spawned, served for a while, exited: the pause that follows.
fn crash(machine: Lifecycle, served: Duration, now: &mut Instant) -> Lifecycle {
    let mut machine = machine;
    for event in [Event::Spawned, Event::Handshaken, Event::Healthy, Event::Ready] {
        machine = machine.on(event, *now).0;
    }
    *now += served;
    machine.on(Event::Exited(Exit::Failed(Hope::Transient)), *now).0
}

#[test]
fn a_crash_loop_is_shown_retried_and_forgotten_by_an_operator() {
    let mut now = Instant::now();
    let machine = Lifecycle::new(&spec(), 1).on(Event::Order(Order::Start), now).0;
    let machine = crash(machine, MS, &mut now);
    assert_eq!(machine.phase, Phase::Starting { order: None }, "the first restart is immediate");
    let machine = crash(machine, MS, &mut now);
    assert_eq!(machine.phase, Phase::Waiting { until: now + 100 * MS, crash_looped: true });
    assert_eq!((machine.failures(), machine.restarts()), (2, 1));
    now += 100 * MS;
    let machine = machine.on(Event::Deadline, now).0;
    let machine = crash(machine, MS, &mut now);
    assert_eq!(machine.phase, Phase::Waiting { until: now + 200 * MS, crash_looped: true });
    let machine = machine.on(Event::Order(Order::Restart), now).0;
    assert_eq!(machine.failures(), 0);
    let machine = crash(machine, MS, &mut now);
    assert_eq!(machine.phase, Phase::Starting { order: None });
}

#[test]
fn a_long_healthy_run_forgets_failures() {
    let mut now = Instant::now();
    let machine = Lifecycle::new(&spec(), 1).on(Event::Order(Order::Start), now).0;
    let machine = machine.on(Event::SpawnFailed(Hope::Transient), now).0;
    now += 100 * MS;
    let machine = machine.on(Event::Deadline, now).0;
    let machine = crash(machine, Duration::from_secs(60), &mut now);
    assert_eq!((machine.phase, machine.failures()), (Phase::Starting { order: None }, 1));
}

#[test]
fn what_follows_an_end_is_the_policy_s_choice() {
    use RestartMode::{Always, Never, OnFailure};
    let now = Instant::now();
    let again = Phase::Starting { order: None };
    let disabled = Phase::Disabled { why: WontRetry::Policy };
    let failed = Exit::Failed(Hope::Transient);
    let cases = [
        (Always, Exit::Clean, again),
        (Always, failed, again),
        (OnFailure, Exit::Clean, Phase::Stopped),
        (OnFailure, failed, again),
        (Never, Exit::Clean, Phase::Stopped),
        (Never, failed, disabled),
    ];
    for (mode, exit, expected) in cases {
        let mut spec = spec();
        spec.restart.mode = mode;
        let phase = Phase::Serving { since: now, misses: 0 };
        let (machine, actions) = Lifecycle { phase, ..Lifecycle::new(&spec, 1) }.on(Event::Exited(exit), now);
        assert_eq!(machine.phase, expected, "{mode:?} after {exit:?}");
        assert_eq!(actions[0], Action::Withdraw);
        // What never served has failed, whatever its exit status.
        let phase = Phase::AwaitReady { until: now };
        let machine = Lifecycle { phase, ..Lifecycle::new(&spec, 1) }.on(Event::Exited(exit), now).0;
        let given_up = machine.phase == disabled;
        assert!(given_up || matches!(machine.phase, Phase::Waiting { .. }), "{:?}", machine.phase);
        assert_eq!(given_up, mode == Never);
    }
}

#[test]
fn a_plugin_restarted_too_often_is_disabled_until_an_operator_asks() {
    let mut now = Instant::now();
    let mut spec = spec();
    spec.restart.max_restarts = Some(2);
    let mut machine = Lifecycle::new(&spec, 1).on(Event::Order(Order::Start), now).0;
    for _ in 0..2 {
        machine = crash(machine, MS, &mut now);
        if let Some(due) = machine.deadline() {
            now = due;
            machine = machine.on(Event::Deadline, now).0;
        }
        assert_eq!(machine.phase, Phase::Starting { order: None });
    }
    machine = crash(machine, MS, &mut now);
    assert_eq!(machine.phase, Phase::Disabled { why: WontRetry::TooManyRestarts });
    assert_eq!(machine.deadline(), None, "nothing happens by itself any more");
    machine = machine.on(Event::Order(Order::Start), now).0;
    machine = crash(machine, MS, &mut now);
    assert_eq!(machine.phase, Phase::Starting { order: None }, "the window is empty again");
}

#[test]
fn every_chain_of_deadlines_ends() {
    // Whatever an operator asks for, a process that reacts to nothing is gone or given up within the limits' sum.
    let now = Instant::now();
    for order in [Order::Stop, Order::Finish] {
        let mut machine = at(Phase::Serving { since: now, misses: 0 }).on(Event::Order(order), now).0;
        let mut clock = now;
        while let Some(deadline) = machine.deadline() {
            clock = deadline;
            machine = machine.on(Event::Deadline, clock).0;
        }
        assert_eq!(clock - now, 35 * MS + KILL_TIMEOUT);
        assert!(matches!(machine.phase, Phase::Stopped | Phase::Finished));
    }
}
