//! How much memory there is for this process: of the machine, of its control groups, of its own limits.

use std::fs;
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Where the kernel shows control groups.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Bytes that this process may use at most: the least of what the machine has, what its control groups have, and its own
/// limits. None: nothing of it is known.
pub(super) fn available() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let machine = total(&read("/proc/meminfo"));
    let groups = of_groups(&read("/proc/self/cgroup"), Path::new(CONTROL_GROUPS));
    let own = [Resource::RLIMIT_AS, Resource::RLIMIT_DATA].into_iter().filter_map(|resource| {
        let (soft, _) = getrlimit(resource).ok()?;
        (soft != RLIM_INFINITY).then_some(soft)
    });
    machine.into_iter().chain(groups).chain(own).min()
}

/// `MemTotal` of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit of the control groups that `/proc/self/cgroup` names and of those above them, in either version
/// (cgroups(7)). In a container the names are often the host's, while its own group is shown at the top.
fn of_groups(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = root.join(path.trim_start_matches('/'));
        let above = group.ancestors().take_while(|group| group.starts_with(&root));
        // `max`, for none, is no number; version 1 has a very large one instead.
        above.filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok()).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_machine_says_what_it_has() {
        assert_eq!(total("MemTotal:       24683920 kB\nMemFree: 1 kB\n"), Some(24_683_920 << 10));
        assert_eq!((total("MemFree: 1 kB\n"), total("MemTotal: many\n"), total("")), (None, None, None));
        assert!(available().unwrap() > 32 << 20);
    }

    #[test]
    fn the_least_limit_on_the_way_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| of_groups(groups, root.path());
        write("a/memory.max", "300\n");
        write("a/b/memory.max", "max\n");
        write("a/b/c/memory.max", "400\n");
        assert_eq!((limit("0::/a/b/c\n"), limit("0::/a/b\n"), limit("0::/\n")), (Some(300), Some(300), None));
        // As in a container: the group has another name here.
        write("memory.max", "200\n");
        assert_eq!(limit("0::/of/the/host\n"), Some(200));
        write("memory/x/memory.limit_in_bytes", "100\n");
        assert_eq!(
            (limit("4:memory:/x\n"), limit("4:cpu,memory:/x\n"), limit("4:cpu:/x\n")),
            (Some(100), Some(100), None)
        );
        assert_eq!(limit("4:memory:/x\n0::/a\n"), Some(100));
        assert_eq!((limit("nonsense"), limit("")), (None, None));
    }
}
