//! Reloads: what has changed is put in force without losing a request, or nothing is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::process::{descendants, kill, runs};
use palisade_tests::tls::Authority;
use palisade_tests::{ADMIN, Client, Load, Outcome, Proxy, Raw, Upstream, eventually, fake, get, place, soon};
use serde_json::Value;
use tokio::net::TcpStream;

const CHANGES: &str = "palisade_changes_total";

/// A configuration with a listener `web` and a filter `auth` in front of an upstream.
fn config(upstream: &Upstream, listeners: &str, auth: &str, more: &str) -> String {
    format!(
        "listeners:
  - {{name: web, address: 127.0.0.1:0}}
{listeners}
routes: [{{filters: [{{plugin: auth, timeout: 20s}}], upstream: 'http://{}'}}]
plugins:
  auth: {{command: {}{auth}}}
{more}
",
        upstream.address(),
        fake(&["serve"])
    )
}

fn write(proxy: &Proxy, yaml: &str) {
    std::fs::write(proxy.dir().join("palisade.yaml"), yaml).unwrap();
}

async fn reload(proxy: &Proxy, yaml: &str) -> Outcome {
    write(proxy, yaml);
    proxy.cli(&["reload"]).await
}

async fn reloaded(proxy: &Proxy, yaml: &str) -> String {
    let outcome = reload(proxy, yaml).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}\n{}", proxy.log());
    outcome.stdout
}

/// Where a listener is, now.
async fn address_of(proxy: &Proxy, name: &str) -> Option<SocketAddr> {
    let status = proxy.status().await;
    let listener = status["listeners"].as_array()?.iter().find(|listener| listener["name"] == name)?.clone();
    listener["address"].as_str()?.parse().ok()
}

async fn ask(address: SocketAddr) -> u16 {
    Client::http1(address).await.get("/", &[ADMIN]).await.status
}

fn count(dir: &str) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// Memory in pages, descriptors, threads.
fn size(pid: i32) -> (u64, usize, usize) {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let resident = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (resident, count(&format!("/proc/{pid}/fd")), count(&format!("/proc/{pid}/task")))
}

