//! A process that begins as the sandbox's helper, and what that tells.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Pid, geteuid, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use super::SpawnError;
use crate::sandbox::{Answer, Confinement, Helper, OnMissing, Plan, Sandbox};

/// From the start of the helper to the plugin in its place.
const LIMIT: Duration = Duration::from_secs(10);
/// Most that a helper has to tell.
const LONGEST: u64 = 256 * 1024;

/// What the helper is given, open until it runs.
#[derive(Debug)]
pub(super) struct Given {
    plan: File,
    report: OwnedFd,
}

impl Given {
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.plan.as_raw_fd(), self.report.as_raw_fd()]
    }
}

/// Where the helper's answer comes from.
#[derive(Debug)]
pub(super) struct Answers(Receiver);

/// A command that begins as the helper. `close` are descriptors that only the helper needs.
pub(super) fn command(
    helper: &Helper,
    sandbox: &Sandbox,
    path: OsString,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    dir: &Path,
    close: Vec<RawFd>,
) -> Result<(Command, Given, Answers), SpawnError> {
    let failed = |act: &str, error: io::Error| SpawnError::Sandbox(format!("{act}: {error}"));
    if sandbox.user.is_some() && (!sandbox.private_tmp || sandbox.on_missing == OnMissing::Warn) {
        // Where it is not mounted at a place of its own, or may not be, its user has to get to it.
        let parent = dir.parent().unwrap_or(dir);
        open_way(parent).map_err(|error| failed("open the way to the private directory", error))?;
    }
    let (answers, report) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make a pipe", errno.into()))?;
    let answers = Receiver::from_owned_fd(answers).map_err(|error| failed("make a pipe", error))?;
    let plan = Plan {
        sandbox: sandbox.clone(),
        path,
        arguments,
        environment: environment.into_iter().collect(),
        dir: dir.into(),
        host: Pid::this().as_raw(),
        report: report.as_raw_fd(),
        close,
    };
    let memory = memfd_create(c"palisade-plan", MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(memory.map_err(|errno| failed("write the plan", errno.into()))?);
    let written = serde_json::to_vec(&plan).map_err(io::Error::from).and_then(|text| file.write_all(&text));
    written.and_then(|()| io::Seek::rewind(&mut file)).map_err(|error| failed("write the plan", error))?;
    let (program, before) = helper;
    let mut command = Command::new(program);
    command.args(before).arg(file.as_raw_fd().to_string());
    Ok((command, Given { plan: file, report }, Answers(answers)))
}

/// Lets others pass through a directory of ours. They see nothing of what is in it.
fn open_way(dir: &Path) -> io::Result<()> {
    let found = fs::metadata(dir)?;
    if found.mode() & 0o001 == 0 && found.uid() == geteuid().as_raw() {
        fs::set_permissions(dir, fs::Permissions::from_mode((found.mode() & 0o7777) | 0o011))?;
    }
    Ok(())
}

impl Answers {
    /// Waits until the plugin is in its place. Also tells the user that it runs as.
    pub(super) async fn wait(self) -> Result<(Confinement, u32), SpawnError> {
        let mut text = Vec::new();
        let mut stream = self.0.take(LONGEST);
        // The end comes when exec closes the helper's end.
        let read = timeout(LIMIT, stream.read_to_end(&mut text)).await;
        let read = read.map_err(|_| SpawnError::Sandbox(format!("the helper does not get on within {LIMIT:?}")))?;
        read.map_err(|error| SpawnError::Sandbox(format!("the helper can't be heard: {error}")))?;
        let mut ready = None;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(Answer::Ready { missing, probes, uid }) => ready = Some((Confinement { missing, probes }, uid)),
                Ok(Answer::Failed(why)) => return Err(SpawnError::Sandbox(why)),
                Err(error) => return Err(SpawnError::Sandbox(format!("the helper can't be understood: {error}"))),
            }
        }
        ready.ok_or_else(|| SpawnError::Sandbox("the helper ended without a word".to_owned()))
    }
}
