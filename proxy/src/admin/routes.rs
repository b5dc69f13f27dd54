//! What the admin socket answers.

use std::process;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use palisade_supervisor::{ExitReport, Facts, Status};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::in_force::Generation;
use super::readiness::{ListenerAddress, Phase};
use super::{Admin, CHANGE_TIMEOUT, Change, Changed, LONGEST_WAIT, ORDER_TIMEOUT, Refused};
use crate::config::nearest;
use crate::plugin::Running;
use crate::telemetry::Observed;
use crate::tls::Flaw;

/// The text form of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `stop` ends what waits.
pub(super) fn routes(admin: Arc<Admin>, stop: CancellationToken) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/events", get(|admin, query| events(admin, query, stop)))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/plugins/{name}", get(plugin))
        .route("/plugins/{name}/restart", post(|admin, name| order(admin, name, Order::Restart)))
        .route("/plugins/{name}/stop", post(|admin, name| order(admin, name, Order::Stop)))
        .route("/plugins/{name}/start", post(|admin, name| order(admin, name, Order::Start)))
        .route("/plugins/{name}/upgrade", post(upgrade))
        .route("/plugins/{name}/inspect", get(inspect))
        .route("/reload", post(|admin| changed(admin, Change::Reload)))
        .route("/upgrade", post(|admin| changed(admin, Change::UpgradeSelf)))
        .fallback(|| async { refused(StatusCode::NOT_FOUND, "there is nothing here", None) })
        .method_not_allowed_fallback(|| async {
            refused(StatusCode::METHOD_NOT_ALLOWED, "this method is not served here", None)
        })
        .with_state(admin)
}

#[derive(Serialize)]
struct ProxyView {
    version: &'static str,
    pid: u32,
    started: f64,
    config: String,
    state: &'static str,
    ready: bool,
    #[serde(flatten)]
    generation: Arc<Generation>,
    listeners: Vec<ListenerAddress>,
    /// Those that clients may refuse.
    flawed_certificates: Vec<FlawedCertificate>,
    plugins: Vec<PluginView>,
}

#[derive(Serialize)]
struct FlawedCertificate {
    plugin: String,
    bundle: String,
    flaw: &'static str,
    text: String,
}

/// A plugin's status with its last report as people read it: one wording, wherever it is shown.
#[derive(Serialize)]
struct PluginView {
    /// Counts from 1; absent where the plugin has only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<usize>,
    #[serde(flatten)]
    status: Status,
    /// Whether it gets no calls since it fails them.
    quarantined: bool,
    last_exit_report: Option<String>,
}

/// One for each instance.
fn views(plugin: &Running) -> Vec<PluginView> {
    let several = plugin.instances().len() > 1;
    let view = |(index, observed): (usize, Observed)| {
        let Observed { status, quarantined, .. } = observed;
        let last_exit_report = status.last_exit.as_ref().map(|report| report.to_string());
        PluginView { instance: several.then_some(index + 1), status, quarantined, last_exit_report }
    };
    plugin.observed().into_iter().enumerate().map(view).collect()
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<ProxyView> {
    let phase = admin.readiness.phase();
    let generation = admin.in_force.now();
    let flaws = admin.metrics.flawed_certificates().into_iter().flat_map(|(plugin, bundle, flaws)| {
        let flawed = move |Flaw { kind: flaw, text }| FlawedCertificate {
            plugin: plugin.clone(),
            bundle: bundle.clone(),
            flaw,
            text,
        };
        flaws.into_iter().map(flawed)
    });
    Json(ProxyView {
        version: env!("CARGO_PKG_VERSION"),
        pid: process::id(),
        started: admin.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        config: admin.config_file.display().to_string(),
        state: phase.as_str(),
        ready: matches!(*phase, Phase::Ready(_)),
        listeners: phase.listeners().to_vec(),
        flawed_certificates: flaws.collect(),
        plugins: generation.plugins.iter().flat_map(|plugin| views(plugin)).collect(),
        generation,
    })
}

/// An instance with the reports of all its ends that are kept.
#[derive(Serialize)]
struct InstanceView {
    #[serde(flatten)]
    view: PluginView,
    exits: Vec<ExitView>,
}

#[derive(Serialize)]
struct ExitView {
    #[serde(flatten)]
    exit: Arc<ExitReport>,
    /// For people, with all details.
    report: String,
}

async fn plugin(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let generation = admin.in_force.now();
    let Some(plugin) = generation.plugins.get(&name) else { return unknown(&generation, &name) };
    let instance = |view: PluginView| {
        let exit = |exit: &Arc<ExitReport>| ExitView { exit: Arc::clone(exit), report: format!("{exit:#}") };
        let exits = view.status.exits.iter().map(exit).collect();
        InstanceView { view, exits }
    };
    let instances: Vec<_> = views(plugin).into_iter().map(instance).collect();
    Json(json!({"name": name, "instances": instances})).into_response()
}

/// Which events are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct EventsQuery {
    /// Those after this number; 0: all that are kept.
    after: u64,
    /// Whether to wait for one, where there is none.
    wait: bool,
}

