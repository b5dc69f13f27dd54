//! The metrics, in one registry that every room writes to.
//!
//! Label values come from the configuration or are words of ours, never a client's, so there are no more series than
//! the configuration can name. Only the names of certificate bundles are a plugin's; they are counted.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_supervisor::{State, Status};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::runtime::Handle;

use super::logs;
use super::shards::{Buckets, Named, Shards, Times};
use crate::config::Config;
use crate::http::Closed;
use crate::tls::Flaw;

/// Series of certificates; what a plugin sends beyond them is not shown.
const MOST_BUNDLES: usize = 1000;

/// A request may wait for people's databases.
#[derive(Debug)]
struct OfRequests;

impl Buckets for OfRequests {
    const BOUNDS: &'static [f64] =
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
}

/// A filter on a unix socket answers in fractions of a millisecond, and has a fraction of a second.
#[derive(Debug)]
struct OfFilters;

impl Buckets for OfFilters {
    const BOUNDS: &'static [f64] =
        &[0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
}

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    no_route: Name,
    registry: Registry,
    requests: Shards<RequestLabels, u64>,
    request_seconds: Shards<ListenerLabels, Times<OfRequests>>,
    filter_calls: Shards<CallLabels, u64>,
    filter_seconds: Shards<PluginLabels, Times<OfFilters>>,
    unjudged: Family<PluginLabels, Counter>,
    connections: Family<ListenerLabels, Gauge>,
    accepted: Family<ListenerLabels, Counter>,
    cut: Family<ListenerLabels, Counter>,
    closed: Family<ClosedLabels, Counter>,
    ejections: Family<EndpointLabels, Counter>,
    upstream_up: Family<EndpointLabels, Gauge>,
    handshake_failures: Family<ListenerLabels, Counter>,
    changes: Family<ChangeLabels, Counter>,
    certificates: Mutex<BTreeMap<BundleLabels, Certificate>>,
    /// Every runtime: the one in which this was made, and the workers'.
    runtimes: Vec<Handle>,
}

impl Default for Metrics {
    /// Where there are no workers.
    fn default() -> Self {
        Self::of(&[])
    }
}

impl Metrics {
    /// Counts for each of these workers by itself, and their tasks.
    pub(crate) fn of(workers: &[Handle]) -> Self {
        let metrics = Self {
            no_route: Name::from(""),
            registry: Registry::default(),
            requests: Shards::new(workers.len()),
            request_seconds: Shards::new(workers.len()),
            filter_calls: Shards::new(workers.len()),
            filter_seconds: Shards::new(workers.len()),
            unjudged: Family::default(),
            connections: Family::default(),
            accepted: Family::default(),
            cut: Family::default(),
            closed: Family::default(),
            ejections: Family::default(),
            upstream_up: Family::default(),
            handshake_failures: Family::default(),
            changes: Family::default(),
            certificates: Mutex::default(),
            runtimes: Handle::try_current().into_iter().chain(workers.iter().cloned()).collect(),
        };
        metrics.registered()
    }

