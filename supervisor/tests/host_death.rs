//! No plugin outlives its host, however the host ends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use support::{eventually, example, kill, runs};
use tempfile::TempDir;

/// Shells that wait, children of theirs, one without the host's mark, one without its group; the last serves.
const FAMILY: &str = r#"env -i sleep 600 & echo $! >> "$0"; setsid sleep 600 & echo $! >> "$0"
    sh -c 'sleep 600 & echo $! >> "$0"; wait' "$0" &
    echo $! >> "$0"; echo $$ >> "$0"; "$1" & echo $! >> "$0"; wait"#;
const FAMILY_SIZE: usize = 6;

struct Host {
    process: Child,
    dir: TempDir,
    /// The plugin's processes.
    family: Vec<i32>,
}

impl Host {
    /// The example program, as anybody would write a host.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let mut process = Command::new(example("host"))
            .args(["sh", "-c", FAMILY])
            .args([&pids, &example("fake_plugin")])
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().contains("ready to call")));
        // Read on, or the host would fail to log.
        std::thread::spawn(move || log.count());
        eventually("all have written their pids", || read(&pids).len() == FAMILY_SIZE).await;
        let family = read(&pids);
        let host = Self { process, dir, family };
        // It has its name a moment after it was forked.
        eventually("the guard is there", || !host.guards().is_empty()).await;
        host
    }

    fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    fn guards(&self) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| comm(*pid) == "palisade-guard" && parent(*pid) == Some(self.pid())).collect()
    }

    async fn nothing_is_left(mut self, guard: i32) {
        self.process.wait().unwrap();
        for pid in self.family {
            eventually("a process of the plugin's is gone", || !runs(pid)).await;
        }
        eventually("the guard is gone", || !runs(guard)).await;
    }
}

fn read(pids: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(pids).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn catches(pid: i32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (signal as i32 - 1)) != 0
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn a_killed_host_leaves_no_process() {
    let host = Host::start().await;
    let guards = host.guards();
    assert_eq!(guards.len(), 1);
    kill(host.pid(), Signal::SIGKILL);
    host.nothing_is_left(guards[0]).await;
}

#[tokio::test]
async fn a_host_that_is_asked_to_end_leaves_neither_process_nor_directory() {
    let mut host = Host::start().await;
    let guard = host.guards()[0];
    eventually("the host listens to signals", || catches(host.pid(), Signal::SIGINT)).await;
    kill(host.pid(), Signal::SIGINT);
    assert!(host.process.wait().unwrap().success());
    let runtime_dir = host.dir.path().join(format!("palisade-host-{}", host.pid()));
    assert_eq!(std::fs::read_dir(runtime_dir).unwrap().count(), 0);
    host.nothing_is_left(guard).await;
}

#[tokio::test]
async fn a_killed_guard_is_replaced_and_the_new_one_knows_its_charges() {
    let host = Host::start().await;
    let first = host.guards()[0];
    // Signals that a service manager or a person may send to everything.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(first, signal);
    }
    assert!(runs(first));
    kill(first, Signal::SIGKILL);
    eventually("there is a new guard", || host.guards().first().is_some_and(|guard| *guard != first)).await;
    let second = host.guards()[0];
    kill(host.pid(), Signal::SIGKILL);
    host.nothing_is_left(second).await;
}

#[tokio::test]
async fn without_a_guard_the_kernel_takes_the_first_process() {
    let host = Host::start().await;
    let guard = host.guards()[0];
    let first = host.family.iter().copied().find(|pid| parent(*pid) == Some(host.pid())).unwrap();
    kill(guard, Signal::SIGSTOP);
    kill(host.pid(), Signal::SIGKILL);
    eventually("the plugin's first process is gone", || !runs(first)).await;
    kill(guard, Signal::SIGCONT);
    host.nothing_is_left(guard).await;
}

#[tokio::test]
async fn the_guard_holds_nothing_of_its_host() {
    let host = Host::start().await;
    let guard = host.guards()[0];
    // Not even standard output, which would keep a pipeline open.
    let held = std::fs::read_dir(format!("/proc/{guard}/fd")).map(Iterator::count);
    if let Ok(held) = held {
        assert_eq!(held, 1);
    }
    kill(host.pid(), Signal::SIGKILL);
    host.nothing_is_left(guard).await;
}
