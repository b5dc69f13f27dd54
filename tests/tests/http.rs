//! HTTP as it should be spoken: what passes through, whole and unchanged, and which route it takes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use http::Request;
use palisade_tests::{Client, Proxy, Raw, Upstream, fake, get, place};

/// A proxy and the upstream behind it.
async fn app() -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    (Proxy::in_front_of(upstream.address(), "", "").await, upstream)
}

#[tokio::test]
async fn http1_keeps_connections_on_both_sides() {
    let (proxy, upstream) = app().await;
    let mut client = Client::http1(proxy.address()).await;
    for n in 0..20 {
        assert_eq!(client.get(&format!("/{n}"), &[]).await.status, 200);
    }
    let request = Request::post("/echo").body(Bytes::from(vec![b'x'; 3 << 20])).unwrap();
    let reply = client.send(request).await;
    assert_eq!((reply.status, reply.body.len()), (200, 3 << 20));
    assert_eq!(upstream.count(), 21);
    // A connection whose last response has just ended may not be back yet.
    assert!(upstream.connections() <= 3, "{}", upstream.connections());
}

#[tokio::test]
async fn a_response_keeps_its_length_whatever_plugins_own() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, owns: [X-Echo], timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    for (version, fields) in [("1.1", ""), ("1.0", "Connection: keep-alive\r\n")] {
        let mut raw = Raw::connect(proxy.address()).await;
        for _ in 0..2 {
            raw.send(format!("GET /bytes/100000 HTTP/{version}\r\nHost: a\r\nUser: admin\r\n{fields}\r\n")).await;
            let reply = raw.reply().await.unwrap();
            let framing = [reply.header("content-length"), reply.header("transfer-encoding")];
            assert_eq!((reply.status, framing), (200, ["100000".into(), String::new()]), "{version}");
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (proxy, upstream) = app().await;
    let mut raw = Raw::connect(proxy.address()).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\ntwo";
    raw.send(format!("{}{post}{}{}", get("/one"), get("/a%2fb"), get("/four"))).await;
    let mut replies = Vec::new();
    for _ in 0..4 {
        replies.push(raw.reply().await.unwrap());
    }
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 200, 400, 200], "{replies:?}");
    assert_eq!(replies[1].text(), "two");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_go_on() {
    let (proxy, upstream) = app().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 100);
    raw.send("body").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "body"));
    assert!(upstream.last().values("expect").is_empty());
}

#[tokio::test]
async fn http10_is_served() {
    let (proxy, upstream) = app().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /old HTTP/1.0\r\n\r\n").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"));
    assert!(raw.reply().await.is_none(), "the connection went on");
    // Somebody has to be asked for, so the upstream is named by its own address.
    assert_eq!(upstream.last().authority, upstream.address().to_string());
    // But the client named nobody.
    assert!(upstream.last().values("x-forwarded-host").is_empty(), "{:?}", upstream.last());
}

#[tokio::test]
async fn http2_is_served_to_those_who_begin_with_it() {
    let (proxy, upstream) = app().await;
    let mut client = Client::http2(proxy.address()).await;
    let mut streams: Vec<_> = (0..50)
        .map(|n| {
            let mut stream = client.stream(get(&format!("/{n}"), &[("cookie", "a=1"), ("cookie", "b=2")]).map(drop));
            stream.end();
            stream
        })
        .collect();
    for stream in streams.drain(..) {
        let reply = stream.finish().await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"));
    }
    assert_eq!(upstream.count(), 50);
    assert_eq!(upstream.last().values("cookie"), [b"a=1; b=2"]);
    let refused = client.get("/a%2fb", &[]).await;
    refused.assert_failed(400, "bad_path");
}

#[tokio::test]
async fn unix_sockets_on_both_sides() {
    let dir = place();
    let (web, app) = (dir.path().join("web.sock"), dir.path().join("app.sock"));
    let upstream = Upstream::unix("app", &app);
    let yaml = format!(
        "listeners: [{{name: web, address: 'unix:{}'}}]
routes: [{{upstream: 'unix:{}'}}]
",
        web.display(),
        app.display()
    );
    let _proxy = Proxy::start(&yaml).await;
    let mut client = Client::http1_unix(&web).await;
    let reply = client.get("/x", &[("host", "a.example")]).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"));
    assert_eq!(upstream.last().authority, "a.example");
    assert!(upstream.last().values("x-forwarded-for").is_empty());
}

