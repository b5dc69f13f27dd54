//! One operating system process: made, watched, signalled, reaped.
//!
//! A process is its own session and group leader. Its group is signalled only while the leader has not been reaped,
//! since the number may belong to somebody else after that.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};
use palisade_plugin_proto::env::UNIX_SOCKET_DIR;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tracing::error;

use self::confined::Answers;
use self::private_dir::PrivateDir;
pub use self::private_dir::PrivateDirError;
pub use self::private_dir::check as prepare_runtime_dir;
pub(crate) use self::private_dir::sweep;
pub use self::program::{DEFAULT_PATH, resolve as resolve_program};
use crate::connect::Endpoint;
use crate::mtls::{Identity, MtlsError};
use crate::report::Usage;
use crate::restart::Hope;
use crate::sandbox::{Confinement, Group};
use crate::spec::PluginSpec;
use crate::sys;
use crate::sys::descendants::{self, Scratch, Search};
use crate::trust::checksum::{self, Checksum, Checksums, Verified};

mod confined;
mod private_dir;
mod program;
mod removal;
mod spawner;

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A bare name that no directory of the host's `PATH` has.
    #[error("program {0:?} was not found in PATH")]
    NotInPath(OsString),
    /// A path at which nothing can be examined.
    #[error("program {path:?}")]
    Program {
        /// The program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory, or a file that this user may not execute.
    #[error("program {0:?} is not executable")]
    NotExecutable(PathBuf),
    /// A script whose `#!` line names a program that is not there.
    #[error("interpreter {interpreter:?} of script {path:?} was not found")]
    Interpreter {
        /// The script.
        path: PathBuf,
        /// What it names.
        interpreter: String,
    },
    /// A file that is not what was pinned.
    #[error("{path:?} is not what was pinned: its checksum is {found}, and should be {expected}")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What was pinned.
        expected: Checksum,
        /// What is there.
        found: Checksum,
    },
    /// A file whose checksum is wanted.
    #[error("the checksum of {path:?} can't be told")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The working directory.
    #[error("working directory {0:?} is not a directory that can be entered")]
    WorkingDirectory(PathBuf),
    /// The private directory.
    #[error("no private directory")]
    PrivateDir(#[from] PrivateDirError),
    /// No port for a plugin that is told one.
    #[error("no free port from {} to {}", program::PORTS.start(), program::PORTS.end())]
    NoPort,
    /// The host's certificate.
    #[error("no certificate for AutoMTLS")]
    Mtls(#[from] MtlsError),
    /// fork, the set-up of the child, or exec.
    #[error("start of {path:?}")]
    Exec {
        /// The program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A part of the sandbox, or the helper that applies it.
    #[error("the sandbox can't be had: {0}")]
    Sandbox(String),
    /// What the host needs to watch the process.
    #[error("watch the process")]
    Watch(#[source] io::Error),
    /// The thread that makes processes.
    #[error("the spawning thread is not there")]
    Spawner,
}

impl SpawnError {
    /// Whether the same start may do better the next time.
    pub(crate) fn hope(&self) -> Hope {
        match self {
            Self::Checksum { .. } | Self::Sandbox(_) => Hope::Permanent,
            _ => Hope::Transient,
        }
    }
}

/// A process and what belongs to it. Dropping it kills the group.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
    usage: Option<Usage>,
    out_of_memory: bool,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    group: Option<Group>,
    dir: Option<PrivateDir>,
    identity: Option<Arc<Identity>>,
    told: Option<Endpoint>,
    /// The user that it runs as.
    uid: u32,
    confinement: Option<Arc<Confinement>>,
}

impl Process {
    /// Makes the process. Cancel safe: a process that nobody waits for any more is killed.
    pub(crate) async fn spawn(spec: Arc<PluginSpec>) -> Result<Self, SpawnError> {
        // Not on the spawning thread: one large file would hold up all other plugins.
        let verified = if spec.checksums == Checksums::default() {
            Verified::default()
        } else {
            let spec = spec.clone();
            spawn_blocking(move || checksum::verify(&spec)).await.map_err(|_| SpawnError::Spawner)??
        };
        let (reply, answer) = oneshot::channel();
        let runtime = Handle::current();
        let job = move |spawner: &spawner::Spawner| {
            // tokio registers the child and its pipes with the runtime that it finds entered.
            let _entered = runtime.enter();
            // Where nobody waits any more, dropping the process kills it.
            drop(reply.send(make(&spec, &verified, spawner)));
        };
        spawner::run(job).map_err(|_| SpawnError::Spawner)?;
        let (mut process, answers) = answer.await.map_err(|_| SpawnError::Spawner)??;
        if let Some(answers) = answers {
            let (mut confinement, uid) = answers.wait().await?;
            let without = process.confinement.take();
            confinement.missing.extend(without.iter().flat_map(|without| without.missing.iter().cloned()));
            (process.confinement, process.uid) = (Some(Arc::new(confinement)), uid);
        }
        Ok(process)
    }

    /// The user that its processes run as.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// What its helper has found out, and what could not be had; `None` where there was no helper and nothing is missing.
    pub(crate) fn confinement(&self) -> Option<&Arc<Confinement>> {
        self.confinement.as_ref()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn private_dir(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.path().to_owned())
    }

    /// Who we are to it, with AutoMTLS.
    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// Where it was told to listen, where its command says so.
    pub(crate) fn told(&self) -> Option<&Endpoint> {
        self.told.as_ref()
    }

    /// Standard output and error, once.
    pub(crate) fn take_output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.stdout.take(), self.stderr.take())
    }

    /// Waits until the process has exited. It is not reaped yet, so its group can still be signalled. Cancel safe.
    pub(crate) async fn exited(&self) {
        if let Err(error) = self.pidfd.ready(Interest::READABLE).await {
            // The runtime is shutting down, and this task with it.
            error!(%error, pid = self.pid, "the exit of a process cannot be watched");
            std::future::pending::<()>().await;
        }
    }

    /// Signals every process of the group. One that has gone is none to signal. SIGKILL reaches all that have left it, too,
    /// where the plugin has a control group.
    pub(crate) fn signal(&self, signal: Signal) {
        if !self.reaped {
            killpg(Pid::from_raw(self.pid), signal).ok();
        }
        if let Some(group) = self.group.as_ref().filter(|_| signal == Signal::SIGKILL) {
            group.kill();
        }
    }

    /// Kills what is left of the group, then takes the exit status. To be called after [`Self::exited`].
    pub(crate) async fn reap(&mut self) -> io::Result<ExitStatus> {
        // While the leader is a zombie, no new group can have its number.
        self.signal(Signal::SIGKILL);
        self.usage = sys::usage::of_exited(self.pid).map(Usage::from);
        self.out_of_memory = self.group.as_ref().is_some_and(Group::ran_out_of_memory);
        let status = self.child.wait().await;
        self.reaped = true;
        spawner::forget(self.pid);
        status
    }

    /// What it had used by its end, once it has been reaped.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Whether the limit of its control group's memory has ended it or a process of it, once it has been reaped.
    pub(crate) fn out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    /// What is left to do after the process has gone.
    pub(crate) fn take_remains(&mut self) -> Remains {
        Remains { group: self.group.take(), dir: self.dir.take() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::SIGKILL);
            // tokio reaps the child later (`kill_on_drop`). With its group killed, the number is of no use to the guard.
            spawner::forget(self.pid);
        }
    }
}

