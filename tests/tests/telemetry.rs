//! What operators see: the metrics and the log of requests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use palisade_tests::{ADMIN, Client, Options, Proxy, Raw, Scripted, Upstream, fake, get, place, read_head, soon};
use tokio::io::AsyncWriteExt;

const WEB: [(&str, &str); 1] = [("listener", "web")];

const CUT: &str = "palisade_responses_cut_total";

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_counted() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{name: judged, path: /judged, filters: [auth], upstream: app}}
  - {{name: plain, upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
plugins: {{auth: {{command: {}, timeout: 1h}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    let mut proxy = Proxy::start(&yaml).await;
    let left = [("listener", "web"), ("status", "499"), ("reason", "client_left")];
    let requests = "palisade_requests_total";
    // While the upstream is asked, and while the plugin is.
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.until_asked(1).await;
    drop(raw);
    proxy.until_metric(requests, &left, 1).await;

    let mut client = Client::http2(proxy.address()).await;
    let mut stream = client.stream(get("/hang", &[]).map(drop));
    stream.end();
    upstream.until_asked(2).await;
    drop(stream);
    // One stream is left, not the connection.
    assert_eq!(client.get("/", &[]).await.status, 200);
    drop(client);
    proxy.until_metric(requests, &left, 2).await;

    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /judged HTTP/1.1\r\nHost: a\r\nUser: admin\r\nX-Fake: hang\r\n\r\n").await;
    proxy.wait_for_log("the plugin's call", |line| line.contains("asked to hang")).await;
    drop(raw);
    proxy.until_metric(requests, &left, 3).await;
    // Whoever waits is not counted so.
    assert_eq!(proxy.get("/judged", &[ADMIN]).await.status, 200);
    proxy.until_metric(requests, &[("route", "judged"), ("status", "200"), ("reason", "")], 1).await;
    assert_eq!(proxy.metric(requests, &left).await, 3);
}

#[tokio::test]
async fn a_response_that_breaks_off_is_counted() {
    let upstream = Scripted::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    assert_eq!(proxy.metric(CUT, &WEB).await, 0);
    for (n, mut client) in [(1, Client::http1(proxy.address()).await), (2, Client::http2(proxy.address()).await)] {
        assert!(soon("the end", client.try_send(get("/", &[]))).await.is_err());
        proxy.until_metric(CUT, &WEB, n).await;
    }
}

#[tokio::test]
async fn whole_responses_are_not_counted_as_cut() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    for mut client in [Client::http1(proxy.address()).await, Client::http2(proxy.address()).await] {
        for path in ["/", "/bytes/100000", "/trailers", "/bytes/0"] {
            assert_eq!(client.get(path, &[]).await.status, 200);
        }
    }
    proxy.until_metric("palisade_connections", &WEB, 0).await;
    assert_eq!(proxy.metric(CUT, &WEB).await, 0);
}

#[tokio::test]
async fn a_denial_in_the_log_names_the_plugin() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [first, second], upstream: 'http://{}'}}]
plugins:
  first: {{command: {command}, timeout: 10s}}
  second: {{command: {command}, timeout: 10s}}
",
        upstream.address(),
        command = fake(&["serve"])
    );
    let mut options = Options::default();
    options.env.push(("PALISADE_LOG".into(), "info,palisade::access=debug".into()));
    let mut proxy = Proxy::start_with(Arc::new(place()), &yaml, &options).await;
    assert_eq!(proxy.get("/fine", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.get("/denied", &[]).await.status, 403);
    let line = proxy.wait_for_log("the denial", |line| line.contains("denied_by")).await;
    assert!(line.contains("palisade::access") && line.contains("/denied"), "{line}");
    let named = |line: &str| line.contains(r#"denied_by="first""#) || line.contains("denied_by=first");
    assert!(named(&line), "{line}");
    let lines = proxy.log();
    assert_eq!(lines.lines().filter(|line| line.contains("denied_by")).count(), 1, "{lines}");
}
