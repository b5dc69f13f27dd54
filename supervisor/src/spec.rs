//! What to run and how: data, and the checks that need nothing but the data.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use palisade_plugin_proto::env::{self, MAX_SOCKET_PATH};

use crate::connect::Endpoint;
use crate::restart::Stagger;
use crate::sandbox::{Helper, Sandbox};
use crate::trust::checksum::Checksums;

/// Longest plugin name: names end up in paths, log fields and metrics.
const MAX_NAME: usize = 64;

/// One plugin: the command, what it is given, and the limits it is held to.
#[derive(Debug, Clone)]
pub struct PluginSpec {
    /// How operators call it: 1 to 64 characters of `A-Z a-z 0-9 - _`.
    pub name: String,
    /// Program and arguments. A program without `/` is looked up in the host's own `PATH`, a relative one with `/`
    /// starts at `cwd`.
    ///
    /// An argument with `{socket}` or `{port}` says that the program prints no handshake: each start it is told a fresh
    /// path or loopback port to listen on, and connected to as soon as it does. `handshake.timeout` bounds the wait.
    pub command: Vec<OsString>,
    /// A plugin that runs already. Set: `command` is empty, and whatever concerns a process counts for nothing.
    pub found: Option<Found>,
    /// Working directory of the plugin.
    pub cwd: PathBuf,
    /// Variables set for the plugin. `PLUGIN_*` belongs to the protocol and is refused.
    pub env: BTreeMap<OsString, OsString>,
    /// Names of variables passed on from the host's own environment, where they are set. Nothing else is inherited.
    pub env_pass: Vec<OsString>,
    /// Name and value of the variable that tells a plugin that a host started it. Not a secret.
    pub cookie: (String, String),
    /// Application versions that the host speaks.
    pub app_versions: Vec<u32>,
    /// Parent of the private directories that each start gets for its socket and temporary files. Created with mode
    /// 0700 if absent. Keep it short: a socket's path must not be longer than 107 bytes.
    pub runtime_dir: PathBuf,
    /// The group, by its number, that may connect to the plugin's socket: its directory is this group's, mode 0770, and
    /// the plugin gives the socket to it (go-plugin's `PLUGIN_UNIX_SOCKET_GROUP`). For hosts that run plugins as another
    /// user and are neither root nor allowed to open what is not theirs. Default: the plugin's user alone.
    pub socket_group: Option<u32>,
    /// What of the command must be as it was pinned. Default: nothing is looked at.
    pub checksums: Checksums,
    /// What the plugin's processes may do.
    pub sandbox: Sandbox,
    /// What applies a sandbox that needs it, see [`Sandbox::needs_helper`]. Default: nothing.
    pub helper: Option<Helper>,
    /// The line on stdout.
    pub handshake: HandshakePolicy,
    /// From the handshake line to serving: connection, first health check and [`crate::Adapter::attach`] together.
    pub ready_timeout: Duration,
    /// Which TCP addresses a plugin may announce.
    pub tcp: TcpPolicy,
    /// Whether host and plugin talk over mutual TLS with certificates made for each start (go-plugin's AutoMTLS). The
    /// plugin must support it: there is no falling back to plaintext.
    pub auto_mtls: bool,
    /// How a frozen plugin is found.
    pub health: HealthPolicy,
    /// How soon it is started again.
    pub restart: RestartPolicy,
    /// How it is stopped.
    pub stop: StopPolicy,
    /// How many reports of ended processes are kept. At least one is.
    pub exit_reports: usize,
}

/// A plugin that somebody else has started. It is connected to, and never ended: what a stop does to a process, it
/// does to the connection alone. One that is lost counts as the plugin's end, and is made again as the process would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it listens. A unix socket must not lie in a directory that everybody may write to, or below one that is not
    /// sticky. A TCP address beyond this machine needs [`TcpPolicy::Any`].
    pub endpoint: Endpoint,
    /// Who may listen there besides root and the host's own user: a user's number. It is looked at before anything is
    /// sent, on a unix socket and on a loopback port; on an address of another machine it can't be.
    pub uid: Option<u32>,
}

/// Limits of the handshake.
#[derive(Debug, Clone)]
pub struct HandshakePolicy {
    /// From the start of the process to the end of the line.
    pub timeout: Duration,
    /// Longest line in bytes; also the most that may be printed before it in all.
    pub max_line: usize,
    /// How many other lines may come before it.
    pub max_stray_lines: usize,
}

/// Which TCP addresses a plugin may announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpPolicy {
    /// Literal addresses in 127.0.0.0/8, and `[::1]`.
    LoopbackOnly,
    /// Any literal address that names one host.
    Any,
}

