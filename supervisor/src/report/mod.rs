//! How a process ended and why, told so that an operator can act on it.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use serde::{Serialize, Serializer};

use crate::calls::CallsHit;
use crate::connect::ConnectError;
use crate::handshake::HandshakeFailure;
use crate::instance::AttachError;
use crate::process::SpawnError;
use crate::status::{State, duration_seconds, epoch_seconds, word};

mod hints;
mod usage;

pub use self::usage::Usage;

/// The end of one process, or of the attempt to start one.
#[derive(Debug, Clone, Serialize)]
pub struct ExitReport {
    /// The plugin's name.
    pub plugin: String,
    /// When. Serialised as seconds since the epoch.
    #[serde(serialize_with = "epoch_seconds")]
    pub at: SystemTime,
    /// The process, where one was started.
    pub pid: Option<i32>,
    /// Why it ended.
    pub cause: ExitCause,
    /// What the kernel said, where there was a process and it has gone.
    pub end: Option<ProcessEnd>,
    /// Whether the kernel wrote its memory to a core file, or handed it to the program that `core_pattern` names.
    pub core_dumped: bool,
    /// Whether the kernel killed it, or a process of it, because the memory of its control group was used up.
    pub out_of_memory: bool,
    /// What it was doing when it ended, or when its end was decided on. Serialised as one word.
    #[serde(serialize_with = "word")]
    pub state: State,
    /// How long it had run. Serialised in seconds.
    #[serde(serialize_with = "duration_seconds")]
    pub after: Duration,
    /// The calls that its end has hit, as far as the host tells of them by [`crate::Calls`].
    pub calls: CallsHit,
    /// What it had used, where there was a process and it has gone.
    pub usage: Option<Usage>,
    /// What it printed to stdout up to its handshake, the line itself included: at most 33 lines, 256 bytes of each,
    /// control characters escaped.
    pub transcript: Vec<String>,
    /// Its last lines on stderr, at most 20.
    pub stderr: Vec<String>,
    /// Program and arguments. Empty where somebody else has started it.
    pub command: Vec<String>,
    /// Where it listens, where somebody else has started it: as `unix:/path` or `tcp:ip:port`.
    pub address: Option<String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// The user it ran as.
    pub user: String,
    /// What usually helps against it.
    pub likely: Option<String>,
}

/// Why a process ended.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExitCause {
    /// It never came to serve. Serialised as one line.
    #[serde(serialize_with = "one_line")]
    StartFailure(Arc<StartFailure>),
    /// It exited by itself, with this code.
    Exited(i32),
    /// It was ended by this signal, which we did not send.
    Signalled(String),
    /// It was killed because it stopped answering health checks; the text says how.
    Unhealthy(String),
    /// It was killed because calls in a row got no answer, and then a health check failed; the text says how.
    Unresponsive(String),
    /// It was killed because its process had been stopped, by SIGSTOP or a debugger, for this long. Serialised in
    /// seconds.
    #[serde(serialize_with = "duration_seconds")]
    Frozen(Duration),
    /// The connection to it was lost, where somebody else has started it.
    Disconnected,
    /// It was stopped or restarted by an operator, or with the host.
    Requested,
}

/// How the kernel says a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessEnd {
    /// With an exit status.
    Exited(i32),
    /// By a signal, such as `SIGSEGV`.
    Signalled(String),
}

/// Why a plugin did not come to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// There is no process.
    #[error("could not be started")]
    Spawn(#[source] SpawnError),
    /// The process went before its line came.
    #[error("exited before the handshake")]
    ExitedBeforeHandshake,
    /// The process went after its line.
    #[error("exited after the handshake, before it served")]
    ExitedBeforeReady,
    /// What it printed is not acceptable.
    #[error("failed the handshake")]
    Handshake(#[source] HandshakeFailure),
    /// Where it says it listens, nobody could be reached.
    #[error("could not be connected to")]
    Connect(#[source] ConnectError),
    /// It was connected to, and the host's own contract with it failed.
    #[error("did not accept the host")]
    Attach(#[source] AttachError),
    /// The time was up; the text says what was awaited last.
    #[error("was not ready within {0:?}: {1}")]
    NotReady(Duration, String),
}

impl ProcessEnd {
    pub(crate) fn of(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Signalled(
                Signal::try_from(signal)
                    .map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned()),
            ),
            // Without a signal there is a code.
            None => Self::Exited(status.code().unwrap_or_default()),
        }
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signalled(signal) => f.write_str(signal),
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartFailure(failure) => f.write_str(&chain(failure.as_ref())),
            Self::Exited(code) => write!(f, "exited (exit status {code})"),
            Self::Signalled(signal) => write!(f, "was killed by {signal}"),
            Self::Unhealthy(detail) => write!(f, "stopped answering health checks: {detail}"),
            Self::Unresponsive(detail) => write!(f, "left calls unanswered and failed a health check: {detail}"),
            Self::Frozen(limit) => write!(f, "was stopped by a signal or a debugger for {}", Readable(*limit)),
            Self::Disconnected => f.write_str("lost the connection"),
            Self::Requested => f.write_str("order"),
        }
    }
}

