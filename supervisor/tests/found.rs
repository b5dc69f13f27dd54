//! Plugins that somebody else has started: connected to, checked, connected to anew, and never ended.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_supervisor::{Endpoint, ExitCause, Plugin, PluginSpec, State};
use support::{Number, client, eventually, example, kill, runs, until, until_report, until_report_with};
use tempfile::TempDir;

/// A plugin that this test has started, as systemd would.
struct Stranger {
    child: Child,
    dir: TempDir,
    options: Vec<&'static str>,
}

impl Stranger {
    fn start(options: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let child = Self::program(&dir, options).spawn().unwrap();
        Self { child, dir, options: options.to_vec() }
    }

    fn program(dir: &TempDir, options: &[&str]) -> Command {
        let mut command = Command::new(example("fake_plugin"));
        command.args(options).env("PLUGIN_UNIX_SOCKET_DIR", dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("plugin.sock")
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn spec(&self) -> PluginSpec {
        let mut spec = PluginSpec::found("fake", Endpoint::Unix(self.socket()));
        spec.stop.drain_timeout = Duration::from_millis(200);
        // A lost connection is noticed by itself.
        spec.health.interval = Duration::from_secs(3_600);
        spec
    }

    fn host(&self) -> Plugin<Number> {
        Plugin::start(self.spec(), Number).unwrap()
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // It may not have come so far as to listen.
        std::fs::remove_file(self.socket()).ok();
    }

    fn start_again(&mut self) {
        self.child = Self::program(&self.dir, &self.options).spawn().unwrap();
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test]
async fn it_is_connected_to_and_outlives_its_host() {
    let mut stranger = Stranger::start(&[]);
    let plugin = stranger.host();
    let served = client(&plugin).await;
    let status = plugin.status();
    assert_eq!((served.info.pid, status.pid, served.info.start), (None, None, 1));
    assert_eq!(status.endpoint, Some(format!("unix:{}", stranger.socket().display())));
    plugin.shutdown().await;
    // Its controller would have ended it.
    assert!(stranger.child.try_wait().unwrap().is_none());

    let plugin = stranger.host();
    client(&plugin).await;
    drop(plugin);
    assert!(stranger.child.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn a_lost_connection_is_told_and_made_anew() {
    let mut stranger = Stranger::start(&[]);
    let plugin = stranger.host();
    let first = client(&plugin).await;
    stranger.end();
    let report = until_report(&plugin).await;
    assert!(matches!(report.cause, ExitCause::Disconnected), "{report}");
    let text = format!("address: unix:{}", stranger.socket().display());
    assert!(report.to_string().contains(&text) && !report.to_string().contains("command"), "{report}");
    assert_eq!((report.pid, &report.end), (None, &None));
    assert!(plugin.client().is_none(), "nothing is called where nobody listens");

    stranger.start_again();
    let second = client(&plugin).await;
    assert!(second.info.start > first.info.start);
    assert_eq!(plugin.status().restarts, second.info.start - 1);
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_server_that_closes_its_connections_is_a_plugin_that_ends() {
    let stranger = Stranger::start(&["close-after-ms=100"]);
    let mut spec = stranger.spec();
    spec.restart.reset_after = Duration::ZERO;
    let plugin = Plugin::start(spec, Number).unwrap();
    // Never on the old client: behind another connection may be another process.
    until(&plugin, |status| status.restarts >= 3 && status.state == State::Serving).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn orders_concern_the_connection() {
    let mut stranger = Stranger::start(&[]);
    let plugin = stranger.host();
    let first = client(&plugin).await;
    plugin.restart().await;
    let second = client(&plugin).await;
    assert_eq!(second.info.start, first.info.start + 1);
    // What is left of the first one leads nowhere.
    let mut old = tonic_health::pb::health_client::HealthClient::new(first.channel.clone());
    old.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();

    plugin.stop().await;
    assert_eq!(plugin.status().state, State::Stopped);
    plugin.start_again().await;
    client(&plugin).await;
    assert!(stranger.child.try_wait().unwrap().is_none());
    plugin.shutdown().await;
}

#[tokio::test]
async fn one_that_stops_answering_is_given_up_and_found_again() {
    let stranger = Stranger::start(&[]);
    let mut spec = stranger.spec();
    spec.health.interval = Duration::from_millis(30);
    spec.health.timeout = Duration::from_millis(30);
    spec.ready_timeout = Duration::from_secs(60);
    let plugin = Plugin::start(spec, Number).unwrap();
    client(&plugin).await;
    kill(stranger.pid(), Signal::SIGSTOP);
    let report = until_report(&plugin).await;
    assert!(matches!(report.cause, ExitCause::Unhealthy(_)), "{report}");
    assert!(report.to_string().contains("and was disconnected"), "{report}");
    assert!(runs(stranger.pid()), "it is not ours to kill");
    kill(stranger.pid(), Signal::SIGCONT);
    client(&plugin).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn who_does_not_listen_is_waited_for_then_tried_again() {
    let mut stranger = Stranger::start(&[]);
    stranger.end();
    let mut spec = stranger.spec();
    spec.ready_timeout = Duration::from_millis(50);
    let plugin = Plugin::start(spec, Number).unwrap();
    until_report_with(&plugin, "was not ready within 50ms: connect to unix:").await;
    stranger.start_again();
    client(&plugin).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_socket_that_everybody_may_replace_is_not_connected_to() {
    let stranger = Stranger::start(&[]);
    eventually("it listens", || stranger.socket().exists()).await;
    std::fs::set_permissions(stranger.dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let plugin = stranger.host();
    let report = until_report(&plugin).await.to_string();
    assert!(report.contains("can be written to by everybody"), "{report}");
    std::fs::set_permissions(stranger.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    client(&plugin).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn another_user_s_socket_needs_to_be_expected() {
    const NOBODY: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut stranger = Stranger::start(&[]);
    stranger.end();
    std::os::unix::fs::chown(stranger.dir.path(), Some(NOBODY), None).unwrap();
    // A program where that user may execute it.
    let program = stranger.dir.path().join("plugin");
    std::fs::copy(example("fake_plugin"), &program).unwrap();
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY).env("PLUGIN_UNIX_SOCKET_DIR", stranger.dir.path()).stdout(Stdio::null());
    stranger.child = command.spawn().unwrap();

    let mut spec = stranger.spec();
    let plugin = Plugin::start(spec.clone(), Number).unwrap();
    let report = until_report(&plugin).await.to_string();
    assert!(report.contains("a process of user 65534 listens there; only root and user 0 may"), "{report}");
    plugin.shutdown().await;

    spec.found.as_mut().unwrap().uid = Some(NOBODY);
    let plugin = Plugin::start(spec, Number).unwrap();
    client(&plugin).await;
    plugin.shutdown().await;
}
