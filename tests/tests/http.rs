//! HTTP on both sides: what passes through, what is refused, and what a failing upstream costs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use palisade_tests::{Client, LONG, Proxy, Raw, Scripted, Upstream, get, place, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A proxy with one listener and one upstream, and no plugin.
async fn in_front_of(endpoint: SocketAddr, upstream: &str, route: &str) -> Proxy {
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{upstream: app{route}}}]
upstreams: {{app: {{endpoints: ['{endpoint}']{upstream}}}}}
"
    );
    Proxy::start(&yaml).await
}

async fn start() -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    (in_front_of(upstream.address(), "", "").await, upstream)
}

/// A port that nobody listens on.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn requests_that_two_servers_could_read_in_two_ways_are_refused() {
    let (proxy, upstream) = start().await;
    let with = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n");
    let target = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let cases: Vec<(String, u16, &str)> = vec![
        (with("Host: a\r\nHost: b"), 400, "bad_host"),
        (with("Host: a\r\nHost: a"), 400, "bad_host"),
        (with("Accept: */*"), 400, "bad_host"),
        (with("Host:"), 400, "bad_host"),
        (with("Host: a b"), 400, "bad_host"),
        (with("Host: u@a"), 400, "bad_host"),
        (with("Host: a:99999"), 400, "bad_host"),
        (with("Host: a/b"), 400, "bad_host"),
        (with("Host: a\r\nTransfer-Encoding: gzip, chunked"), 400, "bad_framing"),
        (with("Host: a\r\nTransfer-Encoding: identity"), 400, "malformed"),
        (with("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400, "bad_framing"),
        (with("Host: a\r\nTransfer-Encoding: xchunked"), 400, "malformed"),
        (with("Host: a\r\nTransfer-Encoding:\x0bchunked"), 400, "malformed"),
        (with("Host: a\r\nTransfer-Encoding : chunked"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: 3\r\nContent-Length: 4"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: +1"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: 0x1"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: -1"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: 3, 3"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: 99999999999999999999"), 400, "malformed"),
        (with("Host: a\r\nX: a\r\n folded"), 400, "malformed"),
        (with("Host: a\r\nX: a\0b"), 400, "malformed"),
        (with("Host: a\r\nX Y: b"), 400, "malformed"),
        (with("Host: a\r\n X: b"), 400, "malformed"),
        (with("Host: a\r\nExpect: junk"), 417, "unknown_expectation"),
        (target("/a%2fb"), 400, "bad_path"),
        (target("/a%5cb"), 400, "bad_path"),
        (target("/a%00"), 400, "bad_path"),
        (target("/%zz"), 400, "bad_path"),
        (target("/../a"), 400, "bad_path"),
        (target("/a/..;x/b"), 400, "bad_path"),
        (target("/%c0%ae"), 400, "bad_path"),
        (target("admin"), 400, "bad_path"),
        (target("*"), 400, "bad_path"),
        (target("http://u@a/"), 400, "bad_host"),
        (target(&format!("/{}", "a".repeat(9_000))), 414, "target_too_long"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".into(), 405, "method_refused"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405, "method_refused"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n".into(), 400, "malformed"),
        ("nonsense\r\n\r\n".into(), 400, "malformed"),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400, "malformed"),
        (with(&format!("Host: a\r\nX: {}", "a".repeat(40_000))), 431, "headers_too_large"),
        (with(&format!("Host: a{}", "\r\nX: 1".repeat(101))), 431, "headers_too_large"),
    ];
    let mut wrong = Vec::new();
    for (request, status, reason) in cases {
        let shown = request.escape_debug().to_string().chars().take(200).collect::<String>();
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(&request).await;
        let reply = raw.reply().await.unwrap_or_else(|| panic!("no answer to {shown}"));
        let answer = (reply.status, reply.header("x-palisade-reason"));
        if answer != (status, reason.to_owned()) {
            wrong.push(format!("{shown}: {answer:?} instead of {:?}", (status, reason)));
            continue;
        }
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(body["reason"], reason, "{shown}: {body}");
        assert_eq!(body["request_id"], reply.header("x-request-id"), "{shown}: {reply:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_request_with_two_framings_smuggles_nothing() {
    let (proxy, upstream) = start().await;
    for framing in
        ["Content-Length: 44\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 44"]
    {
        let mut raw = Raw::connect(proxy.address()).await;
        let head = format!("POST /outer HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        raw.send(format!("{head}0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let reply = raw.reply().await.unwrap();
        // Refused; or read by the chunks alone, as RFC 9112 section 6.3 allows, and then the connection ends.
        if reply.status == 200 {
            let seen = upstream.last();
            assert!(seen.values("content-length").is_empty() && seen.body.is_empty(), "{seen:?}");
            assert!(raw.reply().await.is_none(), "{framing}: the connection went on");
        } else {
            assert_eq!(reply.status, 400, "{framing}: {reply:?}");
        }
        assert!(upstream.seen().iter().all(|seen| !seen.target.contains("smuggled")), "{framing}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_never_becomes_a_whole_request() {
    let (proxy, upstream) = start().await;
    for (body, close) in [
        ("Content-Length: 10\r\n\r\nabc", true),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabc", true),
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", false),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n", false),
    ] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("POST /cut HTTP/1.1\r\nHost: a\r\n{body}")).await;
        if close {
            raw.close_write().await;
        }
        if let Some(reply) = raw.reply().await {
            assert!(reply.status >= 400, "{body:?}: {reply:?}");
        }
    }
    assert_eq!(Client::http1(proxy.address()).await.get("/after", &[]).await.status, 200);
    // The upstream may have seen the heads; a body it has never seen the end of.
    for seen in upstream.seen().iter().filter(|seen| seen.target == "/cut") {
        assert!(seen.body.is_empty(), "{seen:?}");
    }
}

#[tokio::test]
async fn upstreams_that_fail_cost_a_clear_status() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /down, upstream: 'http://{}'}}
  - {{path: /unix, upstream: 'unix:/nowhere/app.sock'}}
  - {{upstream: 'http://{}', timeout: 300ms}}
