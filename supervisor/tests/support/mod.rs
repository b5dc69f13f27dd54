//! What the scenarios share: plugins to run, an adapter, and waiting for states.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

pub(crate) mod own;

use std::path::PathBuf;
use std::time::Duration;

use palisade_supervisor::{Adapter, AttachError, ExitReport, InstanceInfo, Plugin, PluginSpec, Status};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::Channel;

/// Long enough for a loaded machine; nothing waits that long unless it is broken.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Hands out which start it is.
#[derive(Debug)]
pub(crate) struct Number;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) info: InstanceInfo,
    pub(crate) channel: Channel,
}

impl Client {
    /// Of a plugin that was started.
    pub(crate) fn pid(&self) -> i32 {
        self.info.pid.unwrap()
    }
}

impl Adapter for Number {
    type Client = Client;
    async fn attach(&self, channel: Channel, info: InstanceInfo) -> Result<Client, AttachError> {
        Ok(Client { info, channel })
    }
}

/// A program that `cargo test` builds beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: run cargo test for the whole package", path.display());
    path
}

/// A plugin under test and the directory that it lives in.
pub(crate) struct Scenario {
    pub(crate) dir: TempDir,
    pub(crate) spec: PluginSpec,
}

impl Scenario {
    /// The fake plugin.
    pub(crate) fn fake(options: &[&str]) -> Self {
        let program = example("fake_plugin").into_os_string();
        Self::command(std::iter::once(program).chain(options.iter().map(Into::into)))
    }

    /// A shell script. `$FAKE` is the fake plugin, `$OUT` a file for the test to read.
    pub(crate) fn shell(script: &str) -> Self {
        let mut scenario = Self::command(["sh", "-c", script].map(Into::into));
        scenario.spec.env.insert("FAKE".into(), example("fake_plugin").into());
        scenario.spec.env.insert("OUT".into(), scenario.out().into());
        scenario
    }

    fn command(command: impl IntoIterator<Item = std::ffi::OsString>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spec = PluginSpec::new("fake", command, dir.path().join("run"));
        Self { dir, spec }
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The pids that a script has written to `$OUT`, once there are so many.
    pub(crate) async fn pids(&self, count: usize) -> Vec<i32> {
        let read = || std::fs::read_to_string(self.out()).unwrap_or_default();
        let whole = |text: &str| text.ends_with('\n') && text.lines().count() >= count;
        eventually("the script has written its pids", || whole(&read())).await;
        read().lines().map(|line| line.parse().unwrap()).collect()
    }

    pub(crate) fn start(&self) -> Plugin<Number> {
        Plugin::start(self.spec.clone(), Number).unwrap()
    }

    /// The private directories that exist now.
    pub(crate) fn private_dirs(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("run")).unwrap().count()
    }
}

/// Waits until the plugin's status is as wanted.
pub(crate) async fn until<A: Adapter>(plugin: &Plugin<A>, wanted: impl Fn(&Status) -> bool) -> Status {
    let mut watch = plugin.watch();
    match timeout(LONG, watch.wait_for(|status| wanted(status))).await {
        Ok(status) => status.unwrap().clone(),
        Err(_) => panic!("the awaited state did not come; it is {:?}", plugin.status()),
    }
}

/// Waits for the first report of an end.
pub(crate) async fn until_report(plugin: &Plugin<Number>) -> std::sync::Arc<ExitReport> {
    until(plugin, |status| status.last_exit.is_some()).await.last_exit.unwrap()
}

/// Waits for a report with this text. With a short deadline, a start on a busy machine may fail earlier on its way, but
/// not every start.
pub(crate) async fn until_report_with(plugin: &Plugin<Number>, text: &str) -> String {
    let report = |status: &Status| status.last_exit.as_ref().map(ToString::to_string).unwrap_or_default();
    report(&until(plugin, |status| report(status).contains(text)).await)
}

pub(crate) async fn client(plugin: &Plugin<Number>) -> std::sync::Arc<Client> {
    plugin.wait_client(tokio::time::Instant::now() + LONG).await.unwrap()
}

pub(crate) fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// Whether a process exists and is no zombie.
pub(crate) fn runs(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

/// Waits for something that has no event of its own.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, waiting).await.is_ok(), "never came true: {what}");
}
