//! What a host does where it is pid 1, as in a container: it runs itself once more, as a child, and stands by.
//!
//! Plugins made with MOSN's SDK end at once when their parent is pid 1, which they take for a parent that has gone. And
//! pid 1 has duties that a host does not care for: it reaps what others orphan, and no signal has a default for it.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

/// Returns at once where this process is not pid 1. Else runs the same program with the same arguments, hands it every
/// signal, and ends this process as that one ends (128 + N after signal N).
///
/// To be called first in `main`, before there are threads.
///
/// # Errors
///
/// When the program can't be run once more.
pub fn stand_by_as_pid_1() -> io::Result<()> {
    if std::process::id() != 1 {
        // The child begins with what pid 1 has blocked.
        if getppid() == Pid::from_raw(1) {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        }
        return Ok(());
    }
    match stand_by()? {}
}

fn stand_by() -> io::Result<Infallible> {
    // Blocked before there is a child, so that none is missed.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let child = command.args(arguments).spawn()?;
    let mut pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    loop {
        match SigSet::all().wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = reap(pid) {
                    if let Some(next) = of_parents(&["1"]).first().copied() {
                        pid = next;
                        continue;
                    }
                    #[allow(clippy::exit, reason = "this process has nothing but to end as its child did")]
                    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()));
                }
            }
            // One that takes over is told as well, also where the one before has just ended and SIGCHLD comes next.
            signal => {
                let others = of_parents(&["1", &pid.to_string()]).into_iter().filter(|other| *other != pid);
                for pid in [pid].into_iter().chain(others) {
                    kill(pid, signal).ok();
                }
            }
        }
    }
}

/// The processes that run the same command and have one of these parents: the one that this process has started, and
/// one that takes over from it. That one's parent is who started it, then pid 1.
fn of_parents(parents: &[&str]) -> Vec<Pid> {
    let (Ok(command), Ok(processes)) = (fs::read("/proc/self/cmdline"), fs::read_dir("/proc")) else {
        return Vec::new();
    };
    let is_one = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let (state, parent) = (fields.next()?, fields.next()?);
        // The guard is a copy of its host.
        let same = parents.contains(&parent) && state != "Z" && name != "palisade-guard";
        (same && fs::read(format!("/proc/{pid}/cmdline")).ok()? == command).then_some(Pid::from_raw(pid))
    };
    processes.flatten().filter_map(|entry| is_one(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Reaps all that have ended; the status of `main` if it was among them.
fn reap(main: Pid) -> Option<ExitStatus> {
    let mut ended = None;
    loop {
        let (pid, raw) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return ended,
        };
        if pid == main {
            ended = Some(ExitStatus::from_raw(raw));
        }
    }
}