/// Health checks over `grpc.health.v1`. Plugins without the service count as healthy as long as they answer at all.
#[derive(Debug, Clone)]
pub struct HealthPolicy {
    /// From one check to the next.
    pub interval: Duration,
    /// How long one check may take.
    pub timeout: Duration,
    /// How many checks in a row must fail before the plugin is killed.
    pub failures: u32,
    /// Service name in the request.
    pub service: String,
    /// How many calls in a row, as the host tells by [`crate::Calls`], may get no answer in time before the plugin is
    /// checked at once. If that check fails as well, it is killed. At most one such check for each `interval`. 0:
    /// calls say nothing.
    pub call_misses: u32,
    /// How long its process may be stopped, by SIGSTOP or a debugger, before it is killed. It is looked at with each
    /// check.
    pub stopped_timeout: Duration,
}

/// Whether a plugin is started again when it has ended, and how soon. Without `max_restarts` it is never given up on:
/// a crash loop is made visible, not final.
#[derive(Debug, Clone)]
pub struct RestartPolicy {
    /// After which ends.
    pub mode: RestartMode,
    /// First pause. A plugin that had been serving is started again without one.
    pub initial: Duration,
    /// Longest pause.
    pub max: Duration,
    /// Growth from one pause to the next.
    pub multiplier: f64,
    /// Share of the pause by which it is varied at random, up and down.
    pub jitter: f64,
    /// Serving for this long makes earlier failures forgotten.
    pub reset_after: Duration,
    /// Failures in a row from which on the plugin counts as crash looped.
    pub crash_loop_after: u32,
    /// One more restart than this within `window` is not made: the plugin is disabled until an operator acts. `None`:
    /// no limit. Pauses may keep restarts below it, however often it fails.
    pub max_restarts: Option<u32>,
    /// What `max_restarts` counts within. A healthy run does not empty it, an operator does.
    pub window: Duration,
    /// How far apart the restarts are that share it.
    pub stagger: Stagger,
}

/// After which ends a plugin is started again. What an operator or the host asked for is no such end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartMode {
    /// After any.
    Always,
    /// Not after it exited by itself with status 0, having served.
    OnFailure,
    /// After none.
    Never,
}

/// Limits of each step of a stop; SIGKILL follows the last one.
#[derive(Debug, Clone)]
pub struct StopPolicy {
    /// How long calls under way may take to end, as far as the host tells of them by [`crate::Calls`].
    pub drain_timeout: Duration,
    /// From the call of `GRPCController.Shutdown` to SIGTERM.
    pub rpc_timeout: Duration,
    /// From SIGTERM to SIGKILL.
    pub term_timeout: Duration,
}

impl PluginSpec {
    /// A plugin with Palisade's own cookie and version, the host's working directory and the default limits.
    pub fn new(
        name: impl Into<String>,
        command: impl IntoIterator<Item = impl Into<OsString>>,
        runtime_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            command: command.into_iter().map(Into::into).collect(),
            found: None,
            // Where the working directory has been deleted under the host, `/` at least exists.
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            env: BTreeMap::new(),
            env_pass: Vec::new(),
            cookie: (env::COOKIE.0.to_owned(), env::COOKIE.1.to_owned()),
            app_versions: vec![env::APP_VERSION],
            runtime_dir: runtime_dir.into(),
            socket_group: None,
            checksums: Checksums::default(),
            sandbox: Sandbox::default(),
            helper: None,
            handshake: HandshakePolicy::default(),
            ready_timeout: Duration::from_secs(15),
            tcp: TcpPolicy::LoopbackOnly,
            auto_mtls: false,
            health: HealthPolicy::default(),
            restart: RestartPolicy::default(),
            stop: StopPolicy::default(),
            exit_reports: 10,
        }
    }

    /// A plugin that runs already, with the default limits. It needs no directory.
    pub fn found(name: impl Into<String>, endpoint: Endpoint) -> Self {
        let found = Some(Found { endpoint, uid: None });
        // go-plugin's name for a whole plugin means nothing to other servers, and all know the empty one.
        let health = HealthPolicy { service: String::new(), ..HealthPolicy::default() };
        Self { found, health, ..Self::new(name, [] as [OsString; 0], PathBuf::new()) }
    }

    /// Checks what can be known without starting anything.
    ///
    /// # Errors
    ///
    /// The first fault found, in the order of the fields.
    pub fn check(&self) -> Result<(), SpecError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.bytes().all(legal) {
            return Err(SpecError::Name(self.name.clone()));
        }
        match &self.found {
            Some(found) => self.check_found(found)?,
            None if self.command.first().is_none_or(|program| program.is_empty()) => return Err(SpecError::NoCommand),
            None => {}
        }
        if self.command.iter().any(|argument| argument.as_bytes().contains(&0)) {
            return Err(SpecError::NulInCommand);
        }
        if let Some(file) =
            self.checksums.files.keys().find(|file| !self.command.iter().skip(1).any(|arg| arg == *file))
        {
            return Err(SpecError::ChecksumOfNothing(file.clone()));
        }
        if self.sandbox.needs_helper() && self.helper.is_none() {
            return Err(SpecError::NoHelper);
        }
        for (name, value) in &self.env {
            check_variable(name)?;
            if value.as_bytes().contains(&0) {
                return Err(SpecError::Variable(name.clone()));
            }
        }
        self.env_pass.iter().try_for_each(|name| check_variable(name))?;
        check_variable(OsStr::new(&self.cookie.0))?;
        if self.cookie.1.contains('\0') {
            return Err(SpecError::Variable(self.cookie.0.clone().into()));
        }
        if self.app_versions.is_empty() {
            return Err(SpecError::NoVersions);
        }
        let told = [SOCKET, PORT].map(|placeholder| self.tells(placeholder));
        if told == [true, true] {
            return Err(SpecError::TwoPlaces);
        }
        if self.auto_mtls && told != [false, false] {
            return Err(SpecError::MtlsWithoutHandshake);
        }
        Ok(())
    }
}