impl EventsQuery {
    /// Of `after=NUMBER` and `wait`, in any order; `None` where there is anything else.
    fn parse(query: &str) -> Option<Self> {
        let mut read = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("after", number)) => read.after = number.parse().ok()?,
                None if part == "wait" => read.wait = true,
                _ => return None,
            }
        }
        Some(read)
    }
}

async fn events(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery, stop: CancellationToken) -> Response {
    let Some(EventsQuery { after, wait }) = EventsQuery::parse(query.as_deref().unwrap_or_default()) else {
        let help = "write it like /events?after=7&wait".to_owned();
        return refused(StatusCode::BAD_REQUEST, "the query can't be understood", Some(help));
    };
    if wait {
        let next = stop.run_until_cancelled(admin.events.wait_after(after));
        timeout(LONGEST_WAIT, next).await.ok();
    }
    Json(json!({"events": admin.events.after(after)})).into_response()
}

/// 200 while all listeners are open, else 503 with what is waited for.
async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let phase = admin.readiness.phase();
    let (code, waiting_for) = match &*phase {
        Phase::Ready(_) => (StatusCode::OK, None),
        Phase::Starting(awaited) => (StatusCode::SERVICE_UNAVAILABLE, awaited.as_deref()),
        Phase::Closed => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    let ready = code == StatusCode::OK;
    (code, Json(json!({"ready": ready, "state": phase.as_str(), "waiting_for": waiting_for}))).into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let generation = admin.in_force.now();
    let plugins: Vec<_> = generation.plugins.iter().flat_map(|plugin| plugin.observed()).collect();
    match admin.metrics.render(&plugins) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &format!("metrics can't be written: {error}"), None),
    }
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Restart,
    Stop,
    Start,
}

/// Carries an order out and waits for what comes of it, no longer than [`ORDER_TIMEOUT`]. It goes on when the client
/// leaves, or when the time is up.
async fn order(State(admin): State<Arc<Admin>>, Path(name): Path<String>, order: Order) -> Response {
    let generation = admin.in_force.now();
    let Some(plugin) = generation.plugins.get(&name) else { return unknown(&generation, &name) };
    tracing::info!(target: "palisade::admin", plugin = name, ?order, "an operator gave an order");
    let deadline = Instant::now() + ORDER_TIMEOUT;
    let carried_out = async {
        match order {
            Order::Restart => plugin.restart().await,
            Order::Stop => plugin.stop().await,
            Order::Start => plugin.start_again().await,
        }
    };
    // If the time is up, the state says what is still going on.
    timeout_at(deadline, carried_out).await.ok();
    Json(json!({"name": name, "instances": views(plugin)})).into_response()
}

fn unknown(generation: &Generation, name: &str) -> Response {
    let near = nearest(name, generation.plugins.iter().map(|plugin| plugin.name()));
    let help = near.map(|near| format!("did you mean `{near}`?"));
    refused(StatusCode::NOT_FOUND, &format!("no plugin is called `{name}`"), help)
}

