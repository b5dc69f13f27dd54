//! A plugin's life with real processes: served, killed, frozen, stopped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_supervisor::{
    Adapter, AttachError, ExitCause, InstanceInfo, Plugin, ProcessEnd, RestartMode, State, WontRetry,
};
use support::{LONG, Scenario, client, eventually, kill, runs, until, until_report, until_report_with};
use tokio::time::Instant;
use tonic::transport::Channel;

#[tokio::test]
async fn a_killed_plugin_serves_again_without_any_traffic() {
    let scenario = Scenario::fake(&[]);
    let plugin = scenario.start();
    let first = client(&plugin).await;
    kill(first.pid(), Signal::SIGKILL);
    let status = until(&plugin, |status| status.restarts == 1 && status.state == State::Serving).await;
    assert!(matches!(&status.last_exit.unwrap().cause, ExitCause::Signalled(signal) if signal == "SIGKILL"));
    let second = client(&plugin).await;
    assert_eq!((first.info.start, second.info.start), (1, 2));
    plugin.shutdown().await;
    assert_eq!(plugin.status().state, State::Stopped);
    assert!(!runs(second.pid()));
    assert!(plugin.client().is_none());
    assert_eq!(scenario.private_dirs(), 0);
}

#[tokio::test]
async fn an_exit_before_the_handshake_is_explained() {
    let scenario = Scenario::shell("echo \"ModuleNotFoundError: No module named 'grpc'\" >&2; exit 1");
    let plugin = scenario.start();
    let report = until_report(&plugin).await.to_string();
    assert!(report.starts_with("error: plugin `fake` exited before the handshake (exit status 1, after "), "{report}");
    assert!(report.contains("    | ModuleNotFoundError"), "{report}");
    assert!(report.contains("pip install palisade-plugin"), "{report}");
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_plugin_without_health_and_controller_serves_and_stops() {
    let scenario = Scenario::fake(&["no-health", "no-controller"]);
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    // Its answer to health checks is an error, but an answer.
    plugin.stop().await;
    assert!(!runs(pid));
    assert_eq!(plugin.status().last_exit.unwrap().end, Some(ProcessEnd::Signalled("SIGTERM".into())));
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_reports_not_serving_never_serves() {
    let mut scenario = Scenario::fake(&["not-serving"]);
    scenario.spec.ready_timeout = Duration::from_millis(300);
    let plugin = scenario.start();
    until_report_with(&plugin, "was not ready within 300ms: health check: it reports NOT_SERVING (SIGKILL").await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn whoever_holds_the_output_does_not_delay_a_restart_and_is_killed() {
    // One in the plugin's group, one in a session of its own.
    let scenario = Scenario::shell("sleep 600 & echo $! > $OUT; setsid sleep 600 & echo $! >> $OUT; exec \"$FAKE\"");
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    let holders = scenario.pids(2).await;
    kill(pid, Signal::SIGKILL);
    until(&plugin, |status| status.restarts == 1 && status.state == State::Serving).await;
    for holder in holders {
        eventually("a straggler is killed", || !runs(holder)).await;
    }
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_daemonised_plugin_counts_as_crashed_and_is_killed() {
    let mut scenario = Scenario::shell("setsid \"$FAKE\" & echo $! > $OUT; exit 0");
    // setsid(1) forks where it leads a group, which it does not here, so the pid is the plugin's.
    scenario.spec.handshake.timeout = LONG;
    let plugin = scenario.start();
    let report = until_report(&plugin).await;
    assert!(report.headline().starts_with("plugin `fake` exited "), "{report}");
    let daemon = scenario.pids(1).await[0];
    eventually("the daemon is killed", || !runs(daemon)).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn nothing_a_plugin_ignores_keeps_it_alive() {
    let cases: [(&[&str], Option<Signal>); 3] = [
        (&["ignore-term", "no-controller"], None),
        (&["ignore-term", "ignore-shutdown"], None),
        (&[], Some(Signal::SIGSTOP)),
    ];
    for (options, first) in cases {
        let mut scenario = Scenario::fake(options);
        scenario.spec.stop.rpc_timeout = Duration::from_millis(100);
        scenario.spec.stop.term_timeout = Duration::from_millis(100);
        let plugin = scenario.start();
        let pid = client(&plugin).await.pid();
        if let Some(signal) = first {
            kill(pid, signal);
        }
        plugin.shutdown().await;
        assert!(!runs(pid), "{options:?}");
        let report = plugin.status().last_exit.unwrap();
        assert!(matches!(report.cause, ExitCause::Requested), "{options:?}");
        assert_eq!(report.end, Some(ProcessEnd::Signalled("SIGKILL".into())), "{options:?}");
        assert_eq!(scenario.private_dirs(), 0);
    }
}

#[tokio::test]
async fn an_operator_stops_starts_and_restarts() {
    let scenario = Scenario::fake(&[]);
    let plugin = scenario.start();
    let first = client(&plugin).await.pid();
    plugin.stop().await;
    assert_eq!(plugin.status().state, State::Stopped);
    assert!(!runs(first));
    // Nothing will come, so nobody waits for it.
    let refused = plugin.wait_client(Instant::now() + LONG).await.unwrap_err();
    assert_eq!(refused.to_string(), "plugin `fake` is unavailable (stopped)");
    plugin.start_again().await;
    let second = client(&plugin).await;
    plugin.start_again().await;
    assert_eq!(client(&plugin).await.info.start, second.info.start, "it ran already");
    plugin.restart().await;
    let third = client(&plugin).await;
    assert_eq!(third.info.start, second.info.start + 1);
    assert!(!runs(second.pid()));
    plugin.shutdown().await;
    plugin.shutdown().await;
    plugin.restart().await;
    assert_eq!(plugin.status().state, State::Stopped);
}

#[tokio::test]
async fn a_crash_loop_stays_visible_and_callers_do_not_wait_for_it() {
    let mut scenario = Scenario::shell("exit 3");
    scenario.spec.restart.initial = Duration::from_millis(1);
    scenario.spec.restart.multiplier = 100.0;
    scenario.spec.restart.crash_loop_after = 3;
    let plugin = scenario.start();
    let status = until(&plugin, |status| matches!(status.state, State::CrashLooped { .. })).await;
    assert_eq!((status.failures, status.restarts), (3, 2));
    let refused = plugin.wait_client(Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(refused.state, State::CrashLooped { .. }));
    let json = serde_json::to_value(plugin.status()).unwrap();
    assert_eq!(json["state"], "crash_looped");
    assert_eq!(json["last_exit"]["end"]["exited"], 3);
    let cause = serde_json::json!({ "kind": "start_failure", "detail": "exited before the handshake" });
    assert_eq!(json["last_exit"]["cause"], cause);
    assert!(json["next_attempt"].is_number());
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_policy_may_leave_it_at_an_end() {
    // The shell exits with 0 when the plugin in it has been killed.
    let mut scenario = Scenario::shell("\"$FAKE\" & echo $! >> $OUT; wait; exit 0");
    scenario.spec.restart.mode = RestartMode::OnFailure;
    let plugin = scenario.start();
    client(&plugin).await;
    kill(scenario.pids(1).await[0], Signal::SIGKILL);
    let status = until(&plugin, |status| status.state == State::Stopped).await;
    assert!(matches!(status.last_exit.unwrap().cause, ExitCause::Exited(0)));
    plugin.start_again().await;
    let second = client(&plugin).await;
    kill(second.pid(), Signal::SIGKILL);
    until(&plugin, |status| status.restarts == 2 && status.state == State::Serving).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_is_restarted_too_often_waits_for_an_operator() {
    let mut scenario = Scenario::shell("exit 3");
    scenario.spec.restart.max = Duration::from_millis(1);
    scenario.spec.restart.max_restarts = Some(4);
    let plugin = scenario.start();
    let disabled = State::Disabled { why: WontRetry::TooManyRestarts };
    let status = until(&plugin, |status| status.state == disabled).await;
    assert_eq!((status.failures, status.restarts), (5, 4));
    // Nothing will come, so nobody waits for it.
    let refused = plugin.wait_client(Instant::now() + LONG).await.unwrap_err();
    assert_eq!(refused.to_string(), "plugin `fake` is unavailable (disabled)");
    let json = serde_json::to_value(plugin.status()).unwrap();
    assert_eq!((&json["state"], &json["why"]), (&"disabled".into(), &"too_many_restarts".into()));
    plugin.restart().await;
    let status = until(&plugin, |status| status.restarts > 5 && status.state == disabled).await;
    assert_eq!((status.failures, status.restarts), (5, 9), "an operator's order empties the window");
    plugin.shutdown().await;
}

#[tokio::test]
async fn an_exit_with_status_0_is_an_end_like_any_other() {
    // The shell exits with 0 when the plugin in it has been killed.
    let scenario = Scenario::shell("\"$FAKE\" & echo $! >> $OUT; wait; exit 0");
    let plugin = scenario.start();
    client(&plugin).await;
    kill(scenario.pids(1).await[0], Signal::SIGKILL);
    let status = until(&plugin, |status| status.restarts == 1 && status.state == State::Serving).await;
    assert!(matches!(status.last_exit.unwrap().cause, ExitCause::Exited(0)));
    plugin.shutdown().await;
}

#[tokio::test]
async fn fifty_that_die_together_are_all_noticed_reaped_and_started_again() {
    let scenarios: Vec<_> = (0..50).map(|_| Scenario::fake(&[])).collect();
    let plugins: Vec<_> = scenarios.iter().map(Scenario::start).collect();
    let mut pids = vec![];
    for plugin in &plugins {
        pids.push(client(plugin).await.pid());
    }
    for pid in &pids {
        kill(*pid, Signal::SIGKILL);
    }
    for plugin in &plugins {
        until(plugin, |status| status.restarts == 1 && status.state == State::Serving).await;
    }
    let zombie = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    for pid in pids {
        eventually("it has been reaped", || !zombie(pid)).await;
    }
    for plugin in &plugins {
        plugin.shutdown().await;
    }
}

#[tokio::test]
async fn twenty_stubborn_plugins_stop_together() {
    let options = ["ignore-term", "no-controller"];
    let scenarios: Vec<Scenario> = (0..20).map(|_| Scenario::fake(&options)).collect();
    let plugins: Vec<_> = scenarios
        .iter()
        .map(|scenario| {
            let mut spec = scenario.spec.clone();
            spec.stop.term_timeout = Duration::from_millis(500);
            Plugin::start(spec, support::Number).unwrap()
        })
        .collect();
    let mut pids = vec![];
    for plugin in &plugins {
        pids.push(client(plugin).await.pid());
    }
    let stops: Vec<_> =
        plugins.iter().cloned().map(|plugin| tokio::spawn(async move { plugin.shutdown().await })).collect();
    for stop in stops {
        stop.await.unwrap();
    }
    assert!(pids.into_iter().all(|pid| !runs(pid)));
}

#[tokio::test]
async fn dropping_the_last_handle_kills_the_plugin() {
    let scenario = Scenario::fake(&[]);
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    let mut watch = plugin.watch();
    drop(plugin);
    while watch.changed().await.is_ok() {}
    assert!(!runs(pid));
    assert_eq!(scenario.private_dirs(), 0);
}

#[test]
fn a_runtime_that_ends_takes_its_plugins_along() {
    let scenario = Scenario::fake(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (plugin, pid) = runtime.block_on(async {
        let plugin = scenario.start();
        let pid = client(&plugin).await.pid();
        (plugin, pid)
    });
    drop(runtime);
    assert!(plugin.client().is_none());
    let deadline = std::time::Instant::now() + LONG;
    while runs(pid) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(scenario.private_dirs(), 0);
}

struct Refusing;

impl Adapter for Refusing {
    type Client = ();
    async fn attach(&self, _: Channel, _: InstanceInfo) -> Result<(), AttachError> {
        Err(AttachError::new("it offers no filter"))
    }
}

#[tokio::test]
async fn what_the_host_refuses_is_reported_and_tried_again() {
    let scenario = Scenario::fake(&["stderr=a last word"]);
    let plugin = Plugin::start(scenario.spec.clone(), Refusing).unwrap();
    let mut watch = plugin.watch();
    let report = watch.wait_for(|status| status.restarts >= 1).await.unwrap().last_exit.clone().unwrap().to_string();
    assert!(report.contains("did not accept the host: it offers no filter (SIGKILL, after"), "{report}");
    assert!(report.contains("    | a last word"), "{report}");
    plugin.shutdown().await;
}
