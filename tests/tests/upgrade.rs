//! Upgrades of plugins: the new beside the old, no request lost, and the old back when the new one is no good.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::process::{kill, runs};
use palisade_tests::tls::Authority;
use palisade_tests::{ADMIN, Client, Load, Outcome, Proxy, Upstream, fake, filtered, get, place, soon};
use serde_json::Value;
use tempfile::TempDir;

/// Makes the plugin's program: from now on, whoever starts it gets a fake that does these things.
fn install(dir: &Path, actions: &[&str]) {
    install_in(dir, ".", actions);
}

/// One that works in another directory.
fn install_in(dir: &Path, cwd: &str, actions: &[&str]) {
    let command: Vec<String> = serde_json::from_str(&fake(actions)).unwrap();
    let words: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
    write_program(dir, &format!("#!/bin/sh\ncd {cwd}\nexec {}\n", words.join(" ")));
}

/// As package managers do: a new file in the old one's place.
fn write_program(dir: &Path, script: &str) {
    use std::io::Write;
    let new = dir.join("plugin.new");
    let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o755).open(&new).unwrap();
    file.write_all(script.as_bytes()).unwrap();
    drop(file);
    std::fs::rename(new, dir.join("plugin")).unwrap();
}

/// A proxy with one filter, whose program is `./plugin`.
async fn start(plugin: &str) -> (Proxy, Upstream, Arc<TempDir>) {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    install(dir.path(), &["serve"]);
    let yaml = filtered(upstream.address(), &format!("command: [./plugin]{plugin}"));
    (Proxy::start_in(Arc::clone(&dir), &yaml).await, upstream, dir)
}

async fn upgrade(proxy: &Proxy) -> Outcome {
    proxy.cli(&["plugin", "upgrade", "auth"]).await
}

fn pids(status: &Value) -> Vec<i64> {
    status["plugins"].as_array().unwrap().iter().map(|plugin| plugin["pid"].as_i64().unwrap()).collect()
}

