//! Whether the proxy takes traffic, and where, as the runtime tells it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;

use crate::config::Address;

/// Written by the runtime, read by whoever asks. Begins with starting.
#[derive(Debug, Default)]
pub(crate) struct Readiness(ArcSwap<Phase>);

/// What the proxy as a whole is doing.
#[derive(Debug)]
pub(super) enum Phase {
    /// Listeners open once this is there: a sentence for people.
    Starting(Option<String>),
    /// All listeners are open, here.
    Ready(Vec<ListenerAddress>),
    /// No new connections are taken; the proxy ends.
    Closed,
}

/// An open listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ListenerAddress {
    /// Its name in the configuration.
    pub(super) name: String,
    /// Where it listens in fact: `127.0.0.1:8080`, `unix:/run/web.sock`.
    pub(super) address: String,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Starting(None)
    }
}

impl Phase {
    /// In one word, for programs.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Ready(_) => "ready",
            Self::Closed => "draining",
        }
    }

    pub(super) fn listeners(&self) -> &[ListenerAddress] {
        match self {
            Self::Ready(listeners) => listeners,
            Self::Starting(_) | Self::Closed => &[],
        }
    }
}

impl Readiness {
    /// Listeners open once `what` is there.
    pub(crate) fn awaiting(&self, what: String) {
        self.enter(Phase::Starting(Some(what)));
    }

    /// All listeners are open, by name.
    pub(crate) fn ready(&self, listeners: Vec<(String, Address)>) {
        let listeners = listeners
            .into_iter()
            .map(|(name, address)| ListenerAddress { name, address: address.to_string() })
            .collect();
        self.enter(Phase::Ready(listeners));
    }

    /// The listeners are closed, or never open.
    pub(crate) fn closed(&self) {
        self.enter(Phase::Closed);
    }

    pub(super) fn phase(&self) -> Arc<Phase> {
        self.0.load_full()
    }

    fn enter(&self, phase: Phase) {
        self.0.store(Arc::new(phase));
    }
}
