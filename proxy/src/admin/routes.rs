//! What the admin socket answers.

use std::process;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use palisade_supervisor::Status;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::readiness::{ListenerAddress, Phase};
use super::{Admin, ORDER_TIMEOUT};
use crate::config::nearest;
use crate::plugin::Running;

/// The text form of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn routes(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/plugins/{name}/restart", post(|admin, name| order(admin, name, Order::Restart)))
        .route("/plugins/{name}/stop", post(|admin, name| order(admin, name, Order::Stop)))
        .route("/plugins/{name}/start", post(|admin, name| order(admin, name, Order::Start)))
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
    listeners: Vec<ListenerAddress>,
    plugins: Vec<PluginView>,
}

/// A plugin's status with its last report as people read it: one wording, wherever it is shown.
#[derive(Serialize)]
struct PluginView {
    /// Counts from 1; absent where the plugin has only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<usize>,
    #[serde(flatten)]
    status: Status,
    last_exit_report: Option<String>,
}

/// One for each instance.
fn views(plugin: &Running) -> Vec<PluginView> {
    let several = plugin.instances().len() > 1;
    let view = |(index, status): (usize, Status)| {
        let last_exit_report = status.last_exit.as_ref().map(|report| report.to_string());
        PluginView { instance: several.then_some(index + 1), status, last_exit_report }
    };
    plugin.statuses().into_iter().enumerate().map(view).collect()
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<ProxyView> {
    let phase = admin.readiness.phase();
    Json(ProxyView {
        version: env!("CARGO_PKG_VERSION"),
        pid: process::id(),
        started: admin.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        config: admin.config_file.display().to_string(),
        state: phase.as_str(),
        ready: matches!(*phase, Phase::Ready(_)),
        listeners: phase.listeners().to_vec(),
        plugins: admin.plugins.iter().flat_map(|plugin| views(plugin)).collect(),
    })
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
    let plugins: Vec<_> = admin.plugins.iter().flat_map(|plugin| plugin.statuses()).collect();
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
    let Some(plugin) = admin.plugins.get(&name) else {
        let near = nearest(&name, admin.plugins.iter().map(|plugin| plugin.name()));
        let help = near.map(|near| format!("did you mean `{near}`?"));
        return refused(StatusCode::NOT_FOUND, &format!("no plugin is called `{name}`"), help);
    };
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

fn refused(status: StatusCode, error: &str, help: Option<String>) -> Response {
    (status, Json(json!({"error": error, "help": help}))).into_response()
}
