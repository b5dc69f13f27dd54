//! Clients that are careless, slow or hostile: what is refused, and what it costs others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use palisade_tests::{Client, Proxy, Raw, Scripted, Upstream, get, place, read_head, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// A proxy and the upstream behind it.
async fn app() -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    (Proxy::in_front_of(upstream.address(), "", "").await, upstream)
}

#[tokio::test]
async fn requests_that_two_servers_could_read_in_two_ways_are_refused() {
    let (proxy, upstream) = app().await;
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
        (with("Host: a.."), 400, "bad_host"),
        (with("Host: ."), 400, "bad_host"),
        (with("Host: .a"), 400, "bad_host"),
        (with("Host: a..b"), 400, "bad_host"),
        (with("Host: a..:80"), 400, "bad_host"),
        (with("Host: a\r\nTransfer-Encoding: gzip, chunked"), 501, "coding_refused"),
        (with("Host: a\r\nTransfer-Encoding: identity"), 501, "coding_refused"),
        (with("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400, "bad_framing"),
        (with("Host: a\r\nTransfer-Encoding: xchunked"), 501, "coding_refused"),
        (with("Host: a\r\nTransfer-Encoding:\x0bchunked"), 400, "malformed"),
        (with("Host: a\r\nTransfer-Encoding : chunked"), 400, "malformed"),
        (with("Host: a\r\nContent-Length: 3\r\nContent-Length: 4"), 400, "bad_framing"),
        (with("Host: a\r\nContent-Length: +1"), 400, "bad_framing"),
        (with("Host: a\r\nContent-Length: 0x1"), 400, "bad_framing"),
        (with("Host: a\r\nContent-Length: -1"), 400, "bad_framing"),
        (with("Host: a\r\nContent-Length: 3, 3"), 400, "bad_framing"),
        (with("Host: a\r\nContent-Length: 99999999999999999999"), 400, "bad_framing"),
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
        (target("/a;b"), 400, "bad_path"),
        (target("/a;/b"), 400, "bad_path"),
        (target("/;a"), 400, "bad_path"),
        (target("/a;v=1?x"), 400, "bad_path"),
        (target("/a%3bb"), 400, "bad_path"),
        (target("/a/..%3B/b"), 400, "bad_path"),
        (target("http://a/a;b"), 400, "bad_path"),
        (target("/%c0%ae"), 400, "bad_path"),
        (target("admin"), 400, "bad_path"),
        (target("*"), 400, "bad_path"),
        (target("http://u@a/"), 400, "bad_host"),
        (target("http://a../"), 400, "bad_host"),
        (target(&format!("/{}", "a".repeat(9_000))), 414, "target_too_long"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".into(), 405, "method_refused"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405, "method_refused"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n".into(), 400, "malformed"),
        ("nonsense\r\n\r\n".into(), 400, "malformed"),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400, "bad_framing"),
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
    let (proxy, upstream) = app().await;
    for framing in
        ["Content-Length: 44\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 44"]
    {
        let mut raw = Raw::connect(proxy.address()).await;
        let head = format!("POST /outer HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        raw.send(format!("{head}0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let reply = raw.reply().await.unwrap();
        let answer = (reply.status, reply.header("x-palisade-reason"));
        assert_eq!(answer, (400, "bad_framing".to_owned()), "{framing}: {reply:?}");
        assert!(raw.reply().await.is_none(), "{framing}: the connection went on");
        assert_eq!(upstream.count(), 0, "{framing}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_never_becomes_a_whole_request() {
    let (proxy, upstream) = app().await;
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
async fn what_can_t_be_parsed_takes_no_answer_before_it_along() {
    let (proxy, _upstream) = app().await;
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
async fn a_refused_request_is_not_told_to_go_on() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", filters: [{header: {name: User, value: admin}}]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 403);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_refused_head_request_gets_no_body() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", filters: [{header: {name: User, value: admin}}]").await;
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
async fn trailers_say_nothing_in_the_proxy_s_name() {
    for protocol in ["http1", "http2"] {
        let upstream = if protocol == "http1" { Upstream::http1("app").await } else { Upstream::http2("app").await };
        let yaml = format!(
            "listeners:
  - {{name: web, address: 127.0.0.1:0, requests: {{trailers: [x-forwarded-for, x-request-id, x-good]}}}}
routes: [{{upstream: app}}]
upstreams: {{app: {{endpoints: ['{}'], protocol: {protocol}}}}}
",
            upstream.address()
        );
        let proxy = Proxy::start(&yaml).await;
        let mut client = Client::http2(proxy.address()).await;
        let names = "x-forwarded-for, x-request-id, host, content-length, x-good, x-other";
        let mut stream = client.stream(Request::post("/").header("trailer", names).body(()).unwrap());
        stream.send("body").await;
        let fields = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-request-id", "mine"),
            ("host", "evil"),
            ("x-other", "1"),
            ("x-good", "1"),
        ];
        stream.send_trailers(&fields).await;
        assert_eq!(stream.finish().await.status, 200);
        let seen = upstream.last();
        let got: Vec<_> = seen.trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(got, ["x-good"], "{protocol}");
        assert!(!seen.header("trailer").contains("x-other"), "{protocol}: {seen:?}");
    }
}

#[tokio::test]
async fn what_concerns_one_connection_stays_on_it() {
    let (proxy, upstream) = app().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(
        "GET /hop HTTP/1.1\r\nHost: a\r\nConnection: close, X-Absent\r\nKeep-Alive: 5\r\n\
         Proxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Other: 1\r\n\r\n",
    )
    .await;
    let reply = raw.reply().await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = upstream.last();
    for name in ["connection", "keep-alive", "proxy-authorization", "proxy-connection", "te"] {
        assert!(seen.values(name).is_empty(), "{name}: {seen:?}");
    }
    assert_eq!((seen.header("x-other").as_str(), seen.authority.as_str()), ("1", "a"));
    for name in ["x-for-the-connection", "keep-alive", "proxy-authenticate"] {
        assert!(reply.values(name).is_empty(), "{name}: {reply:?}");
    }
    assert!(raw.reply().await.is_none(), "the client asked to close");
}

/// What a client of HTTP/2 sends first, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// A proxy that waits 300 ms for whatever a client has to send.
async fn impatient(upstream: &Upstream) -> Proxy {
    let yaml = format!(
        "listeners:
  - name: web
    address: 127.0.0.1:0
    limits: {{first_byte_timeout: 300ms, header_timeout: 300ms, idle_timeout: 300ms, body_idle_timeout: 300ms}}
routes: [{{upstream: 'http://{}'}}]
",
        upstream.address()
    );
    Proxy::start(&yaml).await
}

#[tokio::test]
async fn http2_connections_without_a_whole_request_are_closed() {
    let upstream = Upstream::http1("app").await;
    let proxy = impatient(&upstream).await;
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
    let (proxy, upstream) = app().await;
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
    let proxy = impatient(&upstream).await;
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

#[tokio::test]
async fn a_connection_without_a_request_yet_has_the_time_of_an_idle_one() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, limits: {{header_timeout: 300ms, first_byte_timeout: 1500ms}}}}]
routes: [{{upstream: 'http://{}'}}]
",
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut patient = Raw::connect(proxy.address()).await;
    let connected = Instant::now();
    let mut silent = Raw::connect(proxy.address()).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    patient.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(patient.reply().await.unwrap().status, 200);
    assert!(silent.rest().await.is_empty());
    assert!(connected.elapsed() >= Duration::from_millis(1400), "closed after {:?}", connected.elapsed());
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
    let dir = place();
    let local = dir.path().join("local.sock");
    let yaml = format!(
        "listeners:
- {{name: web, address: 127.0.0.1:0, limits: {{body_idle_timeout: 300ms}}}}
- {{name: local, address: 'unix:{}', limits: {{body_idle_timeout: 300ms}}}}
routes: [{{upstream: 'http://{}'}}]
",
        local.display(),
        upstream.address()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon("the upstream is left (HTTP/1.1)", ended.notified()).await;
    // Of which the kernel does not say that nobody reads.
    let mut raw = Raw::over(UnixStream::connect(&local).await.unwrap());
    raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon("the upstream is left (unix socket)", ended.notified()).await;
    let mut client = Client::http2(proxy.address()).await;
    let mut stream = client.stream(get("/", &[]).map(drop));
    stream.end();
    stream.head().await;
    soon("the upstream is left (HTTP/2)", ended.notified()).await;
}

/// Of an upstream that is silent, nothing else would be noticed for a minute.
#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let (asked, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asks, leaves) = (Arc::clone(&asked), Arc::clone(&left));
    let upstream = Scripted::start(move |mut stream, number| {
        let (asked, left) = (Arc::clone(&asks), Arc::clone(&leaves));
        async move {
            read_head(&mut stream).await;
            if number == 1 {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
            }
            asked.notify_one();
            stream.read_to_end(&mut Vec::new()).await.ok();
            left.notify_one();
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    for amid_its_answer in [false, true] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        soon("the request comes", asked.notified()).await;
        if amid_its_answer {
            raw.reply_head().await.unwrap();
            assert_eq!(raw.exactly(4).await, b"half");
        }
        drop(raw);
        soon("the upstream is left", left.notified()).await;
    }
}
