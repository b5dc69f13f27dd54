//! What clients may write on the wire, case by case: bytes in, and what comes of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::{Proxy, Raw, Scripted, Seen, Upstream, fake, read_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What must come of a request.
#[derive(Debug)]
enum Expected {
    /// The proxy answers this itself.
    Refused(u16, &'static str),
    /// The upstream sees this target and host, and nothing else.
    Sees(&'static str, &'static str),
    /// The upstream may have seen the head, and never the end; the client is told, if anything, that it was wrong.
    Broken,
}

use Expected::{Broken, Refused, Sees};

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

fn host(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /post HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

fn cases() -> Vec<(String, Expected)> {
    let text = |text: &str| text.to_owned();
    vec![
        // The request line.
        (get("/"), Sees("/", "a")),
        (text("\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n"), Sees("/x", "a")),
        (text("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text(" GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET /  HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/1.1 \r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / b HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET /\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/0.9\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/11\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / http/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/1.1x\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("GET / XTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("\x16\x03\x01\x02\x00\x01"), Refused(400, "malformed")),
        (text("PRI * HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(405, "method_refused")),
        // Methods.
        (text("PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n"), Sees("/", "a")),
        (text("M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n"), Sees("/", "a")),
        (text("get / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(501, "method_unknown")),
        (text("Get / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(501, "method_unknown")),
        (text("GET1 / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(501, "method_unknown")),
        (text("G~T / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(501, "method_unknown")),
        (format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(33)), Refused(501, "method_unknown")),
        (text("G(T / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(400, "malformed")),
        (text("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"), Refused(405, "method_refused")),
        (text("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(405, "method_refused")),
        (text("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(405, "method_refused")),
        (text("connect a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"), Refused(501, "method_unknown")),
        (text("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), Sees("*", "a")),
        // Targets.
        (get("/a/b?c=d&e"), Sees("/a/b?c=d&e", "a")),
        (get("/a?"), Sees("/a?", "a")),
        (get("/?a=/../b"), Sees("/?a=/../b", "a")),
        (get("*"), Refused(400, "bad_path")),
        (get("a"), Refused(400, "bad_path")),
        (get("a.b:80"), Refused(400, "bad_path")),
        (get("/a#b"), Refused(400, "bad_path")),
        (get("#"), Refused(400, "bad_path")),
        (get("/a%23b"), Sees("/a%23b", "a")),
        (get("/\u{e9}"), Refused(400, "malformed")),
        (get("/a\x7f"), Refused(400, "malformed")),
        (get("/a\"b"), Refused(400, "bad_path")),
        (get("/a<b>"), Refused(400, "malformed")),
        (get("/a^b"), Refused(400, "bad_path")),
        (get("/{a}"), Refused(400, "bad_path")),
        (get("/a|b"), Refused(400, "bad_path")),
        (get("/a\\b"), Refused(400, "bad_path")),
        (get("/a%5cb"), Refused(400, "bad_path")),
        (get("/a%2fb"), Refused(400, "bad_path")),
        (get("/a%2Fb"), Refused(400, "bad_path")),
        (get("/a%00"), Refused(400, "bad_path")),
        (get("/a%0d%0aSet-Cookie:x"), Refused(400, "bad_path")),
        (get("/a%"), Refused(400, "bad_path")),
        (get("/a%4"), Refused(400, "bad_path")),
        (get("/a%g1"), Refused(400, "bad_path")),
        (get("/%c0%ae%c0%ae/"), Refused(400, "bad_path")),
        (get("/%ff"), Refused(400, "bad_path")),
        (get("/a;b"), Refused(400, "bad_path")),
        (get("/a%3bb"), Refused(400, "bad_path")),
        (get("/a/..;/b"), Refused(400, "bad_path")),
        (get("/.."), Refused(400, "bad_path")),
        (get("/a/../.."), Refused(400, "bad_path")),
        (get("/%2e%2e/a"), Refused(400, "bad_path")),
        (get("/a/../b"), Sees("/b", "a")),
        (get("/a/%2E%2e/b"), Sees("/b", "a")),
        (get("/a/./b/"), Sees("/a/b/", "a")),
        (get("//a///b"), Sees("/a/b", "a")),
        (get("/%61%7e"), Sees("/a~", "a")),
        (get("/%e2%82%ac"), Sees("/%E2%82%AC", "a")),
        (get("/%252e%252e/a"), Sees("/%252e%252e/a", "a")),
        (get(&format!("/{}", "a".repeat(8191))), Sees("", "a")),
        (get(&format!("/{}", "a".repeat(8192))), Refused(414, "target_too_long")),
        (get(&format!("/{}", "a".repeat(70_000))), Refused(414, "target_too_long")),
        // The host.
        (host("Host: a.example:8080"), Sees("/", "a.example:8080")),
        (host("Host: A.Example"), Sees("/", "a.example")),
        (host("host:a"), Sees("/", "a")),
        (host("Host: [::1]:80"), Sees("/", "[::1]:80")),
        (host("X: y"), Refused(400, "bad_host")),
        (host("Host:"), Refused(400, "bad_host")),
        (host("Host: a\r\nHost: a"), Refused(400, "bad_host")),
        (host("Host: a\r\nHost: b"), Refused(400, "bad_host")),
        (host("Host: a\r\nhOsT: a"), Refused(400, "bad_host")),
        (host("Host: a, b"), Refused(400, "bad_host")),
        (host("Host: a b"), Refused(400, "bad_host")),
        (host("Host: u@a"), Refused(400, "bad_host")),
        (host("Host: a/b"), Refused(400, "bad_host")),
        (host("Host: a?b"), Refused(400, "bad_host")),
        (host("Host: http://a"), Refused(400, "bad_host")),
        (host("Host: a:"), Refused(400, "bad_host")),
        (host("Host: a:x"), Refused(400, "bad_host")),
        (host("Host: a:65536"), Refused(400, "bad_host")),
        (host("Host: [::1"), Refused(400, "bad_host")),
        (host("Host: a\u{e9}"), Refused(400, "bad_host")),
        (host("Host : a"), Refused(400, "malformed")),
        (text("GET / HTTP/1.0\r\n\r\n"), Sees("/", "")),
        (text("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), Refused(400, "bad_host")),
        (get("http://b.example/x"), Sees("/x", "b.example")),
        (get("HTTP://b/x"), Sees("/x", "b")),
        (get("http://b"), Sees("/", "b")),
        (get("http://b?x"), Sees("/?x", "b")),
        (get("http://b/a/../x"), Sees("/x", "b")),
        (get("http://u@b/"), Refused(400, "bad_host")),
        (get("http://u:p@b/"), Refused(400, "bad_host")),
        (get("ftp://b/"), Refused(400, "bad_path")),
        (text("GET http://b/ HTTP/1.1\r\n\r\n"), Refused(400, "bad_host")),
        (text("GET http://b/ HTTP/1.1\r\nHost: a b@c\r\n\r\n"), Refused(400, "bad_host")),
        (text("GET http://b/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), Refused(400, "bad_host")),
        // Line ends and names.
        (text("GET / HTTP/1.1\nHost: a\n\n"), Refused(400, "malformed")),
        (text("GET / HTTP/1.1\r\nHost: a\n\r\n"), Refused(400, "malformed")),
        (text("GET / HTTP/1.1\r\nHost: a\r\n\n"), Refused(400, "malformed")),
        (text("GET / HTTP/1.1\rHost: a\r\n\r\n"), Refused(400, "malformed")),
        (with("X: a\rb"), Refused(400, "malformed")),
        (with("X: a\r\r"), Refused(400, "malformed")),
        (with("X: a\r\n b"), Refused(400, "malformed")),
        (with("X: a\r\n\tb"), Refused(400, "malformed")),
        (with(" X: a"), Refused(400, "malformed")),
        (with("X : a"), Refused(400, "malformed")),
        (with("X\t: a"), Refused(400, "malformed")),
        (with("X Y: a"), Refused(400, "malformed")),
        (with(": a"), Refused(400, "malformed")),
        (with("X"), Refused(400, "malformed")),
        (with("X\u{e9}: a"), Refused(400, "malformed")),
        (with("X@Y: a"), Refused(400, "malformed")),
        (with("X: a\0"), Refused(400, "malformed")),
        (with("X: a\x0bb"), Refused(400, "malformed")),
        (with("X: a\x7fb"), Refused(400, "malformed")),
        (with("X:\t a \t"), Sees("/", "a")),
        (with("X: \u{e9}"), Sees("/", "a")),
        (with("X_User: a"), Refused(400, "header_refused")),
        (with("_: a"), Refused(400, "header_refused")),
        (with(&format!("X: {}", "a".repeat(33_000))), Refused(431, "headers_too_large")),
        (with(&["X: 1"; 100].join("\r\n")), Refused(431, "headers_too_large")),
        (with(&["X: 1"; 90].join("\r\n")), Sees("/", "a")),
        (with(&format!("{}: 1", "x".repeat(33_000))), Refused(431, "headers_too_large")),
        // Fields that are there once.
        (with("Authorization: a\r\nAuthorization: b"), Refused(400, "header_refused")),
        (with("Content-Type: a\r\ncontent-type: b"), Refused(400, "header_refused")),
        (with("User-Agent: a\r\nUser-Agent: b"), Refused(400, "header_refused")),
        (with("Range: bytes=0-1\r\nRange: bytes=2-3"), Refused(400, "header_refused")),
        (with("Cookie: a=1\r\nCookie: b=2"), Sees("/", "a")),
        (with("Accept: a\r\nAccept: b"), Sees("/", "a")),
        (with("Expect: junk"), Refused(417, "unknown_expectation")),
        (with("Expect: 100-continue, junk"), Refused(417, "unknown_expectation")),
        // What a connection takes away.
        (with("Connection: close, authorization\r\nAuthorization: a"), Refused(400, "header_refused")),
        (with("Connection: x-user\r\nX-User: a"), Refused(400, "header_refused")),
        (with("Connection: host"), Refused(400, "header_refused")),
        (with("Connection: X-Forwarded-For\r\nX-Forwarded-For: 1.2.3.4"), Refused(400, "header_refused")),
        (with("Connection: content-type\r\nContent-Type: a"), Refused(400, "header_refused")),
        (with("Connection: x-absent, TE\r\nTE: trailers"), Sees("/", "a")),
        (with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"), Sees("/", "a")),
        // Framing.
        (post("Content-Length: 3", "abc"), Sees("/post", "a")),
        (post("Content-Length: 0", ""), Sees("/post", "a")),
        (post("X: y", ""), Sees("/post", "a")),
        (post("Content-Length: 3\r\nContent-Length: 3", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: 3\r\nContent-Length: 4", "abcd"), Refused(400, "bad_framing")),
        (post("Content-Length: 3, 3", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: +3", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: -3", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: 0x3", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: 3.0", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: 3 0", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: 003", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length:", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: \"3\"", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length: 18446744073709551616", "abc"), Refused(400, "bad_framing")),
        (post("Content-Length : 3", "abc"), Refused(400, "malformed")),
        (post("Content-Length: 3\r\nTransfer-Encoding: chunked", SMUGGLED), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 3", SMUGGLED), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: chunked, identity", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: identity, chunked", "0\r\n\r\n"), Refused(501, "coding_refused")),
        (post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), Refused(501, "coding_refused")),
        (post("Transfer-Encoding: gzip", "0\r\n\r\n"), Refused(501, "coding_refused")),
        (post("Transfer-Encoding: xchunked", "0\r\n\r\n"), Refused(501, "coding_refused")),
        (post("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding: chunked;q=1", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding:", "0\r\n\r\n"), Refused(400, "bad_framing")),
        (post("Transfer-Encoding:\x0bchunked", "0\r\n\r\n"), Refused(400, "malformed")),
        (post("Transfer-Encoding : chunked", "0\r\n\r\n"), Refused(400, "malformed")),
        (post("Transfer-Encoding\t: chunked", "0\r\n\r\n"), Refused(400, "malformed")),
        (post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"), Refused(400, "malformed")),
        (post("X: y\rTransfer-Encoding: chunked", "0\r\n\r\n"), Refused(400, "malformed")),
        (text("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Refused(400, "bad_framing")),
        (text("GET / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"), Refused(400, "bad_framing")),
        (text("POST /old HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"), Sees("/old", "")),
        // Chunks.
        (chunked("0\r\n\r\n"), Sees("/post", "a")),
        (chunked("3\r\nabc\r\n0\r\n\r\n"), Sees("/post", "a")),
        (chunked("03\r\nabc\r\n000\r\n\r\n"), Sees("/post", "a")),
        (chunked("3;a=b\r\nabc\r\n0;c\r\n\r\n"), Sees("/post", "a")),
        (chunked("0\r\nX-Gone: 1\r\n\r\n"), Sees("/post", "a")),
        (chunked("zz\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("0x3\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("+3\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked(" 3\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("3 \r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("3\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("3\r\nabcd\r\n0\r\n\r\n"), Broken),
        (chunked("3\r\nabc\n0\r\n\r\n"), Broken),
        (chunked("3\r\nabcXX0\r\n\r\n"), Broken),
        (chunked("3;a\nb\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("3;\0\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "a".repeat(20_000))), Broken),
        (chunked("10000000000000001\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("FFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("-1\r\nabc\r\n0\r\n\r\n"), Broken),
        (chunked("\r\n0\r\n\r\n"), Broken),
        (chunked("0\r\nX : 1\r\n\r\n"), Broken),
        (chunked("0\r\n X: 1\r\n\r\n"), Broken),
        (chunked("0\r\nX: 1\n\r\n"), Broken),
        (chunked(&format!("0\r\nX: {}\r\n\r\n", "a".repeat(40_000))), Broken),
        (chunked(&format!("0\r\n{}\r\n", "X: 1\r\n".repeat(101))), Broken),
    ]
}

#[tokio::test]
async fn every_case_is_read_in_one_way() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    let cases = cases();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (request, expected) in cases {
        let before = upstream.count();
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(&request).await;
        let reply = raw.reply().await;
        let seen: Vec<Seen> = upstream.seen().split_off(before);
        let answer =
            reply.as_ref().map_or((0, String::new()), |reply| (reply.status, reply.header("x-palisade-reason")));
        let right = match &expected {
            Refused(status, reason) => answer == (*status, (*reason).to_owned()) && seen.is_empty(),
            // An empty target stands for a long one.
            Sees(target, host) => {
                let one = |seen: &Seen| {
                    (target.is_empty() || seen.target == *target)
                        && (host.is_empty() || seen.authority == *host)
                        && seen.trailers.is_empty()
                };
                answer.0 == 200 && seen.len() == 1 && seen.iter().all(one)
            }
            Broken => (answer.0 == 0 || answer.0 >= 400) && seen.iter().all(|seen| seen.body.is_empty()),
        };
        // Nothing is read behind what has no end.
        let endless = matches!(expected, Broken)
            || ["malformed", "coding_refused", "headers_too_large"].contains(&answer.1.as_str());
        let ended = !endless || raw.reply().await.is_none();
        if !right || !ended || seen.iter().any(|seen| seen.target.contains("smuggled")) {
            let shown: String = request.escape_debug().to_string().chars().take(160).collect();
            wrong.push(format!("{shown}: {expected:?}, but {answer:?}, ended: {ended}, seen: {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(proxy.get("/", &[]).await.status, 200);
}

/// Bodies that can't be read on. Each would have an end, were it read again from where it went wrong.
const REFUSED: [&str; 4] = [
    "1\r\na\r\n5 XXX\r\n0\r\n\r\n",
    "1\r\naX\r\n0\r\n\r\n",
    "0\r\nX : 1\r\n\r\n",
    "0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
];

#[tokio::test]
async fn what_follows_a_refused_body_is_never_answered() {
    let upstream = Upstream::http1("app").await;
    let plain = Proxy::in_front_of(upstream.address(), "", "").await;
    let holding = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["needs:body", "serve"])
    );
    let holding = Proxy::start(&holding).await;
    for (who, proxy) in [("nobody", &plain), ("a filter", &holding)] {
        for body in REFUSED {
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send(post("User: admin\r\nTransfer-Encoding: chunked", &format!("{body}{SMUGGLED}"))).await;
            let reply = raw.reply().await.unwrap();
            let said = [reply.header("x-palisade-reason"), reply.header("connection")];
            assert_eq!((reply.status, said), (400, ["bad_body".into(), "close".into()]), "{who} holds {body:?}");
            assert_eq!(String::from_utf8_lossy(&raw.rest().await), "", "{who} holds {body:?}");
        }
    }
    let targets: Vec<_> = upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert!(targets.iter().all(|target| target == "/post"), "{targets:?}");
}

#[tokio::test]
async fn what_follows_a_body_that_is_refused_behind_its_response_is_never_answered() {
    let upstream = Scripted::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await.unwrap();
        let _end = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    for body in REFUSED {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(chunked("")).await;
        assert_eq!(raw.reply().await.unwrap().text(), "early");
        raw.send(format!("{body}{SMUGGLED}")).await;
        assert_eq!(String::from_utf8_lossy(&raw.rest().await), "", "{body:?}");
    }
}

#[tokio::test]
async fn how_a_request_is_cut_makes_no_difference() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let all = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
               GET /two HTTP/1.1\r\nHost: a\r\n\r\n\
               POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nfgh\
               GET /bad HTTP/1.1\r\nHost: a\nX: y\r\n\r\n";
    for size in [1, 2, 7, 30, all.len()] {
        let mut raw = Raw::connect(proxy.address()).await;
        for piece in all.as_bytes().chunks(size) {
            raw.send(piece).await;
        }
        let mut replies = Vec::new();
        while let Some(reply) = raw.reply().await {
            replies.push((reply.status, reply.text(), reply.header("x-palisade-reason")));
        }
        let texts: Vec<_> = replies.iter().map(|(status, text, _)| (*status, text.as_str())).collect();
        assert_eq!(texts[..3], [(200, "abcde"), (200, "hello from app"), (200, "fgh")], "by {size}: {replies:?}");
        assert_eq!((replies.len(), replies[3].0, replies[3].2.as_str()), (4, 400, "malformed"), "by {size}");
    }
    assert!(upstream.seen().iter().all(|seen| seen.target != "/bad"));
}

#[tokio::test]
async fn bytes_before_a_switch_are_never_tunnelled() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", ", upgrades: [websocket]").await;
    let upgrade =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    const EARLY: &str = "GET /early HTTP/1.1\r\nHost: a\r\n\r\n";
    // The upstream switches: what came before is lost with the connection.
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("{}{EARLY}", upgrade("/ws"))).await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("x-palisade-reason").as_str()), (400, "malformed"));
    assert!(raw.rest().await.is_empty(), "the early bytes came back");
    // It does not: they are the next request, and read as one.
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("{}{EARLY}", upgrade("/other"))).await;
    assert_eq!(raw.reply().await.unwrap().status, 200);
    assert_eq!(raw.reply().await.unwrap().status, 200);
    let targets: Vec<_> = upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/ws", "/other", "/early"]);
}

#[tokio::test]
async fn another_protocol_is_closed_without_an_answer() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    for sent in ["EHLO a b\r\n\r\n", "a b c\r\n\r\n", "* OK ready\r\n\r\n"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(sent).await;
        assert!(raw.rest().await.is_empty(), "{sent:?}");
    }
    let labels = [("listener", "web"), ("reason", "not_http")];
    assert_eq!(proxy.metric("palisade_connections_closed_total", &labels).await, 3);
    // Once there was a request, it is one that went wrong.
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\na b c\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 200);
    assert_eq!(raw.reply().await.unwrap().status, 400);
}

#[tokio::test]
async fn http_1_0_gets_what_it_knows() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::in_front_of(upstream.address(), "", "").await;
    let address = proxy.address();
    let all = |sent: &'static str| async move {
        let mut raw = Raw::connect(address).await;
        raw.send(sent).await;
        String::from_utf8(raw.rest().await).unwrap()
    };
    // The connection ends with the answer, unless it was asked to stay.
    let two = "GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    assert_eq!(all(two).await.matches("HTTP/1.0 200").count(), 1);
    let kept = all("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(kept.matches("HTTP/1.0 200").count(), 2, "{kept}");
    assert_eq!(kept.matches("connection: keep-alive").count(), 1, "{kept}");
    // It knows neither chunks nor interim responses.
    let streamed = all("GET /trailers HTTP/1.0\r\n\r\n").await;
    assert!(!streamed.to_lowercase().contains("transfer-encoding"), "{streamed}");
    // What ends with the connection ends it, whatever was asked for.
    let ended = all("GET /trailers HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert!(ended.contains("connection: close"), "{ended}");
    let before = upstream.count();
    let mut asks = Raw::connect(address).await;
    asks.send("POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    upstream.until_asked(before + 1).await;
    asks.send("abc").await;
    let answer = String::from_utf8(asks.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\nabc"), "{answer}");
}
