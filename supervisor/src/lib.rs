//! Hosts plugins that are separate processes, in any language, speaking HashiCorp go-plugin's handshake and gRPC.
//!
//! Give [`Plugin::start`] what to run ([`PluginSpec`]) and how to turn a fresh connection into the thing that your
//! program calls ([`Adapter`]). From then on the plugin is kept running: its exit is noticed without any traffic, a
//! frozen one is found by health checks, and both are restarted with backoff. Callers take [`Plugin::client`], which
//! never blocks, or [`Plugin::wait_client`], which waits for a restart no longer than the caller has time.
//!
//! What is promised, and tested:
//!
//! - A plugin inherits nothing that it was not given: environment, file descriptors, signal mask, umask, session.
//! - Everything it prints is bounded, escaped, and lands in `tracing` under the target `plugin`.
//! - Every wait on a plugin has a deadline; nothing that it does takes the host down.
//! - No process of a plugin's group is left when it is stopped, when it crashes, or when the host ends, `kill -9` of
//!   the host included.
//!
//! A host in less than 30 lines; `cargo run --example host -- COMMAND` runs it:
//!
//! ```no_run
#![doc = include_str!("../examples/host.rs")]
//! ```
//!
//! # Cancellation
//!
//! Every `async fn` says what happens when its future is dropped. In short: to stop waiting is always safe, and an
//! order that has been taken is carried out whether or not somebody waits for it. What the host implements,
//! [`Adapter::attach`], is dropped when its time is over or its process has gone, so it must not rely on being polled
//! to its end.
//!
//! # Errors
//!
//! One type for each boundary: [`StartError`] for what can never work, [`Unavailable`] for a client that can't be had in
//! time, and [`ExitReport`] for all that goes wrong in between, with a [`StartFailure`] where a process never came to
//! serve. Enums that may grow are `#[non_exhaustive]`.
//!
//! # Platform
//!
//! Linux 5.11 or newer. Which room does what: `lifecycle` decides (pure), `instance` performs, `process` owns the
//! operating system's side, `handshake`, `connect`, `mtls` and `health` talk to the plugin, `trust` decides what it is
//! believed, `sys` holds every `unsafe`.

// `sys` alone allows it again; every other room forbids it, so that nothing in them can.
#![deny(unsafe_code)]

#[forbid(unsafe_code)]
mod answers;
#[forbid(unsafe_code)]
mod calls;
#[forbid(unsafe_code)]
mod connect;
#[forbid(unsafe_code)]
mod handshake;
#[forbid(unsafe_code)]
mod health;
#[forbid(unsafe_code)]
mod init;
#[forbid(unsafe_code)]
mod inspect;
#[forbid(unsafe_code)]
mod instance;
#[forbid(unsafe_code)]
mod lifecycle;
#[forbid(unsafe_code)]
mod logs;
#[forbid(unsafe_code)]
mod mtls;
#[forbid(unsafe_code)]
mod plugin;
#[forbid(unsafe_code)]
mod process;
#[forbid(unsafe_code)]
mod report;
#[forbid(unsafe_code)]
mod restart;
#[forbid(unsafe_code)]
mod sandbox;
#[forbid(unsafe_code)]
mod spec;
#[forbid(unsafe_code)]
mod status;
mod sys;
#[forbid(unsafe_code)]
mod trust;

pub use crate::answers::{Answers, answers};
pub use crate::calls::{Call, Calls, CallsHit};
pub use crate::connect::{ConnectError, Connector, Endpoint, EndpointError, Stream};
pub use crate::handshake::HandshakeFailure;
pub use crate::init::stand_by_as_pid_1;
pub use crate::inspect::Facts;
pub use crate::instance::{Adapter, AttachError, InstanceInfo};
pub use crate::mtls::MtlsError;
pub use crate::plugin::{Plugin, StartError, Unavailable};
pub use crate::process::{DEFAULT_PATH, PrivateDirError, SpawnError, prepare_runtime_dir, resolve_program};
pub use crate::report::{ExitCause, ExitReport, ProcessEnd, StartFailure, Usage, chain};
pub use crate::restart::Stagger;
pub use crate::sandbox::{
    Cgroup, Confinement, Files, Helper, Limits, Network, OnMissing, Probe, Sandbox, SyscallClass, Tcp, User,
    sandbox_exec,
};
pub use crate::spec::{
    Found, HandshakePolicy, HealthPolicy, PluginSpec, RestartMode, RestartPolicy, SpecError, StopPolicy, TcpPolicy,
};
pub use crate::status::{NotServing, State, Status, Transition, WontRetry};
pub use crate::trust::checksum::{Checksum, ChecksumSyntax, Checksums};
pub use crate::trust::peer::PeerError;
