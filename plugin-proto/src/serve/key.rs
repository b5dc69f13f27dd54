//! The file of a private key, and who else may use it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Error;

/// What others than the owner and the group may not do with a key: read it, write to it.
const OTHERS: u32 = 0o006;

/// Reads a private key from a file, as it is.
///
/// # Errors
///
/// When the file can't be read; when everyone on the host can read it or write to it, unless `allow_open`.
pub fn read_private_key(path: impl AsRef<Path>, allow_open: bool) -> Result<Vec<u8>, Error> {
    let path = path.as_ref();
    let told = |error| format!("can't read {}: {error}", path.display());
    let mut file = File::open(path).map_err(told)?;
    // Of the file that is open, wherever links have led to: it can't be replaced by another one in between.
    let mode = file.metadata().map_err(told)?.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 && !allow_open {
        let path = path.display();
        let problem = format!("the private key {path} is open to everyone on this host (mode {mode:04o})");
        return Err(format!("{problem}; try: chmod o-rwx {path}").into());
    }
    let mut pem = Vec::new();
    file.read_to_end(&mut pem).map_err(told)?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_key_is_for_its_owner_and_its_group() {
        let dir = tempfile::tempdir().unwrap();
        // As Kubernetes lays a volume out: links count as what they lead to.
        let (held, key) = (dir.path().join("..2026_11_21"), dir.path().join("key.pem"));
        fs::create_dir(&held).unwrap();
        fs::write(held.join("key.pem"), "a key").unwrap();
        symlink("..2026_11_21", dir.path().join("..data")).unwrap();
        symlink("..data/key.pem", &key).unwrap();
        let mode = |mode| fs::set_permissions(held.join("key.pem"), Permissions::from_mode(mode)).unwrap();
        for good in [0o400, 0o600, 0o440, 0o640, 0o660] {
            mode(good);
            assert_eq!(read_private_key(&key, false).unwrap(), b"a key", "{good:o}");
        }
        for open in [0o604, 0o602, 0o644, 0o666, 0o777] {
            mode(open);
            let error = read_private_key(&key, false).unwrap_err().to_string();
            assert!(error.contains(&format!("(mode {open:04o})")), "{error}");
            assert!(error.ends_with(&format!("chmod o-rwx {}", key.display())), "{error}");
            assert_eq!(read_private_key(&key, true).unwrap(), b"a key", "{open:o}");
        }
        assert!(read_private_key(dir.path().join("none"), true).is_err());
    }
}
