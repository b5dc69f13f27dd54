//! A new process takes over from a running one: its listeners, its runtime directory, its admin socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_supervisor::Checksum;
use palisade_tests::process::{command, descendants, kill, runs};
use palisade_tests::{
    ADMIN, Client, Load, Options, Outcome, Proxy, Raw, Upstream, eventually, fake, filtered, place, run_to_exit, soon,
};
use serde_json::Value;
use tempfile::TempDir;

fn config(dir: &TempDir, upstream: &Upstream) -> String {
    format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}, {{name: local, address: 'unix:{}/web.sock'}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        dir.path().display(),
        upstream.address(),
        fake(&["serve"])
    )
}

async fn start() -> (Proxy, Upstream, Arc<TempDir>) {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    let yaml = config(&dir, &upstream);
    (Proxy::start_in(Arc::clone(&dir), &yaml).await, upstream, dir)
}

async fn upgrade(proxy: &Proxy) -> Outcome {
    proxy.cli(&["upgrade-self"]).await
}

/// The process that answers on the admin socket.
async fn in_charge(proxy: &Proxy) -> i32 {
    i32::try_from(proxy.status().await["pid"].as_i64().unwrap()).unwrap()
}

/// Ends the process in charge, which is not the one that the harness has started.
async fn end(proxy: &Proxy) {
    let pid = in_charge(proxy).await;
    kill(pid, Signal::SIGTERM);
    eventually("the last process ends", || !runs(pid)).await;
    assert!(!proxy.runtime_dir().join("admin.sock").exists());
    assert!(!proxy.dir().join("web.sock").exists());
}

/// Upgrades, one after the other, while requests go on.
async fn upgrades_under_load(upgrades: u32, each_second: u32) -> u64 {
    let (mut proxy, _upstream, _dir) = start().await;
    let load = Load::at_rate(proxy.address(), each_second);
    let mut pid = proxy.pid();
    for _ in 0..upgrades {
        load.more(100).await;
        let upgraded = upgrade(&proxy).await;
        assert_eq!(upgraded.code, Some(0), "{upgraded:?}\n{}", proxy.log());
        let next = in_charge(&proxy).await;
        assert_ne!(next, pid);
        load.more(100).await;
        // The one before drains, stops its plugins, and ends.
        if pid == proxy.pid() {
            assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
        } else {
            eventually("the process before ends", || !runs(pid)).await;
        }
        pid = next;
    }
    let count = load.end().await;
    let mut local = Client::http1_unix(&proxy.dir().join("web.sock")).await;
    assert_eq!(local.get("/", &[ADMIN]).await.status, 200);
    drop(local);
    end(&proxy).await;
    count
}

#[tokio::test]
async fn upgrades_under_load_refuse_no_connection_and_lose_no_request() {
    upgrades_under_load(3, 400).await;
}

#[tokio::test]
#[ignore = "a minute or two: make soak"]
async fn fifty_upgrades_at_1000_requests_a_second_lose_nothing() {
    let count = upgrades_under_load(50, 1000).await;
    #[allow(clippy::print_stderr, reason = "figures for whoever runs it")]
    {
        eprintln!("50 upgrades, {count} requests, none lost");
    }
}

#[tokio::test]
async fn a_successor_that_does_not_come_up_changes_nothing() {
    let (proxy, upstream, dir) = start().await;
    let file = dir.path().join("palisade.yaml");
    let cases = [
        ("nonsense: 1\n".to_owned(), "configuration is invalid"),
        (config(&dir, &upstream).replace("\"serve\"", "\"exit:7\""), "exit status 7"),
        (format!("runtime_dir: elsewhere\n{}", config(&dir, &upstream)), "`runtime_dir` is"),
    ];
    for (yaml, why) in cases {
        fs::write(&file, yaml).unwrap();
        let refused = upgrade(&proxy).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(why), "no {why:?} in {}", refused.stderr);
        assert_eq!(in_charge(&proxy).await, proxy.pid());
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
        let mut local = Client::http1_unix(&dir.path().join("web.sock")).await;
        assert_eq!(local.get("/", &[ADMIN]).await.status, 200);
    }
    fs::write(&file, config(&dir, &upstream)).unwrap();
    assert_eq!(upgrade(&proxy).await.code, Some(0), "{}", proxy.log());
    end(&proxy).await;
}

