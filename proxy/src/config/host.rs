//! What a configuration takes from the machine and the environment around it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The surroundings a configuration is read in.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Where programs without a `/` are looked up.
    pub(super) path: Vec<PathBuf>,
    /// The default of `runtime_dir`. Absolute.
    pub(super) runtime_dir: PathBuf,
    /// For how many threads at a time there are cores.
    pub(super) cores: usize,
}

impl Host {
    /// This process's.
    pub(super) fn here() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        Self {
            path: env::split_paths(&path).filter(|dir| dir.is_absolute()).collect(),
            runtime_dir: runtime_dir(|name| env::var_os(name), nix::unistd::geteuid().as_raw(), &env::temp_dir()),
            // By affinity and cgroup.
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

fn runtime_dir(variable: impl Fn(&str) -> Option<OsString>, uid: u32, temporary: &Path) -> PathBuf {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(dir) = variable("PALISADE_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        return std::path::absolute(&dir).unwrap_or_else(|_| dir.into());
    }
    // systemd separates several with colons.
    let systemd = variable("RUNTIME_DIRECTORY").and_then(|dirs| env::split_paths(&dirs).next());
    if let Some(dir) = systemd.filter(|dir| dir.is_absolute()) {
        return dir;
    }
    if uid == 0 {
        return PathBuf::from("/run/palisade");
    }
    match absolute("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("palisade"),
        None => temporary.join(format!("palisade-{uid}")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::runtime_dir;

    #[test]
    fn the_runtime_directory_is_the_first_that_is_given() {
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(Variables, u32, &str); 7] = [
            (&[], 0, "/run/palisade"),
            (&[], 1000, "/tmp/palisade-1000"),
            (&[("XDG_RUNTIME_DIR", "/run/user/1000")], 1000, "/run/user/1000/palisade"),
            (&[("XDG_RUNTIME_DIR", "relative")], 1000, "/tmp/palisade-1000"),
            (&[("RUNTIME_DIRECTORY", "/run/a:/run/b")], 0, "/run/a"),
            (&[("PALISADE_RUNTIME_DIR", "/x"), ("RUNTIME_DIRECTORY", "/run/a")], 0, "/x"),
            (&[("PALISADE_RUNTIME_DIR", "")], 0, "/run/palisade"),
        ];
        for (variables, uid, expected) in cases {
            let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            assert_eq!(runtime_dir(variable, uid, Path::new("/tmp")), Path::new(expected), "{variables:?}");
        }
    }
}
