//! What runs on this host, as `/proc` tells it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// Sends a signal. A process that has gone is no failure.
pub fn kill(pid: i32, signal: Signal) {
    // "Already gone" is success.
    let _gone = signal::kill(Pid::from_raw(pid), signal);
}

/// Stops a process with SIGSTOP and waits until every thread of it stands still.
///
/// # Panics
///
/// When it does not.
pub async fn freeze(pid: i32) {
    kill(pid, Signal::SIGSTOP);
    let stopped = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    };
    let frozen = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(stopped);
    crate::eventually("the process stands still", frozen).await;
}

/// Whether a process exists and is no zombie.
#[must_use]
pub fn runs(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| !fields.starts_with('Z'))
}

/// The fields of `/proc/PID/stat` behind the name.
fn stat(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.split(' ').nth(1)?.parse().ok()
}

fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Children, their children, and so on.
#[must_use]
pub fn descendants(of: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = all().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Processes whose environment or command names a directory.
#[must_use]
pub fn of_directory(dir: &Path) -> Vec<i32> {
    let name = dir.as_os_str().as_bytes();
    let names =
        |file: String| fs::read(file).is_ok_and(|content| content.windows(name.len()).any(|window| window == name));
    let own = std::process::id();
    all()
        .into_iter()
        .filter(|pid| u32::try_from(*pid) != Ok(own) && runs(*pid))
        .filter(|pid| names(format!("/proc/{pid}/environ")) || names(format!("/proc/{pid}/cmdline")))
        .collect()
}

/// The command line of a process, for people.
#[must_use]
pub fn command(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).replace('\0', " ")
}

/// Resident memory in bytes.
///
/// # Panics
///
/// When there is no such process.
#[must_use]
pub fn memory(pid: i32) -> u64 {
    of_status(pid, "VmRSS:")
}

/// The most that there ever was of it.
///
/// # Panics
///
/// When there is no such process.
#[must_use]
pub fn peak_memory(pid: i32) -> u64 {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