impl PluginSpec {
    fn check_found(&self, found: &Found) -> Result<(), SpecError> {
        let Self { command, checksums, sandbox, auto_mtls, .. } = self;
        if !command.is_empty() || *checksums != Checksums::default() || *sandbox != Sandbox::default() || *auto_mtls {
            return Err(SpecError::NotStarted);
        }
        match &found.endpoint {
            Endpoint::Unix(path) if !path.is_absolute() || path.as_os_str().len() > MAX_SOCKET_PATH => {
                Err(SpecError::SocketPath(path.clone()))
            }
            Endpoint::Tcp(address) if address.port() == 0 || address.ip().to_canonical().is_unspecified() => {
                Err(SpecError::Nowhere(*address))
            }
            Endpoint::Tcp(address) if self.tcp == TcpPolicy::LoopbackOnly && !address.ip().is_loopback() => {
                Err(SpecError::Remote(*address))
            }
            Endpoint::Unix(_) | Endpoint::Tcp(_) => Ok(()),
        }
    }
}

/// Where a plugin that prints no handshake is told to listen.
pub(crate) const SOCKET: &str = "{socket}";
pub(crate) const PORT: &str = "{port}";

impl PluginSpec {
    /// Whether an argument has this placeholder.
    pub(crate) fn tells(&self, placeholder: &str) -> bool {
        let arguments = self.command.iter().skip(1);
        arguments.into_iter().any(|argument| argument.to_string_lossy().contains(placeholder))
    }

    /// Whether the program is told where to listen, and prints no handshake.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.tells(SOCKET) || self.tells(PORT)
    }
}

fn check_variable(name: &OsStr) -> Result<(), SpecError> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.iter().any(|byte| matches!(byte, 0 | b'=')) {
        return Err(SpecError::Variable(name.to_owned()));
    }
    if bytes.starts_with(env::PREFIX.as_bytes()) {
        return Err(SpecError::ReservedVariable(name.to_owned()));
    }
    Ok(())
}

impl Default for HandshakePolicy {
    fn default() -> Self {
        // 15 s: a JVM on two busy cores needs 5 of them.
        Self { timeout: Duration::from_secs(15), max_line: 8 * 1024, max_stray_lines: 32 }
    }
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            failures: 3,
            service: env::HEALTH_SERVICE.to_owned(),
            call_misses: 3,
            stopped_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            mode: RestartMode::Always,
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
            multiplier: 2.0,
            jitter: 0.2,
            reset_after: Duration::from_secs(60),
            crash_loop_after: 5,
            max_restarts: None,
            window: Duration::from_secs(60),
            stagger: Stagger::default(),
        }
    }
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(5),
            rpc_timeout: Duration::from_secs(1),
            term_timeout: Duration::from_secs(5),
        }
    }
}

