//! What the machine does to the proxy: logs that can't be written, clocks that jump, threads that stand still.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it did nothing")]

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use palisade_tests::process::{freeze, kill};
use palisade_tests::{ADMIN, Client, Options, Proxy, Upstream, eventually, fake, filtered, get, place, programs_in};

const LOST: &str = "palisade_log_lines_lost_total";

fn config(upstream: &Upstream) -> String {
    filtered(upstream.address(), &format!("command: {}, timeout: 10s", fake(&["serve"])))
}

/// Runs the proxy by a script, in which `PALISADE` is its program.
fn by_script(dir: &Path, script: &str) -> Options {
    let [palisade, _] = programs_in(dir);
    let path = dir.join("script");
    std::fs::write(&path, script.replace("PALISADE", palisade.to_str().unwrap())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Options { program: Some(path), ..Options::default() }
}

/// As [`by_script`], with a log that the script puts elsewhere, and with a line of it for each request.
fn unheard(dir: &Path, script: &str) -> Options {
    let env = vec![("PALISADE_LOG".into(), "info,palisade::access=debug".into())];
    Options { unheard: true, env, ..by_script(dir, script) }
}

/// Asks until lines of the log have been lost; each request has a long one.
async fn until_lost(proxy: &Proxy) {
    let long = format!("/{}", "x".repeat(7000));
    let mut client = Client::http1(proxy.address()).await;
    for _ in 0..2_000 {
        assert_eq!(client.get(&long, &[ADMIN]).await.status, 200);
        if proxy.metric(LOST, &[]).await > 0 {
            break;
        }
    }
    assert!(proxy.metric(LOST, &[]).await > 0);
    // Whatever else logs goes on, too: plugins that end are replaced.
    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(client.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let upstream = Upstream::http1("app").await;
    let dir = place();
    let fifo = dir.path().join("log");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Held open, so that the proxy can open it, and not read. The least that the kernel has for it.
    let mut reader = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    fcntl(&reader, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let options = unheard(dir.path(), &format!("#!/bin/sh\nexec PALISADE \"$@\" 2>'{}'\n", fifo.display()));
    let mut proxy = Proxy::start_with(Arc::new(dir), &config(&upstream), &options).await;
    until_lost(&proxy).await;
    // Somebody reads again: what waited is there, and how much is not.
    let mut text = String::new();
    let mut piece = [0; 65_536];
    eventually("the log says what was lost", || {
        while let Ok(count) = reader.read(&mut piece) {
            text += &String::from_utf8_lossy(&piece[..count]);
        }
        text.contains("lines of the log were lost")
    })
    .await;
    assert!(text.contains("ready"), "{text}");
    // Its end does not wait for the log either.
    proxy.terminate();
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_full_disk_costs_lines_of_the_log_and_nothing_else() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small disk");
        return;
    }
    let upstream = Upstream::http1("app").await;
    let dir = place();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let disk = disk.display();
    // A mount namespace of its own: nothing of the mount is left on the host.
    let script = format!(
        "#!/bin/sh\n[ \"$INSIDE\" ] || INSIDE=1 exec unshare -m \"$0\" \"$@\"\n\
         mount -t tmpfs -o size=64k none '{disk}' || exit 1\nexec PALISADE \"$@\" 2>>'{disk}/log'\n"
    );
    let options = unheard(dir.path(), &script);
    let proxy = Proxy::start_with(Arc::new(dir), &config(&upstream), &options).await;
    until_lost(&proxy).await;
    // Somebody makes room.
    let log = format!("/proc/{}/root{disk}/log", proxy.pid());
    let before = std::fs::read_to_string(&log).unwrap();
    assert!(before.contains("ready"), "{before}");
    OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
    assert_eq!(proxy.get("/after", &[ADMIN]).await.status, 200);
    eventually("the log goes on", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("/after") && text.contains("were lost"))
    })
    .await;
}

/// Where Debian and Ubuntu have it (`apt install libfaketime`).
fn faketime() -> Option<&'static str> {
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"]
        .into_iter()
        .find(|library| Path::new(library).exists())
}

