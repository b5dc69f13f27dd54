//! The proxy's own end, wanted or not, and what it needs to run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::process::{kill, runs};
use palisade_tests::{
    ADMIN, Client, Options, Proxy, Raw, Upstream, eventually, fake, get, place, programs_in, run_to_exit, soon,
};
use tempfile::TempDir;
use tokio::net::TcpStream;

fn config(actions: &[&str], upstream: &Upstream, top: &str) -> String {
    format!(
        "{top}
listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upgrades: [websocket], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(actions)
    )
}

/// What is in the runtime directory, the lock file apart.
fn left_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| !path.to_string_lossy().ends_with("lock")).collect()
}

#[tokio::test]
async fn a_killed_proxy_leaves_no_process_and_starts_again_in_the_same_place() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&["child", "child-apart", "child-bare", "serve"], &upstream, "");
    let mut proxy = Proxy::start(&yaml).await;
    let plugin = proxy.plugin_pid("auth").await;
    let pids = proxy.dir().join("pids");
    let mut family: Vec<i32> =
        std::fs::read_to_string(&pids).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(family.len(), 3);
    family.push(plugin);
    let dir = proxy.shared_dir();
    let killed = std::time::Instant::now();
    proxy.kill9();
    for pid in family {
        eventually("a process of the plugin's is gone", || !runs(pid)).await;
    }
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    proxy.nothing_is_left().await;
    drop(proxy);
    std::fs::remove_file(&pids).unwrap();

    let proxy = Proxy::start_in(dir, &yaml).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let sockets = left_in(&proxy.runtime_dir());
    // The admin socket and the directory of the plugin that runs: nothing of the killed one.
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    for pid in std::fs::read_to_string(&pids).unwrap().lines() {
        proxy.watch(pid.parse().unwrap());
    }
}

