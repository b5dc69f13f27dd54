//! Removes a directory that a plugin has filled, whatever is in it.
//!
//! The standard library's way goes down by recursion, with a descriptor for each level. A plugin that puts directories
//! into each other often enough would take the host's stack with it, or all of its descriptors. So here the depth makes
//! no difference: what is found below the first level is moved up to it, and nothing is followed.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use nix::{NixPath, Result};

/// A process that has escaped may fill the directory again all the time.
const LIMIT: Duration = Duration::from_secs(60);

/// Removes a directory with all that is in it. Symbolic links are removed, and lead nowhere.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removal = Removal { top: open(AT_FDCWD, path)?, deadline: Instant::now() + LIMIT };
    removal.empty()?;
    Ok(unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir)?)
}

struct Removal {
    top: OwnedFd,
    deadline: Instant,
}

/// What has come of one look at a directory.
#[derive(Default)]
struct Pass {
    found: usize,
    /// Removed or moved up.
    done: usize,
    refused: Option<Errno>,
}

impl Removal {
    fn empty(&self) -> Result<()> {
        loop {
            let pass = self.pass(&self.top, |name| self.flatten(name))?;
            match pass.refused {
                _ if pass.found == 0 => return Ok(()),
                // What could not be removed may be possible once others have gone; if none has, it is not.
                Some(errno) if pass.done == 0 => return Err(errno),
                _ => {}
            }
        }
    }

    /// Empties a directory of the first level, and removes it.
    fn flatten(&self, name: &CStr) -> Result<()> {
        let dir = open(&self.top, name)?;
        self.pass(&dir, |name| self.move_up(&dir, name))?;
        unlinkat(&self.top, name, UnlinkatFlags::RemoveDir)
    }

    fn move_up(&self, dir: &OwnedFd, name: &CStr) -> Result<()> {
        let up = || renameat(dir, name, &self.top, format!("up-{:016x}", fastrand::u64(..)).as_str());
        up().or_else(|errno| match errno {
            // To be moved, a directory has to be writable itself.
            Errno::EACCES => open_up(dir, name).and_then(|()| up()),
            errno => Err(errno),
        })
    }

    /// Removes files and empty directories; `other` deals with what is in the other ones.
    fn pass(&self, dir: &OwnedFd, other: impl Fn(&CStr) -> Result<()>) -> Result<Pass> {
        let mut pass = Pass::default();
        // A descriptor of its own, since it is closed with the listing.
        for entry in Dir::openat(dir, ".", listing(), Mode::empty())?.iter() {
            if Instant::now() > self.deadline {
                return Err(Errno::ETIMEDOUT);
            }
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            pass.found += 1;
            let removed = match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => unlinkat(dir, name, UnlinkatFlags::RemoveDir),
                removed => removed,
            };
            let removed = match removed {
                Err(Errno::ENOTEMPTY) => other(name),
                removed => removed,
            };
            match removed {
                Ok(()) | Err(Errno::ENOENT) => pass.done += 1,
                Err(Errno::ETIMEDOUT) => return Err(Errno::ETIMEDOUT),
                Err(errno) => pass.refused = Some(errno),
            }
        }
        Ok(pass)
    }
}

fn listing() -> OFlag {
    OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY
}

/// Opens a directory, whatever its owner has made of its mode.
fn open<P: NixPath + ?Sized>(dir: impl AsFd, name: &P) -> Result<OwnedFd> {
    let dir = dir.as_fd();
    let open = || openat(dir, name, listing(), Mode::empty());
    let opened = open().or_else(|errno| match errno {
        Errno::EACCES => open_up(dir, name).and_then(|()| open()),
        errno => Err(errno),
    })?;
    // Where that is not ours to do, it may not be needed either.
    fchmod(&opened, Mode::S_IRWXU).ok();
    Ok(opened)
}

fn open_up<P: NixPath + ?Sized>(dir: impl AsFd, name: &P) -> Result<()> {
    fchmodat(dir, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::mkdirat;

    use super::*;

    /// Directories in each other, deeper than any path can say.
    fn dig(path: &Path, depth: usize) {
        let mut dir = OwnedFd::from(File::open(path).unwrap());
        for _ in 0..depth {
            mkdirat(&dir, "d", Mode::S_IRWXU).unwrap();
            let below = openat(&dir, "d", listing(), Mode::empty()).unwrap();
            drop(openat(&dir, "f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap());
            dir = below;
        }
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("p");
        fs::create_dir(&path).unwrap();
        dig(&path, 5_000);
        // Enough for some hundred levels, were each one to need some.
        std::thread::Builder::new()
            .stack_size(128 * 1024)
            .spawn(move || remove(&path).unwrap())
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_outside_is_touched_and_modes_keep_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (path, outside) = (root.path().join("p"), root.path().join("outside"));
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, path.join("link")).unwrap();
        symlink(&outside, path.join("a/b/link")).unwrap();
        fs::write(path.join("a/b/c/file"), "").unwrap();
        for dir in ["a/b/c", "a/b", "a", ""] {
            fs::set_permissions(path.join(dir), Permissions::from_mode(0o000)).unwrap();
        }
        remove(&path).unwrap();
        assert!(!path.exists() && outside.join("kept").exists());
        assert_eq!(fs::metadata(&outside).unwrap().permissions().mode() & 0o700, 0o700);
        symlink(&outside, &path).unwrap();
        assert!(remove(&path).is_err());
        assert!(outside.join("kept").exists());
    }
}
