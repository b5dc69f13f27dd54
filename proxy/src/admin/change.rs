//! Orders to the runtime that change what is in force, and what comes of them.

use std::fmt;

use serde::Serialize;
use tokio::sync::oneshot;

use crate::config::Problems;

/// Orders that wait while one is carried out; more are refused.
pub(crate) const MOST_ORDERS: usize = 16;

/// A change, and whom to tell when it was made.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) change: Change,
    pub(crate) answer: Option<oneshot::Sender<Result<Changed, Refused>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Reads the configuration again.
    Reload,
    /// Replaces the processes of a plugin by new ones.
    Upgrade(String),
    /// Replaces this process by a new one, of the binary that is there now.
    UpgradeSelf,
}

impl Change {
    /// In one word, for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade(_) => "upgrade",
            Self::UpgradeSelf => "upgrade_self",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reload => f.write_str("reload"),
            Self::Upgrade(plugin) => write!(f, "upgrade of {plugin}"),
            Self::UpgradeSelf => f.write_str("upgrade of the proxy itself"),
        }
    }
}

/// What is different now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Changed {
    pub(crate) generation: u64,
    /// Of the file.
    #[serde(rename = "config_sha256")]
    pub(crate) hash: String,
    pub(crate) plugins: Differences,
    pub(crate) listeners: Differences,
    /// The process that serves from now on, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<u32>,
}

/// Names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Differences {
    pub(crate) added: Vec<String>,
    pub(crate) replaced: Vec<String>,
    pub(crate) removed: Vec<String>,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (sign, names) in [("+", &self.added), ("~", &self.replaced), ("-", &self.removed)] {
            for name in names {
                write!(f, "{separator}{sign}{name}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

/// Why everything is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The file.
    Invalid(Problems),
    /// What is new does not come up.
    Failed(String),
    /// What is new came up and did not last.
    Undone(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problems) => problems.fmt(f),
            Self::Failed(text) => f.write_str(text),
            Self::Undone(report) => write!(f, "undone within the probation: {}", report.trim_start_matches("error: ")),
        }
    }
}