#[tokio::test]
async fn directories_of_any_depth_that_a_plugin_leaves_cost_the_proxy_nothing() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&["dig:20000", "exit:1"], &upstream, "")
        .replace("timeout: 10s", "required: false, restart: {policy: never}");
    // Found in the next start, where the proxy was killed meanwhile.
    let dir = Arc::new(place());
    let left = dir.path().join("run/p-abcdef");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::set_permissions(left.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let program: Vec<String> = serde_json::from_str(&fake(&["dig:20000"])).unwrap();
    let dug = std::process::Command::new(&program[0]).arg(&program[1]).env("PLUGIN_UNIX_SOCKET_DIR", &left).status();
    assert!(dug.unwrap().success());

    let proxy = Proxy::start_in(dir, &yaml).await;
    soon("the plugin has ended", async {
        while proxy.plugin("auth").await["state"] != "disabled" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    eventually("only the admin socket is left", || left_in(&proxy.runtime_dir()).len() == 1).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 503);
}

#[tokio::test]
async fn a_second_proxy_in_the_same_runtime_directory_is_refused() {
    let upstream = Upstream::http1("app").await;
    let first = Proxy::start(&config(&["serve"], &upstream, "")).await;
    let pid = first.plugin_pid("auth").await;
    let dir = place();
    let top = format!("runtime_dir: '{}'", first.runtime_dir().display());
    let outcome = run_to_exit(dir.path(), &config(&["serve"], &upstream, &top)).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let names_it = outcome.stderr.contains(first.runtime_dir().to_str().unwrap());
    assert!(names_it && outcome.stderr.contains("another"), "{}", outcome.stderr);
    assert_eq!(first.plugin_pid("auth").await, pid);
    assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn sigterm_lets_requests_finish_and_takes_no_more() {
    let upstream = Upstream::http1("app").await;
    let socket_dir = place();
    let socket = socket_dir.path().join("web.sock");
    let yaml = config(&["serve"], &upstream, "drain_timeout: 60s")
        .replace("listeners: [", &format!("listeners: [{{name: local, address: 'unix:{}'}}, ", socket.display()));
    let mut proxy = Proxy::start(&yaml).await;
    let address = proxy.address_of("web");
    assert!(socket.exists());
    let plugin = proxy.plugin_pid("auth").await;

    let mut http1 = Client::http1(address).await;
    let mut http2 = Client::http2(address).await;
    let mut held = vec![http1.stream(get("/hold", &[ADMIN]).map(drop)), http2.stream(get("/hold", &[ADMIN]).map(drop))];
    held.iter_mut().for_each(palisade_tests::Stream::end);
    upstream.until_asked(2).await;
    let mut idle = Client::http1(address).await;
    assert_eq!(idle.get("/", &[ADMIN]).await.status, 200);

    proxy.terminate();
    soon("new connections are refused", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Idle connections are closed at once.
    assert!(soon("the idle connection ends", idle.try_send(get("/", &[ADMIN]))).await.is_err());
    assert!(!proxy.has_exited());
    upstream.release();
    for stream in held {
        let reply = stream.finish().await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello from app"), "{reply:?}");
    }
    let status = proxy.wait_exit().await;
    assert_eq!(status.code(), Some(0), "{}", proxy.log());
    assert!(!runs(plugin));
    assert!(!socket.exists(), "the listener's socket is left");
    assert_eq!(left_in(&proxy.runtime_dir()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_at_the_drain_timeout() {
    let upstream = Upstream::http1("app").await;
    let mut proxy = Proxy::start(&config(&["serve"], &upstream, "drain_timeout: 300ms")).await;
    let mut client = Client::http1(proxy.address()).await;
    let mut held = client.stream(get("/hold", &[ADMIN]).map(drop));
    held.end();
    upstream.until_asked(1).await;
    proxy.terminate();
    let status = proxy.wait_exit().await;
    assert_eq!(status.code(), Some(0), "{}", proxy.log());
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_and_tunnels() {
    let upstream = Upstream::http1("app").await;
    let mut proxy = Proxy::start(&config(&["serve"], &upstream, "drain_timeout: 1h")).await;
    let mut tunnel = Raw::connect(proxy.address()).await;
    tunnel
        .send("GET /ws HTTP/1.1\r\nHost: a\r\nUser: admin\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(tunnel.reply().await.unwrap().status, 101);
    proxy.terminate();
    proxy.wait_for_log("the drain", |line| line.contains("draining")).await;
    // A tunnel goes on until then.
    tunnel.send("ping").await;
    assert_eq!(tunnel.exactly(4).await, b"ping");
    proxy.terminate();
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
    assert!(tunnel.rest().await.is_empty());
}

#[tokio::test]
async fn a_plugin_is_given_what_the_configuration_says_and_nothing_else() {
    let upstream = Upstream::http1("app").await;
    let yaml =
        config(&["serve"], &upstream, "").replace("timeout: 10s", "timeout: 10s, env: {SET: a}, env_pass: [PASSED]");
    let mut options = Options::default();
    for (name, value) in [("SECRET", "s3cret"), ("PASSED", "b"), ("PLUGIN_CLIENT_CERT", "stale")] {
        options.env.push((name.into(), value.into()));
    }
    let proxy = Proxy::start_with(Arc::new(place()), &yaml, &options).await;
    assert_eq!(proxy.get("/", &[ADMIN, ("x-fake", "environment")]).await.status, 200);
    let given: Vec<String> = serde_json::from_str(&upstream.last().header("x-seen")).unwrap();
    assert!(given.iter().any(|entry| entry == "SET=a") && given.iter().any(|entry| entry == "PASSED=b"), "{given:?}");
    assert!(!given.iter().any(|entry| entry.contains("s3cret") || entry.contains("stale")), "{given:?}");

    let sockets = |pid: i32| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        entries
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .collect()
    };
    let own = sockets(proxy.plugin_pid("auth").await);
    let shared: Vec<_> = sockets(proxy.pid()).into_iter().filter(|socket| own.contains(socket)).collect();
    assert_eq!(shared, Vec::<PathBuf>::new(), "sockets of the proxy in the plugin");
}

#[tokio::test]
async fn a_signal_during_the_start_ends_it() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&["stay"], &upstream, "").replace("timeout: 10s", "handshake_timeout: 1h");
    let mut proxy = Proxy::spawn(Arc::new(place()), &yaml, &Options::default());
    soon("the plugin is there", async {
        while palisade_tests::process::descendants(proxy.pid()).len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    proxy.terminate();
    proxy.wait_exit().await;
    proxy.nothing_is_left().await;
}

#[tokio::test]
async fn a_port_in_use_ends_the_start_and_every_plugin() {
    let upstream = Upstream::http1("app").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = place();
    let yaml = config(&["serve"], &upstream, "").replace("127.0.0.1:0", &address);
    let outcome = run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(&address), "{}", outcome.stderr);
    assert_eq!(left_in(&dir.path().join("run")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn commands_without_a_proxy_say_so() {
    let upstream = Upstream::http1("app").await;
    let mut proxy = Proxy::start(&config(&["serve"], &upstream, "")).await;
    proxy.kill9();
    // Its socket is still there, nobody behind it.
    for arguments in [&["status"][..], &["plugin", "stop", "auth"]] {
        let outcome = proxy.cli(arguments).await;
        assert_eq!(outcome.code, Some(4), "{arguments:?}: {outcome:?}");
    }
    let usage = proxy.cli(&["plugin", "stopp", "auth"]).await;
    assert_eq!(usage.code, Some(2), "{usage:?}");
    let version = proxy.cli(&["version"]).await;
    assert!(version.code == Some(0) && version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    let schema = proxy.cli(&["schema"]).await;
    assert!(serde_json::from_str::<serde_json::Value>(&schema.stdout).is_ok(), "{schema:?}");
    let completions = proxy.cli(&["completions", "bash"]).await;
    assert!(completions.stdout.contains("palisade"), "{completions:?}");
}

#[tokio::test]
async fn a_crowd_leaves_descriptors_for_plugins() {
    let upstream = Upstream::http1("app").await;
    let dir = place();
    let [palisade, _] = programs_in(dir.path());
    let wrapper = dir.path().join("few-descriptors");
    std::fs::write(&wrapper, format!("#!/bin/sh\nulimit -n 64\nexec '{}' \"$@\"\n", palisade.display())).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = Options { program: Some(wrapper), ..Options::default() };
    let proxy = Proxy::start_with(Arc::new(dir), &config(&["serve"], &upstream, ""), &options).await;
    let address = proxy.address();
    let pid = proxy.plugin_pid("auth").await;
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    kill(pid, Signal::SIGKILL);
    eventually("the plugin is gone", || !runs(pid)).await;
    proxy.until_replaced("auth", pid).await;
    drop(open);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn sockets_of_others_are_left_alone_and_dead_ones_are_replaced() {
    let upstream = Upstream::http1("app").await;
    let sockets = place();
    let path = sockets.path().join("web.sock");
    let yaml = config(&["serve"], &upstream, "").replace("127.0.0.1:0", &format!("unix:{}", path.display()));
    std::fs::write(&path, "precious").unwrap();
    let dir = place();
    let outcome = run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(path.to_str().unwrap()), "{}", outcome.stderr);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let dir = place();
    let outcome = run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(path.exists());

    drop(other);
    let _proxy = Proxy::start(&yaml).await;
    assert_eq!(Client::http1_unix(&path).await.get("/", &[ADMIN]).await.status, 200);
}

/// No user of this id is on any machine.
const NOBODY: u32 = 54_321;

#[tokio::test]
async fn an_unprivileged_user_is_enough_and_nothing_is_written_elsewhere() {
    let upstream = Upstream::http1("app").await;
    let dir = place();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let root = nix::unistd::geteuid().is_root();
    // Where the tests do not run as root, they run as somebody unprivileged anyway.
    let uid = if root { NOBODY } else { nix::unistd::geteuid().as_raw() };
    let [palisade, fake_plugin] = programs_in(dir.path());
    let mut options = Options { program: Some(palisade), ..Options::default() };
    if root {
        std::os::unix::fs::chown(&run, Some(NOBODY), Some(NOBODY)).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        options.uid = Some(NOBODY);
    }
    let before = written_by(uid, &run, dir.path());
    let dir: Arc<TempDir> = Arc::new(dir);
    let command = format!("['{}', serve]", fake_plugin.display());
    let yaml = config(&["serve"], &upstream, "").replace(&fake(&["serve"]), &command);
    let mut proxy = Proxy::start_with(Arc::clone(&dir), &yaml, &options).await;
    let pid = proxy.plugin_pid("auth").await;
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), uid);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(mode(&run.join("admin.sock")) & 0o077, 0, "others can reach the admin socket");
    if root {
        assert_eq!(written_by(uid, &run, dir.path()), before);
    }
    proxy.terminate();
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
    assert_eq!(left_in(&run), Vec::<PathBuf>::new());
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode()
}

/// What a user owns in the places where everybody may write, and in `also`, but not in `except`.
fn written_by(uid: u32, except: &Path, also: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut places: Vec<PathBuf> = ["/tmp", "/var/tmp", "/dev/shm", "/run"].map(PathBuf::from).into();
    places.push(also.to_owned());
    for place in places {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let owned = std::fs::symlink_metadata(entry.path()).is_ok_and(|metadata| metadata.uid() == uid);
            if owned && entry.path() != except {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
