//! What plugins may print, and what they are told when they may not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use support::{Scenario, client, until_report, until_report_with};

/// Printed by a shell that then stays, so that nothing but the line can be at fault.
async fn refusal(output: &str) -> String {
    let scenario = Scenario::shell(&format!("{output}; exec sleep 600"));
    let plugin = scenario.start();
    let report = until_report(&plugin).await.to_string();
    plugin.shutdown().await;
    report
}

#[tokio::test]
async fn every_malformed_line_is_refused_at_once_with_its_reason() {
    let cases = [
        (r"printf '2|1|unix|/x|grpc\n'", "core version 2 is not supported, expected 1"),
        (r"printf 'x|1|unix|/x|grpc\n'", "core version \"x\" is not a number"),
        (r"printf -- '-1|1|unix|/x|grpc\n'", "core version -1"),
        (r"printf '18446744073709551616|1|unix|/x|grpc\n'", "core version 18446744073709551616"),
        (r"printf '1|99|unix|/x|grpc\n'", "application version 99 is not offered by the host, which speaks [1]"),
        (r"printf '1|1|unix|/x\n'", "net/rpc"),
        (r"printf '1|1|unix|/x|netrpc\n'", "net/rpc"),
        (r"printf '1|1|udp|/x|grpc\n'", "network \"udp\" is not supported"),
        (r"printf '1|1||/x|grpc\n'", "network \"\" is not supported"),
        (r"printf '1|1\n'", "the line has 2 of at least 4 fields"),
        (r"printf '\377\376|1|unix|/x|grpc\n'", "the line is not UTF-8"),
        (r"printf '1|1|unix|/x\033[31m|grpc\n'", "control character"),
        (r"printf '1|1|unix|x.sock|grpc\n'", "is not absolute"),
        (r"printf '1|1|unix|%s/../x|grpc\n' $TMPDIR", "contains \"..\""),
        (r"printf '1|1|unix|@x|grpc\n'", "abstract socket"),
        (r"printf '1|1|unix|/run/docker.sock|grpc\n'", "is not in"),
        (r"printf '1|1|unix|/%0200d|grpc\n' 0", "socket path is 201 bytes long"),
        (r"printf '1|1|tcp|10.0.0.5:80|grpc\n'", "is not a loopback address"),
        (r"printf '1|1|tcp|0.0.0.0:80|grpc\n'", "listening on every interface"),
        (r"printf '1|1|tcp|localhost:80|grpc\n'", "not an IP address and a port"),
        (r"printf '1|1|tcp|127.0.0.1:0|grpc\n'", "port 0"),
        (r"printf '1|1|unix|%s/x|grpc|%0600d\n' $TMPDIR 0", "AutoMTLS was not asked for"),
        (r"touch $TMPDIR/x; printf '1|1|unix|%s/x|grpc\n' $TMPDIR", "is not a socket"),
        (r"mkfifo $TMPDIR/x; printf '1|1|unix|%s/x|grpc\n' $TMPDIR", "is not a socket"),
        (r"ln -s /run/docker.sock $TMPDIR/x; printf '1|1|unix|%s/x|grpc\n' $TMPDIR", "is not a socket"),
        (r"exec 1>&-", "stdout was closed before the handshake"),
        (r"yes | head -c 100000 | tr -d '\n'", "got a line of more than 8192 bytes: \"yyyy"),
        (r"yes banner | head -n 100", "got 33 other lines (231 bytes), the last of them \"banner\""),
    ];
    // All at once: none of them waits for a deadline.
    let tasks: Vec<_> = cases.map(|(output, _)| tokio::spawn(refusal(output))).into();
    for (task, (output, expected)) in tasks.into_iter().zip(cases) {
        let report = task.await.unwrap();
        assert!(report.contains(expected), "{output}: {report}");
    }
}

#[tokio::test]
async fn a_line_that_never_ends_runs_into_the_deadline() {
    for (output, expected) in [
        ("printf '1|1|unix|/x'; exec sleep 600", "no handshake within 200ms; got \"1|1|unix|/x\" (SIGKILL"),
        ("while :; do printf x; sleep 0.01; done", "no handshake within 200ms; got \"x"),
        ("exec sleep 600", "no handshake within 200ms (SIGKILL"),
    ] {
        let mut scenario = Scenario::shell(output);
        scenario.spec.handshake.timeout = Duration::from_millis(200);
        let plugin = scenario.start();
        let report = until_report_with(&plugin, expected).await;
        assert!(report.contains("likely: the plugin does not flush its stdout"), "{report}");
        plugin.shutdown().await;
    }
}