impl ExitReport {
    /// The first line of the report, without the word `error`.
    #[must_use]
    pub fn headline(&self) -> String {
        let after = format!("after {}", Readable(self.after));
        let plugin = format!("plugin `{}`", self.plugin);
        let ended = if self.address.is_some() { "was disconnected" } else { "was killed" };
        match (&self.cause, &self.end) {
            (ExitCause::StartFailure(why), Some(end)) => format!("{plugin} {} ({end}, {after})", chain(why.as_ref())),
            (ExitCause::StartFailure(why), None) => format!("{plugin} {} ({after})", chain(why.as_ref())),
            (ExitCause::Exited(code), _) => format!("{plugin} exited (exit status {code}, {after})"),
            (ExitCause::Signalled(signal), _) => format!("{plugin} was killed by {signal} ({after})"),
            (ExitCause::Unhealthy(detail), _) => {
                format!("{plugin} stopped answering health checks and {ended}: {detail} ({after})")
            }
            (ExitCause::Unresponsive(detail), _) => {
                format!("{plugin} left calls unanswered, failed a health check and {ended}: {detail} ({after})")
            }
            (ExitCause::Frozen(limit), _) => {
                let limit = Readable(*limit);
                format!("{plugin} was stopped by a signal or a debugger for {limit} and was killed ({after})")
            }
            (ExitCause::Disconnected, _) => {
                format!("{plugin} is no longer connected: it went, or closed the connection ({after})")
            }
            (ExitCause::Requested, None) if self.address.is_some() => format!("{plugin} {ended} ({after})"),
            (ExitCause::Requested, Some(end)) => format!("{plugin} was stopped ({end}, {after})"),
            (ExitCause::Requested, None) => format!("{plugin} was stopped ({after})"),
        }
    }

    fn write_details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pid) = self.pid {
            write!(f, "\n  process {pid}, while {}", self.state)?;
            let core = if self.core_dumped { ", core dumped" } else { ", no core dump" };
            f.write_str(if matches!(self.end, Some(ProcessEnd::Signalled(_))) { core } else { "" })?;
        }
        if let Some(Usage { user, system, max_memory, major_faults }) = self.usage {
            let (user, system, memory) = (Readable(user), Readable(system), max_memory >> 20);
            write!(f, "\n  used: {user} of processor time, {system} of the kernel's, {memory} MiB of memory at most")?;
            if major_faults > 0 {
                write!(f, ", {major_faults} waits for memory on disk")?;
            }
        }
        if !self.transcript.is_empty() {
            write!(f, "\n  stdout up to its handshake:")?;
            for line in &self.transcript {
                write!(f, "\n    | {line}")?;
            }
        }
        Ok(())
    }

    pub(crate) fn with_hint(mut self) -> Self {
        self.likely = hints::likely(&self);
        self
    }
}

impl fmt::Display for ExitReport {
    /// Several lines, the last without a line end. With `{:#}` all there is, else what usually is enough.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = if matches!(self.cause, ExitCause::Requested) { "" } else { "error: " };
        write!(f, "{error}{}", self.headline())?;
        match &self.address {
            Some(address) => write!(f, "\n  address: {address}")?,
            None => {
                write!(f, "\n  command: {}", self.command.join(" "))?;
                write!(f, "     cwd: {}     user: {}", self.cwd.display(), self.user)?;
            }
        }
        if f.alternate() {
            self.write_details(f)?;
        }
        if self.calls.count > 0 {
            let CallsHit { count, ids } = &self.calls;
            let more = if *count > ids.len() { ", ..." } else { "" };
            write!(f, "\n  calls under way: {count} ({}{more})", ids.join(", "))?;
        }
        if !self.stderr.is_empty() {
            write!(f, "\n  last lines on stderr:")?;
            for line in &self.stderr {
                write!(f, "\n    | {line}")?;
            }
        }
        if let Some(likely) = &self.likely {
            write!(f, "\n  likely: {likely}")?;
        }
        Ok(())
    }
}

