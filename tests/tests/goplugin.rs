//! Genuine go-plugin programs (`tests/go`) behind the proxy: built with the current release, and with v1.0.1, with
//! which MOSN's SDK is made. Skipped, with a message, where Go or its modules are not to be had.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::{GoPlugin, Options, Proxy, Upstream, place};

/// A proxy that logs everything, with this program as its filter.
async fn start(program: &Path, flags: &[&str], keys: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let mut command = vec![program.to_str().unwrap()];
    command.extend(flags);
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{contract: mosn, command: {}, timeout: 20s, handshake_timeout: 25s, ready_timeout: 25s{keys}}}}}
",
        upstream.address(),
        serde_json::to_string(&command).unwrap()
    );
    let options = Options { env: vec![("PALISADE_LOG".into(), "info,plugin=trace".into())], ..Options::default() };
    (Proxy::start_with(place().into(), &yaml, &options).await, upstream)
}

/// As a filter: it denies, allows, survives being killed, and ends by itself when it is asked to.
async fn it_decides(proxy: &Proxy, upstream: &Upstream) {
    let denied = proxy.get("/", &[("user", "guest")]).await;
    assert_eq!((denied.status, denied.reason().as_str()), (403, ""), "{denied:?}");
    assert_eq!(upstream.count(), 0);
    let allowed = proxy.get("/", &[("user", "admin")]).await;
    assert_eq!((allowed.status, allowed.text().as_str()), (200, "hello from app"), "{allowed:?}");
    assert_eq!(upstream.last().header("x-plugin-version"), "1");

    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
}

/// `GRPCController.Shutdown` ends it: SIGTERM would show as a signal.
async fn it_ends_when_asked(proxy: &Proxy) {
    let stopped = proxy.cli(&["plugin", "stop", "auth"]).await;
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let exit = &proxy.plugin("auth").await["last_exit"];
    assert_eq!(exit["cause"]["kind"], "requested", "{exit:#}");
    assert_eq!(exit["end"]["exited"], 0, "{exit:#}");
}

#[tokio::test]
async fn a_go_plugin_is_a_filter_and_stops_when_asked() {
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        let (mut proxy, upstream) = start(&program, &[], "").await;
        it_decides(&proxy, &upstream).await;
        // hclog's levels and pairs, from the stderr that its logger holds.
        let logged = |level: &'static str, parts: &'static [&'static str]| {
            move |line: &str| line.contains(level) && parts.iter().all(|part| line.contains(part))
        };
        proxy.wait_for_log("hclog's warning", logged("WARN", &["stream=stderr", "denied", "user=guest"])).await;
        proxy.wait_for_log("hclog's info", logged("INFO", &["stream=stderr", "allowed", "user=admin"])).await;
        proxy.wait_for_log("hclog's trace", logged("TRACE", &["stream=stderr", "asked", "version=1"])).await;
        it_ends_when_asked(&proxy).await;
    }
}

#[tokio::test]
async fn what_a_go_plugin_prints_after_its_handshake_is_taken_from_grpc_stdio() {
    // v1.0.1 has no GRPCStdio: what it prints stays with it, and blocks it after 64 KiB, whatever a host does.
    let Some(program) = GoPlugin::Current.program() else { return };
    let (mut proxy, _upstream) = start(&program, &["-talk", "256"], "").await;
    assert_eq!(proxy.get("/", &[("user", "guest")]).await.status, 403);
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    proxy.wait_for_log("what it printed", |line| line.contains("stream=stdio-stdout") && line.contains("xxxx")).await;
    let allowed =
        |line: &str| line.contains("INFO") && line.contains("stream=stdio-stderr") && line.contains("allowed");
    proxy.wait_for_log("what it printed on stderr", allowed).await;
}
