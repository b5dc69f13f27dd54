//! The `palisade` binary as a process under test.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{Client, LONG, Reply, Upstream, eventually, process, soon};

/// Most log lines that are kept: a test that floods the log must not fill the memory.
const MAX_LINES: usize = 200_000;

/// A program of this workspace, built beside the tests.
fn program(name: &str, build: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(path.exists(), "{} is not there: run `{build}` first", path.display());
    path
}

/// The program under test.
fn palisade() -> PathBuf {
    program("palisade", "cargo build --workspace")
}

/// The command of a plugin that does these things in turn, as YAML. See `src/bin/fake-plugin` for what there is.
#[must_use]
pub fn fake(actions: &[&str]) -> String {
    let program = program("fake-plugin", "cargo build -p palisade-tests");
    let mut command = vec![program.to_str().unwrap()];
    command.extend(actions);
    serde_json::to_string(&command).unwrap()
}

/// Puts the programs into a directory, for users who can't reach where they were built: `palisade`, then `fake-plugin`.
///
/// # Panics
///
/// When they can't be copied.
#[must_use]
pub fn programs_in(dir: &Path) -> [PathBuf; 2] {
    let fake = program("fake-plugin", "cargo build -p palisade-tests");
    [palisade(), fake].map(|program| {
        let here = dir.join(program.file_name().unwrap());
        if std::fs::hard_link(&program, &here).is_err() {
            std::fs::copy(&program, &here).unwrap();
        }
        here
    })
}

/// A directory for one test. Its name is short, for it stands in the paths of sockets.
#[must_use]
pub fn place() -> TempDir {
    tempfile::Builder::new().prefix("pt-").tempdir().unwrap()
}

/// How to run the proxy, beyond its configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// Variables of its environment.
    pub env: Vec<(OsString, OsString)>,
    /// The user and group to run as; the caller's where unset.
    pub uid: Option<u32>,
    /// The `palisade` program; the one built beside the tests where unset.
    pub program: Option<PathBuf>,
    /// Its log goes elsewhere: whether it is ready is asked on the admin socket.
    pub unheard: bool,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// A running proxy. Dropping it kills it, and fails the test if any process of it is left.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    dir: Arc<TempDir>,
    log: Arc<Log>,
    listeners: HashMap<String, String>,
    /// The first listener in the configuration.
    first: String,
    /// Processes that must be gone in the end, though nothing marks them.
    watched: Mutex<Vec<i32>>,
}

#[derive(Debug)]
struct Log {
    lines: Mutex<Vec<String>>,
    count: watch::Sender<usize>,
}

impl Log {
    fn read(from: impl Read + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self { lines: Mutex::default(), count: watch::Sender::new(0) });
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(from);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let mut lines = written.lines.lock().unwrap();
                if lines.len() < MAX_LINES {
                    lines.push(String::from_utf8_lossy(&bytes).trim_end().to_owned());
                }
                drop(lines);
                written.count.send_modify(|count| *count += 1);
                bytes.clear();
            }
        });
        log
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn find(&self, wanted: &impl Fn(&str) -> bool) -> Option<String> {
        self.lines.lock().unwrap().iter().find(|line| wanted(line)).cloned()
    }
}

fn command(dir: &Path, arguments: &[&str], options: &Options) -> Command {
    let mut command = Command::new(options.program.clone().unwrap_or_else(palisade));
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).env_clear();
    // Whatever else the caller's environment holds must make no difference.
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("PALISADE_RUNTIME_DIR", dir.join("run"));
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    if let Some(uid) = options.uid {
        command.uid(uid).gid(uid);
    }
    command
}

fn write(dir: &Path, yaml: &str) {
    std::fs::write(dir.join("palisade.yaml"), yaml).unwrap();
}

/// Runs `palisade validate` on a configuration.
///
/// # Panics
///
/// When it does not come to an end.
pub async fn validate(yaml: &str, flags: &[&str]) -> Outcome {
    let dir = place();
    write(dir.path(), yaml);
    let arguments = [&["validate"], flags, &["palisade.yaml"]].concat();
    finish(command(dir.path(), &arguments, &Options::default())).await
}

