//! What operators do wrong, and where they put the proxy.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it did nothing")]

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::{ADMIN, Options, Outcome, Proxy, Upstream, cli_in, fake, place, programs_in};

const LISTENER: &str = "listeners: [{name: web, address: 127.0.0.1:0}]\n";

/// A user of this id is on no machine.
const NOBODY: u32 = 54_321;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn config(upstream: &Upstream, plugin: &str) -> String {
    format!(
        "{LISTENER}routes: [{{filters: [auth], upstream: 'http://{}'}}]\nplugins: {{auth: {{command: {plugin}, timeout: 10s}}}}\n",
        upstream.address()
    )
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs the proxy with little memory of its own and little time on a processor, so that who needs more is killed.
fn bounded(dir: &Path) -> Options {
    let [palisade, _] = programs_in(dir);
    let text = format!("#!/bin/sh\nulimit -d 65536\nulimit -t 5\nulimit -c 0\nexec {} \"$@\"\n", palisade.display());
    Options { program: Some(script(dir, "bounded", &text)), ..Options::default() }
}

/// A wrong file, and what is said of it.
struct Wrong {
    name: &'static str,
    bytes: Vec<u8>,
    mode: u32,
    said: &'static str,
}

fn wrong_files() -> Vec<Wrong> {
    let text = |name, text: &str, said| Wrong { name, bytes: text.as_bytes().to_vec(), mode: 0o644, said };
    let after = |name, rest: &str, said| text(name, &format!("{LISTENER}{rest}"), said);
    let plugin = |name, rest: &str, said| after(name, &format!("plugins: {{auth: {{command: {rest}}}}}\n"), said);
    let mut laughs = "a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n".to_owned();
    for pair in "abcdefghi".as_bytes().windows(2) {
        let (before, name) = (char::from(pair[0]), char::from(pair[1]));
        laughs += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", "));
    }
    let mut zeros = vec![b'#'; 1 << 21];
    zeros[0] = b'\n';
    vec![
        // The form.
        text("empty", "", "the file is empty"),
        text("only comments", "# one\n\n# two\n", "the file is empty"),
        text("a tab", "listeners:\n\t- address: 127.0.0.1:0\n", "palisade.yaml:2:2"),
        text("cut", "listeners: [{address: 127.0.0.1:0", "a bracket is not closed"),
        text("brackets without end", &"[".repeat(100_000), "nested more than 64 levels deep"),
        text("billion laughs", &laughs, "counting those that aliases repeat"),
        text("2 MiB", &String::from_utf8(zeros).unwrap(), "the file is larger than 1048576 bytes"),
        Wrong { name: "not UTF-8", bytes: b"listeners: \xff\n".to_vec(), mode: 0o644, said: "not UTF-8" },
        text("a NUL", "listeners: [{address: \"127.0.0.1:0\\0\"}]\n", "NUL"),
        text("a BOM and CRLF", "\u{feff}listeners: [{adress: 127.0.0.1:0}]\r\n", "did you mean `address`?"),
        after("a key twice", "routes: []\nroutes: []\n", "first written at 2:1"),
        after("two documents", "---\nroutes: []\n", "a second document begins here"),
        // Names and values.
        after("a misspelt key", "plugins: {a: {command: [sh], failure_mod: allow}}\n", "unknown field `failure_mod`"),
        after("a boolean of YAML 1.1", "plugins: {a: {command: [sh], required: no}}\n", "write `false`"),
        after("a number that may be octal", "plugins: {a: {command: [sh], max_calls: 0600}}\n", "0600"),
        after("no unit", "drain_timeout: 5\n", "write `5s` or `5ms`"),
        after("a negative duration", "drain_timeout: -5s\n", "`drain_timeout: -5s`"),
        after("10^20", "plugins: {a: {command: [sh], max_calls: 100000000000000000000}}\n", "max_calls"),
        after("a plugin's name", "plugins: {../x: {command: [sh]}}\n", "can't be the name of a plugin"),
        after("a long name", &format!("plugins: {{{}: {{command: [sh]}}}}\n", "x".repeat(300)), "can't be the name"),
        // Programs.
        plugin("no such program", "[./missing]", "/missing` does not exist"),
        plugin("not executable", "[./plain]", "chmod +x"),
        plugin("a Windows line end", "[./crlf]", "Windows line end"),
        plugin("no interpreter", "[./lost]", "needs `/nowhere/python9`"),
        plugin("an interpreter that is not found", "[./searched]", "needs `no-such-python`"),
        plugin("another machine's", "[./foreign]", "is a program for machine 9999"),
        plugin("open to all", "[./open]", "chmod o-w"),
        // Who may write the file.
        Wrong { name: "open to all", bytes: LISTENER.into(), mode: 0o666, said: "chmod go-w" },
        Wrong { name: "open to its group", bytes: LISTENER.into(), mode: 0o664, said: "chmod g-w" },
        // Several at once.
        after("three problems", "routs: []\ndrain_timeout: 5\nplugins: {a: {comand: [sh]}}\n", "error: 3 problems in"),
    ]
}

