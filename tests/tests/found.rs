//! Plugins that somebody else has started, at an `address`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::process::{kill, runs};
use palisade_tests::{Client, Load, Proxy, Upstream, fake, filtered, get, place, soon};
use serde_json::Value;
use tempfile::TempDir;

/// A plugin that this test has started, as systemd would. It listens on a unix socket of its own, or on a port.
struct Stranger {
    child: Child,
    dir: TempDir,
    command: Vec<String>,
    address: String,
}

impl Stranger {
    fn on_unix() -> Self {
        let dir = place();
        let socket = dir.path().join("s").display().to_string();
        Self::at(dir, &socket, format!("unix:{socket}"))
    }

    fn on_tcp() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::at(place(), &port.to_string(), format!("tcp:{port}"))
    }

    fn at(dir: TempDir, place: &str, address: String) -> Self {
        Self::after(&[], dir, place, address)
    }

    fn after(actions: &[&str], dir: TempDir, place: &str, address: String) -> Self {
        let serve = format!("serve-at:{place}");
        let command: Vec<String> = serde_json::from_str(&fake(&[actions, &[&serve]].concat())).unwrap();
        Self { child: spawn(&command), dir, command, address }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(self.dir.path().join("s")).ok();
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.command);
    }

    /// A proxy with this plugin as its filter.
    fn yaml(&self, upstream: &Upstream, keys: &str) -> String {
        yaml(upstream, &format!("address: '{}'{keys}", self.address))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.kill9();
    }
}

#[tokio::test]
async fn a_second_socket_at_an_address_is_not_looked_for() {
    let (upstream, dir) = (Upstream::http1("app").await, place());
    let socket = dir.path().join("s").display().to_string();
    let actions = ["needs:batches", "stream-socket:none"];
    let stranger = Stranger::after(&actions, dir, &socket, format!("unix:{socket}"));
    let proxy = Proxy::start(&stranger.yaml(&upstream, ", timeout: 20s")).await;
    let reply = proxy.get("/", &[palisade_tests::ADMIN]).await;
    assert_eq!((reply.status, reply.header("x-stream").as_str()), (200, "1"), "{reply:?}");
}

