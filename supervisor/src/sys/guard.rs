//! The guard: a small process that outlives the host, and then kills what the host has left behind.
//!
//! The kernel's parent-death signal reaches a plugin's first process only; behind a shell wrapper or a launcher the
//! plugin itself would live on. The guard holds the list of the plugins' process groups and one end of a socket whose
//! other end only the host has. When that end closes, however the host went, it kills the groups, and then every
//! process that carries the host's mark in its environment: those that have left their group.
//!
//! It is forked from the host without exec, so that a library needs no program of its own on disk. Like all code after
//! the fork of a program with threads, it neither allocates nor locks: system calls and static memory only.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::descendants::{self, Scratch, Search};

/// A process group that was made or has gone.
#[derive(Clone, Copy)]
pub(crate) struct Record(i32);

impl Record {
    pub(crate) fn add(group: i32) -> Self {
        Self(group)
    }

    pub(crate) fn remove(group: i32) -> Self {
        Self(-group)
    }
}

/// Sends a record; false where the guard does not take it. Async-signal-safe.
pub(crate) fn send(socket: RawFd, record: Record) -> bool {
    let bytes = record.0.to_ne_bytes();
    // SAFETY: send(2) reads four bytes of a local. Neither blocks nor raises SIGPIPE.
    let sent =
        unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    sent == bytes.len() as isize
}

/// Forks a guard: its pid, and the socket for its records. `mark` is the entry `NAME=value` that all plugins get into
/// their environment.
///
/// To be called with all signals blocked, as the spawning thread has them.
pub(crate) fn fork(mark: &[u8]) -> io::Result<(i32, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: socketpair(2) fills the two integers. SEQPACKET: a record arrives whole, and the end of the last writer
    // is seen as an empty one.
    let made =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors have just been made, and belong to nobody else.
    let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child runs `run` only, which keeps to what is allowed after a fork and never returns.
    match unsafe { libc::fork() } {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: this is the child.
        0 => unsafe { run(its.as_raw_fd(), mark) },
        pid => Ok((pid, ours)),
    }
}

/// One bit for each possible pid (the kernel's limit is 2^22), so the list has no size to run out of. Memory that is
/// never touched costs nothing. The host keeps it as well: a guard that replaces a dead one inherits it by the fork.
static GROUPS: [AtomicU64; PIDS / 64] = [const { AtomicU64::new(0) }; PIDS / 64];
const PIDS: usize = 1 << 22;

/// Nobody waits for the guard, and nobody comes after it.
const THOROUGH: Search = Search { quiet: 10, pause_ms: 5 };

/// The guard's whole life.
///
/// # Safety
///
/// Only in a forked child, which ends here.
unsafe fn run(socket: RawFd, mark: &[u8]) -> ! {
    // SAFETY: system calls on integers and locals, all of them async-signal-safe or bare. Failures are ignored where
    // the guard is still of use without.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"palisade-guard".as_ptr());
        // It is a copy of the host's memory: nobody is to read it.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
        libc::chdir(c"/".as_ptr());
        close_all_but(socket);

        loop {
            let mut record = [0u8; 4];
            let count = libc::recv(socket, record.as_mut_ptr().cast(), record.len(), 0);
            if count == record.len() as isize {
                note(Record(i32::from_ne_bytes(record)));
            } else if count >= 0 || *libc::__errno_location() != libc::EINTR {
                break;
            }
        }
        for (index, word) in GROUPS.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let group = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                libc::kill(-(group as i32), libc::SIGKILL);
            }
        }
        descendants::kill_all(mark, THOROUGH, &mut Scratch::new());
        libc::_exit(0)
    }
}

/// Includes standard input and output, which would otherwise keep a terminal or a pipeline open.
///
/// # Safety
///
/// Only in a forked child that uses no other descriptor.
unsafe fn close_all_but(kept: RawFd) {
    let kept = kept as libc::c_uint;
    // SAFETY: close_range(2) takes integers; the caller vouches for the descriptors.
    unsafe {
        if kept > 0 {
            libc::syscall(libc::SYS_close_range, 0, kept - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, kept + 1, libc::c_uint::MAX, 0);
    }
}

/// Puts a group on this process's list, or takes it off.
pub(crate) fn note(record: Record) {
    let Record(record) = record;
    let group = record.unsigned_abs() as usize;
    // Group 0 would be the guard's own, group 1 everything.
    let Some(word) = GROUPS.get(group / 64).filter(|_| group > 1) else { return };
    let bit = 1 << (group % 64);
    if record > 0 {
        word.fetch_or(bit, Ordering::Relaxed);
    } else {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}
