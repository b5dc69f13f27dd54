//! The file's bytes, within bounds, from a file that only its owner can have written.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::problem::{Place, Problem, Problems};
use super::tree::MAX_BYTES;

/// The text of the file at `path`.
pub(super) fn read(path: &Path) -> Result<String, Problems> {
    let whole = |problem: Problem| Problems::new(path, "", vec![problem]);
    let unread = |error: io::Error| {
        let problem = Problem::new(Place::default(), format!("can't read the file: {}", reason(&error)));
        whole(match error.kind() {
            io::ErrorKind::NotFound => problem.help("check the path; relative ones start in the working directory"),
            _ => problem,
        })
    };
    // Opening one waits for whoever writes to it. What a shell hands over as /dev/fd/N has no such name.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if std::fs::symlink_metadata(real).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return Err(whole(Problem::new(
            Place::default(),
            "can't read the file: it is a FIFO, which is not waited for",
        )));
    }
    let file = File::open(path).map_err(unread)?;
    let metadata = file.metadata().map_err(unread)?;
    if let Some(problem) = writable_by_others(path, &metadata) {
        return Err(whole(problem));
    }
    // One byte more than is taken tells a file that is too large, whatever its metadata say.
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() > MAX_BYTES {
        let message = format!("the file is larger than {MAX_BYTES} bytes");
        return Err(whole(Problem::new(Place::default(), message)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.into_bytes();
        let before = String::from_utf8_lossy(&bytes[..valid]);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let place = Place { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 };
        let problem = Problem::new(place, "the file is not UTF-8 from here on");
        Problems::new(path, &String::from_utf8_lossy(&bytes), vec![problem])
    })
}

/// The file names programs that run with the proxy's rights, so whoever may write it has these rights.
fn writable_by_others(path: &Path, metadata: &Metadata) -> Option<Problem> {
    let everyone = metadata.mode() & 0o002 != 0;
    let group = metadata.mode() & 0o020 != 0 && metadata.gid() != 0 && nix::unistd::geteuid().is_root();
    let (whose, mode) = match (everyone, group) {
        _ if !metadata.is_file() => return None,
        (true, _) => ("everyone", "go-w"),
        (false, true) => ("its group", "g-w"),
        (false, false) => return None,
    };
    let message = format!("the file can be written by {whose}, and it says what the proxy executes");
    Some(Problem::new(Place::default(), message).help(format!("try: chmod {mode} {}", path.display())))
}

/// The system's words without Rust's "(os error 2)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}
