//! A configuration written out again, with every default filled in and secrets left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use palisade_supervisor::RestartMode;
use palisade_supervisor::{self as supervisor, Checksums, Network, OnMissing};
use serde_yaml::{Mapping, Value};

use super::convert::{pattern, shown_duration, shown_size};
use super::{
    Address, Ambiguous, Balance, Checks, Config, Contract, DoubleSlashes, Filter, HeaderMatch, HeaderRule, HostPattern,
    Limits, Listener, ListenerTls, OnFailure, Overload, PathPattern, Plugin, Profile, Requests, Route, Sandbox,
    Underscores, Upstream, UpstreamProtocol,
};

/// What stands for a secret.
const REDACTED: &str = "<redacted>";

impl Config {
    /// The configuration as a file that could be read again, with all defaults filled in. Values in plugins' `config`
    /// and `env` under keys that look like a secret's are `<redacted>`.
    #[must_use]
    pub fn effective_yaml(&self) -> String {
        let inline =
            |name: &str, upstream: &Upstream| matches!(&upstream.endpoints[..], [one] if one.to_string() == name);
        let upstreams = self.upstreams.iter().filter(|(name, upstream)| !inline(name, upstream));
        let root = mapping([
            ("runtime_dir", path(&self.runtime_dir)),
            ("workers", self.workers.into()),
            ("drain_timeout", time(self.drain_timeout)),
            ("trusted_proxies", list(&self.trusted_proxies, |cidr| format!("{}/{}", cidr.address, cidr.prefix).into())),
            ("overload", overload(&self.overload)),
            ("listeners", list(&self.listeners, listener)),
            ("routes", list(&self.routes, route)),
            (
                "upstreams",
                upstreams.map(|(name, it)| (Value::from(name.as_str()), upstream(it))).collect::<Mapping>().into(),
            ),
            (
                "plugins",
                self.plugins
                    .iter()
                    .map(|(name, it)| (Value::from(name.as_str()), plugin(it)))
                    .collect::<Mapping>()
                    .into(),
            ),
        ]);
        written(&root)
    }
}

/// A document, so that it reads as the same again.
fn written(document: &Value) -> String {
    // Only keys that are no scalars can't be written, and there are none.
    let yaml = serde_yaml::to_string(document).unwrap_or_default();
    // Breaks of lines for some readers and for others not, and the library writes them as they are. JSON is YAML, and has
    // escapes for them.
    let breaks = [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    if !yaml.contains(breaks.map(|(character, _)| character)) {
        return yaml;
    }
    let json = serde_json::to_string_pretty(document).unwrap_or(yaml);
    breaks.into_iter().fold(json, |json, (character, escaped)| json.replace(character, escaped))
}

/// Whether a key's value should not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "passwd", "passphrase", "secret", "token", "credential", "key"].iter().any(|word| key.contains(word))
}

fn checks(it: &Checks) -> Value {
    mapping([
        ("path", it.path.as_str().into()),
        ("interval", time(it.interval)),
        ("timeout", time(it.timeout)),
        ("failures", it.failures.into()),
        ("successes", it.successes.into()),
    ])
}

fn overload(it: &Overload) -> Value {
    mapping([
        ("max_connections", it.max_connections.map_or(Value::Null, Value::from)),
        ("memory", it.memory.map_or(Value::Null, |memory| shown_size(memory).into())),
        ("close_at", it.close_at.into()),
        ("shed_at", it.shed_at.into()),
    ])
}

fn listener(it: &Listener) -> Value {
    mapping([
        ("name", it.name.as_str().into()),
        ("address", address(&it.address)),
        ("tls", it.tls.as_ref().map_or(Value::Null, tls)),
        ("filters", list(&it.filters, filter)),
        ("limits", limits(&it.limits)),
        ("requests", requests(&it.requests)),
    ])
}

fn requests(it: &Requests) -> Value {
    let ambiguous = |it| match it {
        Ambiguous::Refuse => "refuse",
        Ambiguous::Keep => "keep",
    };
    let underscores = match it.underscores {
        Underscores::Refuse => "refuse",
        Underscores::Drop => "drop",
        Underscores::Keep => "keep",
    };
    let double_slashes = match it.double_slashes {
        DoubleSlashes::Merge => "merge",
        DoubleSlashes::Refuse => "refuse",
        DoubleSlashes::Keep => "keep",
    };
    mapping([
        ("underscores", underscores.into()),
        ("encoded_slashes", ambiguous(it.encoded_slashes).into()),
        ("parameters", ambiguous(it.parameters).into()),
        ("double_slashes", double_slashes.into()),
        ("trailers", list(&it.trailers, |name| name.as_str().into())),
    ])
}

