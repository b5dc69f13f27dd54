//! A plugin's life with real processes: served, killed, frozen, stopped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use nix::sys::signal::Signal;
use palisade_supervisor::{ExitCause, State};
use support::{Scenario, client, kill, runs, until, until_report};

#[tokio::test]
async fn a_killed_plugin_serves_again_without_any_traffic() {
    let scenario = Scenario::fake(&[]);
    let plugin = scenario.start();
    let first = client(&plugin).await;
    kill(first.info.pid, Signal::SIGKILL);
    let status = until(&plugin, |status| status.restarts == 1 && status.state == State::Serving).await;
    assert_eq!(status.last_exit.unwrap().cause, ExitCause::Signalled("SIGKILL".into()));
    let second = client(&plugin).await;
    assert_eq!((first.info.start, second.info.start), (1, 2));
    plugin.shutdown().await;
    assert_eq!(plugin.status().state, State::Stopped);
    assert!(!runs(second.info.pid));
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
