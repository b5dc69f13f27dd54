//! Mounts that can be read only, or written again: mount_setattr(2), which the C library has no function for everywhere.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const READ_ONLY: u64 = 1;

/// Whether a change is one of the mounts below a mount, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    Too,
    Not,
}

/// Lets nothing be written by way of the mount at `path`, nor of those below it.
pub(crate) fn forbid_writing(path: &Path) -> io::Result<()> {
    change(path, Below::Too, READ_ONLY, 0)
}

/// Takes [`forbid_writing`] back. What could not be written before that, can't be now.
pub(crate) fn allow_writing(path: &Path, below: Below) -> io::Result<()> {
    change(path, below, 0, READ_ONLY)
}

fn change(path: &Path, below: Below, set: u64, clear: u64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Attributes { set, clear, propagation: 0, user_namespace: 0 };
    // SAFETY: mount_setattr(2) reads a string that ends in NUL and a local of the size that it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            if below == Below::Too { libc::AT_RECURSIVE } else { 0 },
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
