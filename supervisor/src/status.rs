//! What an operator sees of a plugin.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::report::ExitReport;
use crate::sandbox::Confinement;

/// What is happening with a plugin, or awaited from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// The process is being made.
    Starting,
    /// It runs; the line on its stdout is awaited.
    AwaitHandshake,
    /// It said where it listens; it is being connected to, and asked whether it is healthy.
    AwaitHealth,
    /// It is healthy; the host's own contract is being set up.
    AwaitReady,
    /// It takes calls.
    Serving,
    /// It runs, and calls are kept from it. It is killed unless that changes in time.
    NotServing {
        /// Why.
        why: NotServing,
    },
    /// It is about to be stopped: calls under way may end, no new ones come.
    Draining,
    /// It failed and is started again later.
    BackingOff {
        /// When. Serialised as seconds since the epoch.
        #[serde(serialize_with = "epoch_seconds")]
        next_attempt: SystemTime,
    },
    /// It failed so often that somebody should look; it is started again later all the same.
    CrashLooped {
        /// When. Serialised as seconds since the epoch.
        #[serde(serialize_with = "epoch_seconds")]
        next_attempt: SystemTime,
    },
    /// Its process is being ended.
    Stopping,
    /// There is no process and none is wanted: an operator stopped it, it ended by itself with exit status 0 and its
    /// restart policy leaves it at that, or its start is put off by [`crate::Plugin::hold`].
    Stopped,
    /// It failed, and is not started again until an operator asks.
    Disabled {
        /// Why not.
        why: WontRetry,
    },
}

/// Why calls are kept from a process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NotServing {
    /// Its health service says that it does not serve.
    Reported,
    /// Calls in a row got no answer in time. A health check is under way: if it fails too, the process is killed.
    Suspect,
    /// It was stopped by a signal (SIGSTOP), or by a debugger.
    Frozen,
}

impl fmt::Display for NotServing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reported => "it reports so",
            Self::Suspect => "calls got no answer, it is being checked",
            Self::Frozen => "its process is stopped, by a signal or a debugger",
        })
    }
}

/// Why a plugin that failed is not started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WontRetry {
    /// [`crate::RestartMode::Never`].
    Policy,
    /// One more restart would be more than `max_restarts` within the window.
    TooManyRestarts,
}

impl fmt::Display for WontRetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "its restart policy is `never`",
            Self::TooManyRestarts => "too many restarts within the window",
        })
    }
}

impl State {
    /// The state in one word, as in the serialised form.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::AwaitHandshake => "await_handshake",
            Self::AwaitHealth => "await_health",
            Self::AwaitReady => "await_ready",
            Self::Serving => "serving",
            Self::NotServing { .. } => "not_serving",
            Self::Draining => "draining",
            Self::BackingOff { .. } => "backing_off",
            Self::CrashLooped { .. } => "crash_looped",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Disabled { .. } => "disabled",
        }
    }
}

impl State {
    /// Whether it is the same but for times: the next attempt, which is told in a slightly different way each time.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NotServing { why }, Self::NotServing { why: other }) => why == other,
            (Self::Disabled { why }, Self::Disabled { why: other }) => why == other,
            _ => self.as_str() == other.as_str(),
        }
    }

    /// Whether nothing changes by itself in the next moment: it serves, or it waits for a later attempt or an operator.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Serving
            | Self::BackingOff { .. }
            | Self::CrashLooped { .. }
            | Self::Stopped
            | Self::Disabled { .. } => true,
            Self::Starting
            | Self::AwaitHandshake
            | Self::AwaitHealth
            | Self::AwaitReady
            | Self::NotServing { .. }
            | Self::Draining
            | Self::Stopping => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::Starting => "starting",
            Self::AwaitHandshake => "awaiting the handshake",
            Self::AwaitHealth => "awaiting health",
            Self::AwaitReady => "awaiting readiness",
            Self::Serving => "serving",
            Self::NotServing { .. } => "not serving",
            Self::Draining => "draining",
            Self::BackingOff { .. } => "backing off",
            Self::CrashLooped { .. } => "crash looped",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Disabled { .. } => "disabled",
        };
        f.write_str(words)
    }
}

/// A snapshot of one plugin.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The plugin's name.
    pub name: String,
    /// What is happening.
    #[serde(flatten)]
    pub state: State,
    /// The running process.
    pub pid: Option<i32>,
    /// Starts after the first one, whoever caused them.
    pub restarts: u64,
    /// Failures in a row before this run. Forgotten with the next failure after it has served for a while, and when an
    /// operator restarts it.
    pub failures: u32,
    /// Since when it has been in this state. Serialised as seconds since the epoch.
    #[serde(serialize_with = "epoch_seconds")]
    pub since: SystemTime,
    /// Since when this process has been serving. Serialised as seconds since the epoch.
    #[serde(serialize_with = "optional_epoch_seconds")]
    pub serving_since: Option<SystemTime>,
    /// Health checks in a row that this process has not passed.
    pub missed_checks: u32,
    /// Where the running process listens, as `unix:/path` or `tcp:ip:port`.
    pub endpoint: Option<String>,
    /// The application version that the running process chose.
    pub app_version: Option<u32>,
    /// What the helper of its sandbox has found out about the running process, where there was one.
    pub confinement: Option<Arc<Confinement>>,
    /// How the last process ended.
    pub last_exit: Option<Arc<ExitReport>>,
    /// How it and those before it ended, the latest first, as many as [`crate::PluginSpec::exit_reports`] says. Not
    /// serialised.
    #[serde(skip)]
    pub exits: Vec<Arc<ExitReport>>,
    /// Program and arguments.
    pub command: Vec<String>,
    #[serde(skip)]
    pub(crate) outlook: Outlook,
}

/// From one state to the next.
#[derive(Debug, Clone, Serialize)]
pub struct Transition {
    /// The plugin's name.
    pub plugin: String,
    /// When. Serialised as seconds since the epoch.
    #[serde(serialize_with = "epoch_seconds")]
    pub at: SystemTime,
    /// Which of its starts, from 1.
    pub start: u64,
    /// The process, while there is one.
    pub pid: Option<i32>,
    /// The state that it left. Serialised as one word.
    #[serde(serialize_with = "word")]
    pub from: State,
    /// The state that it entered. Serialised as one word.
    #[serde(serialize_with = "word")]
    pub to: State,
    /// What it comes of, where that does not go without saying.
    pub reason: Option<String>,
}

/// When a client may be there, for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// There is one, or a start is under way.
    Soon,
    /// Not before this time.
    NotBefore(Instant),
    /// Not unless an operator acts.
    Never,
}

pub(crate) fn epoch_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    // A clock set before 1970 shows as 0.
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    serializer.serialize_f64(seconds.as_secs_f64())
}

fn optional_epoch_seconds<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => epoch_seconds(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// A state in one word, where its details stand elsewhere.
pub(crate) fn word<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.as_str())
}

pub(crate) fn duration_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