fn address(it: &Address) -> Value {
    match it {
        Address::Tcp(address) => address.to_string().into(),
        Address::Unix(path) => format!("unix:{}", path.display()).into(),
    }
}

fn tls(it: &ListenerTls) -> Value {
    let names = if it.names.is_empty() { Value::Null } else { strings(&it.names) };
    mapping([
        ("plugin", it.plugin.as_str().into()),
        ("names", names),
        ("default", it.default.as_deref().map_or(Value::Null, Value::from)),
        ("only_tls13", it.only_tls13.into()),
    ])
}

fn limits(it: &Limits) -> Value {
    mapping([
        ("tls_handshake_timeout", time(it.tls_handshake_timeout)),
        ("first_byte_timeout", time(it.first_byte_timeout)),
        ("header_timeout", time(it.header_timeout)),
        ("request_timeout", time(it.request_timeout)),
        ("idle_timeout", time(it.idle_timeout)),
        ("body_idle_timeout", time(it.body_idle_timeout)),
        ("max_header_bytes", shown_size(it.max_header_bytes).into()),
        ("max_target_bytes", shown_size(it.max_target_bytes).into()),
        ("max_headers", it.max_headers.into()),
        ("max_connections", it.max_connections.into()),
        ("max_streams", it.max_streams.into()),
        ("max_requests", it.max_requests.into()),
        ("max_glitches", it.max_glitches.into()),
        ("max_header_memory", shown_size(it.max_header_memory).into()),
        ("max_body", shown_size(usize::try_from(it.max_body).unwrap_or(usize::MAX)).into()),
    ])
}

fn filter(it: &Filter) -> Value {
    match it {
        Filter::Plugin(it) => mapping([
            ("plugin", it.plugin.as_str().into()),
            ("timeout", time(it.timeout)),
            ("on_failure", on_failure(it.on_failure)),
            ("max_body", shown_size(it.max_body).into()),
        ]),
        Filter::Header(it) => mapping([(
            "header",
            mapping([
                ("name", it.name.as_str().into()),
                ("values", strings(&it.values)),
                ("status", it.status.as_u16().into()),
            ]),
        )]),
    }
}

fn on_failure(it: OnFailure) -> Value {
    match it {
        OnFailure::Deny => "deny",
        OnFailure::Allow => "allow",
    }
    .into()
}

fn route(it: &Route) -> Value {
    let any = if it.hosts.is_empty() { Value::Null } else { list(&it.hosts, host) };
    let methods = list(&it.methods, |method| method.as_str().into());
    mapping([
        ("name", it.name.as_str().into()),
        ("hosts", any),
        ("path", route_path(&it.path)),
        ("methods", if it.methods.is_empty() { Value::Null } else { methods }),
        ("headers", it.headers.iter().map(header).collect::<Mapping>().into()),
        ("filters", list(&it.filters, filter)),
        ("upstream", it.upstream.as_str().into()),
        ("timeout", it.timeout.map_or("none".into(), time)),
        ("retries", it.retries.into()),
        ("upgrades", strings(&it.upgrades)),
        ("metadata", table(&it.metadata)),
    ])
}

fn host(it: &HostPattern) -> Value {
    match it {
        HostPattern::Exact(host) => host.as_str().into(),
        HostPattern::Suffix(suffix) => format!("*{suffix}").into(),
        HostPattern::Any => "*".into(),
    }
}

fn route_path(it: &PathPattern) -> Value {
    match it {
        PathPattern::Exact(path) => mapping([("exact", path.as_str().into())]),
        PathPattern::Prefix(path) => mapping([("prefix", path.as_str().into())]),
        PathPattern::Regex(regex) => mapping([("regex", pattern(regex).into())]),
    }
}

fn header(it: &HeaderMatch) -> (Value, Value) {
    let rule = match &it.rule {
        HeaderRule::Present => ("present", true.into()),
        HeaderRule::Absent => ("present", false.into()),
        HeaderRule::Exact(value) => ("exact", value.as_str().into()),
        HeaderRule::Prefix(value) => ("prefix", value.as_str().into()),
        HeaderRule::Regex(regex) => ("regex", pattern(regex).into()),
    };
    (it.name.as_str().into(), mapping([rule]))
}

