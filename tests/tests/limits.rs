//! What a client may cost: each limit with its answer and its count, floods of HTTP/2, and what is left of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use palisade_tests::{Client, Options, Proxy, Raw, Upstream, eventually, get, place, process, programs_in, soon};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const CLOSED: &str = "palisade_connections_closed_total";

async fn start(top: &str, limits: &str, route: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "{top}
listeners: [{{name: web, address: 127.0.0.1:0, limits: {{{limits}}}}}]
routes: [{{upstream: 'http://{}'{route}}}]
",
        upstream.address()
    );
    (Proxy::start(&yaml).await, upstream)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request for `/`, and with `body` one that goes on (RFC 7541 appendix A: 2 or 3, 6, 4 are its pseudo headers).
fn request(stream: u32, body: bool) -> Vec<u8> {
    frame(1, if body { 4 } else { 5 }, stream, if body { b"\x83\x86\x84\x41\x01a" } else { b"\x82\x86\x84\x41\x01a" })
}

#[tokio::test]
async fn each_deadline_closes_and_is_counted() {
    let limits = "first_byte_timeout: 300ms, header_timeout: 300ms, idle_timeout: 600ms, body_idle_timeout: 60s";
    let (proxy, upstream) = start("", limits, "").await;
    let headers_without_end = [PREFACE, &frame(1, 1, 1, b"\x82\x86")].concat();
    let half_headers = [PREFACE, &request(1, false)[..12]].concat();
    for (sent, reason) in [
        (&b""[..], "first_byte_timeout"),
        (b"PRI * HT", "header_timeout"),
        (b"GET / HTTP/1.1\r\nHost:", "header_timeout"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET", "header_timeout"),
        (&PREFACE[..24], "header_timeout"),
        (&headers_without_end, "header_timeout"),
        (&half_headers, "header_timeout"),
        (PREFACE, "idle_timeout"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "idle_timeout"),
    ] {
        let before = proxy.metric(CLOSED, &[("reason", reason)]).await;
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(sent).await;
        let all = raw.rest().await;
        proxy.until_metric(CLOSED, &[("listener", "web"), ("reason", reason)], before + 1).await;
        if reason == "header_timeout" && sent.starts_with(b"GET") {
            let text = String::from_utf8_lossy(&all).into_owned();
            assert!(text.contains("HTTP/1.1 408 ") && text.contains("x-palisade-reason: header_timeout"), "{text}");
        }
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_request_has_its_bounds() {
    let (proxy, upstream) = start("", "request_timeout: 500ms, max_body: 10B, max_requests: 3", "").await;
    proxy.get("/hang", &[]).await.assert_failed(408, "request_timeout");
    for mut client in [Client::http1(proxy.address()).await, Client::http2(proxy.address()).await] {
        let said = Request::post("/").body("eleven bytes".into()).unwrap();
        client.send(said).await.assert_failed(413, "request_too_large");
        let mut stream = client.stream(Request::post("/").body(()).unwrap());
        stream.send("seven b").await;
        stream.send("eight by").await;
        stream.end();
        assert_eq!(stream.finish().await.status, 413);
    }
    assert!(upstream.seen().iter().all(|seen| seen.body.is_empty()));
    // The last of so many says that it is the last.
    let mut raw = Raw::connect(proxy.address()).await;
    for n in 1..=3 {
        raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.header("connection").as_str()), (200, if n == 3 { "close" } else { "" }));
    }
    assert!(raw.rest().await.is_empty());
    let mut client = Client::http2(proxy.address()).await;
    for _ in 0..3 {
        assert_eq!(client.get("/", &[]).await.status, 200);
    }
    soon("GOAWAY", async {
        while client.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    proxy.until_metric(CLOSED, &[("reason", "max_requests")], 2).await;
}

#[tokio::test]
async fn headers_in_flight_share_a_budget() {
    let (proxy, upstream) = start("", "max_header_memory: 64KiB, max_header_bytes: 64KiB", "").await;
    let mut client = Client::http2(proxy.address()).await;
    let large = "x".repeat(20_000);
    let mut held = Vec::new();
    for n in 1..=3 {
        let mut stream = client.stream(get("/hold", &[("x-large", &large)]).map(drop));
        stream.end();
        held.push(stream);
        upstream.until_asked(n).await;
    }
    client.get("/", &[("x-large", &large)]).await.assert_failed(431, "header_memory");
    upstream.release();
    for stream in held {
        assert_eq!(stream.finish().await.status, 200);
    }
    assert_eq!(client.get("/", &[("x-large", &large)]).await.status, 200);
    // Of HTTP/1.1 there is one at a time.
    let mut client = Client::http1(proxy.address()).await;
    let large = [("x-large", large.as_str()); 3];
    assert_eq!(client.get("/", &large).await.status, 200);
    client.get("/", &[&large[..], &[("x-small", ""); 60]].concat()).await.assert_failed(431, "header_memory");
}

#[tokio::test]
async fn frames_without_end_close_the_connection() {
    let (proxy, upstream) = start("", "max_glitches: 100", "").await;
    let before = process::memory(proxy.pid());
    let in_flight = [PREFACE, &request(1, true)].concat();
    for (name, frames) in [
        ("PING", frame(6, 0, 0, &[0; 8]).repeat(20_000)),
        ("PING with ACK", frame(6, 1, 0, &[0; 8]).repeat(20_000)),
        ("SETTINGS", frame(4, 0, 0, &[]).repeat(20_000)),
        ("empty DATA", frame(0, 0, 1, &[]).repeat(20_000)),
        ("padded empty DATA", frame(0, 8, 1, &[0]).repeat(200_000)),
        ("PRIORITY", frame(2, 0, 1, &[0, 0, 0, 3, 1]).repeat(20_000)),
        ("unknown", frame(200, 0, 1, b"?").repeat(20_000)),
        ("windows by one", frame(8, 0, 0, &[0, 0, 0, 1]).repeat(20_000)),
        ("windows by nothing", frame(8, 0, 1, &[0; 4]).repeat(20_000)),
        ("CONTINUATION", [frame(1, 1, 3, b"\x82"), frame(9, 0, 3, &[]).repeat(20_000)].concat()),
        (
            "RST_STREAM",
            (3..9_999_u32).step_by(2).flat_map(|n| [request(n, false), frame(3, 0, n, &[0; 4])].concat()).collect(),
        ),
        (
            "HPACK",
            frame(
                1,
                4,
                3,
                &[&b"\x82\x86\x84\x41\x01a\x40\x01x\x7e"[..], &[b'y'; 126], &b"\xbe".repeat(15_000)].concat(),
            ),
        ),
    ] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send([&in_flight[..], &frames].concat()).await;
        // All that comes is the end.
        soon(format_args!("the end of {name}"), raw.rest()).await;
        assert_eq!(proxy.get("/", &[]).await.status, 200, "{name}");
    }
    let grown = process::memory(proxy.pid()).saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes more");
    assert!(upstream.count() < 1_000, "{}", upstream.count());
    assert!(proxy.metric(CLOSED, &[("reason", "max_glitches")]).await >= 6);
}

#[tokio::test]
async fn requests_that_are_taken_back_are_not_without_end() {
    let (proxy, upstream) = start("", "max_glitches: 20", "").await;
    let (mut reader, mut writer) = TcpStream::connect(proxy.address()).await.unwrap().into_split();
    let closed = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    writer.write_all(PREFACE).await.unwrap();
    // Each is taken back when it is being worked on, so h2 does not count it.
    let path = b"\x82\x86\x41\x01a\x04\x05/hold";
    let mut asked = 0;
    for n in (1..200_u32).step_by(2) {
        let sent = writer.write_all(&frame(1, 5, n, path)).await;
        eventually("the request is under way, or the connection closed", || {
            upstream.count() > asked || closed.is_finished()
        })
        .await;
        if sent.is_err() || upstream.count() == asked {
            break;
        }
        asked += 1;
        writer.write_all(&frame(3, 0, n, &[0, 0, 0, 8])).await.ok();
    }
    assert!((5..40).contains(&asked), "{asked}");
    proxy.until_metric(CLOSED, &[("reason", "max_glitches")], 1).await;
}

/// Windows of nothing, and as many streams as there is room for, twice, each with so many references to one small header.
fn bomb(references: usize) -> Vec<u8> {
    let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing of a body can go out.
    frames.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for n in 0..200_u32 {
        // The first stream puts `a: b` into the table, the others refer to it: so `:authority` may not go there, too.
        let mut block = b"\x82\x86\x84\x01\x01a".to_vec();
        block.extend(if n == 0 { &b"\x40\x01a\x01b"[..] } else { b"\xbe" });
        block.extend(b"\xbe".repeat(references - 1));
        frames.extend(frame(1, 5, n * 2 + 1, &block));
    }
    frames
}

#[tokio::test]
async fn bombs_cost_little_and_leave_little() {
    const BOMBS: usize = 30;
    // As many as are let in, as one head can be, and between.
    for (references, status) in [(90, "200"), (480, "431"), (930, "431")] {
        let (proxy, _upstream) = start("", "", "").await;
        assert_eq!(proxy.get("/", &[]).await.status, 200);
        let before = process::memory(proxy.pid());
        let (mut held, mut sent, mut most) = (Vec::new(), 0, 0);
        for _ in 0..BOMBS {
            let frames = bomb(references);
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send(&frames).await;
            sent += frames.len();
            held.push(raw);
            most = most.max(process::memory(proxy.pid()).saturating_sub(before));
        }
        // Each of them is one: all streams that there may be are read, and answered.
        let (counter, asked) = ("palisade_requests_total", BOMBS as u64 * 100 + 1);
        proxy.until_metric(counter, &[], asked).await;
        let counted = proxy.metric(counter, &[("status", status)]).await;
        assert!(counted > asked / 2, "{references}: {counted} of {asked} are {status}");
        most = most.max(process::memory(proxy.pid()).saturating_sub(before));
        // The proxy answers others while it holds them.
        assert_eq!(proxy.get("/", &[]).await.status, 200);
        drop(held);
        eventually("the bombs are gone", || process::memory(proxy.pid()).saturating_sub(before) < 20 << 20).await;
        let bound = (BOMBS << 21).max(sent * 20) as u64;
        assert!(most < bound, "{references}: {most} bytes for {sent}");
    }
}

#[tokio::test]
async fn an_overloaded_proxy_sheds_requests() {
    let (proxy, upstream) = start("overload: {memory: 32MiB, close_at: 1, shed_at: 2}", "", "").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut client = Client::http1(proxy.address()).await;
        let reply = client.get("/", &[]).await;
        if reply.status == 503 {
            reply.assert_failed(503, "overloaded");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{reply:?}");
    }
    let before = upstream.count();
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let reply = raw.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("connection").as_str()), (503, "close"), "{reply:?}");
    assert!(raw.rest().await.is_empty());
    assert_eq!(upstream.count(), before);
    assert!(proxy.metric(CLOSED, &[("reason", "overload")]).await >= 1);
}