/// Reloads while requests come: routes, upstreams, filters, limits and listeners differ each time, every tenth file is
/// invalid, and every `renewed`th has another configuration for the plugin.
async fn reloads_under_load(reloads: u64, renewed: u64) -> String {
    let upstreams = [Upstream::http1("one").await, Upstream::http1("two").await];
    let yaml = |n: u64| {
        let extra = ["  - {name: extra, address: 127.0.0.1:0, filters: [audit]}", ""];
        let auth = format!(", timeout: 10s, probation: 50ms, config: {{n: {}}}", n / renewed);
        let audit = format!("  audit: {{command: {}, timeout: 10s}}", fake(&["serve"]));
        let mut yaml = config(
            &upstreams[usize::from(n.is_multiple_of(3))],
            extra[usize::from(n.is_multiple_of(2))],
            &auth,
            &audit,
        );
        yaml = yaml.replacen("127.0.0.1:0}", &format!("127.0.0.1:0, limits: {{max_headers: {}}}}}", 90 + n % 7), 1);
        if n.is_multiple_of(5) {
            yaml = yaml.replace("routes: [", "routes: [{name: more, path: /more, upstream: 'http://127.0.0.1:1'}, ");
        }
        if n % 10 == 9 { yaml.replacen("plugin: auth", "plugin: auht", 1) } else { yaml }
    };
    let proxy = Proxy::start(&yaml(0)).await;
    let load = Load::on(proxy.address());
    let mut admin = Client::http1_unix(&proxy.runtime_dir().join("admin.sock")).await;
    load.more(200).await;
    let before = size(proxy.pid());
    let (mut done, mut invalid) = (0, 0);
    for n in 1..=reloads {
        write(&proxy, &yaml(n));
        let answer = admin.send(http::Request::post("/reload").body(bytes::Bytes::new()).unwrap()).await;
        let expected = if n % 10 == 9 { 422 } else { 200 };
        assert_eq!(answer.status, expected, "{n}: {}", answer.text());
        if expected == 200 { done += 1 } else { invalid += 1 }
    }
    load.more(100).await;
    let requests = load.end().await;
    assert_eq!(proxy.metric(CHANGES, &[("change", "reload"), ("outcome", "done")]).await, done);
    assert_eq!(proxy.metric(CHANGES, &[("change", "reload"), ("outcome", "refused")]).await, invalid);
    assert_eq!(proxy.status().await["generation"], done + 1);
    // What was replaced is gone: three processes of a plugin would be left else.
    eventually("old processes are gone", || descendants(proxy.pid()).len() <= 5).await;
    let after = size(proxy.pid());
    // A leak of one for each reload would show.
    let slack = 40;
    assert!(after.1 < before.1 + slack && after.2 < before.2 + slack, "{before:?} {after:?}");
    let grown = (after.0.saturating_sub(before.0)) * 4;
    format!(
        "{reloads} reloads, {invalid} of them invalid, {requests} requests, none failed; memory {grown} KiB more, \
         descriptors {} and {}, threads {} and {}",
        before.1, after.1, before.2, after.2
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_lose_no_request() {
    reloads_under_load(50, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute: make soak"]
async fn a_thousand_reloads_under_load_lose_no_request() {
    let figures = reloads_under_load(1000, 50).await;
    #[allow(clippy::print_stderr, reason = "the figures are what it is run for")]
    {
        eprintln!("{figures}");
    }
}

#[tokio::test]
async fn what_has_not_changed_is_not_touched() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&upstream, "", "", "");
    let proxy = Proxy::start(&yaml).await;
    let pid = proxy.plugin_pid("auth").await;
    let mut client = Client::http1(proxy.address()).await;
    assert_eq!(client.get("/", &[ADMIN]).await.status, 200);
    let connections = upstream.connections();
    // Another route, other times, another filter: nothing that concerns a process, a pool or a socket.
    let next = config(&upstream, "", ", timeout: 7s, on_failure: deny, required: false, probation: 1s", "")
        .replace("routes: [", "routes: [{name: more, path: /more, upstream: 'http://127.0.0.1:1'}, ");
    assert_eq!(reloaded(&proxy, &next).await, "reloaded: generation 2\n");
    client.get("/more", &[]).await.assert_failed(503, "upstream_connect");
    assert_eq!(client.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(address_of(&proxy, "web").await, Some(proxy.address()));
    assert_eq!((proxy.plugin_pid("auth").await, upstream.connections()), (pid, connections));
    // The same over a signal.
    write(&proxy, &yaml);
    kill(proxy.pid(), Signal::SIGHUP);
    proxy.until_metric(CHANGES, &[("change", "reload"), ("outcome", "done")], 2).await;
    assert_eq!(client.get("/more", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.plugin_pid("auth").await, pid);
    let status = proxy.status().await;
    assert_eq!(status["generation"], 3);
    assert!(status["config_sha256"].as_str().unwrap().len() == 64, "{status}");
}

#[tokio::test]
async fn a_changed_plugin_is_replaced_and_another_is_not() {
    let upstream = Upstream::http1("app").await;
    let more = format!("  audit: {{command: {}}}", fake(&["serve"]));
    let auth = ", timeout: 10s, probation: 50ms";
    let proxy = Proxy::start(&config(&upstream, "", auth, &more)).await;
    let audit = proxy.plugin_pid("audit").await;
    for change in
        [", config: {mark: a}", ", config: {mark: b}", ", env: {A: b}", ", instances: 2", ", stop_timeout: 1s"]
    {
        let old = proxy.plugin_pid("auth").await;
        let said = reloaded(&proxy, &config(&upstream, "", &format!("{auth}{change}"), &more)).await;
        assert!(said.contains("plugins replaced: auth\n"), "{said}");
        assert_ne!(proxy.plugin_pid("auth").await, old, "{change}");
        assert_eq!(proxy.plugin_pid("audit").await, audit, "{change}");
        eventually("the old process is gone", || !runs(old)).await;
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    }
    // Removed: stopped. Added: started.
    reloaded(&proxy, &config(&upstream, "", auth, "")).await;
    eventually("the removed plugin is gone", || !runs(audit)).await;
    let said = reloaded(&proxy, &config(&upstream, "", auth, &more)).await;
    assert_eq!(said, "reloaded: generation 8\nplugins added: audit\n");
    assert!(runs(proxy.plugin_pid("audit").await));
}

#[tokio::test]
async fn an_invalid_file_is_refused_with_every_problem() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&upstream, "", "", "");
    let mut proxy = Proxy::start(&yaml).await;
    let wrong = yaml.replace("routes:", "rutes:").replace("command:", "comand:");
    let outcome = reload(&proxy, &wrong).await;
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    for said in [
        "the configuration is invalid, the one before stays in force",
        "unknown field `rutes`",
        "--> palisade.yaml:4:1",
        "unknown field `comand`",
        "--> palisade.yaml:6:10",
    ] {
        assert!(outcome.stderr.contains(said), "{said}: {}", outcome.stderr);
    }
    // By its name, it is not even asked for.
    assert_eq!(proxy.cli(&["reload", "-c", "palisade.yaml"]).await.code, Some(3));
    kill(proxy.pid(), Signal::SIGHUP);
    proxy.wait_for_log("why", |line| line.contains("not changed") && line.contains("change=reload")).await;
    write(&proxy, &yaml.replace("listeners:", "runtime_dir: elsewhere\nlisteners:"));
    let admin = proxy.runtime_dir().join("admin.sock");
    let moved = proxy.cli(&["reload", "--admin", admin.to_str().unwrap()]).await;
    assert_eq!(moved.code, Some(3), "{moved:?}");
    assert!(moved.stderr.contains("restart the proxy to change it"), "{moved:?}");
    std::fs::remove_file(proxy.dir().join("palisade.yaml")).unwrap();
    assert_eq!(proxy.cli(&["reload"]).await.code, Some(3));
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.status().await["generation"], 1);
}

#[tokio::test]
async fn what_fails_in_part_is_refused_as_a_whole() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&config(&upstream, "", "", "")).await;
    let pid = proxy.plugin_pid("auth").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = |address| format!("  - {{name: extra, address: '{address}'}}");
    let plugin = |actions: &[&str]| format!("  audit: {{command: {}}}", fake(actions));
    let cases = [
        (listener(taken_address), plugin(&["serve"]), "", "listener `extra` can't listen on"),
        (listener(free), plugin(&["log:not today", "exit:4"]), "", "| not today"),
        (listener(free), plugin(&["refuse-config:no"]), ", env: {A: b}", "it refuses its configuration"),
    ];
    for (listeners, plugins, auth, why) in cases {
        let next = config(&upstream, &listeners, auth, &plugins)
            .replace("routes: [", "routes: [{path: /more, upstream: 'http://127.0.0.1:1'}, ");
        let outcome = reload(&proxy, &next).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(why), "{why}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("what was there before stays in force"), "{}", outcome.stderr);
        // Nothing of it is there: no route, no listener, no process.
        assert_eq!(proxy.get("/more", &[ADMIN]).await.status, 200);
        assert!(TcpStream::connect(free).await.is_err());
        assert_eq!(address_of(&proxy, "extra").await, None);
        assert_eq!(proxy.plugin_pid("auth").await, pid);
        let plugins = proxy.status().await["plugins"].as_array().unwrap().len();
        assert_eq!(plugins, 1);
        eventually("no other process is left", || palisade_tests::process::of_directory(proxy.dir()).len() <= 3).await;
    }
    drop(taken);
    // The same file is fine when the address is free.
    reloaded(&proxy, &config(&upstream, &listener(taken_address), "", &plugin(&["serve"]))).await;
    assert_eq!(ask(taken_address).await, 200);
}

