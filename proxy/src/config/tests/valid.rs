//! Configurations that are taken, and what becomes of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_supervisor::{
    Cgroup, Endpoint as PeerEndpoint, Files, Found, Network, OnMissing, RestartMode, Sandbox, SyscallClass, Tcp, User,
};
use proptest::prelude::*;
use serde_yaml::Value;

use super::{LISTENER, Place};
use crate::config::{
    Address, Balance, Config, Contract, Endpoint, Filter, HeaderRule, HostPattern, OnFailure, PathPattern, Restart,
    UpstreamProtocol, to_json,
};

const SMALLEST: &str = "\
listeners:
  - address: 127.0.0.1:8080
  - address: 127.0.0.1:8443
    tls: certs                    # certificates come from this plugin
routes:
  - path: /
    filters: [auth]
    upstream: http://127.0.0.1:9000
plugins:
  auth:
    command: [python3, auth.py]
    config: { allow: [admin] }
    timeout: 250ms
    on_failure: deny              # deny: 503 with a reason (default) | allow
  certs:
    command: [java, -jar, certs.jar]
    config: { dir: /etc/palisade/tls }
";

/// Every field there is.
pub(super) const FULL: &str = r#"
runtime_dir: run
workers: 3
drain_timeout: 45s
trusted_proxies: [10.0.0.0/8, "::1"]
listeners:
  - name: web
    address: "[::1]:8080"
    filters:
      - auth
      - {plugin: audit, timeout: 1s, on_failure: allow, max_body: 64KiB}
      - {header: {name: User, value: admin}}
      - {header: {name: X-Tier, values: [gold, 1], status: 401}}
    limits:
      tls_handshake_timeout: 1s
      header_timeout: 2s
      idle_timeout: 3s
      body_idle_timeout: 4s
      max_header_bytes: 8192
      max_headers: 50
      max_connections: 500
      max_streams: 10
  - address: unix:/run/web.sock
    tls: {plugin: certs, names: [site, spare], default: site, only_tls13: true}
routes:
  - name: api
    hosts: [API.example, "*.api.example", "*", "[::1]"]
    path: {regex: "/v[0-9]+/.*"}
    methods: [GET, POST]
    headers:
      x-version: 2
      X-Debug: {present: true}
      x-old: {present: false}
      x-a: {exact: a}
      x-b: {prefix: b}
      x-c: {regex: "c|d"}
    filters: [audit]
    upstream: app
    timeout: none
    retries: 0
    upgrades: [WebSocket, tcp]
    metadata: {team: a, level: 3, "on": yes, version: 1.10, mode: 0600}
  - {path: {exact: /x}, upstream: unix:/run/x.sock}
  - {path: {prefix: /y/}, host: "*.y.example", upstream: "http://[::1]:9000/"}
  - {upstream: LOCALHOST:9000, timeout: 1m30s}
