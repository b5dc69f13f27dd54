//! What filters see, decide and change.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use palisade_tests::process::peak_memory;
use palisade_tests::{ADMIN, Client, Proxy, Raw, Refusing, Scripted, Seen, Upstream, fake, get};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A proxy with the fake as the filter `auth` of its only route.
async fn start(actions: &[&str], plugin: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{name: all, filters: [auth], upstream: 'http://{}', metadata: {{team: a}}}}]
plugins: {{auth: {{command: {}{plugin}}}}}
",
        upstream.address(),
        fake(actions)
    );
    (Proxy::start(&yaml).await, upstream)
}

/// What the plugin said that it saw.
fn report(seen: &Seen) -> Value {
    serde_json::from_str(&seen.header("x-seen")).unwrap_or_else(|_| panic!("{seen:?}"))
}

/// The values of one header in a report, as hexadecimal digits.
fn reported(report: &Value, name: &str) -> Vec<String> {
    let fields = report["headers"].as_array().unwrap();
    let values = fields.iter().filter(|field| field[0] == name);
    values.map(|field| field[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_plugin_denies_with_403_and_lets_pass_with_200() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let denied = proxy.get("/secret", &[("authorization", "Bearer s3cret")]).await;
    assert_eq!((denied.status, denied.text().as_str()), (403, "fake: denied"), "{denied:?}");
    assert_eq!(denied.reason(), "", "a verdict is no failure");
    assert!(!format!("{denied:?}").contains("s3cret"), "{denied:?}");
    assert!(!proxy.log().contains("s3cret"), "{}", proxy.log());
    assert_eq!(upstream.count(), 0);
    let allowed = proxy.get("/secret", &[ADMIN]).await;
    assert_eq!((allowed.status, allowed.text().as_str()), (200, "hello from app"), "{allowed:?}");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn header_bytes_reach_plugin_and_upstream_unchanged() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(b"GET / HTTP/1.1\r\nHost: a.example\r\nUser: admin\r\nX-Fake: report\r\n").await;
    raw.send(b"X-Latin: caf\xe9\xff\r\nX-Twice: one\r\nX-Empty:\r\nX-Twice: \r\nX-TWICE: three\tfour\r\n\r\n").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = upstream.last();
    assert_eq!(seen.values("x-latin"), [b"caf\xe9\xff"]);
    assert_eq!(seen.values("x-twice"), [&b"one"[..], b"", b"three\tfour"]);
    assert_eq!(seen.values("x-empty"), [b""]);
    let report = report(&seen);
    assert_eq!(reported(&report, "x-latin"), ["636166e9ff"]);
    assert_eq!(reported(&report, "x-twice"), ["6f6e65", "", "746872656509666f7572"]);
    assert_eq!(reported(&report, "x-empty"), [""]);
}

#[tokio::test]
async fn a_plugin_sees_the_whole_request_line_and_where_it_came_from() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s, config: {n: 3, list: [a, {b: true}], none: ~}").await;
    let mut client = Client::http2(proxy.address()).await;
    let headers = [ADMIN, ("x-fake", "report"), ("host", "A.Example:81"), ("traceparent", "00-abc-def-01")];
    assert_eq!(client.get("/a/b?x=%20&y", &headers).await.status, 200);
    let report = report(&upstream.last());
    assert_eq!(report["method"], "GET");
    assert_eq!(report["scheme"], "http");
    assert_eq!(report["authority"], "a.example:81");
    assert_eq!(report["path"], "/a/b");
    assert_eq!(report["query"], "x=%20&y");
    assert_eq!(report["protocol"], "HTTP/2.0");
    assert_eq!(report["peer"][0], "127.0.0.1");
    assert_eq!(report["local"], json!(["127.0.0.1", proxy.address().port()]));
    assert_eq!(report["tls"], Value::Null);
    assert_eq!(report["listener"], "web");
    assert_eq!(report["route"], json!(["all", {"team": "a"}]));
    assert_eq!(report["body"], Value::Null, "it asked for no body");
    assert_eq!(report["config"], json!({"n": 3, "list": ["a", {"b": true}], "none": null}));
    assert!(reported(&report, "host").is_empty(), "{report:#}");
    assert_eq!(reported(&report, "traceparent").len(), 1);
}

#[tokio::test]
async fn changes_are_applied_in_their_order() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let mut client = Client::http1(proxy.address()).await;
    let headers = [
        ("x-fake", "mutate"),
        ("x-set", "old"),
        ("x-set", "older"),
        ("x-append", "first"),
        ("x-remove", "1"),
        ("x-remove", "2"),
    ];
    let reply = client.get("/", &headers).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = upstream.last();
    assert_eq!(seen.values("x-set"), [b"new"]);
    assert_eq!(seen.values("x-append"), [&b"first"[..], b"last"]);
    assert!(seen.values("x-remove").is_empty());
    assert_eq!(seen.values("x-bytes"), [b"a\xff"]);
    assert_eq!(reply.header("x-upstream"), "hidden");
    assert_eq!(reply.header("x-added"), "1");
}

