//! The proxy's own life: build, wait for what is required, run, drain.

mod lock;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use palisade_supervisor::{ExitReport, Plugin, PrivateDirError, StartError, State, Status, prepare_runtime_dir};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lock::{Lock, LockError};
use crate::admin::{self, Admin, Readiness};
use crate::config::{self, Address, Config};
use crate::http::Connections;
use crate::listener::{self, Bound, Service};
use crate::plugin::{Contracts, Plugins, Running};
use crate::proxy::Proxy;
use crate::route::{BuildError, Routes};
use crate::telemetry::Metrics;
use crate::tls::{self, Arrival, Certificates};
use crate::upstream::Upstreams;

/// What remains of connections and tasks once they have been told to end.
const END: Duration = Duration::from_secs(5);

/// Why the proxy did not run, or not to a clean end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals can't be caught.
    #[error("signals can't be handled")]
    Signals(#[source] io::Error),
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
    /// A required plugin failed its first start.
    #[error("{0}")]
    Required(Box<ExitReport>),
    /// A required plugin supplies no certificate.
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
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// Runs the proxy until SIGTERM or SIGINT, drains, and stops the plugins. A second signal ends the drain.
///
/// # Errors
///
/// What keeps it from running; when this returns, no plugin is left either way.
pub async fn run(config: Config) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let runtime_dir = prepare_runtime_dir(&config.runtime_dir).map_err(Error::RuntimeDir)?;
    let config = Config { runtime_dir, ..config };
    let _lock = Lock::take(&config.runtime_dir)?;
    let admin_socket = config.runtime_dir.join(admin::SOCKET);
    let admin_listener =
        admin::bind(&admin_socket).map_err(|source| Error::Admin { path: admin_socket.clone(), source })?;
    let bound = bind_all(&config)?;

    let metrics = Arc::new(Metrics::of(&config));
    let plugins = Arc::new(Plugins::start(&config)?);
    let readiness = Arc::new(Readiness::default());
    let admin = Arc::new(Admin::new(&config, Arc::clone(&plugins), Arc::clone(&metrics), Arc::clone(&readiness)));
    let stop_admin = CancellationToken::new();
    let admin = tokio::spawn(admin::serve(admin_listener, admin, stop_admin.clone()));

    let ended = serve(&config, bound, &plugins, &metrics, &readiness, &mut signals).await;

    readiness.closed();
    plugins.shutdown().await;
    stop_admin.cancel();
    if tokio::time::timeout(END, admin).await.is_err() {
        tracing::warn!(target: "palisade", "the admin socket did not close in time");
    }
    ended
}

/// Everything between the start of the plugins and their end.
async fn serve(
    config: &Config,
    bound: Vec<Bound>,
    plugins: &Arc<Plugins>,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
    signals: &mut Signals,
) -> Result<(), Error> {
    // Pooled connections and certificate watches, which outlive the clients' connections.
    let background = TaskTracker::new();
    let end_background = CancellationToken::new();
    let connections = Connections::default();
    let upstreams = Upstreams::new(&config.upstreams, &background, &end_background);
    let routes = Arc::new(Routes::new(&config.routes, &upstreams, plugins, metrics)?);

    let mut services = Vec::new();
    let mut awaited = Vec::new();
    for (listener, bound) in config.listeners.iter().zip(bound) {
        let tls = match &listener.tls {
            None => None,
            Some(tls) => {
                let plugin = plugins.get(&tls.plugin).ok_or_else(|| Error::Internal(tls.plugin.clone()))?;
                let certificates = Arc::new(Certificates::new(tls, plugin, metrics));
                awaited.push((listener, Arc::clone(plugin), Arc::clone(&certificates)));
                let follower = Arc::clone(&certificates);
                let end = end_background.clone();
                background.spawn(async move { follower.follow(end).await });
                let config = tls::server_config(tls, certificates)
                    .map_err(|source| Error::Tls { listener: listener.name.clone(), source })?;
                Some(config)
            }
        };
        let proxy = Proxy::new(listener, &routes, plugins, &connections, metrics)
            .map_err(|error| Error::Internal(error.to_string()))?;
        let service = Service {
            name: listener.name.as_str().into(),
            address: listener.address.clone(),
            limits: listener.limits,
            tls,
            trusted_proxies: config.trusted_proxies.clone().into(),
            proxy: Arc::new(proxy),
            connections: connections.clone(),
            metrics: Arc::clone(metrics),
        };
        services.push((bound, service));
    }

    let required = async {
        let plugins: Vec<_> = plugins.iter().filter(|plugin| is_required(config, plugin)).collect();
        let names: Vec<_> = plugins.iter().map(|plugin| format!("`{}`", plugin.name())).collect();
        if !names.is_empty() {
            readiness.awaiting(format!("plugins {}", names.join(", ")));
        }
        // All at once: the failure of one is not to wait for the slowness of another.
        try_join_all(plugins.iter().flat_map(|plugin| plugin.instances()).map(await_serving)).await?;
        for (listener, plugin, certificates) in awaited.iter().filter(|(_, plugin, _)| is_required(config, plugin)) {
            readiness.awaiting(format!("a certificate of plugin `{}`", plugin.name()));
            await_certificate(config, listener, plugin, certificates).await?;
        }
        Ok::<(), Error>(())
    };
    let stopped = tokio::select! {
        ready = required => ready.map(|()| false),
        signal = signals.next() => {
            tracing::info!(target: "palisade", signal, "stopping before anything was served");
            Ok(true)
        }
    };
    let served = match stopped {
        Ok(false) => open_and_run(services, &connections, readiness, signals).await,
        Ok(true) => Ok(()),
        Err(error) => Err(error),
    };
    if served.is_ok() {
        drain(config.drain_timeout, &connections, signals).await;
    }

    end_background.cancel();
    drop(upstreams);
    drop(routes);
    background.close();
    if tokio::time::timeout(END, background.wait()).await.is_err() {
        tracing::warn!(target: "palisade", "connections to upstreams did not close in time");
    }
    served
}

