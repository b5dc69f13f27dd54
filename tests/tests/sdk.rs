//! The sample plugins of both SDKs behind the proxy: a filter that looks at a header, a loader of certificates.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use palisade_tests::process::kill;
use palisade_tests::tls::Authority;
use palisade_tests::{Proxy, Upstream, filtered, place, soon};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A file that the set-up makes or the repository has.
fn there(path: &str) -> PathBuf {
    let path = repository().join(path);
    assert!(path.exists(), "{} is not there: run `make setup` first", path.display());
    path
}

fn python(sample: &str) -> String {
    command(&[&there(".venv/bin/python"), &there(&format!("plugins-python/samples/{sample}.py"))])
}

fn java(sample: &str) -> String {
    let jar = there(&format!("plugins-java/samples/target/{sample}.jar"));
    command(&[Path::new("java"), Path::new("-jar"), &jar])
}

fn command(parts: &[&Path]) -> String {
    serde_json::to_string(parts).unwrap()
}

async fn a_filter_decides(command: &str, sandbox: &str) {
    let upstream = Upstream::http1("app").await;
    let yaml = filtered(
        upstream.address(),
        &format!(
            "command: {command}, sandbox: {sandbox}, timeout: 20s, handshake_timeout: 25s, config: {{header: user, value: admin}}"
        ),
    );
    let proxy = Proxy::start(&yaml).await;
    let denied = proxy.get("/", &[]).await;
    assert_eq!((denied.status, denied.reason().as_str()), (403, ""), "{denied:?}");
    let denied = proxy.get("/", &[("user", "guest")]).await;
    assert_eq!((denied.status, denied.reason().as_str()), (403, ""), "{denied:?}");
    assert_eq!(upstream.count(), 0);
    let allowed = proxy.get("/", &[("User", "admin")]).await;
    assert_eq!((allowed.status, allowed.text().as_str()), (200, "hello from app"), "{allowed:?}");

    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    let stopped = proxy.cli(&["plugin", "stop", "auth"]).await;
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let status = proxy.plugin("auth").await;
    assert_eq!(status["last_exit"]["cause"]["kind"], "requested", "{status:#}");
    assert_eq!(status["last_exit"]["end"]["exited"], 0, "it ends by itself when it is asked to: {status:#}");
}

async fn a_loader_supplies_and_rotates(command: &str) {
    let (authority, dir) = (Authority::new(), place());
    let first = authority.certificate(&["a.example"]);
    first.write(dir.path(), "cert");
    let upstream = Upstream::http1("app").await;
    // The samples read cert.pem and key.pem.
    let install = |certificate: &palisade_tests::tls::Certificate| {
        palisade_tests::tls::replace(&dir.path().join("key.pem"), &certificate.key_pem);
        palisade_tests::tls::replace(&dir.path().join("cert.pem"), &certificate.chain_pem);
    };
    install(&first);
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, tls: certs}}]
routes: [{{upstream: 'http://{}'}}]
plugins: {{certs: {{command: {command}, handshake_timeout: 25s, ready_timeout: 25s, config: {{dir: '{}'}}}}}}
",
        upstream.address(),
        dir.path().display()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let client = authority.client();
    assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), first.der);
    let second = authority.certificate(&["a.example"]);
    install(&second);
    soon("the new certificate", async {
        while client.presented(proxy.address(), "a.example").await.unwrap() != second.der {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    // A key that everyone on the host can read is not served.
    let third = authority.certificate(&["a.example"]);
    let open = dir.path().join("open.pem");
    std::fs::write(&open, &third.key_pem).unwrap();
    std::fs::set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
    std::fs::rename(open, dir.path().join("key.pem")).unwrap();
    palisade_tests::tls::replace(&dir.path().join("cert.pem"), &third.chain_pem);
    proxy.wait_for_log("what to do", |line| line.contains("chmod o-rwx")).await;
    assert_eq!(client.presented(proxy.address(), "a.example").await.unwrap(), second.der);
}

#[tokio::test]
async fn python_header_auth() {
    a_filter_decides(&python("header_auth"), "default").await;
}

#[tokio::test]
async fn java_header_auth() {
    a_filter_decides(&java("header-auth"), "default").await;
}

#[tokio::test]
async fn python_cert_loader() {
    a_loader_supplies_and_rotates(&python("cert_loader")).await;
}

#[tokio::test]
async fn java_cert_loader() {
    a_loader_supplies_and_rotates(&java("cert-loader")).await;
}

/// The set-up installs the SDK for development, outside of the virtual environment. Under root that may be where only
/// root gets to.
#[tokio::test]
async fn python_hardened() {
    let user = if nix::unistd::geteuid().is_root() { ", user: root, on_missing: warn" } else { "" };
    let sources = there("plugins-python/src");
    let sandbox = format!("{{profile: hardened, read: ['{}']{user}}}", sources.display());
    a_filter_decides(&python("header_auth"), &sandbox).await;
}

#[tokio::test]
async fn java_hardened() {
    let user = if nix::unistd::geteuid().is_root() { ", user: root, on_missing: warn" } else { "" };
    a_filter_decides(&java("header-auth"), &format!("{{profile: hardened{user}}}")).await;
}