#[tokio::test]
async fn what_a_filter_sets_a_client_can_t_take_away() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nHost: a\r\nX-Fake: mutate\r\nConnection: x-set, x-forwarded-for, x-request-id\r\n\r\n")
        .await;
    assert_eq!(raw.reply().await.unwrap().status, 200);
    let seen = upstream.last();
    assert_eq!(seen.values("x-set"), [b"new"]);
    assert_eq!(seen.values("x-forwarded-for"), [b"127.0.0.1"]);
    assert_eq!(seen.values("x-request-id").len(), 1);
}

#[tokio::test]
async fn a_plugin_s_reply_goes_to_the_client_as_it_is() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let reply = proxy.get("/", &[ADMIN, ("x-fake", "teapot"), ("x-mine", "secret")]).await;
    assert_eq!((reply.status, reply.text().as_str()), (418, "short and stout"), "{reply:?}");
    assert_eq!(reply.header("content-type"), "text/x-fake");
    assert_eq!(reply.headers.get_all("x-fake-verdict").iter().collect::<Vec<_>>(), ["first", "second"]);
    assert_eq!(reply.headers["x-bytes"].as_bytes(), b"a\xff");
    assert_eq!(reply.reason(), "");
    assert!(!format!("{reply:?}").contains("secret"), "{reply:?}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn every_request_gets_its_own_verdict() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 20s").await;
    let mut client = Client::http2(proxy.address()).await;
    let (mut kept, mut given_up) = (Vec::new(), Vec::new());
    for n in 0..90 {
        let (id, pause) = (format!("id-{n}"), format!("sleep-{}", n * 7 % 40));
        let headers = [ADMIN, ("x-id", &id), ("x-fake", &pause)];
        let mut stream = client.stream(get("/", &headers).map(drop));
        stream.end();
        if n % 3 == 0 { given_up.push(stream) } else { kept.push(stream) }
    }
    let mut kept = kept.into_iter();
    let first = kept.next().unwrap().finish().await;
    assert_eq!(first.status, 200, "{first:?}");
    // By now all of them are under way. Streams that are reset before they are looked at end the connection.
    drop(given_up);
    for stream in kept {
        let reply = stream.finish().await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert!(upstream.count() >= 60);
    for seen in upstream.seen() {
        assert_eq!(seen.header("x-id"), seen.header("x-echo"));
    }
}