/// Runs a configuration that can't be run, until the proxy has given up. The directory is empty otherwise.
///
/// # Panics
///
/// When it does not give up, or leaves a process behind.
pub async fn run_to_exit(dir: &Path, yaml: &str) -> Outcome {
    run_to_exit_with(dir, yaml, &Options::default()).await
}

/// The same in a special way.
///
/// # Panics
///
/// When it does not give up, or leaves a process behind.
pub async fn run_to_exit_with(dir: &Path, yaml: &str, options: &Options) -> Outcome {
    write(dir, yaml);
    cli_in(dir, &["run", "-c", "palisade.yaml"], options).await
}

/// Runs the binary in a directory as an operator would.
///
/// # Panics
///
/// When the command does not come to an end, or leaves a process behind.
pub async fn cli_in(dir: &Path, arguments: &[&str], options: &Options) -> Outcome {
    let outcome = finish(command(dir, arguments, options)).await;
    eventually("nothing of the proxy is left", || process::of_directory(dir).is_empty()).await;
    outcome
}

/// A configuration with one listener, one upstream, and the filter `auth` before it, a plugin with these keys.
#[must_use]
pub fn filtered(upstream: impl Display, plugin: &str) -> String {
    format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [auth], upstream: 'http://{upstream}'}}]
plugins: {{auth: {{{plugin}}}}}
"
    )
}

/// Runs a command to its end.
async fn finish(command: Command) -> Outcome {
    let started = Instant::now();
    let mut command = tokio::process::Command::from(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = soon("the command's end", command.output()).await.unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: started.elapsed(),
    }
}

