//! Checksums written into a configuration file, which stays as it is otherwise: comments, order and blanks included.
//!
//! The text is edited at the place of the plugin, and then read: unless it says the same as before but for the
//! checksums, nothing is written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use palisade_supervisor::{Checksum, Checksums, resolve_program};
use serde_json::Value;

use super::convert::script_index;
use super::problem::Place;
use super::tree::{NodeId, Shape, Tree};
use super::{Config, Plugin, parse};

/// Why nothing was pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// What is to be pinned.
    #[error("{0}")]
    Unreadable(String),
    /// There is no program of ours.
    #[error("the plugin has an `address`: the proxy starts no program of it")]
    NotStarted,
    /// The file is written in a way that can't be edited safely. The text is what to write instead.
    #[error("the file can't be edited safely here; write under the plugin yourself:\n{0}")]
    NotEditable(String),
    /// Writing.
    #[error("the file can't be written: {0}")]
    Write(#[source] io::Error),
}

/// The checksums of what a plugin runs now: its program, what its interpreter is told to run, and what has a checksum
/// already.
///
/// # Errors
///
/// Where one of the files is not there or can't be read.
pub fn checksums(plugin: &Plugin) -> Result<Checksums, PinError> {
    if plugin.found.is_some() {
        return Err(PinError::NotStarted);
    }
    let [program, arguments @ ..] = &plugin.command[..] else { return Ok(Checksums::default()) };
    let told = |error: &dyn std::error::Error| PinError::Unreadable(palisade_supervisor::chain(error));
    let path = resolve_program(program.as_ref(), &plugin.cwd).map_err(|error| told(&error))?;
    let sum = |path: &Path| {
        Checksum::of(path).map_err(|error| PinError::Unreadable(format!("{} can't be read: {error}", path.display())))
    };
    let arguments: Vec<_> = arguments.iter().map(|argument| Some(argument.as_str())).collect();
    let script = script_index(program, &arguments).and_then(|index| arguments[index]).map(Into::into);
    let files = plugin.checksums.files.keys().cloned().chain(script);
    let files = files.map(|file| Ok((file.clone(), sum(&plugin.cwd.join(&file))?))).collect::<Result<_, _>>()?;
    Ok(Checksums { program: Some(sum(&path)?), files })
}

/// Writes the checksums of a plugin into the file that `config` was read from. The file is replaced as a whole, with
/// its owner and mode.
///
/// # Errors
///
/// Where the file is not one that can be edited, or can't be written.
pub fn write(config: &Config, name: &str, sums: &Checksums) -> Result<(), PinError> {
    // A symbolic link stays one.
    let path = config.file.canonicalize().map_err(PinError::Write)?;
    let text = fs::read_to_string(&path).map_err(PinError::Write)?;
    let edited = edited(config, &text, name, sums).ok_or_else(|| PinError::NotEditable(block("  ", sums)))?;
    replace(&path, &edited).map_err(PinError::Write)
}

/// `text` with the checksums in it.
fn edited(config: &Config, text: &str, name: &str, sums: &Checksums) -> Option<String> {
    let tree = Tree::read(text).0?;
    let plugins = entry(&tree, tree.root(), "plugins")?;
    let plugin = entry(&tree, plugins, name)?;
    let as_wanted = |edited: &String| {
        let Ok(mut found) = parse(&config.file, edited) else { return false };
        let Some(plugin) = found.plugins.get_mut(name) else { return false };
        let same = plugin.checksums == *sums;
        plugin.checksums = config.plugins.get(name).map(|plugin| plugin.checksums.clone()).unwrap_or_default();
        same && found.effective_yaml() == config.effective_yaml()
    };
    candidates(&tree, plugin, text, sums).into_iter().find(as_wanted)
}

