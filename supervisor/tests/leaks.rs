//! Many restarts leave nothing behind. Alone in its binary, since it counts what the whole process has.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use nix::sys::signal::Signal;
use support::{Scenario, client, eventually, kill, until};

const RESTARTS: u64 = 50;

fn entries(path: &str) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

/// Children of this process, zombies included.
fn children() -> Vec<String> {
    let mut children = vec![];
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().map(str::to_owned));
    }
    children
}

#[tokio::test]
async fn fifty_crashes_leave_no_descriptor_zombie_or_directory() {
    let mut scenario = Scenario::fake(&[]);
    // Every restart counts as the first after a healthy run.
    scenario.spec.restart.reset_after = std::time::Duration::ZERO;
    let plugin = scenario.start();
    let mut pid = client(&plugin).await.info.pid;
    let descriptors = entries("/proc/self/fd");
    for restart in 1..=RESTARTS {
        kill(pid, Signal::SIGKILL);
        let serving = |status: &palisade_supervisor::Status| {
            status.restarts == restart && status.state == palisade_supervisor::State::Serving
        };
        pid = until(&plugin, serving).await.pid.unwrap();
    }
    // The guard and the plugin.
    eventually("there is no zombie", || children().len() == 2).await;
    eventually("one directory is left", || scenario.private_dirs() == 1).await;
    eventually("descriptors are as at first", || entries("/proc/self/fd") <= descriptors).await;
    plugin.shutdown().await;
    assert_eq!(scenario.private_dirs(), 0);
    assert_eq!(children().len(), 1);
}