#[tokio::test]
async fn an_exit_says_more_than_what_it_breaks() {
    for (script, expected) in [
        ("exit 0", "exited before the handshake (exit status 0"),
        ("kill -SEGV $$", "exited before the handshake (SIGSEGV"),
        (
            "printf '1|1|unix|%s/x|grpc\\n' $TMPDIR; exit 7",
            "exited after the handshake, before it served (exit status 7",
        ),
        ("echo 'This binary is a plugin' >&2; exit 1", "likely: the plugin expects another cookie"),
        // A line that is wrong is the cause, whether or not the process stays.
        ("printf '3|1|unix|/x|grpc\\n'; exit 1", "core version 3 is not supported, expected 1 (exit status 1"),
    ] {
        let scenario = Scenario::shell(script);
        let plugin = scenario.start();
        let report = until_report(&plugin).await.to_string();
        assert!(report.contains(expected), "{script}: {report}");
        plugin.shutdown().await;
    }
}

#[tokio::test]
async fn a_banner_before_the_line_and_talk_after_it_are_fine() {
    let scenario = Scenario::shell("echo; echo 'a|banner'; (sleep 0.05; yes | head -c 300000) & exec \"$FAKE\"");
    let plugin = scenario.start();
    client(&plugin).await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_waited_for_until_the_deadline() {
    for output in [
        "printf '1|1|unix|%s/x|grpc\\n' $TMPDIR; exec sleep 600",
        "printf '1|1|tcp|127.0.0.1:9|grpc\\n'; exec sleep 600",
    ] {
        let mut scenario = Scenario::shell(output);
        scenario.spec.ready_timeout = Duration::from_millis(200);
        let plugin = scenario.start();
        until_report_with(&plugin, "was not ready within 200ms: connect to ").await;
        plugin.shutdown().await;
    }
}

#[tokio::test]
async fn a_listener_that_never_speaks_runs_into_the_deadline() {
    let mut scenario = Scenario::fake(&["mute-tcp"]);
    scenario.spec.ready_timeout = Duration::from_millis(300);
    scenario.spec.health.timeout = Duration::from_millis(100);
    let plugin = scenario.start();
    until_report_with(&plugin, "was not ready within 300ms: health check: no answer within 100ms").await;
    plugin.shutdown().await;
}

#[tokio::test]
async fn an_address_of_somebody_else_is_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let move_in = format!("mv {} $TMPDIR/s; echo \"1|1|unix|$TMPDIR/s|grpc\"", socket.display());
    let link_in = format!("ln {} $TMPDIR/s; echo \"1|1|unix|$TMPDIR/s|grpc\"", socket.display());
    let name = format!("process {} (", std::process::id());
    for (script, expected) in [
        (format!("echo '1|1|tcp|127.0.0.1:{port}|grpc'"), "no process of this plugin listens on that port"),
        (link_in, name.as_str()),
        (move_in, "which this plugin has not started"),
    ] {
        let plugin = Scenario::shell(&format!("{script}; exec sleep 600"));
        let plugin = plugin.start();
        let report = until_report(&plugin).await.to_string();
        assert!(report.contains("is not the plugin's own: ") && report.contains(expected), "{report}");
        plugin.shutdown().await;
    }
    // Connections were made, and closed without a byte.
    for read in [&mut tcp.accept().unwrap().0 as &mut dyn std::io::Read, &mut unix.accept().unwrap().0] {
        let mut received = Vec::new();
        read.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"");
    }
}

#[tokio::test]
async fn a_socket_of_whatever_a_plugin_has_started_is_its_own() {
    for script in ["\"$FAKE\" & wait", "setsid \"$FAKE\" & wait", "sh -c 'setsid \"$FAKE\" & wait' & wait"] {
        let plugin = Scenario::shell(script).start();
        client(&plugin).await;
        plugin.shutdown().await;
    }
}

#[tokio::test]
async fn programs_that_cannot_start_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    script("plain", "x", 0o644);
    script("windows", "#!/usr/bin/python9\r\n", 0o755);
    script("binary", "\x7fELF\x02", 0o755);
    for (program, expected) in [
        ("no-such-program", "could not be started: program \"no-such-program\" was not found in PATH (after"),
        ("./no-such", "No such file or directory"),
        ("./plain", "likely: make it executable"),
        ("./windows", "interpreter \"/usr/bin/python9\\\\r\" of script"),
        ("./binary", "likely: the program is for another architecture"),
    ] {
        let mut scenario = Scenario::shell("");
        scenario.spec.command = vec![program.into()];
        scenario.spec.cwd = dir.path().into();
        let plugin = scenario.start();
        let report = until_report(&plugin).await.to_string();
        assert!(report.contains(expected), "{program}: {report}");
        plugin.shutdown().await;
    }
}
