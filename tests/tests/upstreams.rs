//! Upstreams: who gets a request, who gets it again, and what a client sees of those that fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use palisade_tests::{Client, LONG, Proxy, Raw, Refusing, Scripted, Upstream, eventually, get, read_head, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

#[tokio::test]
async fn upstreams_that_fail_cost_a_clear_status() {
    let refusing = Refusing::new();
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /down, upstream: 'http://{}'}}
  - {{path: /unix, upstream: 'unix:/nowhere/app.sock'}}
  - {{upstream: 'http://{}', timeout: 300ms}}
",
        refusing.address(),
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
        let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
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
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let mut client = Client::http1(proxy.address()).await;
    assert!(soon("the end", client.try_send(get("/", &[]))).await.is_err());
    let mut client = Client::http2(proxy.address()).await;
    assert!(soon("the end", client.try_send(get("/", &[]))).await.is_err());
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
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
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
        let proxy = Proxy::in_front_of(upstream.address(), &format!(", protocol: {protocol}"), "").await;
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

#[tokio::test]
async fn a_request_that_is_safe_to_repeat_survives_a_stale_connection() {
    let requests = Arc::default();
    let upstream = goes_stale(&requests).await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/", &[]).await.status, 200);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_request_that_may_have_had_an_effect_is_sent_once() {
    let requests = Arc::default();
    let upstream = goes_stale(&requests).await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
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
    let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    proxy.get("/", &[]).await.assert_failed(502, "upstream_reset");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_while_another_lives() {
    let (refusing, upstream) = (Refusing::new(), Upstream::http1("app").await);
    let endpoints = format!(
        ", balance: round_robin, connect_timeout: 5s, endpoints: ['{}', '{}']",
        refusing.address(),
        upstream.address()
    );
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
async fn upstreams_can_t_speak_in_the_proxy_s_name() {
    let upstream = Scripted::start(|mut stream, _| async move {
        while read_head(&mut stream).await {
            let answer = b"HTTP/1.1 403 Forbidden\r\nX-Palisade-Reason: plugin_failed\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let reply = proxy.get("/", &[]).await;
    assert_eq!((reply.status, reply.reason().as_str()), (403, ""), "{reply:?}");
}

#[tokio::test]
async fn without_room_for_idle_connections_none_is_kept() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), ", max_idle: 0", "").await;
    let mut client = Client::http1(proxy.address()).await;
    for n in 1..=5 {
        assert_eq!(client.get("/", &[]).await.status, 200);
        eventually("the connection is closed", || upstream.open_connections() == 0).await;
        assert_eq!(upstream.connections(), n);
    }
}

#[tokio::test]
async fn te_goes_to_an_upstream_as_its_protocol_has_it() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    let named = |seen: &palisade_tests::Seen| {
        let values = seen.values("connection");
        let options = values.iter().flat_map(|value| value.split(|byte| *byte == b','));
        options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(b"te"))
    };
    // Only with its name in `connection` (RFC 9110 section 10.1.4): else a server behind may take it for its own.
    for mut client in [Client::http1(proxy.address()).await, Client::http2(proxy.address()).await] {
        assert_eq!(client.get("/", &[("te", "trailers")]).await.status, 200);
        let seen = upstream.last();
        assert_eq!(named(&seen), !seen.values("te").is_empty(), "{seen:?}");
        assert!(seen.values("te").iter().all(|value| value == b"trailers"), "{seen:?}");
        assert_eq!(client.get("/", &[]).await.status, 200);
        let seen = upstream.last();
        assert!(!named(&seen) && seen.values("te").is_empty(), "{seen:?}");
    }
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, TE\r\nTE: trailers\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(raw.reply().await.unwrap().status, 101);
    let seen = upstream.last();
    assert_eq!(named(&seen), !seen.values("te").is_empty(), "{seen:?}");
}

#[tokio::test]
async fn a_body_that_stands_still_is_the_client_s_fault_with_either_protocol() {
    for protocol in ["http1", "http2"] {
        let upstream = if protocol == "http1" { Upstream::http1("app").await } else { Upstream::http2("app").await };
        let yaml = format!(
            "listeners: [{{name: web, address: 127.0.0.1:0, limits: {{body_idle_timeout: 300ms}}}}]
routes: [{{upstream: app}}]
upstreams: {{app: {{endpoints: ['{}'], protocol: {protocol}}}}}
",
            upstream.address()
        );
        let proxy = Proxy::start(&yaml).await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("POST /stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
        let reply = raw.reply().await.unwrap();
        let answer = (reply.status, reply.header("x-palisade-reason"));
        assert_eq!(answer, (408, "body_timeout".to_owned()), "{protocol}: {reply:?}");
        let mut client = Client::http2(proxy.address()).await;
        let mut stream = client.stream(Request::post("/stalled").body(()).unwrap());
        stream.send("abc").await;
        assert_eq!(stream.head().await.status(), 408, "{protocol}");
        assert_eq!(stream.head().await.headers()["x-palisade-reason"], "body_timeout", "{protocol}");
        assert_eq!(proxy.get("/", &[]).await.status, 200);
    }
}

/// Whichever limit comes first, and however often: no endpoint loses its requests for it.
#[tokio::test]
async fn a_body_that_stands_still_for_the_timeout_of_its_route_is_the_client_s_fault_too() {
    for protocol in ["http1", "http2"] {
        let upstream = if protocol == "http1" { Upstream::http1("app").await } else { Upstream::http2("app").await };
        let yaml = format!(
            "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{upstream: app, timeout: 300ms}}]
upstreams: {{app: {{endpoints: ['{}'], protocol: {protocol}, outliers: {{failures: 1}}}}}}
",
            upstream.address()
        );
        let proxy = Proxy::start(&yaml).await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("POST /stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
        let reply = raw.reply().await.unwrap();
        let answer = (reply.status, reply.header("x-palisade-reason"));
        assert_eq!(answer, (408, "body_timeout".to_owned()), "{protocol}: {reply:?}");
        assert_eq!(proxy.metric("palisade_upstream_ejections_total", &[]).await, 0, "{protocol}");
        proxy.get("/hang", &[]).await.assert_failed(504, "upstream_timeout");
        assert_eq!(proxy.metric("palisade_upstream_ejections_total", &[]).await, 1, "{protocol}");
    }
}

#[tokio::test]
async fn an_upstream_that_has_answered_is_not_held_by_an_upload_that_goes_on() {
    let ended = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&ended);
    let upstream = Scripted::start(move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfull").await.unwrap();
            // Until the proxy hangs up.
            while stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
            told.notify_one();
        }
    })
    .await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, limits: {{body_idle_timeout: 1h}}}}]
routes: [{{upstream: app, timeout: none}}]
upstreams: {{app: {{endpoints: ['{}']}}}}
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::http2(proxy.address()).await;
    let mut stream = client.stream(Request::post("/").body(()).unwrap());
    stream.send("some of it").await;
    assert_eq!(stream.head().await.status(), 200);
    assert_eq!(stream.frame().await.unwrap().into_data().unwrap(), "full");
    // The stream is still there, and nothing on the client's side has ended it.
    soon("the upstream is left", ended.notified()).await;
    drop(stream);
    assert_eq!(client.get("/", &[]).await.status, 200);
}

#[tokio::test]
async fn a_connection_that_its_upstream_has_ended_is_let_go_of() {
    let gone = Arc::new(Notify::new());
    let goes = Arc::clone(&gone);
    let upstream = Scripted::start(move |mut stream, _| {
        let gone = Arc::clone(&goes);
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            gone.notify_one();
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    // Without another request.
    soon("the proxy closes its side", gone.notified()).await;
}
