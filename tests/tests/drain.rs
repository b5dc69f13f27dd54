//! A drain and the ends of responses that are still on their way to clients that wait before they read on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use palisade_tests::tls::Authority;
use palisade_tests::{Client, Proxy, Raw, Upstream, fake, get, place};
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;

/// What a client speaks that has asked and reads nothing.
#[derive(Debug, Clone, Copy)]
enum Over {
    Http1,
    Tls,
    Http2,
}

enum Waiting {
    Http1(Raw<UnixStream>),
    Tls(Box<Raw<TlsStream<UnixStream>>>),
    /// The client holds the connection open.
    Http2(Client, palisade_tests::Stream),
}

impl Waiting {
    async fn rest(self) -> usize {
        match self {
            Self::Http1(mut raw) => {
                assert_eq!(raw.reply_head().await.unwrap().status, 200);
                raw.rest().await.len()
            }
            Self::Tls(mut raw) => {
                assert_eq!(raw.reply_head().await.unwrap().status, 200);
                raw.rest().await.len()
            }
            Self::Http2(_client, stream) => stream.rest().await.len(),
        }
    }
}

/// Has a proxy drain while its clients read nothing for a while. The end of a response that the proxy has taken from
/// its upstream, but not yet brought to the client, is in nobody's hands but the proxy's. How much that can be depends
/// on buffers, so there are responses of many lengths, over unix sockets, whose own buffers are small.
async fn a_drain_loses_nothing(over: Over) {
    const STEP: usize = 12 * 1024;
    /// Longer than the proxy waits for a connection that has nothing to do.
    const PAUSE: Duration = Duration::from_secs(7);
    let (authority, dir) = (Authority::new(), place());
    authority.certificate(&["a.example"]).write(dir.path(), "a");
    let upstream = Upstream::http1("app").await;
    let socket = dir.path().join("web.sock");
    let tls = if matches!(over, Over::Tls) { ", tls: certs" } else { "" };
    let yaml = format!(
        "drain_timeout: 60s
listeners: [{{name: web, address: 'unix:{}'{tls}}}]
routes: [{{upstream: 'http://{}'}}]
plugins: {{certs: {{command: {}, config: {{dir: '{}'}}}}}}
",
        socket.display(),
        upstream.address(),
        fake(&["serve"]),
        dir.path().display()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut open = Vec::new();
    for length in (STEP..=40 * STEP).step_by(STEP) {
        let path = format!("/bytes/{length}");
        let ask = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let stream = UnixStream::connect(&socket).await.unwrap();
        let waiting = match over {
            Over::Http1 => {
                let mut raw = Raw::over(stream);
                raw.send(&ask).await;
                Waiting::Http1(raw)
            }
            Over::Tls => {
                let mut raw = Raw::over(authority.client().connect_over(stream, "a.example").await.unwrap());
                raw.send(&ask).await;
                Waiting::Tls(Box::new(raw))
            }
            Over::Http2 => {
                let mut client = Client::http2_narrow(stream, "a.example").await;
                let mut stream = client.stream(get(&path, &[]).map(drop));
                stream.end();
                Waiting::Http2(client, stream)
            }
        };
        open.push((length, waiting));
    }
    upstream.until_asked(open.len()).await;
    proxy.terminate();
    proxy.wait_for_log("the drain", |line| line.contains("draining")).await;
    tokio::time::sleep(PAUSE).await;
    let mut cut = Vec::new();
    for (length, waiting) in open {
        // All are read to their end: one that is cut says nothing about the others.
        let got = waiting.rest().await;
        if got != length {
            cut.push((length, got));
        }
    }
    assert!(cut.is_empty(), "{over:?}: of so many bytes, so many came: {cut:?}");
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
    assert!(!proxy.log().contains("drain timeout"), "{}", proxy.log());
}

#[tokio::test]
async fn a_drain_loses_no_end_of_a_response() {
    a_drain_loses_nothing(Over::Http1).await;
}

#[tokio::test]
async fn a_drain_loses_no_end_of_a_response_with_tls() {
    a_drain_loses_nothing(Over::Tls).await;
}

#[tokio::test]
async fn a_drain_loses_no_end_of_a_response_with_http2() {
    a_drain_loses_nothing(Over::Http2).await;
}