fn candidates(tree: &Tree, plugin: NodeId, text: &str, sums: &Checksums) -> Vec<String> {
    let Shape::Mapping(entries) = &tree.node(plugin).shape else { return Vec::new() };
    let insert = |at: usize, what: &str| format!("{}{what}{}", &text[..at], &text[at..]);
    if let Some(old) = entry(tree, plugin, "checksum") {
        return match &tree.node(old).shape {
            Shape::Scalar(_) => replaced(tree, text, vec![(old, flow(sums))]).into_iter().collect(),
            Shape::Mapping(_) => {
                let program = sums.program.and_then(|sum| Some((entry(tree, old, "program")?, sum.to_string())));
                let files = entry(tree, old, "files");
                let file = |(file, sum): (&std::ffi::OsString, &Checksum)| {
                    Some((entry(tree, files?, file.to_str()?)?, sum.to_string()))
                };
                let files = sums.files.iter().filter_map(file);
                replaced(tree, text, program.into_iter().chain(files).collect()).into_iter().collect()
            }
            Shape::List(_) => Vec::new(),
        };
    }
    let Some(at) = entries.first().and_then(|(key, _)| offset(text, tree.place(*key))) else { return Vec::new() };
    let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let indent = &text[line..at];
    let mut candidates = Vec::new();
    if indent.chars().all(|c| c == ' ') {
        candidates.push(insert(line, &block(indent, sums)));
    }
    candidates.push(insert(at, &format!("checksum: {}, ", flow(sums))));
    candidates
}

fn entry(tree: &Tree, mapping: NodeId, key: &str) -> Option<NodeId> {
    let Shape::Mapping(entries) = &tree.node(mapping).shape else { return None };
    entries.iter().find(|(name, _)| tree.key(*name) == key).map(|(_, value)| *value)
}

/// The text with other scalars at these nodes.
fn replaced(tree: &Tree, text: &str, mut changes: Vec<(NodeId, String)>) -> Option<String> {
    let mut edited = text.to_owned();
    // From the end, so that the places before stay right.
    changes.sort_by_key(|(node, _)| std::cmp::Reverse(tree.place(*node)));
    for (node, new) in changes {
        let at = offset(text, tree.place(node))?;
        let rest = &text[at..];
        let length = match rest.chars().next()? {
            quote @ ('"' | '\'') => rest[1..].find(quote)? + 2,
            _ => rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == ':')).unwrap_or(rest.len()),
        };
        edited.replace_range(at..at + length, &new);
    }
    Some(edited)
}

/// Where a place is, in bytes.
fn offset(text: &str, place: Place) -> Option<usize> {
    let lines = text.split_inclusive('\n');
    let start: usize = lines.clone().take(place.line.checked_sub(1)?).map(str::len).sum();
    let line = text[start..].split_inclusive('\n').next()?;
    let within = line.char_indices().map(|(index, _)| index).nth(place.column.checked_sub(1)?)?;
    Some(start + within)
}

/// As lines under a plugin.
fn block(indent: &str, sums: &Checksums) -> String {
    let Checksums { program, files } = sums;
    if files.is_empty() {
        return program.map(|sum| format!("{indent}checksum: {sum}\n")).unwrap_or_default();
    }
    let mut text = format!("{indent}checksum:\n");
    text += &program.map(|sum| format!("{indent}  program: {sum}\n")).unwrap_or_default();
    text += &format!("{indent}  files:\n");
    for (file, sum) in files {
        text += &format!("{indent}    {}: {sum}\n", key(&file.to_string_lossy()));
    }
    text
}

/// On one line.
fn flow(sums: &Checksums) -> String {
    let Checksums { program, files } = sums;
    if files.is_empty() {
        return program.map(|sum| sum.to_string()).unwrap_or_default();
    }
    let files: Vec<_> = files.iter().map(|(file, sum)| format!("{}: {sum}", key(&file.to_string_lossy()))).collect();
    let program = program.map(|sum| format!("program: {sum}, ")).unwrap_or_default();
    format!("{{{program}files: {{{}}}}}", files.join(", "))
}