    /// Makes a series at zero for each listener and plugin: what has not happened yet can be told from what is not
    /// counted.
    pub(crate) fn expect(&self, config: &Config) {
        for listener in &config.listeners {
            let labels = ListenerLabels { listener: Name::from(&*listener.name) };
            self.request_seconds.count(labels.clone(), |_| {});
            drop(self.connections.get_or_create(&labels));
            drop(self.accepted.get_or_create(&labels));
            drop(self.cut.get_or_create(&labels));
            if listener.tls.is_some() {
                drop(self.handshake_failures.get_or_create(&labels));
            }
        }
        for plugin in config.plugins.keys() {
            let labels = PluginLabels { plugin: Name::from(&**plugin) };
            drop(self.unjudged.get_or_create(&labels));
        }
        for kind in ["reload", "upgrade", "upgrade_self"] {
            drop(self.changes.get_or_create(&ChangeLabels { change: kind, outcome: Outcome::Done.as_str() }));
        }
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("palisade_build", "What is running", build);
        let (name, help) = ("palisade_requests", "Requests answered");
        registry.register_collector(Box::new(Named { name, help, unit: None, sums: self.requests.clone() }));
        let (name, help) = ("palisade_request", "From a request's head to its response's head");
        let (unit, sums) = (Some(Unit::Seconds), self.request_seconds.clone());
        registry.register_collector(Box::new(Named { name, help, unit, sums }));
        let (name, help) = ("palisade_filter_calls", "Calls of filters by how they ended");
        registry.register_collector(Box::new(Named { name, help, unit: None, sums: self.filter_calls.clone() }));
        let (name, help) = ("palisade_filter", "How long a filter took, with waiting for the plugin");
        let (unit, sums) = (Some(Unit::Seconds), self.filter_seconds.clone());
        registry.register_collector(Box::new(Named { name, help, unit, sums }));
        registry.register(
            "palisade_filter_unjudged",
            "Requests let through unjudged, by on_failure: allow",
            self.unjudged.clone(),
        );
        registry.register("palisade_connections", "Open connections of clients", self.connections.clone());
        registry.register("palisade_connections_accepted", "Connections of clients taken", self.accepted.clone());
        registry.register(
            "palisade_connections_closed",
            "Connections that the proxy closed for a limit's sake",
            self.closed.clone(),
        );
        registry.register(
            "palisade_upstream_ejections",
            "Times that an endpoint got no requests for a while, for it had failed too often",
            self.ejections.clone(),
        );
        registry.register("palisade_upstream_up", "Whether checks find an endpoint up", self.upstream_up.clone());
        registry.register("palisade_responses_cut", "Responses that ended before their end", self.cut.clone());
        registry.register(
            "palisade_tls_handshake_failures",
            "TLS handshakes that failed",
            self.handshake_failures.clone(),
        );
        registry.register("palisade_changes", "Reloads and upgrades by how they ended", self.changes.clone());
        self
    }

    /// A request was answered `time` after its head had come. `reason` is set where the proxy made the reply itself.
    pub(crate) fn request(
        &self,
        listener: &Arc<str>,
        route: Option<&Arc<str>>,
        status: http::StatusCode,
        reason: Option<&'static str>,
        time: Duration,
    ) {
        let listener = Name(Arc::clone(listener));
        let labels = RequestLabels {
            listener: listener.clone(),
            route: route.map_or_else(|| self.no_route.clone(), |route| Name(Arc::clone(route))),
            status: status.as_u16(),
            reason,
        };
        self.requests.count(labels, |requests| *requests += 1);
        self.request_seconds.count(ListenerLabels { listener }, |times| times.observe(time));
    }

    /// A plugin was asked. `outcome` is `allow` or `deny`, of a response `pass` or `replace`, or the reason why there
    /// was no verdict.
    pub(crate) fn filter(&self, plugin: &Arc<str>, outcome: &'static str, time: Duration) {
        let plugin = Name(Arc::clone(plugin));
        self.filter_calls.count(CallLabels { plugin: plugin.clone(), outcome }, |calls| *calls += 1);
        self.filter_seconds.count(PluginLabels { plugin }, |times| times.observe(time));
    }

    /// A request went on without a verdict.
    pub(crate) fn unjudged(&self, plugin: &str) {
        self.unjudged.get_or_create(&PluginLabels { plugin: plugin.into() }).inc();
    }

    /// A connection was taken; it is open until the guard is dropped.
    #[must_use]
    pub(crate) fn connection(&self, listener: &str) -> Connection {
        let labels = ListenerLabels { listener: listener.into() };
        self.accepted.get_or_create(&labels).inc();
        let open = self.connections.get_or_create_owned(&labels);
        open.inc();
        Connection(open)
    }

    /// A response ended before its end: the upstream broke off, or the client left.
    pub(crate) fn cut(&self, listener: &str) {
        self.cut.get_or_create(&ListenerLabels { listener: listener.into() }).inc();
    }

    /// An endpoint gets no requests for a while.
    pub(crate) fn ejected(&self, upstream: &str, endpoint: &str) {
        self.ejections.get_or_create(&EndpointLabels { upstream: upstream.into(), endpoint: endpoint.into() }).inc();
    }