",
        free(),
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    proxy.get("/down", &[]).await.assert_failed(503, "upstream_connect");
    proxy.get("/unix", &[]).await.assert_failed(503, "upstream_connect");
    proxy.get("/close", &[]).await.assert_failed(502, "upstream_reset");
    let asked = Instant::now();
    proxy.get("/hang", &[]).await.assert_failed(504, "upstream_timeout");
    assert!(asked.elapsed() < LONG, "{:?}", asked.elapsed());
    assert_eq!(proxy.get("/fine", &[]).await.status, 200);
}

#[tokio::test]
async fn answers_that_are_no_http_are_refused() {
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(10_000));
    let huge_header = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 << 20));
    let answers: [&'static [u8]; 7] = [
        many_headers.leak().as_bytes(),
        huge_header.leak().as_bytes(),
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"",
    ];
    for answer in answers {
        let upstream = Scripted::start(move |mut stream, _| async move {
            read_head(&mut stream).await;
            // The proxy may hang up in the middle of it.
            let _cut = stream.write_all(answer).await;
        })
        .await;
        let proxy = in_front_of(upstream.address(), "", "").await;
        let reply = proxy.get("/", &[]).await;
        let shown: String = String::from_utf8_lossy(answer).chars().take(100).collect();
        assert_eq!(reply.status, 502, "{shown:?}: {reply:?}");
        assert!(reply.reason().starts_with("upstream_"), "{shown:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_seen_to_break_off() {
    let upstream = Scripted::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let proxy = in_front_of(upstream.address(), "", "").await;
    let mut client = Client::http1(proxy.address()).await;
    assert!(soon("the end", client.try_send(get("/", &[]))).await.is_err());
    let mut client = Client::http2(proxy.address()).await;
    assert!(soon("the end", client.try_send(get("/", &[]))).await.is_err());
}

#[tokio::test]
async fn what_comes_behind_a_response_is_nobody_s_response() {
    let upstream = Scripted::start(|mut stream, connection| async move {
        while read_head(&mut stream).await {
            let body = if connection == 0 { "mine" } else { "next" };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{body}");
            let extra = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned";
            stream.write_all(format!("{answer}{extra}").as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = in_front_of(upstream.address(), "", "").await;
    for expected in ["mine", "next", "next"] {
        let reply = proxy.get("/", &[]).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, expected));
    }
}

#[tokio::test]
async fn an_upstream_that_restarts_costs_no_request_that_is_safe_to_repeat() {
    for protocol in ["http1", "http2"] {
        let mut upstream =
            if protocol == "http1" { Upstream::http1("app").await } else { Upstream::http2("app").await };
        let proxy = in_front_of(upstream.address(), &format!(", protocol: {protocol}"), "").await;
        for n in 0..5 {
            let reply = proxy.get(&format!("/{n}"), &[]).await;
            assert_eq!(reply.status, 200, "{protocol}: {reply:?}");
            upstream.restart().await;
        }
    }
}

/// Answers the first request of its first connection, then closes that connection when the second one comes.
async fn goes_stale(requests: &Arc<AtomicUsize>) -> Scripted {
    let requests = Arc::clone(requests);
    Scripted::start(move |mut stream, connection| {
        let requests = Arc::clone(&requests);
        async move {
            let mut answered = 0;
            while read_head(&mut stream).await {
                requests.fetch_add(1, Ordering::SeqCst);
                if connection == 0 && answered == 1 {
                    return;
                }
                answered += 1;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await
}

async fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    // A body that comes along with its head is read with it.
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(count) if count > 0 => {}
            _ => return false,
        }
    }
    true
}

#[tokio::test]
async fn a_request_that_is_safe_to_repeat_survives_a_stale_connection() {
    let requests = Arc::default();
    let upstream = goes_stale(&requests).await;
    let proxy = in_front_of(upstream.address(), "", "").await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/", &[]).await.status, 200);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_request_that_may_have_had_an_effect_is_sent_once() {
    let requests = Arc::default();
    let upstream = goes_stale(&requests).await;
    let proxy = in_front_of(upstream.address(), "", "").await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    let post = Request::post("/").body(Bytes::from_static(b"buy")).unwrap();
    let mut client = Client::http1(proxy.address()).await;
    client.send(post).await.assert_failed(502, "upstream_reset");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn without_retries_nothing_is_sent_twice() {
    let requests = Arc::default();
    let upstream = goes_stale(&requests).await;
    let proxy = in_front_of(upstream.address(), "", ", retries: 0").await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    proxy.get("/", &[]).await.assert_failed(502, "upstream_reset");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_while_another_lives() {
    let upstream = Upstream::http1("app").await;
    let endpoints =
        format!(", balance: round_robin, connect_timeout: 5s, endpoints: ['{}', '{}']", free(), upstream.address());
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{upstream: app}}]
upstreams: {{app: {{{}}}}}
",
        endpoints.trim_start_matches(", ")
    );
    let proxy = Proxy::start(&yaml).await;
    for _ in 0..6 {
        assert_eq!(proxy.get("/", &[]).await.status, 200);
    }
    assert_eq!(upstream.count(), 6);
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let servers = [Upstream::http1("a").await, Upstream::http1("b").await, Upstream::http1("c").await];
    let endpoints: Vec<_> = servers.iter().map(|server| format!("'{}'", server.address())).collect();
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /random, upstream: random}}
  - {{path: /least, upstream: least}}
  - {{upstream: turns}}
upstreams:
  turns: {{endpoints: [{0}]}}
  random: {{endpoints: [{0}], balance: random}}
  least: {{endpoints: [{0}], balance: least_request}}
",
        endpoints.join(", ")
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::http1(proxy.address()).await;
    for _ in 0..9 {
        assert_eq!(client.get("/", &[]).await.status, 200);
    }
    assert_eq!(servers.each_ref().map(Upstream::count), [3, 3, 3]);
    for path in ["/random", "/least"] {
        for _ in 0..60 {
            assert_eq!(client.get(path, &[]).await.status, 200);
        }
    }
    // Of 120 at random, no server gets none.
    assert!(servers.iter().all(|server| server.count() > 3));
}

#[tokio::test]
async fn http1_keeps_connections_on_both_sides() {
    let (proxy, upstream) = start().await;
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
async fn pipelined_requests_are_answered_in_their_order() {
    let (proxy, upstream) = start().await;
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
async fn what_can_t_be_parsed_takes_no_answer_before_it_along() {
    let (proxy, _upstream) = start().await;
    for first in ["GET /one HTTP/1.1\r\nHost: a\r\n\r\n", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("{first}nonsense\r\n\r\n")).await;
        let reply = raw.reply().await.unwrap();
        let expected = if first.contains("%2f") { (400, "bad_path") } else { (200, "") };
        assert_eq!((reply.status, reply.header("x-palisade-reason").as_str()), expected, "{reply:?}");
        assert_eq!(raw.reply().await.unwrap().status, 400);
        assert!(raw.reply().await.is_none());
    }
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_go_on() {
    let (proxy, upstream) = start().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 100);
    raw.send("body").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "body"));
    assert!(upstream.last().values("expect").is_empty());
}

