//! How connections end: slow readers, drains, and what a connection counts for until it is gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use palisade_tests::tls::Authority;
use palisade_tests::{Client, Proxy, Raw, Upstream, fake, get, place};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn yaml(upstream: &Upstream, top: &str, limits: &str) -> String {
    format!(
        "{top}
listeners: [{{name: web, address: 127.0.0.1:0, limits: {{{limits}}}}}]
routes: [{{upstream: 'http://{}', upgrades: [websocket]}}]
",
        upstream.address()
    )
}

/// A proxy with a cleartext listener `web` and one with TLS, `secure`, with the certificate for `a.example` in `dir`.
fn yaml_with_tls(upstream: &Upstream, addresses: [&str; 2], top: &str, limits: &str, certificates: &Path) -> String {
    let [web, secure] = addresses;
    format!(
        "{top}
listeners:
  - {{name: web, address: '{web}', limits: {{{limits}}}}}
  - {{name: secure, address: '{secure}', limits: {{{limits}}}, tls: certs}}
routes: [{{upstream: 'http://{}'}}]
plugins: {{certs: {{command: {}, config: {{dir: '{}'}}}}}}
",
        upstream.address(),
        fake(&["serve"]),
        certificates.display()
    )
}

/// Long enough that it can't stay in the buffers of the kernel.
const LONG_BODY: usize = 6 << 20;

/// Reads a body piece by piece with a pause before each.
async fn read_slowly<I: AsyncRead + AsyncWrite + Unpin>(raw: &mut Raw<I>, length: usize) {
    const PIECE: usize = 64 * 1024;
    let mut left = length;
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let piece = raw.exactly(left.min(PIECE)).await;
        assert!(piece.iter().all(|byte| *byte == b'x'));
        left -= piece.len();
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_everything() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&yaml(&upstream, "", "body_idle_timeout: 4s")).await;
    let address = proxy.address();
    let http1 = async {
        let mut raw = Raw::connect_narrow(address).await;
        raw.send(format!("GET /bytes/{LONG_BODY} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(raw.reply_head().await.unwrap().status, 200);
        read_slowly(&mut raw, LONG_BODY).await;
        raw.send(GET).await;
        assert_eq!(raw.reply().await.unwrap().status, 200);
    };
    let http2 = async {
        let mut client = Client::http2_narrow(TcpStream::connect(address).await.unwrap(), "a.example").await;
        let mut stream = client.stream(get(&format!("/bytes/{LONG_BODY}"), &[]).map(drop));
        stream.end();
        assert_eq!(stream.head().await.status(), 200);
        let mut received = 0;
        let mut paid = 0;
        while let Some(frame) = stream.frame().await {
            received += frame.into_data().unwrap().len();
            while received >= paid + 64 * 1024 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                paid += 64 * 1024;
            }
        }
        assert_eq!(received, LONG_BODY);
        assert_eq!(client.get("/", &[]).await.status, 200);
    };
    tokio::join!(http1, http2);
}

