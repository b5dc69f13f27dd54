//! From text to configuration or problems, the whole way.

#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

mod bounds;
mod document;

mod invalid_listeners;
mod invalid_plugins;
mod invalid_routes;
mod invalid_syntax;
mod shown;
mod valid;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::host::Host;
use super::{Config, Problem, Problems, parse_on};

/// The least that is valid, for cases about something else.
const LISTENER: &str = "listeners: [{address: 127.0.0.1:0}]\n";

/// A directory with programs and plugins, and a host on which only these programs are installed.
struct Place {
    dir: tempfile::TempDir,
    host: Host,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self {
            host: Host { path: vec![dir.path().join("bin")], runtime_dir: "/run/palisade".into(), cores: 2 },
            dir,
        };
        for program in ["python3", "java", "envoy"] {
            place.write(&format!("bin/{program}"), "#!/bin/sh\n", 0o755);
        }
        for plugin in ["auth.py", "audit.py", "certs.jar"] {
            place.write(plugin, "", 0o644);
        }
        place
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("palisade.yaml")
    }

    fn parse(&self, text: &str) -> Result<Config, Problems> {
        parse_on(&self.host, &self.file(), text)
    }

    /// Each problem as `line:column message (label) [help]`, with the directory as `DIR`.
    fn problems(&self, text: &str) -> Vec<String> {
        match self.parse(text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(|problem| self.shown(problem)).collect(),
        }
    }

    fn shown(&self, problem: &Problem) -> String {
        let mut text = format!("{}:{} {}", problem.line, problem.column, problem.message);
        if let Some(label) = &problem.label {
            text += &format!(" ({label})");
        }
        if let Some(help) = &problem.help {
            text += &format!(" [{help}]");
        }
        text.replace(self.dir.path().to_str().unwrap(), "DIR")
    }

    /// Fails with every case whose problems are not those expected: what follows `before`, then each problem as
    /// [`Place::problems`] shows it.
    fn check(&self, before: &str, cases: &[(&str, &[&str])]) {
        let mut wrong = String::new();
        for (text, expected) in cases {
            let found = self.problems(&format!("{before}{text}"));
            if found != *expected {
                wrong += &format!("--- for\n{text}\n--- expected {expected:#?}\n--- found {found:#?}\n");
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
