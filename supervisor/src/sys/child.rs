//! What a plugin's process does to itself between fork and exec.
//!
//! The child is a copy of one thread of a program that has many: locks may be held for ever, the allocator's among
//! them. So nothing here allocates, locks, formats or panics; every call is a system call that signal-safety(7) lists
//! or that the C library passes straight to the kernel, on integers that were made before the fork.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// What the child needs to know, made before the fork.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// Where the guard takes its records.
    pub(crate) guard: RawFd,
    /// The host, as the child's parent.
    pub(crate) host: i32,
    /// Memory that host and child share.
    pub(crate) slot: Slot,
    /// Whether it renounces privileges that exec could give.
    pub(crate) no_new_privs: bool,
    /// The entrance of its control group, where it has one of its own.
    pub(crate) cgroup: Option<RawFd>,
}

/// One number in memory that parent and children share: the pid of the child that was forked last. It tells the
/// parent whom to take off the guard's list where exec failed, since `Command::spawn` then returns no pid.
#[derive(Clone, Copy)]
pub(crate) struct Slot(&'static AtomicI32);

impl Slot {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping of one page, at an address that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<AtomicI32>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the page is aligned, zeroed, which is a valid AtomicI32, and never unmapped.
        Ok(Self(unsafe { &*page.cast::<AtomicI32>() }))
    }

    /// The pid of the last child, once.
    pub(crate) fn take(self) -> Option<i32> {
        Some(self.0.swap(0, Ordering::SeqCst)).filter(|pid| *pid != 0)
    }
}

/// Makes a command set its process up as a plugin's: own session and group, on the guard's list, dying with the host, in
/// its control group, private umask, no core files, no new privileges, no inherited descriptors but `kept`, default signals.
pub(crate) fn prepare(command: &mut Command, setup: Setup, kept: Vec<RawFd>) {
    // SAFETY: `set_up` keeps to the rules in the module's documentation.
    unsafe { command.pre_exec(move || set_up(setup, &kept)) };
}

/// Linux has 64 signals (signal(7)). A zeroed `struct sigaction` of the kernel's, four words on every 64-bit machine,
/// means the default disposition.
const LAST_SIGNAL: i32 = 64;

/// Runs in the child. Signals are all blocked here, since the spawning thread blocks them: a handler of the host's
/// that ran in the child would write into the host's own pipes.
fn set_up(setup: Setup, kept: &[RawFd]) -> io::Result<()> {
    // SAFETY: each call below is async-signal-safe or a bare system call, and gets integers and pointers to locals.
    unsafe {
        // First, so that the group that the guard is told of exists. Also takes the terminal away: ^C reaches the
        // host alone, which then stops plugins in order.
        check(libc::setsid())?;

        let pid = libc::getpid();
        setup.slot.0.store(pid, Ordering::SeqCst);
        // Before anything of the plugin's own runs. Whether it worked is the host's business: it watches the guard.
        super::guard::send(setup.guard, super::guard::Record::add(pid));

        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0))?;
        // The host may have died before that call, and then no signal comes.
        if libc::getppid() != setup.host {
            libc::_exit(127);
        }

        // `0` is whoever writes it. Before anything of the plugin's own runs, so that nothing of it is anywhere else.
        if let Some(entrance) = setup.cgroup {
            check(libc::write(entrance, c"0".as_ptr().cast(), 1) as i32)?;
        }

        if setup.no_new_privs {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        }

        libc::umask(0o077);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;

        // An ignored signal stays ignored through exec, such as SIGHUP under nohup. Here and below not by the C
        // library's functions, which leave alone the two signals that it uses itself; its posix_spawn hands those on
        // ignored. SIGKILL and SIGSTOP refuse, as they should.
        let default = [0u64; 4];
        let mask = size_of::<u64>();
        for signal in 1..=LAST_SIGNAL {
            let old = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, mask);
        }

        // After the descriptors that this function uses. Marked, not closed: std reports a failed exec through one.
        check(libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) as i32)?;

        for fd in kept {
            check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
        }

        // Last: from here on signals arrive, and their dispositions are the plugin's.
        let (none, old) = (0u64, ptr::null_mut::<u64>());
        check(libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, old, mask) as i32)?;
    }
    Ok(())
}

fn check(result: i32) -> io::Result<()> {
    // From errno alone: other io::Errors allocate.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
