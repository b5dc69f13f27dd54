//! Watches a plugin's certificates for as long as the listener lives.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bundle::Bundle;
use super::store::{MAX_BUNDLES, MAX_WEIGHT, Store};
use crate::config::ListenerTls;
use crate::plugin::{CallError, CertificateUpdate, Client, Running, clip};
use crate::telemetry::Metrics;

/// How long a plugin may take to begin to answer.
const OPEN: Duration = Duration::from_secs(10);

/// Before a stream that broke is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Refused bundles of one update that are logged one by one.
const MOST_TOLD: usize = 10;

/// How far a listener's certificates have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The text says what was wrong last.
    Awaited(String),
    /// There is one to serve.
    Served,
}

/// The certificates of one listener. Those that came last stay when the plugin goes.
pub(crate) struct Certificates {
    tls: ListenerTls,
    plugin: Arc<Running>,
    provider: CryptoProvider,
    store: ArcSwap<Store>,
    arrival: watch::Sender<Arrival>,
    metrics: Arc<Metrics>,
}

impl Certificates {
    pub(crate) fn new(tls: &ListenerTls, plugin: &Arc<Running>, metrics: &Arc<Metrics>) -> Self {
        Self {
            tls: tls.clone(),
            plugin: Arc::clone(plugin),
            provider: rustls::crypto::aws_lc_rs::default_provider(),
            store: ArcSwap::default(),
            arrival: watch::Sender::new(Arrival::Awaited("no answer yet".to_owned())),
            metrics: Arc::clone(metrics),
        }
    }

    /// Whether there is something to serve.
    pub(crate) fn arrival(&self) -> watch::Receiver<Arrival> {
        self.arrival.subscribe()
    }

    pub(crate) fn is_served(&self) -> bool {
        *self.arrival.borrow() == Arrival::Served
    }

    /// Follows the plugin until `end` is cancelled.
    pub(crate) async fn follow(self: &Arc<Self>, end: CancellationToken) {
        tokio::select! {
            () = end.cancelled() => {}
            () = self.follow_on() => {}
        }
    }

    async fn follow_on(self: &Arc<Self>) {
        let mut status = self.plugin.watch();
        loop {
            status.mark_seen();
            let Some(client) = self.plugin.any_client() else {
                if !status.changed().await {
                    // Shut down for good.
                    return;
                }
                continue;
            };
            let error = self.follow_client(&client).await;
            let plugin = self.plugin.name();
            if self.plugin.is_current(&client) {
                tracing::warn!(target: "palisade::tls", plugin, %error, "watching certificates failed, is tried again");
                self.fault(error.to_string());
            }
            tokio::time::sleep(REOPEN).await;
        }
    }

    /// Applies what one instance sends, until its stream ends.
    async fn follow_client(self: &Arc<Self>, client: &Arc<Client>) -> CallError {
        let opened = tokio::time::timeout(OPEN, client.certificates(&self.tls.names)).await;
        let mut updates = match opened {
            Ok(Ok(updates)) => updates,
            Ok(Err(error)) => return error,
            Err(_) => return CallError::Timeout,
        };
        while let Some(update) = updates.next().await {
            let update = match update {
                Ok(update) => update,
                Err(error) => return error,
            };
            // There may be thousands of them, each of which costs some arithmetic.
            let (this, begun) = (Arc::clone(self), Instant::now());
            if tokio::task::spawn_blocking(move || this.apply(update)).await.is_err() {
                return CallError::Failed("its update could not be taken in".to_owned());
            }
            // A plugin that sends without end gets no more than half of a processor.
            tokio::time::sleep(begun.elapsed()).await;
        }
        CallError::Lost("the stream ended".to_owned())
    }

    /// Takes over what is good. A bundle that is not leaves the one of its name as it was: an old certificate serves
    /// clients better than none.
    fn apply(&self, update: CertificateUpdate) {
        let plugin = self.plugin.name();
        let before = self.store.load_full();
        let mut bundles = before.bundles().clone();
        let named: BTreeSet<String> = update.bundles.iter().map(|bundle| bundle.name.clone()).collect();
        let removed: BTreeSet<String> = update.removed.into_iter().collect();
        let gone = |name: &String| removed.contains(name) || (update.complete && !named.contains(name));
        bundles.retain(|name, _| !gone(name));
        let mut weight: usize = bundles.values().map(|bundle| bundle.weight).sum();
        let mut refused = 0;
        for sent in update.bundles {
            let name = sent.name.clone();
            if !self.tls.names.is_empty() && !self.tls.names.contains(&name) {
                continue;
            }
            let old = bundles.get(&name);
            let bundle = match Bundle::new(sent, &self.provider, SystemTime::now()) {
                Ok(_) if bundles.len() >= MAX_BUNDLES && old.is_none() => {
                    Err(format!("more than {MAX_BUNDLES} bundles"))
                }
                Ok(bundle) => {
                    let with = weight - old.map_or(0, |old| old.weight) + bundle.weight;
                    if with > MAX_WEIGHT {
                        Err(format!("the listener's bundles take up more than {MAX_WEIGHT} bytes together"))
                    } else {
                        weight = with;
                        Ok(bundle)
                    }
                }
                Err(error) => Err(error.to_string()),
            };
            match bundle {
                Ok(bundle) => {
                    if !old.is_some_and(|old| old.key.cert == bundle.key.cert) {
                        tracing::info!(
                            target: "palisade::tls", plugin, bundle = ?name, sha256 = bundle.fingerprint(),
                            expires = %epoch_seconds(bundle.not_after), "certificate taken over",
                        );
                        for flaw in &bundle.flaws {
                            tracing::warn!(
                                target: "palisade::tls", plugin, bundle = ?name, flaw = flaw.kind,
                                "clients may refuse this certificate: {}", flaw.text,
                            );
                        }
                    }
                    bundles.insert(name, Arc::new(bundle));
                }
                Err(error) => {
                    refused += 1;
                    if refused <= MOST_TOLD {
                        let (name, kept) = (clip(&name), old.is_some());
                        tracing::error!(target: "palisade::tls", plugin, bundle = ?name, error, kept, "bundle refused");
                        self.fault(format!("bundle {name:?}: {error}"));
                    }
                }
            }
        }
        if refused > MOST_TOLD {
            tracing::error!(target: "palisade::tls", plugin, refused, "more bundles were refused than are named");
        }
        for name in before.bundles().keys().filter(|name| !bundles.contains_key(*name)) {
            tracing::info!(target: "palisade::tls", plugin, bundle = ?name, "certificate withdrawn");
            self.metrics.certificate_gone(plugin, name);
        }
        for bundle in bundles.values() {
            self.metrics.certificate(plugin, &bundle.name, epoch_seconds(bundle.not_after), &bundle.flaws);
        }
        let served = !bundles.is_empty();
        self.store.store(Arc::new(Store::new(bundles, self.tls.default.as_deref())));
        if served {
            self.arrival.send_replace(Arrival::Served);
        } else {
            self.fault("it has no certificate".to_owned());
        }
    }

    fn fault(&self, text: String) {
        self.arrival.send_if_modified(|arrival| match arrival {
            Arrival::Served => false,
            Arrival::Awaited(last) => {
                *last = text;
                true
            }
        });
    }
}

fn epoch_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("plugin", &self.tls.plugin).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.store.load().find(hello.server_name()).cloned()
    }
}