#[tokio::test]
async fn a_refused_request_is_not_told_to_go_on() {
    let upstream = Upstream::http1("app").await;
    let proxy = in_front_of(upstream.address(), "", ", filters: [{header: {name: User, value: admin}}]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 403);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn http10_is_served() {
    let (proxy, upstream) = start().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /old HTTP/1.0\r\n\r\n").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"));
    assert!(raw.reply().await.is_none(), "the connection went on");
    // Somebody has to be asked for, so the upstream is named by its own address.
    assert_eq!(upstream.last().authority, upstream.address().to_string());
}

#[tokio::test]
async fn http2_is_served_to_those_who_begin_with_it() {
    let (proxy, upstream) = start().await;
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
    let proxy = in_front_of(upstream.address(), ", protocol: http2", "").await;
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
    let proxy = in_front_of(upstream.address(), ", protocol: http2", "").await;
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
        let proxy = in_front_of(upstream.address(), &format!(", protocol: {protocol}"), "").await;
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
    let (proxy, upstream) = start().await;
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
    let proxy = in_front_of(upstream.address(), "", ", upgrades: []").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET /ws HTTP/1.1\r\n{UPGRADE}")).await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "not an upgrade"), "{reply:?}");
    let (proxy, upstream) = start().await;
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

#[tokio::test]
async fn what_concerns_one_connection_stays_on_it() {
    let (proxy, upstream) = start().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(
        "GET /hop HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine, Host\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\
         Proxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Other: 1\r\n\r\n",
    )
    .await;
    let reply = raw.reply().await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = upstream.last();
    for name in ["connection", "x-mine", "keep-alive", "proxy-authorization", "proxy-connection", "te"] {
        assert!(seen.values(name).is_empty(), "{name}: {seen:?}");
    }
    assert_eq!((seen.header("x-other").as_str(), seen.authority.as_str()), ("1", "a"));
    for name in ["x-for-the-connection", "keep-alive", "proxy-authenticate"] {
        assert!(reply.values(name).is_empty(), "{name}: {reply:?}");
    }
    assert!(raw.reply().await.is_none(), "the client asked to close");
}

#[tokio::test]
async fn upstreams_can_t_speak_in_the_proxy_s_name() {
    let upstream = Scripted::start(|mut stream, _| async move {
        while read_head(&mut stream).await {
            let answer = b"HTTP/1.1 403 Forbidden\r\nX-Palisade-Reason: plugin_failed\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = in_front_of(upstream.address(), "", "").await;
    let reply = proxy.get("/", &[]).await;
    assert_eq!((reply.status, reply.reason().as_str()), (403, ""), "{reply:?}");
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
async fn a_refused_head_request_gets_no_body() {
    let upstream = Upstream::http1("app").await;
    let proxy = in_front_of(upstream.address(), "", ", filters: [{header: {name: User, value: admin}}]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\nUser: admin\r\nConnection: close\r\n\r\n",
    )
    .await;
    let all = String::from_utf8(raw.rest().await).unwrap();
    let heads: Vec<&str> = all.split("HTTP/1.1 ").collect();
    assert_eq!(heads.len(), 3, "{all}");
    assert!(heads[1].starts_with("403 ") && heads[1].ends_with("\r\n\r\n"), "{all}");
    assert!(heads[2].starts_with("200 ") && heads[2].ends_with("hello from app"), "{all}");
}

#[tokio::test]
async fn large_bodies_flow_through_and_are_not_collected() {
    const SIZE: usize = 128 << 20;
    let upstream = Upstream::http1("app").await;
    let proxy = in_front_of(upstream.address(), "", "").await;
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

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_and_the_upstream_with_it() {
    let ended = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&ended);
    let upstream = Scripted::start(move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
            // Until the proxy hangs up.
            while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
            told.notify_one();
        }
    })
    .await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, limits: {{body_idle_timeout: 300ms}}}}]
routes: [{{upstream: 'http://{}'}}]
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon("the upstream is left (HTTP/1.1)", ended.notified()).await;
    let mut client = Client::http2(proxy.address()).await;
    let mut stream = client.stream(get("/", &[]).map(drop));
    stream.end();
    stream.head().await;
    soon("the upstream is left (HTTP/2)", ended.notified()).await;
}