upstreams:
  app:
    endpoints: [http://127.0.0.1:9000, "127.0.0.1:9001", app.internal:9002, unix:/run/app.sock]
    balance: least_request
    protocol: http2
    connect_timeout: 2s
    idle_timeout: 30s
    max_idle: 0
  spare: {endpoints: ["127.0.0.1:9003"], balance: random}
plugins:
  auth:
    command: [./bin/python3, auth.py]
    cwd: .
    env: {A: b, N: 1, EMPTY: ""}
    env_pass: [LANG, LD_LIBRARY_PATH]
    contract: mosn
    instances: 2
    hedge_after: 30ms
    config: {allow: [admin, 7, 1.5, true, ~], "80": {deep: "no", mode: 0o600, text: "0600"}}
    timeout: 300ms
    on_failure: allow
    required: false
    handshake_timeout: 20s
    ready_timeout: 11s
    allow_remote_tcp: true
    auto_mtls: true
    health: {interval: 6s, timeout: 2s, failures: 4, call_misses: 0, stopped_timeout: 0s}
    restart:
      {policy: on_failure, initial: 200ms, max: 31s, multiplier: 3, jitter: 5%, reset_after: 61s, crash_loop_after: 6,
       max_restarts: 7, window: 62s, stagger: 3s}
    drain_timeout: 6s
    stop_timeout: 0s
    exit_reports: 11
  audit: &audit {command: [python3, audit.py], cwd: bin/.., config: {}}
  certs: {command: [java, -Xmx64m, -jar, certs.jar]}
  again: *audit
"#;

fn parsed(place: &Place, text: &str) -> Config {
    place.parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_smallest_configuration_has_the_defaults() {
    let place = Place::new();
    place.write("audit.py", "", 0o644);
    let config = parsed(&place, SMALLEST);
    assert_eq!(config.file, place.file());
    assert_eq!(config.runtime_dir, Path::new("/run/palisade"));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.listeners[0].name, "127.0.0.1:8080");
    assert_eq!(config.listeners[0].address, Address::Tcp("127.0.0.1:8080".parse().unwrap()));
    assert_eq!(config.listeners[0].limits.max_header_bytes, 32 * 1024);
    assert!(config.listeners[0].tls.is_none());
    let tls = config.listeners[1].tls.as_ref().unwrap();
    assert_eq!((tls.plugin.as_str(), tls.only_tls13, tls.names.len()), ("certs", false, 0));

    let [route] = &config.routes[..] else { panic!("{:?}", config.routes) };
    assert_eq!((route.name.as_str(), route.retries, route.timeout), ("route-1", 1, Some(Duration::from_secs(60))));
    assert!(route.upgrades.is_empty());
    assert!(matches!(&route.path, PathPattern::Prefix(path) if path == "/"));
    let [Filter::Plugin(filter)] = &route.filters[..] else { panic!("{:?}", route.filters) };
    assert_eq!((filter.plugin.as_str(), filter.timeout), ("auth", Duration::from_millis(250)));
    assert_eq!((filter.on_failure, filter.max_body), (OnFailure::Deny, 1 << 20));

    let upstream = &config.upstreams[&route.upstream];
    assert_eq!(upstream.endpoints, [Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 9000 }]);
    assert_eq!((upstream.balance, upstream.protocol), (Balance::RoundRobin, UpstreamProtocol::Http1));
    assert_eq!((upstream.connect_timeout, upstream.max_idle), (Duration::from_secs(1), 1024));

    let auth = &config.plugins["auth"];
    assert_eq!(auth.command, ["python3", "auth.py"]);
    assert_eq!(auth.cwd, place.dir.path());
    assert_eq!(to_json(&auth.config), serde_json::json!({"allow": ["admin"]}));
    assert_eq!((auth.contract, auth.required), (Contract::Palisade, true));
    assert_eq!((auth.allow_remote_tcp, auth.auto_mtls), (false, false));
    assert_eq!((auth.health.failures, auth.restart.crash_loop_after), (3, 5));
    assert_eq!(config.plugins["certs"].timeout, Duration::from_millis(200));
}

