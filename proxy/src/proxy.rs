//! The way of one request: read, judged, routed, judged again, sent, answered.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use tokio::time::Instant;

use crate::config;
use crate::filter::{Chain, Passed, Stop, UnknownPlugin};
use crate::http::headers::{self, X_PALISADE_REASON, request_id};
use crate::http::wire::Fault;
use crate::http::{Alarm, Body, Client, Incoming, Progress, Request, RequestBody, Rules, read};
use crate::plugin::Plugins;
use crate::respond::{self, Failure, Reason};
use crate::route::{Route, Routes};
use crate::telemetry::Metrics;
use crate::upstream::Sending;

/// What serves the requests of one listener.
#[derive(Debug)]
pub(crate) struct Proxy {
    filters: Chain,
    routes: Arc<Routes>,
    rules: Rules,
    trailers: Arc<[HeaderName]>,
    metrics: Arc<Metrics>,
}

/// How a request ended, for the log and the metrics.
struct Outcome<'a> {
    /// Unset: the request was not routed.
    route: Option<&'a Route>,
    /// Set where the proxy itself answered.
    failure: Option<Failure>,
    /// The plugin that answered in its place.
    denied_by: Option<String>,
}

/// A request whose client leaves before it is answered.
struct Unanswered<'a> {
    proxy: &'a Proxy,
    client: &'a Client,
    started: Instant,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let elapsed = self.started.elapsed();
            self.proxy.metrics.request(&self.client.listener, None, client_left(), Some("client_left"), elapsed);
            tracing::debug!(
                target: "palisade::access", listener = &*self.client.listener, seconds = elapsed.as_secs_f64(),
                "the client left before it was answered",
            );
        }
    }
}

