//! Slow, silent, frozen and unwilling, told apart: what each costs, and that calls are kept away meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_supervisor::{Calls, ExitCause, NotServing, State, Status};
use support::{LONG, Scenario, client, eventually, kill, runs, until};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

fn not_serving(why: NotServing) -> impl Fn(&Status) -> bool {
    move |status| status.state == State::NotServing { why }
}

fn serving_again(status: &Status) -> bool {
    status.restarts == 1 && status.state == State::Serving
}

/// As many calls without an answer as raise suspicion.
fn miss(calls: &Calls) {
    for _ in 0..3 {
        calls.begin("x").missed();
    }
}

#[tokio::test]
async fn a_stopped_process_is_found_and_killed_at_its_deadline() {
    let mut scenario = Scenario::fake(&[]);
    scenario.spec.health.interval = 20 * MS;
    scenario.spec.health.stopped_timeout = 300 * MS;
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    kill(pid, Signal::SIGSTOP);
    let found = Instant::now();
    until(&plugin, not_serving(NotServing::Frozen)).await;
    assert!(plugin.client().is_none(), "a frozen plugin gets calls");
    let status = until(&plugin, serving_again).await;
    assert!(found.elapsed() >= 300 * MS, "killed before its time");
    let report = status.last_exit.unwrap();
    assert!(matches!(report.cause, ExitCause::Frozen(limit) if limit == 300 * MS), "{report}");
    let said = "plugin `fake` was stopped by a signal or a debugger for 300 ms and was killed (after ";
    assert!(report.headline().starts_with(said), "{report}");
    assert!(!runs(pid));
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_process_that_is_continued_in_time_goes_on() {
    let mut scenario = Scenario::fake(&[]);
    scenario.spec.health.interval = 20 * MS;
    scenario.spec.health.stopped_timeout = LONG;
    let plugin = scenario.start();
    let first = client(&plugin).await;
    kill(first.pid(), Signal::SIGSTOP);
    until(&plugin, not_serving(NotServing::Frozen)).await;
    kill(first.pid(), Signal::SIGCONT);
    until(&plugin, |status| status.state == State::Serving).await;
    assert_eq!((client(&plugin).await.pid(), plugin.status().restarts), (first.pid(), 0));
    plugin.shutdown().await;
}

#[tokio::test]
async fn one_that_is_found_running_at_the_deadline_is_not_killed() {
    let mut scenario = Scenario::fake(&[]);
    // Only calls lead to a look at it, so that nothing sees it go on before the deadline.
    scenario.spec.health.interval = LONG;
    scenario.spec.health.stopped_timeout = 200 * MS;
    let plugin = scenario.start();
    let first = client(&plugin).await;
    kill(first.pid(), Signal::SIGSTOP);
    let stopped = || std::fs::read_to_string(format!("/proc/{}/stat", first.pid())).unwrap().contains(") T ");
    eventually("it is stopped", stopped).await;
    miss(&first.info.calls);
    until(&plugin, not_serving(NotServing::Frozen)).await;
    kill(first.pid(), Signal::SIGCONT);
    until(&plugin, |status| status.state == State::Serving).await;
    assert_eq!(plugin.status().restarts, 0);
    plugin.shutdown().await;
}

#[tokio::test]
async fn one_that_hangs_is_found_by_the_calls_that_it_leaves() {
    let told = tempfile::NamedTempFile::new().unwrap().into_temp_path().to_path_buf();
    let mut scenario = Scenario::fake(&[&format!("hang-on-usr1={}", told.display())]);
    // The beat is too slow to have found it.
    scenario.spec.health.interval = LONG;
    scenario.spec.health.timeout = 200 * MS;
    let plugin = scenario.start();
    let hanging = client(&plugin).await;
    kill(hanging.pid(), Signal::SIGUSR1);
    eventually("it hangs", || told.exists()).await;
    miss(&hanging.info.calls);
    let status = until(&plugin, serving_again).await;
    let report = status.last_exit.unwrap();
    assert!(matches!(&report.cause, ExitCause::Unresponsive(why) if why == "no answer within 200ms"), "{report}");
    plugin.shutdown().await;
    std::fs::remove_file(told).unwrap();
}

#[tokio::test]
async fn one_that_is_slow_is_checked_and_left_alive() {
    let mut scenario = Scenario::fake(&[]);
    scenario.spec.health.interval = LONG;
    let plugin = scenario.start();
    let slow = client(&plugin).await;
    let before = plugin.status().since;
    miss(&slow.info.calls);
    // It has been in another state meanwhile.
    until(&plugin, |status| status.since > before && status.state == State::Serving).await;
    assert_eq!(client(&plugin).await.pid(), slow.pid());
    // Once for each interval: it stays as it is however many calls it misses.
    let mut watch = plugin.watch();
    watch.mark_unchanged();
    for _ in 0..10 {
        miss(&slow.info.calls);
        tokio::task::yield_now().await;
    }
    assert!(!watch.has_changed().unwrap());
    plugin.shutdown().await;
}

#[tokio::test]
async fn one_that_says_it_does_not_serve_gets_no_calls_until_it_does() {
    let mut scenario = Scenario::fake(&["health-by-signal"]);
    scenario.spec.health.interval = 20 * MS;
    scenario.spec.health.failures = 10_000;
    let plugin = scenario.start();
    let first = client(&plugin).await;
    kill(first.pid(), Signal::SIGUSR1);
    until(&plugin, not_serving(NotServing::Reported)).await;
    assert!(plugin.client().is_none());
    let json = serde_json::to_value(plugin.status()).unwrap();
    assert_eq!((&json["state"], &json["why"]), (&"not_serving".into(), &"reported".into()));
    kill(first.pid(), Signal::SIGUSR2);
    let again = client(&plugin).await;
    assert_eq!((again.pid(), again.info.start), (first.pid(), 1), "it was killed for what it said");
    plugin.shutdown().await;
}

#[tokio::test]
async fn one_that_keeps_saying_so_is_killed() {
    let mut scenario = Scenario::fake(&["health-by-signal"]);
    scenario.spec.health.interval = 20 * MS;
    scenario.spec.health.failures = 3;
    let plugin = scenario.start();
    let first = client(&plugin).await;
    kill(first.pid(), Signal::SIGUSR1);
    let status = until(&plugin, serving_again).await;
    let cause = &status.last_exit.unwrap().cause;
    assert!(matches!(cause, ExitCause::Unhealthy(why) if why == "it reports NOT_SERVING"), "{cause:?}");
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_restart_waits_for_the_calls_under_way() {
    let scenario = Scenario::fake(&[]);
    let plugin = scenario.start();
    let first = client(&plugin).await;
    let call = first.info.calls.begin("request-7");
    let restarting = tokio::spawn({
        let plugin = plugin.clone();
        async move { plugin.restart().await }
    });
    until(&plugin, |status| status.state == State::Draining).await;
    assert!(plugin.client().is_none(), "a plugin that is drained gets new calls");
    assert!(runs(first.pid()));
    call.answered();
    restarting.await.unwrap();
    assert_eq!(client(&plugin).await.info.start, 2);
    assert!(!runs(first.pid()));
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_call_that_never_ends_does_not_keep_a_plugin() {
    let mut scenario = Scenario::fake(&[]);
    scenario.spec.stop.drain_timeout = 100 * MS;
    let plugin = scenario.start();
    let first = client(&plugin).await;
    let _call = first.info.calls.begin("request-7");
    plugin.stop().await;
    assert!(!runs(first.pid()));
    assert_eq!(plugin.status().state, State::Stopped);
    plugin.shutdown().await;
}

#[tokio::test]
async fn the_report_of_a_crash_names_the_calls_that_it_hit() {
    let scenario = Scenario::fake(&[]);
    let plugin = scenario.start();
    let first = client(&plugin).await;
    let calls = first.info.calls.clone();
    calls.begin("before").answered();
    let hit = (calls.begin("request-7"), calls.begin("request-8"));
    // The connection may be seen to break before the end is.
    hit.0.broken();
    kill(first.pid(), Signal::SIGKILL);
    let report = until(&plugin, serving_again).await.last_exit.unwrap();
    assert_eq!(report.calls.ids, ["request-7", "request-8"]);
    assert!(report.to_string().contains("\n  calls under way: 2 (request-7, request-8)"), "{report}");
    plugin.shutdown().await;
}
