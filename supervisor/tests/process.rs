//! What a plugin's process is given, and what it is not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use support::{Scenario, client, eventually};

/// What a plugin's process looks like from the inside, as `key value` lines.
async fn inside(change: impl FnOnce(&mut Scenario)) -> (Scenario, BTreeMap<String, String>) {
    let mut scenario = Scenario::shell(
        r#"{ env | sed 's/^/env./; s/=/ /'
             echo "umask $(umask)"; echo "core $(ulimit -c)"; echo "cwd $(pwd)"
             sed 's/:\t/ /' /proc/self/status
             set -- $(cat /proc/$$/stat); echo "pgrp $5"; echo "session $6"; echo "tty $7"
           } > $OUT; exec "$FAKE""#,
    );
    change(&mut scenario);
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    let endpoint = plugin.status().endpoint.unwrap();
    plugin.shutdown().await;
    let text = std::fs::read_to_string(scenario.out()).unwrap();
    let split = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut seen: BTreeMap<_, _> = text.lines().filter_map(split).collect();
    seen.insert("pid".into(), pid.to_string());
    seen.insert("endpoint".into(), endpoint);
    (scenario, seen)
}

#[tokio::test]
async fn the_environment_is_what_was_allowed() {
    let (scenario, seen) = inside(|scenario| {
        scenario.spec.env_pass.push("CARGO_PKG_NAME".into());
        scenario.spec.env.insert("LANG".into(), "C".into());
        scenario.spec.cookie = ("MOSN_PLUGIN".into(), "ON".into());
        scenario.spec.app_versions = vec![1, 2];
    })
    .await;
    let env: BTreeMap<&str, &str> =
        seen.iter().filter_map(|(key, value)| Some((key.strip_prefix("env.")?, value.as_str()))).collect();
    let names: Vec<_> = env.keys().copied().filter(|name| !["PWD", "OLDPWD", "_", "SHLVL"].contains(name)).collect();
    let expected = [
        "CARGO_PKG_NAME",
        "FAKE",
        "HOME",
        "LANG",
        "MOSN_PLUGIN",
        "OUT",
        "PALISADE_HOST",
        "PATH",
        "PLUGIN_MAX_PORT",
        "PLUGIN_MIN_PORT",
        "PLUGIN_PROTOCOL_VERSIONS",
        "PLUGIN_UNIX_SOCKET_DIR",
        "TMPDIR",
    ];
    assert_eq!(names, expected);
    let private = scenario.dir.path().canonicalize().unwrap().join("run");
    assert!(env["TMPDIR"].starts_with(private.to_str().unwrap()));
    assert_eq!((env["TMPDIR"], env["TMPDIR"]), (env["HOME"], env["PLUGIN_UNIX_SOCKET_DIR"]));
    assert_eq!((env["LANG"], env["MOSN_PLUGIN"], env["PLUGIN_PROTOCOL_VERSIONS"]), ("C", "ON", "1,2"));
    assert_eq!(seen["endpoint"], format!("unix:{}/plugin.sock", env["TMPDIR"]));
}

#[tokio::test]
async fn nothing_else_is_inherited() {
    ignore_hangups();
    let (_, seen) = inside(|_| {}).await;
    assert_eq!((seen["umask"].as_str(), seen["core"].as_str()), ("0077", "0"));
    assert_eq!((&seen["pgrp"], &seen["session"]), (&seen["pid"], &seen["pid"]));
    assert_eq!(seen["tty"], "0");
    assert_eq!(seen["SigBlk"].trim(), "0000000000000000");
    assert_eq!(seen["SigIgn"].trim(), "0000000000000000");
    assert_eq!(seen["cwd"], std::env::current_dir().unwrap().to_str().unwrap());
}

#[tokio::test]
async fn no_descriptor_of_the_host_reaches_a_plugin() {
    // As from a C library, or from a service manager.
    let leaky = File::open("/etc/hostname").unwrap();
    fcntl(&leaky, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let scenario = Scenario::shell("ls -l /proc/self/fd >&2; exec \"$FAKE\"");
    let plugin = scenario.start();
    client(&plugin).await;
    plugin.shutdown().await;
    let report = plugin.status().last_exit.unwrap();
    let fds: Vec<_> = report.stderr.iter().filter_map(|line| line.split_once(" -> ")).collect();
    // `ls` itself opens the fourth to list them.
    assert_eq!(fds.len(), 4, "{fds:?}");
    assert!(fds[0].0.ends_with(" 0") && fds[0].1 == "/dev/null", "{fds:?}");
    assert!(fds[1..3].iter().all(|fd| fd.1.starts_with("pipe:")), "{fds:?}");
    drop(leaky);
}

#[allow(unsafe_code, reason = "signal(2) is unsafe for its handlers; ignoring has none")]
fn ignore_hangups() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }.unwrap();
}

#[tokio::test]
async fn a_program_by_name_sees_itself_by_its_full_path() {
    // Python finds its virtual environment by this.
    let mut scenario = Scenario::shell("");
    scenario.spec.command =
        ["sh", "-c", "tr '\\0' '\\n' < /proc/$$/cmdline | head -n 1 > $OUT; exec \"$FAKE\""].map(Into::into).into();
    let plugin = scenario.start();
    client(&plugin).await;
    plugin.shutdown().await;
    let name = std::fs::read_to_string(scenario.out()).unwrap();
    assert!(name.starts_with('/') && name.ends_with("/sh\n"), "{name}");
}

/// What the library has logged, for the one test of this binary that looks at it.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn remote_output_is_drained_and_floods_do_not_block() {
    let logged = Logged::default();
    let writer = logged.clone();
    let format = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    tracing::subscriber::set_global_default(format.finish()).unwrap();
    // 8 MB on stderr without a line end: were it not read, the plugin would block at 64 KiB and never serve.
    let mut scenario = Scenario::shell("yes x | tr -d '\\n' | head -c 8000000 >&2; exec \"$FAKE\" stdio");
    scenario.spec.name = "talkative".into();
    let plugin = scenario.start();
    client(&plugin).await;
    let said = || String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let line = "WARN plugin: said remotely plugin=talkative stream=stdio-stderr";
    eventually("the remote line is logged", || said().contains(line)).await;
    plugin.shutdown().await;
    let tail = plugin.status().last_exit.unwrap().stderr.clone();
    assert!(tail[0].ends_with("[truncated]") && tail[0].len() < 2_000, "{}", tail[0].len());
    assert_eq!(tail[1], "[WARN] said remotely");
    let flood = said().lines().map(str::len).max().unwrap();
    assert!((64 * 1024..66 * 1024).contains(&flood), "{flood}");
}
