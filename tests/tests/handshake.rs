//! What a plugin may print, and what an operator is told when it prints something else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use palisade_tests::{LONG, Outcome, Proxy, Upstream, fake, place, run_to_exit};

fn config(actions: &[&str], plugin: &str) -> String {
    format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{upstream: 'http://127.0.0.1:9', filters: [auth]}}]
plugins: {{auth: {{command: {}{plugin}}}}}
",
        fake(actions)
    )
}

/// Runs the proxy with a required plugin that can't serve. Checks what must be said whatever the cause is.
async fn refusal(actions: &[&str], plugin: &str) -> Outcome {
    let dir = place();
    let outcome = run_to_exit(dir.path(), &config(actions, plugin)).await;
    assert_eq!(outcome.code, Some(1), "{actions:?}: {outcome:?}");
    assert!(outcome.took < LONG, "{actions:?}: {outcome:?}");
    for part in ["plugin `auth`", "/fake-plugin ", "command: ", "cwd: "] {
        assert!(outcome.stderr.contains(part), "{actions:?}: no {part:?} in {}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    outcome
}

#[tokio::test]
async fn every_malformed_line_ends_the_start_with_its_cause() {
    let cases: &[(&[&str], &str)] = &[
        (&[r"print:2|1|unix|/x|grpc"], "core version 2 is not supported, expected 1"),
        (&[r"print:x|1|unix|/x|grpc"], r#"core version "x" is not a number"#),
        (&[r"print:-1|1|unix|/x|grpc"], "core version -1"),
        (&[r"print:18446744073709551616|1|unix|/x|grpc"], "core version 18446744073709551616"),
        (&[r"print:1 |1|unix|/x|grpc"], r#"core version "1 " is not a number"#),
        (&[r"print:1|99|unix|$DIR/x|grpc"], "application version 99 is not offered by the host, which speaks [1]"),
        (&[r"print:1|one|unix|/x|grpc"], r#"application version "one" is not a number"#),
        (&[r"print:1|1"], "the line has 2 of at least 4 fields"),
        (&[r"print:1|1|unix|/x|grpc||true|more"], "the line has 8 fields, more than 7"),
        (&[r"print:1|1|udp|/x|grpc"], r#"network "udp" is not supported"#),
        (&[r"print:1|1||/x|grpc"], r#"network "" is not supported"#),
        (&[r"print:1|1|unix|/x"], "net/rpc"),
        (&[r"print:1|1|unix|/x|netrpc"], "net/rpc"),
        (&[r"print:1|1|unix|/x|http"], r#"protocol "http" is not supported"#),
        (&[r"print:1|1|unix||grpc"], "the address is empty"),
        (&[r"print:1|1|unix|x.sock|grpc"], "is not absolute"),
        (&[r"print:1|1|unix|unix:/x|grpc"], "must be a bare path"),
        (&[r"print:1|1|unix|$DIR/../x|grpc"], r#"contains "..""#),
        (&[r"print:1|1|unix|@x|grpc"], "abstract socket"),
        (&[r"print:1|1|unix|/run/docker.sock|grpc"], "is not in"),
        (&["touch:x", r"print:1|1|unix|$DIR/x|grpc"], "is not a socket"),
        (&[r"print:1|1|tcp|10.0.0.5:80|grpc"], "is not a loopback address"),
        (&[r"print:1|1|tcp|0.0.0.0:80|grpc"], "listening on every interface"),
        (&[r"print:1|1|tcp|localhost:80|grpc"], "not an IP address and a port"),
        (&[r"print:1|1|tcp|127.0.0.1:0|grpc"], "port 0"),
        (&[r"print:1|1|unix|/x|grpc||yes"], "neither true nor false"),
        (&[r"print:\xff\xfe|1|unix|/x|grpc"], "the line is not UTF-8"),
        (&[r"print:1|1|unix|/x\x1b[31m|grpc"], "control character"),
        (&[r"print:1|1|unix|/x\x00|grpc"], "control character"),
        (&["close-stdout"], "stdout was closed before the handshake"),
        (&["repeat:100:banner"], "got 33 other lines"),
    ];
    let tasks: Vec<_> = cases
        .iter()
        .map(|(actions, _)| tokio::spawn(async move { refusal(&[actions, &["stay"][..]].concat(), "").await }))
        .collect();
    for (task, (actions, cause)) in tasks.into_iter().zip(cases) {
        let outcome = task.await.unwrap();
        assert!(outcome.stderr.contains(cause), "{actions:?}: no {cause:?} in {}", outcome.stderr);
        assert!(!outcome.stderr.contains('\x1b'), "{actions:?}: an escape in {:?}", outcome.stderr);
        // None of them waits for a deadline: that would be 15 seconds.
        assert!(outcome.took < Duration::from_secs(15), "{actions:?}: {:?}", outcome.took);
    }
}

#[tokio::test]
async fn a_second_socket_that_is_not_the_plugins_own_ends_the_start_with_its_cause() {
    // On the file system of the sockets' directory, as a hard link asks for.
    let place = place();
    let others = place.path().join("others");
    let _others = std::os::unix::net::UnixListener::bind(&others).unwrap();
    let others = others.display();
    let cases: &[(&[&str], &str)] = &[
        (&["stream-socket:x/y"], r#""x/y" is not the name of a socket"#),
        (&["stream-socket:/run/x"], r#""/run/x" is not the name of a socket"#),
        (&["stream-socket:.."], r#"".." is not the name of a socket"#),
        (&["stream-socket:none"], "No such file"),
        (&["touch:file", "stream-socket:file"], "is not a socket"),
        (&[&format!("link:link:{others}"), "stream-socket:link"], "is not a socket"),
        (&[&format!("hard-link:hard:{others}"), "stream-socket:hard"], "is not the plugin's own"),
    ];
    for serve in [&["serve-bare"][..], &["needs:one-stream", "serve-bare"]] {
        for (actions, cause) in cases {
            let actions = [&["needs:batches"], *actions, serve].concat();
            let outcome = refusal(&actions, "").await;
            let causes = ["its `stream_socket` is no good", cause];
            assert!(causes.iter().all(|cause| outcome.stderr.contains(cause)), "{actions:?}: {}", outcome.stderr);
        }
    }
}

#[tokio::test]
async fn a_line_that_never_ends_is_cut_short() {
    let long = format!("raw:{}", "y".repeat(9_000));
    let outcome = refusal(&[&long, "stay"], "").await;
    assert!(outcome.stderr.contains("got a line of more than 8192 bytes"), "{}", outcome.stderr);
    assert!(outcome.stderr.len() < 100_000, "{} bytes of log", outcome.stderr.len());
}

#[tokio::test]
async fn whoever_says_nothing_runs_into_the_handshake_timeout() {
    let cases: &[(&[&str], &str)] = &[
        (&["stay"], "no handshake within 300ms"),
        (&[r"raw:1|1|unix|$DIR/x|grpc", "stay"], "; got \"1|1|unix|"),
        (&["drip"], "no handshake within 300ms; got \"x"),
        (&["print:still loading", "stay"], "no handshake within 300ms"),
    ];
    for (actions, cause) in cases {
        let outcome = refusal(actions, ", handshake_timeout: 300ms").await;
        assert!(outcome.stderr.contains(cause), "{actions:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("likely: the plugin does not flush its stdout"), "{}", outcome.stderr);
        assert!(outcome.took >= Duration::from_millis(300), "{outcome:?}");
    }
}

#[tokio::test]
async fn an_exit_is_told_with_its_status_its_time_and_the_last_words() {
    let cases: &[(&[&str], &str)] = &[
        (&["exit:7"], "exited before the handshake (exit status 7, after "),
        (&["exit:0"], "exited before the handshake (exit status 0, after "),
        (&["signal:SIGABRT"], "exited before the handshake (SIGABRT, after "),
        (
            &["print:1|1|unix|$DIR/x|grpc", "exit:7"],
            "exited after the handshake, before it served (exit status 7, after ",
        ),
    ];
    for (actions, cause) in cases {
        let actions = [&["log:first words", "log:last words"], *actions].concat();
        let outcome = refusal(&actions, "").await;
        assert!(outcome.stderr.contains(cause), "{actions:?}: {}", outcome.stderr);
        for line in ["    | first words", "    | last words"] {
            assert!(outcome.stderr.contains(line), "{actions:?}: {}", outcome.stderr);
        }
    }
}

#[tokio::test]
async fn a_listener_that_never_speaks_is_not_ready() {
    let outcome = refusal(&["mute"], ", ready_timeout: 500ms").await;
    assert!(outcome.stderr.contains("was not ready within 500ms"), "{}", outcome.stderr);
}

#[tokio::test]
async fn a_plugin_that_refuses_its_configuration_is_quoted() {
    let outcome = refusal(&["refuse-config:must be a name"], "").await;
    let cause = "it refuses its configuration: config.allow.0: must be a name";
    assert!(outcome.stderr.contains(cause), "{}", outcome.stderr);
}

#[tokio::test]
async fn a_plugin_of_another_contract_is_told_apart() {
    let outcome = refusal(&["serve-mosn"], "").await;
    assert!(outcome.stderr.contains("set `contract: mosn`"), "{}", outcome.stderr);
    let dir = place();
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0, tls: auth}}]
plugins: {{auth: {{command: {}}}}}
",
        fake(&["serve-bare"])
    );
    let outcome = run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("does not serve palisade.plugin.v1.Certificates"), "{}", outcome.stderr);
}

/// MOSN's contract has no call that says what a plugin is, so this shows with the first request.
#[tokio::test]
async fn a_plugin_that_does_not_speak_mosn_s_contract_fails_its_calls() {
    let yaml = config(&["serve-bare"], ", contract: mosn, timeout: 10s, stop_timeout: 300ms");
    let mut proxy = Proxy::start(&yaml).await;
    proxy.get("/", &[("user", "admin")]).await.assert_failed(503, "plugin_failed");
    proxy.wait_for_log("why", |line| line.contains("it does not serve proto.Plugin")).await;
}

#[tokio::test]
async fn a_banner_before_the_line_is_skipped() {
    let upstream = Upstream::http1("app").await;
    let actions = ["print:** loading **", "print:", "print:a|banner", "repeat:20:more", "serve"];
    let yaml = config(&actions, ", timeout: 5s").replace("127.0.0.1:9", &upstream.address().to_string());
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    assert!(proxy.log().contains("** loading **"), "{}", proxy.log());
}

#[tokio::test]
async fn a_plugin_without_health_serves() {
    let upstream = Upstream::http1("app").await;
    let yaml = config(&["serve-bare"], ", timeout: 5s, stop_timeout: 500ms, health: {interval: 50ms}");
    let proxy = Proxy::start(&yaml.replace("127.0.0.1:9", &upstream.address().to_string())).await;
    let pid = proxy.plugin_pid("auth").await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/", &[("user", "admin")]).await.status, 200);
    }
    assert_eq!(proxy.plugin_pid("auth").await, pid);
}
