//! Answers of another configuration than the one that a request is judged by: never used.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command, Stdio};

use palisade_tests::{ADMIN, Proxy, Upstream, fake, filtered, place, run_to_exit};

fn yaml(upstream: &str, plugin: &str) -> String {
    filtered(upstream, plugin)
}

async fn refused(proxy: &Proxy, what: &str) {
    let reply = proxy.get("/", &[ADMIN, ("x-fake", what)]).await;
    reply.assert_failed(503, "plugin_other_config");
}

#[tokio::test]
async fn an_answer_of_another_configuration_fails_the_request_and_is_counted() {
    for actions in [&["serve-bare"][..], &["needs:batches", "serve-bare"]] {
        let upstream = Upstream::http1("app").await;
        let command = format!("command: {}, timeout: 20s", fake(actions));
        let proxy = Proxy::start(&yaml(&upstream.address().to_string(), &command)).await;
        refused(&proxy, "other-config").await;
        refused(&proxy, "other-config").await;
        assert_eq!(upstream.count(), 0);
        let counted = [("plugin", "auth"), ("outcome", "plugin_other_config")];
        assert_eq!(proxy.metric("palisade_filter_calls_total", &counted).await, 2);
        // It names its own, or nothing, as one may that knows of none.
        assert_eq!(proxy.get("/", &[ADMIN]).await.status, 200);
        assert_eq!(proxy.get("/", &[ADMIN, ("x-fake", "no-config")]).await.status, 200);
    }
}

#[tokio::test]
async fn a_plugin_that_puts_another_configuration_in_force_does_not_serve() {
    let dir = place();
    let command = format!("command: {}", fake(&["refuse-config:another"]));
    let outcome = run_to_exit(dir.path(), &yaml("127.0.0.1:9", &command)).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("it has put another configuration in force, \"another\""), "{}", outcome.stderr);
}

struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A plugin that others have started knows one configuration: the last one that anybody gave it.
#[tokio::test]
async fn a_plugin_at_an_address_has_to_say_by_which_configuration_it_answers() {
    for needs in [&[][..], &["needs:batches"]] {
        let (upstream, dir) = (Upstream::http1("app").await, place());
        let socket = dir.path().join("s").display().to_string();
        let serve = format!("serve-at:{socket}");
        let actions: Vec<&str> = needs.iter().copied().chain([&*serve]).collect();
        let command: Vec<String> = serde_json::from_str(&fake(&actions)).unwrap();
        let _stranger = Stranger(Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).spawn().unwrap());
        let start = async |config: &str| {
            let plugin = format!("address: 'unix:{socket}', timeout: 20s, config: {{a: {config}}}");
            Proxy::start(&yaml(&upstream.address().to_string(), &plugin)).await
        };
        let first = start("1").await;
        assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
        refused(&first, "no-config").await;
        let second = start("2").await;
        assert_eq!(second.get("/", &[ADMIN]).await.status, 200);
        refused(&first, "").await;
        // Connected anew, it is configured anew.
        assert_eq!(first.cli(&["plugin", "restart", "auth"]).await.code, Some(0));
        assert_eq!(first.get("/", &[ADMIN]).await.status, 200);
        refused(&second, "").await;
    }
}
