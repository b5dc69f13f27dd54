//! The one thread that makes processes, and the guard that it keeps.
//!
//! A parent-death signal follows the thread that forked, not the process: from a pool's thread the plugin would be
//! killed when the pool shrinks. This thread ends with the program only. It has all signals blocked, so that no
//! handler of the host's runs in a child before exec.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use tracing::{error, warn};

use crate::sys::child::{Setup, Slot};
use crate::sys::guard::{self, Record};

/// Names the host in a plugin's environment.
const HOST_VARIABLE: &str = "PALISADE_HOST";

type Job = Box<dyn FnOnce(&Spawner) + Send>;

static JOBS: OnceLock<Sender<Job>> = OnceLock::new();
/// `None` before the first start, and between the end of one guard and the start of the next. While there is one it
/// has not been reaped, so its pid is its own.
static GUARD: Mutex<Option<Guard>> = Mutex::new(None);

#[derive(Debug)]
struct Guard {
    pid: i32,
    socket: Arc<OwnedFd>,
}

/// What a job on the thread may use.
pub(super) struct Spawner {
    slot: Slot,
}

/// Runs a job on the thread. The job is dropped where the thread could not be started.
pub(super) fn run(job: impl FnOnce(&Spawner) + Send + 'static) -> io::Result<()> {
    let jobs = match JOBS.get() {
        Some(jobs) => jobs,
        None => start()?,
    };
    // The receiver lives in a thread that never ends.
    jobs.send(Box::new(job)).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

fn start() -> io::Result<&'static Sender<Job>> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = lock(&STARTING);
    if let Some(jobs) = JOBS.get() {
        return Ok(jobs);
    }
    let (sender, receiver) = channel();
    let slot = Slot::new()?;
    thread::Builder::new().name("palisade-spawn".to_owned()).spawn(move || serve(slot, &receiver))?;
    Ok(JOBS.get_or_init(|| sender))
}

fn serve(slot: Slot, jobs: &Receiver<Job>) {
    if let Err(error) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
        error!(%error, "signals of the spawning thread could not be blocked");
    }
    let spawner = Spawner { slot };
    // The sender is static, so this never ends.
    while let Ok(job) = jobs.recv() {
        // A panic must not end the thread: every plugin would be killed with it.
        if catch_unwind(AssertUnwindSafe(|| job(&spawner))).is_err() {
            error!("a panic on the spawning thread was contained");
        }
    }
}

impl Spawner {
    /// Calls `spawn` with what a child needs to know. The guard runs before, and hears of a child whose exec failed.
    pub(super) fn with_setup<T>(
        &self,
        no_new_privs: bool,
        cgroup: Option<RawFd>,
        spawn: impl FnOnce(Setup) -> io::Result<T>,
    ) -> io::Result<T> {
        // Held until the child has been made: should the guard end meanwhile, its number must not become that of
        // another socket, into which the child would write.
        let guard = guard_socket()?;
        let host = Pid::this().as_raw();
        let result = spawn(Setup { guard: guard.as_raw_fd(), host, slot: self.slot, no_new_privs, cgroup });
        drop(guard);
        let forked = self.slot.take();
        match (&result, forked) {
            // The guard has it from the child itself; a later guard has it from here.
            (Ok(_), Some(pid)) => guard::note(Record::add(pid)),
            (Err(_), Some(pid)) => tell(Record::remove(pid)),
            (_, None) => {}
        }
        result
    }
}

/// Takes a process group off the guard's list, once nothing of it runs.
pub(super) fn forget(group: i32) {
    guard::note(Record::remove(group));
    tell(Record::remove(group));
}

fn tell(record: Record) {
    let guard = lock(&GUARD);
    let Some(guard) = guard.as_ref() else { return };
    if !guard::send(guard.socket.as_raw_fd(), record) {
        // It has died, or been stopped for so long that its queue is full. A new one has the right list.
        warn!(pid = guard.pid, "the guard process takes no records; it is replaced");
        // Already gone is as good.
        kill(Pid::from_raw(guard.pid), Signal::SIGKILL).ok();
    }
}

/// Where the guard takes its records; makes one where there is none. Only on the spawning thread, whose signals are
/// blocked.
fn guard_socket() -> io::Result<Arc<OwnedFd>> {
    let mut slot = lock(&GUARD);
    if slot.is_none() {
        *slot = Some(fork_guard()?);
    }
    slot.as_ref().map(|guard| Arc::clone(&guard.socket)).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn fork_guard() -> io::Result<Guard> {
    let (name, value) = mark();
    let (pid, socket) = guard::fork(format!("{name}={value}").as_bytes())?;
    let socket = Arc::new(socket);
    // A thread that waits costs nothing, and takes the status of no other child.
    thread::Builder::new().name("palisade-guard".to_owned()).spawn(move || watch_guard(Pid::from_raw(pid)))?;
    Ok(Guard { pid, socket })
}

fn watch_guard(pid: Pid) {
    // Without reaping: that is done under the lock, so that nobody signals a pid that is somebody else's by then.
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).ok();
    let end = {
        let mut guard = lock(&GUARD);
        guard.take_if(|guard| guard.pid == pid.as_raw());
        waitpid(pid, None)
    };
    error!(%pid, ?end, "the guard process has ended while the host runs");
    let replaced = run(|_| {
        if let Err(error) = guard_socket() {
            error!(%error, "no new guard process could be made; the next start tries again");
        }
    });
    if let Err(error) = replaced {
        error!(%error, "no new guard process could be asked for");
    }
}

/// The entry in the environment by which processes of this host's plugins are known: its name and value.
pub(super) fn mark() -> (&'static str, &'static str) {
    static MARK: OnceLock<String> = OnceLock::new();
    (HOST_VARIABLE, MARK.get_or_init(|| format!("{}-{:016x}", std::process::id(), fastrand::u64(..))))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
