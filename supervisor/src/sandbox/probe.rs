//! What a process can do, found out by trying. Each trial is one that does no harm where it succeeds.
//!
//! They are made by the helper in the process that becomes the plugin, after everything is in force. None of that can be
//! undone, and all of it outlives exec: what fails here fails for the plugin.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{Pid, execve};
use serde::{Deserialize, Serialize};

use super::cgroup;

/// One trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What was tried.
    pub tried: String,
    /// Whether it can be done.
    pub allowed: bool,
    /// Why not, as the kernel says it.
    pub error: Option<String>,
}

/// `grouped`: whether it has a control group of its own.
pub(super) fn all(host: i32, grouped: bool) -> Vec<Probe> {
    let host_file = |name: &str| File::open(format!("/proc/{host}/{name}")).map(drop);
    let none: Option<&str> = None;
    let icmp = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp);
    let datagrams = || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect("127.0.0.1:9")
    };
    let mut probes = vec![
        probe("list the root directory", File::open("/").map(drop)),
        probe("read /etc/shadow", File::open("/etc/shadow").map(drop)),
        // Not created, not truncated.
        probe(
            "write to /etc/passwd",
            OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open("/etc/passwd").map(drop),
        ),
        probe("read the environment of the host", host_file("environ")),
        probe("read the memory of the host", host_file("mem")),
        // Signal 0 only asks.
        probe("signal the host", kill(Pid::from_raw(host), None).map_err(io::Error::from)),
        probe("use the network", datagrams()),
        probe("open a raw socket", icmp().map(drop).map_err(io::Error::from)),
        // No namespace at all: only whether one may ask.
        probe("make namespaces", unshare(CloneFlags::empty()).map_err(io::Error::from)),
        probe("mount", but_for(libc::ENOENT, mount(none, "", none, MsFlags::empty(), none))),
        // No program has no name.
        probe("execute programs", but_for(libc::ENOENT, execve(c"", &[c""], &[c""]).map(drop))),
    ];
    if grouped {
        probes.push(probe("leave its control group", cgroup::open_own()));
    }
    probes
}

fn probe(tried: &str, outcome: io::Result<()>) -> Probe {
    let error = outcome.err().map(|error| error.to_string());
    Probe { tried: tried.to_owned(), allowed: error.is_none(), error }
}

/// This error says that it was not for a lack of permission.
fn but_for(errno: i32, outcome: nix::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error as i32 == errno => Ok(()),
        outcome => outcome.map_err(io::Error::from),
    }
}
