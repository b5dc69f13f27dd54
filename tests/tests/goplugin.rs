//! Genuine go-plugin programs (`tests/go`) behind the proxy: built with the current release, with v1.0.1, with which
//! MOSN's SDK is made, and with that SDK itself. Skipped, with a message, where Go or its modules are not to be had.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use palisade_supervisor::{Adapter, AttachError, InstanceInfo, Plugin, PluginSpec, State};
use palisade_tests::process::{self, kill};
use palisade_tests::tls::Authority;
use palisade_tests::{
    GoPlugin, LONG, Options, Proxy, Upstream, eventually, fake, filtered, place, programs_in, run_to_exit, soon,
};

/// A proxy that logs everything, with this program as its filter.
async fn start(program: &Path, flags: &[&str], keys: &str) -> (Proxy, Upstream) {
    start_as(None, program, flags, keys).await
}

/// As [`start`], with another program in the place of `palisade`.
async fn start_as(palisade: Option<PathBuf>, program: &Path, flags: &[&str], keys: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::http1("app").await;
    let mut command = vec![program.to_str().unwrap()];
    command.extend(flags);
    let yaml = filtered(
        upstream.address(),
        &format!(
            "contract: mosn, command: {}, timeout: 20s, handshake_timeout: 25s, ready_timeout: 25s{keys}",
            serde_json::to_string(&command).unwrap()
        ),
    );
    let env = vec![("PALISADE_LOG".into(), "info,plugin=trace".into())];
    let options = Options { env, program: palisade, ..Options::default() };
    (Proxy::start_with(place().into(), &yaml, &options).await, upstream)
}

/// As a filter: it denies, allows, survives being killed, and ends by itself when it is asked to.
async fn it_decides(proxy: &Proxy, upstream: &Upstream) {
    let denied = proxy.get("/", &[("user", "guest")]).await;
    assert_eq!((denied.status, denied.reason().as_str()), (403, ""), "{denied:?}");
    assert_eq!(upstream.count(), 0);
    let allowed = proxy.get("/", &[("user", "admin")]).await;
    assert_eq!((allowed.status, allowed.text().as_str()), (200, "hello from app"), "{allowed:?}");
    assert_eq!(upstream.last().header("x-plugin-version"), "1");

    let pid = proxy.plugin_pid("auth").await;
    kill(pid, Signal::SIGKILL);
    proxy.until_replaced("auth", pid).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
}

/// `GRPCController.Shutdown` ends it: SIGTERM would show as a signal.
async fn it_ends_when_asked(proxy: &Proxy) {
    let stopped = proxy.cli(&["plugin", "stop", "auth"]).await;
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let exit = &proxy.plugin("auth").await["last_exit"];
    assert_eq!(exit["cause"]["kind"], "requested", "{exit:#}");
    assert_eq!(exit["end"]["exited"], 0, "{exit:#}");
}

#[tokio::test]
async fn a_go_plugin_is_a_filter_and_stops_when_asked() {
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        let (mut proxy, upstream) = start(&program, &[], "").await;
        it_decides(&proxy, &upstream).await;
        // hclog's levels and pairs, from the stderr that its logger holds.
        let logged = |level: &'static str, parts: &'static [&'static str]| {
            move |line: &str| line.contains(level) && parts.iter().all(|part| line.contains(part))
        };
        proxy.wait_for_log("hclog's warning", logged("WARN", &["stream=stderr", "denied", "user=guest"])).await;
        proxy.wait_for_log("hclog's info", logged("INFO", &["stream=stderr", "allowed", "user=admin"])).await;
        proxy.wait_for_log("hclog's trace", logged("TRACE", &["stream=stderr", "asked", "version=1"])).await;
        it_ends_when_asked(&proxy).await;
    }
}