/// An error and everything below it in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let part = error.to_string();
        // Some libraries repeat the level below in their own text.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        below = error.source();
    }
    text
}

fn one_line<S: Serializer>(failure: &Arc<StartFailure>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&chain(failure.as_ref()))
}

/// The name of the user that plugins run as.
pub(crate) fn user() -> String {
    static USER: OnceLock<String> = OnceLock::new();
    let look_up = || {
        let uid = geteuid();
        User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
    };
    USER.get_or_init(look_up).clone()
}

/// A duration as people say it.
struct Readable(Duration);

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{} ms", self.0.as_millis()),
            1..=59 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            60..=3_599 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            _ => write!(f, "{} h {} min", seconds / 3_600, seconds / 60 % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn example() -> ExitReport {
        ExitReport {
            plugin: "auth".into(),
            at: SystemTime::UNIX_EPOCH,
            pid: Some(7),
            cause: ExitCause::StartFailure(Arc::new(StartFailure::ExitedBeforeHandshake)),
            end: Some(ProcessEnd::Exited(1)),
            core_dumped: false,
            out_of_memory: false,
            state: State::AwaitHandshake,
            after: Duration::from_millis(212),
            calls: CallsHit { count: 3, ids: vec!["7f".into(), "80".into()] },
            usage: Some(Usage {
                user: Duration::from_millis(1_250),
                system: Duration::from_millis(30),
                max_memory: 45 << 20,
                major_faults: 0,
            }),
            transcript: vec!["loading".into()],
            stderr: vec!["ModuleNotFoundError: No module named 'grpc'".into()],
            command: vec!["python3".into(), "auth.py".into()],
            address: None,
            cwd: "/srv/app".into(),
            user: "palisade".into(),
            likely: None,
        }
    }

    #[test]
    fn a_report_reads_as_an_operator_needs_it() {
        let expected = "error: plugin `auth` exited before the handshake (exit status 1, after 212 ms)
  command: python3 auth.py     cwd: /srv/app     user: palisade
  calls under way: 3 (7f, 80, ...)
  last lines on stderr:
    | ModuleNotFoundError: No module named 'grpc'
  likely: the interpreter has no `grpcio`; try: pip install palisade-plugin";
        assert_eq!(example().with_hint().to_string(), expected);
    }

    #[test]
    fn the_details_are_there_for_who_asks() {
        let details = format!("{:#}", example());
        let expected = "
  process 7, while awaiting the handshake
  used: 1.2 s of processor time, 30 ms of the kernel's, 45 MiB of memory at most
  stdout up to its handshake:
    | loading
  calls under way";
        assert!(details.contains(expected), "{details}");
        let mut killed = example();
        killed.end = Some(ProcessEnd::Signalled("SIGSEGV".into()));
        assert!(format!("{killed:#}").contains("while awaiting the handshake, no core dump\n"));
        killed.core_dumped = true;
        assert!(format!("{killed:#}").contains("while awaiting the handshake, core dumped\n"));
        killed.usage.as_mut().unwrap().major_faults = 12;
        assert!(format!("{killed:#}").contains(" at most, 12 waits for memory on disk\n"));
    }

    #[test]
    fn programs_get_the_same() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!((&json["state"], &json["core_dumped"]), (&"await_handshake".into(), &false.into()));
        assert_eq!(json["usage"]["max_memory"], 45 << 20);
        assert_eq!(json["transcript"], serde_json::json!(["loading"]));
    }

    #[test]
    fn durations_read_well() {
        let shown = |millis| Readable(Duration::from_millis(millis)).to_string();
        assert_eq!(shown(212), "212 ms");
        assert_eq!(shown(1_250), "1.2 s");
        assert_eq!(shown(61_000), "1 min 1 s");
        assert_eq!(shown(2 * 3_600_000 + 300_000), "2 h 5 min");
    }
}
