//! A plugin that tries to get out of its sandbox: `escape:WAY`, or `escape:WAY:DETAIL`. What came of it goes to stderr.
//! Each try does little harm where it succeeds, for it is also made without a sandbox, to see that it could.

#![allow(unsafe_code, reason = "fork(2); its children make system calls only")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::time::Duration;

use nix::kmod::init_module;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, execve, fork, getppid};

/// Tries it and says what came of it.
pub(crate) fn escape(way: &str) {
    let (way, detail) = way.split_once(':').unwrap_or((way, ""));
    let outcome = attempt(way, detail);
    let text = match outcome {
        Ok(()) => format!("escape {way}: got out"),
        Err(error) => format!("escape {way}: refused: {error}"),
    };
    // In one piece, whoever else writes there.
    let _closed = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

fn attempt(way: &str, detail: &str) -> io::Result<()> {
    let host = getppid();
    match way {
        "read" => File::open(detail).and_then(|mut file| io::copy(&mut file, &mut io::sink())).map(drop),
        "connect" => {
            let address: SocketAddr = detail.parse().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop)
        }
        // Multipath TCP, which falls back to TCP where the other side does not speak it.
        "mptcp" => {
            // SAFETY: takes integers.
            let made =
                unsafe { nix::libc::socket(nix::libc::AF_INET, nix::libc::SOCK_STREAM, nix::libc::IPPROTO_MPTCP) };
            if made < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: it was made a moment ago, for nobody else.
            let made = unsafe { std::os::fd::OwnedFd::from_raw_fd(made) };
            let SocketAddr::V4(address) = detail.parse().unwrap() else { panic!("{detail}") };
            let address = nix::sys::socket::SockaddrIn::from(address);
            nix::sys::socket::connect(made.as_raw_fd(), &address).map_err(from)
        }
        // Connects without connect(2).
        "fast-open" => {
            let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), SockProtocol::Tcp)?;
            let SocketAddr::V4(address) = detail.parse().unwrap() else { panic!("{detail}") };
            let address = nix::sys::socket::SockaddrIn::from(address);
            let flags = nix::sys::socket::MsgFlags::from_bits_retain(nix::libc::MSG_FASTOPEN);
            nix::sys::socket::sendto(made.as_raw_fd(), b"x", &address, flags).map(drop).map_err(from)
        }
        "ptrace" => {
            ptrace::seize(host, ptrace::Options::empty())?;
            // Let go by the exit of the thread that has it; before that, it may go on.
            ptrace::detach(host, None).or(Ok(()))
        }
        "write" => OpenOptions::new().create(true).append(true).open(detail)?.write_all(b"escaped"),
        "chmod" => std::fs::set_permissions(detail, std::os::unix::fs::PermissionsExt::from_mode(0o666)),
        "fork-bomb" => fork_bomb(detail.parse().unwrap()),
        "shell" => in_child(|| execve(c"/bin/sh", &[c"sh", c"-c", c"exit 0"], &[c"PATH=/bin"]).map(drop)),
        "raw-socket" => {
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp).map(drop).map_err(from)
        }
        "environ" => File::open(format!("/proc/{host}/environ")).map(drop),
        // It is ignored where nobody asks for it.
        "signal" => kill(host, Signal::SIGURG).map_err(from),
        "mount" => {
            let none: Option<&str> = None;
            let dir = crate::socket_dir();
            mount(Some("none"), &dir, Some("tmpfs"), MsFlags::empty(), none)?;
            umount2(&dir, MntFlags::MNT_DETACH).map_err(from)
        }
        // Whoever may load modules is told that this is none.
        "module" => match init_module(b"not a module", &CString::default()) {
            Err(nix::Error::ENOEXEC) => Ok(()),
            outcome => outcome.map_err(from),
        },
        "user-namespace" => in_child(|| unshare(CloneFlags::CLONE_NEWUSER)),
        "abstract-socket" => UnixStream::connect_addr(&UnixAddress::from_abstract_name(detail)?).map(drop),
        "core-dump" => {
            let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
            if hard == 0 { Err(io::Error::other("no core files")) } else { Ok(()) }
        }
        "memory" => memory(detail.parse().unwrap()),
        "call" => call(detail),
        "limits" => limits(host),
        "priority" => {
            // SAFETY: takes integers.
            let done = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, host.as_raw().unsigned_abs(), 19) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        }
        "shared-memory" => {
            // SAFETY: attaches somebody's memory for reading, at an address of the kernel's choice; never read.
            let at = unsafe { nix::libc::shmat(detail.parse().unwrap(), std::ptr::null(), nix::libc::SHM_RDONLY) };
            if at.addr() == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(()) }
        }
        "unix-socket" => UnixStream::connect(detail).map(drop),
        other => panic!("no such way: {other:?}"),
    }
}

/// A system call with arguments that it can't work with: anything but EPERM says that it may be made.
fn call(name: &str) -> io::Result<()> {
    let number = match name {
        "kexec_file_load" => nix::libc::SYS_kexec_file_load,
        "io_uring_setup" => nix::libc::SYS_io_uring_setup,
        "open_tree_attr" => 467,
        "quotactl_fd" => nix::libc::SYS_quotactl_fd,
        "adjtimex" => nix::libc::SYS_adjtimex,
        "clock_adjtime" => nix::libc::SYS_clock_adjtime,
        other => panic!("no such call: {other:?}"),
    };
    // SAFETY: -1 is no descriptor, clock or address, so none of these gets to its work.
    let result = unsafe { nix::libc::syscall(number, -1, -1, -1, -1, -1) };
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() == Some(nix::libc::EPERM) { Err(error) } else { Ok(()) }
}

/// Sets a limit of another process to what it is.
fn limits(of: nix::unistd::Pid) -> io::Result<()> {
    let mut limit = nix::libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let (new, old) = (std::ptr::null(), &raw mut limit);
    // SAFETY: prlimit(2) fills a local, then reads it.
    let done = unsafe {
        nix::libc::prlimit(of.as_raw(), nix::libc::RLIMIT_CORE, new, old).min(nix::libc::prlimit(
            of.as_raw(),
            nix::libc::RLIMIT_CORE,
            old,
            std::ptr::null_mut(),
        ))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn from(errno: nix::Error) -> io::Error {
    errno.into()
}

/// As many processes as asked for, all at a time.
fn fork_bomb(count: usize) -> io::Result<()> {
    let mut children = Vec::new();
    let mut refused = None;
    while children.len() < count && refused.is_none() {
        // SAFETY: the child only waits for a signal.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => loop {
                nix::unistd::pause();
            },
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(errno) => refused = Some(errno.into()),
        }
    }
    for child in children {
        kill(child, Signal::SIGKILL).ok();
        waitpid(child, None).ok();
    }
    refused.map_or(Ok(()), Err)
}

/// What changes the process that does it. Its child tells by its exit status.
fn in_child(act: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
    // SAFETY: the child makes one system call and exits.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let errno = act().err().map_or(0, |errno| errno as i32);
            // SAFETY: ends the child at once; nothing of the parent's is run or flushed twice.
            unsafe { nix::libc::_exit(errno) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            other => Err(io::Error::other(format!("{other:?}"))),
        },
    }
}

/// So many MiB that are written to.
fn memory(mebibytes: usize) -> io::Result<()> {
    // Copied in one go: byte by byte, an unoptimised program on a busy machine takes longer than its start may.
    let written = vec![1; 1 << 20];
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        let mut block = Vec::new();
        block.try_reserve_exact(1 << 20).map_err(io::Error::other)?;
        block.extend_from_slice(&written);
        held.push(block);
    }
    Ok(())
}