#[tokio::test]
async fn auto_mtls_works_with_both_releases() {
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        let (proxy, upstream) = start(&program, &[], ", auto_mtls: true").await;
        it_decides(&proxy, &upstream).await;
        // Without the certificate of ours it does not answer: the connection really is TLS.
        let endpoint =
            proxy.plugin("auth").await["endpoint"].as_str().unwrap().strip_prefix("unix:").unwrap().to_owned();
        let mut stranger = tokio::net::UnixStream::connect(&endpoint).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stranger, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut stranger, &mut answer);
        // Closed with or without an alert.
        let _reset = soon("the end of a plaintext connection", reading).await;
        assert!(!answer.starts_with(&[0, 0]), "HTTP/2 settings in plaintext: {answer:?}");
        it_ends_when_asked(&proxy).await;
    }
}

#[tokio::test]
async fn auto_mtls_fails_closed() {
    let yaml = |command: &str| {
        format!(
            "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://127.0.0.1:9'}}]
plugins: {{auth: {{command: {command}, auto_mtls: true, ready_timeout: 2s}}}}
"
        )
    };
    let place = place();
    // A PEM block's lines are base64 of the DER, padded.
    let pem = Authority::new().certificate(&["localhost"]).chain_pem;
    let announced: String = pem.lines().skip(1).take_while(|line| !line.starts_with('-')).collect();
    let line = |field: &str| format!("print:1|1|unix|$DIR/plugin.sock|grpc|{field}");
    let cases = [
        (fake(&["serve"]), "announced no certificate (6th field)"),
        (fake(&[&line(&"A".repeat(600)), "stay"]), "is not an X.509 certificate"),
        // It announces a certificate and then serves plaintext.
        (fake(&[&line(&announced), "serve-bare"]), "TLS to unix:"),
    ];
    for (command, cause) in cases {
        let outcome = run_to_exit(place.path(), &yaml(&command)).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(cause), "no {cause:?} in {}", outcome.stderr);
    }
}

#[tokio::test]
async fn what_a_go_plugin_prints_after_its_handshake_is_taken_from_grpc_stdio() {
    // v1.0.1 has no GRPCStdio: what it prints stays with it, and blocks it after 64 KiB, whatever a host does.
    let Some(program) = GoPlugin::Current.program() else { return };
    let (mut proxy, _upstream) = start(&program, &["-talk", "256"], "").await;
    assert_eq!(proxy.get("/", &[("user", "guest")]).await.status, 403);
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    proxy.wait_for_log("what it printed", |line| line.contains("stream=stdio-stdout") && line.contains("xxxx")).await;
    let allowed =
        |line: &str| line.contains("INFO") && line.contains("stream=stdio-stderr") && line.contains("allowed");
    proxy.wait_for_log("what it printed on stderr", allowed).await;
}

#[tokio::test]
async fn a_go_plugin_that_announces_services_by_the_broker_is_not_kept_waiting() {
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        let (proxy, _upstream) = start(&program, &["-broker"], "").await;
        for _ in 0..3 {
            assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
        }
        it_ends_when_asked(&proxy).await;
    }
}

/// A host that speaks several versions of its own contract, made with the library alone.
struct Host;

impl Adapter for Host {
    type Client = InstanceInfo;

    async fn attach(&self, _: tonic::transport::Channel, instance: InstanceInfo) -> Result<InstanceInfo, AttachError> {
        Ok(instance)
    }
}

