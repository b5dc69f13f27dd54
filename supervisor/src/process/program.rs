//! Which program to execute, and with which environment.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use palisade_plugin_proto::env as names;

use super::{SpawnError, spawner};
use crate::connect::Endpoint;
use crate::mtls::Identity;
use crate::spec::{PORT, PluginSpec, SOCKET};

/// `PATH` of plugins that are given no other: for those that start programs themselves, such as scripts whose first line
/// is `#!/usr/bin/env python3`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Ports for plugins that listen on TCP: go-plugin's defaults. Below those that the kernel gives to connections, so that
/// no attempt to reach a port can occupy it.
pub(super) const PORTS: RangeInclusive<u16> = 10_000..=25_000;

/// How many ports are tried.
const PORT_ATTEMPTS: usize = 100;

/// Finds the program as a shell of the host's would: by the host's `PATH` where it is a bare name, from `cwd` where it
/// is a relative path. The result is absolute and ends in the name as written: Python finds its virtual environment,
/// and multi-call programs their role, by that.
///
/// # Errors
///
/// Where there is no such file, or this user may not execute it.
pub fn resolve(program: &OsStr, cwd: &Path) -> Result<PathBuf, SpawnError> {
    if program.as_bytes().contains(&b'/') {
        let path = cwd.join(program);
        return executable(&path).map(|()| path);
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for dir in env::split_paths(&path).filter(|dir| dir.is_absolute()) {
        let candidate = dir.join(program);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error @ SpawnError::NotExecutable(_)) => refused = refused.or(Some(error)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| SpawnError::NotInPath(program.to_owned())))
}

fn executable(path: &Path) -> Result<(), SpawnError> {
    let found = fs::metadata(path).map_err(|source| SpawnError::Program { path: path.to_owned(), source })?;
    if !found.is_file() || access(path, AccessFlags::X_OK).is_err() {
        return Err(SpawnError::NotExecutable(path.to_owned()));
    }
    Ok(())
}

/// What a process is known by as this start's, whatever else its environment holds.
pub(super) fn marks(private: &Path) -> [(OsString, OsString); 2] {
    let (name, value) = spawner::mark();
    [(name.into(), value.into()), (names::UNIX_SOCKET_DIR.into(), private.into())]
}

/// The whole environment of a plugin. Later entries win, and the protocol's come last.
pub(super) fn environment(
    spec: &PluginSpec,
    private: &Path,
    identity: Option<&Identity>,
) -> BTreeMap<OsString, OsString> {
    let mut vars: BTreeMap<OsString, OsString> = BTreeMap::new();
    vars.insert("PATH".into(), DEFAULT_PATH.into());
    // Without it, Python and Java read and write ASCII.
    vars.insert("LANG".into(), "C.UTF-8".into());
    vars.insert("HOME".into(), private.into());
    for name in &spec.env_pass {
        if let Some(value) = env::var_os(name) {
            vars.insert(name.clone(), value);
        }
    }
    vars.extend(spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let versions: Vec<String> = spec.app_versions.iter().map(u32::to_string).collect();
    let (cookie, value) = &spec.cookie;
    vars.insert(cookie.into(), value.into());
    vars.insert(names::PROTOCOL_VERSIONS.into(), versions.join(",").into());
    vars.insert(names::MIN_PORT.into(), PORTS.start().to_string().into());
    vars.insert(names::MAX_PORT.into(), PORTS.end().to_string().into());
    if let Some(group) = spec.socket_group {
        vars.insert(names::UNIX_SOCKET_GROUP.into(), group.to_string().into());
    }
    if let Some(identity) = identity {
        vars.insert(names::CLIENT_CERT.into(), identity.pem().into());
    }
    vars.extend(marks(private));
    // For plugins from before go-plugin v1.5.0, which know no other.
    vars.insert("TMPDIR".into(), private.into());
    vars
}

/// Where a plugin that prints no handshake is told to listen: in its own directory, or on a port that nobody has now.
pub(super) fn place(spec: &PluginSpec, private: &Path) -> Result<Option<Endpoint>, SpawnError> {
    if spec.tells(SOCKET) {
        return Ok(Some(Endpoint::Unix(private.join("plugin.sock"))));
    }
    if !spec.tells(PORT) {
        return Ok(None);
    }
    let addresses = std::iter::repeat_with(|| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS))));
    let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    addresses.take(PORT_ATTEMPTS).find(free).map(|address| Some(Endpoint::Tcp(address))).ok_or(SpawnError::NoPort)
}

