//! What a process had used by its end.

use std::mem::MaybeUninit;

/// Of a process that has exited and has not been reaped, without reaping it. `None` where the kernel does not say.
pub(crate) fn of_exited(pid: i32) -> Option<libc::rusage> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // The C library's waitid has no rusage; the system call's fifth argument is (wait4(2) would reap).
    // SAFETY: waitid(2) fills the two structures, which are locals, and takes integers besides.
    let done = unsafe {
        let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        libc::syscall(libc::SYS_waitid, libc::P_PID, pid, info.as_mut_ptr(), options, usage.as_mut_ptr())
    };
    // SAFETY: integers only, zeroed before and perhaps filled since.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: si_pid is what waitid(2) fills in; it stays 0 where the process has not exited.
    (done == 0 && unsafe { info.si_pid() } == pid).then_some(usage)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_looked_at_and_left_to_its_parent() {
        let mut busy = Command::new("sh");
        busy.args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 7"]).stdin(Stdio::null());
        let mut child = busy.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let usage = loop {
            if let Some(usage) = of_exited(pid) {
                break usage;
            }
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        };
        assert!(usage.ru_utime.tv_sec > 0 || usage.ru_utime.tv_usec > 0, "it has computed for a while");
        assert!(usage.ru_maxrss > 0);
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert!(of_exited(pid).is_none(), "it has been reaped");
    }
}