fn put_programs(dir: &Path) {
    std::fs::write(dir.join("plain"), "#!/bin/sh\n").unwrap();
    script(dir, "crlf", "#!/bin/sh\r\n");
    script(dir, "lost", "#!/nowhere/python9\n");
    script(dir, "searched", "#!/usr/bin/env no-such-python\n");
    let mut header = b"\x7fELF\x02\x01".to_vec();
    header.resize(64, 0);
    header[18..20].copy_from_slice(&9999_u16.to_le_bytes());
    let foreign = script(dir, "foreign", "");
    std::fs::write(foreign, header).unwrap();
    let open = script(dir, "open", "#!/bin/sh\n");
    set_permissions(open, Permissions::from_mode(0o777)).unwrap();
}

#[tokio::test]
async fn validate_start_and_reload_agree_about_every_wrong_file() {
    let upstream = Upstream::http1("app").await;
    let running = Proxy::start(&config(&upstream, &fake(&["serve"]))).await;
    put_programs(running.dir());
    let dir = place();
    put_programs(dir.path());
    let options = bounded(dir.path());
    for Wrong { name, bytes, mode, said } in wrong_files() {
        for dir in [dir.path(), running.dir()] {
            let file = dir.join("palisade.yaml");
            std::fs::write(&file, &bytes).unwrap();
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            // Its own group is trusted with what root executes.
            if mode == 0o664 {
                if !is_root() {
                    continue;
                }
                chown(&file, None, Some(NOBODY)).unwrap();
            }
        }
        if mode == 0o664 && !is_root() {
            continue;
        }
        let validated = cli_in(dir.path(), &["validate", "palisade.yaml"], &options).await;
        let started = cli_in(dir.path(), &["run", "-c", "palisade.yaml"], &options).await;
        assert_eq!((validated.code, started.code), (Some(3), Some(3)), "{name}: {validated:?}\n{started:?}");
        assert!(validated.stderr.contains(said), "{name}: {}", validated.stderr);
        assert_eq!(validated.stderr, started.stderr, "{name}");
        assert!(!dir.path().join("run").exists(), "{name}: something was made");
        // The proxy that runs says the same, and goes on with what it has.
        let reloaded = running.cli(&["reload"]).await;
        assert_eq!(reloaded.code, Some(3), "{name}: {reloaded:?}");
        let problems = |outcome: &Outcome| {
            let shown = outcome.stderr.replace(running.dir().to_str().unwrap(), "DIR");
            let shown = shown.replace(dir.path().to_str().unwrap(), "DIR");
            let lines: Vec<String> = shown.lines().map(|line| line.trim().to_owned()).collect();
            lines.into_iter().filter(|line| !line.is_empty() && !line.contains("stays in force")).collect::<Vec<_>>()
        };
        let (expected, found) = (problems(&validated), problems(&reloaded));
        for line in &expected {
            assert!(found.iter().any(|found| found.contains(line.as_str())), "{name}: {line}\nnot in\n{found:#?}");
        }
        assert_eq!(running.get("/", &[ADMIN]).await.status, 200, "{name}");
    }
    assert_eq!(running.status().await["generation"], 1);
}

#[tokio::test]
async fn what_is_no_file_is_judged_at_once() {
    let dir = place();
    let options = bounded(dir.path());
    let large = dir.path().join("large.yaml");
    std::fs::File::create(&large).unwrap().set_len(1 << 30).unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("fifo", dir.path().join("link")).unwrap();
    for (file, said) in [
        ("large.yaml", "the file is larger than 1048576 bytes"),
        ("/dev/zero", "the file is larger than 1048576 bytes"),
        ("/dev/null", "the file is empty"),
        ("fifo", "it is a FIFO"),
        ("link", "it is a FIFO"),
        (".", "is a directory"),
        ("nowhere.yaml", "no such file or directory"),
    ] {
        for arguments in [&["validate", file][..], &["run", "-c", file]] {
            let outcome = cli_in(dir.path(), arguments, &options).await;
            assert_eq!(outcome.code, Some(3), "{file}: {outcome:?}");
            assert!(outcome.stderr.contains(said), "{file}: {}", outcome.stderr);
        }
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_had_ends_the_start_and_leaves_nothing() {
    let upstream = Upstream::http1("app").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    // Of documentation's networks, so nobody's (RFC 5737).
    for (address, said) in [(taken.as_str(), "in use"), ("192.0.2.1:0", "assign requested address")] {
        let dir = place();
        let yaml = config(&upstream, &fake(&["touch:started", "serve"])).replace("127.0.0.1:0", address);
        std::fs::write(dir.path().join("palisade.yaml"), yaml).unwrap();
        let outcome = cli_in(dir.path(), &["run", "-c", "palisade.yaml"], &Options::default()).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("listener `web` can't listen on"), "{}", outcome.stderr);
        assert!(outcome.stderr.to_lowercase().contains(said), "{}", outcome.stderr);
        // Nothing was started that would have to be stopped again.
        let left: Vec<_> =
            std::fs::read_dir(dir.path().join("run")).unwrap().flatten().map(|it| it.file_name()).collect();
        assert_eq!(left, ["palisade.lock"], "{outcome:?}");
    }
}

#[tokio::test]
async fn a_port_that_only_root_may_have_is_said_to_be_so() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if !is_root() || first.trim() == "0" {
        eprintln!("skipped: needs root, who becomes somebody else, and ports that only root may have");
        return;
    }
    let dir = place();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    chown(&run, Some(NOBODY), Some(NOBODY)).unwrap();
    set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let [palisade, _] = programs_in(dir.path());
    let options = Options { program: Some(palisade), uid: Some(NOBODY), ..Options::default() };
    std::fs::write(dir.path().join("palisade.yaml"), LISTENER.replace("127.0.0.1:0", "127.0.0.1:81")).unwrap();
    let outcome = cli_in(dir.path(), &["run", "-c", "palisade.yaml"], &options).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("127.0.0.1:81") && outcome.stderr.contains("ermission denied"), "{outcome:?}");
}