    /// What checks say about an endpoint.
    pub(crate) fn upstream_up(&self, upstream: &str, endpoint: &str, up: bool) {
        let labels = EndpointLabels { upstream: upstream.into(), endpoint: endpoint.into() };
        self.upstream_up.get_or_create(&labels).set(up.into());
    }

    /// A connection was closed for a limit's sake.
    pub(crate) fn closed(&self, listener: &str, reason: Closed) {
        self.closed.get_or_create(&ClosedLabels { listener: listener.into(), reason: reason.as_str() }).inc();
    }

    /// A TLS handshake failed.
    pub(crate) fn handshake_failed(&self, listener: &str) {
        self.handshake_failures.get_or_create(&ListenerLabels { listener: listener.into() }).inc();
    }

    /// A reload or an upgrade was carried out, or not.
    pub(crate) fn changed(&self, change: &'static str, outcome: Outcome) {
        self.changes.get_or_create(&ChangeLabels { change, outcome: outcome.as_str() }).inc();
    }

    /// A bundle is in use until `expires`, in seconds since the epoch.
    pub(crate) fn certificate(&self, plugin: &str, bundle: &str, expires: i64, flaws: &[Flaw]) {
        let labels = BundleLabels { plugin: plugin.into(), bundle: bundle.into() };
        let mut certificates = self.certificates();
        if certificates.len() < MOST_BUNDLES || certificates.contains_key(&labels) {
            certificates.insert(labels, Certificate { expires, flaws: flaws.to_vec() });
        }
    }

    /// The bundles in use: plugin, name, what clients may refuse them for.
    pub(crate) fn flawed_certificates(&self) -> Vec<(String, String, Vec<Flaw>)> {
        let certificates = self.certificates();
        let flawed = certificates.iter().filter(|(_, certificate)| !certificate.flaws.is_empty());
        flawed.map(|(at, it)| (at.plugin.0.to_string(), at.bundle.0.to_string(), it.flaws.clone())).collect()
    }

    /// A bundle is in use no more.
    pub(crate) fn certificate_gone(&self, plugin: &str, bundle: &str) {
        self.certificates().remove(&BundleLabels { plugin: plugin.into(), bundle: bundle.into() });
    }

    fn certificates(&self) -> MutexGuard<'_, BTreeMap<BundleLabels, Certificate>> {
        // Nothing is left half done in there.
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything, in the text form of OpenMetrics, with what the supervisor knows of the plugins at this moment.
    pub(crate) fn render(&self, plugins: &[Observed]) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &served(&self.certificates()))?;
        encode_registry(&mut text, &supervision(plugins))?;
        let tasks = self.runtimes.iter().map(|runtime| runtime.metrics().num_alive_tasks()).sum();
        encode_registry(&mut text, &process(logs::lost(), tasks))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A certificate in use.
#[derive(Debug)]
struct Certificate {
    /// In seconds since the epoch.
    expires: i64,
    flaws: Vec<Flaw>,
}

/// One instance at this moment.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) status: Status,
    /// Whether it gets no calls since it fails them.
    pub(crate) quarantined: bool,
    /// Calls that it got since another instance took long.
    pub(crate) hedged: u64,
}

/// How a change of what is in force ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Nothing was changed.
    Refused,
    /// What was changed was taken back.
    Undone,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Undone => "undone",
        }
    }
}

/// An open connection in the count.
#[derive(Debug)]
pub(crate) struct Connection(Gauge);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn served(certificates: &BTreeMap<BundleLabels, Certificate>) -> Registry {
    let expiry = Family::<BundleLabels, Gauge>::default();
    let flaws = Family::<FlawLabels, Gauge>::default();
    for (labels, certificate) in certificates {
        expiry.get_or_create(labels).set(certificate.expires);
        for Flaw { kind, .. } in &certificate.flaws {
            let BundleLabels { plugin, bundle } = labels.clone();
            flaws.get_or_create(&FlawLabels { plugin, bundle, flaw: kind }).set(1);
        }
    }
    let mut registry = Registry::default();
    let help = "When a certificate in use ends, since the epoch";
    registry.register_with_unit("palisade_certificate_expiry", help, Unit::Seconds, expiry);
    registry.register("palisade_certificate_flaws", "Certificates in use that clients may refuse", flaws);
    registry
}

