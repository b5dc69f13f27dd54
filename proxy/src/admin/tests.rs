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
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Admin, Readiness, SOCKET, bind, serve};
use crate::config::Address;
use crate::plugin::Plugins;
use crate::telemetry::Metrics;

const LONG: Duration = Duration::from_secs(60);

/// A proxy as far as the admin socket sees it. Its only plugin never comes to serve.
struct Proxy {
    dir: TempDir,
    plugins: Arc<Plugins>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
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
        let plugins = Arc::new(Plugins::start(&config).unwrap());
        let readiness = Arc::new(Readiness::default());
        let metrics = Arc::new(Metrics::of(&config));
        let admin = Arc::new(Admin::new(&config, Arc::clone(&plugins), metrics, Arc::clone(&readiness)));
        let stop = CancellationToken::new();
        let listener = bind(&dir.path().join(SOCKET)).unwrap();
        let serving = tokio::spawn(serve(listener, admin, stop.clone()));
        Self { dir, plugins, readiness, stop, serving, client: Client::unix() }
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
        self.plugins.shutdown().await;
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
async fn what_is_not_there_is_refused_in_json() {
    let proxy = Proxy::start().await;
    for (method, path, expected, error, help) in [
        ("POST", "/plugins/auht/stop", 404, "no plugin is called `auht`", json!("did you mean `auth`?")),
        ("POST", "/plugins/other/stop", 404, "no plugin is called `other`", Value::Null),
        ("POST", "/plugins/auth/explode", 404, "there is nothing here", Value::Null),
        ("GET", "/", 404, "there is nothing here", Value::Null),
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
