//! Filters: what decides about a request before it goes on, and about the response on its way back.
//!
//! A [`Chain`] stands on a listener (before routing) or on a route (after it). Requests meet filters in the order of the
//! file, responses in the reverse order, and only those that let the request pass.

mod ask;

use std::sync::Arc;
use std::time::Duration;

use http::response::Parts;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::ask::{Asked, ask_request, ask_response};
use crate::config::{self, HeaderFilter, OnFailure};
use crate::http::{Request, RequestBody};
use crate::plugin::{self, HeaderOp, Needs, Plugins, ResponseHead, ResponseVerdict, Running, Verdict};
use crate::respond::{Failure, Reason, Reply};
use crate::telemetry::Metrics;

/// Filters in their order.
#[derive(Debug)]
pub(crate) struct Chain(Vec<Step>);

#[derive(Debug)]
enum Step {
    Plugin(Arc<PluginStep>),
    Header(HeaderFilter),
}

/// A plugin at one place in one chain.
#[derive(Debug)]
struct PluginStep {
    name: Arc<str>,
    plugin: Arc<Running>,
    /// Keeps a plugin that was replaced until this step's last request has been answered.
    _in_use: TaskTrackerToken,
    timeout: Duration,
    on_failure: OnFailure,
    max_body: usize,
    metrics: Arc<Metrics>,
}

/// Why a request goes no further. It carries what the client gets, so that no stop is without an answer.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A filter's verdict.
    Denied {
        reply: Reply,
        /// The plugin's name.
        by: String,
    },
    /// It could not be judged, or the built-in check refuses it.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What the filters that let a request pass want of its response.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<Later>);

#[derive(Debug)]
struct Later {
    step: Arc<PluginStep>,
    ops: Vec<HeaderOp>,
    judges: bool,
}

/// A plugin that the configuration's own check has let through is missing: a bug of ours.
#[derive(Debug, thiserror::Error)]
#[error("no plugin `{0}` is running")]
pub(crate) struct UnknownPlugin(String);

impl Chain {
    pub(crate) fn new(
        filters: &[config::Filter],
        plugins: &Plugins,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, UnknownPlugin> {
        let step = |filter: &config::Filter| match filter {
            config::Filter::Header(header) => Ok(Step::Header(header.clone())),
            config::Filter::Plugin(step) => {
                let plugin = plugins.get(&step.plugin).ok_or_else(|| UnknownPlugin(step.plugin.clone()))?;
                Ok(Step::Plugin(Arc::new(PluginStep {
                    name: plugin.name().into(),
                    _in_use: plugin.in_use(),
                    plugin: Arc::clone(plugin),
                    timeout: step.timeout,
                    on_failure: step.on_failure,
                    max_body: step.max_body,
                    metrics: Arc::clone(metrics),
                })))
            }
        };
        filters.iter().map(step).collect::<Result<_, _>>().map(Self)
    }

    /// Lets every filter judge, each seeing what those before it changed. What they want of the response is added to
    /// `passed`, also when a later filter stops the request.
    pub(crate) async fn check(
        &self,
        request: &mut Request,
        body: &mut RequestBody,
        route: Option<&config::Route>,
        passed: &mut Passed,
    ) -> Result<(), Stop> {
        for step in &self.0 {
            match step {
                Step::Header(filter) => check_header(filter, &request.headers)?,
                Step::Plugin(step) => {
                    // Not in the future of every request, which is copied once: most of it would be this.
                    let Some(later) = Box::pin(step.check(request, body, route)).await? else { continue };
                    passed.0.push(later);
                }
            }
        }
        Ok(())
    }
}

fn check_header(filter: &HeaderFilter, headers: &HeaderMap) -> Result<(), Stop> {
    let allowed = |value: &HeaderValue| filter.values.iter().any(|allowed| allowed.as_bytes() == value.as_bytes());
    // Of several, the upstream may look at any.
    if headers.contains_key(&filter.name) && headers.get_all(&filter.name).iter().all(allowed) {
        return Ok(());
    }
    let failure = Failure::new(Reason::HeaderCheck).with(format_args!("header {}", filter.name));
    Err(Stop::Failed(failure.with_status(filter.status)))
}

impl PluginStep {
    /// Asks the plugin about a request and applies what it says. `None`: it wants nothing of the response.
    async fn check(
        self: &Arc<Self>,
        request: &mut Request,
        body: &mut RequestBody,
        route: Option<&config::Route>,
    ) -> Result<Option<Later>, Stop> {
        let started = Instant::now();
        let asked = ask_request(&self.plugin, self.timeout, self.max_body, request, body, route).await;
        let (verdict, needs) = match asked {
            Ok(Asked { answer, needs }) => (answer, needs),
            Err(failed) => {
                self.metrics.filter(&self.name, failed.failure.reason().as_str(), started.elapsed());
                self.tolerate(failed, request)?;
                // Not judged on its way there, so not on its way back.
                return Ok(None);
            }
        };
        match verdict {
            Verdict::Deny(reply) => {
                self.metrics.filter(&self.name, "deny", started.elapsed());
                Err(self.denied(reply))
            }
            Verdict::Allow { request: ops, response } => {
                self.metrics.filter(&self.name, "allow", started.elapsed());
                plugin::apply(&ops, &mut request.headers);
                let Needs { response: judges, .. } = needs;
                Ok((judges || !response.is_empty()).then(|| Later { step: Arc::clone(self), ops: response, judges }))
            }
        }
    }

