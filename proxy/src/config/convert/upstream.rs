//! Upstreams, and what a route may write in the place of one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::super::slot::{Slot, Table};
use super::super::written;
use super::super::{Balance, Checks, Endpoint, Outliers, Upstream, UpstreamProtocol};
use super::Reading;

/// The upstreams there are. One that is broken itself is named here too, so that only names written nowhere are
/// unknown.
pub(super) struct Upstreams {
    /// Those with a section of their own.
    named: BTreeMap<String, Upstream>,
    /// Those that routes wrote as a URL.
    inline: BTreeMap<String, Upstream>,
}

impl Upstreams {
    pub(super) fn into_needed(mut self) -> BTreeMap<String, Upstream> {
        self.named.append(&mut self.inline);
        self.named
    }
}

impl Reading<'_> {
    pub(super) fn upstreams(&mut self, written: &Slot<Table<written::Upstream>>) -> Upstreams {
        let mut named = BTreeMap::new();
        for (key, upstream) in written.value().map_or(&[][..], |table| &table.0) {
            let Some((name, node)) = key.given() else { continue };
            let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            if !valid || name.is_empty() || name.len() > 64 {
                let problem = self.problem(node, format!("`{name}` can't be the name of an upstream"));
                self.push(problem.label("letters, digits, `-`, `_` and `.`, at most 64"));
            }
            let upstream = match upstream.given() {
                Some((upstream, node)) => self.upstream(upstream, node),
                None => Upstream::of(Vec::new()),
            };
            named.insert(name.clone(), upstream);
        }
        Upstreams { named, inline: BTreeMap::new() }
    }

    fn upstream(&mut self, written: &written::Upstream, node: u64) -> Upstream {
        self.require(&written.endpoints, "endpoints", node);
        if let Some(([], node)) = written.endpoints.given().map(|(endpoints, node)| (endpoints.as_slice(), node)) {
            self.push(self.problem(node, "`endpoints` is empty").label("at least one is needed"));
        }
        let mut seen = Vec::new();
        let endpoints = self.list(&written.endpoints, |reading, text, node| {
            let endpoint = reading.endpoint(text, node)?;
            seen.push((endpoint.to_string(), text.clone(), node));
            Some(endpoint)
        });
        self.unique("the endpoint", seen);
        let default = Upstream::of(endpoints);
        Upstream {
            balance: written.balance.value().map_or(default.balance, |&balance| balance.into()),
            protocol: written.protocol.value().map_or(default.protocol, |&protocol| protocol.into()),
            connect_timeout: self.timeout(&written.connect_timeout, default.connect_timeout),
            idle_timeout: self.timeout(&written.idle_timeout, default.idle_timeout),
            max_idle: self.number(&written.max_idle, default.max_idle, 0..=100_000),
            // hyper takes no less than 8 KiB.
            max_header_bytes: self.size(&written.max_header_bytes, default.max_header_bytes, 8 << 10..=1 << 20),
            max_headers: self.number(&written.max_headers, default.max_headers, 1..=10_000),
            outliers: written.outliers.value().map_or(default.outliers, |outliers| Outliers {
                failures: self.count(&outliers.failures, default.outliers.failures, 0..=1000),
                eject_for: self.timeout(&outliers.eject_for, default.outliers.eject_for),
            }),
            checks: written.checks.given().and_then(|(checks, node)| self.checks(checks, node)),
            panic_below: u8::try_from(self.count(&written.panic_below, default.panic_below.into(), 0..=100))
                .unwrap_or(default.panic_below),
            endpoints: default.endpoints,
        }
    }

    fn checks(&mut self, written: &written::Checks, node: u64) -> Option<Checks> {
        self.require(&written.path, "path", node);
        let (path, path_node) = written.path.given()?;
        if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
            let problem = self.problem(path_node, format!("`{path}` can't be the path of a request"));
            self.push(problem.label("write it like `/healthz`"));
        }
        Some(Checks {
            path: path.clone(),
            interval: self.timeout(&written.interval, Duration::from_secs(5)),
            timeout: self.timeout(&written.timeout, Duration::from_secs(1)),
            failures: self.count(&written.failures, 3, 1..=100),
            successes: self.count(&written.successes, 1, 1..=100),
        })
    }

    /// The name of the upstream that a route means.
    pub(super) fn upstream_of_route(&mut self, text: &str, node: u64, upstreams: &mut Upstreams) -> Option<String> {
        if upstreams.named.contains_key(text) {
            return Some(text.to_owned());
        }
        if !text.contains([':', '/']) {
            self.unknown("upstream", text, node, upstreams.named.keys().map(String::as_str));
            return None;
        }
        let endpoint = self.endpoint(text, node)?;
        let name = endpoint.to_string();
        upstreams.inline.entry(name.clone()).or_insert_with(|| Upstream::of(vec![endpoint]));
        Some(name)
    }

    /// A URL without path, `host:port`, or `unix:/path`.
    fn endpoint(&mut self, text: &str, node: u64) -> Option<Endpoint> {
        if let Some(path) = text.strip_prefix("unix:") {
            return self.socket_path(path, node).map(Endpoint::Unix);
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let refused = |message: String, label: &str| (message, label.to_owned());
        let (message, label) = match scheme {
            "http" => match authority(rest) {
                Ok((host, port)) => return Some(Endpoint::Tcp { host, port }),
                Err(label) => (format!("`{text}` is not an endpoint"), label),
            },
            "https" => refused("upstreams with `https://` are not built yet".to_owned(), "only `http://` and `unix:`"),
            _ => refused(format!("unknown scheme `{scheme}`"), "only `http://` and `unix:`"),
        };
        self.push(self.problem(node, message).label(label));
        None
    }
}