/// What is read around each of its pieces is not kept with it.
#[tokio::test]
async fn a_body_that_is_held_takes_no_more_memory_for_coming_in_small_pieces() {
    const PIECES: usize = 300_000;
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [{{plugin: auth, max_body: 1MiB, timeout: 10s}}], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}}}}}
",
        upstream.address(),
        fake(&["needs:body", "serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    let before = peak_memory(proxy.pid());
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /a HTTP/1.1\r\nHost: a\r\nUser: admin\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..PIECES / 1000 {
        raw.send("1\r\nx\r\n".repeat(1000)).await;
    }
    raw.send("0\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 200);
    assert_eq!(upstream.last().body.len(), PIECES);
    let more = peak_memory(proxy.pid()) - before;
    assert!(more < 6 << 20, "{more} bytes more for a body of {PIECES}");
}

#[tokio::test]
async fn a_body_is_judged_whole_and_forwarded_whole() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, requests: {{trailers: [x-after]}}}}]
routes: [{{filters: [{{plugin: auth, max_body: 1KiB, on_failure: allow}}], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["needs:body", "serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::http1(proxy.address()).await;
    let post = |path: &str| {
        let request = Request::post(path).header("user", "admin").header("x-fake", "report");
        request.header("trailer", "x-after").body(()).unwrap()
    };

    let mut stream = client.stream(post("/a"));
    stream.send("one ").await;
    stream.send("two").await;
    stream.send_trailers(&[("x-after", "1")]).await;
    assert_eq!(stream.finish().await.status, 200);
    let seen = upstream.last();
    assert_eq!(seen.body, "one two");
    assert_eq!(seen.trailers["x-after"], "1");
    assert_eq!(report(&seen)["body"], "6f6e652074776f");

    let empty = client.get("/a", &[ADMIN, ("x-fake", "report")]).await;
    assert_eq!(empty.status, 200, "{empty:?}");
    assert_eq!(report(&upstream.last())["body"], "");

    // Exactly at the limit, then over it: by its length, and by what comes.
    let full = Request::post("/a").header("user", "admin").body(Bytes::from(vec![b'x'; 1024])).unwrap();
    assert_eq!(client.send(full).await.status, 200);
    assert_eq!(upstream.last().body.len(), 1024);
    let count = upstream.count();
    let over = Request::post("/a").header("user", "admin").body(Bytes::from(vec![b'x'; 1025])).unwrap();
    Client::http1(proxy.address()).await.send(over).await.assert_failed(413, "body_too_large");
    let mut client = Client::http1(proxy.address()).await;
    let mut stream = client.stream(post("/a"));
    stream.send(vec![b'x'; 800]).await;
    stream.send(vec![b'x'; 800]).await;
    stream.finish().await.assert_failed(413, "body_too_large");
    assert_eq!(upstream.count(), count);
}

#[tokio::test]
async fn a_denied_request_is_answered_while_its_body_still_comes() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let mut client = Client::http1(proxy.address()).await;
    let mut stream = client.stream(Request::post("/").body(()).unwrap());
    stream.send("some of it").await;
    assert_eq!(stream.head().await.status(), 403);
    assert_eq!(upstream.count(), 0);
    // What comes behind is never read as another request.
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 403);
    raw.send("GET /smuggled HTTP/1.1\r\nHost: a\r\nUser: admin\r\nX-Rest: 12\r\n\r\n").await;
    raw.close_write().await;
    raw.rest().await;
    assert_eq!(upstream.count(), 0);
}

/// Clients that are not told would send their next request into a connection that is about to end.
#[tokio::test]
async fn a_refused_body_keeps_the_connection_or_ends_it_by_its_answer() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let mut raw = Raw::connect(proxy.address()).await;
    for (length, framing) in
        [(10, "Content-Length: 10"), (50_000, "Content-Length: 50000"), (3, "Transfer-Encoding: chunked")]
    {
        let body = if length == 3 { "3\r\nabc\r\n0\r\n\r\n".to_owned() } else { "x".repeat(length) };
        raw.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.header("connection").as_str()), (403, ""), "{framing}");
        raw.send("GET / HTTP/1.1\r\nHost: a\r\nUser: admin\r\n\r\n").await;
        assert_eq!(raw.reply().await.unwrap().status, 200, "{framing}");
    }
    // What is not there yet is not waited for, nor asked for.
    for head in ["Content-Length: 10", "Content-Length: 10\r\nExpect: 100-continue", "Transfer-Encoding: chunked"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n")).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.header("connection").as_str()), (403, "close"), "{head}");
        raw.close_write().await;
        assert!(raw.rest().await.is_empty(), "{head}");
    }
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn filters_of_a_listener_come_before_routing() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, filters: [auth]}}]
routes: [{{path: /app, upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(proxy.get("/nowhere", &[]).await.status, 403);
    proxy.get("/nowhere", &[ADMIN]).await.assert_failed(404, "no_route");
    assert_eq!(proxy.get("/app", &[ADMIN, ("x-fake", "report")]).await.status, 200);
    assert_eq!(report(&upstream.last())["route"], Value::Null);
}

#[tokio::test]
async fn filters_run_in_their_order_and_responses_in_reverse() {
    let upstream = Upstream::http1("app").await;
    let command = fake(&["needs:response", "serve"]);
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, filters: [first]}}]
routes: [{{filters: [second, third], upstream: 'http://{}'}}]
plugins:
  third: {{command: {command}, timeout: 10s, config: {{mark: third}}}}
  first: {{command: {command}, timeout: 10s, config: {{mark: first}}}}
  second: {{command: {command}, timeout: 10s, config: {{mark: second}}}}
