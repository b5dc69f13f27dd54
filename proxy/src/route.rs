//! Routes: which requests go where. The first that matches wins.

mod index;

use std::sync::Arc;

use http::HeaderMap;

use self::index::Index;
use crate::config::{self, HeaderMatch, HeaderRule, HostPattern, PathPattern};
use crate::filter::{Chain, UnknownPlugin};
use crate::http::Request;
use crate::plugin::Plugins;
use crate::telemetry::Metrics;
use crate::upstream::{Upstream, Upstreams};

/// A route with what it leads to.
#[derive(Debug)]
pub(crate) struct Route {
    /// As the metrics share it.
    pub(crate) name: Arc<str>,
    pub(crate) config: config::Route,
    pub(crate) filters: Chain,
    pub(crate) upstream: Arc<Upstream>,
}

/// All routes in their order.
#[derive(Debug)]
pub(crate) struct Routes {
    routes: Vec<Route>,
    index: Index,
}

/// Something that the configuration's own check has let through is missing: a bug of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error(transparent)]
    Plugin(#[from] UnknownPlugin),
    #[error("no upstream `{0}`")]
    Upstream(String),
}

impl Routes {
    pub(crate) fn new(
        routes: &[config::Route],
        upstreams: &Upstreams,
        plugins: &Plugins,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, BuildError> {
        let route = |route: &config::Route| {
            let upstream =
                upstreams.get(&route.upstream).ok_or_else(|| BuildError::Upstream(route.upstream.clone()))?;
            let filters = Chain::new(&route.filters, plugins, metrics)?;
            let name = route.name.as_str().into();
            Ok(Route { name, config: route.clone(), filters, upstream: Arc::clone(upstream) })
        };
        let routes = routes.iter().map(route).collect::<Result<Vec<_>, BuildError>>()?;
        let index = Index::new(routes.iter().map(|route| &route.config));
        Ok(Self { routes, index })
    }

    /// The first route for a request.
    pub(crate) fn find(&self, request: &Request) -> Option<&Route> {
        let matches = |place: usize| matches(&self.routes[place].config, request);
        self.index.first(request.host(), &request.path, matches).map(|place| &self.routes[place])
    }
}

fn matches(route: &config::Route, request: &Request) -> bool {
    (route.hosts.is_empty() || route.hosts.iter().any(|host| host_matches(host, request.host())))
        && path_matches(&route.path, &request.path)
        && (route.methods.is_empty() || route.methods.contains(&request.method))
        && route.headers.iter().all(|header| header_matches(header, &request.headers))
}

fn host_matches(pattern: &HostPattern, host: &str) -> bool {
    match pattern {
        HostPattern::Exact(name) => name == host,
        // At least one label in front.
        HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        HostPattern::Any => true,
    }
}

fn path_matches(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Exact(exact) => exact == path,
        // `/`, which covers everything, is written without its slash.
        PathPattern::Prefix(prefix) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                // `*` of OPTIONS concerns the whole server.
                || (prefix.is_empty() && path == "*")
        }
        PathPattern::Regex(regex) => regex.is_match(path),
    }
}

fn header_matches(header: &HeaderMatch, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(&header.name).iter();
    match &header.rule {
        HeaderRule::Present => values.next().is_some(),
        HeaderRule::Absent => values.next().is_none(),
        HeaderRule::Exact(exact) => values.any(|value| value.as_bytes() == exact.as_bytes()),
        HeaderRule::Prefix(prefix) => values.any(|value| value.as_bytes().starts_with(prefix.as_bytes())),
        HeaderRule::Regex(regex) => {
            values.any(|value| std::str::from_utf8(value.as_bytes()).is_ok_and(|value| regex.is_match(value)))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use http::{HeaderName, HeaderValue};
    use regex::Regex;

    use super::*;

    #[test]
    fn hosts() {
        let suffix = HostPattern::Suffix(".example".into());
        assert!(host_matches(&suffix, "a.example") && host_matches(&suffix, "b.a.example"));
        for other in ["example", ".example", "a.example.evil", "aexample", ""] {
            assert!(!host_matches(&suffix, other), "{other}");
        }
        assert!(host_matches(&HostPattern::Exact("a".into()), "a"));
        assert!(!host_matches(&HostPattern::Exact("a".into()), "b.a"));
        assert!(host_matches(&HostPattern::Any, ""));
    }

    #[test]
    fn paths() {
        let prefix = |prefix: &str| PathPattern::Prefix(prefix.into());
        for (pattern, path, expected) in [
            (prefix("/"), "/", true),
            (prefix("/"), "/x/y", true),
            (prefix("/"), "*", true),
            (prefix("/a"), "/a", true),
            (prefix("/a"), "/a/", true),
            (prefix("/a"), "/a/b", true),
            (prefix("/a"), "/ab", false),
            (prefix("/a"), "/", false),
            (prefix("/a"), "*", false),
            (PathPattern::Exact("/a".into()), "/a", true),
            (PathPattern::Exact("/a".into()), "/a/", false),
            (PathPattern::Regex(Arc::new(Regex::new("^(?:/v[0-9]+)$").unwrap())), "/v1", true),
            (PathPattern::Regex(Arc::new(Regex::new("^(?:/v[0-9]+)$").unwrap())), "/v1/x", false),
        ] {
            assert_eq!(path_matches(&pattern, path), expected, "{pattern:?} {path}");
        }
    }

    #[test]
    fn headers() {
        let mut fields = HeaderMap::new();
        fields.append("x-a", HeaderValue::from_static("one"));
        fields.append("x-a", HeaderValue::from_static("two"));
        fields.append("x-b", HeaderValue::from_bytes(b"\xff").unwrap());
        let check = |name: &'static str, rule| {
            header_matches(&HeaderMatch { name: HeaderName::from_static(name), rule }, &fields)
        };
        assert!(check("x-a", HeaderRule::Present) && check("x-c", HeaderRule::Absent));
        assert!(!check("x-a", HeaderRule::Absent) && !check("x-c", HeaderRule::Present));
        assert!(check("x-a", HeaderRule::Exact("two".into())) && !check("x-a", HeaderRule::Exact("tw".into())));
        assert!(check("x-a", HeaderRule::Prefix("tw".into())) && !check("x-a", HeaderRule::Prefix("wo".into())));
        assert!(!check("x-b", HeaderRule::Regex(Arc::new(Regex::new(".*").unwrap()))));
    }
}
