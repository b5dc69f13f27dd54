//! The hidden treasure: the upstream gives a secret for `/blockedz`, the filter denies that path, and nothing that a
//! client can write gets the one past the other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::{Proxy, Raw, TREASURE, Upstream, fake, is_blocked, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn exam() -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, limits: {{body_idle_timeout: 2s, header_timeout: 2s, idle_timeout: 2s}}}}]
routes: [{{filters: [guard], upstream: 'http://{}', upgrades: [websocket]}}]
plugins: {{guard: {{command: {}, timeout: 10s, config: {{deny_path: /blockedz}}}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    (Proxy::start(&yaml).await, upstream)
}

/// Spellings of the path, and of what is not the path.
fn targets() -> Vec<String> {
    let mut targets: Vec<String> = [
        "/blockedz",
        "/blockedz/",
        "//blockedz",
        "///blockedz",
        "/./blockedz",
        "/.//blockedz",
        "/blockedz/.",
        "/blockedz/..",
        "/x/../blockedz",
        "/x/y/../../blockedz",
        "/x/./../blockedz",
        "/x/../x/../blockedz",
        "/blockedz/x/..",
        "/%62lockedz",
        "/b%6Cockedz",
        "/%62%6c%6f%63%6b%65%64%7a",
        "/blocked%7A",
        "/%2e/blockedz",
        "/x/%2e%2e/blockedz",
        "/x/.%2e/blockedz",
        "/x/%2E./blockedz",
        "/%2fblockedz",
        "/x%2f..%2fblockedz",
        "/x/..%2fblockedz",
        "%2fblockedz",
        "/blockedz%2f",
        "/\\blockedz",
        "\\blockedz",
        "/x\\..\\blockedz",
        "/%5cblockedz",
        "/blockedz%5c",
        "/blockedz;",
        "/blockedz;x",
        "/blockedz;x=y",
        "/;/blockedz",
        "/;x/blockedz",
        "/x/..;/blockedz",
        "/x/..;a=b/blockedz",
        "/blockedz%3b",
        "/blockedz%3Bx",
        "/blockedz%00",
        "/blockedz%00.html",
        "/blockedz%20",
        "/blockedz%09",
        "/blockedz%0a",
        "/blockedz%0d%0a",
        "/%0d%0a/blockedz",
        "/blockedz?",
        "/blockedz?x",
        "/blockedz?x=/../",
        "/?/../blockedz",
        "/blockedz#",
        "/blockedz#x",
        "/#/../blockedz",
        "/x#/../blockedz",
        "blockedz",
        "./blockedz",
        "../blockedz",
        "/../blockedz",
        "/x/../../blockedz",
        "http://a/blockedz",
        "http://b/blockedz",
        "http://a//blockedz",
        "http://a/x/../blockedz",
        "http://a/%62lockedz",
        "http://a:80/blockedz",
        "https://a/blockedz",
        "http://u@a/blockedz",
        "http:/blockedz",
        "http:///blockedz",
        "http:blockedz",
        "//a/blockedz",
        "file:///blockedz",
        "http://a\\blockedz",
        "http://a?/blockedz",
        "http://a#/blockedz",
        "a:80/blockedz",
        "*",
        "*/blockedz",
        "/*/../blockedz",
        "/%c0%afblockedz",
        "/%c0%ae%c0%ae/blockedz",
        "/%u002fblockedz",
        "/%ef%bc%8fblockedz",
        "/\u{ff0f}blockedz",
        "/blockedz\u{a0}",
        "/blockedz\u{200b}",
        "/%e2%80%8bblockedz",
        "/%252fblockedz",
        "/%2562lockedz",
        "/x/%252e%252e/blockedz",
        "/.blockedz",
        "/..blockedz",
        "/...blockedz",
        "/x/.../blockedz",
        "/x/....//blockedz",
        "/.%00/blockedz",
        "/..%00/blockedz",
        "/x/..%0d/blockedz",
        "/x/..%ff/blockedz",
        "/x/%2e%2e;/blockedz",
        "/x/.;/../blockedz",
        "/blockedz/%2e",
        "/blockedz/%2e%2e",
        "/blockedz/x/%2e%2e",
        "/blockedz//",
        "/blockedz/./",
        "/blockedz/;",
        "/x//../blockedz",
        "/x///..///blockedz",
        "/x/%2e%2e//blockedz",
        "/ blockedz",
        "/\tblockedz",
        "/blockedz HTTP/1.1\r\nX:",
        "/x HTTP/1.1\r\n\r\nGET /blockedz",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    // Every letter encoded, in both cases of the digits, and every byte in front of the path and behind it.
    for at in 1.."/blockedz".len() {
        let byte = "/blockedz".as_bytes()[at];
        for encoded in [format!("%{byte:02x}"), format!("%{byte:02X}"), format!("%25{byte:02x}")] {
            targets.push(format!("{}{encoded}{}", &"/blockedz"[..at], &"/blockedz"[at + 1..]));
        }
    }
    for byte in (1..=0x7f_u8).filter(|byte| !byte.is_ascii_alphanumeric()) {
        let character = char::from(byte);
        targets.extend([
            format!("/{character}blockedz"),
            format!("/blockedz{character}"),
            format!("{character}/blockedz"),
        ]);
        targets.extend([format!("/%{byte:02x}blockedz"), format!("/blockedz%{byte:02x}")]);
        targets.push(format!("/x/..{character}/blockedz"));
    }
    targets
}

/// Whole requests that are more than a target.
fn requests() -> Vec<String> {
    let mut requests = Vec::new();
    let inner = "GET /blockedz HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = inner.len();
    for method in ["GET", "get", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GETX", "PRI"] {
        for version in ["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", ""] {
            requests.push(format!("{method} /blockedz {version}\r\nHost: a\r\n\r\n"));
        }
    }
    // What frameworks take for the target.
    for name in [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-URI",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
        "X_Original_URL",
        "X-HTTP-Method-Override",
        "Referer",
        "Content-Location",
        "Destination",
        ":path",
    ] {
        requests.push(format!("GET /x HTTP/1.1\r\nHost: a\r\n{name}: /blockedz\r\n\r\n"));
    }
    for fields in [
        "Host: a/blockedz",
        "Host: a\r\nHost: /blockedz",
        "Connection: host",
        "Connection: x-judged",
        "X-Judged: GET /x",
        "Host : b",
        "Host:\r\n b",
        "X: y\r\n :path: /blockedz",
    ] {
        requests.push(format!("GET /blockedz HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        requests.push(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
    }
    // A request within a request.
    for framing in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length: 0, {length}"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: xchunked"),
        format!("Content-Length: {length}\r\nTransfer-Encoding : chunked"),
        format!("Content-Length: {length}\r\nTransfer-Encoding:\x0bchunked"),
        format!("Content-Length: {length}\r\nTransfer-Encoding:\r\n chunked"),
        format!("Content-Length: {length}\r\nX: y\rTransfer-Encoding: chunked"),
        format!("Content-Length: {length}\r\nX: y\nTransfer-Encoding: chunked"),
        format!("Content-Length : {length}"),
        format!("Content_Length: {length}"),
        format!("Content-Length: {length}\r\nConnection: content-length"),
        format!("Content-Length: {length}\r\nConnection: close, transfer-encoding\r\nTransfer-Encoding: chunked"),
        format!("Content-Length: {length}\r\nExpect: 100-continue"),
        format!(
            "Content-Length: {length}\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk"
        ),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: chunked, identity".to_owned(),
        "Transfer-Encoding: identity, chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nTrailer: x".to_owned(),
        "Upgrade: websocket\r\nConnection: upgrade".to_owned(),
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk".to_owned(),
    ] {
        for body in [
            inner.to_owned(),
            format!("0\r\n\r\n{inner}"),
            format!("{length:x}\r\n{inner}\r\n0\r\n\r\n"),
            format!("0\r\n{inner}"),
            format!("0\n\n{inner}"),
            format!("1;\n{inner}\r\n0\r\n\r\n"),
        ] {
            for (method, path) in [("POST", "/x"), ("GET", "/ws")] {
                requests.push(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}"));
            }
        }
    }
    requests
}

/// Every request that arrived is one that was judged, as it was judged.
fn assert_judged(upstream: &Upstream) {
    for seen in upstream.seen() {
        assert_eq!(seen.header("x-judged"), format!("{} {}", seen.method, seen.target), "{seen:?}");
        assert!(!is_blocked(&seen.target), "{seen:?}");
    }
}

#[tokio::test]
async fn nothing_written_in_http1_finds_it() {
    let (proxy, upstream) = exam().await;
    let targets = targets().into_iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let requests: Vec<String> = targets.chain(requests()).collect();
    assert!(requests.len() > 700, "{}", requests.len());
    let mut running = tokio::task::JoinSet::new();
    for request in requests {
        if running.len() >= 16 {
            running.join_next().await.unwrap().unwrap();
        }
        let address = proxy.address();
        running.spawn(async move {
            let mut raw = Raw::connect(address).await;
            raw.send(&request).await;
            raw.send("GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            let all = raw.rest().await;
            let text = String::from_utf8_lossy(&all);
            assert!(!text.contains(TREASURE), "{request:?}: {text}");
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    assert_judged(&upstream);
    assert!(upstream.count() > 50, "{} were let through", upstream.count());
    assert_eq!(proxy.get("/blockedz", &[]).await.status, 403);
}

/// HEADERS of stream 1 that end it unless a body follows: literal fields, without Huffman codes.
fn headers(fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Lengths up to 126 fit the prefix (RFC 7541 section 5.2).
            block.push(u8::try_from(text.len()).unwrap().min(126));
            block.extend(&text.as_bytes()[..text.len().min(126)]);
        }
    }
    frame(1, if end { 5 } else { 4 }, 1, &block)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What comes back for one stream, until it or the connection has ended.
async fn answer(address: std::net::SocketAddr, frames: Vec<u8>) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..], &frames].concat();
    // A server that has seen enough stops reading.
    let _closed = stream.write_all(&preface).await;
    let mut all = Vec::new();
    let mut at = 0;
    loop {
        while let Some(head) = all.get(at..at + 9) {
            let head: &[u8] = head;
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let of_stream = head[5..9] == [0, 0, 0, 1];
            if all.len() < at + 9 + length {
                break;
            }
            at += 9 + length;
            let ended = of_stream && (kind == 3 || (matches!(kind, 0 | 1) && flags & 1 == 1));
            if ended || kind == 7 {
                return all;
            }
        }
        if !soon("frames", stream.read_buf(&mut all)).await.is_ok_and(|count| count > 0) {
            return all;
        }
    }
}

#[tokio::test]
async fn nothing_written_in_http2_finds_it() {
    let (proxy, upstream) = exam().await;
    let base = [(":method", "GET"), (":scheme", "http"), (":authority", "a")];
    let with = |more: &[(&str, &str)]| headers(&[&base[..], more].concat(), true);
    let mut attempts: Vec<Vec<u8>> = targets().iter().map(|target| with(&[(":path", target)])).collect();
    for more in [
        &[(":path", "/x"), (":path", "/blockedz")][..],
        &[(":path", "/blockedz"), (":path", "/x")],
        &[(":path", "/x"), ("x-original-url", "/blockedz")],
        &[(":path", "/x"), ("x-rewrite-url", "/blockedz")],
        &[(":path", "/x"), ("host", "a/blockedz")],
        &[(":path", "/x"), ("host", "b")],
        &[(":path", "/x"), ("x_path", "/blockedz")],
        &[(":path", "/x"), ("a", "b\r\nx: y")],
        &[(":path", "/x"), ("a", "b\r\n\r\nGET /blockedz HTTP/1.1\r\nHost: a\r\n\r\n")],
        &[(":path", "/x"), ("a\r\nb", "c")],
        &[(":path", "/x"), ("a: b\r\nc", "d")],
        &[(":path", "/x"), ("a", "b\0c")],
        &[(":path", "/x"), ("A", "b")],
        &[(":path", "/x"), ("", "b")],
        &[(":path", "/x"), ("transfer-encoding", "chunked")],
        &[(":path", "/x"), ("connection", "close")],
        &[(":path", "/x"), ("te", "gzip")],
        &[(":path", "/x"), ("upgrade", "h2c")],
        &[(":path", "/x"), ("content-length", "5")],
        &[(":path", "/x HTTP/1.1\r\nHost: a\r\n\r\nGET /blockedz")],
        &[(":path", "")],
        &[(":path", "?/blockedz")],
        &[("x", "y"), (":path", "/blockedz")],
        &[(":path", "/blockedz"), (":protocol", "websocket")],
        &[(":path", "/x"), (":unknown", "/blockedz")],
    ] {
        attempts.push(with(more));
    }
    for (method, path) in
        [("GET /blockedz HTTP/1.1\r\nX:", "/x"), ("get", "/blockedz"), ("CONNECT", "/blockedz"), ("", "/blockedz")]
    {
        attempts.push(headers(&[(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)], true));
    }
    for authority in ["a/blockedz", "u@a", "a b", "a\r\nx", "a#/blockedz", "", "a,b"] {
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", authority), (":path", "/blockedz")];
        attempts.push(headers(&fields, true));
    }
    // Bodies that say another length, or a request of their own.
    let inner = b"GET /blockedz HTTP/1.1\r\nHost: a\r\n\r\n";
    for length in ["0", "3", "999"] {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/x"),
            ("content-length", length),
        ];
        attempts.push([headers(&fields, false), frame(0, 1, 1, inner)].concat());
    }
    assert!(attempts.len() > 300, "{}", attempts.len());
    for frames in attempts {
        let all = answer(proxy.address(), frames.clone()).await;
        let text = String::from_utf8_lossy(&all);
        assert!(!text.contains(TREASURE), "{}: {text}", frames.escape_ascii());
    }
    assert_judged(&upstream);
    assert!(upstream.count() > 20, "{} were let through", upstream.count());
    assert_eq!(proxy.get("/blockedz", &[]).await.status, 403);
}
