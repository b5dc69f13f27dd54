//! What a plugin's process may do: data, and its way into the kernel.
//!
//! Most of it can't be done between fork and exec of a program with threads, so it is done by a small helper: a program
//! of the host's that calls [`sandbox_exec`] first thing, gives up what it is told to, proves that it is gone, and then
//! executes the plugin in its own place. `helper` has the order and why it is that; each other room is one mechanism.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod cgroup;
mod files;
mod helper;
mod ids;
mod limits;
mod namespaces;
mod probe;
mod syscalls;

pub use self::cgroup::Cgroup;
pub(crate) use self::cgroup::{Group, facts as cgroup_facts, sweep as sweep_cgroups};
pub use self::helper::sandbox_exec;
pub(crate) use self::helper::{Answer, Plan};
pub use self::probe::Probe;

/// What a process may do. The default takes new privileges from it and needs no helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What happens where the kernel or the host's privileges can't give a part of this.
    pub on_missing: OnMissing,
    /// Whether set-user-ID programs and file capabilities have no effect for it. Comes with [`Self::files`],
    /// [`Self::scoped`] and [`Self::deny`], which need it, and with [`Self::capabilities`] where a program could give
    /// them back.
    pub no_new_privs: bool,
    /// The user and group to run as, without supplementary groups. Unset: the host's.
    pub user: Option<User>,
    /// The capabilities that it keeps, as `CAP_NET_BIND_SERVICE`. Unset: those it would have anyway.
    pub capabilities: Option<BTreeSet<String>>,
    /// The files that it may reach. Unset: those that its user may.
    pub files: Option<Files>,
    /// Whether it can neither signal nor trace processes outside, nor connect to their abstract unix sockets.
    pub scoped: bool,
    /// Which network it sees.
    pub network: Network,
    /// The TCP ports that it may use where it has a network. Unset: all.
    pub tcp: Option<Tcp>,
    /// Whether it has a `/tmp` of its own, and sees nothing of `/run`, `/var/tmp`, `/dev/shm` and the host's runtime
    /// directory but what it is given, nor shared memory and message queues of others. With [`Self::files`] as
    /// well, what may not be written is mounted for reading only.
    pub private_tmp: bool,
    /// System calls that fail with EPERM.
    pub deny: BTreeSet<SyscallClass>,
    /// Limits of each of its processes.
    pub limits: Limits,
    /// A control group of its own, with limits of all of its processes together. The host makes it in its own, which
    /// must be delegated to it.
    pub cgroup: Option<Cgroup>,
}

/// What happens where a part of a sandbox can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnMissing {
    /// The plugin is not started.
    Fail,
    /// It is started without, and a warning says so.
    Warn,
}

/// A user with a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
}

/// Paths; a directory stands for all that is below it. Those that are not there are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// To read, beyond what runtimes and the command need.
    pub read: Vec<OsString>,
    /// To read and write, beyond the private directory.
    pub write: Vec<OsString>,
    /// To execute and read, beyond the command itself.
    pub execute: Vec<OsString>,
}

/// Which network a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The host's.
    Host,
    /// One without interfaces. Unix sockets work.
    None,
}

/// TCP ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// To connect to.
    pub connect: BTreeSet<u16>,
    /// To listen on.
    pub bind: BTreeSet<u16>,
}

/// Limits of one process. Unset: the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Writable memory of its own in bytes (`RLIMIT_DATA`): heaps, stacks, anonymous mappings. What is only reserved, as
    /// by a JVM or by Go, does not count.
    pub memory: Option<u64>,
    /// Open descriptors.
    pub open_files: Option<u64>,
    /// Processes and threads of the plugin's user (`RLIMIT_NPROC`). Counted for the plugin alone where it has a user or
    /// a user namespace of its own.
    pub processes: Option<u64>,
    /// Largest file in bytes.
    pub file_size: Option<u64>,
    /// Time on a processor, in whole seconds.
    pub cpu_time: Option<Duration>,
}

/// System calls that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyscallClass {
    /// Tracing, and memory, descriptors, limits and priorities of other processes.
    Debug,
    /// Mounting and changing roots.
    Mount,
    /// Modules, kexec, BPF, io_uring, userfaultfd.
    Kernel,
    /// New namespaces, and entering others.
    Namespace,
    /// Raw sockets, and families of sockets beyond unix, IP and netlink.
    RawSocket,
    /// The kernel's keyrings.
    Keyring,
    /// Setting the clock.
    Clock,
    /// Rebooting, swapping, quotas, host names, ports of the machine.
    Admin,
    /// Executing any program after the plugin's own.
    Exec,
}

impl SyscallClass {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Debug,
        Self::Mount,
        Self::Kernel,
        Self::Namespace,
        Self::RawSocket,
        Self::Keyring,
        Self::Clock,
        Self::Admin,
        Self::Exec,
    ];

    /// Its name in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Mount => "mount",
            Self::Kernel => "kernel",
            Self::Namespace => "namespace",
            Self::RawSocket => "raw_socket",
            Self::Keyring => "keyring",
            Self::Clock => "clock",
            Self::Admin => "admin",
            Self::Exec => "exec",
        }
    }
}

impl Sandbox {
    /// What every plugin is given anyway: a session, a umask of 077, no core files, no descriptors of the host's.
    #[must_use]
    pub fn none() -> Self {
        Self {
            on_missing: OnMissing::Fail,
            no_new_privs: false,
            user: None,
            capabilities: None,
            files: None,
            scoped: false,
            network: Network::Host,
            tcp: None,
            private_tmp: false,
            deny: BTreeSet::new(),
            limits: Limits::default(),
            cgroup: None,
        }
    }

    /// Everything that a filter in Python, Java, Go or Rust can do without. As root, name a user too.
    #[must_use]
    pub fn hardened() -> Self {
        Self {
            no_new_privs: true,
            capabilities: Some(BTreeSet::new()),
            files: Some(Files::default()),
            scoped: true,
            network: Network::None,
            tcp: Some(Tcp::default()),
            private_tmp: true,
            deny: SyscallClass::ALL.into(),
            limits: Limits {
                memory: Some(2 << 30),
                open_files: Some(1024),
                processes: Some(512),
                file_size: Some(256 << 20),
                cpu_time: None,
            },
            ..Self::none()
        }
    }

    /// Whether a helper has to be there.
    #[must_use]
    pub fn needs_helper(&self) -> bool {
        let Self { no_new_privs, on_missing, cgroup, .. } = *self;
        let least = Self { no_new_privs, on_missing, cgroup, ..Self::none() };
        *self != least
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self { no_new_privs: true, ..Self::none() }
    }
}

impl User {
    /// Ids for a plugin of this name that no account has, in the range that systemd uses for such.
    #[must_use]
    pub fn of_its_own(plugin: &str) -> Self {
        const FIRST: u32 = 61_184;
        const COUNT: u32 = 4_336;
        // FNV-1a: the same for every start.
        let hash =
            plugin.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let id = FIRST + hash % COUNT;
        Self { uid: id, gid: id }
    }
}

/// The program that applies a sandbox, and its arguments before the one that the supervisor adds. It must do nothing
/// before it calls [`sandbox_exec`] with that argument.
pub type Helper = (PathBuf, Vec<OsString>);

/// What the helper has found out before it executed the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confinement {
    /// What was asked for and could not be had.
    pub missing: Vec<String>,
    /// What the process can do.
    pub probes: Vec<Probe>,
}
