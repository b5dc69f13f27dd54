//! Many restarts leave nothing behind. Alone in its binary, since it counts what the whole process has.
//!
//! `PALISADE_SOAK_CYCLES` says how many; `make soak` asks for 10,000.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "figures, for who asks for them")]

mod support;

use std::time::Instant;

use nix::sys::signal::Signal;
use palisade_supervisor::{State, Status};
use support::own::{Held, children};
use support::{Scenario, client, eventually, kill, until};

/// Enough for pools and arenas to have the size that they keep.
const WARM_UP: u64 = 50;

/// What the allocator may keep for itself: fragments that it can't give back. A leak of 1 KiB in each cycle is 10 MiB
/// in 10,000, and 100 KiB in the short form, which sees only what is coarse.
const SLACK: u64 = 4 << 20;

fn cycles() -> u64 {
    std::env::var("PALISADE_SOAK_CYCLES").map_or(150, |cycles| cycles.parse().unwrap())
}

#[tokio::test]
async fn crashes_leave_no_descriptor_thread_task_zombie_directory_or_memory() {
    let mut scenario = Scenario::fake(&[]);
    // Every restart counts as the first after a healthy run.
    scenario.spec.restart.reset_after = std::time::Duration::ZERO;
    let plugin = scenario.start();
    let mut pid = client(&plugin).await.pid();
    let (cycles, begun) = (cycles(), Instant::now());
    let mut first = Held::now();
    for restart in 1..=cycles {
        if restart == WARM_UP {
            first = Held::now();
        }
        kill(pid, Signal::SIGKILL);
        let serving = |status: &Status| status.restarts == restart && status.state == State::Serving;
        pid = until(&plugin, serving).await.pid.unwrap();
        if restart % 1_000 == 0 {
            eprintln!("after {restart}: {}", Held::now());
        }
    }
    // The guard and the plugin.
    eventually("there is no zombie", || children().len() == 2).await;
    eventually("one directory is left", || scenario.private_dirs() == 1).await;
    eventually("what is held is as at first", || Held::now().is_within(&first)).await;
    let last = Held::now();
    eprintln!("{cycles} crashes and restarts in {:.1} s", begun.elapsed().as_secs_f64());
    eprintln!("after {WARM_UP}: {first}\nat the end: {last}");
    assert!(last.memory < first.memory + SLACK, "memory grows");
    plugin.shutdown().await;
    assert_eq!(scenario.private_dirs(), 0);
    assert_eq!(children().len(), 1);
}