",
        upstream.address(),
    );
    let proxy = Proxy::start(&yaml).await;
    let reply = proxy.get("/", &[ADMIN]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(upstream.last().values("x-order"), [&b"first"[..], b"second", b"third"]);
    let order: Vec<_> = reply.headers.get_all("x-response-order").iter().collect();
    assert_eq!(order, ["third", "second", "first"]);
}

#[tokio::test]
async fn what_one_filter_refuses_the_next_is_not_asked_about() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [{{header: {{name: User, value: admin}}}}, auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    let pid = proxy.plugin_pid("auth").await;
    proxy.get("/", &[("x-fake", "crash")]).await.assert_failed(403, "header_check");
    assert_eq!(proxy.plugin_pid("auth").await, pid);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn the_header_check_compares_whole_values() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /many, filters: [{{header: {{name: X-Key, values: [a, b], status: 401}}}}], upstream: app}}
  - {{filters: [{{header: {{name: User, value: admin}}}}], upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    for headers in [&[][..], &[("user", "Admin")], &[("user", "admin2")], &[("user", "")], &[("x-user", "admin")]] {
        proxy.get("/", headers).await.assert_failed(403, "header_check");
    }
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.get("/", &[ADMIN, ADMIN]).await.status, 200);
    // Which of several fields an upstream goes by, nobody knows.
    proxy.get("/", &[("user", "guest"), ADMIN]).await.assert_failed(403, "header_check");
    proxy.get("/", &[ADMIN, ("user", "guest")]).await.assert_failed(403, "header_check");
    for headers in [&[("x-key", "c")][..], &[("x-key", "a"), ("x-key", "c")]] {
        proxy.get("/many", headers).await.assert_failed(401, "header_check");
    }
    assert_eq!(proxy.get("/many", &[("x-key", "b")]).await.status, 200);
    assert_eq!(proxy.get("/many", &[("x-key", "b"), ("x-key", "a")]).await.status, 200);
}