/// For those that left their group: thorough enough that hiding takes intent, quick enough for a crash loop.
const SEARCH: Search = Search { quiet: 2, pause_ms: 2 };

/// What a process may leave behind: processes that left its process group, its control group, and its directory.
#[derive(Debug)]
pub(crate) struct Remains {
    group: Option<Group>,
    dir: Option<PrivateDir>,
}

impl Remains {
    /// Kills the processes, then removes the directory. Blocks: there may be many of either.
    pub(crate) fn clear(self) {
        drop(self.group);
        let Some(dir) = self.dir else { return };
        // No two starts have the same directory.
        let mut mark = OsString::from(format!("{UNIX_SOCKET_DIR}="));
        mark.push(dir.path());
        descendants::kill_all(mark.as_bytes(), SEARCH, &mut Scratch::new());
    }
}

/// What a process calls one of its own descriptors.
fn by_name(fd: &OwnedFd) -> OsString {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Lets those into the private directory whom the plugin runs as, and whose group may connect to it.
fn hand_over(spec: &PluginSpec, dir: &PrivateDir) -> Result<(), SpawnError> {
    let failed = |error: io::Error| SpawnError::Sandbox(format!("give the private directory away: {error}"));
    let user = spec.sandbox.user;
    let group = spec.socket_group.or(user.map(|user| user.gid));
    let mode = if spec.socket_group.is_some() { 0o770 } else { 0o700 };
    match dir.hand_over(user.map(|user| user.uid), group, mode) {
        // Whoever may not do so can't become that user either, and the helper says so.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && spec.socket_group.is_none() => Ok(()),
        given => given.map_err(failed),
    }
}

/// Runs on the spawning thread.
fn make(
    spec: &PluginSpec,
    verified: &Verified,
    spawner: &spawner::Spawner,
) -> Result<(Process, Option<Answers>), SpawnError> {
    let cwd = std::path::absolute(&spec.cwd).unwrap_or_else(|_| spec.cwd.clone());
    if !cwd.is_dir() {
        return Err(SpawnError::WorkingDirectory(cwd));
    }
    let (name, arguments) = spec.command.split_first().ok_or_else(|| SpawnError::NotInPath(OsString::new()))?;
    let path = program::resolve(name, &cwd)?;
    let dir = PrivateDir::create(&spec.runtime_dir)?;
    hand_over(spec, &dir)?;
    let (group, missing) = match &spec.sandbox.cgroup {
        None => (None, Vec::new()),
        Some(limits) => Group::create(&spec.name, limits, spec.sandbox.on_missing).map_err(SpawnError::Sandbox)?,
    };
    let entrance = group.as_ref().map(Group::entrance).transpose();
    let entrance = entrance.map_err(|error| SpawnError::Sandbox(format!("enter the control group: {error}")))?;
    let identity = spec.auto_mtls.then(Identity::new).transpose()?.map(Arc::new);

    let told = program::place(spec, dir.path())?;
    let image = verified.program.as_ref();
    let copies = verified.files.iter();
    let replaced = |(index, argument): (usize, &OsString)| {
        let copy = copies.clone().find(|(replaced, _)| *replaced == index + 1);
        copy.map_or_else(|| program::filled_in(argument, told.as_ref()), |(_, copy)| by_name(copy))
    };
    let arguments: Vec<_> = arguments.iter().enumerate().map(replaced).collect();
    let executed = image.map_or_else(|| path.clone().into(), |image| by_name(&image.fd));
    // Descriptors that stay open beyond exec, because something reads from them by name.
    let mut kept: Vec<_> = copies.map(|(_, copy)| copy.as_raw_fd()).collect();
    kept.extend(image.filter(|image| image.script).map(|image| image.fd.as_raw_fd()));

    let environment = program::environment(spec, dir.path(), identity.as_deref());
    let (mut command, given, answers) = match &spec.helper {
        Some(helper) if spec.sandbox.needs_helper() => {
            let close: Vec<_> =
                image.filter(|image| !image.script).map(|image| image.fd.as_raw_fd()).into_iter().collect();
            kept.extend(&close);
            let named = std::iter::once(path.clone().into()).chain(arguments).collect();
            let (mut command, given, answers) =
                confined::command(helper, &spec.sandbox, executed, named, environment, dir.path(), close)?;
            command.env_clear().envs(program::marks(dir.path()));
            // It must have one thread. jemalloc, where the host has it, may start another before anything else runs.
            command.env("_RJEM_MALLOC_CONF", "background_thread:false");
            kept.extend(given.descriptors());
            (command, Some(given), Some(answers))
        }
        _ => {
            let mut command = Command::new(executed);
            command.arg0(&path).args(arguments).env_clear().envs(environment);
            (command, None, None)
        }
    };
    command.current_dir(&cwd).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawner.with_setup(spec.sandbox.no_new_privs, entrance.as_ref().map(AsRawFd::as_raw_fd), |setup| {
        sys::child::prepare(&mut command, setup, kept);
        tokio::process::Command::from(command).kill_on_drop(true).spawn()
    });
    // The helper's end of the pipe is the only one from here on.
    drop(given);
    let mut child = child.map_err(|source| program::explain(path, source))?;

    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    // Only a child that has been waited for has none.
    let pid = pid.ok_or_else(|| SpawnError::Watch(io::ErrorKind::NotFound.into()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let uid = geteuid().as_raw();
    match sys::pidfd_open(pid) {
        Ok(pidfd) => {
            let process = Process {
                pid,
                child,
                pidfd,
                reaped: false,
                usage: None,
                out_of_memory: false,
                stdout,
                stderr,
                group,
                dir: Some(dir),
                identity,
                told,
                uid,
                confinement: (!missing.is_empty()).then(|| Arc::new(Confinement { missing, probes: Vec::new() })),
            };
            Ok((process, answers))
        }
        Err(error) => {
            killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
            spawner::forget(pid);
            Err(SpawnError::Watch(error))
        }
    }
}
