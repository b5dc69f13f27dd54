//! What an operator is told about a configuration that can't be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use palisade_tests::{Proxy, Upstream, fake, place, run_to_exit, validate};

/// A whole file, and each problem as line, column, message, and the label under the line.
type Case = (&'static str, &'static [(u64, u64, &'static str, &'static str)]);

const CASES: &[Case] = &[
    (
        "listeners: [{address: 127.0.0.1:0}]\nroutes:\n  - path: /\n    upstrem: http://127.0.0.1:9000\n",
        &[(4, 5, "unknown field `upstrem`", "did you mean `upstream`?")],
    ),
    ("{}\n", &[(1, 1, "missing field `listeners`", "")]),
    ("listeners: []\n", &[(1, 12, "`listeners` is empty", "at least one is needed")]),
    (
        "listeners:\n  - address: localhost:8080\n",
        &[(
            2,
            14,
            "`localhost:8080` is not an address to listen on",
            "names are not resolved: write `127.0.0.1:8080` or `\"[::1]:8080\"`",
        )],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\ndrain_timeout: 5\n",
        &[(2, 16, "`drain_timeout: 5` has no unit", "write `5s` or `5ms`")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\ndrain_timeout: 5s\ndrain_timeout: 6s\n",
        &[(3, 1, "duplicate key `drain_timeout`", "first written at 2:1")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0, filters: [auth]}]\n",
        &[(1, 46, "unknown plugin `auth`", "no plugins are defined; add it under `plugins:`")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nplugins:\n  auth: {command: [no-such-program-anywhere]}\n",
        &[(3, 20, "`no-such-program-anywhere` is not in PATH", "")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nplugins:\n  auth: {command: [./missing]}\n",
        &[(3, 20, "/missing` does not exist", "")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nroutes: [{upstream: nowhere}]\n",
        &[(2, 21, "unknown upstream `nowhere`", "no upstreams are defined; add it under `upstreams:`")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nroutes: [{upstream: 'https://127.0.0.1:1'}]\n",
        &[(2, 21, "upstreams with `https://` are not built yet", "only `http://` and `unix:`")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nroutes: [{upstream: 'http://127.0.0.1:1', retries: 7}]\n",
        &[(2, 52, "`retries: 7` is out of range", "0 to 1")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nroutes: [{upstream: 'http://127.0.0.1:1', path: {regex: '('}}]\n",
        &[(2, 57, "not usable as a regular expression: unclosed group", "")],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\nroutes: [{upstream: 'http://127.0.0.1:1', filters: }]\n",
        &[(2, 50, "`filters` has no value", "write a list, or remove the line")],
    ),
    ("listeners: [\n", &[(2, 1, "not valid YAML", "")]),
    ("listeners:\n\t- address: 127.0.0.1:0\n", &[(2, 2, "not valid YAML: tabs disallowed", "")]),
    ("", &[(0, 0, "the file is empty", "")]),
    (
        "listeners:\n  - address: 127.0.0.1:99999\n    limits: {max_headers: 0}\n  - {adress: x}\n",
        &[
            (2, 14, "`127.0.0.1:99999` is not an address to listen on", "the port must be 0 to 65535"),
            (3, 27, "`max_headers: 0` is out of range", "1 to 10000"),
            (4, 6, "unknown field `adress`", "did you mean `address`?"),
        ],
    ),
];

#[tokio::test]
async fn every_problem_is_told_with_its_place_and_exit_code_3() {
    for (yaml, problems) in CASES {
        let shown = validate(yaml, &[]).await;
        assert_eq!(shown.code, Some(3), "{yaml}\n{shown:?}");
        let json = validate(yaml, &["--json"]).await;
        assert_eq!(json.code, Some(3), "{yaml}\n{json:?}");
        let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap_or_else(|_| panic!("{json:?}"));
        let found = report["problems"].as_array().unwrap();
        assert_eq!(found.len(), problems.len(), "{yaml}\n{report:#}");
        assert_eq!(report["count"], problems.len(), "{yaml}\n{report:#}");
        for (problem, (line, column, message, label)) in found.iter().zip(*problems) {
            assert_eq!(
                (problem["line"].as_u64(), problem["column"].as_u64()),
                (Some(*line), Some(*column)),
                "{yaml}\n{report:#}"
            );
            assert!(problem["message"].as_str().unwrap().contains(message), "{yaml}\n{report:#}");
            assert!(problem["label"].as_str().unwrap_or_default().contains(label), "{yaml}\n{report:#}");
            // The same for people, with the line itself.
            let text = &shown.stderr;
            let place = if *line > 0 { format!(":{line}:{column}") } else { String::new() };
            assert!(text.contains(&format!("--> palisade.yaml{place}\n")), "{yaml}\n{text}");
            assert!(text.contains(message) && text.contains(label), "{yaml}\n{text}");
            let source = usize::try_from(*line).unwrap().checked_sub(1).and_then(|index| yaml.lines().nth(index));
            assert!(text.contains(source.unwrap_or_default().trim()), "{yaml}\n{text}");
        }
    }
}

#[tokio::test]
async fn an_invalid_file_starts_nothing() {
    let dir = place();
    let yaml = format!("listeners: [{{adress: 127.0.0.1:0}}]\nplugins: {{auth: {{command: {}}}}}\n", fake(&["serve"]));
    let outcome = run_to_exit(dir.path(), &yaml).await;
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains("unknown field `adress`"), "{}", outcome.stderr);
    assert!(!dir.path().join("run").exists());
}

#[tokio::test]
async fn a_valid_file_is_called_valid_and_nothing_is_started() {
    let yaml =
        format!("listeners: [{{address: 127.0.0.1:0}}]\nplugins: {{auth: {{command: {}}}}}\n", fake(&["exit:1"]));
    let outcome = validate(&yaml, &[]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_a_clear_error() {
    let upstream = Upstream::http1("app").await;
    let yaml =
        format!("listeners: [{{address: 127.0.0.1:0}}]\nroutes: [{{upstream: 'http://{}'}}]\n", upstream.address());
    let proxy = Proxy::start(&yaml).await;
    let outcome = proxy.cli(&["validate", "nowhere.yaml"]).await;
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains("nowhere.yaml"), "{outcome:?}");
    let usage = proxy.cli(&["run"]).await;
    assert_ne!(usage.code, Some(0), "{usage:?}");
    let usage = proxy.cli(&["frobnicate"]).await;
    assert_eq!(usage.code, Some(2), "{usage:?}");
}

#[tokio::test]
async fn a_file_that_anybody_may_write_is_refused() {
    let upstream = Upstream::http1("app").await;
    let yaml =
        format!("listeners: [{{address: 127.0.0.1:0}}]\nroutes: [{{upstream: 'http://{}'}}]\n", upstream.address());
    let proxy = Proxy::start(&yaml).await;
    let path = proxy.dir().join("open.yaml");
    std::fs::write(&path, &yaml).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let outcome = proxy.cli(&["validate", "open.yaml"]).await;
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains("chmod"), "{outcome:?}");
}
