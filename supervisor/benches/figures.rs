//! Figures of supervision: how long a restart takes beyond the process's own start, and what many plugins cost.
//!
//! `make soak`, or with the examples built: `cargo bench -p palisade-supervisor --bench figures`.

#![allow(clippy::unwrap_used, reason = "a measurement that can't be made fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures are the result")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use palisade_supervisor::Plugin;
use support::own::resident;
use support::{Number, Scenario, client, example, kill};
use tokio::time::sleep;

const RESTARTS: usize = 200;
const PLUGINS: usize = 100;
const IDLE: Duration = Duration::from_secs(30);

#[tokio::main(worker_threads = 2)]
async fn main() {
    restarts().await;
    many().await;
}

/// From `kill -9` of an idle plugin to the next client, against the start of the same program alone.
async fn restarts() {
    let mut scenario = Scenario::fake(&[]);
    scenario.spec.restart.reset_after = Duration::ZERO;
    let plugin = scenario.start();
    let (mut whole, mut alone) = (vec![], vec![]);
    for _ in 0..RESTARTS {
        let old = client(&plugin).await.info.clone();
        sleep(Duration::from_millis(20)).await;
        let killed = Instant::now();
        kill(old.pid.unwrap(), Signal::SIGKILL);
        loop {
            if client(&plugin).await.info.start > old.start {
                break;
            }
            tokio::task::yield_now().await;
        }
        whole.push(killed.elapsed());
        alone.push(tokio::task::spawn_blocking(start_alone).await.unwrap());
    }
    plugin.shutdown().await;
    whole.sort();
    alone.sort();
    let shown = |times: &[Duration], share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1_000.0;
    println!("restart of an idle plugin, {RESTARTS} times, in ms    median   p99");
    println!("  kill -9 to serving again                    {:8.2} {:7.2}", shown(&whole, 50), shown(&whole, 99));
    println!("  the program alone, from fork to its line    {:8.2} {:7.2}", shown(&alone, 50), shown(&alone, 99));
    println!("  of our own                                  {:8.2}", shown(&whole, 50) - shown(&alone, 50));
}

fn start_alone() -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(example("fake_plugin"));
    command.env_clear().env("PLUGIN_UNIX_SOCKET_DIR", dir.path()).stdout(Stdio::piped());
    let begun = Instant::now();
    let mut process = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let taken = begun.elapsed();
    assert!(line.ends_with("|grpc\n"), "{line}");
    process.kill().unwrap();
    process.wait().unwrap();
    taken
}

/// Memory and idle time of one process that supervises many plugins, with the default limits.
async fn many() {
    // What the first one alone brings along.
    let first = Scenario::fake(&[]);
    let first_plugin = first.start();
    client(&first_plugin).await;
    let before = resident("self");
    let scenarios: Vec<_> = (0..PLUGINS).map(|_| Scenario::fake(&[])).collect();
    let plugins: Vec<Plugin<Number>> = scenarios.iter().map(Scenario::start).collect();
    for plugin in &plugins {
        client(plugin).await;
    }
    let each = (resident("self") - before) / PLUGINS as u64;
    let (begun, used) = (Instant::now(), processor_time());
    sleep(IDLE).await;
    let share = (processor_time() - used).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
    let each_later = (resident("self") - before) / PLUGINS as u64;
    println!("{PLUGINS} idle plugins, default limits");
    println!("  processor time of the host, for {} s         {share:8.2} % of one core", IDLE.as_secs());
    println!("  memory of the host for each                 {:8} KiB, {} KiB later", each / 1024, each_later / 1024);
    for plugin in plugins {
        plugin.shutdown().await;
    }
    first_plugin.shutdown().await;
}

fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap())
}