#[test]
fn every_field_arrives() {
    let place = Place::new();
    let config = parsed(&place, FULL);
    let dir = place.dir.path();
    assert_eq!(config.runtime_dir, dir.join("run"));
    assert_eq!(config.trusted_proxies.len(), 2);
    assert_eq!((config.trusted_proxies[0].prefix, config.trusted_proxies[1].prefix), (8, 128));

    let web = &config.listeners[0];
    assert_eq!(web.address, Address::Tcp(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 8080))));
    let [Filter::Plugin(auth), Filter::Plugin(audit), Filter::Header(user), Filter::Header(tier)] = &web.filters[..]
    else {
        panic!("{:?}", web.filters)
    };
    assert_eq!((auth.timeout, auth.on_failure), (Duration::from_millis(300), OnFailure::Allow));
    assert_eq!((audit.timeout, audit.on_failure, audit.max_body), (Duration::from_secs(1), OnFailure::Allow, 64 << 10));
    assert_eq!(
        (user.name.as_str(), user.values.as_slice(), user.status.as_u16()),
        ("user", &["admin".to_owned()][..], 403)
    );
    assert_eq!((tier.values.as_slice(), tier.status.as_u16()), (&["gold".to_owned(), "1".to_owned()][..], 401));
    assert_eq!((web.limits.max_header_bytes, web.limits.max_streams), (8192, 10));
    assert_eq!(config.listeners[1].name, "unix:/run/web.sock");

    let api = &config.routes[0];
    let exact = |host: &str| HostPattern::Exact(host.to_owned());
    let suffix = HostPattern::Suffix(".api.example".to_owned());
    assert_eq!(api.hosts, [exact("api.example"), suffix, HostPattern::Any, exact("[::1]")]);
    let PathPattern::Regex(regex) = &api.path else { panic!("{:?}", api.path) };
    assert!(regex.is_match("/v1/x") && !regex.is_match("/a/v1/x") && !regex.is_match("/v1/x\n"));
    assert!(matches!(&api.headers[0].rule, HeaderRule::Exact(value) if value == "2"));
    assert!(matches!(api.headers[1].rule, HeaderRule::Present) && matches!(api.headers[2].rule, HeaderRule::Absent));
    let HeaderRule::Regex(either) = &api.headers[5].rule else { panic!("{:?}", api.headers) };
    assert!(either.is_match("d") && !either.is_match("cd"));
    assert_eq!((api.timeout, api.retries, api.upgrades.join(" ")), (None, 0, "websocket tcp".to_owned()));
    let metadata: Vec<_> = api.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(metadata, ["level=3", "mode=0600", "on=yes", "team=a", "version=1.10"]);

    assert_eq!(config.routes[1].upstream, "unix:/run/x.sock");
    assert!(matches!(&config.routes[2].path, PathPattern::Prefix(path) if path == "/y"));
    assert_eq!(config.routes[2].upstream, "http://[::1]:9000");
    assert_eq!(config.upstreams["http://[::1]:9000"].endpoints, [Endpoint::Tcp { host: "::1".to_owned(), port: 9000 }]);
    assert_eq!(config.routes[3].name, "route-4");
    assert_eq!(config.upstreams["http://localhost:9000"].endpoints[0].to_string(), "http://localhost:9000");
    assert_eq!(config.upstreams["app"].endpoints.len(), 4);
    assert_eq!(config.upstreams["app"].endpoints[3], Endpoint::Unix("/run/app.sock".into()));

    let auth = &config.plugins["auth"];
    assert_eq!((auth.env["N"].as_str(), auth.env["EMPTY"].as_str()), ("1", ""));
    let json = serde_json::json!({
        "allow": ["admin", 7, 1.5, true, null],
        "80": {"deep": "no", "mode": 0o600, "text": "0600"},
    });
    assert_eq!(to_json(&auth.config), json);
    assert_eq!((auth.contract, auth.stop_timeout), (Contract::Mosn, Duration::ZERO));
    assert_eq!((auth.health.call_misses, auth.health.stopped_timeout), (0, Duration::ZERO));
    assert_eq!((auth.drain_timeout, auth.exit_reports), (Duration::from_secs(6), 11));
    assert_eq!((config.workers, auth.instances, auth.hedge_after), (3, 2, Some(Duration::from_millis(30))));
    assert_eq!(auth.restart.stagger, Duration::from_secs(3));
    let Restart { policy, multiplier, jitter, max_restarts, window, .. } = auth.restart;
    assert_eq!((policy, multiplier, jitter), (RestartMode::OnFailure, 3, 5));
    assert_eq!((max_restarts, window), (Some(7), Duration::from_secs(62)));
    assert_eq!(config.plugins["audit"].cwd, PathBuf::from(format!("{}/bin/..", dir.display())));
    assert_eq!(config.plugins["again"].command, ["python3", "audit.py"]);
}

