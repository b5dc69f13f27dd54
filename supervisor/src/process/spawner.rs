//! The one thread that makes processes, and the guard that it keeps.
//!
//! A parent-death signal follows the thread that forked, not the process: from a pool's thread the plugin would be
//! killed when the pool shrinks. This thread ends with the program only. It has all signals blocked, so that no
//! handler of the host's runs in a child before exec.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tracing::{error, warn};

use crate::sys::child::{Setup, Slot};
use crate::sys::guard::{self, Record};

/// Names the host in a plugin's environment.
const HOST_VARIABLE: &str = "PALISADE_HOST";

type Job = Box<dyn FnOnce(&Spawner) + Send>;

enum Message {
    Run(Job),
    /// The guard with this pid has gone.
    GuardEnded(i32),
}

static MESSAGES: OnceLock<Sender<Message>> = OnceLock::new();
static GUARD: Mutex<Option<Guard>> = Mutex::new(None);
/// The groups that the guard is to know of, to tell a new one.
static GROUPS: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

#[derive(Debug)]
struct Guard {
    pid: i32,
    socket: OwnedFd,
}

/// What a job on the thread may use.
pub(super) struct Spawner {
    slot: Slot,
}

/// Runs a job on the thread. The job is dropped where the thread could not be started.
pub(super) fn run(job: impl FnOnce(&Spawner) + Send + 'static) -> io::Result<()> {
    let messages = match MESSAGES.get() {
        Some(messages) => messages,
        None => start()?,
    };
    // The receiver lives in a thread that never ends.
    messages.send(Message::Run(Box::new(job))).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

fn start() -> io::Result<&'static Sender<Message>> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = lock(&STARTING);
    if let Some(messages) = MESSAGES.get() {
        return Ok(messages);
    }
    let (sender, receiver) = channel();
    let slot = Slot::new()?;
    thread::Builder::new().name("palisade-spawn".to_owned()).spawn(move || serve(slot, &receiver))?;
    Ok(MESSAGES.get_or_init(|| sender))
}

fn serve(slot: Slot, messages: &Receiver<Message>) {
    if let Err(error) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
        error!(%error, "signals of the spawning thread could not be blocked");
    }
    let spawner = Spawner { slot };
    // The sender is static, so this never ends.
    while let Ok(message) = messages.recv() {
        // A panic must not end the thread: every plugin would be killed with it.
        let done = catch_unwind(AssertUnwindSafe(|| match message {
            Message::Run(job) => job(&spawner),
            Message::GuardEnded(pid) => replace_guard(pid),
        }));
        if done.is_err() {
            error!("a panic on the spawning thread was contained");
        }
    }
}

impl Spawner {
    /// Calls `spawn` with what a child needs to know. The guard runs before, and hears of a child whose exec failed.
    pub(super) fn with_setup<T>(&self, spawn: impl FnOnce(Setup) -> io::Result<T>) -> io::Result<T> {
        let guard = guard_socket()?;
        let host = Pid::this().as_raw();
        let result = spawn(Setup { guard, host, slot: self.slot });
        let forked = self.slot.take();
        match (&result, forked) {
            (Ok(_), Some(pid)) => {
                groups(|groups| groups.insert(pid));
            }
            (Err(_), Some(pid)) => tell(Record::remove(pid)),
            (_, None) => {}
        }
        result
    }
}

/// Takes a process group off the guard's list, once nothing of it runs.
pub(super) fn forget(group: i32) {
    if groups(|groups| groups.remove(&group)) {
        tell(Record::remove(group));
    }
}

fn tell(record: Record) {
    let guard = lock(&GUARD);
    let Some(guard) = guard.as_ref() else { return };
    if !guard::send(guard.socket.as_raw_fd(), record) {
        // It has died, or been stopped for so long that its queue is full. A new one gets the right list.
        warn!(pid = guard.pid, "the guard process takes no records; it is replaced");
        // Already gone is as good.
        kill(Pid::from_raw(guard.pid), Signal::SIGKILL).ok();
    }
}

/// Only on the spawning thread, whose signals are blocked.
fn guard_socket() -> io::Result<i32> {
    let mut slot = lock(&GUARD);
    if slot.is_none() {
        *slot = Some(fork_guard()?);
    }
    slot.as_ref().map(|guard| guard.socket.as_raw_fd()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn fork_guard() -> io::Result<Guard> {
    let (pid, socket) = guard::fork(mark().as_bytes())?;
    // A thread that waits costs nothing, and takes the status of no other child.
    thread::Builder::new().name("palisade-guard".to_owned()).spawn(move || {
        // Whatever it returns: nobody is left to wait for.
        let end = waitpid(Pid::from_raw(pid), None);
        error!(pid, ?end, "the guard process has ended while the host runs");
        if let Some(messages) = MESSAGES.get() {
            messages.send(Message::GuardEnded(pid)).ok();
        }
    })?;
    Ok(Guard { pid, socket })
}

/// The entry in the environment by which processes of this host's plugins are known, as `NAME=value`.
pub(super) fn mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| format!("{HOST_VARIABLE}={}-{:016x}", std::process::id(), fastrand::u64(..)))
}

fn replace_guard(ended: i32) {
    let mut slot = lock(&GUARD);
    if slot.as_ref().is_none_or(|guard| guard.pid != ended) {
        return;
    }
    // Closed before the fork, and in no child of ours either.
    *slot = None;
    match fork_guard() {
        Ok(guard) => {
            let live: Vec<i32> = groups(|groups| groups.iter().copied().collect());
            for group in live {
                guard::send(guard.socket.as_raw_fd(), Record::add(group));
            }
            *slot = Some(guard);
        }
        // The next start tries again.
        Err(error) => error!(%error, "no new guard process could be made"),
    }
}

fn groups<T>(with: impl FnOnce(&mut HashSet<i32>) -> T) -> T {
    with(lock(&GROUPS).get_or_insert_default())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
