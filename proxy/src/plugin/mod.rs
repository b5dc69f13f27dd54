//! Plugins as the proxy uses them: one adapter for each contract, behind one set of types.

mod adapter;
mod events;
mod gate;
mod grpc;
mod lines;
mod mosn;
mod mutation;
mod native;
mod pool;
mod record;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use http::{HeaderMap, StatusCode};
use palisade_supervisor::{Calls, StartError, State, Status};
use tokio::runtime::Handle;
use tokio::time::Instant;

pub(crate) use self::adapter::{Contracts, Roles};
pub(crate) use self::events::Events;
pub(crate) use self::mutation::{HeaderOp, apply};
#[cfg(any(test, fuzzing))]
pub(crate) use self::native::{judge_answers, judge_frames};
pub(crate) use self::pool::{Lease, Running};
use self::record::Record;
use crate::config::{self, Config, Filter};
use crate::http::Request;
use crate::respond::Reply;

/// Longest text of a plugin that goes into a log line.
const MAX_TEXT: usize = 512;

/// Text of a plugin, bounded and without control characters.
pub(crate) fn clip(text: &str) -> String {
    let mut clipped: String =
        text.chars().map(|character| if character.is_control() { ' ' } else { character }).take(MAX_TEXT).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        clipped.push('…');
    }
    clipped
}

/// All plugins of a configuration by name, running from the moment of their making.
#[derive(Debug, Default)]
pub(crate) struct Plugins(BTreeMap<String, Arc<Running>>);

impl Plugins {
    /// Starts the plugins of a configuration; those of `before` that do for it go on. The one named `renew` does not.
    pub(crate) fn start(
        config: &Config,
        before: &Self,
        renew: Option<&str>,
        roster: &Roster,
    ) -> Result<Self, StartError> {
        let start = |(name, plugin): (&String, &config::Plugin)| {
            let running = match before.lasting(config, name, renew) {
                Some(running) => Arc::clone(running),
                None => {
                    let spec = adapter::spec(name, plugin, &config.runtime_dir);
                    Arc::new(Running::start(&spec, plugin, (roles(config, name), &roster.workers), &roster.events)?)
                }
            };
            Ok((name.clone(), running))
        };
        let plugins = config.plugins.iter().map(start).collect::<Result<_, _>>().map(Self)?;
        roster.plugins().extend(plugins.without(before).cloned());
        Ok(plugins)
    }

    /// The plugin of this name, if its processes do for `config`, too.
    pub(crate) fn lasting(&self, config: &Config, name: &str, renew: Option<&str>) -> Option<&Arc<Running>> {
        let plugin = config.plugins.get(name).filter(|_| renew != Some(name))?;
        self.get(name).filter(|running| running.does_for(plugin, roles(config, name)))
    }

    /// Those that are not in `others`.
    pub(crate) fn without<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a Arc<Running>> {
        let there = |plugin: &Arc<Running>| others.iter().any(|other| Arc::ptr_eq(plugin, other));
        self.iter().filter(move |plugin| !there(plugin))
    }

    /// Has those that others have started configure nothing more, where `config` has another plugin at their address.
    pub(crate) async fn make_way(&self, config: &Config, renew: Option<&str>) {
        let lasts = |plugin: &Running| self.lasting(config, plugin.name(), renew).is_some();
        let moves = |plugin: &&Arc<Running>| !lasts(plugin) && config.plugins.values().any(|it| plugin.is_one_with(it));
        join_all(self.iter().filter(moves).map(|plugin| plugin.hold())).await;
    }

    /// Undoes [`Plugins::make_way`]: what `others` have configured is configured as before.
    pub(crate) async fn come_back(&self, others: &Self) {
        let others: Vec<_> = others.without(self).filter(|plugin| plugin.is_found()).collect();
        join_all(others.iter().map(|plugin| plugin.hold())).await;
        join_all(self.iter().filter(|plugin| plugin.is_found()).map(|plugin| plugin.release(&others))).await;
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Running>> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Running>> {
        self.0.values()
    }
}

/// Every plugin that has processes, whichever configuration it is of: what is to be stopped in the end.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    plugins: Mutex<Vec<Arc<Running>>>,
    /// What has happened to any of them.
    events: Events,
    /// Who calls them.
    workers: Arc<[Handle]>,
}

