//! The proxy's own life: build, wait for what is required, run, drain.

mod change;
mod generation;
mod handover;
mod lock;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_supervisor::{ExitReport, PrivateDirError, StartError, chain, prepare_runtime_dir};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::change::{Changes, Worked};
use self::generation::{Generation, Key};
use self::handover::Heir;
use self::lock::{Lock, LockError};
use crate::admin::{self, Admin, Change, InForce, Order, Readiness, Retirement};
use crate::config::{Address, Config};
use crate::http::Connections;
use crate::listener::{Bound, Handle, Inherited};
use crate::plugin::{Plugins, Roster};
use crate::route::BuildError;
use crate::telemetry::Metrics;
use crate::workers::Workers;

/// What remains of connections and tasks once they have been told to end.
const END: Duration = Duration::from_secs(5);

/// Why the proxy did not run, or not to a clean end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals can't be caught.
    #[error("signals can't be handled")]
    Signals(#[source] io::Error),
    /// The workers can't be started.
    #[error("can't start {workers} threads")]
    Workers {
        /// How many.
        workers: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime directory can't be used.
    #[error("the runtime directory can't be used")]
    RuntimeDir(#[source] PrivateDirError),
    /// Another instance uses the runtime directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The admin socket can't be made.
    #[error("the admin socket {path:?} can't be opened")]
    Admin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A listener's address can't be had.
    #[error("listener `{listener}` can't listen on {address}")]
    Listen {
        /// The listener's name.
        listener: String,
        /// Its address.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS can't be set up.
    #[error("listener `{listener}`")]
    Tls {
        /// The listener's name.
        listener: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A plugin can't ever be started.
    #[error(transparent)]
    Plugin(#[from] StartError),
    /// A plugin that has to serve failed its first start.
    #[error("{0}")]
    Required(Box<ExitReport>),
    /// A plugin that has to supplies no certificate.
    #[error("plugin `{plugin}` supplied no certificate for listener `{listener}` within {within:?}: {last}")]
    NoCertificate {
        /// The plugin's name.
        plugin: String,
        /// The listener's name.
        listener: String,
        /// How long was waited.
        within: Duration,
        /// What was wrong last.
        last: String,
    },
    /// The process before this one does not let it take over.
    #[error("the proxy that runs has not handed over")]
    NotTakenOver,
    /// What it handed over can't be used.
    #[error("what was handed over can't be used")]
    Inheritance(#[source] io::Error),
    /// Another runtime directory than the one that was handed over.
    #[error("`runtime_dir` is {now:?}, and {before:?} in the proxy that runs; restart the proxy to change it")]
    Moved {
        /// The configuration's.
        now: PathBuf,
        /// The running proxy's.
        before: PathBuf,
    },
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// What outlives every configuration.
#[derive(Debug)]
struct House {
    /// The real path.
    runtime_dir: PathBuf,
    workers: Workers,
    plugins: Roster,
    connections: Connections,
    /// Pooled connections, certificate watches, and what leaves; they outlive the clients' connections.
    background: TaskTracker,
    end_background: CancellationToken,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    in_force: Arc<InForce>,
    lock: Lock,
    /// The admin socket, for a successor.
    admin: Handle,
    retirement: Retirement,
}

/// Runs the proxy until SIGTERM or SIGINT, drains, and stops the plugins. A second signal ends the drain. SIGHUP has
/// the configuration read again, SIGUSR2 has a new process of the binary that is there now take over.
///
/// # Errors
///
/// What keeps it from running; when this returns, no plugin is left either way.
pub async fn run(config: Config) -> Result<(), Error> {
    let Some(mut heir) = Heir::of_this_process().await.map_err(Error::Inheritance)? else {
        return run_as(config, None, handover::activated()).await;
    };
    let listeners = std::mem::take(&mut heir.listeners);
    let ended = run_as(config, Some(&mut heir), listeners).await;
    if let Err(error) = &ended {
        heir.failed(chain(error)).await;
    }
    ended
}

/// As [`run`], with what this process was given.
async fn run_as(config: Config, mut heir: Option<&mut Heir>, mut given: Vec<Inherited>) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let hangups = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let upgrades = signal(SignalKind::user_defined2()).map_err(Error::Signals)?;
    change::warn_of_open_secrets(&config);
    if !Path::new("/proc/self").exists() {
        tracing::warn!(
            target: "palisade",
            "/proc is not there: processes that plugins leave behind, plugins that are stopped, and how much memory and \
             how many descriptors are in use are not seen",
        );
    }
    let runtime_dir = prepare_runtime_dir(&config.runtime_dir).map_err(Error::RuntimeDir)?;
    let config = Config { runtime_dir: runtime_dir.clone(), ..config };
    let path = runtime_dir.join(admin::SOCKET);
    let unopened = |source| Error::Admin { path: path.clone(), source };
    let (lock, admin_socket) = match heir.as_deref_mut() {
        None => (Lock::take(&runtime_dir)?, admin::bind(&path).map_err(unopened)?),
        Some(heir) => {
            let (before, lock, admin) = heir.estate()?;
            if before != runtime_dir {
                return Err(Error::Moved { now: runtime_dir, before });
            }
            (Lock::shared(lock), admin::adopt(admin, &path).map_err(unopened)?)
        }
    };
    let bound = change::bind(&config, &[], &mut given)?;
    for unused in given {
        tracing::warn!(target: "palisade", name = unused.name(), "a socket that was handed over is no listener's: closed");
    }

    let workers =
        Workers::start(config.workers).map_err(|source| Error::Workers { workers: config.workers, source })?;
    let metrics = Arc::new(Metrics::of(workers.handles()));
    let house = Arc::new(House {
        runtime_dir,
        plugins: Roster::of(workers.handles()),
        workers,
        connections: Connections::default(),
        background: TaskTracker::new(),
        end_background: CancellationToken::new(),
        metrics,
        readiness: Arc::new(Readiness::default()),
        in_force: Arc::new(InForce::default()),
        lock,
        admin: admin_socket.handle().map_err(unopened)?,
        retirement: Retirement::default(),
    });
    let (orders, inbox) = mpsc::channel(admin::MOST_ORDERS);
    let events = house.plugins.events();
    let admin = Admin::new(&config, &house.in_force, events, &house.metrics, &house.readiness, orders.clone());
    let stop_admin = CancellationToken::new();
    let in_charge = CancellationToken::new();
    if heir.is_none() {
        in_charge.cancel();
    }
    let (retirement, stop) = (house.retirement.clone(), stop_admin.clone());
    let admin = admin::spawn(admin_socket, Arc::new(admin), in_charge.clone(), retirement, stop).map_err(unopened)?;
    for (signals, change) in [(hangups, Change::Reload), (upgrades, Change::UpgradeSelf)] {
        let (end, orders) = (house.end_background.clone(), orders.clone());
        house.background.spawn(async move { end.run_until_cancelled(order_on(signals, change, orders)).await });
    }
    drop(orders);

    let ends = Ends { in_charge, stop_admin: stop_admin.clone() };
    let ended = serve(&house, config, bound, inbox, &mut signals, heir, ends).await;

    house.readiness.closed();
    house.end_background.cancel();
    house.plugins.dismiss_all().await;
    stop_admin.cancel();
    if tokio::time::timeout(END, admin).await.is_err() {
        tracing::warn!(target: "palisade", "the admin socket did not close in time");
    }
    house.background.close();
    if tokio::time::timeout(END, house.background.wait()).await.is_err() {
        tracing::warn!(target: "palisade", "connections to upstreams did not close in time");
    }
    house.workers.end().await;
    ended
}

/// Cancelled when this process is the one that serves, and when it is not any more.
struct Ends {
    in_charge: CancellationToken,
    stop_admin: CancellationToken,
}

/// Everything between the start of the plugins and their end.
async fn serve(
    house: &Arc<House>,
    config: Config,
    bound: Vec<(Key, Bound)>,
    mut orders: mpsc::Receiver<Order>,
    signals: &mut Signals,
    mut heir: Option<&mut Heir>,
    ends: Ends,
) -> Result<(), Error> {
    let overload = Arc::clone(&house.connections.overload);
    overload.set(&config);
    let end = house.end_background.clone();
    house.background.spawn(async move { end.run_until_cancelled(overload.watch()).await });
    let plugins = Arc::new(Plugins::start(&config, &Plugins::default(), None, &house.plugins)?);
    house.in_force.set(1, &config.hash, &plugins);
    let first = Generation::new(house, config, plugins, None)?;
    let orphaned = async {
        match heir.as_deref_mut() {
            Some(heir) => heir.orphaned().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ready = first.ready(None, Some(&house.readiness)) => ready?,
        // It would keep the lock and the sockets from who is started instead.
        () = orphaned => return Err(Error::NotTakenOver),
        signal = signals.next() => {
            tracing::info!(target: "palisade", signal, "stopping before anything was served");
            return Ok(());
        }
    }
    if let Some(heir) = heir.as_deref_mut() {
        heir.turn().await?;
        house.lock.claim().map_err(Error::Inheritance)?;
    }
    let mut changes = Changes::begin(Arc::clone(house), first, bound)?;
    ends.in_charge.cancel();
    if let Some(heir) = heir {
        heir.serving().await;
    }
    handover::notify();
    tracing::info!(target: "palisade", "ready");
    let signal = tokio::select! {
        signal = signals.next() => signal,
        worked = changes.work(&mut orders) => match worked {
            // Signals alone keep it going.
            Worked::NoOrders => signals.next().await,
            Worked::Succeeded => {
                house.connections.succeeded.cancel();
                ends.stop_admin.cancel();
                "none: another process serves"
            }
        }
    };
    // First, so that who asks sends nobody here any more.
    house.readiness.closed();
    house.connections.drain.cancel();
    tracing::info!(target: "palisade", signal, "draining");
    changes.let_go();
    drain(changes.drain_timeout(), &house.connections, signals).await;
    Ok(())
}

/// Lets open requests come to their end, in a drain that has begun, up to `timeout`; then ends them.
async fn drain(timeout: Duration, connections: &Connections, signals: &mut Signals) {
    connections.tasks.close();
    tokio::select! {
        () = connections.tasks.wait() => return,
        () = tokio::time::sleep(timeout) => {
            tracing::warn!(target: "palisade", open = connections.tasks.len(), "drain timeout: open connections are closed");
        }
        signal = signals.next() => {
            tracing::warn!(target: "palisade", signal, open = connections.tasks.len(), "open connections are closed");
        }
    }
    connections.end.cancel();
    if tokio::time::timeout(END, connections.tasks.wait()).await.is_err() {
        tracing::warn!(target: "palisade", open = connections.tasks.len(), "connections did not close in time");
    }
}

/// Orders a change for each signal of a kind. Those that come while one waits are one.
async fn order_on(mut signals: Signal, change: Change, orders: mpsc::Sender<Order>) {
    while signals.recv().await.is_some() {
        let order = Order { change: change.clone(), answer: None };
        if orders.send(order).await.is_err() {
            tracing::warn!(target: "palisade", %change, "a signal is ignored: the proxy ends");
        }
    }
}

/// The signals that ask for the end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one's name. Cancel safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
