//! Finds the routes that may be for a request without looking at each of them: by host, then by path.
//!
//! A host is looked up whole and by each of its endings, a path whole and by each of its beginnings. What is found is
//! looked at in the order of the file, so the first route that matches still wins. Routes by regular expression can't
//! be looked up, and are all looked at.

use crate::config::{HostPattern, PathPattern, Route};
use crate::known::Known;

/// Places of routes, in ascending order.
type Places = Vec<usize>;

#[derive(Debug, Default)]
pub(super) struct Index {
    /// Routes for any host.
    any: Paths,
    exact: Known<Box<str>, Paths>,
    /// By the ending, with its leading dot.
    endings: Known<Box<str>, Paths>,
    /// Bytes of the longest ending: longer ones of a host are not looked up, or a host of many dots would cost the square
    /// of its length.
    longest: usize,
}

/// The routes of one host pattern.
#[derive(Debug, Default)]
struct Paths {
    exact: Known<Box<str>, Places>,
    /// Without a slash at the end.
    prefixes: Known<Box<str>, Places>,
    /// Bytes of the longest prefix: of a path, too.
    longest: usize,
    patterns: Places,
}

impl Index {
    pub(super) fn new<'a>(routes: impl Iterator<Item = &'a Route>) -> Self {
        let mut index = Self::default();
        for (place, route) in routes.enumerate() {
            if route.hosts.is_empty() {
                index.any.add(place, &route.path);
            }
            for host in &route.hosts {
                let paths = match host {
                    HostPattern::Any => &mut index.any,
                    HostPattern::Exact(name) => index.exact.entry(name.as_str().into()).or_default(),
                    HostPattern::Suffix(ending) => {
                        index.longest = index.longest.max(ending.len());
                        index.endings.entry(ending.as_str().into()).or_default()
                    }
                };
                paths.add(place, &route.path);
            }
        }
        index
    }

    /// The first place that `matches` of those that may be for this host and path. All others are for others.
    pub(super) fn first(&self, host: &str, path: &str, matches: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best = None;
        self.any.first(path, &matches, &mut best);
        if let Some(paths) = self.exact.get(host) {
            paths.first(path, &matches, &mut best);
        }
        if !self.endings.is_empty() {
            let dots = host.match_indices('.').map(|(at, _)| at);
            for at in dots.skip_while(|at| host.len() - at > self.longest) {
                if let Some(paths) = self.endings.get(&host[at..]) {
                    paths.first(path, &matches, &mut best);
                }
            }
        }
        best
    }
}

impl Paths {
    fn add(&mut self, place: usize, path: &PathPattern) {
        let places = match path {
            PathPattern::Exact(path) => self.exact.entry(path.as_str().into()).or_default(),
            PathPattern::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                self.longest = self.longest.max(prefix.len());
                self.prefixes.entry(prefix.into()).or_default()
            }
            PathPattern::Regex(_) => &mut self.patterns,
        };
        // A route may name a host twice.
        if places.last() != Some(&place) {
            places.push(place);
        }
    }

    fn first(&self, path: &str, matches: &impl Fn(usize) -> bool, best: &mut Option<usize>) {
        let mut look = |places: Option<&Places>| {
            let before = best.unwrap_or(usize::MAX);
            let better = places.into_iter().flatten().copied().take_while(|place| *place < before);
            *best = better.into_iter().find(|place| matches(*place)).or(*best);
        };
        if !self.exact.is_empty() {
            look(self.exact.get(path));
        }
        if !self.prefixes.is_empty() {
            // `/a/b` has the prefixes ``, `/a` and `/a/b`; `*` has the empty one, and `/a/` also `/a`.
            look(self.prefixes.get(""));
            let slashes = path.match_indices('/').map(|(at, _)| at);
            for at in slashes.skip(1).take_while(|at| *at <= self.longest) {
                look(self.prefixes.get(&path[..at]));
            }
            look(self.prefixes.get(path));
        }
        look(Some(&self.patterns));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{host_matches, path_matches};
    use super::*;

    /// With a header each, of another name: a route that another one hides is refused.
    fn routes(lines: &[String]) -> Vec<Route> {
        let lines: Vec<_> =
            lines.iter().enumerate().map(|(n, line)| format!("{{headers: {{x-{n}: a}}, {line}}}")).collect();
        let text = format!("{{listeners: [{{address: '127.0.0.1:1'}}], routes: [{}]}}", lines.join(", "));
        crate::config::parse(Path::new("/p.yaml"), &text).unwrap().routes
    }

    fn is_for(route: &Route, host: &str, path: &str) -> bool {
        (route.hosts.is_empty() || route.hosts.iter().any(|pattern| host_matches(pattern, host)))
            && path_matches(&route.path, path)
    }

    prop_compose! {
        fn host()(labels in prop::collection::vec("[ab]", 0..4)) -> String { labels.join(".") }
    }

    prop_compose! {
        fn path()(segments in prop::collection::vec("[ab]", 0..4), slash in any::<bool>()) -> String {
            let end = if slash || segments.is_empty() { "/" } else { "" };
            segments.iter().map(|segment| format!("/{segment}")).collect::<String>() + end
        }
    }

    fn route() -> impl Strategy<Value = String> {
        let hosts = prop_oneof![
            Just(String::new()),
            Just("hosts: ['*'], ".to_owned()),
            host().prop_filter("a name", |host| !host.is_empty()).prop_map(|host| format!("hosts: [{host}], ")),
            host()
                .prop_filter("a name", |host| !host.is_empty())
                .prop_map(|host| format!("hosts: ['*.{host}', {host}], ")),
        ];
        let paths = prop_oneof![
            path().prop_map(|path| format!("path: {{exact: '{path}'}}, ")),
            path().prop_map(|path| format!("path: '{path}', ")),
            Just("path: {regex: '/a.*'}, ".to_owned()),
            Just(String::new()),
        ];
        (hosts, paths).prop_map(|(hosts, path)| format!("{hosts}{path}upstream: 'http://127.0.0.1:2'"))
    }

    /// What takes the square of their lengths does not come to an end here.
    #[test]
    fn a_long_host_and_a_long_path_are_looked_up_in_a_time_that_their_length_bounds() {
        let lines = ["hosts: ['*.b.a'], path: '/a/b', upstream: 'http://127.0.0.1:2'".to_owned()];
        let routes = routes(&lines);
        let index = Index::new(routes.iter());
        let (host, path) = ("a.".repeat(2_000_000) + "b.a", "/a/b".to_owned() + &"/a".repeat(2_000_000));
        assert_eq!(index.first(&host, &path, |_| true), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_finds_what_a_look_at_each_finds(
            lines in prop::collection::vec(route(), 1..12),
            asked in prop::collection::vec((host(), prop_oneof![path(), Just("*".to_owned())]), 1..20),
        ) {
            let routes = routes(&lines);
            let index = Index::new(routes.iter());
            for (host, path) in asked {
                let each = routes.iter().position(|route| is_for(route, &host, &path));
                let found = index.first(&host, &path, |place| is_for(&routes[place], &host, &path));
                prop_assert_eq!(found, each, "{} {} in {:?}", host, path, lines);
                // What is left to be matched beside host and path is asked in the order of the file.
                let odd = routes.iter().enumerate().position(|(place, route)| place % 2 == 1 && is_for(route, &host, &path));
                let found = index.first(&host, &path, |place| place % 2 == 1 && is_for(&routes[place], &host, &path));
                prop_assert_eq!(found, odd);
            }
        }
    }
}
