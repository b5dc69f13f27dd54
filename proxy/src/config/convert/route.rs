//! Routes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::slot::{Plain, Slot, Table};
use super::super::written;
use super::super::{HeaderMatch, HeaderRule, HostPattern, PathPattern, Route};
use super::upstream::{Upstreams, is_host_name};
use super::value::pattern;
use super::{Plugins, Reading};

impl Reading<'_> {
    pub(super) fn routes(
        &mut self,
        written: &written::List<written::Route>,
        plugins: &Plugins,
        upstreams: &mut Upstreams,
    ) -> Vec<Route> {
        let mut position = 0;
        let mut names = Vec::new();
        let mut conditions = Vec::new();
        let routes = self.list(written, |reading, route, node| {
            position += 1;
            let before = reading.problems.len();
            let name = reading.route_name(route, position);
            let needed = reading.route(name, route, node, plugins, upstreams);
            names.push((needed.name.clone(), needed.name.clone(), route.name.given().map_or(node, |(_, node)| node)));
            if reading.problems.len() == before {
                conditions.push((condition(&needed), needed.name.clone(), node));
            }
            Some(needed)
        });
        self.unique("the route's name", names);
        self.unreachable(conditions);
        routes
    }

    fn route_name(&mut self, written: &written::Route, position: usize) -> String {
        match written.name.given() {
            Some((name, node)) if name.is_empty() => {
                self.push(self.problem(node, "a route's name is empty"));
                name.clone()
            }
            Some((name, _)) => name.clone(),
            None => format!("route-{position}"),
        }
    }

    fn route(
        &mut self,
        name: String,
        written: &written::Route,
        node: u64,
        plugins: &Plugins,
        upstreams: &mut Upstreams,
    ) -> Route {
        self.require(&written.upstream, "upstream", node);
        let upstream = written.upstream.given();
        let upstream = upstream.and_then(|(text, node)| self.upstream_of_route(text, node, upstreams));
        Route {
            name,
            hosts: self.hosts(written, node),
            path: written.path.given().and_then(|(path, node)| self.path(path, node)).unwrap_or_default(),
            methods: self.methods(&written.methods),
            headers: self.headers(&written.headers),
            filters: self.filters(&written.filters, plugins),
            upstream: upstream.unwrap_or_default(),
            timeout: match written.timeout.given() {
                Some((text, _)) if text.0 == "none" => None,
                Some((text, node)) => self.positive(&text.0, node),
                None => Some(Duration::from_secs(60)),
            },
            retries: self.count(&written.retries, 1, 0..=1),
            upgrades: self.upgrades(&written.upgrades),
            metadata: self.plain_table(&written.metadata),
        }
    }

    fn hosts(&mut self, written: &written::Route, node: u64) -> Vec<HostPattern> {
        if !written.host.is_missing() && !written.hosts.is_missing() {
            self.push(self.problem(node, "a route takes `host` or `hosts`, not both"));
        }
        if let Some(([], node)) = written.hosts.given().map(|(hosts, node)| (hosts.as_slice(), node)) {
            self.push(self.problem(node, "`hosts` is empty").label("write `[\"*\"]` or remove the line for any host"));
        }
        let mut hosts = self.list(&written.hosts, |reading, host, node| reading.host(host, node));
        hosts.extend(written.host.given().and_then(|(host, node)| self.host(host, node)));
        hosts
    }

    fn host(&mut self, text: &str, node: u64) -> Option<HostPattern> {
        let host = text.to_ascii_lowercase();
        if host == "*" {
            return Some(HostPattern::Any);
        }
        if let Some(suffix) = host.strip_prefix('*')
            && suffix.strip_prefix('.').is_some_and(is_host_name)
        {
            return Some(HostPattern::Suffix(suffix.to_owned()));
        }
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_v6 = literal.is_some_and(|literal| literal.parse::<std::net::Ipv6Addr>().is_ok());
        if is_v6 || is_host_name(&host) || host.parse::<std::net::Ipv4Addr>().is_ok() {
            return Some(HostPattern::Exact(host));
        }
        let label = if host.contains("://") || host.contains('/') {
            "a host has no scheme and no path"
        } else if host.ends_with('.') {
            "write it without the dot at the end"
        } else if host.contains('*') {
            "`*` may only be the whole first label: `*.example`"
        } else if !host.is_ascii() {
            "write the ASCII form, which begins with `xn--`"
        } else if host.contains(':') {
            "hosts are matched without their port"
        } else {
            "write it like `api.example`, `*.example` or `*`"
        };
        self.push(self.problem(node, format!("`{text}` is not a host")).label(label));
        None
    }

    fn path(&mut self, written: &written::PathMatch, node: u64) -> Option<PathPattern> {
        let details = match written {
            written::PathMatch::Text(prefix) => return self.prefix(prefix, node),
            written::PathMatch::Mapping(details) => details,
        };
        match (&details.exact, &details.prefix, &details.regex) {
            (exact, Slot::Missing, Slot::Missing) if !exact.is_missing() => {
                let (text, node) = exact.given()?;
                self.literal_path(text, node).then(|| PathPattern::Exact(text.clone()))
            }
            (Slot::Missing, prefix, Slot::Missing) if !prefix.is_missing() => {
                let (text, node) = prefix.given()?;
                self.prefix(text, node)
            }
            (Slot::Missing, Slot::Missing, regex) if !regex.is_missing() => {
                let (text, node) = regex.given()?;
                self.regex(text, node).map(PathPattern::Regex)
            }
            (Slot::Missing, Slot::Missing, Slot::Missing) if self.has_unknown_fields(node) => None,
            _ => {
                self.push(self.problem(node, "a path is one of `exact`, `prefix` and `regex`"));
                None
            }
        }
    }

    /// Prefixes match whole segments, so a slash at the end would only keep `/a` itself out.
    fn prefix(&mut self, text: &str, node: u64) -> Option<PathPattern> {
        self.literal_path(text, node).then(|| {
            let prefix = text.trim_end_matches('/');
            PathPattern::Prefix(if prefix.is_empty() { "/" } else { prefix }.to_owned())
        })
    }

    fn literal_path(&mut self, text: &str, node: u64) -> bool {
        let problem = self.problem(node, format!("`{text}` can't be the path of a request"));
        let label = if !text.starts_with('/') {
            "a path begins with `/`"
        } else if text.contains('?') {
            "a path ends before the `?`"
        } else if text.contains('#') {
            "a `#` never reaches a server"
        } else if text.contains('*') {
            "`*` is not a wildcard here: a string is a prefix already; else use `regex`"
        } else if text.contains("//") || text.split('/').any(|segment| matches!(segment, "." | "..")) {
            "paths are normalised before they are matched: no `//`, `.` or `..`"
        } else if !text.chars().all(|c| c.is_ascii_graphic()) {
            "blanks and characters beyond ASCII are percent-encoded in a path"
        } else {
            return true;
        };
        self.push(problem.label(label));
        false
    }

    fn methods(&mut self, written: &written::List<String>) -> Vec<http::Method> {
        if let Some(([], node)) = written.given().map(|(methods, node)| (methods.as_slice(), node)) {
            self.push(self.problem(node, "`methods` is empty").label("remove the line for any method"));
        }
        self.list(written, |reading, text, node| {
            let upper = text.to_ascii_uppercase();
            match http::Method::from_bytes(text.as_bytes()) {
                Ok(method) if *text == upper => Some(method),
                Ok(_) => {
                    let problem = reading.problem(node, format!("methods are upper case, unlike `{text}`"));
                    reading.push(problem.label(format!("write `{upper}`")));
                    None
                }
                Err(_) => {
                    reading.push(reading.problem(node, format!("`{text}` is not a method")));
                    None
                }
            }
        })
    }

    fn headers(&mut self, written: &Slot<Table<written::HeaderMatch>>) -> Vec<HeaderMatch> {
        let mut seen = Vec::new();
        let mut headers = Vec::new();
        for (key, rule) in written.value().map_or(&[][..], |table| &table.0) {
            let name = key.given().and_then(|(name, node)| {
                let header = self.header_name(name, node)?;
                seen.push((header.to_string(), name.clone(), node));
                Some(header)
            });
            let rule = rule.given().and_then(|(rule, node)| self.header_rule(rule, node));
            headers.extend(name.zip(rule).map(|(name, rule)| HeaderMatch { name, rule }));
        }
        self.unique("the header", seen);
        headers
    }

    fn header_rule(&mut self, written: &written::HeaderMatch, node: u64) -> Option<HeaderRule> {
        let details = match written {
            written::HeaderMatch::Text(value) => return self.header_value(&value.0, node).map(HeaderRule::Exact),
            written::HeaderMatch::Mapping(details) => details,
        };
        let written = [
            !details.exact.is_missing(),
            !details.prefix.is_missing(),
            !details.regex.is_missing(),
            !details.present.is_missing(),
        ];
        let count = written.iter().filter(|given| **given).count();
        if count == 0 && self.has_unknown_fields(node) {
            return None;
        }
        if count != 1 {
            self.push(self.problem(node, "a header is matched by one of `exact`, `prefix`, `regex` and `present`"));
            return None;
        }
        if let Some((value, node)) = details.exact.given() {
            return self.header_value(&value.0, node).map(HeaderRule::Exact);
        }
        if let Some((value, node)) = details.prefix.given() {
            return self.header_value(&value.0, node).map(HeaderRule::Prefix);
        }
        if let Some((text, node)) = details.regex.given() {
            return self.regex(text, node).map(HeaderRule::Regex);
        }
        details.present.value().map(|present| if *present { HeaderRule::Present } else { HeaderRule::Absent })
    }

    fn upgrades(&mut self, written: &written::List<String>) -> Vec<String> {
        self.list(written, |reading, text, node| {
            let protocol = text.to_ascii_lowercase();
            let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
            let problem = if protocol.is_empty() || !protocol.chars().all(token) {
                reading.problem(node, format!("`{text}` is not a protocol's name"))
            } else if protocol == "h2c" {
                let problem = reading.problem(node, "`h2c` would let requests past the filters");
                problem.label("HTTP/2 needs no upgrade: clients speak it at once")
            } else {
                return Some(protocol);
            };
            reading.push(problem);
            None
        })
    }

    /// Names and strings.
    pub(super) fn plain_table(&mut self, written: &Slot<Table<Plain>>) -> BTreeMap<String, String> {
        let entries = written.value().map_or(&[][..], |table| &table.0);
        let given = entries.iter().filter_map(|(key, value)| Some((key.value()?, value.value()?)));
        given.map(|(key, value)| (key.clone(), value.0.clone())).collect()
    }

    /// Reports routes that ask for the same as an earlier one. Others may be unreachable too, but not as clearly.
    fn unreachable(&mut self, conditions: Vec<(String, String, u64)>) {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (condition, name, node) in conditions {
            if let Some(first) = seen.get(&condition) {
                let problem = self.problem(node, format!("the route `{name}` can never be reached"));
                self.push(problem.label(format!("`{first}` matches the same requests before it")));
            } else {
                seen.insert(condition, name);
            }
        }
    }
}

/// All that decides whether a route matches, comparable.
fn condition(route: &Route) -> String {
    let mut hosts: Vec<_> = route.hosts.iter().map(|host| format!("{host:?}")).collect();
    if hosts.is_empty() {
        hosts.push(format!("{:?}", HostPattern::Any));
    }
    let mut methods: Vec<_> = route.methods.iter().map(http::Method::as_str).collect();
    let mut headers: Vec<_> = route
        .headers
        .iter()
        .map(|header| match &header.rule {
            HeaderRule::Regex(regex) => format!("{}: regex {}", header.name, pattern(regex)),
            rule => format!("{}: {rule:?}", header.name),
        })
        .collect();
    hosts.sort_unstable();
    methods.sort_unstable();
    headers.sort_unstable();
    let path = match &route.path {
        PathPattern::Regex(regex) => format!("regex {}", pattern(regex)),
        path => format!("{path:?}"),
    };
    format!("{hosts:?} {path} {methods:?} {headers:?}")
}

impl Default for PathPattern {
    fn default() -> Self {
        Self::Prefix("/".to_owned())
    }
}
