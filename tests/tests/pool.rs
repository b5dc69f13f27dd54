//! What the processes of a plugin cost each other: nothing, whether one is busy, broken, or killed by a request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::{ADMIN, Client, Load, Proxy, Stream, eventually, get, soon};
use tokio::task::JoinSet;

/// The process of each instance; 0 while it has none that serves.
async fn pids(proxy: &Proxy) -> Vec<i64> {
    let status = proxy.status().await;
    let serving = |plugin: &serde_json::Value| plugin["state"] == "serving";
    let pid = |plugin: &serde_json::Value| plugin["pid"].as_i64().filter(|_| serving(plugin)).unwrap_or(0);
    status["plugins"].as_array().unwrap().iter().map(pid).collect()
}

/// A request that its filter keeps, on a connection of its own.
async fn held(proxy: &Proxy, file: &str) -> (Client, Stream) {
    let mut client = Client::http1(proxy.address()).await;
    let fake = format!("await-{file}");
    let mut stream = client.stream(get("/", &[ADMIN, ("x-fake", &fake)]).map(drop));
    stream.end();
    (client, stream)
}

#[tokio::test]
async fn instances_that_die_together_are_started_apart() {
    let (proxy, _upstream) =
        Proxy::behind_fake(&["serve"], ", instances: 3, timeout: 20s, required: true, restart: {stagger: 10m}").await;
    let before = pids(&proxy).await;
    for pid in &before {
        kill(i32::try_from(*pid).unwrap(), Signal::SIGKILL);
    }
    // A request that met the end of two would be taken for what has ended them.
    soon("all have ended", async { while pids(&proxy).await.iter().any(|pid| before.contains(pid)) {} }).await;
    // One is back at once, and does for all.
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let seen = async {
        loop {
            let states = proxy.status().await["plugins"].as_array().unwrap().clone();
            let count = |state: &str| states.iter().filter(|instance| instance["state"] == state).count();
            if (count("serving"), count("backing_off")) == (1, 2) {
                break states;
            }
            tokio::task::yield_now().await;
        }
    };
    let states = soon("two that wait", seen).await;
    let next = |instance: &serde_json::Value| instance["next_attempt"].as_f64();
    let mut due: Vec<_> = states.iter().filter_map(next).collect();
    due.sort_by(f64::total_cmp);
    assert!((due[1] - due[0] - 600.0).abs() < 5.0, "{due:?}");
    // An operator need not wait.
    assert_eq!(proxy.cli(&["plugin", "start", "auth"]).await.code, Some(0));
    assert!(pids(&proxy).await.iter().all(|pid| *pid != 0 && !before.contains(pid)));
}