#[tokio::test]
async fn by_default_half_of_what_the_process_may_use_is_what_counts() {
    let upstream = Upstream::http1("app").await;
    // A megabyte or two, which a running proxy always takes.
    let yaml = format!(
        "overload: {{close_at: 1, shed_at: 1}}\nlisteners: [{{address: 127.0.0.1:0}}]\nroutes: [{{upstream: 'http://{}'}}]\n",
        upstream.address()
    );
    let dir = Arc::new(place());
    let [palisade, _] = programs_in(dir.path());
    let script = dir.path().join("little");
    std::fs::write(&script, format!("#!/bin/sh\nulimit -d 262144\nexec {} \"$@\"\n", palisade.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options { program: Some(script), ..Options::default() };
    let proxy = Proxy::start_with(dir, &yaml, &options).await;
    let started = std::time::Instant::now();
    while proxy.get("/", &[]).await.status != 503 {
        assert!(started.elapsed() < palisade_tests::LONG, "nothing is refused\n{}", proxy.log());
    }
    proxy.get("/", &[]).await.assert_failed(503, "overloaded");
}

/// The proxy may have 64 of them.
fn with_few_descriptors(dir: &Path) -> Options {
    let [palisade, _] = programs_in(dir);
    let script = dir.join("few");
    std::fs::write(&script, format!("#!/bin/sh\nulimit -n 64\nexec {} \"$@\"\n", palisade.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    Options { program: Some(script), ..Options::default() }
}

#[tokio::test]
async fn with_few_descriptors_what_is_there_goes_on() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]\nroutes: [{{upstream: 'http://{}'}}]\n",
        upstream.address()
    );
    let dir = Arc::new(place());
    let options = with_few_descriptors(dir.path());
    let proxy = Proxy::start_with(dir, &yaml, &options).await;
    let mut kept = Client::http1(proxy.address()).await;
    assert_eq!(kept.get("/", &[]).await.status, 200);
    // More than there is room for: they wait in the queue.
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        crowd.push(raw);
    }
    for _ in 0..20 {
        assert_eq!(kept.get("/", &[]).await.status, 200);
    }
    // Each is served once others have gone.
    for mut raw in crowd {
        let reply = raw.reply().await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    assert!(!proxy.log().contains("accepting failed"), "{}", proxy.log());
}

#[tokio::test]
async fn idle_connections_to_upstreams_keep_no_descriptors_from_requests() {
    let upstream = Upstream::http1("app").await;
    let (mut upstreams, mut routes) = (String::new(), String::new());
    for n in 0..60 {
        writeln!(upstreams, "  app{n}: {{endpoints: ['{}'], idle_timeout: 10m}}", upstream.address()).unwrap();
        writeln!(routes, "  - {{path: /{n}, upstream: app{n}}}").unwrap();
    }
    let yaml = format!("listeners: [{{address: 127.0.0.1:0}}]\nupstreams:\n{upstreams}routes:\n{routes}");
    let dir = Arc::new(place());
    let options = with_few_descriptors(dir.path());
    let proxy = Proxy::start_with(dir, &yaml, &options).await;
    // A connection that is refused has no answer.
    let ask = |n: usize| {
        let address = proxy.address();
        async move {
            let mut raw = Raw::connect(address).await;
            raw.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
            raw.reply().await.map(|reply| reply.status)
        }
    };
    // One for each is kept, as long as there are descriptors.
    for n in 0..60 {
        ask(n).await;
    }
    for n in 0..60 {
        soon("an answer", async { while ask(n).await != Some(200) {} }).await;
    }
}

/// The descriptors of the proxy that there may be from here on are those below `most`.
fn allow_descriptors(proxy: &Proxy, most: u64) {
    let pid = rustix::process::Pid::from_raw(proxy.pid());
    // As the proxy has inherited it.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = prlimit(pid, Resource::Nofile, Rlimit { current: Some(most), maximum });
    assert!(limit.is_ok(), "{limit:?}");
}

#[tokio::test]
async fn without_descriptors_connections_are_refused_and_afterwards_none_is() {
    let (mut proxy, _upstream) = start("workers: 2", "", "").await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().count() as u64;
    // Not even the one in reserve can be had back.
    allow_descriptors(&proxy, 3);
    // Each worker may be within accept(2) since before, with a descriptor for one.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Raw::connect(proxy.address()).await);
    }
    proxy.wait_for_log("that nothing can be taken", |line| line.contains("accepting failed")).await;
    allow_descriptors(&proxy, open + 8);
    let refused = || proxy.log().matches("a connection is refused").count();
    for _ in 0..200 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        match raw.reply().await {
            Some(_) => held.push(raw),
            None if refused() < 6 => {}
            None => break,
        }
    }
    assert!(refused() >= 6, "{}", proxy.log());
    allow_descriptors(&proxy, 1024);
    for _ in 0..50 {
        let mut client = Client::http1(proxy.address()).await;
        assert_eq!(client.get("/", &[]).await.status, 200);
    }
    assert!(proxy.metric(CLOSED, &[("reason", "descriptors")]).await >= 6);
}