#[tokio::test]
async fn an_upstream_that_stops_within_a_body_is_given_up() {
    let upstream = Scripted::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
        std::future::pending().await
    })
    .await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{timeout: 300ms, upstream: 'http://{}'}}]
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::http1(proxy.address()).await;
    assert!(soon("the end", client.try_send(get("/", &[]))).await.is_err());
}

#[tokio::test]
async fn trailers_say_nothing_in_the_proxy_s_name() {
    for protocol in ["http1", "http2"] {
        let upstream = if protocol == "http1" { Upstream::http1("app").await } else { Upstream::http2("app").await };
        let proxy = in_front_of(upstream.address(), &format!(", protocol: {protocol}"), "").await;
        let mut client = Client::http2(proxy.address()).await;
        let names = "x-forwarded-for, x-request-id, host, content-length, x-good";
        let mut stream = client.stream(Request::post("/").header("trailer", names).body(()).unwrap());
        stream.send("body").await;
        let fields = [("x-forwarded-for", "1.2.3.4"), ("x-request-id", "mine"), ("host", "evil"), ("x-good", "1")];
        stream.send_trailers(&fields).await;
        assert_eq!(stream.finish().await.status, 200);
        let seen = upstream.last();
        let got: Vec<_> = seen.trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(got, ["x-good"], "{protocol}");
    }
}

