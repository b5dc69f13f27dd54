//! What a running process may do, as the kernel has it now. Nothing here is taken from a configuration.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::sandbox::cgroup_facts;
use crate::trust::checksum::Checksum;

/// Facts about one process, from `/proc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The process.
    pub pid: i32,
    /// Real, effective, saved and file system user id.
    pub uids: Vec<u32>,
    /// The same of the group.
    pub gids: Vec<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Whether exec can give it nothing.
    pub no_new_privs: bool,
    /// 0: none, 1: strict, 2: filters.
    pub seccomp_mode: u32,
    /// How many filters judge its calls; `None` before Linux 5.9.
    pub seccomp_filters: Option<u32>,
    /// By set: `effective`, `permitted`, `inheritable`, `bounding`, `ambient`.
    pub capabilities: BTreeMap<&'static str, Vec<String>>,
    /// The kinds of namespaces that it does not share with the host.
    pub own_namespaces: Vec<String>,
    /// Its control groups, a line for each hierarchy.
    pub cgroups: Vec<String>,
    /// Limits of its control group and what it uses, by the names of the group's files. Empty where that is the host's.
    pub cgroup: BTreeMap<String, String>,
    /// Soft limits by their names in `/proc/PID/limits`, as they are written there.
    pub limits: BTreeMap<String, String>,
    /// Whether its memory may be dumped and others of its user may look into it. `None` for root's, of which it does
    /// not show.
    pub dumpable: Option<bool>,
    /// In octal.
    pub umask: Option<String>,
    /// What its descriptors are, by number.
    pub descriptors: BTreeMap<u32, String>,
    /// The program.
    pub program: PathBuf,
    /// Of the program as it runs, whatever stands at its path now.
    pub program_checksum: String,
    /// Processes of its session, itself included.
    pub processes: Vec<i32>,
}

impl Facts {
    /// Looks at a plugin's process. Reads its whole program, so it blocks.
    ///
    /// # Errors
    ///
    /// Where it has gone, or may not be looked into.
    pub fn of(pid: i32) -> io::Result<Self> {
        let place = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(place.join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let numbers = |name: &str| -> Vec<u32> {
            let words = field(name).unwrap_or_default().split_ascii_whitespace();
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let number = |name: &str| numbers(name).first().copied();
        let sets = [
            ("effective", "CapEff"),
            ("permitted", "CapPrm"),
            ("inheritable", "CapInh"),
            ("bounding", "CapBnd"),
            ("ambient", "CapAmb"),
        ];
        let uids = numbers("Uid");
        let owner = fs::metadata(place.join("environ"))?.uid();
        let effective = uids.get(1).copied();
        Ok(Self {
            pid,
            gids: numbers("Gid"),
            groups: numbers("Groups"),
            no_new_privs: number("NoNewPrivs") == Some(1),
            seccomp_mode: number("Seccomp").unwrap_or_default(),
            seccomp_filters: number("Seccomp_filters"),
            capabilities: sets.map(|(name, key)| (name, capabilities(field(key).unwrap_or_default()))).into(),
            own_namespaces: own_namespaces(&place)?,
            cgroups: fs::read_to_string(place.join("cgroup"))?.lines().map(str::to_owned).collect(),
            cgroup: cgroup_facts(pid),
            limits: limits(&fs::read_to_string(place.join("limits"))?),
            // Files of one that is not belong to root.
            dumpable: effective.filter(|uid| *uid != 0).map(|uid| uid == owner),
            umask: field("Umask").map(str::to_owned),
            descriptors: descriptors(&place)?,
            program: fs::read_link(place.join("exe"))?,
            program_checksum: Checksum::of(&place.join("exe"))?.to_string(),
            processes: session(pid)?,
            uids,
        })
    }
}

fn capabilities(mask: &str) -> Vec<String> {
    let mask = u64::from_str_radix(mask, 16).unwrap_or_default();
    let mut names: Vec<_> = caps::all()
        .into_iter()
        .filter(|capability| mask & capability.bitmask() != 0)
        .map(|it| it.to_string())
        .collect();
    names.sort();
    names
}

fn own_namespaces(place: &Path) -> io::Result<Vec<String>> {
    let mut own = Vec::new();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        let of = |place: &Path| fs::read_link(place.join("ns").join(kind));
        // Kernels can be built without one of them.
        let Ok(ours) = of(Path::new("/proc/self")) else { continue };
        if of(place)? != ours {
            own.push(kind.to_owned());
        }
    }
    Ok(own)
}

/// Names have blanks, columns are 26 wide.
fn limits(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, values) = line.split_at_checked(26)?;
        Some((name.trim().to_owned(), values.split_ascii_whitespace().next()?.to_owned()))
    };
    text.lines().skip(1).filter_map(line).collect()
}

fn descriptors(place: &Path) -> io::Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(place.join("fd"))?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(target) = fs::read_link(entry.path()) {
            found.insert(number, target.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

fn session(leader: i32) -> io::Result<Vec<i32>> {
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut members: Vec<i32> = pids.filter(|pid| crate::trust::peer::session(*pid) == Some(leader)).collect();
    members.sort_unstable();
    Ok(members)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use nix::unistd::{getegid, geteuid};

    use super::*;

    #[test]
    fn this_process_is_as_it_knows_itself() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let facts = Facts::of(pid).unwrap();
        assert_eq!((facts.uids[1], facts.gids[1]), (geteuid().as_raw(), getegid().as_raw()));
        assert_eq!(facts.own_namespaces, Vec::<String>::new());
        assert_eq!(facts.program, std::env::current_exe().unwrap());
        assert_eq!(facts.program_checksum, Checksum::of(&facts.program).unwrap().to_string());
        assert!(facts.descriptors.contains_key(&1), "{facts:?}");
        assert_eq!((facts.seccomp_mode, facts.capabilities.len()), (0, 5));
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(facts.limits["Max open files"], soft.to_string());
        assert!(Facts::of(i32::MAX).is_err());
    }

    #[test]
    fn capabilities_have_their_names() {
        assert_eq!(capabilities("0000000000000400"), ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(capabilities("0000000000000000"), Vec::<String>::new());
        assert_eq!(capabilities("ffffffffffffffff").len(), caps::all().len());
    }
}
