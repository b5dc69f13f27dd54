//! What becomes of answers of plugins that make no sense: never a request that nobody let pass.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::{ADMIN, Proxy};

#[tokio::test]
async fn invalid_verdicts_fail_the_request_and_nothing_of_them_is_used() {
    let (proxy, upstream) = Proxy::behind_fake(&["serve"], ", timeout: 10s").await;
    let pid = proxy.plugin_pid("auth").await;
    let all = [
        "empty",
        "no-mutation",
        "crlf",
        "nul",
        "content-length",
        "transfer-encoding",
        "connection",
        "host",
        "pseudo",
        "upper",
        "no-name",
        "forwarded",
        "request-id",
        "remove-host",
        "many",
        "huge-header",
        "bad-response-header",
        "status-99",
        "status-101",
        "status-600",
        "body-204",
        "deny-crlf",
        "deny-content-length",
    ];
    for what in all {
        let reply = proxy.get("/", &[ADMIN, ("x-fake", what)]).await;
        assert_eq!((reply.status, reply.reason().as_str()), (503, "plugin_invalid"), "{what}: {reply:?}");
        reply.assert_failed(503, "plugin_invalid");
        assert!(!reply.headers.contains_key("x-a") && !reply.headers.contains_key("x-b"), "{what}: {reply:?}");
        assert!(!reply.headers.contains_key("set-cookie"), "{what}: {reply:?}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(proxy.plugin_pid("auth").await, pid, "an invalid verdict is no crash");
}

#[tokio::test]
async fn failed_and_oversized_answers_are_failures() {
    let (mut proxy, upstream) = Proxy::behind_fake(&["serve"], ", timeout: 10s").await;
    proxy.get("/", &[ADMIN, ("x-fake", "error")]).await.assert_failed(503, "plugin_failed");
    proxy.get("/", &[ADMIN, ("x-fake", "huge-body")]).await.assert_failed(503, "plugin_invalid");
    proxy.wait_for_log("what is wrong with it", |line| line.contains("an answer of 31457")).await;
    assert_eq!(upstream.count(), 0);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn no_grpc_status_ever_means_allow_or_a_verdict() {
    let (proxy, upstream) = Proxy::behind_fake(&["serve-bare"], ", timeout: 10s, stop_timeout: 500ms").await;
    for code in 1..=16 {
        let reply = proxy.get("/", &[ADMIN, ("x-fake", &format!("code-{code}"))]).await;
        let expected = match code {
            // CANCELLED is what a server says whose deadline has passed, too.
            1 | 4 => (504, "plugin_timeout"),
            8 => (503, "plugin_overloaded"),
            _ => (503, reply.reason().leak() as &str),
        };
        assert_eq!((reply.status, reply.reason().as_str()), expected, "code {code}: {reply:?}");
        assert!(reply.reason().starts_with("plugin_"), "code {code}: {reply:?}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn a_denial_that_can_t_be_sent_never_becomes_an_allow() {
    let (proxy, upstream) = Proxy::behind_fake(&["serve"], ", timeout: 10s, on_failure: allow").await;
    let denials =
        ["deny-many", "deny-content-length", "deny-crlf", "body-204", "status-99", "status-101", "status-600"];
    for what in denials {
        for user in [ADMIN, ("user", "guest")] {
            let reply = proxy.get("/", &[user, ("x-fake", what)]).await;
            assert_eq!((reply.status, reply.reason().as_str()), (503, "plugin_invalid"), "{what}: {reply:?}");
            reply.assert_failed(503, "plugin_invalid");
            assert!(!reply.headers.contains_key("set-cookie"), "{what}: {reply:?}");
        }
    }
    assert_eq!(upstream.count(), 0);
    // What is no verdict at all is what `on_failure` is for.
    for what in ["error", "empty", "crlf"] {
        let reply = proxy.get("/", &[ADMIN, ("x-fake", what)]).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"), "{what}: {reply:?}");
        assert!(upstream.last().values("x-b").is_empty(), "{what}");
    }
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn a_denial_that_is_too_large_to_be_read_never_becomes_an_allow() {
    // By the SDK, in whose batches such a denial does not go, and without it.
    for actions in [&["serve"][..], &["serve-bare"], &["needs:batches", "serve-bare"]] {
        let (proxy, upstream) =
            Proxy::behind_fake(actions, ", timeout: 10s, stop_timeout: 500ms, on_failure: allow").await;
        proxy.get("/", &[ADMIN, ("x-fake", "huge-body")]).await.assert_failed(503, "plugin_invalid");
        assert_eq!(upstream.count(), 0);
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    }
}

#[tokio::test]
async fn a_replacement_that_can_t_be_sent_never_lets_the_response_through() {
    let (proxy, upstream) = Proxy::behind_fake(&["needs:response", "serve"], ", timeout: 10s, on_failure: allow").await;
    let replacements = ["many", "owned", "crlf", "204", "huge"];
    for what in replacements {
        let path = &format!("/response-replace-{what}");
        let reply = proxy.get(path, &[ADMIN]).await;
        assert_eq!((reply.status, reply.reason().as_str()), (503, "plugin_invalid"), "{path}: {reply:?}");
        reply.assert_failed(503, "plugin_invalid");
        assert!(!reply.headers.contains_key("x-upstream"), "{path}: {reply:?}");
        assert!(!reply.headers.contains_key("set-cookie"), "{path}: {reply:?}");
    }
    assert_eq!(upstream.count(), replacements.len());
    // What is no verdict at all is what `on_failure` is for.
    assert_eq!(proxy.get("/response-empty", &[ADMIN]).await.status, 200);
}
