//! The host that the documentation shows: short, and it works as it stands.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::{example, kill};

#[test]
fn a_host_takes_less_than_thirty_lines() {
    let lines = include_str!("../examples/host.rs").lines().count();
    assert!(lines < 30, "{lines} lines");
}

#[test]
fn the_example_hosts_a_plugin_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Command::new(example("host"));
    host.arg(example("fake_plugin")).env("TMPDIR", dir.path()).env("NO_COLOR", "1").stdout(Stdio::piped());
    let mut host = host.spawn().unwrap();
    let mut log = BufReader::new(host.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("ready to call") && line.contains("pid=")));
    kill(i32::try_from(host.id()).unwrap(), Signal::SIGINT);
    let rest: Vec<_> = log.collect();
    assert!(rest.iter().any(|line| line.contains("plugin `example` was stopped")), "{rest:#?}");
    assert_eq!(host.wait().unwrap().code(), Some(0));
}

#[test]
fn the_example_says_why_there_is_no_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Command::new(example("host"));
    let output = host.arg("no-such-program-anywhere").env("TMPDIR", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stdout);
    assert!(log.contains("was not found in PATH"), "{log}");
}