/// One made with the Rust SDK, which needs what a host would tell it.
#[tokio::test]
async fn a_plugin_of_the_sdk_serves_at_an_address_one_proxy_after_the_other() {
    let (upstream, dir) = (Upstream::http1("app").await, place());
    let command: Vec<String> = serde_json::from_str(&fake(&["serve"])).unwrap();
    let mut plugin = Command::new(&command[0]);
    plugin.args(&command[1..]).env("PALISADE_PLUGIN", "ON").env("PLUGIN_UNIX_SOCKET_DIR", dir.path());
    let stranger = Stranger {
        child: plugin.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(),
        address: format!("unix:{}/plugin.sock", dir.path().display()),
        dir,
        command,
    };
    for config in ["{a: 1}", "{a: 2}"] {
        let proxy = Proxy::start(&stranger.yaml(&upstream, &format!(", timeout: 20s, config: {config}"))).await;
        assert_eq!(proxy.get("/", ADMIN).await.status, 200);
        // Batched, and too large for a batch.
        let large = "x".repeat(20_000);
        let reply = proxy.get("/", &[("user", "admin"), ("x-large", &large)]).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn spawn(command: &[String]) -> Child {
    let [program, arguments @ ..] = command else { unreachable!() };
    Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap()
}

fn yaml(upstream: &Upstream, plugin: &str) -> String {
    filtered(upstream.address(), plugin)
}

const ADMIN: &[(&str, &str)] = &[("user", "admin")];

async fn it_judges_is_lost_and_found_again(mut stranger: Stranger) {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&stranger.yaml(&upstream, ", timeout: 2s")).await;
    assert_eq!(proxy.get("/", ADMIN).await.status, 200);
    assert_eq!(proxy.get("/", &[]).await.status, 403);
    let status = proxy.plugin("auth").await;
    assert_eq!((&status["pid"], &status["endpoint"]), (&Value::Null, &Value::from(&*stranger.address)));

    stranger.kill9();
    let reply = proxy.get("/", ADMIN).await;
    assert_eq!((reply.status, &*reply.header("x-palisade-reason")), (503, "plugin_unavailable"));
    proxy.until_metric("palisade_plugin_up", &[("plugin", "auth")], 0).await;
    let report = proxy.plugin("auth").await["last_exit_report"].as_str().unwrap().to_owned();
    assert!(report.contains(&format!("address: {}", stranger.address)), "{report}");

    stranger.start_again();
    proxy.until("auth", "serving again", |status| status["state"] == "serving").await;
    assert_eq!(proxy.get("/", ADMIN).await.status, 200);
}

#[tokio::test]
async fn a_plugin_at_a_unix_socket_judges_is_lost_and_found_again() {
    it_judges_is_lost_and_found_again(Stranger::on_unix()).await;
}

#[tokio::test]
async fn a_plugin_at_a_port_judges_is_lost_and_found_again() {
    it_judges_is_lost_and_found_again(Stranger::on_tcp()).await;
}

#[tokio::test]
async fn orders_reach_as_far_as_the_connection() {
    let stranger = Stranger::on_unix();
    let upstream = Upstream::http1("app").await;
    let mut proxy = Proxy::start(&stranger.yaml(&upstream, ", timeout: 5s")).await;
    let restarted = proxy.cli(&["plugin", "restart", "auth"]).await;
    assert_eq!((restarted.code, &*restarted.stdout), (Some(0), "auth: serving\n"), "{restarted:?}");
    assert_eq!(proxy.plugin("auth").await["restarts"], 1);
    assert_eq!(proxy.cli(&["plugin", "stop", "auth"]).await.code, Some(0));
    assert_eq!(proxy.get("/", ADMIN).await.status, 503);
    assert_eq!(proxy.cli(&["plugin", "start", "auth"]).await.code, Some(0));
    assert_eq!(proxy.get("/", ADMIN).await.status, 200);
    for refused in [&["plugin", "upgrade", "auth"][..], &["plugin", "inspect", "auth"]] {
        let outcome = proxy.cli(refused).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let said = "plugin `auth` has an `address`: the proxy has not started it";
        assert!(outcome.stderr.contains(said), "{outcome:?}");
    }
    let file = proxy.dir().join("palisade.yaml");
    let pinned = proxy.cli(&["plugin", "pin", "auth", "-c", file.to_str().unwrap()]).await;
    assert_eq!(pinned.code, Some(1), "{pinned:?}");
    assert!(pinned.stderr.contains("has an `address`"), "{pinned:?}");

    proxy.terminate();
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
    assert!(runs(stranger.pid()), "what others have started outlives the proxy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_line_moves_a_plugin_between_start_modes_and_addresses() {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    let (blue, green) = (Stranger::on_unix(), Stranger::on_tcp());
    let commands = [fake(&["serve"]), fake(&["serve-at:{socket}"])].map(|command| format!("command: {command}"));
    let addresses = [&blue, &green].map(|stranger| format!("address: '{}'", stranger.address));
    let rest = ", timeout: 10s, probation: 50ms";
    let proxy = Proxy::start_in(Arc::clone(&dir), &yaml(&upstream, &format!("{}{rest}", commands[0]))).await;
    let load = Load::on(proxy.address());
    for line in [&addresses[0], &addresses[1], &commands[1], &addresses[0], &commands[0]] {
        load.more(30).await;
        let text = yaml(&upstream, &format!("{line}{rest}"));
        std::fs::write(dir.path().join("palisade.yaml"), text).unwrap();
        let reloaded = proxy.cli(&["reload"]).await;
        assert_eq!(reloaded.code, Some(0), "{line}: {reloaded:?}");
    }
    load.more(30).await;
    load.end().await;
}

#[tokio::test]
async fn one_that_hangs_is_disconnected_and_connected_to_again() {
    let stranger = Stranger::on_unix();
    let upstream = Upstream::http1("app").await;
    let health = ", timeout: 2s, health: {interval: 100ms, timeout: 100ms}, ready_timeout: 60s";
    let proxy = Proxy::start(&stranger.yaml(&upstream, health)).await;
    kill(stranger.pid(), Signal::SIGSTOP);
    let lost = proxy.until("auth", "given up", |status| !status["last_exit"].is_null()).await;
    let report = lost["last_exit_report"].as_str().unwrap();
    assert!(report.contains("stopped answering health checks and was disconnected"), "{report}");
    assert_eq!(proxy.get("/", ADMIN).await.status, 503);
    kill(stranger.pid(), Signal::SIGCONT);
    proxy.until("auth", "serving again", |status| status["state"] == "serving").await;
    assert_eq!(proxy.get("/", ADMIN).await.status, 200);
}

#[tokio::test]
async fn a_required_plugin_that_is_not_there_ends_the_start() {
    let (mut stranger, dir) = (Stranger::on_unix(), place());
    stranger.kill9();
    let upstream = Upstream::http1("app").await;
    let yaml = stranger.yaml(&upstream, ", ready_timeout: 300ms");
    let outcome = palisade_tests::run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("was not ready within 300ms: connect to unix:"), "{}", outcome.stderr);
    assert!(outcome.took < Duration::from_secs(30));
}

/// The filter's plugin with this `config`, and another plugin.
fn beside(stranger: &Stranger, upstream: &Upstream, config: &str, other: &str) -> String {
    let auth = format!("address: '{}', timeout: 20s, probation: 20s, config: {config}", stranger.address);
    yaml(upstream, &auth).replace("plugins: {", &format!("plugins: {{other: {{{other}}}, "))
}

async fn until_status(proxy: &Proxy, status: u16) {
    let waiting = async {
        while proxy.get("/", ADMIN).await.status != status {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(format!("a reply with {status}"), waiting).await;
}

#[tokio::test]
async fn what_a_refused_reload_has_configured_is_configured_as_before() {
    let (stranger, dir, upstream) = (Stranger::on_unix(), place(), Upstream::http1("app").await);
    let proxy = Proxy::start(&beside(&stranger, &upstream, "{a: 1}", &format!("command: {}", fake(&["serve"])))).await;
    assert_eq!(proxy.get("/", ADMIN).await.status, 200);
    // Fails when the other plugin has its new configuration.
    let go = dir.path().join("go");
    let waits = format!("until [ -e {} ]; do sleep 0.05; done; exit 4", go.display());
    let other = format!("command: [/bin/sh, -c, '{waits}'], handshake_timeout: 60s");
    std::fs::write(proxy.dir().join("palisade.yaml"), beside(&stranger, &upstream, "{a: 2}", &other)).unwrap();
    let (outcome, ()) = tokio::join!(proxy.cli(&["reload"]), async {
        until_status(&proxy, 503).await;
        std::fs::write(&go, "").unwrap();
    });
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("what was there before stays in force"), "{outcome:?}");
    let reply = proxy.get("/", ADMIN).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn what_an_undone_reload_has_configured_is_configured_as_before() {
    let (stranger, upstream) = (Stranger::on_unix(), Upstream::http1("app").await);
    let other = format!("command: {}, probation: 20s, config: ", fake(&["serve"]));
    let text = |n: &str| beside(&stranger, &upstream, &format!("{{a: {n}}}"), &format!("{other}{{a: {n}}}"));
    let proxy = Proxy::start(&text("1")).await;
    let pid = proxy.plugin_pid("other").await;
    std::fs::write(proxy.dir().join("palisade.yaml"), text("2")).unwrap();
    let (outcome, ()) = tokio::join!(proxy.cli(&["reload"]), async {
        let next = proxy.until_replaced("other", pid).await;
        assert_eq!(proxy.get("/", ADMIN).await.status, 200);
        kill(next, Signal::SIGKILL);
    });
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("undone within the probation"), "{outcome:?}");
    let reply = proxy.get("/", ADMIN).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn what_was_replaced_is_not_configured_as_before_when_the_plugin_comes_back() {
    let (mut stranger, upstream) = (Stranger::on_unix(), Upstream::http1("app").await);
    let text = |n: u8| stranger.yaml(&upstream, &format!(", timeout: 20s, probation: 0s, config: {{a: {n}}}"));
    let (first, second) = (text(1), text(2));
    let proxy = Proxy::start(&first).await;
    // Keeps the first generation.
    let mut client = Client::http1(proxy.address()).await;
    let mut held = client.stream(get("/hold", ADMIN).map(drop));
    held.end();
    upstream.until_asked(1).await;
    std::fs::write(proxy.dir().join("palisade.yaml"), second).unwrap();
    let reloaded = proxy.cli(&["reload"]).await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    stranger.kill9();
    // Before anybody can connect to it again.
    let stopped = async {
        while !proxy.cli(&["events"]).await.stdout.contains("-> stopped") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("what was replaced is stopped", stopped).await;
    stranger.start_again();
    proxy.until("auth", "serving again", |status| status["state"] == "serving").await;
    let reply = proxy.get("/", ADMIN).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    upstream.release();
    assert_eq!(held.finish().await.status, 200);
    let serves = proxy.log().matches("the plugin serves").count();
    assert_eq!(serves, 3, "{}", proxy.log());
}