/// A status for the books, never sent: what nginx and others count such requests as.
fn client_left() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl Proxy {
    pub(crate) fn new(
        listener: &config::Listener,
        routes: &Arc<Routes>,
        plugins: &Plugins,
        owned: &Arc<[HeaderName]>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, UnknownPlugin> {
        Ok(Self {
            filters: Chain::new(&listener.filters, plugins, metrics)?,
            routes: Arc::clone(routes),
            trailers: listener.requests.trailers.iter().filter(|name| !owned.contains(name)).cloned().collect(),
            rules: Rules { requests: listener.requests.clone(), owned: Arc::clone(owned), limits: listener.limits },
            metrics: Arc::clone(metrics),
        })
    }

    /// Answers one request. Every failure is an answer too.
    /// `alarm` is of the task that this is in. `refused`: it is not to be served, for this.
    pub(crate) async fn handle(
        &self,
        message: http::Request<Incoming>,
        client: &Arc<Client>,
        alarm: &Alarm,
        refused: Option<Failure>,
    ) -> Response<Body> {
        let started = Instant::now();
        let (parts, incoming) = message.into_parts();
        let id = request_id(&parts.headers, client.trusted);
        let mut outcome = Outcome { route: None, failure: None, denied_by: None };
        let request = match refused {
            Some(failure) => Err((failure, id)),
            None => read(parts, client, &self.rules, id),
        };
        match request {
            Err((failure, id)) => {
                let response = respond::failure(&failure, &id);
                outcome.failure = Some(failure);
                self.record(&id, client, None, &outcome, response.status(), started);
                response
            }
            Ok(mut request) => {
                let mut unanswered = Unanswered { proxy: self, client, started, answered: false };
                // Pinned where it is: to move it is to copy all of it.
                let answer = {
                    let answer = pin!(self.answer(&mut request, incoming, alarm, started, &mut outcome));
                    AssertUnwindSafe(answer).catch_unwind().await
                };
                unanswered.answered = true;
                let response = answer.unwrap_or_else(|_| {
                    // The panic itself has been reported where it happened.
                    let failure = Failure::new(Reason::Internal).with("a panic");
                    stopped(Stop::Failed(failure), &request.id, &mut outcome)
                });
                self.record(&request.id, client, Some(&request), &outcome, response.status(), started);
                response
            }
        }
    }

    /// The reply to a head that could not be read.
    pub(crate) fn refuse(&self, fault: Fault, client: &Client) -> Response<Body> {
        let failure = Failure::from(fault);
        let id = request_id(&http::HeaderMap::new(), false);
        let response = respond::failure(&failure, &id);
        let outcome = Outcome { route: None, failure: Some(failure), denied_by: None };
        self.record(&id, client, None, &outcome, response.status(), Instant::now());
        response
    }

    /// A response whose head is out did not come to its end.
    pub(crate) fn cut(&self, client: &Client, error: &dyn fmt::Display) {
        self.metrics.cut(&client.listener);
        tracing::debug!(target: "palisade::access", listener = &*client.listener, %error, "response cut");
    }

    async fn answer<'a>(
        &'a self,
        request: &mut Request,
        incoming: Incoming,
        alarm: &Alarm,
        started: Instant,
        outcome: &mut Outcome<'a>,
    ) -> Response<Body> {
        let progress = Progress::new(started);
        let limits = &self.rules.limits;
        let deadline = started + limits.request_timeout;
        let body = RequestBody::new(incoming, limits, &self.trailers, &progress);
        let mut passed = Passed::default();
        let forwarded = {
            let forwarded = pin!(self.forward(request, body, alarm, &progress, &mut passed, outcome));
            alarm.bound(forwarded, || deadline).await
        };
        let forwarded = forwarded.unwrap_or_else(|| Err(Stop::Failed(Failure::new(Reason::RequestTimeout))));
        let response = match forwarded {
            Ok(response) => response,
            Err(stop) => stopped(stop, &request.id, outcome),
        };
        let (mut parts, body) = response.into_parts();
        let mut response = match passed.settle(request, &mut parts).await {
            Ok(()) => Response::from_parts(parts, body),
            // Dropping the body gives up what the upstream still sends.
            Err(stop) => {
                outcome.failure = None;
                stopped(stop, &request.id, outcome)
            }
        };
        if matches!(response.body(), Body::Switched(_))
            && let Some(protocol) = request.upgrade.as_deref().and_then(|asked| HeaderValue::from_str(asked).ok())
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, protocol);
        }
        response
    }

    /// Judges, routes and sends a request.
    async fn forward<'a>(
        &'a self,
        request: &mut Request,
        mut body: RequestBody,
        alarm: &Alarm,
        progress: &Arc<Progress>,
        passed: &mut Passed,
        outcome: &mut Outcome<'a>,
    ) -> Result<Response<Body>, Stop> {
        body.check_length()?;
        self.filters.check(request, &mut body, None, passed).await?;
        let route = self.routes.find(request).ok_or_else(|| Stop::Failed(Failure::new(Reason::NoRoute)))?;
        outcome.route = Some(route);
        route.filters.check(request, &mut body, Some(&route.config), passed).await?;
        let upgrade =
            request.upgrade.as_deref().filter(|asked| route.config.upgrades.iter().any(|served| served == asked));
        let sending =
            Sending { timeout: route.config.timeout, retries: route.config.retries, upgrade, progress, alarm };
        let response = route.upstream.send(request, body, sending).await.map_err(Stop::Failed)?;
        let (mut parts, mut body) = response.into_parts();
        // It says who made a reply: nobody but the proxy may.
        parts.headers.remove(X_PALISADE_REASON);
        let owned = &self.rules.owned;
        if !owned.is_empty() {
            headers::remove(&mut parts.headers, |name| owned.contains(name));
            body.without_trailers(owned);
        }
        Ok(Response::from_parts(parts, Body::from(body)))
    }

    fn record(
        &self,
        id: &str,
        client: &Client,
        request: Option<&Request>,
        outcome: &Outcome<'_>,
        status: StatusCode,
        started: Instant,
    ) {
        let route = outcome.route.map_or("", |route| &*route.name);
        let reason = outcome.failure.as_ref().map(|failure| failure.reason().as_str());
        let elapsed = started.elapsed();
        self.metrics.request(&client.listener, outcome.route.map(|route| &route.name), status, reason, elapsed);
        let method = request.map_or("", |request| request.method.as_str());
        let path = request.map_or("", |request| request.path.as_str());
        let authority = request.map_or("", |request| request.authority.as_str());
        let server_error = status.is_server_error();
        let status = status.as_u16();
        let seconds = elapsed.as_secs_f64();
        match &outcome.failure {
            Some(failure) if server_error => tracing::warn!(
                target: "palisade::access", request_id = id, listener = &*client.listener, route, method, authority,
                path, status, seconds, failure = %failure, "request failed",
            ),
            Some(failure) => tracing::debug!(
                target: "palisade::access", request_id = id, listener = &*client.listener, route, method, authority,
                path, status, seconds, failure = %failure, "request refused",
            ),
            None => tracing::debug!(
                target: "palisade::access", request_id = id, listener = &*client.listener, route, method, authority,
                path, status, seconds, denied_by = outcome.denied_by, "request",
            ),
        }
    }
}

/// The reply to a request that was stopped.
fn stopped(stop: Stop, request_id: &str, outcome: &mut Outcome<'_>) -> Response<Body> {
    match stop {
        Stop::Denied { reply, by } => {
            outcome.denied_by = Some(by);
            respond::reply(&reply, request_id)
        }
        Stop::Failed(failure) => {
            let response = respond::failure(&failure, request_id);
            outcome.failure = Some(failure);
            response
        }
    }
}