#[tokio::test]
async fn a_clock_that_jumps_neither_ends_anything_nor_holds_it_up() {
    let Some(library) = faketime() else {
        eprintln!("skipped: libfaketime is not installed");
        return;
    };
    let upstream = Upstream::http1("app").await;
    let dir = Arc::new(place());
    let clock = dir.path().join("clock");
    let turn = |to: &str| {
        std::fs::write(dir.path().join("new"), to).unwrap();
        std::fs::rename(dir.path().join("new"), &clock).unwrap();
    };
    turn("+0\n");
    // The wall clock alone: the monotonic one is what it says.
    let script = format!(
        "#!/bin/sh\nexport FAKETIME_TIMESTAMP_FILE='{}' FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n\
         LD_PRELOAD={library} exec PALISADE \"$@\"\n",
        clock.display()
    );
    let options = by_script(dir.path(), &script);
    let yaml = config(&upstream).replace("timeout: 10s", "timeout: 10s, health: {interval: 200ms, timeout: 10s}");
    let mut proxy = Proxy::start_with(Arc::clone(&dir), &yaml, &options).await;
    let mut kept = Client::http1(proxy.address()).await;
    assert_eq!(kept.get("/", &[ADMIN]).await.status, 200);
    let pid = proxy.plugin_pid("auth").await;
    for (asked, to) in ["+1h\n", "-1h\n", "@1970-01-02 00:00:00\n", "+400d\n"].into_iter().enumerate() {
        let mut held = Client::http2(proxy.address()).await.stream(get("/hold", &[ADMIN]).map(drop));
        held.end();
        upstream.until_asked(2 * asked + 2).await;
        turn(to);
        // An hour is longer than any timeout of these; each is there, and so is the plugin.
        assert_eq!(kept.get("/", &[ADMIN]).await.status, 200, "{to}");
        upstream.release();
        assert_eq!(held.finish().await.status, 200, "{to}");
        let status = proxy.plugin("auth").await;
        assert_eq!((&status["pid"], &status["restarts"]), (&pid.into(), &0.into()), "{to}");
    }
    // Neither is a restart held up by a clock that goes backwards.
    turn("@1970-01-02 00:00:00\n");
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    proxy.wait_for_log("a line of that day", |line| line.starts_with("1970-01-02T")).await;
    assert_eq!(kept.get("/", &[ADMIN]).await.status, 200);
}

/// Stops the proxy for a while, as a suspended machine or a debugger does, and has it go on.
async fn stopped_for(time: Duration, health: &str) {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&upstream).replace("timeout: 10s", &format!("timeout: 10s, instances: 3{health}"));
    // Less than it stands still: what came meanwhile counts, not that it was read late.
    let yaml = yaml.replace("127.0.0.1:0", "127.0.0.1:0, limits: {idle_timeout: 2s}");
    let proxy = Proxy::start(&yaml).await;
    let mut kept = Client::http1(proxy.address()).await;
    assert_eq!(kept.get("/", &[ADMIN]).await.status, 200);
    let processes = async || {
        let status = proxy.status().await;
        let pids = status["plugins"].as_array().unwrap().iter().map(|plugin| plugin["pid"].clone());
        pids.collect::<Vec<_>>()
    };
    let before = processes().await;
    freeze(proxy.pid()).await;
    // Asked meanwhile, answered afterwards.
    let mut asked = kept.stream(get("/", &[ADMIN]).map(drop));
    asked.end();
    tokio::time::sleep(time).await;
    assert_eq!(upstream.count(), 1);
    kill(proxy.pid(), Signal::SIGCONT);
    assert_eq!(asked.finish().await.status, 200);
    // Whatever was due meanwhile has been looked at by now: each instance is asked for its health, twice.
    for _ in 0..20 {
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(processes().await, before, "{}", proxy.log());
    assert_eq!(proxy.metric("palisade_plugin_restarts_total", &[]).await, 0);
}

#[tokio::test]
async fn a_proxy_that_stood_still_kills_no_plugin() {
    // Ten beats are missed, and two would be enough.
    stopped_for(Duration::from_secs(3), ", health: {interval: 300ms, timeout: 1s, failures: 2}").await;
}

#[tokio::test]
#[ignore = "a minute: make soak"]
async fn a_proxy_that_stood_still_for_a_minute_kills_no_plugin() {
    stopped_for(Duration::from_secs(60), "").await;
}