/// What a client of HTTP/2 sends first, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

#[tokio::test]
async fn http2_connections_without_a_whole_request_are_closed() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners:
  - name: web
    address: 127.0.0.1:0
    limits: {{header_timeout: 300ms, idle_timeout: 300ms, body_idle_timeout: 300ms}}
routes: [{{upstream: 'http://{}'}}]
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    // HEADERS of stream 1 with ":method: GET" and ":scheme: http", but without END_HEADERS; no CONTINUATION follows.
    let headers = b"\x00\x00\x02\x01\x01\x00\x00\x00\x01\x82\x86";
    // DATA for a stream that nobody opened.
    let data = b"\x00\x00\x01\x00\x01\x00\x00\x00\x05x";
    let mut closed = Vec::new();
    for frames in [&b""[..], headers, data, b"\x00"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send([PREFACE, frames].concat()).await;
        // All at once, for each is given some seconds to end well.
        closed.push(tokio::spawn(async move { raw.rest().await }));
    }
    for closed in closed {
        closed.await.unwrap();
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(proxy.get("/", &[]).await.status, 200);
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection_and_nothing_else() {
    let (proxy, upstream) = start().await;
    let mut raw = Raw::connect(proxy.address()).await;
    let mut frames = PREFACE.to_vec();
    for stream in (1..20_000_u32).step_by(2) {
        // A request for "/" (RFC 7541 appendix A: 2, 6, 4 are its pseudo headers), and RST_STREAM with CANCEL.
        frames.extend(b"\x00\x00\x06\x01\x05");
        frames.extend(stream.to_be_bytes());
        frames.extend(b"\x82\x86\x84\x41\x01a");
        frames.extend(b"\x00\x00\x04\x03\x00");
        frames.extend(stream.to_be_bytes());
        frames.extend(8_u32.to_be_bytes());
    }
    raw.send(frames).await;
    raw.rest().await;
    assert!(upstream.count() < 2_000, "{} requests reached the upstream", upstream.count());
    assert_eq!(proxy.get("/", &[]).await.status, 200);
}

#[tokio::test]
async fn slow_clients_are_not_waited_for_beyond_their_limits() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners:
  - name: web
    address: 127.0.0.1:0
    limits: {{header_timeout: 300ms, idle_timeout: 300ms, body_idle_timeout: 300ms}}
routes: [{{upstream: 'http://{}'}}]
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    // Nothing, half a preface, half a head: each is closed, which `rest` waits for.
    for sent in ["", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost:"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(sent).await;
        raw.rest().await;
    }
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST /stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("x-palisade-reason").as_str()), (408, "body_timeout"), "{reply:?}");
    // An idle connection, after a request.
    for http2 in [false, true] {
        let mut client =
            if http2 { Client::http2(proxy.address()).await } else { Client::http1(proxy.address()).await };
        assert_eq!(client.get("/", &[]).await.status, 200);
        soon("the idle connection ends", async {
            while client.ready().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}
