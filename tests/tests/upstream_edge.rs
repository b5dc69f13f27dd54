//! Upstreams that are broken, hostile, down or the proxy itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use palisade_tests::{Client, Proxy, Raw, Refusing, Scripted, Upstream, eventually, fake, place, read_head, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::Notify;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine";

async fn proxy(upstreams: &str, route: &str) -> Proxy {
    Proxy::start(&format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]\nroutes: [{{upstream: app{route}}}]\nupstreams: {{{upstreams}}}\n"
    ))
    .await
}

#[tokio::test]
async fn answers_that_can_be_read_in_two_ways_are_refused() {
    let body = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for answer in [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{body}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{body}"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
        "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc".to_owned(),
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc".to_owned(),
        "HTTP/1.1 099 No\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
        "HTTP/2 200 OK\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
        format!("{}{OK}", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n".repeat(1000)),
    ] {
        let sent = answer.clone();
        let upstream = Scripted::start(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                read_head(&mut stream).await;
                // The proxy may hang up in the middle of it.
                let _cut = stream.write_all(answer.as_bytes()).await;
                let _end = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
        let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
        let reply = proxy.get("/", &[]).await;
        assert_eq!((reply.status, reply.reason().as_str()), (502, "upstream_invalid"), "{sent:.200}: {reply:?}");
    }
}

/// Answers each request with these bytes, and lets the client end the connection.
async fn serve(mut stream: TcpStream, answer: &[u8]) {
    while read_head(&mut stream).await {
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_reach_nobody() {
    const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for answer in [
        format!("{OK}{POISON}"),
        format!("{OK}\r\n"),
        format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"),
        // Nothing more was asked for, and it may say anything from here on.
        OK.replace("OK\r\n", "OK\r\nConnection: close\r\n"),
    ] {
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, sent) = (Arc::clone(&connections), answer.clone());
        let upstream = Scripted::start(move |stream, _| {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            async move { serve(stream, answer.as_bytes()).await }
        })
        .await;
        let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
        let mut client = Client::http1(proxy.address()).await;
        for n in 1..=5 {
            let reply = client.get("/", &[]).await;
            assert_ne!(reply.text(), "poison", "{sent}");
            assert!(matches!(reply.status, 200 | 204), "{sent}: {reply:?}");
            assert_eq!(connections.load(Ordering::SeqCst), n, "{sent}: the connection was used again");
        }
    }
}

#[tokio::test]
async fn bytes_on_an_idle_connection_are_no_answer() {
    let (asked, said) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wanted, done) = (Arc::clone(&asked), Arc::clone(&said));
    let upstream = Scripted::start(move |mut stream, number| {
        let (wanted, done) = (Arc::clone(&wanted), Arc::clone(&done));
        async move {
            if number > 0 {
                return serve(stream, OK.as_bytes()).await;
            }
            read_head(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            wanted.notified().await;
            stream.write_all(OK.replace("mine", "evil").as_bytes()).await.unwrap();
            done.notify_one();
            serve(stream, OK.replace("mine", "late").as_bytes()).await;
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
    assert_eq!(proxy.get("/", &[]).await.text(), "mine");
    asked.notify_one();
    soon("what nobody asked for", said.notified()).await;
    assert_eq!(proxy.get("/", &[]).await.text(), "mine");
}

#[tokio::test]
async fn an_answer_without_a_body_is_followed_by_the_next_one() {
    let answers = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n", 304),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204),
        ("GET", OK, 200),
    ];
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let upstream = Scripted::start(move |mut stream, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            for (_, answer, _) in answers {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
    let mut client = Raw::connect(proxy.address()).await;
    for (method, _, status) in answers {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(client.reply_head().await.unwrap().status, status, "{method}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_becomes_a_whole_one() {
    for answer in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: a\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    ] {
        let begun = Arc::new(Notify::new());
        let ends = Arc::clone(&begun);
        let upstream = Scripted::start(move |mut stream, _| {
            let ends = Arc::clone(&ends);
            async move {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
                ends.notified().await;
            }
        })
        .await;
        let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = raw.reply_head().await.unwrap();
        assert_eq!((head.status, head.header("content-length") == "3"), (200, false), "{answer:?}");
        begun.notify_one();
        let body = String::from_utf8(raw.rest().await).unwrap();
        assert!(body.contains("abc") && !body.contains("\r\n0\r\n"), "{answer:?}: {body}");
        assert_eq!(proxy.metric("palisade_responses_cut_total", &[]).await, 1, "{answer:?}");
    }
}

/// Not with an error either, which ends a stream as well.
#[tokio::test]
async fn an_answer_over_http2_that_breaks_off_never_becomes_a_whole_one() {
    const RESET: &[u8] = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x00";
    const GOAWAY: &[u8] = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    for end in [RESET, GOAWAY] {
        let begun = Arc::new(Notify::new());
        let ends = Arc::clone(&begun);
        let upstream = Scripted::start(move |mut stream, _| {
            let ends = Arc::clone(&ends);
            async move {
                // The preface and what comes with it, among it the request.
                let mut seen = Vec::new();
                while !seen.windows(9).any(|frame| frame[..3] != [0; 3] && frame[3..] == *b"\x01\x05\x00\x00\x00\x01") {
                    stream.read_buf(&mut seen).await.unwrap();
                }
                stream.write_all(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
                // `:status: 200`, and a part of the body.
                stream.write_all(b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88").await.unwrap();
                stream.write_all(b"\x00\x00\x03\x00\x00\x00\x00\x00\x01abc").await.unwrap();
                ends.notified().await;
                stream.write_all(end).await.unwrap();
                while stream.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {}
            }
        })
        .await;
        let proxy = Proxy::in_front_of(upstream.address(), ", protocol: http2", ", retries: 0").await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(raw.reply_head().await.unwrap().status, 200);
        assert_eq!(raw.exactly(8).await, b"3\r\nabc\r\n");
        begun.notify_one();
        assert_eq!(String::from_utf8(raw.rest().await).unwrap(), "");
        assert_eq!(proxy.metric("palisade_responses_cut_total", &[]).await, 1);
    }
}

#[tokio::test]
async fn a_request_over_http2_that_breaks_off_never_becomes_a_whole_one() {
    let (begun, ended) = (Arc::new(Notify::new()), tokio::sync::mpsc::unbounded_channel());
    let (begins, told, mut seen) = (Arc::clone(&begun), ended.0, ended.1);
    let upstream = Scripted::start(move |mut stream, _| {
        let (begins, told) = (Arc::clone(&begins), told.clone());
        async move {
            let mut request = Vec::new();
            while stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
                if request.ends_with(b"half\r\n") {
                    begins.notify_one();
                }
            }
            told.send(request).unwrap();
        }
    })
    .await;
    let endpoints = format!("app: {{endpoints: ['{}']}}", upstream.address());
    let proxy = proxy(&endpoints, "").await;
    let stream = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    // More of them than failures in a row cost an endpoint its requests.
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL].repeat(4) {
        client = client.ready().await.unwrap();
        let request = Request::post("http://a/").body(()).unwrap();
        let (_answer, mut body) = client.send_request(request, false).unwrap();
        body.send_data("half".into(), false).unwrap();
        soon("half of the request", begun.notified()).await;
        body.send_reset(reason);
        let request = soon("its end", seen.recv()).await.unwrap();
        assert!(request.ends_with(b"half\r\n"), "{reason:?}: {}", String::from_utf8_lossy(&request));
    }
    assert_eq!(proxy.metric("palisade_upstream_ejections_total", &[]).await, 0);
    connection.abort();
}

#[tokio::test]
async fn a_connection_whose_answer_can_t_be_read_to_its_end_is_not_used_again() {
    for body in [
        "0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "2\r\nok\r\n0\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "1\r\na\r\n5 XXX\r\n0\r\n\r\n",
    ] {
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let upstream = Scripted::start(move |stream, _| {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            async move { serve(stream, answer.as_bytes()).await }
        })
        .await;
        let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0").await;
        for n in 1..=3 {
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let got = String::from_utf8(raw.rest().await).unwrap();
            assert!(!got.ends_with("0\r\n\r\n"), "{body:?}: {got}");
            assert_eq!(connections.load(Ordering::SeqCst), n, "{body:?}: the connection was used again");
        }
    }
}

/// How it ends is all that tells a whole response from a part, where the connection ends it.
#[tokio::test]
async fn an_answer_that_breaks_off_is_no_whole_one_for_http_1_0_either() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let seen = Arc::new(Notify::new());
    let ends = Arc::clone(&seen);
    let upstream = Scripted::start(move |mut stream, _| {
        let ends = Arc::clone(&ends);
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.is_ok_and(|count| count > 0));
            }
            stream.write_all(CHUNKED.as_bytes()).await.unwrap();
            if head.starts_with(b"GET /whole") {
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            } else if head.starts_with(b"GET /broken") {
                return ends.notified().await;
            }
            let _end = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", retries: 0, timeout: 2s").await;
    for (path, expected) in [
        ("/whole", Ok(())),
        ("/broken", Err(std::io::ErrorKind::ConnectionReset)),
        ("/stalled", Err(std::io::ErrorKind::ConnectionReset)),
    ] {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\nabc") {
            assert!(soon("its beginning", client.read_buf(&mut got)).await.is_ok_and(|count| count > 0), "{path}");
        }
        if path == "/broken" {
            seen.notify_one();
        }
        let ended = soon("the end", client.read_to_end(&mut Vec::new())).await;
        assert_eq!(ended.map(drop).map_err(|error| error.kind()), expected, "{path}");
    }
}

#[tokio::test]
async fn a_request_that_comes_back_is_seen_to_do_so() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = format!(
        "listeners: [{{name: web, address: '{address}'}}]\nroutes: [{{upstream: 'http://{address}', retries: 0}}]\n"
    );
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(proxy.get("/", &[]).await.status, 508);
    assert_eq!(proxy.metric("palisade_requests_total", &[]).await, 2);
    assert_eq!(proxy.metric("palisade_requests_total", &[("reason", "loop_detected")]).await, 1);
    // Others' names are no loop.
    let upstream = Upstream::http1("app").await;
    let other = Proxy::in_front_of(upstream.address(), "", "").await;
    assert_eq!(other.get("/", &[("via", "1.1 palisade-00000000, 1.1 other")]).await.status, 200);
    let via = upstream.last().values("via");
    assert_eq!(via.len(), 2, "{via:?}");
}

#[tokio::test]
async fn an_endpoint_that_fails_gets_no_requests_for_a_while() {
    let upstream = Upstream::http1("app").await;
    let refusing = Refusing::new();
    let down = refusing.address();
    let endpoints = format!("endpoints: ['{down}', '{}']", upstream.address());
    let outliers = "outliers: {failures: 2, eject_for: 1h}";
    let proxy = self::proxy(&format!("app: {{{endpoints}, {outliers}, panic_below: 50}}"), ", retries: 0").await;
    let mut client = Client::http1(proxy.address()).await;
    let mut failed = 0;
    for _ in 0..20 {
        let reply = client.get("/", &[]).await;
        if reply.status != 200 {
            reply.assert_failed(503, "upstream_connect");
            assert_eq!(reply.header("retry-after"), "1");
            failed += 1;
        }
    }
    assert_eq!(failed, 2);
    assert_eq!(proxy.metric("palisade_upstream_ejections_total", &[("upstream", "app")]).await, 1);
    // Alone, it is better than nothing: it is back with the first request that it answers.
    let alone = self::proxy(&format!("app: {{endpoints: ['{down}'], {outliers}}}"), ", retries: 0").await;
    for _ in 0..5 {
        alone.get("/", &[]).await.assert_failed(503, "upstream_connect");
    }
    drop(refusing);
    let _server = Scripted::start_at(down, |stream, _| async move { serve(stream, OK.as_bytes()).await }).await;
    assert_eq!(alone.get("/", &[]).await.status, 200);
}

#[tokio::test]
async fn an_endpoint_that_fails_its_checks_gets_no_requests() {
    let upstream = Upstream::http1("app").await;
    let sick = Scripted::start(|stream, _| async move {
        serve(stream, b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nsick").await;
    })
    .await;
    let checks = "checks: {path: /healthz, interval: 50ms, failures: 2, timeout: 10s}";
    let endpoints = format!("endpoints: ['localhost:{}', '{}']", sick.address().port(), upstream.address());
    let mut proxy = self::proxy(&format!("app: {{{endpoints}, {checks}}}"), "").await;
    let label = format!("http://localhost:{}", sick.address().port());
    proxy.wait_for_log("what the checks say", |line| line.contains("checks say otherwise")).await;
    proxy.until_metric("palisade_upstream_up", &[("upstream", "app")], 1).await;
    assert_eq!(proxy.metric("palisade_upstream_up", &[("endpoint", &label)]).await, 0);
    let mut client = Client::http1(proxy.address()).await;
    for _ in 0..10 {
        assert_eq!(client.get("/", &[]).await.text(), "hello from app");
    }
    assert!(upstream.seen().iter().any(|seen| seen.target == "/healthz" && seen.method == "GET"));
}

/// One connection of HTTP/2 that resets its first stream with `code`, and answers the others with 200.
async fn resets(mut stream: TcpStream, code: u8, streams: Arc<AtomicUsize>) {
    let mut seen = vec![0; 24];
    if stream.read_exact(&mut seen).await.is_err() {
        return;
    }
    stream.write_all(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        let answer = match head[3] {
            1 if streams.fetch_add(1, Ordering::SeqCst) == 0 => {
                [b"\x00\x00\x04\x03\x00", &head[5..9], &[0, 0, 0, code]].concat()
            }
            // `:status: 200` (RFC 7541 appendix A), and the end of the stream.
            1 => [b"\x00\x00\x01\x01\x05", &head[5..9], b"\x88"].concat(),
            4 if head[4] == 0 => b"\x00\x00\x00\x04\x01\x00\x00\x00\x00".to_vec(),
            _ => continue,
        };
        stream.write_all(&answer).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_server_has_refused_to_look_at_is_sent_again() {
    const REFUSED_STREAM: u8 = 7;
    const CANCEL: u8 = 8;
    for (code, status, expected) in [(REFUSED_STREAM, 200, 2), (CANCEL, 502, 1)] {
        let streams = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&streams);
        let upstream = Scripted::start(move |stream, _| resets(stream, code, Arc::clone(&count))).await;
        let proxy = Proxy::in_front_of(upstream.address(), ", protocol: http2", "").await;
        let mut client = Client::http1(proxy.address()).await;
        let reply = client.send(Request::post("/").body(bytes::Bytes::new()).unwrap()).await;
        assert_eq!((reply.status, streams.load(Ordering::SeqCst)), (status, expected), "{reply:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_a_request_costs_neither_connection() {
    answered_before_the_end("Content-Length: 0\r\n\r\n").await;
    // Its end comes with it, and not with the request's: who waits for that may send nothing before.
    answered_before_the_end("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
}

async fn answered_before_the_end(framing: &'static str) {
    const HALF: usize = 512 * 1024;
    let whole = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&whole);
    let upstream = Scripted::start(move |mut stream, connection| {
        let whole = Arc::clone(&counter);
        async move {
            let mut got = Vec::new();
            loop {
                while !got.windows(4).any(|window| window == b"\r\n\r\n") {
                    if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let head = got.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
                let length = if got.starts_with(b"POST") { 2 * HALF } else { 0 };
                let answer = format!("HTTP/1.1 200 OK\r\nX-Connection: {connection}\r\n{framing}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                while got.len() < head + length {
                    if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                whole.fetch_add(1, Ordering::SeqCst);
                got.drain(..head + length);
            }
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let mut raw = Raw::connect(proxy.address()).await;
    let half = vec![b'x'; HALF];
    let length = format!("Content-Length: {}\r\n", 2 * HALF);
    for connection in ["", "", "Connection: close\r\n"] {
        raw.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{length}{connection}\r\n")).await;
        raw.send(&half).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.header("x-connection").as_str()), (200, "0"));
        assert_eq!(reply.header("connection").is_empty(), connection.is_empty());
        raw.send(&half).await;
    }
    assert!(raw.rest().await.is_empty());
    eventually("all of what was sent has arrived", || whole.load(Ordering::SeqCst) == 3).await;
    assert_eq!(proxy.get("/", &[]).await.header("x-connection"), "0", "the connection is kept");
}

/// Nobody knows yet whether the rest of the request ever comes, so the connection can't be kept, and it is said.
#[tokio::test]
async fn a_response_that_is_replaced_before_the_end_of_its_request_says_that_it_is_the_last() {
    let upstream = Scripted::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(OK.as_bytes()).await.unwrap();
        let _end = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["needs:response", "serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    for (path, status) in [("/response-replace", 418), ("/response-crlf", 503)] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nUser: admin\r\nContent-Length: 1000\r\n\r\nabc")).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.header("connection").as_str()), (status, "close"), "{path}");
        assert!(raw.rest().await.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn what_is_left_of_a_request_is_never_read_as_another_one() {
    let (left, gone) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (leave, told) = (Arc::clone(&left), Arc::clone(&gone));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let upstream = Scripted::start(move |mut stream, _| {
        let (left, gone, asked) = (Arc::clone(&leave), Arc::clone(&told), Arc::clone(&count));
        async move {
            read_head(&mut stream).await;
            if asked.fetch_add(1, Ordering::SeqCst) > 0 {
                return;
            }
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            left.notified().await;
            // A reset: what comes next can't be sent on.
            stream.set_zero_linger().unwrap();
            drop(stream);
            gone.notify_one();
        }
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let mut raw = Raw::connect(proxy.address()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    // More than ever comes, so that it never ends.
    let length = 1_000_000;
    raw.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nx")).await;
    assert_eq!(raw.reply_head().await.unwrap().status, 200);
    assert_eq!(raw.exactly("5\r\nearly\r\n".len()).await, b"5\r\nearly\r\n");
    left.notify_one();
    soon("the upstream leaves", gone.notified()).await;
    let ended = async {
        loop {
            // The reset may take its time to arrive, and what went out before it tells nobody.
            raw.send("y").await;
            let end = raw.exactly("0\r\n\r\n".len());
            if let Ok(end) = tokio::time::timeout(Duration::from_millis(20), end).await {
                return end;
            }
        }
    };
    assert_eq!(soon("the end of the response", ended).await, b"0\r\n\r\n");
    raw.send(smuggled.repeat(10)).await;
    assert_eq!(String::from_utf8_lossy(&raw.rest().await), "", "a second answer to one request");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// They share one connection to the upstream, whose window is for all of them together.
#[tokio::test]
async fn clients_that_do_not_read_hold_up_no_others() {
    let upstream = Upstream::http2("app").await;
    let upstreams = format!("app: {{endpoints: ['{}'], protocol: http2}}", upstream.address());
    let proxy = Proxy::start(&format!(
        "workers: 1\nlisteners: [{{name: web, address: 127.0.0.1:0}}]\nroutes: [{{upstream: app, timeout: none}}]
upstreams: {{{upstreams}}}\n"
    ))
    .await;
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET /bytes/67108864 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        deaf.push(raw);
    }
    for _ in 0..300 {
        let reply = proxy.get("/bytes/65536", &[]).await;
        assert_eq!((reply.status, reply.body.len()), (200, 65536));
    }
    assert_eq!(upstream.connections(), 1);
    drop(deaf);
}

#[tokio::test]
async fn what_follows_a_switch_at_once_is_carried() {
    let upstream = Scripted::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(format!("{switch}first words").as_bytes()).await.unwrap();
        let _end = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(raw.reply_head().await.unwrap().status, 101);
    assert_eq!(raw.exactly(11).await, b"first words");
}

/// The client would take what follows the switch for what it asked, and the upstream the rest of the head for its own.
#[tokio::test]
async fn a_switch_before_the_end_of_its_request_is_refused() {
    let dir = place();
    let path = dir.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let upstream = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // More has been sent than the socket holds.
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(switch).await.unwrap();
        std::future::pending::<()>().await;
    });
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, limits: {{max_header_bytes: 1MiB, max_header_memory: 2MiB}}}}]
routes: [{{upstream: 'unix:{}', upgrades: [websocket], retries: 0}}]
",
        path.display()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut raw = Raw::connect(proxy.address()).await;
    let large = "x".repeat(900_000);
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX: {large}\r\n\r\n");
    raw.send(head).await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("x-palisade-reason").as_str()), (502, "upstream_invalid"), "{reply:?}");
    upstream.abort();
}

/// Else one that vanished without a word would hold a tunnel for ever.
#[tokio::test]
async fn the_kernel_asks_whether_a_silent_upstream_is_still_there() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(raw.reply_head().await.unwrap().status, 101);
    // proc_pid_net(5): `rem_address`, `st` is 01 where it is established, `tr` is 02 where the keep-alive timer runs.
    let port = format!(":{:04X}", upstream.address().port());
    let timer = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let ours = |fields: &Vec<&str>| fields[2].ends_with(&port) && fields[3] == "01";
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(ours);
        fields.map(|fields| fields[5].to_owned())
    };
    // Until what was sent is acknowledged, another timer runs.
    eventually("the keep-alive timer", || timer().is_some_and(|timer| timer.starts_with("02:"))).await;
}

#[tokio::test]
async fn trailers_of_an_answer_say_nothing_that_its_head_may_not() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\
                  X-Sum: 1\r\nX-Request-Id: other\r\nContent-Length: 5\r\nX-Palisade-Reason: none\r\n\r\n";
    let upstream = Scripted::start(move |stream, _| serve(stream, answer.as_bytes())).await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let reply = Client::http2(proxy.address()).await.get("/", &[("te", "trailers")]).await;
    let names: Vec<_> = reply.trailers.keys().map(|name| name.as_str()).collect();
    assert_eq!((reply.status, names), (200, vec!["x-sum"]));
}
