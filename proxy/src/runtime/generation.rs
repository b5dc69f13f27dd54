//! One configuration and all that was made of it: plugins, upstreams, and what serves each listener. What is the same
//! as before is taken over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use palisade_supervisor::{ExitReport, Plugin, State, Status};
use rustls::ServerConfig;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::{Error, House};
use crate::admin::Readiness;
use crate::config::{self, Address, Config, ListenerTls};
use crate::listener::{Service, Serving};
use crate::plugin::{Contracts, Plugins, Running};
use crate::proxy::Proxy;
use crate::route::Routes;
use crate::tls::{self, Arrival, Certificates};
use crate::upstream::{self, Upstreams};

/// What a listener's socket is known by from one configuration to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    address: Address,
    /// Where the kernel chooses the port, the same address is another one for each.
    name: Option<String>,
}

impl Key {
    pub(super) fn of(listener: &config::Listener) -> Self {
        let chosen = matches!(&listener.address, Address::Tcp(address) if address.port() == 0);
        Self { address: listener.address.clone(), name: chosen.then(|| listener.name.clone()) }
    }
}

#[derive(Debug)]
pub(super) struct Generation {
    pub(super) config: Config,
    pub(super) plugins: Arc<Plugins>,
    upstreams: Upstreams,
    /// In the order of the file.
    pub(super) listeners: Vec<Listener>,
}

/// What serves one listener.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) key: Key,
    pub(super) serving: Arc<Serving>,
    secured: Option<Arc<Secured>>,
}

/// Certificates that are watched for as long as this lives.
#[derive(Debug)]
struct Secured {
    tls: ListenerTls,
    plugin: Arc<Running>,
    certificates: Arc<Certificates>,
    config: Arc<ServerConfig>,
    _watch: DropGuard,
}

impl Generation {
    /// Makes what requests are served with; nothing serves with it yet. Plugins that are new have been started already.
    pub(super) fn new(
        house: &House,
        config: Config,
        plugins: Arc<Plugins>,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        house.metrics.expect(&config);
        let upstreams = before.map(|before| &before.upstreams);
        let around = upstream::House {
            workers: house.workers.handles().len(),
            tasks: &house.background,
            end: &house.end_background,
            metrics: &house.metrics,
            overload: &house.connections.overload,
        };
        let upstreams = Upstreams::new(&config.upstreams, upstreams, around);
        let routes = Arc::new(Routes::new(&config.routes, &upstreams, &plugins, &house.metrics)?);
        let owned: Arc<[_]> = config.plugins.values().flat_map(|plugin| plugin.owns.iter().cloned()).collect();
        let listener = |listener: &config::Listener| {
            let key = Key::of(listener);
            let before = before.and_then(|before| before.listener(&key));
            let secured = listener
                .tls
                .as_ref()
                .map(|tls| {
                    let plugin = plugins.get(&tls.plugin).ok_or_else(|| Error::Internal(tls.plugin.clone()))?;
                    let same = before.and_then(|before| before.secured.as_ref());
                    match same.filter(|before| before.tls == *tls && Arc::ptr_eq(&before.plugin, plugin)) {
                        Some(secured) => Ok(Arc::clone(secured)),
                        None => Secured::new(house, &listener.name, tls, plugin).map(Arc::new),
                    }
                })
                .transpose()?;
            // A client of cleartext that is to speak TLS from now on, or the other way round, connects again.
            let kept = before.filter(|before| before.secured.is_some() == secured.is_some());
            let connections =
                kept.map_or_else(|| house.connections.some(), |kept| kept.serving.service.connections.clone());
            let proxy = Proxy::new(listener, &routes, &plugins, &owned, &house.metrics)
                .map_err(|error| Error::Internal(error.to_string()))?;
            let service = Service {
                name: listener.name.as_str().into(),
                address: listener.address.clone(),
                limits: listener.limits,
                tls: secured.as_ref().map(|secured| Arc::clone(&secured.config)),
                trusted_proxies: config.trusted_proxies.clone(),
                connections,
                metrics: Arc::clone(&house.metrics),
            };
            let serving = Arc::new(Serving { service: Arc::new(service), proxy: Arc::new(proxy) });
            Ok(Listener { key, serving, secured })
        };
        let listeners = config.listeners.iter().map(listener).collect::<Result<_, Error>>()?;
        Ok(Self { config, plugins, upstreams, listeners })
    }

    pub(super) fn listener(&self, key: &Key) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.key == *key)
    }

    /// Waits until all that is new here serves, as far as it has to: what is required, and what replaces something
    /// that serves. `readiness` is told what is waited for.
    pub(super) async fn ready(&self, before: Option<&Self>, readiness: Option<&Readiness>) -> Result<(), Error> {
        let tell = |what: String| {
            if let Some(readiness) = readiness {
                readiness.awaiting(what);
            }
        };
        let nothing = Plugins::default();
        let former = before.map_or(&nothing, |before| &before.plugins);
        let serves = |plugin: &&Plugin<Contracts>| plugin.status().state == State::Serving;
        let replaces =
            |plugin: &Running| former.get(plugin.name()).is_some_and(|former| former.instances().any(|i| serves(&i)));
        let awaited = |plugin: &&Arc<Running>| self.is_required(plugin) || replaces(plugin);
        let plugins: Vec<_> = self.plugins.without(former).filter(awaited).collect();
        if !plugins.is_empty() {
            let names: Vec<_> = plugins.iter().map(|plugin| format!("`{}`", plugin.name())).collect();
            tell(format!("plugins {}", names.join(", ")));
        }
        // All at once: the failure of one is not to wait for the slowness of another.
        try_join_all(plugins.iter().flat_map(|plugin| plugin.instances()).map(await_serving)).await?;
        for listener in &self.listeners {
            let Some(secured) = &listener.secured else { continue };
            let before = before.and_then(|before| before.listener(&listener.key)?.secured.as_ref());
            if before.is_some_and(|before| Arc::ptr_eq(before, secured)) {
                continue;
            }
            if self.is_required(&secured.plugin) || before.is_some_and(|before| before.certificates.is_served()) {
                tell(format!("a certificate of plugin `{}`", secured.plugin.name()));
                self.await_certificate(&listener.serving.service.name, secured).await?;
            }
        }
        Ok(())
    }

    fn is_required(&self, plugin: &Running) -> bool {
        self.config.plugins.get(plugin.name()).is_some_and(|plugin| plugin.required)
    }

    async fn await_certificate(&self, listener: &str, secured: &Secured) -> Result<(), Error> {
        let Secured { plugin, certificates, .. } = secured;
        let within = self.config.plugins.get(plugin.name()).map_or(Duration::ZERO, |plugin| plugin.ready_timeout);
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
        Err(Error::NoCertificate { plugin: plugin.name().to_owned(), listener: listener.to_owned(), within, last })
    }
}

impl Secured {
    fn new(house: &House, listener: &str, tls: &ListenerTls, plugin: &Arc<Running>) -> Result<Self, Error> {
        let certificates = Arc::new(Certificates::new(tls, plugin, &house.metrics));
        let resolver = Arc::clone(&certificates);
        let config =
            tls::server_config(tls, resolver).map_err(|source| Error::Tls { listener: listener.to_owned(), source })?;
        let follower = Arc::clone(&certificates);
        let end = house.end_background.child_token();
        let watch = end.clone().drop_guard();
        house.background.spawn(async move { follower.follow(end).await });
        Ok(Self { tls: tls.clone(), plugin: Arc::clone(plugin), certificates, config, _watch: watch })
    }
}

/// Waits until an instance serves. Its first failure is final: an operator is watching, and can act on it now.
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
