//! In which order a proxy ends: it says so first, and its plugins go last.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::process::runs;
use palisade_tests::{ADMIN, Client, Proxy, Raw, Upstream, eventually, fake, get, soon};
use tokio::net::TcpStream;

async fn start() -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "drain_timeout: 60s
listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    );
    (Proxy::start(&yaml).await, upstream)
}

#[tokio::test]
async fn readiness_goes_first_and_plugins_go_last() {
    let (mut proxy, upstream) = start().await;
    let plugin = proxy.plugin_pid("auth").await;
    let mut client = Client::http1(proxy.address()).await;
    let mut held = client.stream(get("/hold", &[ADMIN]).map(drop));
    held.end();
    upstream.until_asked(1).await;
    let mut admin = Client::http1_unix(&proxy.runtime_dir().join("admin.sock")).await;
    assert_eq!(admin.get("/ready", &[]).await.status, 200);

    proxy.terminate();
    proxy.wait_for_log("the drain", |line| line.contains("draining")).await;
    let ready = admin.get("/ready", &[]).await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(ready.text().contains(r#""state":"draining""#), "{ready:?}");
    // A request is under way, so nothing that it may need has gone.
    assert_eq!(proxy.plugin("auth").await["state"], "serving");
    assert!(runs(plugin));

    upstream.release();
    let reply = held.finish().await;
    assert_eq!((reply.status, reply.header("connection").as_str()), (200, "close"), "{reply:?}");
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
    assert!(!runs(plugin));
    // What it has written may be read after its end is seen.
    eventually("the end is in the log", || proxy.log().contains("plugin `auth` was stopped")).await;
    let log = proxy.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    assert!(at("draining") < at("plugin `auth` was stopped"), "{log}");
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET` of a path by the user that is let through (RFC 7541: indexed fields, then literal ones).
fn request(stream: u32, path: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| [name, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    let fields = [vec![0x82, 0x86], literal(&[0x04], path), literal(&[0x01], "a"), literal(b"\x00\x04user", "admin")];
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields.concat())
}

async fn next(raw: &mut Raw<TcpStream>) -> Frame {
    let head = soon("a frame", raw.exactly(9)).await;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let payload = soon("a frame's payload", raw.exactly(usize::try_from(length).unwrap())).await;
    Frame { kind: head[3], flags: head[4], stream, payload }
}

/// Reads on to a frame of this kind; what is passed by and ends a stream is noted.
async fn until(raw: &mut Raw<TcpStream>, kind: u8, ended: &mut Vec<u32>) -> Frame {
    loop {
        let frame = next(raw).await;
        if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
            ended.push(frame.stream);
        }
        if frame.kind == kind {
            return frame;
        }
    }
}

fn last_stream(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[..4].try_into().unwrap())
}

#[tokio::test]
async fn http2_clients_are_told_twice_and_what_they_asked_between_is_answered() {
    let (mut proxy, upstream) = start().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[]), request(1, "/hold")].concat())
        .await;
    upstream.until_asked(1).await;

    proxy.terminate();
    let mut ended = Vec::new();
    let first = until(&mut raw, GOAWAY, &mut ended).await;
    assert_eq!(last_stream(&first), u32::MAX >> 1, "the first says only that the end comes: {first:?}");
    let ping = until(&mut raw, PING, &mut ended).await;
    assert_eq!(ping.flags & ACK, 0, "{ping:?}");
    // On its way when the client heard of it.
    raw.send(request(3, "/")).await;
    raw.send(frame(PING, ACK, 0, &ping.payload)).await;
    let second = until(&mut raw, GOAWAY, &mut ended).await;
    assert_eq!(last_stream(&second), 3, "the second says which requests are answered: {second:?}");
    upstream.release();
    while !(ended.contains(&1) && ended.contains(&3)) {
        let frame = next(&mut raw).await;
        if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
            ended.push(frame.stream);
        }
    }
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
}