fn upstream(it: &Upstream) -> Value {
    let balance = match it.balance {
        Balance::RoundRobin => "round_robin",
        Balance::Random => "random",
        Balance::LeastRequest => "least_request",
    };
    let protocol = match it.protocol {
        UpstreamProtocol::Http1 => "http1",
        UpstreamProtocol::Http2 => "http2",
    };
    mapping([
        ("endpoints", list(&it.endpoints, |endpoint| endpoint.to_string().into())),
        ("balance", balance.into()),
        ("protocol", protocol.into()),
        ("connect_timeout", time(it.connect_timeout)),
        ("idle_timeout", time(it.idle_timeout)),
        ("max_idle", it.max_idle.into()),
        ("outliers", mapping([("failures", it.outliers.failures.into()), ("eject_for", time(it.outliers.eject_for))])),
        ("checks", it.checks.as_ref().map_or(Value::Null, checks)),
        ("panic_below", it.panic_below.into()),
        ("max_header_bytes", shown_size(it.max_header_bytes).into()),
        ("max_headers", it.max_headers.into()),
    ])
}

fn plugin(it: &Plugin) -> Value {
    let contract = match it.contract {
        Contract::Palisade => "palisade",
        Contract::Mosn => "mosn",
    };
    let health = mapping([
        ("interval", time(it.health.interval)),
        ("timeout", time(it.health.timeout)),
        ("failures", it.health.failures.into()),
        ("call_misses", it.health.call_misses.into()),
        ("stopped_timeout", if it.found.is_some() { Value::Null } else { time(it.health.stopped_timeout) }),
    ]);
    let policy = match it.restart.policy {
        RestartMode::Always => "always",
        RestartMode::OnFailure => "on_failure",
        RestartMode::Never => "never",
    };
    let window = it.restart.max_restarts.map_or(Value::Null, |_| time(it.restart.window));
    let restart = mapping([
        ("policy", policy.into()),
        ("initial", time(it.restart.initial)),
        ("max", time(it.restart.max)),
        ("multiplier", it.restart.multiplier.into()),
        ("jitter", format!("{}%", it.restart.jitter).into()),
        ("reset_after", time(it.restart.reset_after)),
        ("crash_loop_after", it.restart.crash_loop_after.into()),
        ("max_restarts", it.restart.max_restarts.map_or(Value::Null, Value::from)),
        ("window", window),
        ("stagger", time(it.restart.stagger)),
    ]);
    let quarantine = mapping([("failures", it.quarantine.failures.into()), ("time", time(it.quarantine.time))]);
    let started = |value: Value| if it.found.is_some() { Value::Null } else { value };
    let found = |show: fn(&supervisor::Found) -> Value| it.found.as_ref().map_or(Value::Null, show);
    mapping([
        ("command", started(strings(&it.command))),
        ("address", found(|it| it.endpoint.to_string().into())),
        ("peer_user", found(|it| it.uid.map_or(Value::Null, Value::from))),
        ("cwd", started(path(&it.cwd))),
        ("env", started(redacted(&table(&it.env)))),
        ("env_pass", started(strings(&it.env_pass))),
        ("checksum", started(checksums(&it.checksums))),
        ("sandbox", started(sandbox(&it.sandbox))),
        ("socket_group", it.socket_group.map_or(Value::Null, Value::from)),
        ("contract", contract.into()),
        ("owns", list(&it.owns, |name| name.as_str().into())),
        ("instances", started(it.instances.into())),
        ("max_calls", it.max_calls.into()),
        ("max_queue", it.max_queue.into()),
        ("quarantine", quarantine),
        ("hedge_after", it.hedge_after.map_or(Value::Null, time)),
        ("config", redacted(&Value::Mapping(it.config.clone()))),
        ("timeout", time(it.timeout)),
        ("on_failure", on_failure(it.on_failure)),
        ("required", it.required.into()),
        ("handshake_timeout", started(time(it.handshake_timeout))),
        ("ready_timeout", time(it.ready_timeout)),
        ("allow_remote_tcp", it.allow_remote_tcp.into()),
        ("auto_mtls", started(it.auto_mtls.into())),
        ("health", health),
        ("restart", restart),
        ("drain_timeout", time(it.drain_timeout)),
        ("stop_timeout", started(time(it.stop_timeout))),
        ("probation", time(it.probation)),
        ("exit_reports", it.exit_reports.into()),
    ])
}