    fn denied(&self, reply: Reply) -> Stop {
        Stop::Denied { reply, by: self.plugin.name().to_owned() }
    }

    /// What a failed call means: an end, or, where the operator says so, a request that goes on unjudged.
    fn tolerate(&self, failed: ask::Failed, request: &Request) -> Result<(), Stop> {
        let plugin = self.plugin.name();
        if failed.stops || self.on_failure == OnFailure::Deny {
            return Err(Stop::Failed(failed.failure.about(plugin)));
        }
        self.metrics.unjudged(plugin);
        tracing::warn!(
            target: "palisade::filter", plugin, request_id = %request.id, failure = %failed.failure,
            "not judged, goes on (on_failure: allow)",
        );
        Ok(())
    }
}

impl Passed {
    /// Lets the filters have their say about a response's head, the last one first. `Err`: send this in its place.
    pub(crate) async fn settle(self, request: &Request, response: &mut Parts) -> Result<(), Stop> {
        let mut replaced = None;
        for later in self.0.into_iter().rev() {
            // What takes the response's place goes through the filters that are still to come.
            let (status, headers) = match &mut replaced {
                None => (response.status, &mut response.headers),
                Some(Replaced { status, headers, .. }) => (*status, headers),
            };
            plugin::apply(&later.ops, headers);
            if !later.judges {
                continue;
            }
            match Box::pin(later.step.check_response(request, &ResponseHead { status, headers })).await {
                Ok(ops) => plugin::apply(&ops, headers),
                Err(stop) => replaced = Some(Replaced::new(stop)),
            }
        }
        match replaced {
            None => Ok(()),
            Some(replaced) => Err(replaced.into_stop()),
        }
    }
}

/// What goes to the client instead of the response.
struct Replaced {
    status: http::StatusCode,
    headers: HeaderMap,
    stop: Stop,
}

impl Replaced {
    fn new(stop: Stop) -> Self {
        let mut headers = HeaderMap::new();
        let status = match &stop {
            Stop::Denied { reply, .. } => {
                for (name, value) in &reply.headers {
                    headers.append(name, value.clone());
                }
                reply.status
            }
            Stop::Failed(failure) => failure.status(),
        };
        Self { status, headers, stop }
    }

    /// A reply with the headers that later filters left; a failure stays as clean as it is.
    fn into_stop(self) -> Stop {
        match self.stop {
            Stop::Denied { reply, by } => {
                let mut last = None;
                let headers = self.headers.into_iter().filter_map(|(name, value)| {
                    last = name.or_else(|| last.take());
                    last.clone().map(|name| (name, value))
                });
                Stop::Denied { reply: Reply { headers: headers.collect(), ..reply }, by }
            }
            failed @ Stop::Failed(_) => failed,
        }
    }
}

impl PluginStep {
    async fn check_response(&self, request: &Request, response: &ResponseHead<'_>) -> Result<Vec<HeaderOp>, Stop> {
        let started = Instant::now();
        match ask_response(&self.plugin, self.timeout, request, response).await {
            Ok(ResponseVerdict::Pass(ops)) => {
                self.metrics.filter(&self.name, "pass", started.elapsed());
                Ok(ops)
            }
            Ok(ResponseVerdict::Replace(reply)) => {
                self.metrics.filter(&self.name, "replace", started.elapsed());
                Err(self.denied(reply))
            }
            Err(failed) => {
                self.metrics.filter(&self.name, failed.failure.reason().as_str(), started.elapsed());
                self.tolerate(failed, request).map(|()| Vec::new())
            }
        }
    }
}
