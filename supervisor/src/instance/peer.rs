//! Who is at the other end of a run: a process that was started for it, or a connection to one that was not.

use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::connect::{Alive, Endpoint};
use crate::mtls::Identity;
use crate::process::{Process, Remains};
use crate::report::{ProcessEnd, Usage};
use crate::sandbox::Confinement;
use crate::spec::Found;
use crate::trust::peer::{Owner, Trusted};

/// How an end looks from here, but for why.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None`: there was no process of ours.
    pub(super) end: Option<ProcessEnd>,
    pub(super) core_dumped: bool,
    /// Whether its control group had no memory left.
    pub(super) out_of_memory: bool,
}

#[derive(Debug)]
pub(crate) enum Peer {
    Started(Box<Process>),
    Found(Line),
}

/// A connection to a plugin that somebody else has started. What is done to a process to end it cuts this.
#[derive(Debug)]
pub(crate) struct Line {
    found: Found,
    over: CancellationToken,
}

impl Peer {
    pub(super) fn found(found: &Found) -> Self {
        Self::Found(Line { found: found.clone(), over: CancellationToken::new() })
    }

    pub(super) fn process(&self) -> Option<&Process> {
        match self {
            Self::Started(process) => Some(process),
            Self::Found(_) => None,
        }
    }

    fn process_mut(&mut self) -> Option<&mut Process> {
        match self {
            Self::Started(process) => Some(process),
            Self::Found(_) => None,
        }
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.process().map(Process::pid)
    }

    pub(super) fn confinement(&self) -> Option<&Arc<Confinement>> {
        self.process()?.confinement()
    }

    pub(super) fn private_dir(&self) -> Option<PathBuf> {
        self.process()?.private_dir()
    }

    pub(super) fn identity(&self) -> Option<&Arc<Identity>> {
        self.process()?.identity()
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.process()?.usage()
    }

    /// Where it listens, where it need not say so.
    pub(super) fn told(&self) -> Option<&Endpoint> {
        match self {
            Self::Started(process) => process.told(),
            Self::Found(line) => Some(&line.found.endpoint),
        }
    }

    /// Who may be behind its address, and how long that may be connected to.
    pub(super) fn alive(&self) -> Alive {
        match self {
            Self::Started(process) => Alive::process(Owner { pid: process.pid(), uid: process.uid() }),
            Self::Found(line) => Alive::Line { over: line.over.clone(), trusted: Trusted::new(line.found.uid) },
        }
    }

    /// Cancel safe.
    pub(super) async fn exited(&self) {
        match self {
            Self::Started(process) => process.exited().await,
            Self::Found(line) => line.over.cancelled().await,
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Started(process) => process.signal(signal),
            // It is not ours to signal.
            Self::Found(line) => line.over.cancel(),
        }
    }

    /// To be called after [`Self::exited`].
    pub(super) async fn reap(&mut self) -> Ended {
        let Some(process) = self.process_mut() else {
            return Ended { end: None, core_dumped: false, out_of_memory: false };
        };
        // A status that cannot be had counts as a plain end: the process has gone all the same.
        let status = process.reap().await.ok();
        Ended {
            core_dumped: status.is_some_and(|status| std::os::unix::process::ExitStatusExt::core_dumped(&status)),
            end: Some(status.map_or(ProcessEnd::Exited(-1), ProcessEnd::of)),
            out_of_memory: process.out_of_memory(),
        }
    }

    pub(super) fn take_remains(&mut self) -> Option<Remains> {
        Some(self.process_mut()?.take_remains())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.over.cancel();
    }
}
