//! Plugins of several processes: a call finds one that serves, whatever happens to the others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Instant;

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::{ADMIN, Client, LONG, Load, Proxy, Upstream, get, soon};

async fn start(actions: &[&str], plugin: &str) -> (Proxy, Upstream) {
    Proxy::behind_fake(actions, &format!(", instances: 2{plugin}")).await
}

/// The process of each instance; `None` while it has none that serves.
async fn pids(proxy: &Proxy) -> Vec<Option<i32>> {
    let status = proxy.status().await;
    let pid = |plugin: &serde_json::Value| {
        let pid = plugin["pid"].as_i64().filter(|_| plugin["state"] == "serving")?;
        Some(i32::try_from(pid).unwrap())
    };
    status["plugins"].as_array().unwrap().iter().map(pid).collect()
}

/// Both processes, once both serve and none is `not`.
async fn both(proxy: &Proxy, not: &[i32]) -> [i32; 2] {
    soon("both instances serve", async {
        loop {
            if let [Some(one), Some(other)] = pids(proxy).await[..]
                && !not.contains(&one)
                && !not.contains(&other)
            {
                return [one, other];
            }
        }
    })
    .await
}

#[tokio::test]
async fn kills_of_one_of_two_fail_no_request() {
    let (proxy, _upstream) = start(&["serve"], ", timeout: 5s, restart: {initial: 10ms, max: 20ms}").await;
    let load = Load::on(proxy.address());
    for round in 0..20 {
        let serving = both(&proxy, &[]).await;
        let victim = serving[round % 2];
        kill(victim, Signal::SIGKILL);
        both(&proxy, &[victim]).await;
        // One that meets two kills is a poison request, for all that anybody can see.
        load.settled().await;
    }
    assert!(load.end().await > 0);
}

#[tokio::test]
async fn a_restart_by_an_operator_leaves_one_that_serves() {
    let (proxy, _upstream) = start(&["serve"], ", timeout: 5s").await;
    let load = Load::on(proxy.address());
    for _ in 0..3 {
        let before = both(&proxy, &[]).await;
        let outcome = proxy.cli(&["plugin", "restart", "auth"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let after = both(&proxy, &before).await;
        let expected = format!("auth #1: serving (pid {})\nauth #2: serving (pid {})\n", after[0], after[1]);
        assert_eq!(outcome.stdout, expected);
    }
    assert!(load.end().await > 0);
}

#[tokio::test]
async fn calls_go_where_there_is_room() {
    let (proxy, _upstream) = start(&["calls:1", "serve"], ", timeout: 20s").await;
    let mut busy = Client::http1(proxy.address()).await;
    let mut held = busy.stream(get("/", &[ADMIN, ("x-fake", "hang")]).map(drop));
    held.end();
    let asked = Instant::now();
    for _ in 0..50 {
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    }
    // One that waits for the hanging call takes all of the 20 s.
    assert!(asked.elapsed() < LONG / 2, "{:?}", asked.elapsed());
    drop((held, busy));
}

#[tokio::test]
async fn orders_and_status_are_about_every_instance() {
    let (proxy, upstream) = start(&["serve"], ", timeout: 20s").await;
    let [one, other] = both(&proxy, &[]).await;
    assert_ne!(one, other);
    let shown = proxy.cli(&["status"]).await.stdout;
    assert!(shown.contains("auth #1") && shown.contains("auth #2"), "{shown}");
    let stopped = proxy.cli(&["plugin", "stop", "auth"]).await;
    assert_eq!(stopped.stdout, "auth #1: stopped\nauth #2: stopped\n");
    proxy.get("/", &[ADMIN]).await.assert_failed(503, "plugin_unavailable");
    assert_eq!(upstream.count(), 0);
    let started = proxy.cli(&["plugin", "start", "auth"]).await;
    assert_eq!(started.code, Some(0), "{started:?}");
    both(&proxy, &[one, other]).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}
