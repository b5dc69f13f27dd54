//! One proxy for each runtime directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const FILE: &str = "palisade.lock";

/// Held for as long as the proxy runs. The kernel gives it up however the process ends.
#[derive(Debug)]
pub(super) struct Lock(File);

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
    /// The lock that another process holds, shared with this one: whichever ends last gives it up.
    pub(super) fn shared(lock: OwnedFd) -> Self {
        Self(File::from(lock))
    }

    /// Names this process as the holder.
    pub(super) fn claim(&self) -> io::Result<()> {
        self.0.set_len(0)?;
        // From the beginning, wherever an earlier holder's writing has left the file.
        self.0.write_all_at(std::process::id().to_string().as_bytes(), 0)
    }

    /// To be shared with another process.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn take(runtime_dir: &Path) -> Result<Self, LockError> {
        let path = runtime_dir.join(FILE);
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let mut file = options.open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let lock = Self(file);
                lock.claim().map_err(failed)?;
                Ok(lock)
            }
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = Read::take(&mut file, 20).read_to_string(&mut text).ok().and_then(|_| text.parse().ok());
                Err(LockError::Held { directory: runtime_dir.to_owned(), holder })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }
}
