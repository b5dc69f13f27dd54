//! Plugins that crash, freeze, hang and cling to life: what requests see, and that they come back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use palisade_tests::process::{freeze, kill, memory, runs};
use palisade_tests::{ADMIN, Client, LONG, Proxy, Upstream, eventually, fake, get, soon};

/// A proxy with the filter `auth` before everything but `/free`.
fn config(actions: &[&str], plugin: &str, upstream: &Upstream) -> String {
    format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /free, upstream: app}}
  - {{filters: [auth], upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
plugins: {{auth: {{command: {}{plugin}}}}}
",
        upstream.address(),
        fake(actions)
    )
}

async fn start(actions: &[&str], plugin: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&config(actions, plugin, &upstream)).await;
    (proxy, upstream)
}

/// Pids that the fake's children have, once there are so many.
async fn children(proxy: &Proxy, count: usize) -> Vec<i32> {
    let path = proxy.dir().join("pids");
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually("the children have been started", || read().lines().count() >= count && read().ends_with('\n')).await;
    read().lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_crash_in_a_call_fails_the_request_with_503_and_nothing_else() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 5s").await;
    let pid = proxy.plugin_pid("auth").await;
    for how in ["crash", "exit"] {
        let reply = proxy.get("/", &[ADMIN, ("x-fake", how)]).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        // The restarts may take longer than the time there is.
        assert!(["poison_request", "plugin_unavailable"].contains(&&*reply.reason()), "{reply:?}");
    }
    assert_eq!(upstream.count(), 0, "a request that nobody judged was let through");
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.get("/", &[]).await.status, 403);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_single_crash_costs_at_most_the_request_that_it_hit() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let reply = proxy.get("/", &[ADMIN, ("x-fake", "crash-once")]).await;
    // Asked again of the next process, or given up: both are honest.
    match reply.status {
        200 => assert_eq!(upstream.count(), 1),
        503 => assert_eq!(upstream.count(), 0),
        other => panic!("{other}: {reply:?}"),
    }
    assert_eq!(proxy.get("/", &[ADMIN, ("x-fake", "crash-once")]).await.status, 200);
}