#[tokio::test]
async fn a_drain_lets_a_slow_reader_have_everything() {
    let upstream = Upstream::http1("app").await;
    let mut proxy = Proxy::start(&yaml(&upstream, "drain_timeout: 60s", "")).await;
    let mut raw = Raw::connect_narrow(proxy.address()).await;
    raw.send(format!("GET /bytes/{LONG_BODY} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert_eq!(raw.reply_head().await.unwrap().status, 200);
    read_slowly(&mut raw, LONG_BODY / 8).await;
    proxy.terminate();
    read_slowly(&mut raw, LONG_BODY - LONG_BODY / 8).await;
    assert!(raw.rest().await.is_empty());
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
    assert!(!proxy.log().contains("drain timeout"), "{}", proxy.log());
}

#[tokio::test]
async fn silent_connections_do_not_hold_up_a_drain() {
    const LIMITS: &str = "header_timeout: 60s, tls_handshake_timeout: 60s, idle_timeout: 60s";
    let (authority, certificates) = (Authority::new(), place());
    authority.certificate(&["a.example"]).write(certificates.path(), "a");
    let upstream = Upstream::http1("app").await;
    let any = ["127.0.0.1:0"; 2];
    let mut proxy =
        Proxy::start(&yaml_with_tls(&upstream, any, "drain_timeout: 30s", LIMITS, certificates.path())).await;
    let mut silent = Vec::new();
    // Nothing; half a record of a handshake.
    for (listener, sent) in [("web", ""), ("secure", ""), ("secure", "\x16\x03\x01")] {
        let mut raw = Raw::connect(proxy.address_of(listener)).await;
        raw.send(sent).await;
        silent.push(raw);
    }
    // A handshake and then nothing.
    let secured = authority.client().connect(proxy.address_of("secure"), "a.example").await.unwrap();
    for (listener, count) in [("web", 1), ("secure", 3)] {
        proxy.until_metric("palisade_connections", &[("listener", listener)], count).await;
    }
    proxy.terminate();
    let asked = Instant::now();
    let status = proxy.wait_exit().await;
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}: {}", asked.elapsed(), proxy.log());
    assert_eq!(status.code(), Some(0), "{}", proxy.log());
    for mut raw in silent {
        raw.rest().await;
    }
    drop(secured);
}

/// A client that was told to go elsewhere a moment ago may still come here.
#[tokio::test]
async fn connections_made_just_before_a_drain_are_served() {
    let (authority, certificates) = (Authority::new(), place());
    authority.certificate(&["a.example"]).write(certificates.path(), "a");
    let upstream = Upstream::http1("app").await;
    let any = ["127.0.0.1:0"; 2];
    let mut proxy = Proxy::start(&yaml_with_tls(&upstream, any, "drain_timeout: 30s", "", certificates.path())).await;
    let (web, secure) = (proxy.address_of("web"), proxy.address_of("secure"));
    let mut http1 = Vec::new();
    for _ in 0..5 {
        http1.push(Raw::connect(web).await);
    }
    let http2 = TcpStream::connect(web).await.unwrap();
    let tls = TcpStream::connect(secure).await.unwrap();
    let shaken = authority.client().connect(secure, "a.example").await.unwrap();
    proxy.terminate();
    proxy.wait_for_log("the drain", |line| line.contains("draining")).await;
    for raw in &mut http1 {
        raw.send(GET).await;
    }
    let http2 = async { Client::http2_over(http2, "a.example").await.get("/", &[]).await };
    let tls = async {
        let stream = authority.client().connect_over(tls, "a.example").await.unwrap();
        Client::http1_over(stream, "a.example").await.get("/", &[]).await
    };
    let shaken = async { Client::http1_over(shaken, "a.example").await.get("/", &[]).await };
    let (http2, tls, shaken) = tokio::join!(http2, tls, shaken);
    assert_eq!([http2.status, tls.status, shaken.status], [200; 3], "{http2:?}\n{tls:?}\n{shaken:?}");
    for mut raw in http1 {
        let reply = raw.reply().await.expect("an answer");
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
}

#[tokio::test]
async fn a_tunnel_is_a_connection_until_it_ends() {
    const OPEN: &str = "palisade_connections";
    const WEB: [(&str, &str); 1] = [("listener", "web")];
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&yaml(&upstream, "", "max_connections: 1")).await;
    let mut tunnel = Raw::connect(proxy.address()).await;
    tunnel.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(tunnel.reply().await.unwrap().status, 101);
    tunnel.send("ping").await;
    assert_eq!(tunnel.exactly(4).await, b"ping");
    let mut next = Raw::connect(proxy.address()).await;
    next.send(GET).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), next.reply()).await.is_err(), "it was served beside a tunnel");
    assert_eq!((proxy.metric(OPEN, &WEB).await, upstream.count()), (1, 1));
    tunnel.send("pong").await;
    assert_eq!(tunnel.exactly(4).await, b"pong");
    drop(tunnel);
    assert_eq!(next.reply().await.unwrap().status, 200);
    assert_eq!(proxy.metric(OPEN, &WEB).await, 1);
    drop(next);
    proxy.until_metric(OPEN, &WEB, 0).await;
}

/// The answer is there long before the upload has ended: a client that reads it only then must not find a connection
/// that was reset meanwhile.
#[tokio::test]
async fn an_answer_reaches_a_client_that_first_sends_all_of_its_upload() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&yaml(&upstream, "", "")).await;
    let upload = vec![b'x'; LONG_BODY];
    // Refused before it is a request, and after that.
    for head in ["GET / HTTP/1.1\r\nHost: a\r\nBad Header: a", "POST /%00 HTTP/1.1\r\nHost: a"] {
        let mut stream = TcpStream::connect(proxy.address_of("web")).await.unwrap();
        stream.write_all(format!("{head}\r\nContent-Length: {LONG_BODY}\r\n\r\n").as_bytes()).await.unwrap();
        stream.write_all(&upload).await.expect("the connection is there until the client has sent everything");
        assert_eq!(Raw::over(stream).reply().await.expect("an answer").status, 400);
    }
}