#[tokio::test]
async fn a_host_of_several_versions_gets_the_highest_that_both_speak() {
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        let dir = place();
        let host = |offered: &[u32]| {
            let mut spec = PluginSpec::new("auth", [program.to_str().unwrap(), "-versions", "1,2,4"], dir.path());
            spec.cookie = ("MOSN_PLUGIN".to_owned(), "ON".to_owned());
            spec.app_versions = offered.to_vec();
            Plugin::start(spec, Host).unwrap()
        };
        for (offered, chosen) in [(&[3, 1, 2][..], 2), (&[4, 9], 4), (&[1], 1)] {
            let plugin = host(offered);
            let instance = plugin.wait_client(std::time::Instant::now() + LONG).await.unwrap();
            assert_eq!(instance.app_version, chosen, "{offered:?}");
            plugin.shutdown().await;
        }
        let plugin = host(&[7, 9]);
        let mut status = plugin.watch();
        let failed = |status: &palisade_supervisor::Status| matches!(status.state, State::BackingOff { .. });
        let report = soon("the refusal", status.wait_for(failed)).await.unwrap().last_exit.clone().unwrap();
        assert!(report.headline().contains("version 1 is not offered by the host, which speaks [7, 9]"), "{report}");
        plugin.shutdown().await;
    }
}