#[tokio::test]
async fn a_full_queue_is_answered_at_once_and_counted() {
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], ", timeout: 60s, max_calls: 2, max_queue: 3").await;
    // One more than there is room for.
    let mut asked = JoinSet::new();
    for _ in 0..6 {
        let (client, stream) = held(&proxy, "go").await;
        asked.spawn(async move { (stream.finish().await, client).0 });
    }
    let refused = soon("a refusal", asked.join_next()).await.unwrap().unwrap();
    refused.assert_failed(503, "plugin_overloaded");
    assert_eq!(proxy.metric("palisade_filter_calls_total", &[("outcome", "plugin_overloaded")]).await, 1);
    proxy.get("/", &[ADMIN]).await.assert_failed(503, "plugin_overloaded");
    let calls = || proxy.log().matches("asked to wait for go").count();
    eventually("both places are taken", || calls() == 2).await;
    std::fs::write(proxy.dir().join("go"), "").unwrap();
    while let Some(reply) = soon("the others", asked.join_next()).await {
        assert_eq!(reply.unwrap().status, 200);
    }
    eventually("all were asked about", || calls() == 5).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn whoever_leaves_the_queue_is_not_asked_about() {
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], ", timeout: 60s, max_calls: 1, max_queue: 1").await;
    let first = held(&proxy, "go").await;
    let asked = || proxy.log().matches("asked to wait for go").count();
    eventually("the first is asked about", || asked() == 1).await;
    for _ in 0..5 {
        // In the queue, which has one place; a refusal would say that the one before has kept it.
        let (client, mut stream) = held(&proxy, "go").await;
        let early = tokio::time::timeout(Duration::from_millis(100), stream.head()).await;
        assert!(early.is_err(), "{early:?}");
        drop((stream, client));
        proxy.until_metric("palisade_connections", &[("listener", "web")], 1).await;
    }
    std::fs::write(proxy.dir().join("go"), "").unwrap();
    assert_eq!(first.1.finish().await.status, 200);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn what_takes_long_is_asked_of_another_instance_too() {
    let still = "health: {interval: 10m, stopped_timeout: 10m}";
    let plugin = format!(", instances: 2, timeout: 60s, hedge_after: 20ms, {still}");
    let (proxy, upstream) = Proxy::behind_fake(&["serve"], &plugin).await;
    let hedged = || proxy.metric("palisade_plugin_hedged_calls_total", &[("plugin", "auth")]);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let frozen = i32::try_from(pids(&proxy).await[0]).unwrap();
    kill(frozen, Signal::SIGSTOP);
    // Whichever is asked first. Its answer is as good: a denial is one.
    for _ in 0..4 {
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
        assert_eq!(proxy.get("/", &[]).await.status, 403);
    }
    assert!(hedged().await >= 1);
    let seen = upstream.count();
    // Late answers are nobody's.
    kill(frozen, Signal::SIGCONT);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(upstream.count(), seen + 1);
}

#[tokio::test]
async fn a_plugin_that_is_slow_for_all_is_not_asked_twice_as_much() {
    let plugin = ", instances: 2, timeout: 60s, hedge_after: 1ms, health: {interval: 10m, call_misses: 0}";
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    let mut waiting = Vec::new();
    for _ in 0..40 {
        waiting.push(held(&proxy, "go").await);
    }
    let asked = || proxy.log().matches("asked to wait for go").count();
    // One of ten, of them and of the second calls.
    eventually("all, and some twice", || asked() >= 44).await;
    assert_eq!(proxy.metric("palisade_plugin_hedged_calls_total", &[("plugin", "auth")]).await, 4);
    std::fs::write(proxy.dir().join("go"), "").unwrap();
    for (_client, stream) in waiting {
        assert_eq!(stream.finish().await.status, 200);
    }
}

