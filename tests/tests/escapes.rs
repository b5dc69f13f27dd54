//! A plugin that wants to get out of the hardened sandbox, as root and as an ordinary user.
//!
//! Each try is also made without a sandbox, where nothing else would stop it: so it is one that could succeed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;

use nix::unistd::geteuid;
use palisade_tests::{Options, Proxy, place, programs_in};

/// An id that no account has.
const ORDINARY: u32 = 54_322;

/// Who runs the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    Ordinary,
}

/// Whether it got out under this sandbox, and what it says about its try.
async fn attempt(way: &str, sandbox: &str, who: Who) -> (bool, String) {
    let dir = place();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    // The key of another plugin's. Whatever its mode, the sandbox has to keep it.
    let key = dir.path().join("other.key");
    std::fs::write(&key, "secret").unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let [palisade, fake] = programs_in(dir.path());
    let mut options = Options { program: Some(palisade), ..Options::default() };
    if who == Who::Ordinary && geteuid().is_root() {
        chown(&run, Some(ORDINARY), Some(ORDINARY)).unwrap();
        options.uid = Some(ORDINARY);
    }
    let way = way.replace("$DIR", dir.path().to_str().unwrap());
    let yaml = format!(
        "listeners: [{{address: 127.0.0.1:0}}]
routes: [{{upstream: 'http://127.0.0.1:9', filters: [bad]}}]
plugins: {{bad: {{command: ['{}', 'escape:{way}', serve], sandbox: {sandbox}}}}}
",
        fake.display()
    );
    let mut proxy = Proxy::start_with(Arc::new(dir), &yaml, &options).await;
    let line = proxy.wait_for_log("the outcome", |line| line.contains("escape ")).await;
    assert_eq!(proxy.plugin("bad").await["state"], "serving", "a confined plugin serves");
    let said = line.split_once("escape ").unwrap().1.to_owned();
    assert!(said.contains(": refused: ") || said.contains(": got out"), "{said}");
    // A file of that name in a directory of its own is none of the machine's.
    let wrote = std::fs::read_to_string(&key).unwrap() != "secret";
    let got_out = if way.starts_with("write:") { wrote } else { said.contains(": got out") };
    (got_out, said)
}

const HARDENED: &str = "{profile: hardened, limits: {memory: 64MiB, processes: 100}}";

/// Refused under `hardened` whoever runs the proxy; `open` are those for whom it works without a sandbox.
async fn refused(way: &str, open: &[Who]) {
    let all: &[Who] = if geteuid().is_root() { &[Who::Root, Who::Ordinary] } else { &[Who::Ordinary] };
    for who in all {
        let (got_out, said) = attempt(way, HARDENED, *who).await;
        assert!(!got_out, "{way} as {who:?}: {said}");
        if open.contains(who) {
            let (got_out, said) = attempt(way, "none", *who).await;
            assert!(got_out, "{way} as {who:?} without a sandbox: {said}");
        }
    }
}

const BOTH: &[Who] = &[Who::Root, Who::Ordinary];
const ROOT: &[Who] = &[Who::Root];

#[tokio::test]
async fn secrets_of_the_machine_and_of_other_plugins_are_not_read() {
    refused("read:/etc/shadow", ROOT).await;
    refused("read:$DIR/other.key", BOTH).await;
}

#[tokio::test]
async fn nobody_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&format!("connect:{}", listener.local_addr().unwrap()), BOTH).await;
}

#[tokio::test]
async fn the_proxy_is_not_traced() {
    refused("ptrace", BOTH).await;
}

#[tokio::test]
async fn nothing_is_written_outside() {
    refused("write:$DIR/other.key", BOTH).await;
}

#[tokio::test]
async fn a_fork_bomb_comes_to_an_end() {
    refused("fork-bomb:200", BOTH).await;
}

#[tokio::test]
async fn no_shell_is_executed() {
    refused("shell", BOTH).await;
}

#[tokio::test]
async fn no_raw_socket_is_opened() {
    refused("raw-socket", ROOT).await;
}

#[tokio::test]
async fn the_environment_of_the_proxy_is_not_read() {
    refused("environ", BOTH).await;
}

#[tokio::test]
async fn the_proxy_is_not_signalled() {
    refused("signal", BOTH).await;
}

#[tokio::test]
async fn modes_of_files_are_not_changed() {
    // Where nothing is hidden, which only root can count on.
    let Ok(dir) = tempfile::tempdir_in("/srv").or_else(|_| tempfile::tempdir_in("/opt")) else { return };
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    let way = format!("chmod:{}", file.display());
    chown(&file, Some(ORDINARY), Some(ORDINARY)).unwrap();
    for (sandbox, expected) in [
        (HARDENED.to_owned(), 0o600),
        (HARDENED.replace("limits", &format!("read: ['{}'], limits", file.display())), 0o600),
        (HARDENED.replace("limits", &format!("write: ['{}'], limits", file.display())), 0o666),
        (HARDENED.replace("limits", &format!("write: ['{}'], limits", dir.path().display())), 0o666),
        ("none".to_owned(), 0o666),
    ] {
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let (_, said) = attempt(&way, &sandbox, Who::Ordinary).await;
        assert_eq!(mode(), expected, "{sandbox}: {said}");
    }
}

#[tokio::test]
async fn limits_and_priorities_of_the_proxy_are_its_own() {
    refused("limits", BOTH).await;
    refused("priority", BOTH).await;
}

#[tokio::test]
async fn shared_memory_of_others_is_out_of_reach() {
    let made = std::process::Command::new("ipcmk").args(["-M", "4096", "-p", "0666"]).output().unwrap();
    let made = String::from_utf8(made.stdout).unwrap();
    let id = made.trim().rsplit(' ').next().unwrap();
    let id: u32 = id.parse().unwrap();
    let way = format!("shared-memory:{id}");
    // In a task, so that it is removed whatever comes of it.
    let tried = tokio::spawn(async move { refused(&way, BOTH).await }).await;
    assert!(std::process::Command::new("ipcrm").args(["-m", &id.to_string()]).status().unwrap().success());
    tried.unwrap();
}

#[tokio::test]
async fn nothing_is_mounted() {
    refused("mount", ROOT).await;
}

#[tokio::test]
async fn no_module_is_loaded() {
    // Not every kernel has modules.
    refused("module", &[]).await;
}

#[tokio::test]
async fn no_user_namespace_is_made() {
    let allowed = Path::new("/proc/sys/user/max_user_namespaces").exists();
    refused("user-namespace", if allowed { BOTH } else { &[] }).await;
}

#[tokio::test]
async fn abstract_sockets_of_others_are_out_of_reach() {
    let name = format!("palisade-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    refused(&format!("abstract-socket:{name}"), BOTH).await;
}

#[tokio::test]
async fn no_core_is_dumped() {
    refused("core-dump", &[]).await;
}

#[tokio::test]
async fn memory_ends_at_the_limit() {
    refused("memory:100", BOTH).await;
}

#[tokio::test]
async fn the_admin_socket_and_other_sockets_are_out_of_sight() {
    refused("unix-socket:$DIR/run/admin.sock", BOTH).await;
    // By the working directory, which is below `/tmp` here.
    refused("unix-socket:run/admin.sock", BOTH).await;
    refused("unix-socket:/proc/self/cwd/run/admin.sock", BOTH).await;
}