/// What is wrong with a [`PluginSpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The name cannot stand in a path or a metric.
    #[error("plugin name {0:?} must be 1 to {MAX_NAME} characters of A-Z a-z 0-9 - _")]
    Name(String),
    /// Nothing to run.
    #[error("the command is empty")]
    NoCommand,
    /// Something that only a process can have.
    #[error("a plugin that runs already has no command, checksum, sandbox or AutoMTLS")]
    NotStarted,
    /// No path of a unix socket.
    #[error("{0:?} is not the path of a unix socket: absolute, at most {MAX_SOCKET_PATH} bytes")]
    SocketPath(PathBuf),
    /// Nobody can be connected to there.
    #[error("{0} is no address to connect to")]
    Nowhere(SocketAddr),
    /// An address beyond this machine.
    #[error("{0} is not a loopback address")]
    Remote(SocketAddr),
    /// An argument that no process can be given.
    #[error("the command contains a NUL byte")]
    NulInCommand,
    /// A sandbox that nothing can apply.
    #[error("the sandbox needs a helper")]
    NoHelper,
    /// A file with a checksum that the command does not name.
    #[error("there is a checksum of {0:?}, which is no argument of the command")]
    ChecksumOfNothing(OsString),
    /// A name or value that no environment can hold.
    #[error("environment variable {0:?} has an empty name, a `=` in its name, or a NUL byte")]
    Variable(OsString),
    /// A name that belongs to the protocol.
    #[error("environment variable {0:?} is set by the host; remove it")]
    ReservedVariable(OsString),
    /// No version could ever match.
    #[error("no application version is offered")]
    NoVersions,
    /// A program that could listen on either.
    #[error("the command has both {{socket}} and {{port}}")]
    TwoPlaces,
    /// AutoMTLS needs the sixth field of the line.
    #[error("AutoMTLS needs the handshake line, which a command with {{socket}} or {{port}} does not print")]
    MtlsWithoutHandshake,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_fault_has_its_error() {
        type Change = fn(&mut PluginSpec);
        let cases: &[(Change, SpecError)] = &[
            (|spec| spec.name = "../x".into(), SpecError::Name("../x".into())),
            (|spec| spec.name.clear(), SpecError::Name(String::new())),
            (|spec| spec.name = "x".repeat(65), SpecError::Name("x".repeat(65))),
            (|spec| spec.command.clear(), SpecError::NoCommand),
            (|spec| spec.command[0].clear(), SpecError::NoCommand),
            (|spec| spec.command.push("a\0b".into()), SpecError::NulInCommand),
            (|spec| spec.env_pass.push("A=B".into()), SpecError::Variable("A=B".into())),
            (
                |spec| spec.env_pass.push("PLUGIN_CLIENT_CERT".into()),
                SpecError::ReservedVariable("PLUGIN_CLIENT_CERT".into()),
            ),
            (
                |spec| drop(spec.env.insert("PLUGIN_X".into(), "1".into())),
                SpecError::ReservedVariable("PLUGIN_X".into()),
            ),
            (|spec| drop(spec.env.insert("X".into(), "\0".into())), SpecError::Variable("X".into())),
            (|spec| spec.cookie.0 = "PLUGIN_COOKIE".into(), SpecError::ReservedVariable("PLUGIN_COOKIE".into())),
            (|spec| spec.app_versions.clear(), SpecError::NoVersions),
            (|spec| spec.command.push("{socket}:{port}".into()), SpecError::TwoPlaces),
            (
                |spec| {
                    spec.auto_mtls = true;
                    spec.command.push("--listen={port}".into());
                },
                SpecError::MtlsWithoutHandshake,
            ),
            (
                |spec| {
                    let sum = crate::Checksum::of("Cargo.toml".as_ref()).unwrap();
                    spec.checksums.files.insert("python3".into(), sum);
                },
                SpecError::ChecksumOfNothing("python3".into()),
            ),
        ];
        let found = |address: &str| Some(Found { endpoint: Endpoint::Tcp(address.parse().unwrap()), uid: None });
        let mut spec = PluginSpec::found("auth", Endpoint::Unix("/run/auth.sock".into()));
        assert_eq!(spec.check(), Ok(()));
        spec.found = found("127.0.0.1:9000");
        assert_eq!(spec.check(), Ok(()));
        for address in ["0.0.0.0:9000", "127.0.0.1:0"] {
            spec.found = found(address);
            assert_eq!(spec.check(), Err(SpecError::Nowhere(address.parse().unwrap())));
        }
        spec.found = found("10.0.0.5:80");
        assert_eq!(spec.check(), Err(SpecError::Remote("10.0.0.5:80".parse().unwrap())));
        spec.tcp = TcpPolicy::Any;
        assert_eq!(spec.check(), Ok(()));
        let started: [fn(&mut PluginSpec); 3] = [
            |spec| spec.command.push("auth".into()),
            |spec| spec.auto_mtls = true,
            |spec| spec.sandbox.no_new_privs = !spec.sandbox.no_new_privs,
        ];
        for change in started {
            let mut spec = spec.clone();
            change(&mut spec);
            assert_eq!(spec.check(), Err(SpecError::NotStarted));
        }
        for path in ["auth.sock".into(), format!("/{}", "x".repeat(107))] {
            let spec = PluginSpec::found("auth", Endpoint::Unix(path.clone().into()));
            assert_eq!(spec.check(), Err(SpecError::SocketPath(path.into())));
        }

        let good = PluginSpec::new("auth", ["python3", "auth.py"], "/run/palisade");
        assert_eq!(good.check(), Ok(()));
        for (change, expected) in cases {
            let mut spec = good.clone();
            change(&mut spec);
            assert_eq!(spec.check().as_ref(), Err(expected));
        }
    }
}