/// An argument, with what the plugin is told in the place of `{socket}` or `{port}`.
pub(super) fn filled_in(argument: &OsStr, told: Option<&Endpoint>) -> OsString {
    let (placeholder, text) = match told {
        None => return argument.to_owned(),
        Some(Endpoint::Unix(path)) => (SOCKET, path.clone().into_os_string().into_vec()),
        Some(Endpoint::Tcp(address)) => (PORT, address.port().to_string().into_bytes()),
    };
    let (mut rest, mut filled) = (argument.as_bytes(), Vec::new());
    while let Some(at) = rest.windows(placeholder.len()).position(|part| part == placeholder.as_bytes()) {
        filled.extend_from_slice(&rest[..at]);
        filled.extend_from_slice(&text);
        rest = &rest[at + placeholder.len()..];
    }
    filled.extend_from_slice(rest);
    OsString::from_vec(filled)
}

/// Why exec failed, when the kernel's one number could mean several things.
pub(super) fn explain(path: PathBuf, source: io::Error) -> SpawnError {
    if source.kind() == io::ErrorKind::NotFound
        && let Some(interpreter) = interpreter(&path)
    {
        return SpawnError::Interpreter { path, interpreter };
    }
    SpawnError::Exec { path, source }
}

/// What the first line of a script names. A carriage return at its end is shown, being the usual fault.
fn interpreter(path: &Path) -> Option<String> {
    let mut head = [0; 256];
    let count = File::open(path).ok()?.read(&mut head).ok()?;
    let line = head[..count].strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    Some(line.trim_start().split([' ', '\t']).next()?.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let root = tempfile::tempdir().unwrap();
        let script = root.path().join("run.sh");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let resolve = |program: &str| resolve(OsStr::new(program), root.path());
        assert!(resolve("sh").unwrap().ends_with("sh"));
        assert!(matches!(resolve("run.sh"), Err(SpawnError::NotInPath(_))));
        assert!(matches!(resolve("./run.sh"), Err(SpawnError::NotExecutable(_))));
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(resolve("./run.sh").unwrap(), root.path().join("./run.sh"));
        assert!(matches!(resolve("./none"), Err(SpawnError::Program { .. })));
        assert!(matches!(resolve("/"), Err(SpawnError::NotExecutable(_))));
    }

    #[test]
    fn the_environment_holds_what_was_given_and_the_protocol_has_the_last_word() {
        let mut spec = PluginSpec::new("auth", ["x"], "/run");
        spec.env_pass = vec!["CARGO_MANIFEST_DIR".into(), "NOT_SET_ANYWHERE".into()];
        spec.env = [("HOME".into(), "/home/me".into()), ("TMPDIR".into(), "/elsewhere".into())].into();
        spec.app_versions = vec![1, 3];
        let vars = environment(&spec, Path::new("/run/p-1"), None);
        let names: Vec<_> = vars.keys().map(|name| name.to_string_lossy()).collect();
        assert_eq!(
            names,
            [
                "CARGO_MANIFEST_DIR",
                "HOME",
                "LANG",
                "PALISADE_HOST",
                "PALISADE_PLUGIN",
                "PATH",
                "PLUGIN_MAX_PORT",
                "PLUGIN_MIN_PORT",
                "PLUGIN_PROTOCOL_VERSIONS",
                "PLUGIN_UNIX_SOCKET_DIR",
                "TMPDIR",
            ]
        );
        assert_eq!(vars[OsStr::new("HOME")], "/home/me");
        assert_eq!(vars[OsStr::new("TMPDIR")], "/run/p-1");
        assert_eq!(vars[OsStr::new("PLUGIN_PROTOCOL_VERSIONS")], "1,3");

        let identity = Identity::new().unwrap();
        let vars = environment(&spec, Path::new("/run/p-1"), Some(&identity));
        assert!(vars[OsStr::new("PLUGIN_CLIENT_CERT")].to_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(vars.values().all(|value| !value.to_string_lossy().contains("PRIVATE KEY")));
    }

    #[test]
    fn a_plugin_is_told_where_to_listen() {
        let told = |argument: &str| {
            let spec = PluginSpec::new("auth", ["x", argument], "/run");
            let told = place(&spec, Path::new("/run/p-1")).unwrap();
            (filled_in(OsStr::new(argument), told.as_ref()).into_string().unwrap(), told)
        };
        assert_eq!(told("--verbose"), ("--verbose".to_owned(), None));
        let socket = Endpoint::Unix("/run/p-1/plugin.sock".into());
        assert_eq!(told("-l=unix:{socket}"), ("-l=unix:/run/p-1/plugin.sock".to_owned(), Some(socket)));
        let (argument, address) = told("{port}+{port}");
        let Some(Endpoint::Tcp(address)) = address else { panic!("{address:?}") };
        assert!(address.ip().is_loopback() && PORTS.contains(&address.port()));
        assert_eq!(argument, format!("{0}+{0}", address.port()));
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let root = tempfile::tempdir().unwrap();
        let script = root.path().join("run");
        fs::write(&script, "#! /usr/bin/python9\r\nx").unwrap();
        let error = explain(script, io::ErrorKind::NotFound.into());
        assert!(matches!(&error, SpawnError::Interpreter { interpreter, .. } if interpreter == "/usr/bin/python9\\r"));
    }
}
