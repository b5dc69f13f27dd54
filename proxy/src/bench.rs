//! Rooms of the proxy by themselves, for `cargo bench --features bench`. No part of the proxy.

#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "for this repository's benchmarks only"
)]

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{self, Address};
use crate::http::{Client, Request, Rules, read};
use crate::plugin::{self, HeaderOp, Plugins};
use crate::route::Routes;
use crate::telemetry::Metrics;
use crate::upstream::{House, Upstreams};

/// A request of a number of headers on its way through the proxy.
#[derive(Debug)]
pub struct Hot {
    client: Arc<Client>,
    rules: Rules,
    headers: usize,
    request: Request,
}

impl Hot {
    #[must_use]
    pub fn new(headers: usize) -> Self {
        let client = Arc::new(Client {
            place: None,
            listener: "web".into(),
            peer: Some("127.0.0.1:5".parse().unwrap()),
            forwarded: std::sync::OnceLock::new(),
            local: Address::Tcp("127.0.0.1:80".parse().unwrap()),
            tls: None,
            trusted: false,
        });
        let config = config::parse(
            Path::new("/bench.yaml"),
            "listeners: [{address: '127.0.0.1:1'}]\nroutes: [{upstream: 'http://127.0.0.1:2'}]",
        )
        .unwrap();
        let listener = &config.listeners[0];
        let rules = Rules { requests: listener.requests.clone(), owned: Vec::new().into(), limits: listener.limits };
        let request = read(parts(headers), &client, &rules, "0".repeat(32)).unwrap();
        Self { client, rules, headers, request }
    }

    /// What comes from the wire.
    #[must_use]
    pub fn parts(&self) -> Parts {
        parts(self.headers)
    }

    /// Brings it into its one form.
    pub fn read(&self, parts: Parts) -> usize {
        read(parts, &self.client, &self.rules, "0".repeat(32)).unwrap().headers.len()
    }

    /// Writes it for a plugin.
    #[must_use]
    pub fn encode(&self) -> usize {
        plugin::encoded_size(&self.request)
    }

    /// Its headers, for [`mutate`].
    #[must_use]
    pub fn fields(&self) -> HeaderMap {
        self.request.headers.clone()
    }
}

fn parts(headers: usize) -> Parts {
    let mut request = http::Request::get("/some/path?and=query").header("host", "a.example:8080");
    for n in 0..headers {
        request = request.header(format!("x-header-{n}"), "a value of some length, as they are");
    }
    request.body(()).unwrap().into_parts().0
}

/// Applies two changes of a plugin.
pub fn mutate(mut fields: HeaderMap) -> usize {
    let ops = [
        HeaderOp::Set(HeaderName::from_static("x-user"), HeaderValue::from_static("admin")),
        HeaderOp::Remove(HeaderName::from_static("x-header-1")),
    ];
    plugin::apply(&ops, &mut fields);
    fields.len()
}

/// A number of routes by path, of which a request takes the last.
#[derive(Debug)]
pub struct Table {
    routes: Routes,
    request: Request,
}

impl Table {
    /// Must be called in a runtime.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let mut text = "listeners: [{address: '127.0.0.1:1'}]\nroutes:\n".to_owned();
        for n in 0..count {
            writeln!(text, "  - {{path: /r{n}, upstream: 'http://127.0.0.1:2'}}").unwrap();
        }
        let config = config::parse(Path::new("/bench.yaml"), &text).unwrap();
        let (tasks, end, metrics) = (TaskTracker::new(), CancellationToken::new(), Arc::new(Metrics::default()));
        let upstreams = Upstreams::new(
            &config.upstreams,
            None,
            House { workers: 1, tasks: &tasks, end: &end, metrics: &metrics, overload: &Arc::default() },
        );
        let routes = Routes::new(&config.routes, &upstreams, &Plugins::default(), &metrics);
        let mut request = Hot::new(5).request;
        request.path = format!("/r{}/below", count - 1);
        Self { routes: routes.unwrap(), request }
    }

    #[must_use]
    pub fn find(&self) -> bool {
        self.routes.find(&self.request).is_some()
    }
}