#[test]
fn words_that_older_yaml_takes_for_booleans_are_strings() {
    let text = format!(
        "{LISTENER}routes:\n  - {{name: no, path: /, host: on, upstream: yes, headers: {{x: off, y: 0600, z: 1e3}}}}\n\
         upstreams: {{yes: {{endpoints: [\"127.0.0.1:1\"]}}}}\n"
    );
    let config = parsed(&Place::new(), &text);
    let route = &config.routes[0];
    assert_eq!((route.name.as_str(), route.upstream.as_str()), ("no", "yes"));
    assert_eq!(route.hosts, [HostPattern::Exact("on".to_owned())]);
    let values: Vec<_> = route.headers.iter().map(|header| format!("{:?}", header.rule)).collect();
    assert_eq!(values, ["Exact(\"off\")", "Exact(\"0600\")", "Exact(\"1e3\")"]);
}

#[test]
fn layout_makes_no_difference() {
    let place = Place::new();
    let expected = parsed(&place, SMALLEST).effective_yaml();
    for text in [
        SMALLEST.replace('\n', "\r\n"),
        format!("\u{feff}{SMALLEST}"),
        format!("# comment\n---\n{SMALLEST}..."),
        SMALLEST.trim_end().to_owned(),
    ] {
        assert_eq!(parsed(&place, &text).effective_yaml(), expected, "{text}");
    }
}

/// Reads what was written out and expects the same again.
fn assert_round_trip(place: &Place, config: &Config) {
    let yaml = config.effective_yaml();
    let again = place.parse(&yaml).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
    let again = Config { hash: config.hash.clone(), ..again };
    assert_eq!(again.effective_yaml(), yaml);
    assert_eq!(format!("{again:?}"), format!("{config:?}"), "{yaml}");
}

#[test]
fn the_effective_configuration_reads_as_the_same() {
    let place = Place::new();
    for text in [SMALLEST, FULL, LISTENER] {
        assert_round_trip(&place, &parsed(&place, text));
    }
}

#[test]
fn a_sandbox_is_its_profile_with_what_is_written_over_it() {
    let place = Place::new();
    let sandbox = |text: &str| {
        let text = format!("{LISTENER}plugins: {{a: {{command: [python3, auth.py]{text}}}}}");
        let config = place.parse(&text).unwrap();
        let again = place.parse(&config.effective_yaml()).unwrap();
        assert_eq!(again.plugins["a"].sandbox, config.plugins["a"].sandbox, "{text}");
        config.plugins["a"].sandbox.policy.clone()
    };
    assert_eq!(sandbox(""), Sandbox::default());
    assert_eq!(sandbox(", sandbox: none"), Sandbox::none());
    let mut hardened = Sandbox::hardened();
    hardened.user = nix::unistd::geteuid().is_root().then(|| User::of_its_own("a"));
    assert_eq!(sandbox(", sandbox: hardened"), hardened);
    hardened.user = Some(User { uid: 7, gid: 8 });
    hardened.files = Some(Files {
        read: vec![place.file().with_file_name("auth.py").into()],
        write: vec![place.file().parent().unwrap().into()],
        execute: vec!["/bin".into()],
    });
    hardened.network = Network::Host;
    hardened.tcp = Some(Tcp { connect: [443].into(), bind: Default::default() });
    hardened.deny = [SyscallClass::Debug, SyscallClass::RawSocket].into();
    hardened.capabilities = Some(["CAP_KILL".to_owned(), "CAP_NET_RAW".to_owned()].into());
    hardened.on_missing = OnMissing::Warn;
    hardened.limits.memory = Some(64 << 20);
    hardened.cgroup = Some(Cgroup { memory: Some(128 << 20), cpu: Some(150), pids: Some(64) });
    hardened.limits.cpu_time = Some(Duration::from_secs(90));
    (hardened.scoped, hardened.private_tmp) = (false, false);
    let text = "{profile: hardened, user: 7, group: '8', read: [auth.py], write: [.], execute: [/bin], network: host,
        connect: [443], deny: [debug, raw_socket], capabilities: [net_raw, CAP_KILL], on_missing: warn, isolate: false,
        private_tmp: false, limits: {memory: 64MiB, cpu_time: 90s}, cgroup: {memory: 128MiB, cpu: 150%, pids: 64}}";
    assert_eq!(sandbox(&format!(", sandbox: {text}")), hardened);
    let only_a_group = Sandbox { cgroup: Some(Cgroup::default()), ..Sandbox::default() };
    assert_eq!(sandbox(", sandbox: {cgroup: {}}"), only_a_group);
}