fn sandbox(it: &Sandbox) -> Value {
    let Sandbox { profile, policy } = it;
    let profile = match profile {
        Profile::None => "none",
        Profile::Default => "default",
        Profile::Hardened => "hardened",
    };
    let on_missing = match policy.on_missing {
        OnMissing::Fail => "fail",
        OnMissing::Warn => "warn",
    };
    let network = match policy.network {
        Network::Host => "host",
        Network::None => "none",
    };
    let paths = |paths: &[std::ffi::OsString]| list(paths, |path| path.to_string_lossy().into_owned().into());
    let ports = |ports: &BTreeSet<u16>| ports.iter().map(|port| Value::from(*port)).collect::<Vec<_>>().into();
    let files = policy.files.as_ref();
    let tcp = policy.tcp.as_ref();
    let most = &policy.limits;
    let bytes = |limit: Option<u64>| limit.map_or(Value::Null, |limit| shown_size(limit as usize).into());
    let shown = mapping([
        ("memory", bytes(most.memory)),
        ("open_files", most.open_files.map_or(Value::Null, Value::from)),
        ("processes", most.processes.map_or(Value::Null, Value::from)),
        ("file_size", bytes(most.file_size)),
        ("cpu_time", most.cpu_time.map_or(Value::Null, time)),
    ]);
    let cgroup = |most: supervisor::Cgroup| {
        mapping([
            ("memory", bytes(most.memory)),
            ("cpu", most.cpu.map_or(Value::Null, |percent| format!("{percent}%").into())),
            ("pids", most.pids.map_or(Value::Null, Value::from)),
        ])
    };
    let capabilities = policy.capabilities.as_ref().map(|kept| kept.iter().map(|name| Value::from(name.as_str())));
    mapping([
        ("profile", profile.into()),
        ("on_missing", on_missing.into()),
        ("user", policy.user.map_or(Value::Null, |user| user.uid.into())),
        ("group", policy.user.map_or(Value::Null, |user| user.gid.into())),
        ("no_new_privs", policy.no_new_privs.into()),
        ("capabilities", capabilities.map_or(Value::Null, |kept| kept.collect::<Vec<_>>().into())),
        ("read", files.map_or(Value::Null, |files| paths(&files.read))),
        ("write", files.map_or(Value::Null, |files| paths(&files.write))),
        ("execute", files.map_or(Value::Null, |files| paths(&files.execute))),
        ("isolate", policy.scoped.into()),
        ("network", network.into()),
        ("connect", tcp.map_or(Value::Null, |tcp| ports(&tcp.connect))),
        ("bind", tcp.map_or(Value::Null, |tcp| ports(&tcp.bind))),
        ("private_tmp", policy.private_tmp.into()),
        ("deny", policy.deny.iter().map(|class| Value::from(class.as_str())).collect::<Vec<_>>().into()),
        ("limits", if *most == supervisor::Limits::default() { Value::Null } else { shown }),
        ("cgroup", policy.cgroup.map_or(Value::Null, cgroup)),
    ])
}

fn checksums(it: &Checksums) -> Value {
    if *it == Checksums::default() {
        return Value::Null;
    }
    let files = it.files.iter().map(|(file, sum)| (file.to_string_lossy().into(), sum.to_string().into()));
    let files: Mapping = files.collect();
    mapping([
        ("program", it.program.map_or(Value::Null, |sum| sum.to_string().into())),
        ("files", if files.is_empty() { Value::Null } else { files.into() }),
    ])
}

fn redacted(value: &Value) -> Value {
    match value {
        Value::Mapping(mapping) => {
            let entry = |(key, value): (&Value, &Value)| {
                let secret = key.as_str().is_some_and(is_secret);
                (key.clone(), if secret { REDACTED.into() } else { redacted(value) })
            };
            mapping.iter().map(entry).collect::<Mapping>().into()
        }
        Value::Sequence(items) => Value::Sequence(items.iter().map(redacted).collect()),
        scalar => scalar.clone(),
    }
}

/// Without the fields that are null: there, not being written is the default.
fn mapping<const N: usize>(fields: [(&str, Value); N]) -> Value {
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.into(), value))
        .collect::<Mapping>()
        .into()
}

fn list<T>(items: &[T], show: impl Fn(&T) -> Value) -> Value {
    Value::Sequence(items.iter().map(show).collect())
}

fn strings(items: &[String]) -> Value {
    list(items, |item| item.as_str().into())
}

fn table(entries: &BTreeMap<String, String>) -> Value {
    entries.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect::<Mapping>().into()
}

fn time(duration: Duration) -> Value {
    shown_duration(duration).into()
}

fn path(path: &Path) -> Value {
    path.display().to_string().into()
}
