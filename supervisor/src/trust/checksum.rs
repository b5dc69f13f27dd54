//! Checksums of what is executed.
//!
//! A file is opened once, read through that descriptor, and executed through it: what is looked at is what runs, though
//! its path be given to another file meanwhile. The kernel lets nobody write to a binary while it runs. Nothing protects
//! what an interpreter reads, a script or an archive, so of that a copy is made in memory, sealed against every change,
//! and the copy is what the interpreter gets. Only of what is right: what has been put in a file's place may be of any
//! kind and size.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha256};

use crate::process::{SpawnError, resolve_program};
use crate::spec::PluginSpec;

/// Largest file with a checksum, in bytes.
const LARGEST: u64 = 1 << 30;

/// SHA-256 of a file, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum([u8; 32]);

/// A text that is no [`Checksum`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a checksum is `sha256:` and 64 hexadecimal digits")]
pub struct ChecksumSyntax;

/// What must be the same as when it was pinned. Empty: nothing is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checksums {
    /// The program.
    pub program: Option<Checksum>,
    /// Files that the command names, by the argument as it is written there. The process gets `/proc/self/fd/N` in its
    /// place, which is a sealed copy.
    pub files: BTreeMap<OsString, Checksum>,
}

impl Checksum {
    /// Of what stands in a file now.
    ///
    /// # Errors
    ///
    /// Where the file can't be read, is no regular one, or has more than 1 GiB.
    pub fn of(path: &Path) -> io::Result<Self> {
        read(&mut regular(path)?, None)
    }
}

impl FromStr for Checksum {
    type Err = ChecksumSyntax;

    fn from_str(text: &str) -> Result<Self, ChecksumSyntax> {
        let digits = text.strip_prefix("sha256:").ok_or(ChecksumSyntax)?;
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(ChecksumSyntax);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| ChecksumSyntax)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ChecksumSyntax)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was looked at, open.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    pub(crate) program: Option<Image>,
    /// Sealed copies, with which argument of the command each replaces. The program is argument 0.
    pub(crate) files: Vec<(usize, OwnedFd)>,
}

/// An open program.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) fd: OwnedFd,
    /// Whether an interpreter opens it again, so that it must stay open beyond exec.
    pub(crate) script: bool,
}

/// Opens all that has a checksum and looks whether that is right. Reads whole files, so it blocks.
pub(crate) fn verify(spec: &PluginSpec) -> Result<Verified, SpawnError> {
    let mut verified = Verified::default();
    let cwd = std::path::absolute(&spec.cwd).unwrap_or_else(|_| spec.cwd.clone());
    if let (Some(expected), Some(program)) = (spec.checksums.program, spec.command.first()) {
        verified.program = Some(open_program(resolve_program(program, &cwd)?, expected)?);
    }
    for (argument, expected) in &spec.checksums.files {
        let path = cwd.join(argument);
        let mut file = open(&path)?;
        let copy = sealed_copy(&path, &mut file, *expected)?;
        for (index, _) in spec.command.iter().enumerate().skip(1).filter(|(_, written)| *written == argument) {
            let copy = copy.try_clone().map_err(|source| SpawnError::Unreadable { path: path.clone(), source })?;
            verified.files.push((index, copy));
        }
    }
    Ok(verified)
}

fn open_program(path: PathBuf, expected: Checksum) -> Result<Image, SpawnError> {
    let unreadable = |source| SpawnError::Unreadable { path: path.clone(), source };
    let mut file = open(&path)?;
    let mut magic = [0; 4];
    let binary = match file.read_exact(&mut magic) {
        Ok(()) => &magic == b"\x7fELF",
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(unreadable(error)),
    };
    io::Seek::rewind(&mut file).map_err(unreadable)?;
    if !binary {
        return Ok(Image { fd: sealed_copy(&path, &mut file, expected)?, script: true });
    }
    let found = read(&mut file, None).map_err(unreadable)?;
    compare(&path, expected, found)?;
    Ok(Image { fd: file.into(), script: false })
}

fn open(path: &Path) -> Result<File, SpawnError> {
    regular(path).map_err(|source| SpawnError::Unreadable { path: path.to_owned(), source })
}

/// Opens a file without waiting for anybody: a FIFO would wait for who writes to it.
fn regular(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    Ok(file)
}

fn compare(path: &Path, expected: Checksum, found: Checksum) -> Result<(), SpawnError> {
    if expected == found {
        return Ok(());
    }
    Err(SpawnError::Checksum { path: path.to_owned(), expected, found })
}

/// A copy in memory of what `file` holds, which nobody can change any more. What was copied is what was summed up.
fn sealed_copy(path: &Path, file: &mut File, expected: Checksum) -> Result<OwnedFd, SpawnError> {
    let unreadable = |source| SpawnError::Unreadable { path: path.to_owned(), source };
    compare(path, expected, read(file, None).map_err(unreadable)?)?;
    io::Seek::rewind(file).map_err(unreadable)?;
    let name = path.file_name().unwrap_or_default();
    let copy = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
    let mut copy = File::from(copy.map_err(|errno| unreadable(errno.into()))?);
    let found = read(file, Some(&mut copy)).map_err(unreadable)?;
    compare(path, expected, found)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| unreadable(errno.into()))?;
    Ok(copy.into())
}

fn read(file: &mut File, mut copy: Option<&mut File>) -> io::Result<Checksum> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {LARGEST} bytes"));
    if file.metadata()?.len() > LARGEST {
        return Err(too_large());
    }
    let mut sum = Sha256::new();
    let mut chunk = vec![0; 128 * 1024];
    let mut left = LARGEST;
    loop {
        let count = match file.read(&mut chunk) {
            Ok(0) => return Ok(Checksum(sum.finalize().into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // It may grow meanwhile.
        left = left.checked_sub(count as u64).ok_or_else(too_large)?;
        sum.update(&chunk[..count]);
        if let Some(copy) = &mut copy {
            copy.write_all(&chunk[..count])?;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_checksum_reads_as_it_is_written() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let empty: Checksum = text.parse().unwrap();
        assert_eq!(empty.to_string(), text);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Checksum::of(file.path()).unwrap(), empty);
        assert_eq!(text.replace('e', "E").parse(), Ok(empty));
        for wrong in ["", "sha256:", &text[7..], &text[..70], &format!("{text}0"), &text.replace("e3", "+3")] {
            assert_eq!(wrong.parse::<Checksum>(), Err(ChecksumSyntax), "{wrong}");
        }
    }

    #[test]
    fn nothing_but_files_of_some_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(path("large")).unwrap().set_len(LARGEST + 1).unwrap();
        for name in ["fifo", "large", "."] {
            assert!(Checksum::of(&path(name)).is_err(), "{name}");
            assert!(
                matches!(
                    open(&path(name)).and_then(|mut file| { sealed_copy(&path(name), &mut file, Checksum([0; 32])) }),
                    Err(SpawnError::Unreadable { .. })
                ),
                "{name}"
            );
        }
        assert!(Checksum::of(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn a_copy_can_not_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.py");
        std::fs::write(&path, "print()").unwrap();
        let expected = Checksum::of(&path).unwrap();
        let copy = sealed_copy(&path, &mut File::open(&path).unwrap(), expected).unwrap();
        std::fs::write(&path, "evil()").unwrap();
        let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert_eq!(std::fs::read_to_string(&name).unwrap(), "print()");
        assert!(File::from(copy).write_all(b"x").is_err());
        assert!(matches!(
            sealed_copy(&path, &mut File::open(&path).unwrap(), expected),
            Err(SpawnError::Checksum { .. })
        ));
    }
}