#[tokio::test]
async fn http2_upstreams_are_spoken_to_in_http2() {
    let upstream = Upstream::http2("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), ", protocol: http2", "").await;
    for n in 0..5 {
        let reply = proxy.get(&format!("/{n}?x"), &[("host", "a.example"), ("connection", "close")]).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"));
    }
    assert_eq!(upstream.connections(), 1);
    let seen = upstream.last();
    assert_eq!((seen.authority.as_str(), seen.target.as_str()), ("a.example", "/4?x"));
    let mut client = Client::http1(proxy.address()).await;
    let reply = client.send(Request::post("/echo").body(Bytes::from(vec![b'x'; 1 << 20])).unwrap()).await;
    assert_eq!((reply.status, reply.body.len()), (200, 1 << 20));
}

#[tokio::test]
async fn grpc_streams_both_ways_at_the_same_time() {
    let upstream = Upstream::http2("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, requests: {{trailers: [grpc-status]}}}}]
routes: [{{upstream: app}}]
upstreams: {{app: {{endpoints: ['{}'], protocol: http2}}}}
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::http2(proxy.address()).await;
    let request = Request::post("/echo").header("content-type", "application/grpc").header("te", "trailers");
    let mut stream = client.stream(request.body(()).unwrap());
    for n in 0..20 {
        let message = format!("message {n}");
        stream.send(message.clone()).await;
        // The answer to each is there before the next one is sent.
        let frame = stream.frame().await.unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    assert_eq!(stream.head().await.headers()["content-type"], "application/grpc");
    stream.send_trailers(&[("grpc-status", "0")]).await;
    let trailers = stream.frame().await.unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(stream.frame().await.is_none());
    assert_eq!(upstream.last().header("te"), "trailers");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    for protocol in ["http1", "http2"] {
        let upstream = if protocol == "http1" { Upstream::http1("app").await } else { Upstream::http2("app").await };
        let yaml = format!(
            "listeners: [{{name: web, address: 127.0.0.1:0, requests: {{trailers: [x-sum]}}}}]
routes: [{{upstream: app}}]
upstreams: {{app: {{endpoints: ['{}'], protocol: {protocol}}}}}
",
            upstream.address()
        );
        let proxy = Proxy::start(&yaml).await;
        for mut client in [Client::http1(proxy.address()).await, Client::http2(proxy.address()).await] {
            let request = Request::post("/trailers").header("te", "trailers").header("trailer", "x-sum");
            let mut stream = client.stream(request.body(()).unwrap());
            stream.send("body").await;
            stream.send_trailers(&[("x-sum", "1")]).await;
            let reply = stream.finish().await;
            assert_eq!((reply.status, reply.text().as_str()), (200, "body"), "{protocol}");
            assert_eq!(reply.trailers.get("x-checksum").map(|value| value.as_bytes()), Some(&b"abc"[..]), "{protocol}");
            let seen = upstream.last();
            assert_eq!(seen.body, "body");
            assert_eq!(seen.trailers.get("x-sum").map(|value| value.as_bytes()), Some(&b"1"[..]), "{protocol}");
        }
    }
}

const UPGRADE: &str = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";

#[tokio::test]
async fn web_sockets_pass_through() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /ws HTTP/1.1\r\n{UPGRADE}")).await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("upgrade").as_str()), (101, "websocket"), "{reply:?}");
    for message in ["hello", "\x00\x01\x02", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n"] {
        raw.send(message).await;
        assert_eq!(raw.exactly(message.len()).await, message.as_bytes());
    }
    raw.close_write().await;
    assert!(raw.rest().await.is_empty());
    assert_eq!(upstream.last().header("sec-websocket-key"), "x");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn upgrades_that_a_route_does_not_allow_are_taken_out() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /ws HTTP/1.1\r\n{UPGRADE}")).await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "not an upgrade"), "{reply:?}");
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    for headers in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Upgrade: websocket",
    ] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("GET /ws HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n")).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "not an upgrade"), "{reply:?}");
        let seen = upstream.last();
        assert!(seen.values("upgrade").is_empty() && seen.values("http2-settings").is_empty(), "{seen:?}");
    }
}

