//! Plugins as the proxy uses them: one adapter for each contract, behind one set of types.

mod adapter;
mod mosn;
mod mutation;
mod native;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::{HeaderMap, StatusCode};
use palisade_supervisor::{Plugin, StartError, Unavailable};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub(crate) use self::adapter::{Contracts, Roles};
pub(crate) use self::mutation::{HeaderOp, apply};
use crate::config::{self, Config, Filter};
use crate::http::Request;
use crate::respond::Reply;

/// How long a client whose connection broke may still be the plugin's client before it is tried again: the time that
/// an exit takes to be noticed.
const EXIT_NOTICE: Duration = Duration::from_millis(50);

/// All plugins by name, running from the moment of their making.
#[derive(Debug)]
pub(crate) struct Plugins(BTreeMap<String, Arc<Running>>);

/// One plugin under supervision.
#[derive(Debug)]
pub(crate) struct Running {
    supervised: Plugin<Contracts>,
    /// Calls under way. They are not cancelled when the client leaves: bursts of cancelled calls look like an attack
    /// to the plugin's HTTP/2 server, which then closes the connection under everybody's calls.
    calls: TaskTracker,
}

impl Plugins {
    /// Starts every plugin of a configuration.
    pub(crate) fn start(config: &Config) -> Result<Self, StartError> {
        let mut running = BTreeMap::new();
        for (name, plugin) in &config.plugins {
            let spec = adapter::spec(name, plugin, &config.runtime_dir);
            let contracts = Contracts::new(plugin, roles(config, name));
            let supervised = Plugin::start(spec, contracts)?;
            running.insert(name.clone(), Arc::new(Running { supervised, calls: TaskTracker::new() }));
        }
        Ok(Self(running))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Running>> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Running>> {
        self.0.values()
    }

    /// Stops all of them, in parallel, each within its own bounds.
    pub(crate) async fn shutdown(&self) {
        let stops: Vec<_> = self
            .0
            .values()
            .cloned()
            .map(|plugin| {
                tokio::spawn(async move {
                    plugin.supervised.shutdown().await;
                    plugin.calls.close();
                    plugin.calls.wait().await;
                })
            })
            .collect();
        for stop in stops {
            if let Err(error) = stop.await {
                tracing::error!(target: "palisade::plugin", %error, "stopping a plugin failed");
            }
        }
    }
}

/// What a configuration uses a plugin for.
fn roles(config: &Config, name: &str) -> Roles {
    let listeners = config.listeners.iter().flat_map(|listener| &listener.filters);
    let routes = config.routes.iter().flat_map(|route| &route.filters);
    let filter = listeners.chain(routes).any(|filter| matches!(filter, Filter::Plugin(step) if step.plugin == name));
    let certificates =
        config.listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(|tls| tls.plugin == name));
    Roles { filter, certificates }
}

impl Deref for Running {
    type Target = Plugin<Contracts>;

    fn deref(&self) -> &Plugin<Contracts> {
        &self.supervised
    }
}

impl Running {
    /// The client of the instance that serves, waiting for one no longer than until `deadline`.
    pub(crate) async fn client_by(&self, deadline: Instant) -> Result<Arc<Client>, Unavailable> {
        match self.supervised.client() {
            Some(client) => Ok(client),
            None => self.supervised.wait_client(deadline).await,
        }
    }

    /// A client after `lost` broke: another one, or the same if its process seems to live.
    pub(crate) async fn client_after(&self, lost: &Arc<Client>, deadline: Instant) -> Result<Arc<Client>, Unavailable> {
        let mut status = self.supervised.watch();
        let same = |client: Option<Arc<Client>>| client.is_some_and(|client| Arc::ptr_eq(&client, lost));
        let notice = deadline.min(Instant::now() + EXIT_NOTICE);
        while same(self.supervised.client()) {
            match tokio::time::timeout_at(notice, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.client_by(deadline).await
    }

    /// Calls a client, no longer than until `deadline`, without cancelling when the caller goes.
    pub(crate) async fn call<T, F>(&self, deadline: Instant, call: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let call = self
            .calls
            .spawn(async move { tokio::time::timeout_at(deadline, call).await.unwrap_or(Err(CallError::Timeout)) });
        call.await.unwrap_or_else(|error| Err(CallError::Failed(format!("the call's task failed: {error}"))))
    }
}

/// What one serving instance speaks.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each process, behind an Arc")]
pub(crate) enum Client {
    Native(native::Native),
    Mosn(mosn::Mosn),
}

/// What a filter needs of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) headers: bool,
    pub(crate) addresses: bool,
    pub(crate) tls: bool,
    pub(crate) peer_certificate: bool,
    pub(crate) route: bool,
    /// The largest body it will judge; `None`: it needs no body.
    pub(crate) body: Option<usize>,
    /// Whether it judges responses too.
    pub(crate) response: bool,
}

/// What is to be judged.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) request: &'a Request,
    pub(crate) route: Option<&'a config::Route>,
    pub(crate) body: Option<Bytes>,
}