#[tokio::test]
async fn requests_in_flight_of_a_killed_plugin_end_within_their_deadline() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 2s").await;
    let pid = proxy.plugin_pid("auth").await;
    let mut client = Client::http2(proxy.address()).await;
    // Known to be in the plugin: each has been sent, and one that followed them was answered.
    let mut hanging: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = client.stream(get("/", &[ADMIN, ("x-fake", "hang")]).map(drop));
            stream.end();
            stream
        })
        .collect();
    assert_eq!(client.get("/", &[ADMIN]).await.status, 200);
    let killed = Instant::now();
    kill(pid, Signal::SIGKILL);
    for stream in hanging.drain(..) {
        let reply = stream.finish().await;
        assert!(matches!(reply.status, 503 | 504), "{reply:?}");
        assert!(reply.reason().starts_with("plugin_"), "{reply:?}");
    }
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_plugin_killed_while_idle_is_back_without_any_traffic() {
    let (proxy, _upstream) = start(&["serve"], ", timeout: 5s").await;
    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    let status = proxy.plugin("auth").await;
    assert_eq!(status["restarts"], 1, "{status:#}");
    assert_eq!(status["last_exit"]["cause"]["detail"], "SIGKILL", "{status:#}");
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_fail_no_request_that_has_the_time() {
    let (proxy, _upstream) = start(&["serve"], ", timeout: 20s").await;
    let (address, end) = (proxy.address(), Arc::new(AtomicBool::new(false)));
    let counts: [_; 4] = std::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = [("/", true), ("/", true), ("/", false), ("/free", true)]
        .iter()
        .zip(&counts)
        .map(|((path, admin), count)| {
            let (end, count) = (Arc::clone(&end), Arc::clone(count));
            tokio::spawn(async move {
                let mut client = Client::http1(address).await;
                let expected = if *admin { 200 } else { 403 };
                while !end.load(Ordering::SeqCst) {
                    let headers: &[_] = if *admin { &[ADMIN] } else { &[] };
                    let reply = client.get(path, headers).await;
                    assert_eq!(reply.status, expected, "{path}: {reply:?}");
                    count.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut pid = proxy.plugin_pid("auth").await;
    for _ in 0..5 {
        kill(pid, Signal::SIGKILL);
        pid = proxy.until_replaced("auth", pid).await;
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
        // One that met the end of two processes would be taken for what has ended them.
        for count in &counts {
            let before = count.load(Ordering::SeqCst);
            eventually("all have got their answers", || count.load(Ordering::SeqCst) > before).await;
        }
    }
    end.store(true, Ordering::SeqCst);
    for task in load {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_frozen_plugin_costs_its_deadline_and_is_replaced() {
    let plugin = ", timeout: 300ms, health: {interval: 1s, timeout: 500ms, stopped_timeout: 1s}";
    let (proxy, upstream) = start(&["serve"], plugin).await;
    let pid = proxy.plugin_pid("auth").await;
    freeze(pid).await;
    let asked = Instant::now();
    let reply = proxy.get("/", &[ADMIN]).await;
    reply.assert_failed(504, "plugin_timeout");
    assert!(asked.elapsed() >= Duration::from_millis(290), "{:?}", asked.elapsed());
    assert_eq!(proxy.get("/free", &[]).await.status, 200);
    proxy.until_replaced("auth", pid).await;
    assert!(!runs(pid));
    let status = proxy.plugin("auth").await;
    assert_eq!(status["last_exit"]["cause"]["kind"], "frozen", "{status:#}");
    assert_eq!(upstream.count(), 1);
    // The first call of a new process may take longer than 300 ms on a busy machine, the next ones do not.
    eventually_served(&proxy).await;
}

#[tokio::test]
async fn calls_without_an_answer_find_a_frozen_plugin_before_any_health_check() {
    let plugin = ", timeout: 100ms, health: {interval: 1h, stopped_timeout: 0s}";
    let (proxy, _upstream) = start(&["serve"], plugin).await;
    let pid = proxy.plugin_pid("auth").await;
    freeze(pid).await;
    for _ in 0..3 {
        proxy.get("/", &[ADMIN]).await.assert_failed(504, "plugin_timeout");
    }
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.plugin("auth").await["last_exit"]["cause"]["kind"], "frozen");
    eventually_served(&proxy).await;
}

#[tokio::test]
async fn a_plugin_whose_calls_hang_is_not_killed_while_it_answers_health_checks() {
    let (proxy, _upstream) = start(&["serve"], ", timeout: 100ms").await;
    let pid = proxy.plugin_pid("auth").await;
    for _ in 0..10 {
        let reply = proxy.get("/", &[ADMIN, ("x-fake", "hang")]).await;
        assert!(matches!(reply.status, 503 | 504), "{reply:?}");
    }
    eventually_served(&proxy).await;
    let status = proxy.plugin("auth").await;
    assert_eq!((&status["pid"], &status["restarts"]), (&pid.into(), &0.into()), "{status:#}");
}

#[tokio::test]
async fn a_report_names_the_requests_that_a_crash_hit() {
    let (proxy, _upstream) = start(&["serve"], ", timeout: 5s").await;
    let pid = proxy.plugin_pid("auth").await;
    let reply = proxy.get("/", &[ADMIN, ("x-fake", "crash")]).await;
    proxy.until_replaced("auth", pid).await;
    let status = proxy.plugin("auth").await;
    let id = reply.header("x-request-id");
    assert_eq!(status["last_exit"]["calls"]["ids"], serde_json::json!([id]), "{status:#}");
}

async fn eventually_served(proxy: &Proxy) {
    soon("a request that is served", async {
        while proxy.get("/", &[ADMIN]).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_that_hangs_is_given_up_at_its_deadline() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 300ms").await;
    let asked = Instant::now();
    proxy.get("/", &[ADMIN, ("x-fake", "hang")]).await.assert_failed(504, "plugin_timeout");
    assert!(asked.elapsed() < LONG, "{:?}", asked.elapsed());
    assert_eq!(upstream.count(), 0);
    eventually_served(&proxy).await;
}

#[tokio::test]
async fn whoever_holds_stderr_neither_delays_the_restart_nor_survives() {
    let (proxy, _upstream) = start(&["child", "child-apart", "child-bare", "serve"], ", timeout: 5s").await;
    let pid = proxy.plugin_pid("auth").await;
    let holders = children(&proxy, 3).await;
    holders.iter().for_each(|holder| proxy.watch(*holder));
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    for holder in holders {
        eventually("a process of the killed plugin is gone", || !runs(holder)).await;
    }
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    children(&proxy, 6).await.into_iter().for_each(|child| proxy.watch(child));
}

#[tokio::test]
async fn a_plugin_that_ignores_sigterm_does_not_keep_the_proxy() {
    let (mut proxy, _upstream) = start(&["ignore-term", "serve-bare"], ", stop_timeout: 300ms").await;
    let pid = proxy.plugin_pid("auth").await;
    proxy.terminate();
    let status = proxy.wait_exit().await;
    assert_eq!(status.code(), Some(0), "{}", proxy.log());
    assert!(!runs(pid));
    proxy.nothing_is_left().await;
}

#[tokio::test]
async fn a_flood_on_stderr_neither_stops_requests_nor_fills_the_memory() {
    let (mut proxy, _upstream) = start(&["flood", "serve"], ", timeout: 10s").await;
    proxy.wait_for_log("the flood", |line| line.contains("flood flood")).await;
    let before = memory(proxy.pid());
    for _ in 0..200 {
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    }
    let grown = memory(proxy.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert!(proxy.log().lines().all(|line| line.len() < 70_000));
}

#[tokio::test]
async fn a_plugin_that_is_restarted_too_often_is_disabled_until_an_operator_starts_it() {
    let plugin = ", required: false, timeout: 20s, restart: {max: 1ms, initial: 1ms, max_restarts: 3, window: 1h}";
    let (proxy, _upstream) = start(&["exit:3"], plugin).await;
    let disabled = proxy.until("auth", "its end", |status| status["state"] == "disabled").await;
    assert_eq!((&disabled["why"], &disabled["restarts"]), (&"too_many_restarts".into(), &3.into()), "{disabled:#}");
    let status = proxy.cli(&["status"]).await.stdout;
    assert!(status.contains("disabled, no further attempt: too many restarts"), "{status}");
    proxy.get("/", &[ADMIN]).await.assert_failed(503, "plugin_unavailable");
    let order = proxy.cli(&["plugin", "start", "auth"]).await;
    assert!(order.stderr.contains("plugin `auth` is not serving"), "{order:?}");
    let again = proxy.until("auth", "more restarts", |status| status["restarts"].as_u64() > Some(3)).await;
    assert_eq!(again["name"], "auth");
}

#[tokio::test]
async fn a_crash_loop_is_visible_and_fails_requests_at_once() {
    let plugin = ", required: false, timeout: 20s, restart: {initial: 1h, max: 1h, crash_loop_after: 1}";
    let (proxy, upstream) = start(&["log:no such module", "exit:3"], plugin).await;
    let looped = proxy.until("auth", "a crash loop", |status| status["state"] == "crash_looped").await;
    assert_eq!(looped["last_exit"]["end"]["exited"], 3, "{looped:#}");
    assert_eq!(looped["failures"], 1, "{looped:#}");

    let status = proxy.cli(&["status"]).await;
    assert_eq!(status.code, Some(0), "{status:?}");
    for part in ["auth", "crash looped", "exit status 3", "no such module"] {
        assert!(status.stdout.contains(part), "no {part:?} in {}", status.stdout);
    }
    let json = proxy.cli(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["plugins"][0]["state"], "crash_looped", "{json:#}");

    assert_eq!(proxy.get("/free", &[]).await.status, 200);
    let count = upstream.count();
    // The next start is an hour away, so there is nothing to wait for.
    let asked = Instant::now();
    proxy.get("/", &[ADMIN]).await.assert_failed(503, "plugin_unavailable");
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert_eq!(upstream.count(), count);
}

#[tokio::test]
async fn an_operator_stops_starts_and_restarts_a_plugin() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 10s").await;
    let first = proxy.plugin_pid("auth").await;

    let stop = proxy.cli(&["plugin", "stop", "auth"]).await;
    assert_eq!(stop.code, Some(0), "{stop:?}");
    assert!(!runs(first));
    assert_eq!(proxy.plugin("auth").await["state"], "stopped");
    proxy.get("/", &[ADMIN]).await.assert_failed(503, "plugin_unavailable");
    assert_eq!(proxy.get("/free", &[]).await.status, 200);
    assert_eq!(upstream.count(), 1);

    let started = proxy.cli(&["plugin", "start", "auth"]).await;
    assert_eq!(started.code, Some(0), "{started:?}");
    // Waits for the start that is under way.
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let second = proxy.plugin_pid("auth").await;
    assert_ne!(first, second);

    let restart = proxy.cli(&["plugin", "restart", "auth"]).await;
    assert_eq!(restart.code, Some(0), "{restart:?}");
    let third = proxy.until_replaced("auth", second).await;
    assert!(!runs(second));
    assert_ne!(second, third);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);

    let unknown = proxy.cli(&["plugin", "restart", "nobody"]).await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
}

#[tokio::test]
async fn on_failure_allow_lets_pass_what_could_not_be_judged_but_not_what_was_denied() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 2s, on_failure: allow").await;
    let denied = proxy.get("/", &[]).await;
    assert_eq!((denied.status, denied.reason().as_str()), (403, ""), "{denied:?}");
    assert_eq!(upstream.count(), 0);
    for how in ["error", "hang", "empty", "crlf"] {
        let reply = proxy.get("/", &[("x-fake", how)]).await;
        assert_eq!(reply.status, 200, "{how}: {reply:?}");
    }
    let stop = proxy.cli(&["plugin", "stop", "auth"]).await;
    assert_eq!(stop.code, Some(0), "{stop:?}");
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    assert_eq!(upstream.count(), 5);
}

#[tokio::test]
async fn listeners_open_when_required_plugins_serve() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&["sleep:500", "serve"], ", timeout: 5s", &upstream);
    let proxy = Proxy::start(&yaml).await;
    let log = proxy.log();
    assert_eq!(proxy.plugin("auth").await["state"], "serving", "{log}");
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn a_request_waits_for_a_start_under_way_within_its_deadline() {
    let (proxy, _upstream) = start(&["sleep:700", "serve"], ", required: false, timeout: 20s").await;
    assert_ne!(proxy.plugin("auth").await["state"], "serving", "{}", proxy.log());
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn more_calls_than_a_plugin_takes_wait_no_longer_than_their_deadline() {
    // A single worker has a stream of its own, several share one.
    for workers in [1, 2] {
        let upstream = Upstream::http1("app").await;
        let yaml = format!(
            "workers: {workers}
listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /long, filters: [{{plugin: auth, timeout: 20s}}], upstream: app}}
  - {{filters: [{{plugin: auth, timeout: 300ms}}], upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
plugins: {{auth: {{command: {}}}}}
",
            upstream.address(),
            fake(&["calls:1", "serve"])
        );
        let proxy = Proxy::start(&yaml).await;
        eventually_served(&proxy).await;
        let mut client = Client::http1(proxy.address()).await;
        let mut hanging = client.stream(get("/long", &[ADMIN, ("x-fake", "hang")]).map(drop));
        hanging.end();
        // Once that one is in the plugin, there is no room for others.
        soon("the plugin is busy", async { while proxy.get("/", &[ADMIN]).await.status == 200 {} }).await;
        proxy.get("/", &[ADMIN]).await.assert_failed(503, "plugin_overloaded");
    }
}