/// A program that runs `palisade` as pid 1 of a PID namespace with a /proc of its own; `None`, with a message, where
/// this user may not make one.
fn as_pid_1(place: &Path) -> Option<PathBuf> {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let may = Command::new(unshare[0]).args(&unshare[1..]).arg("true").output();
    if !may.is_ok_and(|output| output.status.success()) {
        #[allow(clippy::print_stderr, reason = "says why a test did nothing")]
        {
            eprintln!("skipped: this user can't make a PID namespace");
        }
        return None;
    }
    let [palisade, _] = programs_in(place);
    let script = place.join("as-pid-1");
    fs::write(&script, format!("#!/bin/sh\nexec {} {} \"$@\"\n", unshare.join(" "), palisade.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Some(script)
}

#[tokio::test]
async fn a_proxy_that_is_pid_1_runs_plugins_of_mosn_s_sdk() {
    let dir = place();
    let Some(palisade) = as_pid_1(dir.path()) else { return };
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        let (mut proxy, _upstream) = start_as(Some(palisade.clone()), &program, &["-sdk"], "").await;
        assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
        assert_eq!(proxy.get("/", &[]).await.status, 403);
        // Pid 1 follows a proxy that has taken over.
        let upgraded = proxy.cli(&["upgrade-self"]).await;
        assert_eq!(upgraded.code, Some(0), "{upgraded:?}\n{}", proxy.log());
        let stopped = |line: &str| line.contains("draining") && line.contains("another process serves");
        proxy.wait_for_log("the end of the process before", stopped).await;
        assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
        // The proxy is a child of pid 1, which hands it the signals that a container is sent.
        let init = process::descendants(proxy.pid())[0];
        assert_eq!(fs::read_to_string(format!("/proc/{init}/status")).unwrap().lines().find_map(inner_pid), Some(1));
        kill(init, Signal::SIGTERM);
        assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
        proxy.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_plugin_made_with_mosn_s_own_sdk_runs_unmodified() {
    let Some(program) = GoPlugin::MosnSdk.program() else { return };
    let (proxy, upstream) = start(&program, &[], "").await;
    it_decides(&proxy, &upstream).await;
    it_ends_when_asked(&proxy).await;
    drop(proxy);
    // It takes pid 1 for a parent that has gone.
    let dir = place();
    let Some(palisade) = as_pid_1(dir.path()) else { return };
    let (mut proxy, _upstream) = start_as(Some(palisade), &program, &[], "").await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    kill(process::descendants(proxy.pid())[0], Signal::SIGTERM);
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
    proxy.nothing_is_left().await;
}

#[tokio::test]
async fn a_signal_that_comes_as_one_proxy_follows_another_reaches_it() {
    let dir = place();
    let Some(palisade) = as_pid_1(dir.path()) else { return };
    let Some(program) = GoPlugin::MosnSdk.program() else { return };
    let (mut proxy, _upstream) = start_as(Some(palisade), &program, &[], "").await;
    let init = process::descendants(proxy.pid())[0];
    let first = process::descendants(init)[0];
    // It learns of both at once: that the first one has ended, and that it is to end.
    process::freeze(init).await;
    let upgraded = proxy.cli(&["upgrade-self"]).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}\n{}", proxy.log());
    eventually("the end of the first process", || !process::runs(first)).await;
    kill(init, Signal::SIGTERM);
    kill(init, Signal::SIGCONT);
    assert!(proxy.wait_exit().await.success(), "{}", proxy.log());
    proxy.nothing_is_left().await;
}

/// The innermost number in a line such as `NSpid: 4711 1`.
fn inner_pid(line: &str) -> Option<i32> {
    line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok()
}

#[tokio::test]
async fn a_go_plugin_runs_hardened() {
    for release in GoPlugin::ALL {
        let Some(program) = release.program() else { return };
        // Where whoever it runs as gets to it.
        let dir = place();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let copy = dir.path().join("header-auth");
        std::fs::copy(program, &copy).unwrap();
        let (proxy, upstream) = start(&copy, &[], ", sandbox: hardened").await;
        it_decides(&proxy, &upstream).await;
        it_ends_when_asked(&proxy).await;
    }
}

/// A `palisade` of root's that may not open what is not its own, in a group of the number [`GROUP`], and a plugin;
/// `None`, with a message, where this user can't make one.
fn without_power_over_files(place: &Path) -> Option<[PathBuf; 2]> {
    let setpriv = format!("setpriv --groups {GROUP} --bounding-set=-dac_override,-dac_read_search");
    let may = Command::new("sh").args(["-c", &format!("{setpriv} true")]).output();
    if !nix::unistd::geteuid().is_root() || !may.is_ok_and(|output| output.status.success()) {
        #[allow(clippy::print_stderr, reason = "says why a test did nothing")]
        {
            eprintln!("skipped: this user can't give powers up");
        }
        return None;
    }
    let [palisade, fake] = programs_in(place);
    let script = place.join("without-power");
    fs::write(&script, format!("#!/bin/sh\nexec {setpriv} {} \"$@\"\n", palisade.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Some([script, fake])
}

const GROUP: u32 = 4242;

#[tokio::test]
async fn a_host_connects_to_a_plugin_of_another_user_by_the_group_of_its_socket() {
    let dir = place();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some([palisade, fake]) = without_power_over_files(dir.path()) else { return };
    // v1.0.1 does not know the variable.
    let Some(program) = GoPlugin::Current.program() else { return };
    let copy = dir.path().join("header-auth");
    fs::copy(program, &copy).unwrap();
    let user = format!(", sandbox: {{user: 65534, group: {GROUP}}}");
    let shared = format!("{user}, socket_group: {GROUP}");
    let (proxy, upstream) = start_as(Some(palisade.clone()), &copy, &[], &shared).await;
    it_decides(&proxy, &upstream).await;
    let endpoint = proxy.plugin("auth").await["endpoint"].as_str().unwrap().strip_prefix("unix:").unwrap().to_owned();
    let found = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o777)
    };
    assert_eq!(found(Path::new(&endpoint)), (65_534, GROUP, 0o660));
    assert_eq!(found(Path::new(&endpoint).parent().unwrap()), (65_534, GROUP, 0o770));
    it_ends_when_asked(&proxy).await;
    drop(proxy);

    // Ours does as go-plugin does; and without the group it is out of reach.
    let yaml = |keys: &str| {
        filtered(
            upstream.address(),
            &format!("command: [{}, serve], timeout: 20s, required: false{keys}", fake.display()),
        )
    };
    let options = Options { program: Some(palisade), ..Options::default() };
    let proxy = Proxy::start_with(place().into(), &yaml(&shared), &options).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    drop(proxy);
    let proxy = Proxy::start_with(place().into(), &yaml(&user), &options).await;
    let failed = proxy.until("auth", "a failure", |status| !status["last_exit"].is_null()).await;
    assert!(failed["last_exit_report"].as_str().unwrap().contains("Permission denied"), "{failed:#}");
}