/// Runs the proxy in mounts of its own, made by `mounts`.
fn mounted(dir: &Path, mounts: &str) -> Options {
    let [palisade, _] = programs_in(dir);
    let text = format!(
        "#!/bin/sh\n[ \"$INSIDE\" ] || INSIDE=1 exec unshare -m \"$0\" \"$@\"\n{mounts}\nexec {} \"$@\"\n",
        palisade.display()
    );
    Options { program: Some(script(dir, "mounted", &text)), ..Options::default() }
}

#[tokio::test]
async fn a_file_system_that_cannot_be_written_to_is_enough() {
    if !is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let upstream = Upstream::http1("app").await;
    let dir = place();
    let here = dir.path().display();
    // All that is writable is the runtime directory; there are no HOME and no TMPDIR in these tests ever.
    let run = format!("'{here}/run'");
    let mounts = format!(
        "mkdir -m 0700 {run} && mount --bind {run} {run} && mount -o remount,ro,bind / / && ! touch '{here}/x' || exit 9"
    );
    let options = mounted(dir.path(), &mounts);
    let yaml = config(&upstream, &fake(&["serve"]));
    let proxy = Proxy::start_with(Arc::new(dir), &yaml, &options).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
}

#[tokio::test]
async fn a_runtime_directory_that_cannot_be_written_to_is_named() {
    let dir = place();
    let file = |top: &str| std::fs::write(dir.path().join("palisade.yaml"), format!("{top}{LISTENER}")).unwrap();
    let mut cases = vec![("/proc/none".to_owned(), Options::default()), ("/dev/null/x".to_owned(), Options::default())];
    if is_root() {
        let run = format!("{}/frozen", dir.path().display());
        let mounts = format!("mkdir '{run}'; mount -t tmpfs -o ro,mode=0700 none '{run}' || exit 9");
        cases.push((run, mounted(dir.path(), &mounts)));
    }
    for (run, options) in cases {
        file(&format!("runtime_dir: {run}\n"));
        let outcome = cli_in(dir.path(), &["run", "-c", "palisade.yaml"], &options).await;
        assert_eq!(outcome.code, Some(1), "{run}: {outcome:?}");
        let parent = Path::new(&run).parent().unwrap().to_str().unwrap();
        assert!(outcome.stderr.contains(parent), "{run}: {}", outcome.stderr);
    }
}

#[tokio::test]
async fn without_proc_it_serves_and_says_what_is_missing() {
    if !is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let upstream = Upstream::http1("app").await;
    let dir = place();
    let options = mounted(dir.path(), "mount -t tmpfs none /proc || exit 9");
    let mut proxy = Proxy::start_with(Arc::new(dir), &config(&upstream, &fake(&["serve"])), &options).await;
    proxy.wait_for_log("what is missing", |line| line.contains("WARN") && line.contains("/proc is not there")).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
    proxy.terminate();
    assert_eq!(proxy.wait_exit().await.code(), Some(0), "{}", proxy.log());
}

#[tokio::test]
async fn a_secret_that_everyone_can_read_is_warned_of_and_not_shown() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&upstream, &format!("{}, config: {{token: s3cret}}", fake(&["serve"])));
    let mut proxy = Proxy::start(&yaml).await;
    let told =
        |text: &str| text.contains("`plugins.auth.config.token` looks like a secret") && text.contains("chmod o-r");
    proxy.wait_for_log("the warning", |line| line.contains("WARN") && told(line)).await;
    let open = proxy.cli(&["validate", "palisade.yaml"]).await;
    assert!(open.code == Some(0) && told(&open.stderr), "{open:?}");
    assert!(!proxy.log().contains("s3cret") && !open.stderr.contains("s3cret"));
    set_permissions(proxy.dir().join("palisade.yaml"), Permissions::from_mode(0o640)).unwrap();
    let closed = proxy.cli(&["validate", "palisade.yaml"]).await;
    assert!(closed.code == Some(0) && closed.stderr.is_empty(), "{closed:?}");
}