/// A response's head, to be judged.
#[derive(Debug)]
pub(crate) struct ResponseHead<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
}

/// A plugin's decision about a request, already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow {
        /// For the request.
        request: Vec<HeaderOp>,
        /// For the response to come.
        response: Vec<HeaderOp>,
    },
    Deny(Reply),
}

/// A plugin's decision about a response, already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ResponseVerdict {
    Pass(Vec<HeaderOp>),
    Replace(Reply),
}

/// Certificates as a plugin sends them, not yet looked into.
#[derive(Debug, Clone, Default)]
pub(crate) struct CertificateUpdate {
    pub(crate) bundles: Vec<CertificateBundle>,
    pub(crate) removed: Vec<String>,
    /// Whether `bundles` is everything there is.
    pub(crate) complete: bool,
}

/// One certificate with its key. Its `Debug` shows no key.
#[derive(Clone)]
pub(crate) struct CertificateBundle {
    pub(crate) name: String,
    pub(crate) server_names: Vec<String>,
    pub(crate) chain_pem: Vec<u8>,
    pub(crate) key_pem: Vec<u8>,
}

impl std::fmt::Debug for CertificateBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateBundle")
            .field("name", &self.name)
            .field("server_names", &self.server_names)
            .finish_non_exhaustive()
    }
}

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The connection broke: the plugin may never have seen the call.
    #[error("the connection broke: {0}")]
    Lost(String),
    #[error("no answer in time")]
    Timeout,
    /// More calls wait than it can take in time.
    #[error("too many calls at a time")]
    Overloaded,
    /// It answered with an error.
    #[error("{0}")]
    Failed(String),
    /// Its answer is not one that the contract knows.
    #[error("{0}")]
    Invalid(String),
    /// It refuses, with a reply that can't be sent. It is a refusal all the same.
    #[error("its reply can't be sent: {0}")]
    InvalidReply(String),
    /// The request can't be written in its contract: the client's fault.
    #[error("{0}")]
    Unrepresentable(String),
}

impl Client {
    pub(crate) fn needs(&self) -> Needs {
        match self {
            Self::Native(native) => native.needs(),
            Self::Mosn(mosn) => mosn.needs(),
        }
    }

    /// Asks about a request. What is sent is fixed when this returns; awaiting the future sends it.
    pub(crate) fn check_request(
        &self,
        subject: &Subject<'_>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<Verdict, CallError>> + Send + use<>, CallError> {
        enum Call<N, M> {
            Native(N),
            Mosn(M),
        }
        let call = match self {
            Self::Native(native) => Call::Native(native.check_request(subject, deadline)),
            Self::Mosn(mosn) => Call::Mosn(mosn.check_request(subject, deadline)?),
        };
        Ok(async move {
            match call {
                Call::Native(call) => call.await,
                Call::Mosn(call) => call.await,
            }
        })
    }

    /// Asks about a response; only with [`Needs::response`]. What is sent is fixed when this returns.
    pub(crate) fn check_response(
        &self,
        request: &Request,
        response: &ResponseHead<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<ResponseVerdict, CallError>> + Send + use<> {
        let call = match self {
            Self::Native(native) => Some(native.check_response(request, response, deadline)),
            Self::Mosn(_) => None,
        };
        async move {
            match call {
                Some(call) => call.await,
                None => Ok(ResponseVerdict::Pass(Vec::new())),
            }
        }
    }

    /// Certificates now and whenever they change, until the connection breaks.
    pub(crate) async fn certificates(
        self: &Arc<Self>,
        names: &[String],
    ) -> Result<BoxStream<'static, Result<CertificateUpdate, CallError>>, CallError> {
        match &**self {
            Self::Native(native) => native.certificates(names).await,
            Self::Mosn(_) => Ok(mosn::certificates(Arc::clone(self))),
        }
    }
}