fn process(lost: u64, tasks: usize) -> Registry {
    let lines = Counter::<u64>::default();
    lines.inc_by(lost);
    let alive = Gauge::<i64>::default();
    alive.set(i64::try_from(tasks).unwrap_or(i64::MAX));
    let mut registry = Registry::default();
    registry.register("palisade_tasks", "Tasks of the proxy that have not ended", alive);
    registry.register("palisade_log_lines_lost", "Lines of the log that could not be written", lines);
    registry
}

/// The supervisor keeps these numbers itself; they are copied when somebody asks.
fn supervision(plugins: &[Observed]) -> Registry {
    let up = Family::<PluginLabels, Gauge>::default();
    let restarts = Family::<PluginLabels, Counter>::default();
    let failures = Family::<PluginLabels, Gauge>::default();
    let quarantined = Family::<PluginLabels, Gauge>::default();
    let hedged = Family::<PluginLabels, Counter>::default();
    for Observed { status, quarantined: out, hedged: asked } in plugins {
        let labels = PluginLabels { plugin: Name::from(&*status.name) };
        up.get_or_create(&labels).inc_by(i64::from(status.state == State::Serving));
        restarts.get_or_create(&labels).inc_by(status.restarts);
        hedged.get_or_create(&labels).inc_by(*asked);
        quarantined.get_or_create(&labels).inc_by(i64::from(*out));
        let most = failures.get_or_create(&labels).get().max(i64::from(status.failures));
        failures.get_or_create(&labels).set(most);
    }
    let mut registry = Registry::default();
    registry.register("palisade_plugin_up", "Instances of a plugin that serve", up);
    let help = "Instances of a plugin that get no calls since they fail them";
    registry.register("palisade_plugin_quarantined", help, quarantined);
    let help = "Calls that an instance got since another one took long";
    registry.register("palisade_plugin_hedged_calls", help, hedged);
    registry.register("palisade_plugin_restarts", "Starts of a plugin after its first", restarts);
    registry.register("palisade_plugin_failures", "Failures in a row, of the instance with the most", failures);
    registry
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct RequestLabels {
    listener: Name,
    route: Name,
    status: u16,
    reason: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    listener: Name,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    upstream: Name,
    endpoint: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct CallLabels {
    plugin: Name,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct BundleLabels {
    plugin: Name,
    bundle: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlawLabels {
    plugin: Name,
    bundle: Name,
    flaw: &'static str,
}

/// A label's value that others have chosen. The library writes values as they are, so quotes and line ends are
/// escaped here, else one name could make the whole text unreadable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name(Arc<str>);

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let mut rest = &*self.0;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            let (plain, special) = rest.split_at(at);
            encoder.write_str(plain)?;
            encoder.write_str(match special.as_bytes()[0] {
                b'\n' => "\\n",
                b'"' => "\\\"",
                _ => "\\\\",
            })?;
            rest = &special[1..];
        }
        encoder.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::HashSet;
    use std::path::Path;

    use http::StatusCode;

    use super::*;

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|written| written == line), "no `{line}` in:\n{text}");
    }

    #[test]
    fn what_happened_is_counted() {
        let metrics = Metrics::default();
        metrics.request(&"web".into(), Some(&"api".into()), StatusCode::OK, None, Duration::from_millis(3));
        metrics.request(&"web".into(), None, StatusCode::NOT_FOUND, Some("no_route"), Duration::from_micros(20));
        metrics.filter(&"auth".into(), "deny", Duration::from_micros(70));
        metrics.filter(&"auth".into(), "plugin_timeout", Duration::from_millis(200));
        metrics.unjudged("auth");
        metrics.handshake_failed("secure");
        metrics.changed("reload", Outcome::Undone);
        let open = metrics.connection("web");
        drop(metrics.connection("web"));
        let text = metrics.render(&[]).unwrap();
        for line in [
            r#"palisade_requests_total{listener="web",route="api",status="200",reason=""} 1"#,
            r#"palisade_requests_total{listener="web",route="",status="404",reason="no_route"} 1"#,
            r#"palisade_request_seconds_bucket{le="0.0005",listener="web"} 1"#,
            r#"palisade_request_seconds_count{listener="web"} 2"#,
            r#"palisade_filter_calls_total{plugin="auth",outcome="deny"} 1"#,
            r#"palisade_filter_calls_total{plugin="auth",outcome="plugin_timeout"} 1"#,
            r#"palisade_filter_seconds_bucket{le="0.0001",plugin="auth"} 1"#,
            r#"palisade_filter_seconds_bucket{le="2.5",plugin="auth"} 2"#,
            r#"palisade_filter_unjudged_total{plugin="auth"} 1"#,
            r#"palisade_tls_handshake_failures_total{listener="secure"} 1"#,
            r#"palisade_changes_total{change="reload",outcome="undone"} 1"#,
            r#"palisade_connections{listener="web"} 1"#,
            r#"palisade_connections_accepted_total{listener="web"} 2"#,
            concat!(r#"palisade_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
        ] {
            has(&text, line);
        }
        drop(open);
        has(&metrics.render(&[]).unwrap(), r#"palisade_connections{listener="web"} 0"#);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_configured_is_there_before_anything_happens() {
        let file = "
            listeners: [{name: web, address: 127.0.0.1:1}, {name: secure, address: 127.0.0.1:2, tls: certs}]
            plugins: {certs: {command: [sh]}}";
        let config = crate::config::parse(Path::new("/palisade.yaml"), file).unwrap();
        let metrics = Metrics::default();
        metrics.expect(&config);
        let text = metrics.render(&[]).unwrap();
        has(&text, r#"palisade_connections{listener="web"} 0"#);
        has(&text, r#"palisade_tls_handshake_failures_total{listener="secure"} 0"#);
        has(&text, r#"palisade_filter_unjudged_total{plugin="certs"} 0"#);
        assert!(!text.contains(r#"handshake_failures_total{listener="web"}"#));
    }

    /// A gauge `a` and a counter `a`, whose sample is `a_total`, would be two families of one name.
    #[test]
    fn every_family_has_a_name_of_its_own() {
        let text = Metrics::default().render(&[]).unwrap();
        let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let names: HashSet<_> = families.iter().filter_map(|family| family.split(' ').next()).collect();
        assert_eq!(names.len(), families.len(), "{families:?}");
    }

    #[test]
    fn the_page_for_operators_has_every_metric() {
        let page = include_str!("../../../docs/operations.md");
        let text = Metrics::default().render(&[]).unwrap();
        for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = family.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            assert!(page.contains(&format!("| `{name}{suffix}` | {kind} |")), "{name}{suffix}, a {kind}");
        }
    }

    #[test]
    fn names_cant_break_the_text() {
        let metrics = Metrics::default();
        metrics.handshake_failed("a\"} 7\nb\\");
        has(&metrics.render(&[]).unwrap(), r#"palisade_tls_handshake_failures_total{listener="a\"} 7\nb\\"} 1"#);
    }

    #[test]
    fn certificates_come_and_go_within_a_bound() {
        let metrics = Metrics::default();
        for i in 0..MOST_BUNDLES + 5 {
            metrics.certificate("certs", &format!("site-{i}"), 7, &[]);
        }
        let flaw = Flaw { kind: "incomplete_chain", text: String::new() };
        metrics.certificate("certs", "site-0", 8, &[flaw]);
        metrics.certificate_gone("certs", "site-1");
        let text = metrics.render(&[]).unwrap();
        has(&text, r#"palisade_certificate_expiry_seconds{plugin="certs",bundle="site-0"} 8"#);
        has(&text, r#"palisade_certificate_flaws{plugin="certs",bundle="site-0",flaw="incomplete_chain"} 1"#);
        assert!(!text.contains(r#"bundle="site-1"}"#));
        assert_eq!(text.matches("palisade_certificate_expiry_seconds{").count(), MOST_BUNDLES - 1);
    }
}