/// In quotes where YAML could take it for something else. Strings of JSON are strings of YAML.
fn key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '.' | '/'))
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-' | '_'));
    if plain { name.to_owned() } else { Value::from(name).to_string() }
}

/// All of the new file or all of the old one, whenever the machine stops.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let old = fs::metadata(path)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:x}", fastrand::u64(..)));
    let temporary = dir.join(name);
    let written = (|| {
        let mut file = File::create_new(&temporary)?;
        if file.metadata()?.uid() != old.uid() || file.metadata()?.gid() != old.gid() {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(old.permissions())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::load;

    const START: &str = "# mine\nlisteners: [{address: 127.0.0.1:0}]  # one\n";

    /// Pins plugin `a` of this file, and gives back what the file says then.
    fn pinned(plugin: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("palisade.yaml");
        let program = dir.path().join("program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("a.py"), "").unwrap();
        fs::write(&file, format!("{START}{plugin}")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let config = load(&file).unwrap();
        let sums = checksums(&config.plugins["a"]).unwrap();
        write(&config, "a", &sums).unwrap();
        assert_eq!(load(&file).unwrap().plugins["a"].checksums, sums);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let text = fs::read_to_string(&file).unwrap();
        text.strip_prefix(START).unwrap().to_owned()
    }

    #[test]
    fn the_rest_of_the_file_stays() {
        let sum = "sha256:a8076d3d28d21e02012b20eaf7dbf75409a6277134439025f282e368e3305abf";
        let zero = format!("sha256:{}", "0".repeat(64));
        for (before, after) in [
            (
                "plugins:\n  a:  # it\n    command: [./program]\n    # end\n  b: {command: [./program]}\n",
                format!(
                    "plugins:\n  a:  # it\n    checksum: {sum}\n    command: [./program]\n    # end\n  b: {{command: [./program]}}\n"
                ),
            ),
            (
                "plugins: {a: {command: [./program]}}",
                format!("plugins: {{a: {{checksum: {sum}, command: [./program]}}}}"),
            ),
            (
                "plugins: {a: {\n  command: [./program]}}",
                format!("plugins: {{a: {{\n  checksum: {sum}, command: [./program]}}}}"),
            ),
            (
                &format!("plugins:\n  a:\n    command: [./program]\n    checksum: '{zero}' # old\n"),
                format!("plugins:\n  a:\n    command: [./program]\n    checksum: {sum} # old\n"),
            ),
            (
                &format!("plugins: {{a: {{command: [./program], checksum: {{program: {zero}}}}}}}"),
                format!("plugins: {{a: {{command: [./program], checksum: {{program: {sum}}}}}}}"),
            ),
        ] {
            assert_eq!(pinned(before), after);
        }
    }

    #[test]
    fn what_an_interpreter_runs_is_pinned_too() {
        let text = pinned("plugins:\n  a:\n    command: [/usr/bin/env, a.py]\n");
        assert!(!text.contains("files:"), "{text}");
        let Ok(sh) = Checksum::of(Path::new("/bin/sh")) else { return };
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let expected = format!(
            "plugins:\n  a:\n    checksum:\n      program: {sh}\n      files:\n        a.py: {empty}\n    command: [/bin/sh, a.py]\n"
        );
        assert_eq!(pinned("plugins:\n  a:\n    command: [/bin/sh, a.py]\n"), expected);
        let zero = format!("sha256:{}", "0".repeat(64));
        assert_eq!(
            pinned(&format!("plugins:\n  a:\n    command: [/bin/sh, a.py]\n    checksum: {zero}\n")),
            format!(
                "plugins:\n  a:\n    command: [/bin/sh, a.py]\n    checksum: {{program: {sh}, files: {{a.py: {empty}}}}}\n"
            )
        );
    }

    #[test]
    fn names_of_files_are_quoted_where_yaml_needs_it() {
        assert_eq!(
            (key("a/b-1.py").as_str(), key("1.py").as_str(), key("a b").as_str()),
            ("a/b-1.py", "\"1.py\"", "\"a b\"")
        );
    }
}
