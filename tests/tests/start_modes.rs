//! How a plugin comes to be: by its handshake line (`handshake.rs`), or told where to listen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::{Proxy, Upstream, fake, filtered, place, run_to_exit};

fn config(actions: &[&str], upstream: &str, keys: &str) -> String {
    filtered(upstream, &format!("command: {}, timeout: 10s, stop_timeout: 300ms{keys}", fake(actions)))
}

async fn it_decides_and_comes_back(actions: &[&str], endpoint: &str, keys: &str) {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&config(actions, &upstream.address().to_string(), keys)).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    assert_eq!(proxy.get("/", &[("x-fake", "teapot")]).await.status, 418);
    let first = proxy.plugin("auth").await;
    assert!(first["endpoint"].as_str().unwrap().starts_with(endpoint), "{first:#}");
    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    assert_ne!(proxy.plugin("auth").await["endpoint"], first["endpoint"], "each start has a place of its own");
}

#[tokio::test]
async fn a_plugin_that_is_told_a_socket_serves_without_a_handshake() {
    // What looks like a handshake is none then.
    let noise = r"print:1|1|tcp|10.0.0.1:1|grpc\n";
    it_decides_and_comes_back(&[noise, "serve-at:{socket}"], "unix:/", "").await;
}

#[tokio::test]
async fn a_plugin_that_is_told_a_port_serves_without_a_handshake() {
    it_decides_and_comes_back(&["serve-at:127.0.0.1:{port}"], "tcp:127.0.0.1:", "").await;
}

#[tokio::test]
async fn a_plugin_that_does_not_listen_where_it_was_told_ends_the_start() {
    let dir = place();
    let cases: &[(&[&str], &str)] = &[
        (&["stay", "{socket}"], "does not listen on unix:"),
        (&["stay", "{port}"], "does not listen on tcp:127.0.0.1:"),
        (&["touch:plugin.sock", "stay", "{socket}"], "is not a socket"),
    ];
    for (actions, cause) in cases {
        let yaml = config(actions, "127.0.0.1:9", ", handshake_timeout: 500ms");
        let outcome = run_to_exit(dir.path(), &yaml).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(cause), "no {cause:?} in {}", outcome.stderr);
    }
}
