//! Finds and kills processes by a mark in the environment that they were started with.
//!
//! A process that has made itself a new session is in no group of ours, and one whose parent has gone is nobody's
//! descendant. What it was given at exec stays readable in /proc, and is passed on to whatever it starts. A process
//! that clears its environment escapes; only a control group holds it, see [`crate::Cgroup`].
//!
//! Used by the guard as well, so: no allocation, system calls only.

use std::ffi::CStr;

/// How much of an environment is searched, and how much of a listing is read at a time.
const ENVIRONMENT: usize = 56 * 1024;
const LISTING: usize = 8 * 1024;

/// Scratch memory of a search.
pub(crate) struct Scratch {
    environment: [u8; ENVIRONMENT],
    listing: [u8; LISTING],
}

impl Scratch {
    pub(crate) const fn new() -> Self {
        Self { environment: [0; ENVIRONMENT], listing: [0; LISTING] }
    }
}

/// How thoroughly to look. A process shows no environment in the middle of exec, so one empty pass proves little.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    /// Passes in a row that must find nothing.
    pub(crate) quiet: usize,
    /// Between passes.
    pub(crate) pause_ms: u8,
}

/// Passes at most, however many processes turn up.
const PASSES: usize = 200;

/// Kills every process whose environment holds the entry `NAME=value`, and what they start meanwhile.
pub(crate) fn kill_all(entry: &[u8], search: Search, scratch: &mut Scratch) {
    let mut quiet = 0;
    for _ in 0..PASSES {
        // One that is dying is found again until its memory is gone.
        quiet = if kill_once(entry, scratch) == 0 { quiet + 1 } else { 0 };
        if quiet >= search.quiet {
            return;
        }
        let pause = libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(search.pause_ms) * 1_000_000 };
        // SAFETY: nanosleep(2) reads a local.
        unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
    }
}

fn kill_once(entry: &[u8], scratch: &mut Scratch) -> usize {
    let Some(proc) = Fd::open(c"/proc", libc::O_DIRECTORY) else { return 0 };
    // SAFETY: takes nothing, cannot fail.
    let own = unsafe { libc::getpid() };
    let mut found = 0;
    loop {
        // SAFETY: getdents64(2) writes at most the given length into the buffer.
        let count =
            unsafe { libc::syscall(libc::SYS_getdents64, proc.0, scratch.listing.as_mut_ptr(), scratch.listing.len()) };
        let Some(mut listing) = usize::try_from(count).ok().and_then(|count| scratch.listing.get(..count)) else {
            return found;
        };
        if listing.is_empty() {
            return found;
        }
        while let Some((name, rest)) = next_name(listing) {
            listing = rest;
            match pid(name) {
                Some(pid) if pid != own && kill_if(pid, entry, &mut scratch.environment) => found += 1,
                _ => {}
            }
        }
    }
}

/// The name of the first record (`struct linux_dirent64`, getdents(2)), and the records after it.
fn next_name(listing: &[u8]) -> Option<(&[u8], &[u8])> {
    const LENGTH_AT: usize = 16;
    const NAME_AT: usize = 19;
    let length = usize::from(u16::from_ne_bytes([*listing.get(LENGTH_AT)?, *listing.get(LENGTH_AT + 1)?]));
    let name = listing.get(NAME_AT..length)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Some((&name[..end], &listing[length..]))
}

fn pid(name: &[u8]) -> Option<i32> {
    // Not str::parse: errors of the standard library might allocate.
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| i32::from(byte - b'0'));
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0i32, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

fn kill_if(pid: i32, entry: &[u8], buffer: &mut [u8]) -> bool {
    // Opened before the look: what is signalled is what was looked at, though the number be reused.
    // SAFETY: pidfd_open(2) takes integers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Some(process) = i32::try_from(process).ok().filter(|fd| *fd >= 0).map(Fd) else { return false };
    let mut path = [0; 32];
    let Some(environ) = environ_path(pid, &mut path).and_then(|path| Fd::open(path, 0)) else { return false };
    let length = environ.read(buffer);
    if !buffer[..length].split(|byte| *byte == 0).any(|candidate| candidate == entry) {
        return false;
    }
    // SAFETY: pidfd_send_signal(2) takes integers and no siginfo.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.0, libc::SIGKILL, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    sent == 0
}

/// `/proc/PID/environ`, without a formatter.
fn environ_path(pid: i32, buffer: &mut [u8; 32]) -> Option<&CStr> {
    let mut digits = [0; 10];
    let mut at = digits.len();
    let mut rest = pid.unsigned_abs();
    while at == digits.len() || rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let mut length = 0;
    for part in [b"/proc/".as_slice(), &digits[at..], b"/environ\0"] {
        buffer[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    CStr::from_bytes_with_nul(&buffer[..length]).ok()
}

/// Closed when dropped; without the checks of the standard library's type, which may print.
struct Fd(i32);

impl Fd {
    fn open(path: &CStr, flags: i32) -> Option<Self> {
        // SAFETY: open(2) reads a string that ends in NUL.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC | flags) };
        (fd >= 0).then_some(Self(fd))
    }

    /// Reads until the end or until the buffer is full.
    fn read(&self, buffer: &mut [u8]) -> usize {
        let mut length = 0;
        while length < buffer.len() {
            let rest = &mut buffer[length..];
            // SAFETY: read(2) writes at most the given length into the buffer.
            let count = unsafe { libc::read(self.0, rest.as_mut_ptr().cast(), rest.len()) };
            match usize::try_from(count) {
                Ok(count @ 1..) => length += count,
                Ok(0) | Err(_) => break,
            }
        }
        length
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        unsafe { libc::close(self.0) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_processes_with_the_very_entry_are_killed() {
        let start = |value: &str| {
            let mut command = Command::new("sleep");
            command.arg("600").env("PALISADE_TEST_MARK", value).stdin(Stdio::null()).spawn().unwrap()
        };
        let mine = format!("a{}", std::process::id());
        let (mut marked, mut other) = (start(&mine), start(&format!("{mine}b")));
        // Not in the middle of exec any more.
        while std::fs::read(format!("/proc/{}/environ", marked.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let search = Search { quiet: 1, pause_ms: 1 };
        kill_all(format!("PALISADE_TEST_MARK={mine}").as_bytes(), search, &mut Scratch::new());
        assert_eq!(marked.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn paths_and_numbers() {
        let mut buffer = [0; 32];
        assert_eq!(environ_path(1, &mut buffer).unwrap(), c"/proc/1/environ");
        let mut buffer = [0; 32];
        assert_eq!(environ_path(4_194_303, &mut buffer).unwrap(), c"/proc/4194303/environ");
        assert_eq!(pid(b"4194303"), Some(4_194_303));
        for name in [b"".as_slice(), b"self", b"12a", b"99999999999"] {
            assert_eq!(pid(name), None);
        }
    }
}
