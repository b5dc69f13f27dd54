//! The private directory of one start: for the plugin's socket and its temporary files, removed after it.
//!
//! A directory is locked by the host as long as it is in use, so that the next host can tell what a killed one has
//! left behind from what another running one uses.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{geteuid, mkdtemp};
use palisade_plugin_proto::env::MAX_SOCKET_PATH;
use tracing::{info, warn};

use super::removal;

/// What plugins may append: go-plugin's names are a slash, `plugin` and up to ten digits.
const SOCKET_NAME: usize = 20;

/// `p-` and mkdtemp's six characters.
const PREFIX: &str = "p-";
const TEMPLATE: &str = "p-XXXXXX";

/// Why a private directory could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateDirError {
    /// A socket in it could not be bound.
    #[error(
        "runtime directory {path:?} is {length} bytes long; with more than {limit}, paths of sockets in it exceed the \
         {MAX_SOCKET_PATH} bytes that the system allows; choose a shorter one"
    )]
    TooLong {
        /// The runtime directory.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The most that works.
        limit: usize,
    },
    /// The path is taken by something else.
    #[error("runtime directory {0:?} is not a directory (or a symbolic link to one)")]
    NotADirectory(PathBuf),
    /// Whoever owns it could replace what is in it.
    #[error("runtime directory {path:?} belongs to user {owner}, not to user {expected} or root; choose another one")]
    Owner {
        /// The runtime directory.
        path: PathBuf,
        /// Its owner's id.
        owner: u32,
        /// Our id.
        expected: u32,
    },
    /// Others could replace what is in it.
    #[error("runtime directory {path:?} can be written to by others (mode {mode:04o}); try: chmod 0700 {path:?}")]
    Writable {
        /// The runtime directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A call failed.
    #[error("{act} {path:?}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Removed when dropped.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    path: PathBuf,
    /// Held, not used.
    _lock: Flock<File>,
}

impl PrivateDir {
    /// Makes a fresh one of mode 0700.
    pub(crate) fn create(runtime_dir: &Path) -> Result<Self, PrivateDirError> {
        let runtime = check(runtime_dir)?;
        let _creating = await_lock(&runtime)?;
        let path = mkdtemp(&runtime.join(TEMPLATE))
            .map_err(|errno| failed("create a directory in", &runtime)(errno.into()))?;
        let lock = lock(&path, FlockArg::LockExclusiveNonblock).inspect_err(|_| {
            fs::remove_dir(&path).ok();
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// Gives it to another user, or lets a group in, as far as this process may.
    pub(crate) fn hand_over(&self, user: Option<u32>, group: Option<u32>, mode: u32) -> io::Result<()> {
        // Before it is somebody else's.
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))?;
        chown(&self.path, user, group)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        match removal::remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %self.path.display(), %error, "the private directory of a plugin could not be removed");
            }
            _ => {}
        }
    }
}

/// Makes the runtime directory where it is absent, checks it, and returns its real path.
pub fn check(runtime_dir: &Path) -> Result<PathBuf, PrivateDirError> {
    let io = |act| failed(act, runtime_dir);
    DirBuilder::new().recursive(true).mode(0o700).create(runtime_dir).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => PrivateDirError::NotADirectory(runtime_dir.to_owned()),
        _ => io("create runtime directory")(error),
    })?;
    let path = runtime_dir.canonicalize().map_err(io("resolve runtime directory"))?;
    let found = fs::symlink_metadata(&path).map_err(io("examine runtime directory"))?;
    let user = geteuid().as_raw();
    // Root's is as good: it can do anything anyway, and service managers make such directories.
    if found.uid() != user && found.uid() != 0 {
        return Err(PrivateDirError::Owner { path, owner: found.uid(), expected: user });
    }
    if found.mode() & 0o022 != 0 {
        return Err(PrivateDirError::Writable { path, mode: found.mode() & 0o7777 });
    }
    let length = path.as_os_str().len();
    let limit = MAX_SOCKET_PATH - SOCKET_NAME - 1 - TEMPLATE.len();
    if length > limit {
        return Err(PrivateDirError::TooLong { path, length, limit });
    }
    Ok(path)
}

/// Removes the directories that a killed host has left. Those in use are locked.
pub(crate) fn sweep(runtime_dir: &Path) -> Result<(), PrivateDirError> {
    let runtime = check(runtime_dir)?;
    // Nobody makes one meanwhile: between making and locking it looks like a leftover.
    let Ok(_alone) = lock(&runtime, FlockArg::LockExclusiveNonblock) else {
        // Somebody makes one just now, or sweeps. The next start looks again.
        return Ok(());
    };
    let entries = fs::read_dir(&runtime).map_err(failed("list", &runtime))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.len() == TEMPLATE.len() && name.to_string_lossy().starts_with(PREFIX);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if lock(&path, FlockArg::LockExclusiveNonblock).is_ok() {
            match removal::remove(&path) {
                Ok(()) => info!(path = %path.display(), "removed a directory that a killed host had left"),
                Err(error) => warn!(path = %path.display(), %error, "a leftover directory could not be removed"),
            }
        }
    }
    Ok(())
}

/// A sweep holds its lock for milliseconds, unless its process has been stopped in the middle of it.
fn await_lock(runtime: &Path) -> Result<Flock<File>, PrivateDirError> {
    for _ in 0..100 {
        if let Ok(lock) = lock(runtime, FlockArg::LockSharedNonblock) {
            return Ok(lock);
        }
        thread::sleep(Duration::from_millis(20));
    }
    lock(runtime, FlockArg::LockSharedNonblock)
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>, PrivateDirError> {
    let file = File::open(path).map_err(failed("open", path))?;
    Flock::lock(file, how).map_err(|(_, errno)| failed("lock", path)(errno.into()))
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateDirError {
    let path = path.to_owned();
    move |source| PrivateDirError::Io { act, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_fresh_directory_is_private_and_goes_with_its_owner() {
        let root = tempfile::tempdir().unwrap();
        let runtime = root.path().join("run/deep");
        let dir = PrivateDir::create(&runtime).unwrap();
        let path = dir.path().to_owned();
        assert_eq!(fs::metadata(&runtime).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        fs::create_dir_all(path.join("a/b")).unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_sweep_takes_leftovers_and_spares_what_is_in_use() {
        let root = tempfile::tempdir().unwrap();
        let live = PrivateDir::create(root.path()).unwrap();
        let leftover = root.path().join("p-abcdef");
        let foreign = root.path().join("admin");
        fs::create_dir_all(leftover.join("x")).unwrap();
        fs::create_dir(&foreign).unwrap();
        symlink(&foreign, root.path().join("p-ghijkl")).unwrap();
        sweep(root.path()).unwrap();
        assert!(live.path().exists() && foreign.exists() && !leftover.exists());
    }

    #[test]
    fn unsafe_places_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let long = root.path().join("x".repeat(90));
        assert!(matches!(check(&long), Err(PrivateDirError::TooLong { .. })));
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(check(&open), Err(PrivateDirError::Writable { mode: 0o777, .. })));
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(check(&file), Err(PrivateDirError::NotADirectory(_) | PrivateDirError::Io { .. })));
    }
}