#[tokio::test]
async fn a_successor_whose_predecessor_was_killed_gives_way() {
    let (mut proxy, upstream, dir) = start().await;
    let yaml = config(&dir, &upstream);
    let slow = yaml.replace("\"serve\"", "\"stay\"").replace("timeout: 10s", "handshake_timeout: 1h");
    fs::write(dir.path().join("palisade.yaml"), slow).unwrap();
    kill(proxy.pid(), Signal::SIGUSR2);
    let starting =
        || descendants(proxy.pid()).into_iter().find(|pid| command(*pid).trim_end().ends_with("fake-plugin stay"));
    eventually("the successor starts its plugin", || starting().is_some()).await;
    let status = fs::read_to_string(format!("/proc/{}/status", starting().unwrap())).unwrap();
    let successor = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    proxy.kill9();
    // With it go its lock and its listening sockets.
    eventually("the successor has gone", || !runs(successor)).await;
    proxy.nothing_is_left().await;
    drop(proxy);
    let proxy = Proxy::start_in(dir, &yaml).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn sigusr2_upgrades_and_the_runtime_directory_stays_locked() {
    let (mut proxy, upstream, dir) = start().await;
    let before = proxy.pid();
    kill(before, Signal::SIGUSR2);
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
    let pid = in_charge(&proxy).await;
    assert_ne!(pid, before);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let outcome = second_proxy(&dir, &upstream).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("(pid {pid})")), "{}", outcome.stderr);
    end(&proxy).await;
}

/// What becomes of another proxy with the same runtime directory, while one runs. That one's processes stay.
async fn second_proxy(dir: &TempDir, upstream: &Upstream) -> Outcome {
    let other = place();
    let yaml = format!("runtime_dir: {}\n{}", dir.path().join("run").display(), config(dir, upstream));
    run_to_exit(other.path(), &yaml).await
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go_by_the_answer_to_its_next_request() {
    let (mut proxy, _upstream, _dir) = start().await;
    let mut client = Client::http1(proxy.address()).await;
    assert_eq!(client.get("/", &[ADMIN]).await.header("connection"), "");
    assert_eq!(upgrade(&proxy).await.code, Some(0), "{}", proxy.log());
    let last = client.get("/", &[ADMIN]).await;
    assert_eq!((last.status, last.header("connection").as_str()), (200, "close"), "{last:?}");
    assert!(proxy.wait_exit().await.success());
    end(&proxy).await;
}

/// As package managers do: a new file in the place of one that runs.
fn renew(program: &Path) {
    let new = program.with_extension("new");
    fs::copy(program, &new).unwrap();
    fs::rename(new, program).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandboxed_and_pinned_plugin_goes_on_as_one() {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    // Where whoever the plugin runs as gets to it.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let [palisade, fake] = palisade_tests::programs_in(dir.path());
    let sum = Checksum::of(&fake).unwrap();
    let yaml = |checksum: &str| {
        filtered(
            upstream.address(),
            &format!("command: ['{}', serve], timeout: 20s, sandbox: hardened, checksum: '{checksum}'", fake.display()),
        )
    };
    let options = Options { program: Some(palisade.clone()), ..Options::default() };
    let mut proxy = Proxy::start_with(Arc::clone(&dir), &yaml(&sum.to_string()), &options).await;
    let confined = async |proxy: &Proxy| {
        let outcome = proxy.cli(&["plugin", "inspect", "auth", "--json"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let seen = serde_json::from_str::<Value>(&outcome.stdout).unwrap()["instances"][0].clone();
        assert_eq!(
            (&seen["facts"]["seccomp_mode"], &seen["facts"]["no_new_privs"]),
            (&2.into(), &true.into()),
            "{seen:#}"
        );
        assert_eq!(seen["facts"]["program_checksum"], sum.to_string(), "{seen:#}");
        let probes = seen["confinement"]["probes"].as_array().unwrap();
        assert!(probes.len() > 8 && probes.iter().all(|probe| probe["allowed"] == false), "{probes:#?}");
        i32::try_from(seen["facts"]["pid"].as_i64().unwrap()).unwrap()
    };
    let before = confined(&proxy).await;
    let load = Load::on(proxy.address());
    // The helper of the sandbox is the program of whichever process starts the plugin.
    renew(&palisade);
    let upgraded = upgrade(&proxy).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}\n{}", proxy.log());
    load.more(100).await;
    let after = confined(&proxy).await;
    assert_ne!(before, after);
    load.more(100).await;
    load.end().await;
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());

    // Also when it has been replaced again, and the plugin has to be started anew.
    renew(&palisade);
    kill(after, Signal::SIGKILL);
    proxy.until_replaced("auth", after).await;
    confined(&proxy).await;
    // A plugin that is not what was pinned has no successor serve.
    let in_force = in_charge(&proxy).await;
    fs::write(dir.path().join("palisade.yaml"), yaml(&format!("sha256:{}", "0".repeat(64)))).unwrap();
    let refused = upgrade(&proxy).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("is not what was pinned"), "{refused:?}");
    assert_eq!(in_charge(&proxy).await, in_force);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    kill(in_force, Signal::SIGTERM);
    eventually("the last process ends", || !runs(in_force)).await;
}

/// A program that does what systemd does: opens sockets, and hands them to `palisade` from descriptor 3 on.
const ACTIVATE: &str = r#"#!/usr/bin/env python3
import fcntl, os, socket, sys
web = socket.create_server(("127.0.0.1", 0))
path = os.path.abspath("activated.sock")
local = socket.socket(socket.AF_UNIX)
local.bind(path)
local.listen()
# First out of the way of where they go.
high = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 100) for each in (web, local)]
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index, inheritable=True)
os.closerange(5, 200)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="web:other")
palisade = os.environ["PALISADE"]
os.execv(palisade, [palisade] + sys.argv[1:])
"#;

