//! Whether a socket's place is safe from people who have nothing to do with it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// The directory on the way to `socket` in which everybody may put something else in its place, if there is one. The
/// socket's own may not be writable for everybody even if it is sticky: whoever comes first may listen there while the
/// plugin does not.
///
/// # Errors
///
/// Where a directory is not there or can't be looked at.
pub(crate) fn open_to_everybody(socket: &Path) -> io::Result<Option<PathBuf>> {
    let Some(parent) = socket.parent() else { return Ok(None) };
    // Symbolic links are on the way as well; where they lead counts, and who may replace them.
    let real = parent.canonicalize()?;
    for (own, place) in places(parent).chain(places(&real)) {
        let mode = fs::metadata(place)?.permissions().mode();
        if mode & OTHERS != 0 && (own || mode & STICKY == 0) {
            return Ok(Some(place.to_owned()));
        }
    }
    Ok(None)
}

/// A directory and those above it; the first is the socket's own.
fn places(directory: &Path) -> impl Iterator<Item = (bool, &Path)> {
    let named = directory.ancestors().filter(|place| !place.as_os_str().is_empty());
    named.enumerate().map(|(index, place)| (index == 0, place))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_part_that_is_open_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let mode = |dir: &Path, mode| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        let (outer, inner) = (root.join("outer"), root.join("outer/inner"));
        fs::create_dir_all(&inner).unwrap();
        symlink(&inner, root.join("alias")).unwrap();
        let open = |socket: &Path| open_to_everybody(socket).unwrap();
        let sockets = [inner.join("s"), root.join("alias/s")];
        for socket in &sockets {
            mode(&outer, 0o755);
            mode(&inner, 0o775);
            assert_eq!(open(socket), None);
            mode(&outer, 0o777);
            assert_eq!(open(socket), Some(outer.clone()));
            mode(&outer, 0o1777);
            assert_eq!(open(socket), None, "nobody may replace what others have there");
            mode(&inner, 0o1777);
            assert_eq!(open(socket).map(|place| place.canonicalize().unwrap()), Some(inner.clone()));
        }
        assert!(open_to_everybody(&root.join("absent/s")).is_err());
    }
}