#[test]
fn a_plugin_that_runs_already_is_known_by_its_address() {
    let place = Place::new();
    let found = |text: &str| {
        let config = place.parse(&format!("{LISTENER}plugins: {{a: {{{text}}}}}")).unwrap();
        assert_round_trip(&place, &config);
        config.plugins["a"].found.clone().unwrap()
    };
    let unix = PeerEndpoint::Unix("/run/auth.sock".into());
    assert_eq!(found("address: 'unix:/run/auth.sock'"), Found { endpoint: unix.clone(), uid: None });
    assert_eq!(found("address: 'unix:/run/auth.sock', peer_user: 7"), Found { endpoint: unix.clone(), uid: Some(7) });
    assert_eq!(found("address: 'unix:/run/auth.sock', peer_user: root"), Found { endpoint: unix, uid: Some(0) });
    for (text, address) in [
        ("address: 'tcp:127.0.0.1:9000'", "127.0.0.1:9000"),
        ("address: 'tcp:[::1]:9000'", "[::1]:9000"),
        ("address: 'tcp:10.0.0.5:9000', allow_remote_tcp: true", "10.0.0.5:9000"),
    ] {
        assert_eq!(found(text).endpoint, PeerEndpoint::Tcp(address.parse().unwrap()));
    }
}

#[test]
fn checksums_are_read_and_written_out_again() {
    let place = Place::new();
    let sum = format!("sha256:{}", "0f".repeat(32));
    for checksum in [sum.clone(), format!("{{program: {sum}, files: {{auth.py: {sum}}}}}")] {
        let text = format!("{LISTENER}plugins: {{a: {{command: [python3, auth.py], checksum: {checksum}}}}}");
        let config = place.parse(&text).unwrap();
        let checksums = &config.plugins["a"].checksums;
        assert_eq!(checksums.program.unwrap().to_string(), sum);
        let again = place.parse(&config.effective_yaml()).unwrap();
        assert_eq!(again.plugins["a"].checksums, *checksums);
    }
}

#[test]
fn the_effective_configuration_keeps_secrets() {
    let text = format!(
        "{LISTENER}plugins:\n  a:\n    command: [python3]\n    env: {{API_KEY: hunter2, A: b}}\n    \
         config: {{db: [{{Password: hunter2}}], private_key: {{a: hunter2}}, name: c}}\n"
    );
    let place = Place::new();
    let yaml = parsed(&place, &text).effective_yaml();
    assert!(!yaml.contains("hunter2"), "{yaml}");
    assert_eq!(yaml.matches("<redacted>").count(), 3, "{yaml}");
    assert!(yaml.contains("name: c") && yaml.contains("A: b"), "{yaml}");
    parsed(&place, &yaml);
}

/// Values that JSON has too, with strings that look like something else.
fn config_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53)..=1 << 53).prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(
            &["no", "~", "0600", "1e3", ".nan", "<<", "*a", "- a", "a: b", " ", "0x1F", "1_000", "'", "#", "\u{feff}"]
                [..]
        )
        .prop_map(Value::from),
        // Line breaks of YAML and of other standards.
        "[ a\n\r\u{85}\u{2028}\u{2029}]{1,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Sequence),
            prop::collection::vec(("[a-jA-J0-9~.]{1,6}", inner), 0..4).prop_map(|entries| Value::Mapping(
                entries.into_iter().map(|(key, value)| (key.into(), value)).collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_plugin_configuration_reads_as_the_same(value in config_value(), text in "[ -~é\n\t]{0,12}") {
        let place = Place::new();
        let mut config = parsed(&place, SMALLEST);
        let plugin = config.plugins.get_mut("auth").unwrap();
        plugin.config.insert("value".into(), value);
        plugin.env.insert("A".to_owned(), text.clone());
        config.routes[0].metadata.insert("text".to_owned(), text);
        assert_round_trip(&place, &config);
    }
}