/// Host and port of a URL's rest; the error is advice.
fn authority(rest: &str) -> Result<(String, u16), String> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.starts_with('/') {
        return Err(format!("write `unix:{rest}`"));
    }
    if rest.contains('@') {
        return Err("user and password are not supported".to_owned());
    }
    if rest.contains(['/', '?', '#']) {
        return Err("an endpoint has no path: requests keep theirs".to_owned());
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or("`]` is missing")?;
            let host: Ipv6Addr = host.parse().map_err(|_| "not an IPv6 address in the brackets")?;
            (host.to_string(), tail.strip_prefix(':'))
        }
        None => {
            let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
            if port.is_some_and(|port| port.contains(':')) {
                return Err("an IPv6 address needs brackets: `http://[::1]:9000`".to_owned());
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    if host.parse::<IpAddr>().is_err() && !is_host_name(&host) {
        return Err("not an IP address or a DNS name".to_owned());
    }
    let port = port.ok_or_else(|| format!("the port is missing: `http://{rest}:80`"))?;
    let digits = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
    match port.parse() {
        Ok(port) if port > 0 && digits => Ok((host, port)),
        _ => Err("the port must be 1 to 65535".to_owned()),
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63, at most 253 in all. A name of digits and dots only is a mistyped
/// address.
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number
}

impl Upstream {
    /// These endpoints, and the default for everything else.
    pub(in super::super) fn of(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            balance: Balance::RoundRobin,
            protocol: UpstreamProtocol::Http1,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(60),
            max_idle: 1024,
            max_header_bytes: 64 * 1024,
            max_headers: 200,
            outliers: Outliers { failures: 5, eject_for: Duration::from_secs(10) },
            checks: None,
            panic_below: 50,
        }
    }
}

impl std::fmt::Display for Endpoint {
    /// `http://host:port` or `unix:/path`, as a route may write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<written::Balance> for Balance {
    fn from(written: written::Balance) -> Self {
        match written {
            written::Balance::RoundRobin => Self::RoundRobin,
            written::Balance::Random => Self::Random,
            written::Balance::LeastRequest => Self::LeastRequest,
        }
    }
}

impl From<written::Protocol> for UpstreamProtocol {
    fn from(written: written::Protocol) -> Self {
        match written {
            written::Protocol::Http1 => Self::Http1,
            written::Protocol::Http2 => Self::Http2,
        }
    }
}
