//! The admin socket as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyperlocal::{UnixClientExt, UnixConnector};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Admin, Change, Changed, Differences, InForce, Order, Readiness, Refused, Retirement, SOCKET, bind, spawn};
use crate::config::{Address, Problems};
use crate::plugin::{Plugins, Roster};
use crate::telemetry::Metrics;

const LONG: Duration = Duration::from_secs(60);

/// A proxy as far as the admin socket sees it. Its only plugin never comes to serve.
struct Proxy {
    dir: TempDir,
    roster: Roster,
    orders: Mutex<mpsc::Receiver<Order>>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    serving: oneshot::Receiver<()>,
    client: Client<UnixConnector, Empty<Bytes>>,
}

impl Proxy {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let file = format!(
            "{{runtime_dir: {}, listeners: [{{name: web, address: 127.0.0.1:8080, filters: [auth]}}], \
             plugins: {{auth: {{command: [sh, -c, 'echo no key >&2; exit 3'], restart: {{initial: 1h, max: 1h}}}}}}}}",
            dir.path().display()
        );
        let config = crate::config::parse(&dir.path().join("palisade.yaml"), &file).unwrap();
        let roster = Roster::default();
        let plugins = Arc::new(Plugins::start(&config, &Plugins::default(), None, &roster).unwrap());
        let (readiness, metrics) = (Arc::new(Readiness::default()), Arc::new(Metrics::default()));
        metrics.expect(&config);
        let in_force = Arc::new(InForce::default());
        in_force.set(1, &config.hash, &plugins);
        let (orders, inbox) = mpsc::channel(1);
        let admin = Arc::new(Admin::new(&config, &in_force, roster.events(), &metrics, &readiness, orders));
        let stop = CancellationToken::new();
        let listener = bind(&dir.path().join(SOCKET)).unwrap();
        let turn = CancellationToken::new();
        turn.cancel();
        let serving = spawn(listener, admin, turn, Retirement::default(), stop.clone()).unwrap();
        Self { dir, roster, orders: Mutex::new(inbox), readiness, stop, serving, client: Client::unix() }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join(SOCKET)
    }

    async fn text(&self, method: &str, path: &str) -> (u16, String) {
        let uri: http::Uri = hyperlocal::Uri::new(self.socket(), path).into();
        let request = http::Request::builder().method(method).uri(uri).body(Empty::new()).unwrap();
        let response = timeout(LONG, self.client.request(request)).await.unwrap().unwrap();
        let status = response.status().as_u16();
        let body = timeout(LONG, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn json(&self, method: &str, path: &str) -> (u16, Value) {
        let (status, text) = self.text(method, path).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {status} {text}")))
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(LONG, self.serving).await.unwrap().unwrap();
        assert!(!self.dir.path().join(SOCKET).exists());
        self.roster.dismiss_all().await;
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_socket_is_its_owners_and_a_stale_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET);
    // As a killed proxy leaves its socket.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert!(UnixStream::connect(&path).await.is_ok());
    drop(socket);
    assert!(!path.exists());

    let file = dir.path().join("notes");
    fs::write(&file, "mine").unwrap();
    assert!(bind(&file).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test]
async fn readiness_is_what_the_runtime_says() {
    let proxy = Proxy::start().await;
    proxy.readiness.awaiting("plugin `auth`".to_owned());
    let starting = json!({"ready": false, "state": "starting", "waiting_for": "plugin `auth`"});
    assert_eq!(proxy.json("GET", "/ready").await, (503, starting));

    proxy.readiness.ready(vec![("web".to_owned(), Address::Tcp("127.0.0.1:4711".parse().unwrap()))]);
    let ready = json!({"ready": true, "state": "ready", "waiting_for": null});
    assert_eq!(proxy.json("GET", "/ready").await, (200, ready));
    let (_, status) = proxy.json("GET", "/status").await;
    assert_eq!(status["listeners"], json!([{"name": "web", "address": "127.0.0.1:4711"}]));
    assert_eq!((&status["ready"], &status["pid"]), (&json!(true), &json!(std::process::id())));

    proxy.readiness.closed();
    let draining = json!({"ready": false, "state": "draining", "waiting_for": null});
    assert_eq!(proxy.json("GET", "/ready").await, (503, draining));
    assert_eq!(proxy.json("GET", "/status").await.1["listeners"], json!([]));
    proxy.end().await;
}

#[tokio::test]
async fn an_order_is_answered_with_what_came_of_it() {
    let proxy = Proxy::start().await;
    let (code, answer) = proxy.json("POST", "/plugins/auth/restart").await;
    let plugin = &answer["instances"][0];
    assert_eq!((code, &plugin["name"], &plugin["state"]), (200, &json!("auth"), &json!("backing_off")));
    let report = plugin["last_exit_report"].as_str().unwrap();
    assert!(report.contains("exit status 3") && report.contains("| no key"), "{report}");

    let (code, plugin) = proxy.json("POST", "/plugins/auth/stop").await;
    assert_eq!((code, &plugin["instances"][0]["state"]), (200, &json!("stopped")));
    let (code, plugin) = proxy.json("POST", "/plugins/auth/start").await;
    assert_eq!((code, &plugin["instances"][0]["state"]), (200, &json!("backing_off")));

    let (_, status) = proxy.json("GET", "/status").await;
    assert_eq!(status["plugins"][0]["name"], "auth");
    let (code, metrics) = proxy.text("GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(metrics.contains("palisade_plugin_up{plugin=\"auth\"} 0\n"), "{metrics}");
    assert!(metrics.contains("palisade_plugin_failures{plugin=\"auth\"} 1\n"), "{metrics}");
    proxy.end().await;
}

#[tokio::test]
async fn a_change_is_answered_with_what_came_of_it() {
    let mut proxy = Proxy::start().await;
    let names = |name: &str| vec![name.to_owned()];
    let plugins = Differences { replaced: names("auth"), ..Differences::default() };
    let (listeners, successor) = (Differences::default(), None);
    let changed = Changed { generation: 2, hash: "ab".to_owned(), plugins, listeners, successor };
    let none = json!({"added": [], "replaced": [], "removed": []});
    let plugins = json!({"added": [], "replaced": ["auth"], "removed": []});
    let shown = json!({"generation": 2, "config_sha256": "ab", "plugins": plugins, "listeners": none});
    let problems = Problems::of_file(Path::new("palisade.yaml"), "it is wrong", "correct it");
    let kept = "what was there before stays in force";
    let cases = [
        ("/reload", Change::Reload, Ok(changed.clone()), 200, shown),
        (
            "/reload",
            Change::Reload,
            Err(Refused::Failed("no room".into())),
            409,
            json!({"error": "no room", "help": kept}),
        ),
        (
            "/plugins/auth/upgrade",
            Change::Upgrade("auth".to_owned()),
            Err(Refused::Undone("error: it died".into())),
            409,
            json!({"error": "undone within the probation: it died", "help": kept}),
        ),
    ];
    for (path, change, outcome, status, expected) in cases {
        let (answer, order) = tokio::join!(proxy.json("POST", path), async {
            let order = proxy.orders.lock().await.recv().await.unwrap();
            order.answer.unwrap().send(outcome).unwrap();
            order.change
        });
        assert_eq!(order, change);
        assert_eq!(answer, (status, expected), "{path}");
    }
    let ((status, invalid), ()) = tokio::join!(proxy.json("POST", "/reload"), async {
        let order = proxy.orders.lock().await.recv().await.unwrap();
        order.answer.unwrap().send(Err(Refused::Invalid(problems.clone()))).unwrap();
    });
    assert_eq!((status, &invalid["invalid"]), (422, &problems.to_json()));
    let text = invalid["error"].as_str().unwrap();
    assert!(text.contains("stays in force") && text.contains("it is wrong"), "{text}");
    // Nobody is there to carry it out any more.
    proxy.orders = Mutex::new(mpsc::channel(1).1);
    assert_eq!(proxy.json("POST", "/reload").await.0, 503);
    proxy.end().await;
}

#[tokio::test]
async fn events_are_told_and_waited_for() {
    let proxy = Proxy::start().await;
    proxy.json("POST", "/plugins/auth/restart").await;
    proxy.json("POST", "/plugins/auth/stop").await;
    let (code, told) = proxy.json("GET", "/events").await;
    let events = told["events"].as_array().unwrap();
    let find =
        |from: &str, to: &str| events.iter().find(|event| (&event["from"], &event["to"]) == (&from.into(), &to.into()));
    assert!(code == 200 && find("stopped", "starting").is_some(), "{told:#}");
    let crash = find("await_handshake", "backing_off").unwrap_or_else(|| panic!("{told:#}"));
    assert!(crash["reason"].as_str().unwrap().contains("exit status 3"), "{told:#}");
    let end = events.last().unwrap();
    assert_eq!((&end["to"], &end["reason"]), (&"stopped".into(), &"order: stop".into()), "{told:#}");

    let last = events.last().unwrap()["number"].as_u64().unwrap();
    let later = format!("/events?after={last}");
    assert_eq!(proxy.json("GET", &later).await.1, json!({"events": []}));
    let wait = format!("{later}&wait");
    let (waited, _) = tokio::join!(proxy.json("GET", &wait), proxy.json("POST", "/plugins/auth/start"));
    assert_eq!(waited.1["events"][0]["from"], "stopped", "{waited:?}");
    let (code, refused) = proxy.json("GET", "/events?since=1").await;
    assert_eq!((code, &refused["error"]), (400, &json!("the query can't be understood")));

    proxy.end().await;
}

#[tokio::test]
async fn who_waits_for_events_is_answered_at_the_end() {
    let proxy = Proxy::start().await;
    let mut waiting = UnixStream::connect(proxy.socket()).await.unwrap();
    let request = format!("GET /events?after={}&wait HTTP/1.1\r\nhost: x\r\n\r\n", u64::MAX);
    waiting.write_all(request.as_bytes()).await.unwrap();
    // Taken after the other.
    proxy.text("GET", "/ready").await;
    proxy.end().await;
    let mut answer = String::new();
    timeout(LONG, waiting.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("{\"events\":[]}"), "{answer}");
}

#[tokio::test]
async fn a_plugin_is_shown_with_the_reports_of_its_ends() {
    let proxy = Proxy::start().await;
    proxy.json("POST", "/plugins/auth/restart").await;
    proxy.json("POST", "/plugins/auth/restart").await;
    let (code, plugin) = proxy.json("GET", "/plugins/auth").await;
    let exits = plugin["instances"][0]["exits"].as_array().unwrap();
    assert!(code == 200 && exits.len() >= 2, "{plugin:#}");
    for exit in exits {
        let report = exit["report"].as_str().unwrap();
        assert!(report.contains("exit status 3") && report.contains("while awaiting the handshake"), "{report}");
        assert!(exit["usage"]["max_memory"].as_u64() > Some(0), "{exit:#}");
    }
    assert!(exits[0]["at"].as_f64() >= exits[1]["at"].as_f64(), "the latest comes first");
    assert_eq!(proxy.json("GET", "/plugins/auht").await.0, 404);
    proxy.end().await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_json() {
    let proxy = Proxy::start().await;
    for (method, path, expected, error, help) in [
        ("POST", "/plugins/auht/stop", 404, "no plugin is called `auht`", json!("did you mean `auth`?")),
        ("POST", "/plugins/other/stop", 404, "no plugin is called `other`", Value::Null),
        ("POST", "/plugins/auht/upgrade", 404, "no plugin is called `auht`", json!("did you mean `auth`?")),
        ("POST", "/plugins/auth/explode", 404, "there is nothing here", Value::Null),
        ("GET", "/", 404, "there is nothing here", Value::Null),
        ("GET", "/reload", 405, "this method is not served here", Value::Null),
        ("GET", "/plugins/auth/stop", 405, "this method is not served here", Value::Null),
    ] {
        let answer = proxy.json(method, path).await;
        assert_eq!(answer, (expected, json!({"error": error, "help": help})), "{method} {path}");
    }
    proxy.end().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let proxy = Proxy::start().await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(UnixStream::connect(proxy.socket()).await.unwrap());
    }
    // The last of them is open once it has been answered.
    let last = idle.last_mut().unwrap();
    last.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(timeout(LONG, last.read_u8()).await.unwrap().is_ok());

    let mut late = UnixStream::connect(proxy.socket()).await.unwrap();
    late.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 5];
    assert!(timeout(Duration::from_millis(200), late.read_exact(&mut answer)).await.is_err());
    drop(idle);
    timeout(LONG, late.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/");
    drop(late);
    proxy.end().await;
}

#[tokio::test]
async fn the_end_waits_for_nobody_who_is_slow() {
    let proxy = Proxy::start().await;
    let mut half = UnixStream::connect(proxy.socket()).await.unwrap();
    half.write_all(b"GET /status HTTP/1.1\r\nhost:").await.unwrap();
    let _silent = UnixStream::connect(proxy.socket()).await.unwrap();
    proxy.text("GET", "/status").await;
    proxy.end().await;
}
