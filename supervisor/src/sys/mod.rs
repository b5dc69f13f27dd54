//! Every `unsafe` of the crate: what runs between fork and exec, the guard process, pidfds, and the search for
//! processes that left their group.

#![allow(unsafe_code, reason = "the one room for it; each block argues its case")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) mod child;
pub(crate) mod descendants;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod mounts;
pub(crate) mod usage;

/// A descriptor that becomes readable when the process has exited, and that no later process can take over.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just made this descriptor, so nobody else owns it; descriptors fit a RawFd.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // SAFETY: an OwnedFd always names the same open descriptor, and closes it only when dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

#[cfg(test)]
mod tests {
    /// `forbid` can't be lifted again further down, `deny` can: this file does.
    #[test]
    fn every_other_room_forbids_unsafe_code() {
        let lines: Vec<_> = include_str!("../lib.rs").lines().collect();
        for pair in lines.windows(2).filter(|pair| pair[1].starts_with("mod ") && pair[1] != "mod sys;") {
            assert_eq!(pair[0], "#[forbid(unsafe_code)]", "before `{}`", pair[1]);
        }
    }
}
