//! Plugins that are called by themselves, and answer with what is no gRPC, or with nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::{ADMIN, Proxy, soon};

async fn start(rest: &str) -> (Proxy, palisade_tests::Upstream) {
    Proxy::behind_fake(&["serve-frames"], &format!(", contract: mosn, stop_timeout: 300ms{rest}")).await
}

#[tokio::test]
async fn what_is_no_answer_fails_its_call_and_no_other() {
    let (proxy, upstream) = start(", timeout: 10s").await;
    let pid = proxy.plugin_pid("auth").await;
    let all = [
        ("page", "plugin_invalid"),
        ("no-status", "plugin_invalid"),
        ("two", "plugin_invalid"),
        ("half", "plugin_invalid"),
        ("compressed", "plugin_invalid"),
        ("odd", "plugin_invalid"),
        ("large", "plugin_invalid"),
        ("details", "plugin_failed"),
        ("refuse", "plugin_unavailable"),
        ("reset", "plugin_unavailable"),
        ("cut", "plugin_unavailable"),
    ];
    for (served, (what, reason)) in all.into_iter().enumerate() {
        proxy.get("/", &[ADMIN, ("x-fake", what)]).await.assert_failed(503, reason);
        assert_eq!(upstream.count(), served, "{what}");
        let next = proxy.get("/", &[ADMIN]).await;
        assert_eq!(next.status, 200, "after {what}: {next:?}");
    }
    assert_eq!(proxy.get("/", &[]).await.status, 403);
    assert_eq!(proxy.plugin_pid("auth").await, pid);
}

#[tokio::test]
async fn a_connection_that_takes_no_more_calls_is_made_anew() {
    let (proxy, upstream) = start(", timeout: 10s").await;
    let pid = proxy.plugin_pid("auth").await;
    for _ in 0..20 {
        // Whether the answer overtakes the end or not.
        let reply = proxy.get("/", &[ADMIN, ("x-fake", "goaway")]).await;
        assert!(reply.status == 200 || reply.reason() == "plugin_unavailable", "{reply:?}");
        let before = upstream.count();
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
        assert_eq!(upstream.count(), before + 1);
    }
    assert_eq!(proxy.plugin_pid("auth").await, pid);
}

/// It may be a refusal.
#[tokio::test]
async fn an_answer_that_can_t_be_read_never_becomes_an_allow() {
    let (proxy, upstream) = start(", timeout: 10s, on_failure: allow").await;
    for what in ["two", "compressed", "odd", "large"] {
        proxy.get("/", &[("x-fake", what)]).await.assert_failed(503, "plugin_invalid");
    }
    assert_eq!(upstream.count(), 0);
    // Where there is none, `on_failure` decides.
    for what in ["half", "reset", "cut", "refuse"] {
        assert_eq!(proxy.get("/", &[("x-fake", what)]).await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn waiting_for_an_exit_leaves_time_to_ask_again() {
    // No more than the news of an exit may take.
    let (proxy, _upstream) = start(", timeout: 40ms").await;
    soon("an answer in time", async {
        while proxy.get("/", &[ADMIN, ("x-fake", "refuse-first")]).await.status != 200 {}
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_does_not_end_runs_into_the_deadline() {
    let (proxy, upstream) = start(", timeout: 300ms").await;
    for what in ["mute", "half-mute"] {
        proxy.get("/", &[ADMIN, ("x-fake", what)]).await.assert_failed(504, "plugin_timeout");
        assert_eq!(proxy.get("/", &[]).await.status, 403);
    }
    assert_eq!(upstream.count(), 0);
}