#[tokio::test]
async fn a_client_says_nothing_about_itself_that_filters_or_upstreams_believe() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let claims = [
        ADMIN,
        ("x-fake", "report"),
        ("host", "a.example"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-for", "5.6.7.8"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
        ("x-real-ip", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("x-request-id", "chosen"),
    ];
    let reply = proxy.get("/", &claims).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = upstream.last();
    assert_eq!(seen.values("x-forwarded-for"), [b"127.0.0.1"]);
    assert_eq!(seen.values("x-forwarded-proto"), [b"http"]);
    assert_eq!(seen.values("x-forwarded-host"), [b"a.example"]);
    assert!(seen.values("x-real-ip").is_empty() && seen.values("forwarded").is_empty());
    let id = seen.header("x-request-id");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let report = report(&seen);
    assert_eq!(reported(&report, "x-forwarded-for"), ["3132372e302e302e31"]);
    assert!(reported(&report, "x-real-ip").is_empty());
    assert_eq!(reported(&report, "x-request-id").len(), 1);

    assert_ne!(proxy.get("/", &claims).await.status, 0);
    assert_ne!(upstream.last().header("x-request-id"), id, "each request has its own");
}

#[tokio::test]
async fn what_a_plugin_owns_comes_from_no_client_and_no_upstream() {
    let upstream = Scripted::start(|mut stream, _| async move {
        let mut request = Vec::new();
        while !request.windows(5).any(|window| window == b"0\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.is_ok_and(|count| count > 0));
        }
        // What the upstream got goes back as the body.
        let answer = format!(
            "HTTP/1.1 200 OK\r\nX-Echo: upstream\r\nX-Other: 1\r\nTrailer: x-echo, x-checksum\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\nX-Echo: upstream\r\nX-Checksum: abc\r\n\r\n",
            request.len(),
            String::from_utf8_lossy(&request),
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _end = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, requests: {{trailers: [x-echo]}}}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, owns: [X-Echo], timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    for mut client in [Client::http1(proxy.address()).await, Client::http2(proxy.address()).await] {
        let request = Request::post("/").header(ADMIN.0, ADMIN.1).header("x-echo", "client").header("x-id", "plugin");
        let mut stream = client.stream(request.header("trailer", "x-echo").header("te", "trailers").body(()).unwrap());
        stream.send("body").await;
        stream.send_trailers(&[("x-echo", "client")]).await;
        let reply = stream.finish().await;
        assert_eq!(reply.status, 200);
        let got = reply.text().to_lowercase();
        assert!(got.contains("x-echo: plugin\r\n") && !got.contains("x-echo: client"), "{got}");
        assert_eq!((reply.header("x-echo").as_str(), reply.header("x-other").as_str()), ("", "1"), "{reply:?}");
        let trailers: Vec<_> = reply.trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(trailers, ["x-checksum"]);
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "trusted_proxies: [127.0.0.0/8]
listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{upstream: 'http://{}'}}]
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let claims = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-request-id", "chosen")];
    assert_eq!(proxy.get("/", &claims).await.status, 200);
    let seen = upstream.last();
    assert_eq!(seen.header("x-forwarded-for"), "1.2.3.4, 127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "https");
    assert_eq!(seen.header("x-request-id"), "chosen");
}

#[tokio::test]
async fn the_path_that_was_judged_is_the_path_that_is_forwarded() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    for (sent, expected) in [
        ("/admin", "/admin"),
        ("//admin", "/admin"),
        ("/./admin", "/admin"),
        ("/a/../admin", "/admin"),
        ("/a/%2e%2e/admin", "/admin"),
        ("/%61dmin", "/admin"),
        ("/caf%c3%a9?q=%2F", "/caf%C3%A9?q=%2F"),
        ("/a?", "/a?"),
        ("/a/?x=/../y", "/a/?x=/../y"),
        ("http://h.example/a//b", "/a/b"),
        ("http://h.example", "/"),
    ] {
        let mut raw = Raw::connect(proxy.address()).await;
        let head = format!("GET {sent} HTTP/1.1\r\nHost: h.example\r\nUser: admin\r\nX-Fake: report\r\n\r\n");
        raw.send(head).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!(reply.status, 200, "{sent}: {reply:?}");
        let seen = upstream.last();
        assert_eq!(seen.target, expected, "{sent}");
        let report = report(&seen);
        let judged = match report["query"].as_str() {
            Some(query) => format!("{}?{query}", report["path"].as_str().unwrap()),
            None => report["path"].as_str().unwrap().to_owned(),
        };
        assert_eq!(judged, expected, "{sent}");
        assert_eq!(seen.authority, "h.example");
    }
}

/// A guarded path, an open one, and every way to spell the first that anybody knows.
#[tokio::test]
async fn no_spelling_of_a_guarded_path_gets_past_its_filter() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /admin, filters: [auth], upstream: app}}
  - {{upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    for path in [
        "/admin",
        "/admin/",
        "//admin",
        "///admin//x",
        "/./admin",
        "/a/../admin",
        "/a/b/../../admin",
        "/a/%2e%2e/admin",
        "/a/.%2E/admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/a%2f..%2fadmin",
        "/%2fadmin",
        "/..%2fadmin",
        "/a/..;x/admin",
        "/a/..;/admin",
        "/admin%00",
        "/admin%2f",
        "/admin%5c",
        "\\admin",
        "/\\admin",
        "/a\\..\\admin",
        "/admin?",
        "/admin?x",
        "/admin#x",
        "http://h/admin",
        "http://h//admin",
        "http://h/a/../admin",
        "/%c0%ae%c0%ae/admin",
        "/a/../../admin",
        "admin",
        "*",
        "/admin\t",
        "/%2561dmin",
    ] {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send(format!("GET {path} {version}\r\nHost: h\r\n\r\n")).await;
            let reply = raw.reply().await;
            let status = reply.as_ref().map_or(0, |reply| reply.status);
            let double_encoded = path == "/%2561dmin";
            assert!(matches!(status, 400 | 403) || double_encoded, "{path:?} {version}: {reply:?}");
        }
    }
    for seen in upstream.seen() {
        // A server that decodes twice is beyond help; this one must at least get what was sent.
        assert_eq!(seen.target, "/%2561dmin");
    }
}

