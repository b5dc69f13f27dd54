//! Commands of plugins: whether what they name can be executed, as far as looking tells.
//!
//! The kernel answers "no such file" as well for a script whose interpreter is missing, so that is found out here.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::super::SourceFile;
use super::super::slot::Slot;
use super::super::written;
use super::Reading;
use super::elf::{self, Unfit};

/// The kernel reads this much of a `#!` line.
const FIRST_LINE: usize = 256;

impl Reading<'_> {
    /// Program and arguments, and the files they are. `cwd` is unset when it is no directory, which is reported already.
    pub(super) fn command(
        &mut self,
        written: &written::Command,
        node: u64,
        cwd: Option<&PathBuf>,
        of: &written::Plugin,
    ) -> (Vec<String>, Vec<SourceFile>) {
        let list = match written {
            written::Command::Text(text) => {
                let words: Vec<_> = text.split_whitespace().collect();
                let problem = self.problem(node, "`command` must be a list of program and arguments, not a string");
                self.push(problem.label(format!("write `[{}]`", words.join(", "))));
                return Default::default();
            }
            written::Command::List(list) => list,
        };
        if list.is_empty() {
            self.push(self.problem(node, "`command` is empty").label("write it like `[python3, auth.py]`"));
        }
        let mut files = Vec::new();
        if let (Some(Slot::Given(program, node)), Some(cwd)) = (list.first(), cwd) {
            let arguments: Vec<_> = list[1..].iter().map(Slot::given).collect();
            match self.program(program, cwd, of) {
                Err((message, help)) => {
                    let problem = self.problem(*node, message);
                    self.push(match help {
                        Some(help) => problem.help(help),
                        None => problem,
                    });
                }
                Ok(path) => {
                    files.extend(SourceFile::at(path));
                    files.extend(self.script(program, &arguments, cwd));
                }
            }
        }
        (list.iter().filter_map(|argument| argument.value().cloned()).collect(), files)
    }

    fn program(&self, program: &str, cwd: &Path, of: &written::Plugin) -> Result<PathBuf, (String, Option<String>)> {
        if program.is_empty() {
            return Err(("the program's name is empty".to_owned(), None));
        }
        if program.contains('/') {
            let path = joined(cwd, program);
            return self.executable(&path, of).map(|()| path);
        }
        let candidates = self.host.path.iter().map(|dir| dir.join(program)).filter(|path| path.is_file());
        let mut unfit = None;
        for path in candidates {
            match self.executable(&path, of) {
                Ok(()) => return Ok(path),
                Err(problem) => unfit.get_or_insert(problem),
            };
        }
        let beside = cwd.join(program).is_file();
        Err(unfit.unwrap_or_else(|| {
            let help = if beside {
                format!("the current directory is not searched: write `./{program}`")
            } else {
                "install it, or write its path".to_owned()
            };
            (format!("`{program}` is not in PATH"), Some(help))
        }))
    }

    fn executable(&self, path: &Path, of: &written::Plugin) -> Result<(), (String, Option<String>)> {
        let shown = path.display();
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err((format!("`{shown}` does not exist"), None));
            }
            Err(error) => return Err((format!("`{shown}` can't be looked at: {error}"), None)),
        };
        if !metadata.is_file() {
            return Err((format!("`{shown}` is not a file"), None));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err((format!("`{shown}` is not executable"), Some(format!("try: chmod +x {shown}"))));
        }
        if let Some(open) = open_to_everybody(path) {
            let open = open.display();
            let help = format!("try: chmod o-w {open}");
            return Err((format!("`{open}` can be written to by everyone, who could replace `{shown}`"), Some(help)));
        }
        // A program may be executable without being readable; then there is nothing to learn.
        let Ok(file) = File::open(path) else { return Ok(()) };
        let mut start = Vec::new();
        if (&file).take(FIRST_LINE as u64).read_to_end(&mut start).is_err() {
            return Ok(());
        }
        let told = |message: String, help: &str| Err((message, Some(help.to_owned())));
        match elf::unfit(&start, &file) {
            None => {}
            Some(Unfit::Cut) => return told(format!("`{shown}` is no whole program"), "copy or build it again"),
            Some(Unfit::Machine(machine)) => {
                let message =
                    format!("`{shown}` is a program for {machine}, and this machine is {}", env::consts::ARCH);
                return told(message, "build it for this machine");
            }
            Some(Unfit::Loader(loader)) => {
                let message = format!("`{shown}` needs the loader `{loader}`, which does not exist");
                return told(message, "it was built for another system or C library: build it here, or statically");
            }
        }
        match interpreter(&start) {
            Interpreter::Unneeded => Ok(()),
            Interpreter::Unnamed => told(
                format!("`{shown}` is a script without a `#!` line"),
                "begin it with a line like `#!/usr/bin/env python3`, or name the interpreter in `command`",
            ),
            Interpreter::WindowsLineEnd(name) => Err((
                format!("the `#!` line of `{shown}` ends with a Windows line end, so `{name}` is not found"),
                Some(format!("try: sed -i 's/\\r$//' {shown}")),
            )),
            Interpreter::At { path, .. } if !Path::new(&path).exists() => told(
                format!("`{shown}` needs `{path}`, which does not exist"),
                "install the interpreter, or correct the script's `#!` line",
            ),
            Interpreter::At { searched: Some(name), .. } if !self.is_found(&name, of) => told(
                format!(
                    "`{shown}` needs `{name}`, which is not in the plugin's PATH, {}",
                    palisade_supervisor::DEFAULT_PATH
                ),
                "install it there, hand on the proxy's with `env_pass: [PATH]`, or write its path in the `#!` line",
            ),
            Interpreter::At { .. } => Ok(()),
        }
    }

    /// Whether a plugin finds a program that it looks for. Where it is given a `PATH` of its own, that is not judged.
    fn is_found(&self, program: &str, of: &written::Plugin) -> bool {
        let is_path = |name: &Slot<String>| name.value().is_some_and(|name| name == "PATH");
        if of.env.value().is_some_and(|table| table.0.iter().any(|(name, _)| is_path(name))) {
            return true;
        }
        let passed = of.env_pass.value().is_some_and(|names| names.iter().any(is_path));
        let default: Vec<_> = env::split_paths(palisade_supervisor::DEFAULT_PATH).collect();
        let searched = if passed { &self.host.path } else { &default };
        searched.iter().any(|dir| dir.join(program).is_file())
    }

    /// The file that an interpreter is told to run.
    fn script(&mut self, program: &str, arguments: &[Option<(&String, u64)>], cwd: &Path) -> Option<SourceFile> {
        let written: Vec<_> = arguments.iter().map(|argument| argument.map(|(text, _)| text.as_str())).collect();
        let (file, node) = arguments[script_index(program, &written)?]?;
        let path = joined(cwd, file);
        if !path.exists() {
            self.push(self.problem(node, format!("`{}` does not exist", path.display())));
        }
        SourceFile::at(path)
    }
}