#[tokio::test]
async fn whoever_waits_for_a_place_is_served_by_the_successor() {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    let limited = |most: u32| {
        let listener = format!("{{name: web, address: 127.0.0.1:0, limits: {{max_connections: {most}}}}}");
        format!("workers: 2\n{}", config(&dir, &upstream).replace("{name: web, address: 127.0.0.1:0}", &listener))
    };
    let proxy = Proxy::start_in(Arc::clone(&dir), &limited(10)).await;
    let mut first = Client::http1(proxy.address()).await;
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
    fs::write(proxy.dir().join("palisade.yaml"), limited(1)).unwrap();
    assert_eq!(proxy.cli(&["reload"]).await.code, Some(0));
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET / HTTP/1.1\r\nHost: a\r\nuser: admin\r\nConnection: close\r\n\r\n").await;
        waiting.push(raw);
    }
    assert_eq!(upgrade(&proxy).await.code, Some(0));
    for mut raw in waiting {
        assert_eq!(raw.reply().await.unwrap().status, 200);
    }
    drop(first);
    end(&proxy).await;
}

#[tokio::test]
async fn sockets_of_a_service_manager_are_taken_over() {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    let [palisade, _] = palisade_tests::programs_in(dir.path());
    let script = dir.path().join("activate");
    fs::write(&script, ACTIVATE).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let yaml = config(&dir, &upstream).replace("web.sock", "activated.sock");
    let env = vec![("PALISADE".into(), palisade.into())];
    let options = Options { env, program: Some(script), ..Options::default() };
    let mut proxy = Proxy::start_with(Arc::clone(&dir), &yaml, &options).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let mut local = Client::http1_unix(&dir.path().join("activated.sock")).await;
    assert_eq!(local.get("/", &[ADMIN]).await.status, 200);
    drop(local);
    assert_eq!(upgrade(&proxy).await.code, Some(0), "{}", proxy.log());
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert!(proxy.wait_exit().await.success());
    let pid = in_charge(&proxy).await;
    kill(pid, Signal::SIGTERM);
    eventually("the last process ends", || !runs(pid)).await;
    assert!(dir.path().join("activated.sock").exists(), "its file is the service manager's");
}

#[tokio::test]
async fn a_service_manager_is_told_which_process_serves() {
    let (upstream, dir) = (Upstream::http1("app").await, Arc::new(place()));
    let notifications = tokio::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
    let env = vec![("NOTIFY_SOCKET".into(), dir.path().join("notify").into())];
    let options = Options { env, ..Options::default() };
    let mut proxy = Proxy::start_with(Arc::clone(&dir), &config(&dir, &upstream), &options).await;
    let told = async || {
        let mut buffer = [0; 256];
        let length = soon("a notification", notifications.recv(&mut buffer)).await.unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(told().await, format!("READY=1\nMAINPID={}", proxy.pid()));
    assert_eq!(upgrade(&proxy).await.code, Some(0), "{}", proxy.log());
    let pid = in_charge(&proxy).await;
    assert_eq!(told().await, format!("READY=1\nMAINPID={pid}"));
    assert!(tokio::time::timeout(Duration::from_secs(20), proxy.wait_exit()).await.unwrap().success());
    end(&proxy).await;
}