#[tokio::test]
async fn what_does_not_last_takes_the_whole_reload_back() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&config(&upstream, "  - {name: old, address: 127.0.0.1:0}", "", "")).await;
    let pid = proxy.plugin_pid("auth").await;
    let old = address_of(&proxy, "old").await.unwrap();
    let next = config(&upstream, "  - {name: new, address: 127.0.0.1:0}", ", timeout: 10s, probation: 20s", "")
        .replace("routes: [", "routes: [{path: /more, upstream: 'http://127.0.0.1:1'}, ")
        .replace("\"serve\"", "\"exit-after:300\",\"serve\"");
    let outcome = reload(&proxy, &next).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("undone within the probation"), "{outcome:?}");
    assert_eq!(proxy.plugin_pid("auth").await, pid);
    assert_eq!(proxy.get("/more", &[ADMIN]).await.status, 200);
    assert_eq!((ask(old).await, address_of(&proxy, "new").await), (200, None));
    assert_eq!(address_of(&proxy, "old").await, Some(old));
    proxy.until_metric(CHANGES, &[("change", "reload"), ("outcome", "undone")], 1).await;
}

#[tokio::test]
async fn listeners_come_and_go_and_their_requests_end() {
    let upstream = Upstream::http1("app").await;
    let extra = "  - {name: extra, address: 127.0.0.1:0}";
    let proxy = Proxy::start(&config(&upstream, extra, "", "")).await;
    let address = address_of(&proxy, "extra").await.unwrap();
    let mut client = Client::http1(address).await;
    let mut held = client.stream(get("/hold", &[ADMIN]).map(drop));
    held.end();
    upstream.until_asked(1).await;
    assert_eq!(
        reloaded(&proxy, &config(&upstream, "", "", "")).await,
        "reloaded: generation 2\nlisteners removed: extra\n"
    );
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(address_of(&proxy, "extra").await, None);
    upstream.release();
    assert_eq!(held.finish().await.status, 200);
    // At an address of its own, as a file has it, and at the same one again.
    let fixed = format!("  - {{name: extra, address: '{address}'}}");
    for generation in [3, 5] {
        let said = reloaded(&proxy, &config(&upstream, &fixed, "", "")).await;
        assert_eq!(said, format!("reloaded: generation {generation}\nlisteners added: extra\n"));
        assert_eq!(ask(address).await, 200);
        reloaded(&proxy, &config(&upstream, "", "", "")).await;
        assert!(TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test]
async fn the_accept_queue_outlives_reloads() {
    let upstream = Upstream::http1("app").await;
    let limited = |most: u32, more: &str| {
        config(&upstream, "", "", "").replacen(
            "127.0.0.1:0}",
            &format!("127.0.0.1:0, limits: {{max_connections: {most}{more}}}}}"),
            1,
        )
    };
    let proxy = Proxy::start(&limited(1, "")).await;
    let mut first = Client::http1(proxy.address()).await;
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
    // In the kernel's queue, with its request.
    let mut queued = Raw::connect(proxy.address()).await;
    queued.send("GET / HTTP/1.1\r\nHost: a\r\nUser: admin\r\n\r\n").await;
    for n in 1..=3 {
        reloaded(&proxy, &limited(1, &format!(", max_headers: {}", 50 + n))).await;
    }
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.metric("palisade_connections", &[("listener", "web")]).await, 1);
    // More room: the one that waits is let in beside the first.
    reloaded(&proxy, &limited(2, "")).await;
    assert_eq!(soon("the queued request", queued.reply_head()).await.unwrap().status, 200);
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
    // Less again: who is there stays, who comes waits until all but none has gone.
    reloaded(&proxy, &limited(1, "")).await;
    let mut late = Raw::connect(proxy.address()).await;
    late.send("GET / HTTP/1.1\r\nHost: a\r\nUser: admin\r\n\r\n").await;
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
    drop(queued);
    proxy.until_metric("palisade_connections", &[("listener", "web")], 1).await;
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.metric("palisade_connections", &[("listener", "web")]).await, 1);
    drop(first);
    assert_eq!(soon("the late request", late.reply_head()).await.unwrap().status, 200);
}

