//! What is known of an end, and that it is kept; and that every transition is told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_supervisor::{Adapter, AttachError, ExitReport, InstanceInfo, Plugin, ProcessEnd, State, Transition};
use support::{Scenario, client, kill, until, until_report};
use tonic::transport::Channel;

#[tokio::test]
async fn a_crash_is_reported_with_what_is_known_of_it() {
    let scenario = Scenario::fake(&["banner=loading \u{1b}[31m", "stderr=a last word"]);
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    kill(pid, Signal::SIGABRT);
    let report = until_report(&plugin).await;
    assert_eq!((report.pid, &report.end), (Some(pid), &Some(ProcessEnd::Signalled("SIGABRT".into()))));
    assert_eq!(report.state, State::Serving);
    // Plugins may write no core file. A program that takes core dumps by a pipe gets them all the same.
    let piped = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap().starts_with('|');
    assert!(piped || !report.core_dumped);
    assert_eq!(report.stderr, ["a last word"]);
    let [banner, line] = &report.transcript[..] else { panic!("{:?}", report.transcript) };
    assert_eq!(banner, r"loading \u{1b}[31m");
    assert!(line.starts_with("1|1|unix|") && line.ends_with("/plugin.sock|grpc"), "{line}");
    let usage = report.usage.unwrap();
    assert!(!(usage.user + usage.system).is_zero() && usage.max_memory > 1 << 20, "{usage:?}");
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_line_that_never_ended_is_in_the_report() {
    let mut scenario = Scenario::shell("echo first; printf '1|1|unix'; sleep 600");
    scenario.spec.handshake.timeout = std::time::Duration::from_millis(500);
    let plugin = scenario.start();
    let whole = |report: &ExitReport| report.transcript == ["first", "1|1|unix"];
    let status = until(&plugin, |status| status.last_exit.as_deref().is_some_and(whole)).await;
    let state = status.last_exit.unwrap().state;
    assert_eq!(state, State::AwaitHandshake, "not `stopping`: that is how it was ended");
    plugin.shutdown().await;
}

#[tokio::test]
async fn the_last_reports_are_kept() {
    let mut scenario = Scenario::shell("echo run >> $OUT; exit $(wc -l < $OUT)");
    scenario.spec.restart.max = std::time::Duration::from_millis(1);
    scenario.spec.exit_reports = 3;
    let plugin = scenario.start();
    let status = until(&plugin, |status| status.restarts >= 6).await;
    let codes: Vec<_> = status.exits.iter().map(|report| report.end.clone()).collect();
    let Some(ProcessEnd::Exited(last)) = codes[0] else { panic!("{codes:?}") };
    assert_eq!(codes, [last, last - 1, last - 2].map(|code| Some(ProcessEnd::Exited(code))));
    assert!(Arc::ptr_eq(&status.exits[0], status.last_exit.as_ref().unwrap()));
    plugin.shutdown().await;
}

/// Notes what it is told.
#[derive(Default, Clone)]
struct Noting(Arc<Mutex<Vec<Transition>>>);

impl Adapter for Noting {
    type Client = ();

    async fn attach(&self, _: Channel, _: InstanceInfo) -> Result<(), AttachError> {
        Ok(())
    }

    fn observe(&self, transition: &Transition) {
        self.0.lock().unwrap().push(transition.clone());
    }
}

#[tokio::test]
async fn every_transition_is_told_in_order_with_what_it_comes_of() {
    let scenario = Scenario::fake(&[]);
    let noting = Noting::default();
    let plugin = Plugin::start(scenario.spec.clone(), noting.clone()).unwrap();
    let mut watch = plugin.watch();
    let pid = watch.wait_for(|status| status.state == State::Serving).await.unwrap().pid.unwrap();
    kill(pid, Signal::SIGKILL);
    watch.wait_for(|status| status.restarts == 1 && status.state == State::Serving).await.unwrap();
    plugin.shutdown().await;

    let told = noting.0.lock().unwrap().clone();
    let start = ["starting", "await_handshake", "await_health", "await_ready", "serving"];
    let expected: Vec<_> = start.iter().chain(&start).copied().chain(["draining", "stopping", "stopped"]).collect();
    assert_eq!(told.iter().map(|step| step.to.as_str()).collect::<Vec<_>>(), expected);
    let mut from = "stopped";
    for step in &told {
        assert_eq!(step.from.as_str(), from, "a transition was skipped");
        from = step.to.as_str();
    }
    let reason = |index: usize| told[index].reason.clone().unwrap_or_default();
    assert_eq!(reason(0), "first start");
    assert!(reason(5).starts_with("plugin `fake` was killed by SIGKILL (after "), "{}", reason(5));
    assert_eq!((told[4].pid, told[4].start, told[9].start), (Some(pid), 1, 2));
    assert_eq!(reason(10), "order: stop for good");
}

/// Never sets its contract up.
struct Slow;

impl Adapter for Slow {
    type Client = ();

    async fn attach(&self, _: Channel, _: InstanceInfo) -> Result<(), AttachError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn health_and_the_host_s_own_calls_are_awaited_in_states_of_their_own() {
    for (options, state) in [(&["not-serving"][..], State::AwaitHealth), (&[], State::AwaitReady)] {
        let mut scenario = Scenario::fake(options);
        let plugin = Plugin::start(scenario.spec.clone(), Slow).unwrap();
        until(&plugin, |status| status.state == state).await;
        plugin.shutdown().await;

        scenario.spec.ready_timeout = Duration::from_millis(200);
        let plugin = Plugin::start(scenario.spec.clone(), Slow).unwrap();
        until(&plugin, |status| status.last_exit.as_ref().is_some_and(|report| report.state == state)).await;
        plugin.shutdown().await;
    }
}