fn bind_all(config: &Config) -> Result<Vec<Bound>, Error> {
    let bind = |listener: &config::Listener| {
        listener::bind(&listener.address).map_err(|source| Error::Listen {
            listener: listener.name.clone(),
            address: listener.address.clone(),
            source,
        })
    };
    config.listeners.iter().map(bind).collect()
}

fn is_required(config: &Config, plugin: &Running) -> bool {
    config.plugins.get(plugin.name()).is_some_and(|plugin| plugin.required)
}

/// Waits until a plugin serves. Its first failure ends the start: an operator is watching, and can act on it now.
async fn await_serving(plugin: &Plugin<Contracts>) -> Result<(), Error> {
    let mut status = plugin.watch();
    loop {
        {
            let Status { state, last_exit, .. } = &*status.borrow_and_update();
            match (state, last_exit) {
                (State::Serving, _) => return Ok(()),
                (State::BackingOff { .. } | State::CrashLooped { .. } | State::Disabled { .. }, Some(report)) => {
                    return Err(Error::Required(Box::new(ExitReport::clone(report))));
                }
                _ => {}
            }
        }
        if status.changed().await.is_err() {
            return Err(Error::Internal(format!("plugin `{}` is no longer supervised", plugin.name())));
        }
    }
}

async fn await_certificate(
    config: &Config,
    listener: &config::Listener,
    plugin: &Running,
    certificates: &Certificates,
) -> Result<(), Error> {
    let within = config.plugins.get(plugin.name()).map_or(Duration::ZERO, |plugin| plugin.ready_timeout);
    let deadline = Instant::now() + within;
    let mut arrival = certificates.arrival();
    let served = arrival.wait_for(|arrival| *arrival == Arrival::Served);
    if let Ok(Ok(_)) = tokio::time::timeout_at(deadline, served).await {
        return Ok(());
    }
    let last = match &*certificates.arrival().borrow() {
        Arrival::Awaited(last) => last.clone(),
        Arrival::Served => return Ok(()),
    };
    Err(Error::NoCertificate { plugin: plugin.name().to_owned(), listener: listener.name.clone(), within, last })
}

/// Opens every listener and returns when a signal asks for the end.
async fn open_and_run(
    services: Vec<(Bound, Service)>,
    connections: &Connections,
    readiness: &Readiness,
    signals: &mut Signals,
) -> Result<(), Error> {
    let mut addresses = Vec::new();
    for (bound, service) in services {
        let failed =
            |source| Error::Listen { listener: service.name.to_string(), address: service.address.clone(), source };
        let open = bound.open().map_err(failed)?;
        let address = open.address().map_err(failed)?;
        tracing::info!(target: "palisade", listener = &*service.name, address = %address, "listening");
        addresses.push((service.name.to_string(), address));
        connections.tasks.spawn(listener::accept(open, service));
    }
    readiness.ready(addresses);
    tracing::info!(target: "palisade", "ready");
    let signal = signals.next().await;
    tracing::info!(target: "palisade", signal, "draining");
    readiness.closed();
    Ok(())
}

/// Lets open requests come to their end, up to `timeout`; then ends them.
async fn drain(timeout: Duration, connections: &Connections, signals: &mut Signals) {
    connections.drain.cancel();
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

/// The signals that ask for the end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one's name. Cancel safe.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                // Its default action would end the proxy without a drain, and others read their configuration again.
                _ = self.hangup.recv() => tracing::warn!(target: "palisade", "SIGHUP is ignored: restart to change the configuration"),
            }
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