/// Which argument is the file that an interpreter is told to run. Arguments that could not be read are `None`.
pub(in super::super) fn script_index(program: &str, arguments: &[Option<&str>]) -> Option<usize> {
    let name = program.rsplit('/').next().unwrap_or(program);
    let index = match name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.') {
        "python" | "pypy" | "ruby" | "perl" | "node" | "sh" | "bash" => 0,
        "java" => arguments.iter().position(|argument| *argument == Some("-jar"))? + 1,
        _ => return None,
    };
    arguments.get(index).copied().flatten().filter(|file| !file.starts_with('-')).map(|_| index)
}

/// Without a `.` on the way, which would only be in the way in messages.
pub(super) fn joined(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).components().collect()
}

/// What of a path, or of what it leads to, everybody may write to: the file, or a directory in which everybody may
/// replace what belongs to others.
fn open_to_everybody(path: &Path) -> Option<PathBuf> {
    const OTHERS: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let real = path.canonicalize().ok();
    let places = [Some(path), real.as_deref()].into_iter().flatten().flat_map(Path::ancestors);
    let open = |place: &&Path| {
        fs::metadata(place).is_ok_and(|found| {
            let mode = found.permissions().mode();
            mode & OTHERS != 0 && !(found.is_dir() && mode & STICKY != 0)
        })
    };
    places.into_iter().find(open).map(Path::to_owned)
}

#[derive(Debug, PartialEq)]
enum Interpreter {
    Unneeded,
    Unnamed,
    WindowsLineEnd(String),
    At {
        path: String,
        /// What `env` is to look for in `PATH`.
        searched: Option<String>,
    },
}

/// What the first bytes of a program ask for.
fn interpreter(start: &[u8]) -> Interpreter {
    let Some(line) = start.strip_prefix(b"#!") else {
        let text = !start.is_empty() && start.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
        return if text { Interpreter::Unnamed } else { Interpreter::Unneeded };
    };
    let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let line = line.trim_matches([' ', '\t']);
    let name = line.split([' ', '\t']).next().unwrap_or_default();
    if line.ends_with('\r') {
        return Interpreter::WindowsLineEnd(name.trim_end_matches('\r').to_owned());
    }
    if name.is_empty() {
        return Interpreter::Unnamed;
    }
    // `env` alone takes one word; behind -S, options and variables may come before the program.
    let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty() && *word != "-S").skip(1);
    let searched =
        words.next().filter(|word| name.ends_with("/env") && !word.starts_with('-') && !word.contains(['=', '/']));
    Interpreter::At { path: name.to_owned(), searched: searched.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::{Interpreter, interpreter};

    #[test]
    fn first_bytes_tell_the_interpreter() {
        let at = |path: &str, searched: Option<&str>| Interpreter::At {
            path: path.to_owned(),
            searched: searched.map(str::to_owned),
        };
        for (start, expected) in [
            (&b"\x7fELF\x02\x01"[..], Interpreter::Unneeded),
            (b"", Interpreter::Unneeded),
            (b"print('hello')\n", Interpreter::Unnamed),
            (b"#!\n", Interpreter::Unnamed),
            (b"#!/bin/sh\nexit", at("/bin/sh", None)),
            (b"#!/bin/sh -e\n", at("/bin/sh", None)),
            (b"#! /usr/bin/env python3\n", at("/usr/bin/env", Some("python3"))),
            (b"#!/usr/bin/env -S python3 -u\n", at("/usr/bin/env", Some("python3"))),
            (b"#!/usr/bin/env -S A=b python3\n", at("/usr/bin/env", None)),
            (b"#!/bin/sh\r\n", Interpreter::WindowsLineEnd("/bin/sh".to_owned())),
            (b"#!/usr/bin/env python3\r\n", Interpreter::WindowsLineEnd("/usr/bin/env".to_owned())),
        ] {
            assert_eq!(interpreter(start), expected);
        }
    }
}