impl Proxy {
    /// Starts the proxy in a directory of its own and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn start(yaml: &str) -> Self {
        Self::start_in(Arc::new(place()), yaml).await
    }

    /// Starts a proxy with one listener, one upstream and no plugin. `upstream` and `route` are further fields of
    /// theirs, each with a comma in front.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn in_front_of(endpoint: SocketAddr, upstream: &str, route: &str) -> Self {
        let yaml = format!(
            "workers: 1
listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{upstream: app{route}}}]
upstreams: {{app: {{endpoints: ['{endpoint}']{upstream}}}}}
"
        );
        Self::start(&yaml).await
    }

    /// Starts a proxy whose only route has the fake as its filter `auth`, with these actions and further keys, which
    /// begin with a comma. [`ADMIN`] passes.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn behind_fake(actions: &[&str], keys: &str) -> (Self, Upstream) {
        let upstream = Upstream::http1("app").await;
        let plugin = format!("command: {}{keys}", fake(actions));
        (Self::start(&filtered(upstream.address(), &plugin)).await, upstream)
    }

    /// Starts it in this directory; its runtime directory is `run` in there.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn start_in(dir: Arc<TempDir>, yaml: &str) -> Self {
        Self::start_with(dir, yaml, &Options::default()).await
    }

    /// Starts it in a special way.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn start_with(dir: Arc<TempDir>, yaml: &str, options: &Options) -> Self {
        let mut proxy = Self::spawn(dir, yaml, options);
        if options.unheard {
            let ready = proxy.until_ready().await;
            let listeners = ready["listeners"].as_array().unwrap().iter();
            let field = |listener: &Value, key: &str| listener[key].as_str().unwrap().to_owned();
            proxy.listeners = listeners.clone().map(|it| (field(it, "name"), field(it, "address"))).collect();
            proxy.first = listeners.map(|it| field(it, "name")).next().unwrap();
            return proxy;
        }
        proxy.wait_for_log("ready", |line| line.ends_with(": ready") || line.contains(": ready ")).await;
        let addresses: Vec<(String, String)> = {
            let lines = proxy.log.lines.lock().unwrap();
            lines.iter().filter(|line| line.contains(" palisade: listening ")).map(|line| listening(line)).collect()
        };
        proxy.first = addresses.first().unwrap().0.clone();
        proxy.listeners = addresses.into_iter().collect();
        proxy
    }

    /// The status once it is ready.
    async fn until_ready(&mut self) -> Value {
        let started = Instant::now();
        let socket = self.runtime_dir().join("admin.sock");
        loop {
            if tokio::net::UnixStream::connect(&socket).await.is_ok() {
                let status = self.status().await;
                if status["ready"] == true {
                    return status;
                }
            }
            let exited = self.child.try_wait().unwrap();
            assert!(exited.is_none() && started.elapsed() < LONG, "the proxy is not ready ({exited:?})");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts it without waiting for anything.
    ///
    /// # Panics
    ///
    /// When there is no such program.
    #[must_use]
    pub fn spawn(dir: Arc<TempDir>, yaml: &str, options: &Options) -> Self {
        write(dir.path(), yaml);
        let mut command = command(dir.path(), &["run", "-c", "palisade.yaml"], options);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::read(child.stderr.take().unwrap());
        Self { child, dir, log, listeners: HashMap::new(), first: String::new(), watched: Mutex::default() }
    }

    /// The directory that holds the configuration and the runtime directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps the directory beyond the proxy.
    #[must_use]
    pub fn shared_dir(&self) -> Arc<TempDir> {
        Arc::clone(&self.dir)
    }

    /// The runtime directory.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The address of the first listener.
    ///
    /// # Panics
    ///
    /// When it is a unix socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address_of(&self.first)
    }

    /// The address of a listener by name.
    ///
    /// # Panics
    ///
    /// When there is none on TCP.
    #[must_use]
    pub fn address_of(&self, listener: &str) -> SocketAddr {
        let address = self.listeners.get(listener).unwrap_or_else(|| panic!("no listener {listener}\n{}", self.log()));
        address.parse().unwrap_or_else(|_| panic!("{address} of {listener} is not on TCP"))
    }

    /// Asks the first listener on a connection of its own.
    ///
    /// # Panics
    ///
    /// When there is no answer at all.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut client = Client::http1(self.address()).await;
        client.get(path, headers).await
    }

    /// All that was logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line.
    ///
    /// # Panics
    ///
    /// When it does not come, or the proxy ends before it.
    pub async fn wait_for_log(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LONG;
        let mut count = self.log.count.subscribe();
        loop {
            count.borrow_and_update();
            if let Some(line) = self.log.find(&wanted) {
                return line;
            }
            let exited = self.child.try_wait().unwrap();
            assert!(exited.is_none(), "the proxy ended ({exited:?}) before it logged {what}:\n{}", self.log());
            assert!(Instant::now() < deadline, "the proxy did not log {what}:\n{}", self.log());
            // Wakes up now and then to see whether the proxy is still there.
            let _changed = tokio::time::timeout(Duration::from_millis(100), count.changed()).await;
        }
    }

    /// The proxy's pid.
    ///
    /// # Panics
    ///
    /// Never: pids are small.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// `GET /status` of the admin socket.
    ///
    /// # Panics
    ///
    /// When it does not answer with JSON.
    pub async fn status(&self) -> Value {
        let mut client = Client::http1_unix(&self.runtime_dir().join("admin.sock")).await;
        let reply = client.get("/status", &[]).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        serde_json::from_slice(&reply.body).unwrap()
    }

    /// The sum of all series of a metric that have these labels, from `GET /metrics`. 0 where there is none.
    ///
    /// # Panics
    ///
    /// When the admin socket does not answer with metrics.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let mut client = Client::http1_unix(&self.runtime_dir().join("admin.sock")).await;
        let reply = client.get("/metrics", &[]).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let has = |series: &str| {
            labels.iter().all(|(label, value)| {
                let label = format!("{label}=\"{value}\"");
                series.trim_end_matches('}').split(',').any(|written| written == label)
            })
        };
        let text = reply.text();
        let series = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.strip_prefix('{').or(rest.starts_with(' ').then_some(rest))?.rsplit_once(' ')
        });
        series.filter(|(series, _)| has(series)).map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    }

    /// Waits until a metric has a value. See [`Proxy::metric`].
    ///
    /// # Panics
    ///
    /// When that does not come.
    pub async fn until_metric(&self, name: &str, labels: &[(&str, &str)], value: u64) {
        let deadline = Instant::now() + LONG;
        loop {
            let found = self.metric(name, labels).await;
            if found == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name}{labels:?} is {found} and not {value}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The status of one plugin.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    pub async fn plugin(&self, name: &str) -> Value {
        let status = self.status().await;
        let plugins = status["plugins"].as_array().unwrap_or_else(|| panic!("{status}"));
        let found = plugins.iter().find(|plugin| plugin["name"] == name);
        found.unwrap_or_else(|| panic!("{status}")).clone()
    }

    /// The pid of a plugin.
    ///
    /// # Panics
    ///
    /// When it has no process.
    pub async fn plugin_pid(&self, name: &str) -> i32 {
        pid_of(&self.plugin(name).await)
    }

    /// Waits until a plugin's status is as wanted.
    ///
    /// # Panics
    ///
    /// When that does not come.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let status = self.plugin(name).await;
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "plugin {name}: {what} did not come; it is {status:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a plugin serves with another process than `than`.
    ///
    /// # Panics
    ///
    /// When that does not come.
    pub async fn until_replaced(&self, name: &str, than: i32) -> i32 {
        let replaced = |status: &Value| status["state"] == "serving" && status["pid"] != than;
        pid_of(&self.until(name, "another process", replaced).await)
    }

    /// Runs the binary as an operator would beside this proxy.
    ///
    /// # Panics
    ///
    /// When the command does not come to an end.
    pub async fn cli(&self, arguments: &[&str]) -> Outcome {
        finish(command(self.dir(), arguments, &Options::default())).await
    }

    /// Makes sure that this process, too, is gone when the proxy is.
    ///
    /// # Panics
    ///
    /// Never: nothing panics while it holds the lock.
    pub fn watch(&self, pid: i32) {
        self.watched.lock().unwrap().push(pid);
    }

    /// Asks the proxy to end.
    pub fn terminate(&self) {
        process::kill(self.pid(), Signal::SIGTERM);
    }

    /// Kills the proxy and waits until the kernel has it.
    ///
    /// # Panics
    ///
    /// When the kernel does not comply.
    pub fn kill9(&mut self) {
        process::kill(self.pid(), Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Whether the proxy has ended.
    ///
    /// # Panics
    ///
    /// When the kernel does not tell.
    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until the proxy has ended by itself.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < LONG, "the proxy does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until none of the proxy's processes is left.
    ///
    /// # Panics
    ///
    /// When some are.
    pub async fn nothing_is_left(&self) {
        let left = || self.left(&[]);
        eventually(format_args!("nothing of the proxy is left, but there is {:?}", left()), || left().is_empty()).await;
    }

    fn left(&self, also: &[i32]) -> Vec<String> {
        let mut pids = process::of_directory(self.dir());
        pids.extend(self.watched.lock().unwrap().iter().chain(also).filter(|pid| process::runs(**pid)));
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().map(|pid| format!("{pid} {}", process::command(pid))).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let running = matches!(self.child.try_wait(), Ok(None));
        let descendants = if running { process::descendants(self.pid()) } else { Vec::new() };
        if running {
            process::kill(self.pid(), Signal::SIGKILL);
        }
        let ended = self.child.wait();
        let deadline = Instant::now() + LONG;
        while !self.left(&descendants).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = self.left(&descendants);
        let watched = std::mem::take(&mut *self.watched.lock().unwrap());
        for pid in process::of_directory(self.dir()).into_iter().chain(descendants).chain(watched) {
            process::kill(pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            // The test's own failure comes first; this helps to understand it.
            let log = self.log.text();
            let tail: Vec<&str> = log.lines().rev().take(200).collect();
            #[allow(clippy::print_stderr, reason = "shown with the failed test")]
            for line in tail.iter().rev() {
                eprintln!("palisade | {line}");
            }
            return;
        }
        assert!(left.is_empty(), "left behind: {left:?}");
        let crashed = ended.ok().and_then(|status| status.signal()).filter(|signal| *signal != Signal::SIGKILL as i32);
        assert_eq!(crashed, None, "the proxy crashed:\n{}", self.log.text());
        let log = self.log.text();
        assert!(!log.contains("panicked at"), "the proxy panicked:\n{log}");
    }
}

fn pid_of(plugin: &Value) -> i32 {
    let pid = plugin["pid"].as_i64().unwrap_or_else(|| panic!("no process: {plugin:#}"));
    i32::try_from(pid).unwrap()
}

/// Name and address of a line that says that a listener is open.
fn listening(line: &str) -> (String, String) {
    let field = |name: &str| {
        let rest = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {line:?}")).1;
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
            None => rest.split(' ').next().unwrap_or_default().to_owned(),
        }
    };
    (field("listener"), field("address"))
}
