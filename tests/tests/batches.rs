//! Calls that share a stream: none of them is answered by another one's answer, waits for another one, or goes on without
//! one of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::{ADMIN, Client, Proxy, Raw, Upstream, fake, filtered, soon};

async fn bare(plugin: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let command = format!("command: {}{plugin}", fake(&["needs:batches", "serve-bare"]));
    // Each worker would have a stream of its own.
    let yaml = format!("workers: 1\n{}", filtered(upstream.address(), &command));
    (Proxy::start(&yaml).await, upstream)
}

/// The stream that a call went over.
async fn stream_of(proxy: &Proxy) -> String {
    let reply = proxy.get("/", &[ADMIN]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("x-stream")
}

#[tokio::test]
async fn batches_go_over_the_socket_that_they_have_for_themselves() {
    for (workers, actions) in [(1, &[][..]), (2, &[][..]), (2, &["needs:one-stream"])] {
        let upstream = Upstream::http1("app").await;
        let actions = [&["needs:batches", "beside:batches"], actions, &["serve-bare"]].concat();
        let command = format!("command: {}, timeout: 20s", fake(&actions));
        let proxy = Proxy::start(&format!("workers: {workers}\n{}", filtered(upstream.address(), &command))).await;
        assert!(stream_of(&proxy).await.parse::<u32>().unwrap() > 1000, "{workers} {actions:?}");
        // One that is too large for a batch is asked about where the plugin has announced itself.
        let large = "x".repeat(17 << 10);
        let reply = proxy.get("/", &[ADMIN, ("x-large", &large)]).await;
        assert_eq!((reply.status, reply.headers.get("x-stream")), (200, None), "{reply:?}");
    }
}

#[tokio::test]
async fn a_plugin_on_the_sdk_has_a_thread_for_each_connection() {
    let upstream = Upstream::http1("app").await;
    let command = format!("command: {}, timeout: 20s", fake(&["serve"]));
    let proxy = Proxy::start(&format!("workers: 1\n{}", filtered(upstream.address(), &command))).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    // One for the worker, and one for everybody else.
    let pid = proxy.plugin_pid("auth").await;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let names: Vec<_> = names.collect();
    assert_eq!(names.iter().filter(|name| name.trim() == "batches").count(), 2, "{names:?}");
}

#[tokio::test]
async fn an_answer_that_was_not_asked_for_judges_nothing_and_costs_the_stream() {
    let (proxy, upstream) = bare(", timeout: 20s").await;
    let mut seen = 0;
    for what in ["unknown", "zero", "twice", "taken"] {
        let before = stream_of(&proxy).await;
        seen += 1;
        let reply = proxy.get("/", &[ADMIN, ("x-fake", what)]).await;
        // The first of two answers is as good as any; the stream is given up with the second.
        match what {
            "twice" => assert!(matches!(reply.status, 200 | 503), "{reply:?}"),
            _ => reply.assert_failed(503, "plugin_invalid"),
        }
        seen += usize::from(reply.status == 200);
        let after = stream_of(&proxy).await;
        seen += 1;
        assert_ne!(before, after, "{what}");
    }
    assert_eq!(upstream.count(), seen);
}

#[tokio::test]
async fn a_wrong_answer_to_a_call_is_that_calls_alone() {
    let (proxy, upstream) = bare(", timeout: 20s").await;
    let stream = stream_of(&proxy).await;
    for (what, reason) in [
        ("no-answer", "plugin_invalid"),
        ("other-kind", "plugin_invalid"),
        ("empty", "plugin_invalid"),
        ("code-0", "plugin_failed"),
        ("code-8", "plugin_overloaded"),
    ] {
        proxy.get("/", &[ADMIN, ("x-fake", what)]).await.assert_failed(503, reason);
    }
    assert_eq!(stream_of(&proxy).await, stream);
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_anew_and_the_call_made_again() {
    let (proxy, _upstream) = bare(", timeout: 20s").await;
    let reply = proxy.get("/", &[ADMIN, ("x-fake", "end")]).await;
    assert_eq!((reply.status, reply.header("x-stream").as_str()), (200, "2"), "{reply:?}");
}

#[tokio::test]
async fn a_late_answer_is_nobodys_and_harms_nobody() {
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "workers: 1
listeners: [{{name: web, address: 127.0.0.1:0}}]
routes:
  - {{path: /late, filters: [{{plugin: auth, timeout: 300ms}}], upstream: app}}
  - {{filters: [auth], upstream: app}}
upstreams: {{app: {{endpoints: ['{}']}}}}
plugins: {{auth: {{command: {}, timeout: 20s}}}}
",
        upstream.address(),
        fake(&["needs:batches", "serve-bare"])
    );
    let proxy = Proxy::start(&yaml).await;
    let stream = stream_of(&proxy).await;
    proxy.get("/late", &[ADMIN, ("x-fake", "late")]).await.assert_failed(504, "plugin_timeout");
    std::fs::write(proxy.dir().join("go"), "").unwrap();
    // Behind the late answer, on the same stream.
    for _ in 0..10 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(stream_of(&proxy).await, stream);
    }
    assert_eq!(upstream.count(), 11);
}

#[tokio::test]
async fn clients_that_leave_break_no_calls_of_others() {
    let (proxy, _upstream) = bare(", timeout: 20s").await;
    let stream = stream_of(&proxy).await;
    let mut client = Client::http1(proxy.address()).await;
    for _ in 0..5 {
        let mut leaving = Vec::new();
        for _ in 0..100 {
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send("GET / HTTP/1.1\r\nhost: a\r\nuser: admin\r\nx-fake: hang\r\n\r\n").await;
            leaving.push(raw);
        }
        assert_eq!(client.get("/", &[ADMIN]).await.header("x-stream"), stream);
        drop(leaving);
        assert_eq!(client.get("/", &[ADMIN]).await.header("x-stream"), stream);
    }
}

#[tokio::test]
async fn each_of_many_gets_its_own_verdict_and_waits_for_no_other() {
    let bounded = &["calls:3", "serve"][..];
    for (workers, actions) in [(2, &["serve"][..]), (1, bounded), (2, bounded), (2, &["needs:batches", "serve-bare"])] {
        let upstream = Upstream::http1("app").await;
        let command = format!("command: {}, timeout: 60s", fake(actions));
        let proxy = Proxy::start(&format!("workers: {workers}\n{}", filtered(upstream.address(), &command))).await;
        let address = proxy.address();
        let mut slow = Client::http1(address).await;
        let slow = tokio::spawn(async move { slow.get("/", &[ADMIN, ("x-fake", "await-go")]).await });
        let clients = (0..20).map(|n| {
            tokio::spawn(async move {
                let mut client = Client::http1(address).await;
                for turn in 0..20 {
                    let id = format!("{n}-{turn}");
                    let user = if turn % 3 == 0 { "guest" } else { "admin" };
                    let reply = client.get("/", &[("user", user), ("x-id", &id)]).await;
                    assert_eq!(reply.status, if user == "admin" { 200 } else { 403 }, "{reply:?}");
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            soon("a client's end", client).await.unwrap();
        }
        std::fs::write(proxy.dir().join("go"), "").unwrap();
        for seen in upstream.seen() {
            assert_eq!(seen.header("x-id"), seen.header("x-echo"));
        }
        assert_eq!(upstream.count(), 20 * 13);
        assert_eq!(slow.await.unwrap().status, 200);
    }
}
