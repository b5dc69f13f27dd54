//! One proxy for each runtime directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const FILE: &str = "palisade.lock";

/// Held for as long as the proxy runs. The kernel gives it up however the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, not used")] Flock<File>);

/// Why the runtime directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "another palisade{} uses the runtime directory {directory:?}; stop it, or give this one its own `runtime_dir`",
        holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The directory.
        directory: PathBuf,
        /// The other's process, as it wrote itself.
        holder: Option<u32>,
    },
    /// The lock file can't be used.
    #[error("the lock {path:?} can't be taken")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Lock {
    pub(super) fn take(runtime_dir: &Path) -> Result<Self, LockError> {
        let path = runtime_dir.join(FILE);
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                lock.set_len(0).and_then(|()| write!(&*lock, "{}", std::process::id())).map_err(failed)?;
                Ok(Self(lock))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let holder = Read::take(&mut file, 20).read_to_string(&mut text).ok().and_then(|_| text.parse().ok());
                Err(LockError::Held { directory: runtime_dir.to_owned(), holder })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}