#[tokio::test]
async fn a_filter_judges_responses_too() {
    let (proxy, upstream) = start(&["needs:response", "serve"], ", timeout: 1s").await;
    let reply = proxy.get("/", &[ADMIN]).await;
    assert_eq!((reply.status, reply.header("x-fake-response").as_str()), (200, "200"), "{reply:?}");
    assert_eq!(reply.text(), "hello from app");
    let removed = proxy.get("/response-remove", &[ADMIN]).await;
    assert_eq!((removed.status, removed.header("x-upstream").as_str()), (200, ""), "{removed:?}");
    let replaced = proxy.get("/response-replace", &[ADMIN]).await;
    assert_eq!((replaced.status, replaced.text().as_str()), (418, "replaced"), "{replaced:?}");
    for path in ["/response-empty", "/response-crlf"] {
        proxy.get(path, &[ADMIN]).await.assert_failed(503, "plugin_invalid");
    }
    let hung = proxy.get("/response-hang", &[ADMIN]).await;
    hung.assert_failed(504, "plugin_timeout");
    let asked = upstream.count();
    let crashed = proxy.get("/response-crash", &[ADMIN]).await;
    assert!(matches!(crashed.status, 503 | 504), "{crashed:?}");
    assert!(!crashed.text().contains("hello"), "a response that nobody judged: {crashed:?}");
    assert_eq!(upstream.count(), asked + 1, "the upstream was asked again");
}

#[tokio::test]
async fn replies_of_the_proxy_itself_pass_the_response_phase() {
    let refusing = Refusing::new();
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        refusing.address(),
        fake(&["needs:response", "serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    let reply = proxy.get("/", &[ADMIN]).await;
    reply.assert_failed(503, "upstream_connect");
    assert_eq!(reply.header("x-fake-response"), "503", "{reply:?}");
}

#[tokio::test]
async fn mosn_s_contract_works_as_mosn_s_samples_speak_it() {
    let (proxy, upstream) = start(&["serve-mosn"], ", contract: mosn, timeout: 10s, stop_timeout: 300ms").await;
    let denied = proxy.get("/", &[]).await;
    assert_eq!((denied.status, denied.reason().as_str()), (403, ""), "{denied:?}");
    assert_eq!(upstream.count(), 0);
    let allowed = proxy.get("/", &[ADMIN, ("x-list", "a"), ("x-list", "b")]).await;
    assert_eq!(allowed.status, 200, "{allowed:?}");
    // One value for each name is all that the contract can say, so none is hidden.
    assert_eq!(upstream.last().header("x-mosn-list"), "a, b");
    assert_eq!(upstream.last().header("x-mosn-cookie"), "ON");

    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(b"GET / HTTP/1.1\r\nHost: a\r\nUser: admin\r\nX: \xff\r\n\r\n").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("x-palisade-reason").as_str()), (400, "bad_header"), "{reply:?}");
}

#[tokio::test]
async fn a_client_that_leaves_takes_nothing_down() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 2s").await;
    let pid = proxy.plugin_pid("auth").await;
    for n in 0..50 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\nUser: admin\r\nX-Fake: sleep-200\r\n\r\n").await;
        if n % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(proxy.get("/last", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.plugin_pid("auth").await, pid);
    assert!(upstream.seen().iter().any(|seen| seen.target == "/last"));
}
