//! The one execveat(2) that a sandboxed process is allowed.
//!
//! A seccomp filter sees numbers, not what they point to. So what tells that call from all later ones is where its
//! arguments lie: at addresses of memory that nobody could guess, and that exec itself takes away.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::ptr;

/// A program with its arguments and environment, in place.
#[derive(Debug)]
pub(crate) struct Handover {
    path: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    /// What the arrays point to.
    _strings: [Vec<CString>; 2],
}

impl Handover {
    pub(crate) fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> io::Result<Self> {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        Ok(Self {
            path: place(path.as_bytes_with_nul())?.cast(),
            arguments: place(&pointers(&arguments))?,
            environment: place(&pointers(&environment))?,
            _strings: [arguments, environment],
        })
    }

    /// Where path, arguments and environment are.
    pub(crate) fn addresses(&self) -> [u64; 3] {
        [self.path as u64, self.arguments as u64, self.environment as u64]
    }

    /// Returns where it fails.
    pub(crate) fn exec(&self) -> io::Error {
        // SAFETY: a string that ends in NUL and two arrays that end in null, all of which this value keeps.
        unsafe {
            libc::syscall(libc::SYS_execveat, libc::AT_FDCWD, self.path, self.arguments, self.environment, 0);
        }
        io::Error::last_os_error()
    }
}

/// Copies plain values to an address that nobody can guess, for as long as this process lives.
fn place<T: Copy>(values: &[T]) -> io::Result<*const T> {
    const PAGE: usize = 4096;
    /// Below the lowest top of user space of any 64-bit machine with four levels of page tables.
    const TOP: usize = 1 << 46;
    let size = size_of_val(values);
    for _ in 0..16 {
        let mut random = [0usize; 2];
        // SAFETY: getrandom(2) fills a local array.
        let filled = unsafe { libc::getrandom(random.as_mut_ptr().cast(), size_of_val(&random), 0) };
        if filled != size_of_val(&random) as isize {
            return Err(io::Error::last_os_error());
        }
        let hint = (random[0] % TOP).max(1 << 30) & !(PAGE - 1);
        // SAFETY: a fresh anonymous mapping; NOREPLACE leaves alone what may be there.
        let page = unsafe {
            libc::mmap(
                hint as *mut libc::c_void,
                size + PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            continue;
        }
        let offset = (random[1] % PAGE) & !(align_of::<T>().max(8) - 1);
        // SAFETY: the mapping has `size + PAGE` bytes and belongs to nobody else; the offset is less than a page, and
        // aligned.
        return Ok(unsafe {
            let target = page.cast::<u8>().add(offset).cast::<T>();
            ptr::copy_nonoverlapping(values.as_ptr(), target, values.len());
            target
        });
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Marks a descriptor, so that the plugin does not get it.
pub(crate) fn close_at_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl(2) on an integer; fails where there is no such descriptor.
    let set = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes over a descriptor that the host has left open for this process, and closes it at exec.
pub(crate) fn adopt(fd: RawFd) -> io::Result<File> {
    if fd < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    close_at_exec(fd)?;
    // SAFETY: it is open, and the host has made it for nobody but the caller, who runs before anything else could have
    // opened one.
    Ok(unsafe { File::from_raw_fd(fd) })
}
