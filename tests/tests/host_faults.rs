//! What the machine does to the proxy: logs that can't be written, clocks that jump, threads that stand still.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it did nothing")]

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use palisade_tests::{Client, Options, Proxy, Upstream, eventually, fake, place, programs_in};

const ADMIN: (&str, &str) = ("user", "admin");
const LOST: &str = "palisade_log_lines_lost_total";

fn config(upstream: &Upstream) -> String {
    format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{}'}}]
plugins: {{auth: {{command: {}, timeout: 10s}}}}
",
        upstream.address(),
        fake(&["serve"])
    )
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
    palisade_tests::process::kill(pid, nix::sys::signal::Signal::SIGKILL);
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