/// The switch would have to wait for the body's end.
#[tokio::test]
async fn with_a_body_nothing_is_switched() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    for (framing, status) in [
        ("Content-Length: 5\r\n\r\nhello", 200),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200),
        ("Content-Length: 0\r\n\r\n", 101),
    ] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("POST /ws HTTP/1.1\r\n{}\r\n{framing}", UPGRADE.trim_end())).await;
        assert_eq!(raw.reply_head().await.unwrap().status, status, "{framing}");
        assert_eq!(upstream.last().values("upgrade").is_empty(), status == 200, "{framing}");
    }
}

#[tokio::test]
async fn the_first_route_that_matches_wins() {
    let upstream = Upstream::http1("app").await;
    let check = |value: &str| format!("filters: [{{header: {{name: X-Never, value: x, status: {value}}}}}]");
    // Each route answers with a status of its own.
    let yaml = format!(
        r#"listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{host: api.example, path: {{exact: /v1}}, {}, upstream: app}}
  - {{host: api.example, path: {{regex: "/v[0-9]+"}}, {}, upstream: app}}
  - {{host: "*.example", methods: [POST, PUT], {}, upstream: app}}
  - {{host: "*.example", headers: {{x-version: "2"}}, {}, upstream: app}}
  - {{host: "*.example", headers: {{x-debug: {{present: true}}, x-kind: {{prefix: big}}}}, {}, upstream: app}}
  - {{path: /a/b, {}, upstream: app}}
  - {{hosts: [one.test, two.test], {}, upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
"#,
        check("441"),
        check("442"),
        check("443"),
        check("444"),
        check("445"),
        check("446"),
        check("447"),
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], u16);
    let cases: &[Case<'_>] = &[
        ("GET", "api.example", "/v1", &[], 441),
        ("GET", "API.example:80", "/v1?x", &[], 441),
        ("GET", "api.example.", "/v1", &[], 441),
        ("GET", "api.example", "/v22", &[], 442),
        ("GET", "api.example", "/v22/x", &[], 404),
        ("POST", "api.example", "/", &[], 443),
        ("PUT", "x.example", "/", &[], 443),
        ("PUT", "example", "/", &[], 404),
        ("GET", "x.example", "/", &[("x-version", "2")], 444),
        ("GET", "x.example", "/", &[("x-version", "3"), ("x-version", "2")], 444),
        ("GET", "x.example", "/", &[("x-version", "22")], 404),
        ("GET", "x.example", "/", &[("x-debug", ""), ("x-kind", "bigger")], 445),
        ("GET", "x.example", "/", &[("x-debug", "")], 404),
        ("GET", "other", "/a/b", &[], 446),
        ("GET", "other", "/a/b/c", &[], 446),
        ("GET", "other", "/a/b/", &[], 446),
        ("GET", "other", "/a/bc", &[], 404),
        ("GET", "two.test", "/", &[], 447),
        ("GET", "three.test", "/", &[], 404),
    ];
    for (method, host, path, headers, status) in cases {
        let mut request = Request::builder().method(*method).uri(*path).header("host", *host);
        for (name, value) in *headers {
            request = request.header(*name, *value);
        }
        let mut client = Client::http1(proxy.address()).await;
        let reply = client.send(request.body(Bytes::new()).unwrap()).await;
        assert_eq!(reply.status, *status, "{method} {host} {path} {headers:?}: {reply:?}");
        if reply.status == 404 {
            reply.assert_failed(404, "no_route");
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn large_bodies_flow_through_and_are_not_collected() {
    const SIZE: usize = 128 << 20;
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    let before = palisade_tests::process::memory(proxy.pid());
    let mut client = Client::http2(proxy.address()).await;
    let mut stream = client.stream(Request::post("/echo").body(()).unwrap());
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let (mut sent, mut received) = (0, 0);
    stream.send(piece.clone()).await;
    sent += piece.len();
    while received < SIZE {
        let frame = stream.frame().await.unwrap().into_data().unwrap();
        received += frame.len();
        while sent < SIZE && sent < received + (4 << 20) {
            stream.send(piece.clone()).await;
            sent += piece.len();
        }
    }
    stream.end();
    while let Some(frame) = stream.frame().await {
        assert!(frame.into_data().unwrap().is_empty());
    }
    let grown = palisade_tests::process::memory(proxy.pid()).saturating_sub(before);
    assert!(grown < SIZE as u64 / 4, "{grown} bytes more");
}
