//! Compiled programs: whether this machine can run them, as far as their headers tell.
//!
//! The kernel says "exec format error" for another machine's program, and "no such file or directory" where the loader
//! that a program names is missing. Neither helps who reads it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What the headers of a program ask for that is not here.
#[derive(Debug, PartialEq)]
pub(super) enum Unfit {
    /// It ends within its own headers.
    Cut,
    /// It is for this machine, by name, and not for ours.
    Machine(String),
    /// The loader that it names is not there.
    Loader(String),
}

const MAGIC: &[u8] = b"\x7fELF";

/// Machines by their numbers (`e_machine`), as people call them.
const MACHINES: [(u16, &str); 12] = [
    (3, "x86"),
    (8, "mips"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (22, "s390x"),
    (40, "arm"),
    (43, "sparc64"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (247, "bpf"),
    (258, "loongarch64"),
];

/// 32-bit programs that kernels of 64 bits commonly run.
const ALSO_RUN: [(&str, &str); 2] = [("x86_64", "x86"), ("aarch64", "arm")];

/// Segments that are looked at: more than any linker makes.
const MOST_SEGMENTS: u64 = 64;

const PT_INTERP: u32 = 3;

/// What keeps a program from running. `start` is its beginning; what is no ELF is fit.
pub(super) fn unfit(start: &[u8], file: &File) -> Option<Unfit> {
    if !start.starts_with(MAGIC) {
        return None;
    }
    // Elsewhere in the file nothing is read but what the header points to.
    let Some(program) = Program::read(start) else { return Some(Unfit::Cut) };
    let here = std::env::consts::ARCH;
    let known = MACHINES.iter().find(|(number, _)| *number == program.machine);
    let runs = known.is_some_and(|(_, name)| *name == here || ALSO_RUN.contains(&(here, name)));
    // Where we don't know our own number, we know nothing.
    if !runs && MACHINES.iter().any(|(_, name)| *name == here) {
        let name = known.map_or_else(|| format!("machine {}", program.machine), |(_, name)| (*name).to_owned());
        return (!emulated()).then_some(Unfit::Machine(name));
    }
    let loader = program.loader(file)?;
    (!Path::new(&loader).exists()).then_some(Unfit::Loader(loader))
}

/// Whether somebody has told the kernel how to run programs of other machines (binfmt_misc), as QEMU's packages do.
fn emulated() -> bool {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(|entry| entry.contains("magic 7f454c46"))
}

/// The header of an ELF file (System V ABI, chapter 4).
struct Program {
    wide: bool,
    little: bool,
    machine: u16,
    segments_at: u64,
    segment_size: u64,
    segments: u64,
}

impl Program {
    fn read(start: &[u8]) -> Option<Self> {
        let (wide, little) = (*start.get(4)? == 2, *start.get(5)? == 1);
        let header = Self { wide, little, machine: 0, segments_at: 0, segment_size: 0, segments: 0 };
        let at = |offset, width| header.number(start, offset, width);
        Some(Self {
            machine: u16::try_from(at(18, 2)?).ok()?,
            segments_at: if wide { at(32, 8)? } else { at(28, 4)? },
            segment_size: at(if wide { 54 } else { 42 }, 2)?,
            segments: at(if wide { 56 } else { 44 }, 2)?.min(MOST_SEGMENTS),
            ..header
        })
    }

    fn number(&self, bytes: &[u8], offset: usize, width: usize) -> Option<u64> {
        let bytes = bytes.get(offset..offset + width)?.iter();
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    }

    /// What the kernel starts in its place, as `/lib64/ld-linux-x86-64.so.2`. None: it is linked statically.
    fn loader(&self, file: &File) -> Option<String> {
        (0..self.segments).find_map(|index| {
            let mut segment = [0; 56];
            let segment = segment.get_mut(..usize::try_from(self.segment_size).ok()?)?;
            file.read_exact_at(segment, self.segments_at.checked_add(index * self.segment_size)?).ok()?;
            if self.number(segment, 0, 4)? != u64::from(PT_INTERP) {
                return None;
            }
            let at = if self.wide { self.number(segment, 8, 8)? } else { self.number(segment, 4, 4)? };
            let mut name = [0; 256];
            let length = file.read_at(&mut name, at).ok()?;
            let name = name.get(..length)?.split(|byte| *byte == 0).next()?;
            Some(String::from_utf8_lossy(name).into_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write;

    use super::*;

    /// A header, one segment that names a loader, and the loader's name.
    fn program(machine: u16, loader: &str) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = 3;
        bytes[72] = 120;
        bytes.extend(loader.as_bytes());
        bytes.push(0);
        bytes
    }

    fn verdict(bytes: &[u8]) -> Option<Unfit> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        unfit(&bytes[..bytes.len().min(64)], &file)
    }

    #[test]
    fn headers_tell_what_is_missing() {
        let ours = MACHINES.iter().find(|(_, name)| *name == std::env::consts::ARCH).unwrap().0;
        let other = if ours == 22 { 62 } else { 22 };
        let name = if ours == 22 { "x86_64" } else { "s390x" };
        assert_eq!(verdict(&program(ours, "/proc/self/exe")), None);
        assert_eq!(verdict(&program(ours, "/lib/ld-none.so")), Some(Unfit::Loader("/lib/ld-none.so".to_owned())));
        assert_eq!(verdict(&program(ours, "")[..64]), None, "no segment can be read: nothing is known");
        if !emulated() {
            assert_eq!(verdict(&program(other, "/proc/self/exe")), Some(Unfit::Machine(name.to_owned())));
            assert_eq!(verdict(&program(9999, "")), Some(Unfit::Machine("machine 9999".to_owned())));
        }
        assert_eq!(verdict(&program(ours, "")[..20]), Some(Unfit::Cut));
        assert_eq!(verdict(b"\x7fELF"), Some(Unfit::Cut));
        assert_eq!(verdict(b"#!/bin/sh"), None);
    }

    #[test]
    fn this_very_program_is_fit() {
        let file = File::open("/proc/self/exe").unwrap();
        let mut start = [0; 64];
        file.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(unfit(&start, &file), None);
    }

    #[test]
    fn headers_made_of_noise_do_no_harm() {
        for seed in 0..=255_u8 {
            let mut bytes = program(62, "/x");
            for (index, byte) in bytes.iter_mut().enumerate().skip(4) {
                *byte = byte.wrapping_add(seed.wrapping_mul(u8::try_from(index % 251).unwrap()));
            }
            verdict(&bytes);
        }
    }
}