/// A thread of the proxy's that stands still until this is dropped.
struct Held {
    release: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Held {
    /// `None`: this user may not trace processes. Only the thread that traces another one may let it go, so that is one of
    /// its own.
    fn new(tid: i32) -> Option<Self> {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (ready, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let tid = Pid::from_raw(tid);
            if ptrace::seize(tid, ptrace::Options::empty()).is_err() {
                return ready.send(false).unwrap();
            }
            ptrace::interrupt(tid).unwrap();
            waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
            ready.send(true).unwrap();
            released.recv().ok();
            ptrace::detach(tid, None).unwrap();
        });
        let held = stopped.recv().unwrap();
        let thread = Some(thread);
        held.then_some(Self { release, thread })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release.send(()).ok();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The threads that serve.
fn workers(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let is_worker = |name: &str| name.trim().strip_prefix("palisade-").is_some_and(|it| it.parse::<u32>().is_ok());
    let workers = tasks.filter(|task| is_worker(&name(task)));
    workers.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn a_worker_that_stands_still_costs_neither_health_nor_new_connections() {
    a_worker_stands_still(&["serve"]).await;
}

#[tokio::test]
async fn a_worker_that_stands_still_holds_up_no_stream_that_others_use() {
    a_worker_stands_still(&["needs:one-stream", "serve"]).await;
}

async fn a_worker_stands_still(plugin: &[&str]) {
    let upstream = Upstream::http1("app").await;
    let plugin = format!("command: {}, timeout: 10s, health: {{interval: 300ms, timeout: 10s}}", fake(plugin));
    let yaml = filtered(upstream.address(), &plugin);
    let proxy = Proxy::start(&format!("workers: 3\n{yaml}")).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let pid = proxy.plugin_pid("auth").await;
    let all = workers(proxy.pid());
    assert_eq!(all.len(), 3, "{all:?}");
    for one in all {
        let Some(held) = Held::new(one) else {
            eprintln!("skipped: this user can't trace processes");
            return;
        };
        for _ in 0..20 {
            let (mut http1, mut http2) = (Client::http1(proxy.address()).await, Client::http2(proxy.address()).await);
            for _ in 0..5 {
                assert_eq!(http1.get("/", &[ADMIN]).await.status, 200);
                assert_eq!(http2.get("/", &[ADMIN]).await.status, 200);
            }
            let status = proxy.status().await;
            assert_eq!((&status["ready"], &status["plugins"][0]["state"]), (&true.into(), &"serving".into()));
        }
        drop(held);
    }
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    assert_eq!(proxy.plugin_pid("auth").await, pid);
}

#[tokio::test]
async fn a_worker_that_stands_still_does_not_keep_the_proxy_from_its_end() {
    let upstream = Upstream::http1("app").await;
    let plugin = format!("command: {}, timeout: 10m, drain_timeout: 100ms", fake(&["serve"]));
    let yaml = format!("workers: 1\ndrain_timeout: 100ms\n{}", filtered(upstream.address(), &plugin));
    let mut proxy = Proxy::start(&yaml).await;
    // A call that goes on without its client.
    let mut client = Client::http1(proxy.address()).await;
    let mut asked = client.stream(get("/", &[ADMIN, ("x-fake", "await-go")]).map(drop));
    asked.end();
    eventually("it is asked", || proxy.log().contains("asked to wait for go")).await;
    drop((asked, client));
    proxy.until_metric("palisade_connections", &[("listener", "web")], 0).await;
    let Some(held) = Held::new(workers(proxy.pid())[0]) else {
        eprintln!("skipped: this user can't trace processes");
        return;
    };
    kill(proxy.pid(), Signal::SIGTERM);
    let admin = proxy.runtime_dir().join("admin.sock");
    eventually("the plugins are stopped and the admin socket closed", || !admin.exists()).await;
    // The kernel waits for who traces it.
    drop(held);
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
}

#[tokio::test]
async fn what_a_worker_had_goes_on_with_it() {
    let upstream = Upstream::http1("app").await;
    let proxy = Proxy::start(&format!("workers: 1\n{}", config(&upstream))).await;
    let mut client = Client::http1(proxy.address()).await;
    assert_eq!(client.get("/", &[ADMIN]).await.status, 200);
    let Some(held) = Held::new(workers(proxy.pid())[0]) else {
        eprintln!("skipped: this user can't trace processes");
        return;
    };
    let mut asked = client.stream(get("/", &[ADMIN]).map(drop));
    asked.end();
    for _ in 0..50 {
        let status = proxy.status().await;
        assert_eq!((&status["ready"], &status["plugins"][0]["state"]), (&true.into(), &"serving".into()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(held);
    assert_eq!(asked.finish().await.status, 200);
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}
