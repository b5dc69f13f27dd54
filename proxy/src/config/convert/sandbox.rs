//! Sandboxes: a profile, and what is written over it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use nix::unistd::{Group, Uid, User as Account};
use palisade_supervisor::{self as supervisor, Cgroup, Files, Limits, Network, OnMissing, SyscallClass, Tcp, User};

use super::super::slot::{Plain, Size, Slot, Span};
use super::super::{Profile, Sandbox, written};
use super::Reading;
use super::program::joined;

/// As capabilities(7) has them.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

impl Profile {
    fn policy(self) -> supervisor::Sandbox {
        match self {
            Self::None => supervisor::Sandbox::none(),
            Self::Default => supervisor::Sandbox::default(),
            Self::Hardened => supervisor::Sandbox::hardened(),
        }
    }
}

impl Reading<'_> {
    /// The sandbox of a plugin.
    pub(super) fn sandbox(&mut self, written: &Slot<written::Sandbox>, plugin: &str) -> Sandbox {
        let plain = written::SandboxDetails::default();
        let (profile, details) = match written.value() {
            None => (Profile::Default, &plain),
            Some(written::Sandbox::Text(profile)) => ((*profile).into(), &plain),
            Some(written::Sandbox::Mapping(details)) => {
                (details.profile.value().map_or(Profile::Default, |profile| (*profile).into()), &**details)
            }
        };
        let mut policy = profile.policy();
        policy.user = self.user(details).or_else(|| {
            // Root without capabilities still owns most files.
            let own = profile == Profile::Hardened && Uid::effective().is_root() && details.user.is_missing();
            own.then(|| User::of_its_own(plugin))
        });
        let set = |slot: &Slot<bool>, policy: &mut bool| {
            if let Some(value) = slot.value() {
                *policy = *value;
            }
        };
        set(&details.no_new_privs, &mut policy.no_new_privs);
        set(&details.isolate, &mut policy.scoped);
        set(&details.private_tmp, &mut policy.private_tmp);
        if let Some(on_missing) = details.on_missing.value() {
            policy.on_missing = match on_missing {
                written::OnMissing::Fail => OnMissing::Fail,
                written::OnMissing::Warn => OnMissing::Warn,
            };
        }
        if let Some(network) = details.network.value() {
            policy.network = match network {
                written::Network::Host => Network::Host,
                written::Network::None => Network::None,
            };
        }
        if details.capabilities.given().is_some() {
            policy.capabilities = Some(self.capabilities(&details.capabilities));
        }
        if [&details.read, &details.write, &details.execute].into_iter().any(|list| list.given().is_some()) {
            let read = self.sandbox_paths(&details.read);
            let write = self.sandbox_paths(&details.write);
            let execute = self.sandbox_paths(&details.execute);
            policy.files = Some(Files { read, write, execute });
        }
        if details.connect.given().is_some() || details.bind.given().is_some() {
            policy.tcp = Some(Tcp { connect: self.ports(&details.connect), bind: self.ports(&details.bind) });
        }
        if details.deny.given().is_some() {
            policy.deny =
                self.list(&details.deny, |_, class, _| Some(SyscallClass::from(*class))).into_iter().collect();
        }
        if let Some(limits) = details.limits.value() {
            self.limits_over(limits, &mut policy.limits);
        }
        if let Some((cgroup, _)) = details.cgroup.given() {
            policy.cgroup = Some(self.cgroup(cgroup));
        }
        Sandbox { profile, policy }
    }

    pub(super) fn group(&mut self, written: &Slot<Plain>) -> Option<u32> {
        let (name, node) = written.given()?;
        let found = name.0.parse().ok().or_else(|| Some(Group::from_name(&name.0).ok()??.gid.as_raw()));
        if found.is_none() {
            self.push(self.problem(node, format!("no group is called `{}`", name.0)));
        }
        found
    }

    fn user(&mut self, details: &written::SandboxDetails) -> Option<User> {
        let group = self.group(&details.group);
        let Some((name, node)) = details.user.given() else {
            if let Some((_, node)) = details.group.given() {
                self.push(self.problem(node, "`group` without `user`").label("name the user as well"));
            }
            return None;
        };
        let number = name.0.parse().ok();
        let account = match number {
            Some(uid) => Account::from_uid(Uid::from_raw(uid)),
            None => Account::from_name(&name.0),
        };
        let account = account.ok().flatten();
        let Some(uid) = number.or(account.as_ref().map(|account| account.uid.as_raw())) else {
            self.push(self.problem(node, format!("no user is called `{}`", name.0)));
            return None;
        };
        let gid = group.or(account.map(|account| account.gid.as_raw()));
        Some(User { uid, gid: gid.unwrap_or(uid) })
    }

    fn capabilities(&mut self, written: &written::List<String>) -> BTreeSet<String> {
        let names = self.list(written, |reading, name, node| {
            let full = name.to_ascii_uppercase();
            let full = if full.starts_with("CAP_") { full } else { format!("CAP_{full}") };
            if CAPABILITIES.contains(&full.as_str()) {
                return Some(full);
            }
            reading.unknown("capability", name, node, CAPABILITIES.iter().copied());
            None
        });
        names.into_iter().collect()
    }

    /// Relative paths start in the file's directory, as everywhere.
    fn sandbox_paths(&mut self, written: &written::List<String>) -> Vec<OsString> {
        self.list(written, |reading, path, node| {
            if path.is_empty() {
                reading.push(reading.problem(node, "the path is empty"));
                return None;
            }
            let path = joined(reading.dir, path);
            if !path.exists() {
                reading.push(reading.problem(node, format!("`{}` does not exist", path.display())));
            }
            Some(path.into())
        })
    }

    fn ports(&mut self, written: &written::List<u64>) -> BTreeSet<u16> {
        let ports = self.list(written, |reading, port, node| {
            let port = u16::try_from(*port).ok().filter(|port| *port > 0);
            if port.is_none() {
                reading.push(reading.problem(node, "not a port").label("1 to 65535"));
            }
            port
        });
        ports.into_iter().collect()
    }

    fn cgroup(&mut self, written: &written::SandboxCgroup) -> Cgroup {
        let written::SandboxCgroup { memory, cpu, pids } = written;
        Cgroup {
            memory: memory.given().map(|_| self.size(memory, 1 << 20, 1 << 20..=1 << 40) as u64),
            cpu: cpu.given().map(|_| self.percent(cpu, 100, 1..=100_000)),
            pids: pids.given().map(|_| self.count(pids, 1, 1..=4_194_304)),
        }
    }

    fn limits_over(&mut self, written: &written::SandboxLimits, limits: &mut Limits) {
        let mut bytes = |slot: &Slot<Size>, limit: &mut Option<u64>, least: usize| {
            if slot.given().is_some() {
                *limit = Some(self.size(slot, least, least..=1 << 40) as u64);
            }
        };
        bytes(&written.memory, &mut limits.memory, 1 << 20);
        bytes(&written.file_size, &mut limits.file_size, 0);
        let mut number = |slot: &Slot<u64>, limit: &mut Option<u64>, least: u32| {
            if slot.given().is_some() {
                *limit = Some(self.count(slot, least, least..=1 << 30).into());
            }
        };
        number(&written.open_files, &mut limits.open_files, 8);
        number(&written.processes, &mut limits.processes, 1);
        let time: &Slot<Span> = &written.cpu_time;
        if time.given().is_some() {
            limits.cpu_time = Some(self.timeout(time, Duration::from_secs(1)));
        }
    }
}

impl From<written::Profile> for Profile {
    fn from(written: written::Profile) -> Self {
        match written {
            written::Profile::None => Self::None,
            written::Profile::Default => Self::Default,
            written::Profile::Hardened => Self::Hardened,
        }
    }
}

impl From<written::SyscallClass> for SyscallClass {
    fn from(written: written::SyscallClass) -> Self {
        match written {
            written::SyscallClass::Debug => Self::Debug,
            written::SyscallClass::Mount => Self::Mount,
            written::SyscallClass::Kernel => Self::Kernel,
            written::SyscallClass::Namespace => Self::Namespace,
            written::SyscallClass::RawSocket => Self::RawSocket,
            written::SyscallClass::Keyring => Self::Keyring,
            written::SyscallClass::Clock => Self::Clock,
            written::SyscallClass::Admin => Self::Admin,
            written::SyscallClass::Exec => Self::Exec,
        }
    }
}
