//! From the written form to the needed form: defaults filled in, names resolved, values judged.
//!
//! Every function here returns a value whatever it finds, having reported what is wrong; [`super::parse`] throws the
//! values away when there was a problem. So one wrong value hides no other, and nothing is reported that only follows
//! from another problem.

mod elf;
mod filter;
mod found;
mod listener;
mod plugin;
mod program;
mod requests;
mod route;
mod sandbox;
mod upstream;
mod value;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) use program::script_index;
pub(super) use value::{pattern, shown_duration, shown_size};

use super::canonical::digest;
use super::host::Host;
use super::problem::{MOST_PROBLEMS, Place, Problem};
use super::slot::Slot;
use super::suggest::nearest;
use super::tree::{NodeId, Shape, Tree};
use super::written;
use super::{Cidr, Config, Plugin};

/// The configuration, whole only if there are no problems.
pub(super) fn convert(
    file: &Path,
    host: &Host,
    text: &str,
    tree: &Tree,
    written: &written::File,
) -> (Config, Vec<Problem>) {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let dir = absolute.parent().unwrap_or(Path::new("/"));
    let mut reading = Reading { tree, host, dir, problems: Vec::new() };
    let config = reading.config(file, text, written);
    (config, reading.problems)
}

/// What all sections need while they are judged.
struct Reading<'a> {
    tree: &'a Tree,
    host: &'a Host,
    /// The file's directory. Absolute.
    dir: &'a Path,
    problems: Vec<Problem>,
}

/// The plugins there are, with what filters take from them. A plugin that is broken itself is here too, so that only
/// names written nowhere are unknown.
type Plugins = BTreeMap<String, Plugin>;

impl Reading<'_> {
    fn config(&mut self, file: &Path, text: &str, written: &written::File) -> Config {
        let plugins = self.plugins(&written.plugins);
        let mut upstreams = self.upstreams(&written.upstreams);
        let listeners = self.listeners(&written.listeners, &plugins);
        let routes = self.routes(&written.routes, &plugins, &mut upstreams);
        self.require(&written.listeners, "listeners", self.tree.root().into());
        Config {
            file: file.to_owned(),
            hash: digest(text),
            runtime_dir: self.runtime_dir(&written.runtime_dir),
            workers: self.number(&written.workers, self.host.cores, 1..=1024),
            drain_timeout: self.delay(&written.drain_timeout, Duration::from_secs(30)),
            trusted_proxies: self.list(&written.trusted_proxies, |reading, text, node| reading.cidr(text, node)),
            overload: self.overload(&written.overload),
            listeners,
            routes,
            upstreams: upstreams.into_needed(),
            plugins,
        }
    }

    fn runtime_dir(&mut self, written: &Slot<String>) -> PathBuf {
        match written.given() {
            Some((path, node)) if path.is_empty() => {
                self.push(self.problem(node, "`runtime_dir` is empty"));
                self.host.runtime_dir.clone()
            }
            Some((path, _)) => self.dir.join(path),
            None => self.host.runtime_dir.clone(),
        }
    }

    fn cidr(&mut self, text: &str, node: u64) -> Option<Cidr> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let Ok(address) = address.parse::<IpAddr>() else {
            let problem = self.problem(node, format!("`{text}` is not an IP address or network"));
            self.push(problem.label("write it like `10.0.0.0/8`, `192.0.2.7` or `fd00::/8`"));
            return None;
        };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let Some(prefix) = prefix.map_or(Some(bits), |p| p.parse().ok().filter(|p| *p <= bits)) else {
            self.push(self.problem(node, format!("the prefix of `{text}` must be 0 to {bits}")));
            return None;
        };
        let network = masked(address, prefix);
        if network != address {
            let problem = self.problem(node, format!("`{text}` has bits set behind its prefix"));
            self.push(problem.label(format!("write `{network}/{prefix}`")));
        }
        Some(Cidr { address, prefix })
    }
}

/// The network of `address`.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl Reading<'_> {
    fn problem(&self, node: u64, message: impl Into<String>) -> Problem {
        let place = self.tree.id(node).map_or(Place::default(), |id| self.tree.place(id));
        Problem::new(place, message)
    }

    /// A value along with its key.
    fn written(&self, text: &str, node: u64) -> String {
        match self.tree.id(node).and_then(|id| self.tree.key_of(id)) {
            Some(key) => format!("`{key}: {text}`"),
            None => format!("`{text}`"),
        }
    }

    fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Reports a field that is missing from the mapping `parent`, unless it may be there in a way that is reported
    /// already: misspelt, or in an entry that was left out.
    fn require<T>(&mut self, slot: &Slot<T>, field: &str, parent: u64) {
        if slot.is_missing() && !self.has_key_like(field, parent) {
            self.push(self.problem(parent, format!("missing field `{field}`")));
        }
    }

    /// For mappings of which no known field is written: whether others are, which are reported already.
    fn has_unknown_fields(&self, node: u64) -> bool {
        let node = self.tree.id(node).map(|id| self.tree.node(id));
        node.is_some_and(|node| {
            node.incomplete || !matches!(&node.shape, Shape::Mapping(entries) if entries.is_empty())
        })
    }

    fn has_key_like(&self, field: &str, parent: u64) -> bool {
        let Some(parent) = self.tree.id(parent) else { return false };
        let parent = self.tree.node(parent);
        match &parent.shape {
            _ if parent.incomplete => true,
            Shape::Mapping(entries) => {
                entries.iter().take(100).any(|(key, _)| nearest(self.tree.key(*key), [field]).is_some())
            }
            Shape::Scalar(_) | Shape::List(_) => false,
        }
    }

    /// Each entry of a list that was read, through `read`.
    fn list<T, U>(&mut self, list: &Slot<Vec<Slot<T>>>, mut read: impl FnMut(&mut Self, &T, u64) -> Option<U>) -> Vec<U>
    where
        T: 'static,
    {
        let entries = list.value().map_or(&[][..], Vec::as_slice);
        entries.iter().filter_map(Slot::given).filter_map(|(value, node)| read(self, value, node)).collect()
    }

    /// Reports names or values that come twice. `what` is the noun for messages.
    fn unique<K: Ord>(&mut self, what: &str, entries: impl IntoIterator<Item = (K, String, u64)>) {
        let mut seen = BTreeMap::new();
        for (key, shown, node) in entries {
            if let Some(first) = seen.get(&key).copied() {
                let first: Place = self.tree.id(first).map_or(Place::default(), |id: NodeId| self.tree.place(id));
                let problem = self.problem(node, format!("{what} `{shown}` is used twice"));
                self.push(problem.label(format!("first written at {}:{}", first.line, first.column)));
            } else {
                seen.insert(key, node);
            }
        }
    }

    /// Reports a name that is not among `known`.
    fn unknown<'n>(&mut self, what: &str, name: &str, node: u64, known: impl Iterator<Item = &'n str> + Clone) {
        let problem = self.problem(node, format!("unknown {what} `{name}`"));
        if self.problems.len() >= MOST_PROBLEMS {
            return self.push(problem);
        }
        let problem = match nearest(name, known.clone()) {
            Some(near) => problem.suggest(near),
            None => {
                let known: Vec<_> = known.take(20).collect();
                if known.is_empty() {
                    problem.label(format!("no {what}s are defined; add it under `{what}s:`"))
                } else {
                    problem.label(format!("defined: {}", known.join(", ")))
                }
            }
        };
        self.push(problem);
    }
}