#[tokio::test]
async fn requests_go_on_with_the_configuration_that_they_began_with() {
    let (one, two) = (Upstream::http1("one").await, Upstream::http1("two").await);
    let mut proxy = Proxy::start(&config(&one, "", ", timeout: 60s, probation: 0s", "")).await;
    let mut client = Client::http2(proxy.address()).await;
    let mut held = client.stream(get("/", &[ADMIN, ("x-fake", "await-go")]).map(drop));
    held.end();
    proxy.wait_for_log("the call", |line| line.contains("asked to wait for go")).await;
    reloaded(&proxy, &config(&two, "", ", timeout: 60s, probation: 0s, config: {mark: new}", "")).await;
    // The same connection.
    let reply = client.get("/", &[ADMIN]).await;
    assert_eq!(reply.text(), "hello from two");
    assert_eq!(two.seen().last().unwrap().header("x-order"), "new");
    std::fs::write(proxy.dir().join("go"), "").unwrap();
    assert_eq!(held.finish().await.text(), "hello from one");
    assert_eq!(one.seen().last().unwrap().header("x-order"), "");
}

#[tokio::test]
async fn a_listener_turns_to_tls_without_another_socket() {
    let (authority, dir) = (Authority::new(), Arc::new(place()));
    let upstream = Upstream::http1("app").await;
    let certificate = authority.certificate(&["a.example"]);
    std::fs::create_dir(dir.path().join("certificates")).unwrap();
    certificate.write(&dir.path().join("certificates"), "a");
    let certs = format!("  certs: {{command: {}, config: {{dir: certificates}}}}", fake(&["serve"]));
    let plain = config(&upstream, "", "", &certs);
    let secure = plain.replacen("127.0.0.1:0}", "127.0.0.1:0, tls: certs}", 1);
    let proxy = Proxy::start_in(Arc::clone(&dir), &plain).await;
    let mut client = Client::http1(proxy.address()).await;
    assert_eq!(client.get("/", &[ADMIN]).await.status, 200);
    reloaded(&proxy, &secure).await;
    assert_eq!(address_of(&proxy, "web").await, Some(proxy.address()));
    let presented = authority.client().presented(proxy.address(), "a.example").await.unwrap();
    assert_eq!(presented, certificate.der);
    // Who spoke cleartext has to connect again.
    let end = soon("the end of the old connection", async {
        while client.try_send(get("/", &[ADMIN])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    end.await;
    reloaded(&proxy, &plain).await;
    assert_eq!(ask(proxy.address()).await, 200);
}

#[tokio::test]
async fn a_reload_before_the_proxy_is_ready_waits_for_it() {
    let upstream = Upstream::http1("app").await;
    let dir = Arc::new(place());
    let yaml = config(&upstream, "", "", "").replace("\"serve\"", "\"sleep:500\",\"serve\"");
    let mut proxy = Proxy::spawn(Arc::clone(&dir), &yaml, &palisade_tests::Options::default());
    let started = |line: &str| line.contains(": listening ");
    let admin = proxy.runtime_dir().join("admin.sock");
    eventually("the admin socket", || admin.exists()).await;
    kill(proxy.pid(), Signal::SIGHUP);
    proxy.wait_for_log("ready", started).await;
    proxy.until_metric(CHANGES, &[("change", "reload"), ("outcome", "done")], 1).await;
    let status: Value = proxy.status().await;
    assert_eq!(status["generation"], 2);
}
