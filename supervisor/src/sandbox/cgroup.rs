//! A control group for each start of a plugin: what its processes may use all together, and a hold on them that they
//! can't leave, whatever session they make and whatever environment they clear.
//!
//! Groups (version 2, cgroups(7)) are made inside the host's own, which has to be delegated to it: the host may write
//! there, and nobody else's processes are there. A group that gives controllers to those below it must not have
//! processes itself, so the host steps aside into one more group below before the first plugin's.
//!
//! A group is locked by the host as long as it is in use, so that the next host can tell what a killed one has left
//! behind from what another running one uses.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::OnMissing;
use super::helper::{Missing, Trouble};
use crate::trust::peer::descends;

/// Limits of all of a plugin's processes together. Unset: those of the host's own group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Memory in bytes, with what the kernel holds for them and with files in memory; none of it is swapped out. Where
    /// it is used up, all of them are killed.
    pub memory: Option<u64>,
    /// Percent of one processor; 200 are two.
    pub cpu: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// Where the host's own processes are, when plugins have groups beside them.
const HOST: &str = "palisade-host";
/// What groups of plugins begin with.
const PREFIX: &str = "palisade-plugin-";

/// In microseconds, cpu.max: the kernel's default.
const PERIOD: u64 = 100_000;
/// The kernel's least share of a period.
const LEAST_QUOTA: u64 = 1_000;

/// How long processes that were killed may take to go.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// What limits a group, and what it uses; as files of it are called.
const FACTS: &[&str] = &[
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "memory.current",
    "cpu.max",
    "pids.max",
    "pids.current",
    "cgroup.procs",
];

/// A plugin's group. Dropping it kills what is in there, waits until that has gone, and removes it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    /// Held, not used.
    _lock: Flock<File>,
}

impl Group {
    /// Makes one with what limits can be had, and tells which can't. The text of an error is for people.
    pub(crate) fn create(
        plugin: &str,
        limits: &Cgroup,
        on_missing: OnMissing,
    ) -> Result<(Option<Self>, Vec<String>), String> {
        let mut missing = Missing::new(on_missing);
        let group = Self::make(plugin, limits, &mut missing).map_err(Trouble::into_text)?;
        Ok((group, missing.into_parts()))
    }

    fn make(plugin: &str, limits: &Cgroup, missing: &mut Missing) -> Result<Option<Self>, Trouble> {
        let Some(base) = missing.tolerate(base())? else { return Ok(None) };
        let mut settings = Vec::new();
        for (controller, wanted) in limits.settings() {
            if wanted.is_empty() {
                continue;
            }
            if missing.tolerate(give(&base, controller))?.is_some() {
                settings.extend(wanted);
            }
        }
        let Some(group) = missing.tolerate(Self::empty(&base, plugin))? else { return Ok(None) };
        for (file, value) in settings {
            let path = group.path.join(file);
            match fs::write(&path, value) {
                // A kernel without swap.
                Err(error) if error.kind() == io::ErrorKind::NotFound && file == "memory.swap.max" => {}
                done => done.map_err(|error| Trouble::failed(format!("write {}", path.display()), error))?,
            }
        }
        Ok(Some(group))
    }

    fn empty(base: &Path, plugin: &str) -> Result<Self, Trouble> {
        loop {
            let path = base.join(format!("{PREFIX}{plugin}-{:08x}", fastrand::u32(..)));
            DirBuilder::new().mode(0o700).create(&path).map_err(|error| refused(base, &error))?;
            // Another host that starts just now may take it for a leftover, and remove it.
            let Ok(lock) = lock(&path) else { continue };
            if !path.join("cgroup.procs").exists() {
                continue;
            }
            let group = Self { path, _lock: lock };
            let failed = |error| Trouble::failed(format!("set up {}", group.path.display()), error);
            // Programs may read their own limits, by the paths of the files. To list it, and so to lock it, is ours.
            fs::set_permissions(&group.path, Permissions::from_mode(0o711)).map_err(failed)?;
            fs::write(group.path.join("cgroup.max.descendants"), "0").map_err(failed)?;
            return Ok(group);
        }
    }

