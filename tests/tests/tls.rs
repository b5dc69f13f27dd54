//! TLS with certificates from a plugin: which one a client gets, and that none of what goes wrong is seen by clients.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::tls::{Authority, Certificate, TlsClient, replace};
use palisade_tests::{Client, Proxy, Raw, Upstream, fake, place, soon};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A proxy whose listener has the certificates of a directory.
async fn start(certificates: &Path, tls: &str, upstream: &Upstream) -> Proxy {
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, tls: {{plugin: certs{tls}}}}}]
routes: [{{upstream: 'http://{}'}}]
plugins: {{certs: {{command: {}, config: {{dir: '{}'}}}}}}
",
        upstream.address(),
        fake(&["serve"]),
        certificates.display()
    );
    Proxy::start(&yaml).await
}

/// Waits until a server presents this certificate for a name.
async fn until_presented(proxy: &Proxy, authority: &Authority, name: &str, certificate: &Certificate) {
    let client = authority.client();
    soon("the new certificate", async {
        while client.presented(proxy.address(), name).await.unwrap() != certificate.der {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_bundle_that_does_not_fit_leaves_the_last_good_one() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    let (good, next) = (authority.certificate(&["a.example"]), authority.certificate(&["a.example"]));
    good.write(dir.path(), "a");
    let mut proxy = start(dir.path(), "", &upstream).await;
    let bad: [(&str, &str); 3] = [
        (&next.chain_pem, &good.key_pem),
        ("no certificate at all", &next.key_pem),
        (&next.chain_pem, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ];
    let refused = |log: &str| log.lines().filter(|line| line.contains("bundle refused")).count();
    for (chain, key) in bad {
        let before = refused(&proxy.log());
        replace(&dir.path().join("a.pem"), chain);
        replace(&dir.path().join("a.key"), key);
        soon("the bad bundle is refused", async {
            while refused(&proxy.log()) == before {
                let presented = authority.client().presented(proxy.address(), "a.example").await.unwrap();
                assert_eq!(presented, good.der);
            }
        })
        .await;
        let presented = authority.client().presented(proxy.address(), "a.example").await.unwrap();
        assert_eq!(presented, good.der);
    }
    next.write(dir.path(), "a");
    until_presented(&proxy, &authority, "a.example", &next).await;
    proxy.wait_for_log("why", |line| line.contains("does not belong to the certificate")).await;
    for secret in [&good.key_pem, &next.key_pem] {
        let body = secret.lines().nth(1).unwrap();
        assert!(!proxy.log().contains(body), "a key is in the log");
    }
}

/// Whether OpenSSL, which trusts `root` only, takes the server for `a.example`.
async fn openssl_trusts(proxy: &Proxy, root: &Path) -> bool {
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args(["s_client", "-brief", "-verify_return_error", "-verify_hostname", "a.example"]);
    openssl.args(["-servername", "a.example", "-connect", &proxy.address().to_string(), "-CAfile"]).arg(root);
    let output = openssl.stdin(std::process::Stdio::null()).output();
    soon("openssl", output).await.unwrap().status.success()
}

#[tokio::test]
async fn what_clients_may_refuse_is_served_and_told() {
    let (root, dir) = (Authority::new(), place());
    let below = root.intermediate();
    let upstream = Upstream::http1("app").await;
    let trusted = dir.path().join("root.crt");
    std::fs::write(&trusted, &root.pem).unwrap();
    let whole = below.certificate(&["a.example"]);
    whole.write(dir.path(), "a");
    let mut proxy = start(dir.path(), "", &upstream).await;
    assert!(openssl_trusts(&proxy, &trusted).await);
    assert_eq!(proxy.status().await["flawed_certificates"], serde_json::json!([]));

    let leaf = |chain: &str| chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_owned();
    let alone = below.certificate(&["a.example"]);
    let broken = below.certificate(&["a.example"]);
    for (certificate, chain, flaw) in [
        (&alone, leaf(&alone.chain_pem), "incomplete_chain"),
        // An issuer that is another's.
        (&broken, leaf(&broken.chain_pem) + &root.intermediate().certificate(&["b.example"]).chain_pem, "broken_chain"),
    ] {
        replace(&dir.path().join("a.key"), &certificate.key_pem);
        replace(&dir.path().join("a.pem"), &chain);
        proxy.wait_for_log(flaw, |line| line.contains("clients may refuse") && line.contains(flaw)).await;
        soon("it is served", async { while proxy.status().await["flawed_certificates"][0]["flaw"] != flaw {} }).await;
        assert!(!openssl_trusts(&proxy, &trusted).await, "{flaw}");
        let shown = proxy.cli(&["status"]).await.stdout;
        assert!(shown.contains("certificate \"a\" of certs: clients may refuse it"), "{shown}");
        let labels = [("plugin", "certs"), ("bundle", "a"), ("flaw", flaw)];
        assert_eq!(proxy.metric("palisade_certificate_flaws", &labels).await, 1, "{flaw}");
    }

    // The wrong way round it has no meaning, and the one before stays.
    let mut turned: Vec<_> = whole.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").collect();
    turned.reverse();
    replace(&dir.path().join("a.key"), &whole.key_pem);
    replace(&dir.path().join("a.pem"), &turned.concat());
    proxy.wait_for_log("why", |line| line.contains("the key belongs to number 2 of it")).await;
    whole.write(dir.path(), "a");
    soon("it is whole again", async { while !openssl_trusts(&proxy, &trusted).await {} }).await;
    assert_eq!(proxy.status().await["flawed_certificates"], serde_json::json!([]));
}

#[tokio::test]
async fn a_certificate_of_tomorrow_does_not_replace_one_of_today() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    let (good, next) = (authority.certificate(&["a.example"]), authority.certificate(&["a.example"]));
    let in_30_days = SystemTime::now() + Duration::from_secs(30 * 24 * 60 * 60);
    let early = authority.certificate_from(&["a.example"], in_30_days);
    good.write(dir.path(), "a");
    let mut proxy = start(dir.path(), "", &upstream).await;
    early.write(dir.path(), "a");
    let valid = |line: &str| line.contains("bundle refused") && line.contains("valid");
    proxy.wait_for_log("that it is not valid yet", valid).await;
    let client = authority.client();
    for _ in 0..3 {
        assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), good.der);
    }
    next.write(dir.path(), "a");
    until_presented(&proxy, &authority, "a.example", &next).await;
}

#[tokio::test]
async fn a_killed_plugin_leaves_its_last_certificate_in_service() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    let (first, second) = (authority.certificate(&["a.example"]), authority.certificate(&["a.example"]));
    first.write(dir.path(), "a");
    let proxy = start(dir.path(), "", &upstream).await;
    let pid = proxy.plugin_pid("certs").await;
    let client = authority.client();
    kill(pid, Signal::SIGKILL);
    for _ in 0..20 {
        assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), first.der);
    }
    let again = proxy.until_replaced("certs", pid).await;
    // The new process is watched as the old one was.
    second.write(dir.path(), "a");
    until_presented(&proxy, &authority, "a.example", &second).await;
    let stopped = proxy.cli(&["plugin", "stop", "certs"]).await;
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert!(!palisade_tests::process::runs(again));
    assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), second.der);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_fails_no_handshake() {
    let (authority, dir) = (Arc::new(Authority::new()), place());
    let upstream = Upstream::http1("app").await;
    let mut certificate = authority.certificate(&["a.example"]);
    certificate.write(dir.path(), "a");
    let proxy = start(dir.path(), "", &upstream).await;
    let (address, end, handshakes) = (proxy.address(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (authority, end, handshakes) = (Arc::clone(&authority), Arc::clone(&end), Arc::clone(&handshakes));
            tokio::spawn(async move {
                let client = authority.client().alpn(&["http/1.1"]);
                while !end.load(Ordering::SeqCst) {
                    let stream = client.connect(address, "a.example").await.unwrap();
                    let reply = Client::http1_over(stream, "a.example").await.get("/", &[]).await;
                    assert_eq!(reply.status, 200, "{reply:?}");
                    handshakes.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // One connection lives through all of it.
    let old = authority.client().alpn(&["h2"]).connect(address, "a.example").await.unwrap();
    let mut old = Client::http2_over(old, "a.example").await;
    for _ in 0..3 {
        certificate = authority.certificate(&["a.example"]);
        certificate.write(dir.path(), "a");
        until_presented(&proxy, &authority, "a.example", &certificate).await;
        assert_eq!(old.get("/", &[]).await.status, 200);
    }
    end.store(true, Ordering::SeqCst);
    for task in load {
        task.await.unwrap();
    }
    assert!(handshakes.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    let (a, b) = (authority.certificate(&["a.example"]), authority.certificate(&["*.b.example"]));
    a.write(dir.path(), "a");
    b.write(dir.path(), "b");
    let proxy = start(dir.path(), "", &upstream).await;
    let address = proxy.address();
    let client = authority.client();
    assert_eq!(client.presented(address, "a.example").await.unwrap(), a.der);
    assert_eq!(client.presented(address, "A.EXAMPLE").await.unwrap(), a.der);
    assert_eq!(client.presented(address, "x.b.example").await.unwrap(), b.der);
    // With more than one and no default, nobody else is served with a wrong one.
    for unknown in ["c.example", "b.example", "x.y.b.example"] {
        assert!(client.presented(address, unknown).await.is_err(), "{unknown}");
    }
    let nameless = authority.client().without_sni();
    assert!(nameless.presented(address, "a.example").await.is_err());
    assert_eq!(client.presented(address, "a.example").await.unwrap(), a.der);

    // A bundle that is withdrawn is not served any longer, and then the other is the only one.
    std::fs::remove_file(dir.path().join("b.pem")).unwrap();
    soon("the bundle is withdrawn", async {
        while client.presented(address, "x.b.example").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(nameless.presented(address, "a.example").await.unwrap(), a.der);
}

#[tokio::test]
async fn the_default_is_for_clients_that_name_no_server() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    let (a, b) = (authority.certificate(&["a.example"]), authority.certificate(&["b.example"]));
    a.write(dir.path(), "a");
    b.write(dir.path(), "b");
    authority.certificate(&["c.example"]).write(dir.path(), "c");
    let proxy = start(dir.path(), ", names: [a, b], default: b, only_tls13: true", &upstream).await;
    let address = proxy.address();
    let client = authority.client();
    assert_eq!(client.clone().without_sni().presented(address, "b.example").await.unwrap(), b.der);
    assert_eq!(client.presented(address, "a.example").await.unwrap(), a.der);
    // It was not asked for, so the default stands in, whose name is another.
    assert!(client.presented(address, "c.example").await.is_err());
}

#[tokio::test]
async fn alpn_chooses_the_protocol_and_plugins_see_the_facts() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    authority.certificate(&["a.example"]).write(dir.path(), "a");
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, tls: fake}}]
routes: [{{filters: [fake], upstream: 'http://{}'}}]
plugins: {{fake: {{command: {}, timeout: 10s, config: {{dir: '{}'}}}}}}
",
        upstream.address(),
        fake(&["serve"]),
        dir.path().display()
    );
    let proxy = Proxy::start(&yaml).await;
    let headers = [("user", "admin"), ("x-fake", "report")];
    for offered in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let stream = authority.client().alpn(offered).connect(proxy.address(), "a.example").await.unwrap();
        let agreed = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(agreed.as_deref(), offered.first().copied());
        let mut client = if agreed.as_deref() == Some("h2") {
            Client::http2_over(stream, "a.example").await
        } else {
            Client::http1_over(stream, "a.example").await
        };
        assert_eq!(client.get("/", &headers).await.status, 200, "{offered:?}");
        let seen = upstream.last();
        assert_eq!(seen.header("x-forwarded-proto"), "https");
        let report: serde_json::Value = serde_json::from_str(&seen.header("x-seen")).unwrap();
        let expected = serde_json::json!(["a.example", agreed.unwrap_or_default(), "TLSv1.3"]);
        assert_eq!(report["tls"], expected, "{offered:?}");
        assert_eq!(report["scheme"], "https");
    }
    let nothing_common = authority.client().alpn(&["spdy/3"]).connect(proxy.address(), "a.example").await;
    assert!(nothing_common.is_err());
}

#[tokio::test]
async fn whoever_makes_no_handshake_is_closed_and_others_are_served() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    authority.certificate(&["a.example"]).write(dir.path(), "a");
    let yaml = format!(
        "listeners:
  - name: web
    address: 127.0.0.1:0
    tls: certs
    limits: {{tls_handshake_timeout: 300ms, first_byte_timeout: 300ms}}
routes: [{{upstream: 'http://{}'}}]
plugins: {{certs: {{command: {}, config: {{dir: '{}'}}}}}}
",
        upstream.address(),
        fake(&["serve"]),
        dir.path().display()
    );
    let proxy = Proxy::start(&yaml).await;
    for sent in ["", "\x16\x03\x01", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send(sent).await;
        // Its end is what is waited for; an alert may come before it.
        let answer = raw.rest().await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    authority.client().presented(proxy.address(), "a.example").await.unwrap();
    // Nor does it help to make one and say nothing then.
    for protocol in ["http/1.1", "h2"] {
        let silent = authority.client().alpn(&[protocol]).connect(proxy.address(), "a.example").await.unwrap();
        // HTTP/2 has something to say first.
        Raw::over(silent).rest().await;
    }
    let labels = [("reason", "first_byte_timeout")];
    assert_eq!(proxy.metric("palisade_connections_closed_total", &labels).await, 2);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_required_plugin_without_a_certificate_ends_the_start() {
    let (dir, certificates) = (place(), place());
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, tls: certs}}]
plugins: {{certs: {{command: {}, ready_timeout: 2s, config: {{dir: '{}'}}}}}}
",
        fake(&["serve"]),
        certificates.path().display()
    );
    let outcome = palisade_tests::run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for part in ["plugin `certs`", "listener `web`", "certificate"] {
        assert!(outcome.stderr.contains(part), "no {part:?} in {}", outcome.stderr);
    }
}