impl Roster {
    /// Of plugins that these workers call.
    pub(crate) fn of(workers: &Arc<[Handle]>) -> Self {
        Self { workers: Arc::clone(workers), ..Self::default() }
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Stops one for good, within its bounds.
    pub(crate) async fn dismiss(&self, plugin: &Arc<Running>) {
        plugin.shutdown().await;
        self.plugins().retain(|other| !Arc::ptr_eq(plugin, other));
    }

    /// Stops all of them, in parallel, each within its bounds.
    pub(crate) async fn dismiss_all(&self) {
        let plugins = self.plugins().clone();
        join_all(plugins.iter().map(|plugin| self.dismiss(plugin))).await;
    }

    fn plugins(&self) -> MutexGuard<'_, Vec<Arc<Running>>> {
        // A list is whole between its calls.
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
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

/// One serving instance.
#[derive(Debug)]
pub(crate) struct Client {
    speaks: Speaks,
    /// Its process; `None` where somebody else has started it.
    pid: Option<i32>,
    record: Record,
    /// Tells its supervisor of the calls under way.
    calls: Calls,
}

/// The contract of an instance.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each process, behind an Arc")]
pub(crate) enum Speaks {
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

/// How many bytes a request is for a plugin of the native contract that needs what is sent by default.
#[cfg(feature = "bench")]
pub(crate) fn encoded_size(request: &Request) -> usize {
    native::encoded_size(&Subject { request, route: None, body: None })
}

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The connection broke: the plugin may never have seen the call.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// There was no connection to send it over: the plugin has certainly not seen the call.
    #[error("there is no connection: {0}")]
    Unsent(String),
    #[error("no answer in time")]
    Timeout,
    /// More calls wait than it can take in time. It has not been asked.
    #[error("too many calls at a time")]
    Overloaded,
    /// It answered that it has no room for more.
    #[error("{0}")]
    Busy(String),
    /// It answered with an error.
    #[error("{0}")]
    Failed(String),
    /// Its answer is not one that the contract knows.
    #[error("{0}")]
    Invalid(String),
    /// It answered, and it can't be told what: it may have refused.
    #[error("{0}")]
    Unreadable(String),
    /// Its answer comes of another configuration than the one that the request is judged by.
    #[error("it answers by another configuration, {0:?}")]
    OtherConfig(String),
    /// It refuses, with a reply that can't be sent. It is a refusal all the same.
    #[error("its reply can't be sent: {0}")]
    InvalidReply(String),
    /// It ended two processes, one after the other.
    #[error("it ended two processes")]
    Poison,
    /// The request can't be written in its contract: the client's fault.
    #[error("{0}")]
    Unrepresentable(String),
}

/// Whether an instance in this state has the process that has served. Calls may be kept from it.
fn runs(state: &State) -> bool {
    matches!(state, State::Serving | State::NotServing { .. } | State::Draining)
}

impl Client {
    /// Whether its process runs, by what is known of its instance now. One from which calls are kept does.
    fn lives(self: &Arc<Self>, serves: Option<Arc<Self>>, status: &Status) -> bool {
        match serves {
            Some(client) => Arc::ptr_eq(self, &client),
            None => status.pid == self.pid && runs(&status.state),
        }
    }

    pub(crate) fn needs(&self) -> Needs {
        match &self.speaks {
            Speaks::Native(native) => native.needs(),
            Speaks::Mosn(mosn) => mosn.needs(),
        }
    }

    /// Asks about a request. What is sent is fixed when this returns.
    pub(crate) fn check_request(
        &self,
        subject: &Subject<'_>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<Verdict, CallError>> + Send + use<>, CallError> {
        enum Call<N, M> {
            Native(N),
            Mosn(M),
        }
        let call = match &self.speaks {
            Speaks::Native(native) => Call::Native(native.check_request(subject, deadline)),
            Speaks::Mosn(mosn) => Call::Mosn(mosn.check_request(subject, deadline)?),
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
        let call = match &self.speaks {
            Speaks::Native(native) => Some(native.check_response(request, response, deadline)),
            Speaks::Mosn(_) => None,
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
        match &self.speaks {
            Speaks::Native(native) => native.certificates(names).await,
            Speaks::Mosn(_) => Ok(mosn::certificates(Arc::clone(self))),
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_supervisor::NotServing;

    use super::*;

    #[test]
    fn a_process_that_calls_are_kept_from_has_not_ended() {
        let withheld = [NotServing::Reported, NotServing::Suspect, NotServing::Frozen];
        let withheld = withheld.map(|why| State::NotServing { why });
        assert!(withheld.iter().chain(&[State::Serving, State::Draining]).all(runs));
        let ended = [State::Starting, State::AwaitReady, State::Stopping, State::Stopped];
        assert!(!ended.iter().any(runs));
    }

    #[test]
    fn texts_of_plugins_are_bounded() {
        let text = clip(&format!("a\x1b[31m\n{}", "x".repeat(1000)));
        assert!(text.chars().count() == MAX_TEXT + 1 && !text.chars().any(char::is_control));
    }
}