#[tokio::test]
async fn one_of_two_that_are_asked_decides_however_the_other_fails() {
    // Not even `on_failure: allow` lets pass what one of them has refused, though in a form that can't be sent.
    let plugin = ", instances: 2, timeout: 20s, hedge_after: 10ms, on_failure: allow, health: {interval: 10m}";
    let (proxy, upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    proxy.get("/", &[ADMIN, ("x-fake", "hang-once-deny-crlf")]).await.assert_failed(503, "plugin_invalid");
    assert_eq!(upstream.count(), 0);
    // What fails is answered by the other.
    std::fs::remove_file(proxy.dir().join("hung")).unwrap();
    assert_eq!(proxy.get("/", &[ADMIN, ("x-fake", "hang-once-")]).await.status, 200);
    assert_eq!(proxy.metric("palisade_filter_unjudged_total", &[("plugin", "auth")]).await, 0);
}

#[tokio::test]
async fn an_instance_that_fails_gets_no_second_calls() {
    let plugin = ", instances: 2, timeout: 10s, hedge_after: 20ms, quarantine: {failures: 3, time: 1h}";
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    std::fs::write(proxy.dir().join("broken"), pids(&proxy).await[0].to_string()).unwrap();
    let quarantined = || proxy.metric("palisade_plugin_quarantined", &[("plugin", "auth")]);
    soon("a quarantine", async {
        while quarantined().await == 0 {
            proxy.get("/", &[ADMIN, ("x-fake", "unless-broken")]).await;
        }
    })
    .await;
    let hedged = || proxy.metric("palisade_plugin_hedged_calls_total", &[("plugin", "auth")]);
    let before = hedged().await;
    assert_eq!(proxy.get("/", &[ADMIN, ("x-fake", "sleep-300")]).await.status, 200);
    assert_eq!((hedged().await, quarantined().await), (before, 1));
}

#[tokio::test]
async fn a_call_that_two_processes_had_when_they_ended_is_asked_again() {
    let plugin = ", instances: 2, timeout: 60s, hedge_after: 20ms, restart: {initial: 10ms, max: 20ms, stagger: 0s}";
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    let (_client, waiting) = held(&proxy, "go").await;
    let asked = || proxy.log().matches("asked to wait for go").count();
    eventually("both are asked", || asked() == 2).await;
    // Its end is somebody else's doing.
    proxy.get("/", &[ADMIN, ("x-fake", "crash")]).await.assert_failed(503, "poison_request");
    eventually("one is asked again", || asked() == 3).await;
    std::fs::write(proxy.dir().join("go"), "").unwrap();
    assert_eq!(waiting.finish().await.status, 200);
}

#[tokio::test]
async fn what_may_have_ended_a_process_is_asked_of_one_at_a_time() {
    let plugin = ", instances: 4, timeout: 60s, hedge_after: 20ms, restart: {initial: 10ms, max: 20ms, stagger: 0s}";
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    proxy.get("/", &[ADMIN, ("x-fake", "crash-after-300")]).await.assert_failed(503, "poison_request");
    soon("all serve", async { while pids(&proxy).await.contains(&0) {} }).await;
    // Two at first, since it took long, and the one that made it known.
    assert_eq!(proxy.metric("palisade_plugin_restarts_total", &[("plugin", "auth")]).await, 3);
}

#[tokio::test]
async fn an_instance_that_fails_while_the_other_does_not_gets_no_calls() {
    let plugin = ", instances: 2, timeout: 10s, quarantine: {failures: 3, time: 1h}";
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    let broken = pids(&proxy).await[0];
    std::fs::write(proxy.dir().join("broken"), broken.to_string()).unwrap();
    let breakable = [ADMIN, ("x-fake", "unless-broken")];
    let mut failed = 0;
    for _ in 0..60 {
        match proxy.get("/", &breakable).await {
            reply if reply.status == 200 => {}
            reply => {
                reply.assert_failed(503, "plugin_failed");
                failed += 1;
            }
        }
    }
    // Without a quarantine it would be half of them.
    assert_eq!(failed, 3);
    let status = proxy.status().await;
    let quarantined: Vec<_> =
        status["plugins"].as_array().unwrap().iter().map(|it| it["quarantined"].clone()).collect();
    assert_eq!(quarantined, [true, false]);
    assert_eq!(proxy.metric("palisade_plugin_quarantined", &[("plugin", "auth")]).await, 1);
    let shown = proxy.cli(&["status"]).await.stdout;
    assert!(shown.contains("serving, quarantined"), "{shown}");
    // It is better than nothing: when the other is gone, it is asked.
    let other = i32::try_from(pids(&proxy).await[1]).unwrap();
    kill(other, Signal::SIGSTOP);
    std::fs::write(proxy.dir().join("broken"), "").unwrap();
    kill(other, Signal::SIGKILL);
    assert_eq!(proxy.get("/", &breakable).await.status, 200);
}

#[tokio::test]
async fn an_instance_that_recovers_gets_calls_again() {
    let plugin = ", instances: 2, timeout: 10s, quarantine: {failures: 3, time: 50ms}";
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    let broken = pids(&proxy).await[0];
    std::fs::write(proxy.dir().join("broken"), broken.to_string()).unwrap();
    let breakable = [ADMIN, ("x-fake", "unless-broken")];
    let quarantined = [("plugin", "auth")];
    soon("a quarantine", async {
        while proxy.metric("palisade_plugin_quarantined", &quarantined).await == 0 {
            proxy.get("/", &breakable).await;
        }
    })
    .await;
    std::fs::write(proxy.dir().join("broken"), "").unwrap();
    soon("its end", async {
        while proxy.metric("palisade_plugin_quarantined", &quarantined).await == 1 {
            assert_eq!(proxy.get("/", &breakable).await.status, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_two_processes_is_refused_and_harms_nobody_else() {
    let plugin = ", instances: 3, timeout: 20s, on_failure: allow, restart: {initial: 10ms, max: 20ms}";
    let (proxy, upstream) = Proxy::behind_fake(&["serve"], plugin).await;
    let load = Load::on(proxy.address());
    load.more(50).await;
    for (round, crash) in (1..).zip(["crash", "crash-slowly", "crash"]) {
        // Not even `on_failure: allow` lets it pass.
        let reply = proxy.get("/poison", &[ADMIN, ("x-fake", crash)]).await;
        reply.assert_failed(503, "poison_request");
        load.more(50).await;
        let counted = proxy.metric("palisade_requests_total", &[("reason", "poison_request")]).await;
        assert_eq!(counted, round);
        // Two processes each time, and never a third.
        proxy.until_metric("palisade_plugin_restarts_total", &[("plugin", "auth")], 2 * round).await;
        soon("all serve", async { while pids(&proxy).await.contains(&0) {} }).await;
    }
    load.end().await;
    assert!(upstream.seen().iter().all(|seen| seen.target != "/poison"), "it was let through");
    assert_eq!(proxy.metric("palisade_filter_unjudged_total", &[("plugin", "auth")]).await, 0);
}

/// Load at a rate, while a random instance is killed again and again. `paced`: whenever the one before has been replaced
/// and requests have been answered since; else every 300 ms.
async fn kills_under_load(instances: u32, time: Duration, rate: u32, paced: bool) -> String {
    let plugin = format!(", instances: {instances}, timeout: 10s, restart: {{initial: 10ms, max: 20ms}}");
    let (proxy, _upstream) = Proxy::behind_fake(&["serve"], &plugin).await;
    let load = Load::at_rate(proxy.address(), rate);
    let started = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(300));
    let (mut kills, mut chance) = (0, 1);
    while started.elapsed() < time {
        beat.tick().await;
        let mut serving = pids(&proxy).await;
        if paced {
            soon("all serve", async {
                while serving.contains(&0) {
                    serving = pids(&proxy).await;
                }
            })
            .await;
            load.settled().await;
        }
        serving.retain(|pid| *pid != 0);
        chance = chance * 7 % 11;
        if let Some(pid) = serving.get(chance % serving.len().max(1)) {
            kill(i32::try_from(*pid).unwrap(), Signal::SIGKILL);
            kills += 1;
        }
    }
    let elapsed = started.elapsed();
    load.more(10).await;
    let requests = load.end().await;
    assert!(kills > 1, "{kills}");
    assert!(proxy.metric("palisade_plugin_restarts_total", &[("plugin", "auth")]).await > 1);
    let each_second = requests * 1000 / u64::try_from(elapsed.as_millis()).unwrap().max(1);
    format!("{instances} instances, {kills} kills in {elapsed:?}, {requests} requests ({each_second}/s), none failed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_random_instances_under_load_fail_no_request() {
    kills_under_load(2, Duration::from_secs(3), 400, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_the_only_instance_under_load_fail_no_request() {
    kills_under_load(1, Duration::from_secs(3), 400, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two minutes: make soak"]
async fn a_minute_of_kills_under_2000_requests_a_second_fails_none() {
    for instances in [2, 1] {
        let figures = kills_under_load(instances, Duration::from_secs(60), 2000, false).await;
        #[allow(clippy::print_stderr, reason = "the figures are what it is run for")]
        {
            eprintln!("{figures}");
        }
    }
}