/// Upgrades, one after the other and at most one in `every`, while requests go on.
async fn upgrades_under_load(upgrades: u32, every: Duration) -> u64 {
    let (proxy, _upstream, _dir) = start(", instances: 2, timeout: 10s, probation: 100ms").await;
    let load = Load::on(proxy.address());
    let mut beat = tokio::time::interval(every);
    for _ in 0..upgrades {
        beat.tick().await;
        let before = pids(&proxy.status().await);
        let outcome = upgrade(&proxy).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let after = pids(&proxy.status().await);
        assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
        let expected = format!("auth #1: serving (pid {})\nauth #2: serving (pid {})\n", after[0], after[1]);
        assert_eq!(outcome.stdout, expected);
        load.more(50).await;
    }
    let requests = load.end().await;
    proxy.until_metric("palisade_changes_total", &[("change", "upgrade"), ("outcome", "done")], upgrades.into()).await;
    assert_eq!(proxy.status().await["generation"], upgrades + 1);
    requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_request() {
    upgrades_under_load(8, Duration::from_millis(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "30 s: make soak"]
async fn an_upgrade_every_second_for_30_s_fails_no_request() {
    let requests = upgrades_under_load(30, Duration::from_secs(1)).await;
    #[allow(clippy::print_stderr, reason = "the figure is what it is run for")]
    {
        eprintln!("30 upgrades, {requests} requests, none failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_come_up_replaces_nothing() {
    let (proxy, _upstream, dir) = start(", timeout: 10s").await;
    let old = proxy.plugin_pid("auth").await;
    let load = Load::on(proxy.address());
    let refusing: &[&str] = &["refuse-config:there is no such user"];
    let cases: [(&dyn Fn(), &str); 4] = [
        (&|| write_program(dir.path(), "#!/bin/sh\necho no room >&2\nexit 7\n"), "| no room"),
        (&|| install(dir.path(), &["print:1|1|udp|x|grpc", "stay"]), "network"),
        (&|| install(dir.path(), refusing), "there is no such user"),
        (&|| std::fs::remove_file(dir.path().join("plugin")).unwrap(), "No such file"),
    ];
    for (break_it, why) in cases {
        break_it();
        let outcome = upgrade(&proxy).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(why), "{why}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("what was there before stays in force"), "{}", outcome.stderr);
        let status = proxy.plugin("auth").await;
        assert_eq!((status["pid"].as_i64(), &status["state"]), (Some(old.into()), &"serving".into()));
        load.more(20).await;
    }
    load.end().await;
    assert_eq!(proxy.status().await["generation"], 1);
    proxy.until_metric("palisade_changes_total", &[("outcome", "refused")], 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_last_is_undone() {
    let (proxy, _upstream, dir) = start(", timeout: 10s, probation: 20s").await;
    let old = proxy.plugin_pid("auth").await;
    let load = Load::on(proxy.address());
    install(dir.path(), &["log:I am new", "exit-after:500", "serve"]);
    let outcome = upgrade(&proxy).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for said in ["undone within the probation", "exit status 3", "| I am new", "what was there before stays in force"] {
        assert!(outcome.stderr.contains(said), "{said}: {}", outcome.stderr);
    }
    assert_eq!(proxy.plugin_pid("auth").await, old);
    load.more(100).await;
    load.end().await;
    proxy.until_metric("palisade_changes_total", &[("change", "upgrade"), ("outcome", "undone")], 1).await;
    // And one that is good takes over after that.
    install(dir.path(), &["serve"]);
    let mut admin = Client::http1_unix(&proxy.runtime_dir().join("admin.sock")).await;
    let order = http::Request::post("/plugins/auth/upgrade").body(()).unwrap();
    let mut order = admin.stream(order);
    order.end();
    proxy.until_replaced("auth", old).await;
    assert!(runs(old), "the old one is there until the probation is over");
    // Its end is nothing that anybody sees.
    kill(old, Signal::SIGKILL);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_pass_a_health_check_is_undone() {
    let health =
        ", timeout: 500ms, probation: 40s, health: {interval: 100ms, timeout: 300ms, failures: 100, call_misses: 0}";
    let cases: [(&str, &str); 2] = [
        ("stop", "plugin `auth` does not serve: its process is stopped"),
        ("block", "plugin `auth` missed a health check"),
    ];
    for (how, why) in cases {
        let (proxy, _upstream, dir) = start(health).await;
        let old = proxy.plugin_pid("auth").await;
        install(dir.path(), &["serve"]);
        let upgrading = upgrade(&proxy);
        let ails = async {
            let new = proxy.until_replaced("auth", old).await;
            match how {
                "stop" => kill(new, Signal::SIGSTOP),
                _ => drop(proxy.get("/", &[ADMIN, ("x-fake", how)]).await),
            }
        };
        let (outcome, ()) = tokio::join!(upgrading, ails);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        for said in ["undone within the probation", why, "what was there before stays in force"] {
            assert!(outcome.stderr.contains(said), "{said}: {}", outcome.stderr);
        }
        assert_eq!(proxy.plugin_pid("auth").await, old);
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    }
}

#[tokio::test]
async fn requests_go_on_with_the_plugin_that_they_began_with() {
    let (mut proxy, _upstream, dir) = start(", timeout: 60s, probation: 0s").await;
    let old = proxy.plugin_pid("auth").await;
    let mut client = Client::http1(proxy.address()).await;
    let mut held = client.stream(get("/", &[ADMIN, ("x-fake", "await-go")]).map(drop));
    held.end();
    proxy.wait_for_log("the call", |line| line.contains("asked to wait for go")).await;
    install(dir.path(), &["serve"]);
    assert_eq!(upgrade(&proxy).await.code, Some(0));
    assert_ne!(proxy.plugin_pid("auth").await, old);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert!(runs(old), "it still has a request");
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(soon("the verdict", held.head()).await.status(), 200);
    soon("the old one's end", async {
        while runs(old) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_stay_until_the_new_plugin_has_some() {
    let (authority, dir) = (Authority::new(), Arc::new(place()));
    let upstream = Upstream::http1("app").await;
    let certificates = dir.path().join("certificates");
    let elsewhere = dir.path().join("elsewhere/certificates");
    std::fs::create_dir(&certificates).unwrap();
    std::fs::create_dir_all(&elsewhere).unwrap();
    let (first, second) = (authority.certificate(&["a.example"]), authority.certificate(&["a.example"]));
    first.write(&certificates, "a");
    install(dir.path(), &["serve"]);
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, tls: auth}}]
routes: [{{upstream: 'http://{}'}}]
plugins: {{auth: {{command: [./plugin], config: {{dir: certificates}}, ready_timeout: 3s, probation: 100ms}}}}
",
        upstream.address()
    );
    let proxy = Proxy::start_in(Arc::clone(&dir), &yaml).await;
    let old = proxy.plugin_pid("auth").await;
    let client = authority.client();
    // One that has no certificate never takes over.
    install_in(dir.path(), "elsewhere", &["serve"]);
    let refused = upgrade(&proxy).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("supplied no certificate"), "{refused:?}");
    assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), first.der);
    assert_eq!(proxy.plugin_pid("auth").await, old);
    // One that has serves its own from the moment that it takes over.
    second.write(&elsewhere, "a");
    let outcome = upgrade(&proxy).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), second.der);
    proxy.until_replaced("auth", old).await;
}