/// How a client's handshake went. It reads all that comes with an answer, tickets too.
async fn handshake(client: &TlsClient, proxy: &Proxy) -> HandshakeKind {
    let mut stream = client.connect(proxy.address(), "a.example").await.unwrap();
    let kind = stream.get_ref().1.handshake_kind().unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("the end", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    kind
}

#[tokio::test]
async fn a_session_is_resumed_however_many_others_began_meanwhile() {
    let (authority, dir) = (Authority::new(), place());
    let upstream = Upstream::http1("app").await;
    authority.certificate(&["a.example"]).write(dir.path(), "a");
    let proxy = start(dir.path(), "", &upstream).await;
    let clients = [authority.client(), authority.client().only_tls12()];
    for client in &clients {
        assert_eq!(handshake(client, &proxy).await, HandshakeKind::Full);
        assert_eq!(handshake(client, &proxy).await, HandshakeKind::Resumed);
    }
    for _ in 0..300 {
        let other = authority.client().connect(proxy.address(), "a.example").await.unwrap();
        assert_eq!(other.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    for client in &clients {
        assert_eq!(handshake(client, &proxy).await, HandshakeKind::Resumed);
    }
    // Another start has another key, and another listener too.
    let other = start(dir.path(), "", &upstream).await;
    for client in &clients {
        assert_eq!(handshake(client, &other).await, HandshakeKind::Full);
        assert_eq!(handshake(client, &other).await, HandshakeKind::Resumed);
    }
}