    /// Who writes `0` there is in the group.
    pub(crate) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Sends SIGKILL to all that is in there, and to what that forks meanwhile. Linux 5.14.
    pub(crate) fn kill(&self) {
        kill(&self.path);
    }

    /// Whether the kernel has killed something in there because the limit of memory was reached.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path) {
            warn!(path = %self.path.display(), %error, "the control group of a plugin could not be removed");
        }
    }
}

impl Cgroup {
    /// By controller, what is written to which file of a group.
    fn settings(&self) -> [(&'static str, Vec<(&'static str, String)>); 3] {
        let memory = self.memory.map(|bytes| {
            let swap = ("memory.swap.max", "0".to_owned());
            vec![("memory.max", bytes.to_string()), swap, ("memory.oom.group", "1".to_owned())]
        });
        let cpu = self.cpu.map(|percent| {
            let quota = (u64::from(percent) * PERIOD / 100).max(LEAST_QUOTA);
            vec![("cpu.max", format!("{quota} {PERIOD}"))]
        });
        let pids = self.pids.map(|count| vec![("pids.max", count.to_string())]);
        [("memory", memory), ("cpu", cpu), ("pids", pids)].map(|(name, files)| (name, files.unwrap_or_default()))
    }
}

/// What the kernel has of the group of a process: its limits and what it uses. Empty where it is the host's own.
pub(crate) fn facts(pid: i32) -> BTreeMap<String, String> {
    let group = |pid: &str| group_of(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?).map(PathBuf::from);
    let Some(path) = group(&pid.to_string()).filter(|its| Some(its) != group("self").as_ref()) else {
        return BTreeMap::new();
    };
    let Some(path) = shown_at(&path) else { return BTreeMap::new() };
    let read = |name: &&str| {
        let text = fs::read_to_string(path.join(name)).ok()?;
        // Of processes, their number: who they are changes.
        let value = if *name == "cgroup.procs" { text.lines().count().to_string() } else { text.trim().to_owned() };
        Some(((*name).to_owned(), value))
    };
    FACTS.iter().filter_map(read).collect()
}

/// Opens what would let this process choose its own group. It stays where it is.
pub(super) fn open_own() -> io::Result<()> {
    let own = own().and_then(|own| shown_at(&own)).ok_or(io::ErrorKind::NotFound)?;
    OpenOptions::new().write(true).open(own.join("cgroup.procs")).map(drop)
}

/// Removes the groups that a killed host has left, and kills who is in there. Those in use are locked.
pub(crate) fn sweep() {
    let Ok(base) = base() else { return };
    let Ok(entries) = fs::read_dir(&base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.as_bytes().starts_with(PREFIX.as_bytes());
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let Ok(_lock) = lock(&path) else { continue };
        match clear(&path) {
            Ok(()) => info!(path = %path.display(), "removed a control group that a killed host had left"),
            Err(error) => warn!(path = %path.display(), %error, "a leftover control group could not be removed"),
        }
    }
}

fn kill(group: &Path) {
    // Where there is no such file, processes are found by their session and by their mark alone.
    fs::write(group.join("cgroup.kill"), "1").ok();
}

