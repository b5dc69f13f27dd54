//! Which configuration is in force, as the runtime tells it.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde::{Serialize, Serializer};

use crate::plugin::Plugins;

/// Written by the runtime, read by whoever asks. Begins with nothing.
#[derive(Debug, Default)]
pub(crate) struct InForce(ArcSwap<Generation>);

/// A configuration, and the plugins that were made of it.
#[derive(Debug, Serialize)]
pub(super) struct Generation {
    /// Counts what was in force, from 1. A change that was undone has a number too.
    #[serde(rename = "generation")]
    pub(super) number: u64,
    /// Of the file.
    #[serde(rename = "config_sha256")]
    pub(super) hash: String,
    /// Since when; serialised as seconds since the epoch.
    #[serde(rename = "loaded", serialize_with = "epoch_seconds")]
    pub(super) since: SystemTime,
    #[serde(skip)]
    pub(super) plugins: Arc<Plugins>,
}

impl Default for Generation {
    fn default() -> Self {
        Self { number: 0, hash: String::new(), since: SystemTime::UNIX_EPOCH, plugins: Arc::default() }
    }
}

impl InForce {
    /// From now on it is this.
    pub(crate) fn set(&self, number: u64, hash: &str, plugins: &Arc<Plugins>) {
        let (hash, plugins) = (hash.to_owned(), Arc::clone(plugins));
        self.0.store(Arc::new(Generation { number, hash, since: SystemTime::now(), plugins }));
    }

    pub(super) fn now(&self) -> Arc<Generation> {
        self.0.load_full()
    }
}

fn epoch_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}
