//! Plugins.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use palisade_plugin_proto::env;
use palisade_supervisor::RestartMode;
use palisade_supervisor::{Checksum, ChecksumSyntax, Checksums};
use serde_yaml::{Mapping, Value};

use super::super::slot::{Plain, Raw, Sha256, Slot, Table};
use super::super::tree::{Meaning, NodeId, Shape};
use super::super::written;
use super::super::{Contract, Health, OnFailure, Plugin, Profile, Quarantine, Restart, Sandbox};
use super::program::joined;
use super::{Plugins, Reading};

/// Beyond this, an integer is not the same number any more once it went through a `google.protobuf.Struct`, which
/// holds doubles.
const LARGEST_INTEGER: i128 = 1 << 53;
const BEYOND: (&str, &str) = ("the number is beyond 2^53", "plugins would get another one: write a string");

impl Reading<'_> {
    pub(super) fn plugins(&mut self, written: &Slot<Table<written::Plugin>>) -> Plugins {
        let mut plugins = BTreeMap::new();
        for (key, plugin) in written.value().map_or(&[][..], |table| &table.0) {
            let Some((name, node)) = key.given() else { continue };
            let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
            if !valid || name.is_empty() || name.len() > 64 {
                let problem = self.problem(node, format!("`{name}` can't be the name of a plugin"));
                self.push(problem.label("letters, digits, `-` and `_`, at most 64"));
            }
            let plugin = match plugin.given() {
                Some((plugin, node)) => self.plugin(name, plugin, node),
                None => self.plugin_without_problems(),
            };
            plugins.insert(name.clone(), plugin);
        }
        plugins
    }

    /// What stands for a plugin whose section could not be read.
    fn plugin_without_problems(&self) -> Plugin {
        Plugin {
            command: Vec::new(),
            found: None,
            cwd: self.dir.to_owned(),
            env: BTreeMap::new(),
            env_pass: Vec::new(),
            checksums: Checksums::default(),
            sandbox: Sandbox { profile: Profile::Default, policy: Default::default() },
            socket_group: None,
            contract: Contract::Palisade,
            owns: Vec::new(),
            instances: 1,
            max_calls: 1000,
            max_queue: 1000,
            quarantine: Quarantine::default(),
            hedge_after: None,
            config: Mapping::new(),
            timeout: Duration::from_millis(200),
            on_failure: OnFailure::Deny,
            required: true,
            handshake_timeout: Duration::from_secs(15),
            ready_timeout: Duration::from_secs(10),
            allow_remote_tcp: false,
            auto_mtls: false,
            health: Health::default(),
            restart: Restart::default(),
            drain_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(5),
            probation: Duration::from_secs(5),
            files: Vec::new(),
            exit_reports: 10,
        }
    }

    fn plugin(&mut self, name: &str, written: &written::Plugin, node: u64) -> Plugin {
        let default = self.plugin_without_problems();
        let found = self.found(written, node);
        let (cwd, cwd_exists) = self.cwd(&written.cwd);
        let command = written
            .command
            .given()
            .map(|(command, node)| self.command(command, node, cwd_exists.then_some(&cwd), written));
        let (command, files) = command.unwrap_or_default();
        self.told_where(written, &command);
        let env_pass = self.env_pass(&written.env_pass, &written.env);
        let choice = |slot: &Slot<bool>, default| slot.value().copied().unwrap_or(default);
        Plugin {
            found,
            cwd,
            env: self.env(&written.env),
            env_pass,
            checksums: self.checksums(&written.checksum, &command),
            sandbox: self.sandbox(&written.sandbox, name),
            socket_group: self.group(&written.socket_group),
            contract: written.contract.value().map_or(default.contract, |&contract| contract.into()),
            owns: self.header_names(&written.owns),
            instances: self.number(&written.instances, default.instances, 1..=64),
            max_calls: self.number(&written.max_calls, default.max_calls, 1..=100_000),
            max_queue: self.number(&written.max_queue, default.max_queue, 0..=100_000),
            quarantine: self.quarantine(written.quarantine.value().unwrap_or(&written::Quarantine::default())),
            hedge_after: self.hedge_after(written),
            config: self.plugin_config(&written.config),
            timeout: self.timeout(&written.timeout, default.timeout),
            on_failure: written.on_failure.value().map_or(default.on_failure, |&choice| choice.into()),
            required: choice(&written.required, default.required),
            handshake_timeout: self.timeout(&written.handshake_timeout, default.handshake_timeout),
            ready_timeout: self.timeout(&written.ready_timeout, default.ready_timeout),
            allow_remote_tcp: choice(&written.allow_remote_tcp, default.allow_remote_tcp),
            auto_mtls: choice(&written.auto_mtls, default.auto_mtls),
            health: self.health(written.health.value().unwrap_or(&written::Health::default())),
            restart: self.restart(&written.restart),
            drain_timeout: self.delay(&written.drain_timeout, default.drain_timeout),
            stop_timeout: self.delay(&written.stop_timeout, default.stop_timeout),
            probation: self.delay(&written.probation, default.probation),
            files,
            exit_reports: self.number(&written.exit_reports, default.exit_reports, 1..=100),
            command,
        }
    }

    /// `{socket}` and `{port}` in the arguments.
    fn told_where(&mut self, written: &written::Plugin, command: &[String]) {
        let tells = |placeholder: &str| command.iter().skip(1).any(|argument| argument.contains(placeholder));
        let (socket, port) = (tells("{socket}"), tells("{port}"));
        if let (true, Some((_, node))) = (socket && port, written.command.given()) {
            let problem = self.problem(node, "`command` has both `{socket}` and `{port}`");
            self.push(problem.label("the plugin can be told one place only"));
        }
        if let (true, Some((true, node))) = (socket || port, written.auto_mtls.given()) {
            let problem = self.problem(node, "`auto_mtls` needs the handshake line");
            self.push(problem.label("a command with `{socket}` or `{port}` prints none"));
        }
    }

    /// The directory, and whether it is one.
    fn cwd(&mut self, written: &Slot<String>) -> (PathBuf, bool) {
        let Some((text, node)) = written.given() else { return (self.dir.to_owned(), self.dir.is_dir()) };
        let cwd = joined(self.dir, text);
        let is_dir = cwd.is_dir();
        if !is_dir {
            let state = if cwd.exists() { "is not a directory" } else { "does not exist" };
            self.push(self.problem(node, format!("the directory `{}` {state}", cwd.display())));
        }
        (cwd, is_dir)
    }

    fn env(&mut self, written: &Slot<Table<Plain>>) -> BTreeMap<String, String> {
        for (key, _) in written.value().map_or(&[][..], |table| &table.0) {
            if let Some((name, node)) = key.given() {
                self.variable(name, node);
            }
        }
        self.plain_table(written)
    }

    fn env_pass(&mut self, written: &written::List<String>, env: &Slot<Table<Plain>>) -> Vec<String> {
        let set: HashSet<_> =
            env.value().map_or(&[][..], |table| &table.0).iter().filter_map(|(key, _)| key.value()).collect();
        let mut seen = Vec::new();
        let names = self.list(written, |reading, name, node| {
            reading.variable(name, node);
            if set.contains(&name) {
                reading.push(reading.problem(node, format!("`{name}` is in `env` already")));
            }
            seen.push((name.clone(), name.clone(), node));
            Some(name.clone())
        });
        self.unique("the variable", seen);
        names
    }

    /// Refuses what is no name, and what the handshake sets itself.
    fn variable(&mut self, name: &str, node: u64) {
        let problem = if name.is_empty() || !name.chars().all(|c| c.is_ascii_graphic() && c != '=') {
            self.problem(node, format!("`{name}` is not the name of a variable"))
        } else if name.starts_with(env::PREFIX) || [env::COOKIE.0, env::MOSN_COOKIE.0].contains(&name) {
            let problem = self.problem(node, format!("`{name}` belongs to the handshake"));
            problem.label("the proxy sets it itself where it is needed")
        } else {
            return;
        };
        self.push(problem);
    }

    fn checksums(&mut self, written: &Slot<written::Checksum>, command: &[String]) -> Checksums {
        let details = match written.given() {
            None => return Checksums::default(),
            Some((written::Checksum::Text(text), node)) => {
                return Checksums { program: self.checksum(text, node), files: BTreeMap::new() };
            }
            Some((written::Checksum::Mapping(details), node)) => {
                let none = details.program.is_missing() && details.files.is_missing();
                if none && !self.has_unknown_fields(node) {
                    self.push(self.problem(node, "`checksum` names nothing").label("`program`, `files`, or both"));
                }
                details
            }
        };
        let program = details.program.given().and_then(|(text, node)| self.checksum(text, node));
        let mut files = BTreeMap::new();
        for (key, sum) in details.files.value().map_or(&[][..], |table| &table.0) {
            let Some((file, node)) = key.given() else { continue };
            if !command.is_empty() && !command.iter().skip(1).any(|argument| argument == file) {
                let problem = self.problem(node, format!("`{file}` is not an argument of `command`"));
                self.push(problem.label("write it as it is written there"));
            }
            if let Some((sum, node)) = sum.given()
                && let Some(sum) = self.checksum(sum, node)
            {
                files.insert(file.into(), sum);
            }
        }
        Checksums { program, files }
    }

    fn checksum(&mut self, written: &Sha256, node: u64) -> Option<Checksum> {
        let sum = written.0.parse();
        if let Err(error) = &sum {
            let error: &ChecksumSyntax = error;
            self.push(self.problem(node, error.to_string()).label("`palisade plugin pin` finds it out"));
        }
        sum.ok()
    }

    fn health(&mut self, written: &written::Health) -> Health {
        let default = Health::default();
        Health {
            interval: self.timeout(&written.interval, default.interval),
            timeout: self.timeout(&written.timeout, default.timeout),
            failures: self.count(&written.failures, default.failures, 1..=100),
            call_misses: self.count(&written.call_misses, default.call_misses, 0..=1000),
            stopped_timeout: self.delay(&written.stopped_timeout, default.stopped_timeout),
        }
    }

    fn hedge_after(&mut self, written: &written::Plugin) -> Option<Duration> {
        let (_, node) = written.hedge_after.given()?;
        if written.instances.value().is_none_or(|instances| *instances < 2) {
            let problem = self.problem(node, "`hedge_after` needs a second instance to ask");
            self.push(problem.label("write `instances: 2` or more beside it"));
        }
        Some(self.timeout(&written.hedge_after, Duration::ZERO))
    }

    fn quarantine(&mut self, written: &written::Quarantine) -> Quarantine {
        let default = Quarantine::default();
        Quarantine {
            failures: self.count(&written.failures, default.failures, 1..=100_000),
            time: self.timeout(&written.time, default.time),
        }
    }

    fn restart(&mut self, slot: &Slot<written::Restart>) -> Restart {
        let default = Restart::default();
        let Some((written, node)) = slot.given() else { return default };
        let before = self.problems.len();
        let restart = Restart {
            policy: written.policy.value().map_or(default.policy, |&policy| policy.into()),
            initial: self.timeout(&written.initial, default.initial),
            max: self.timeout(&written.max, default.max),
            multiplier: self.count(&written.multiplier, default.multiplier, 1..=10),
            jitter: self.percent(&written.jitter, default.jitter, 0..=100),
            reset_after: self.timeout(&written.reset_after, default.reset_after),
            crash_loop_after: self.count(&written.crash_loop_after, default.crash_loop_after, 1..=1000),
            max_restarts: written.max_restarts.given().map(|_| self.count(&written.max_restarts, 1, 1..=1000)),
            window: self.timeout(&written.window, default.window),
            stagger: self.delay(&written.stagger, default.stagger),
        };
        if let Some((_, window)) = written.window.given()
            && written.max_restarts.is_missing()
            && !self.has_key_like("max_restarts", node)
        {
            self.push(self.problem(window, "`window` counts nothing without `max_restarts`"));
        }
        if restart.initial > restart.max && self.problems.len() == before {
            self.push(self.problem(node, "`initial` is longer than `max`"));
        }
        restart
    }

    fn plugin_config(&mut self, written: &Slot<Raw>) -> Mapping {
        let Some((Raw(number), node)) = written.given() else { return Mapping::new() };
        let Some(id) = self.tree.id(*number) else { return Mapping::new() };
        match &self.tree.node(id).shape {
            Shape::Mapping(entries) => self.mapping(entries),
            Shape::Scalar(scalar) if scalar.meaning() == Meaning::Null => {
                self.push(self.problem(node, "`config` has no value").label("write a mapping, or remove the line"));
                Mapping::new()
            }
            Shape::Scalar(_) | Shape::List(_) => {
                self.push(self.problem(node, "`config` must be a mapping"));
                Mapping::new()
            }
        }
    }

    /// Keys become strings, as in JSON: `80` is "80".
    fn mapping(&mut self, entries: &[(NodeId, NodeId)]) -> Mapping {
        let mut mapping = Mapping::new();
        for &(key, value) in entries {
            mapping.insert(self.tree.key(key).into(), self.config_value(value));
        }
        mapping
    }

    fn config_value(&mut self, id: NodeId) -> Value {
        let node = self.tree.node(id);
        let scalar = match &node.shape {
            Shape::Mapping(entries) => return Value::Mapping(self.mapping(entries)),
            Shape::List(items) => return Value::Sequence(items.iter().map(|&item| self.config_value(item)).collect()),
            Shape::Scalar(scalar) => scalar,
        };
        // Without the text: it may be a secret.
        let (message, label) = match scalar.meaning() {
            Meaning::Null => return Value::Null,
            Meaning::Bool(value) => return value.into(),
            Meaning::Float(value) if value.is_finite() => return value.into(),
            Meaning::Text(text) => return text.into(),
            Meaning::Integer(value) if value.abs() <= LARGEST_INTEGER => match i64::try_from(value) {
                Ok(value) => return value.into(),
                Err(_) => BEYOND,
            },
            Meaning::Integer(_) | Meaning::Huge => BEYOND,
            Meaning::Float(_) => ("the number is not finite", "quote it if a string is meant"),
            Meaning::Octalish => {
                ("the number could be octal or decimal", "write it without zeros, with `0o`, or quoted")
            }
        };
        self.push(self.problem(id.into(), message).label(label));
        Value::Null
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            failures: 3,
            call_misses: 3,
            stopped_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { failures: 5, time: Duration::from_secs(10) }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartMode::Always,
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
            multiplier: 2,
            jitter: 20,
            reset_after: Duration::from_secs(60),
            crash_loop_after: 5,
            max_restarts: None,
            window: Duration::from_secs(60),
            stagger: Duration::ZERO,
        }
    }
}

impl From<written::RestartPolicy> for RestartMode {
    fn from(written: written::RestartPolicy) -> Self {
        match written {
            written::RestartPolicy::Always => Self::Always,
            written::RestartPolicy::OnFailure => Self::OnFailure,
            written::RestartPolicy::Never => Self::Never,
        }
    }
}

impl From<written::Contract> for Contract {
    fn from(written: written::Contract) -> Self {
        match written {
            written::Contract::Palisade => Self::Palisade,
            written::Contract::Mosn => Self::Mosn,
        }
    }
}