/// Replaces the processes of a plugin.
async fn upgrade(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let generation = admin.in_force.now();
    let Some(plugin) = generation.plugins.get(&name) else { return unknown(&generation, &name) };
    if plugin.is_found() {
        return not_started(&name, "start a new one beside it, write its `address`, and reload");
    }
    if let Err(refused) = change(&admin, Change::Upgrade(name.clone())).await {
        return refused;
    }
    match admin.in_force.now().plugins.get(&name) {
        Some(plugin) => Json(json!({"name": name, "instances": views(plugin)})).into_response(),
        None => refused(StatusCode::CONFLICT, "a reload has removed it meanwhile", None),
    }
}

/// Has everything changed at once: the configuration, or the process.
async fn changed(State(admin): State<Arc<Admin>>, what: Change) -> Response {
    match change(&admin, what).await {
        Ok(changed) => Json(changed).into_response(),
        Err(refused) => refused,
    }
}

/// Gives an order to the runtime and waits for what comes of it. It is carried out even when the client leaves.
async fn change(admin: &Admin, change: Change) -> Result<Changed, Response> {
    tracing::info!(target: "palisade::admin", %change, "an operator gave an order");
    let (answer, done) = oneshot::channel();
    if admin.orders.try_send(super::Order { change, answer: Some(answer) }).is_err() {
        let error = "the proxy ends, or too many changes wait already";
        return Err(refused(StatusCode::SERVICE_UNAVAILABLE, error, None));
    }
    match timeout(CHANGE_TIMEOUT, done).await {
        Ok(Ok(Ok(changed))) => Ok(changed),
        Ok(Ok(Err(Refused::Invalid(problems)))) => {
            let error = format!("the configuration is invalid, the one before stays in force\n\n{problems}");
            let body = json!({"error": error, "help": null, "invalid": problems.to_json()});
            Err((StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response())
        }
        Ok(Ok(Err(failed))) => {
            let help = "what was there before stays in force".to_owned();
            Err(refused(StatusCode::CONFLICT, &failed.to_string(), Some(help)))
        }
        Ok(Err(_)) => Err(refused(StatusCode::SERVICE_UNAVAILABLE, "the proxy ends", None)),
        Err(_) => {
            let error = format!("the change is not complete after {} s; it goes on", CHANGE_TIMEOUT.as_secs());
            Err(refused(StatusCode::GATEWAY_TIMEOUT, &error, Some("see `palisade status` and the log".to_owned())))
        }
    }
}

/// What the plugin's processes may do, each as the kernel has it now and as its helper found it.
async fn inspect(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let generation = admin.in_force.now();
    let Some(plugin) = generation.plugins.get(&name) else { return unknown(&generation, &name) };
    if plugin.is_found() {
        return not_started(&name, "what it may do is up to whoever starts it");
    }
    let several = plugin.instances().len() > 1;
    let mut instances = Vec::new();
    for (index, Observed { status, .. }) in plugin.observed().into_iter().enumerate() {
        let facts = match status.pid {
            Some(pid) => spawn_blocking(move || Facts::of(pid)).await.ok(),
            None => None,
        };
        let (facts, error) = match facts {
            Some(Ok(facts)) => (Some(facts), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, Some("no process runs".to_owned())),
        };
        instances.push(json!({
            "instance": several.then_some(index + 1),
            "state": status.state.as_str(),
            "facts": facts,
            "error": error,
            "confinement": status.confinement,
        }));
    }
    Json(json!({"name": name, "instances": instances})).into_response()
}

/// An order that makes no sense without a process.
fn not_started(name: &str, help: &str) -> Response {
    let error = format!("plugin `{name}` has an `address`: the proxy has not started it");
    refused(StatusCode::CONFLICT, &error, Some(help.to_owned()))
}

fn refused(status: StatusCode, error: &str, help: Option<String>) -> Response {
    (status, Json(json!({"error": error, "help": help}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_for_events_is_read_whole_or_refused() {
        let read = |after, wait| Some(EventsQuery { after, wait });
        let cases = [
            ("", read(0, false)),
            ("wait", read(0, true)),
            ("after=7", read(7, false)),
            ("wait&after=7", read(7, true)),
            ("after=-1", None),
            ("after", None),
            ("wait=1", None),
            ("after=7&since=1", None),
        ];
        for (query, expected) in cases {
            assert_eq!(EventsQuery::parse(query), expected, "{query}");
        }
    }
}