fn clear(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        kill(group);
        match fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline => {
                thread::sleep(PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// The group that plugins' are made in: the host's own, before it has stepped aside.
fn base() -> Result<PathBuf, Trouble> {
    let missing = |needs: &str| Trouble::missing("`cgroup`".to_owned(), needs);
    let own = own().ok_or_else(|| missing("control groups of version 2"))?;
    let own = if own.ends_with(HOST) { own.parent().unwrap_or(&own).to_owned() } else { own };
    shown_at(&own).ok_or_else(|| missing("the host's control group to be mounted (cgroup2)"))
}

fn own() -> Option<PathBuf> {
    group_of(&fs::read_to_string("/proc/self/cgroup").ok()?).map(PathBuf::from)
}

/// `/proc/PID/cgroup` has a line for each hierarchy; that of version 2 has the number 0 and no controllers.
fn group_of(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn shown_at(group: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().filter_map(mount).find_map(|(root, point)| Some(point.join(group.strip_prefix(root).ok()?)))
}

/// Root and place of a mounted hierarchy of version 2; proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let paths = (unescaped(fields.next()?), unescaped(fields.next()?));
    after.starts_with("cgroup2 ").then_some(paths)
}

/// Blanks and backslashes are written as `\` and three octal digits there.
fn unescaped(field: &str) -> PathBuf {
    let mut parts = field.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_at_checked(3).and_then(|(code, rest)| Some((u8::from_str_radix(code, 8).ok()?, rest))) {
            Some((byte, rest)) => path.extend([char::from(byte)].into_iter().chain(rest.chars())),
            None => path.extend(['\\'].into_iter().chain(part.chars())),
        }
    }
    path.into()
}

/// Lets groups in this one have a controller.
fn give(base: &Path, controller: &str) -> Result<(), Trouble> {
    let words = |file: &str| fs::read_to_string(base.join(file)).map_err(|error| refused(base, &error));
    let has = |words: &str| words.split_ascii_whitespace().any(|word| word == controller);
    if has(&words("cgroup.subtree_control")?) {
        return Ok(());
    }
    if !has(&words("cgroup.controllers")?) {
        let needs = format!("the controller `{controller}` in the control group {}", base.display());
        return Err(Trouble::missing(format!("`cgroup.{controller}`"), &needs));
    }
    // Only the first of all groups has no type, and may have processes along with groups below it. In others the kernel
    // forbids that for some controllers, and for the rest makes groups for threads, which are of no use here.
    if base.join("cgroup.type").exists() {
        step_aside(base)?;
    }
    fs::write(base.join("cgroup.subtree_control"), format!("+{controller}")).map_err(|error| refused(base, &error))
}

/// Moves the host, with its guard and with plugins that have no groups, into a group of their own below this one.
fn step_aside(base: &Path) -> Result<(), Trouble> {
    let aside = base.join(HOST);
    match DirBuilder::new().mode(0o755).create(&aside) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(|error| refused(base, &error))?,
    }
    let host = i32::try_from(std::process::id()).unwrap_or_default();
    let entrance = aside.join("cgroup.procs");
    loop {
        let processes = fs::read_to_string(base.join("cgroup.procs")).map_err(|error| refused(base, &error))?;
        let pids: Vec<i32> = processes.lines().filter_map(|line| line.parse().ok()).collect();
        if let Some(stranger) = pids.iter().find(|pid| !descends(**pid, host)) {
            // One that has just ended is none.
            if fs::read_to_string(base.join("cgroup.procs"))
                .is_ok_and(|now| !now.lines().any(|line| line == stranger.to_string()))
            {
                continue;
            }
            let needs = format!("a control group without other processes: {stranger} is in {} too", base.display());
            return Err(Trouble::missing("`cgroup`".to_owned(), &needs));
        }
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            match fs::write(&entrance, pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                moved => moved.map_err(|error| refused(&aside, &error))?,
            }
        }
    }
}

/// Whatever can't be done in the host's own group has not been delegated.
fn refused(group: &Path, error: &io::Error) -> Trouble {
    let needs = format!("a control group that is delegated to the host ({}: {error})", group.display());
    Trouble::missing("`cgroup`".to_owned(), &needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_all_mounts() {
        let line = "41 31 0:38 /a /sys/fs/cgroup/uni\\040fied rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mount(line), Some(("/a".into(), "/sys/fs/cgroup/uni fied".into())));
        assert_eq!(mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
        assert_eq!(unescaped("a\\134b\\9"), Path::new("a\\b\\9"));
        assert_eq!(group_of("4:memory:/x\n0::/system.slice/a:b\n"), Some("/system.slice/a:b"));
        assert_eq!(group_of("4:memory:/x\n"), None);
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let limits = Cgroup { memory: Some(1 << 20), cpu: Some(50), pids: Some(7) };
        let [(_, memory), (_, cpu), (_, pids)] = limits.settings();
        assert_eq!(memory[0], ("memory.max", "1048576".to_owned()));
        assert_eq!(memory.len(), 3);
        assert_eq!(cpu, [("cpu.max", "50000 100000".to_owned())]);
        assert_eq!(pids, [("pids.max", "7".to_owned())]);
        assert!(Cgroup::default().settings().iter().all(|(_, files)| files.is_empty()));
    }
}
