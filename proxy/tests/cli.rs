//! The commands as scripts and people see them: what they print where, and their exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::thread;

use assert_cmd::cargo::cargo_bin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const VALID: &str = "
runtime_dir: run
listeners: [{name: web, address: '127.0.0.1:0'}]
plugins:
  auth: {command: [sh, -c, 'echo no key >&2; exit 3'], required: false, restart: {initial: 1h, max: 1h}}
";
const INVALID: &str = "listeners:\n  - adress: 127.0.0.1:0\n";

/// A command without anything of this process's environment that it looks at.
fn palisade() -> Command {
    let mut command = Command::new(cargo_bin("palisade"));
    for variable in ["PALISADE_LOG", "PALISADE_RUNTIME_DIR", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Said { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn run(words: &[&str]) -> Said {
    said(&palisade().args(words).output().unwrap())
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A directory with a file `palisade.yaml`.
fn file(text: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("palisade.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn a_valid_file_is_said_to_be_so() {
    let (_dir, path) = file(VALID);
    for words in [&["validate", &path][..], &["validate", "-c", &path], &["validate", "--config", &path]] {
        let Said { code, out, err } = run(words);
        assert_eq!((code, out, err), (0, format!("{path} is valid\n"), String::new()));
    }
    let Said { code, out, .. } = run(&["validate", "--json", &path]);
    assert_eq!((code, value(&out)), (0, json!({"file": path, "count": 0, "problems": []})));
}

#[test]
fn the_effective_configuration_is_printed_as_yaml_or_json() {
    let (_dir, path) = file(VALID);
    let Said { code, out, .. } = run(&["validate", "--effective", &path]);
    assert_eq!(code, 0);
    assert!(out.contains("drain_timeout: 30s\n"), "{out}");
    let Said { code, out, .. } = run(&["validate", "--effective", "--json", &path]);
    assert_eq!((code, &value(&out)["drain_timeout"]), (0, &json!("30s")));
}

#[test]
fn an_invalid_file_is_shown_with_its_problems() {
    let (_dir, path) = file(INVALID);
    let Said { code, out, err } = run(&["validate", &path]);
    assert_eq!((code, &*out), (3, ""));
    assert!(err.contains("error: unknown field `adress`"), "{err}");
    assert!(err.contains(&format!("--> {path}:2:5")), "{err}");
    assert!(err.contains("did you mean `address`?"), "{err}");
    assert!(err.ends_with(&format!(" in {path}\n")), "{err}");
    assert!(!err.contains('\x1b'), "colour is for terminals");

    let Said { code, out, err } = run(&["validate", "--json", &path]);
    assert_eq!((code, &*err), (3, ""));
    assert_eq!(value(&out)["problems"][0]["message"], "unknown field `adress`");

    for words in [&["run", "-c", &path][..], &["status", "-c", &path], &["validate", &path, "--effective"]] {
        let Said { code, out, err } = run(words);
        assert_eq!((code, &*out), (3, ""), "{words:?}");
        assert!(err.contains("did you mean `address`?"), "{words:?}: {err}");
    }
}

#[test]
fn a_file_that_is_not_there_is_an_invalid_configuration() {
    for words in [&["validate", "/nowhere.yaml"][..], &["run", "-c", "/nowhere.yaml"]] {
        let Said { code, err, .. } = run(words);
        assert_eq!(code, 3, "{words:?}");
        assert!(err.contains("error: can't read the file: no such file or directory"), "{err}");
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    let (_dir, path) = file(VALID);
    for words in [
        &["runn"][..],
        &["run"],
        &["validate"],
        &["validate", &path, "-c", &path],
        &["run", "-c", &path, "--log", "palisade=loud"],
        &["run", "-c", &path, "--log-format", "xml"],
        &["plugin"],
        &["plugin", "restart"],
        &["plugin", "restart", "a/b"],
        &["plugin", "explode", "a"],
        &["status", "-c", &path, "--admin", "x"],
        &["completions"],
    ] {
        let Said { code, out, err } = run(words);
        assert_eq!((code, &*out), (2, ""), "{words:?}");
        assert!(err.contains("--help"), "{words:?}: {err}");
    }
    // Without a word, the help is the message.
    let Said { code, out, err } = run(&[]);
    assert_eq!((code, &*out), (2, ""));
    assert!(err.contains("Usage: palisade <COMMAND>"), "{err}");

    let wrong = said(&palisade().args(["run", "-c", &path]).env("PALISADE_LOG", "palisade=loud").output().unwrap());
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("write a level"), "{}", wrong.err);
}

#[test]
fn help_and_version_go_to_stdout() {
    let version = format!("palisade {}\n", env!("CARGO_PKG_VERSION"));
    for word in ["version", "--version", "-V"] {
        assert_eq!(run(&[word]).out, version);
    }
    let Said { code, out, err } = run(&["--help"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains("4  no proxy runs that could be asked"), "{out}");
}

#[test]
fn the_schema_is_json_and_completions_are_a_script() {
    let Said { code, out, .. } = run(&["schema"]);
    assert_eq!(code, 0);
    assert!(value(&out)["properties"]["listeners"].is_object());

    for (shell, mark) in [("bash", "complete -F _palisade"), ("zsh", "#compdef palisade"), ("fish", "complete -c")] {
        let Said { code, out, .. } = run(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(out.contains(mark), "{shell}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure_but_a_full_disk_is_one() {
    for words in [&["schema"][..], &["completions", "bash"], &["version"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let Said { code, err, .. } = said(&palisade().args(words).stdout(writer).output().unwrap());
        assert_eq!((code, &*err), (0, ""), "{words:?}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let Said { code, err, .. } = said(&palisade().arg("schema").stdout(full).output().unwrap());
    assert_eq!(code, 1);
    assert!(err.starts_with("error: can't write to stdout: "), "{err}");
}

#[test]
fn where_nothing_runs_the_socket_is_named() {
    let (dir, path) = file(VALID);
    let socket = dir.path().join("run/admin.sock");
    let socket = socket.to_str().unwrap();
    for words in [
        &["status", "-c", &path][..],
        &["status", "--json", "--admin", socket],
        &["status", "auth", "--admin", socket],
        &["plugin", "restart", "auth", "-c", &path],
    ] {
        let Said { code, out, err } = run(words);
        assert_eq!((code, &*out), (4, ""), "{words:?}");
        assert!(err.starts_with(&format!("error: palisade is not running: there is no socket {socket}\n")), "{err}");
        assert!(err.contains("palisade run -c FILE") && err.contains("--admin PATH"), "{err}");
    }

    // As a killed proxy leaves it.
    fs::create_dir(dir.path().join("run")).unwrap();
    drop(UnixListener::bind(socket).unwrap());
    let Said { code, err, .. } = run(&["status", "--admin", socket]);
    assert_eq!(code, 4);
    assert!(err.starts_with(&format!("error: palisade is not running: nobody listens on {socket}\n")), "{err}");
}

#[test]
fn the_default_socket_is_in_the_default_runtime_directory() {
    let dir = tempfile::tempdir().unwrap();
    let output = palisade().arg("status").env("PALISADE_RUNTIME_DIR", dir.path()).output().unwrap();
    let Said { code, err, .. } = said(&output);
    assert_eq!(code, 4);
    assert!(err.contains(dir.path().join("admin.sock").to_str().unwrap()), "{err}");
}

#[test]
fn an_answer_that_is_not_ours_is_a_failure() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "can't be understood"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "can't be understood"),
        ("HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nhi", "can't be understood"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", "broke off"),
        ("SSH-2.0-OpenSSH\r\n", "no answer from"),
        ("", "no answer from"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert_ne!(stream.read(&mut request).unwrap(), 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let Said { code, err, .. } = run(&["status", "--admin", socket.to_str().unwrap()]);
        server.join().unwrap();
        assert_eq!(code, 1, "{answer}");
        assert!(err.starts_with("error: ") && err.contains(expected), "{answer}: {err}");
    }
}

/// A proxy that runs, and what it logs. Killed if a test fails.
struct Running {
    child: Child,
    log: Option<BufReader<ChildStderr>>,
    path: String,
    dir: TempDir,
}

impl Running {
    /// Returns once all listeners are open.
    fn start(words: &[&str]) -> Self {
        let (dir, path) = file(VALID);
        let mut child = palisade().args(["run", "-c", &path]).args(words).stderr(Stdio::piped()).spawn().unwrap();
        let log = child.stderr.take().map(BufReader::new);
        let mut running = Self { child, log, path, dir };
        running.until(|line| line.contains("palisade: ready") || line.contains(r#""message":"ready""#));
        running
    }

    /// The next line that is wanted.
    fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let log = self.log.as_mut().unwrap();
        let mut line = String::new();
        while !wanted(&line) {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the log ended");
        }
        line
    }

    fn ask(&self, words: &[&str]) -> Said {
        run(&[words, &["-c", &self.path]].concat())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// The exit code after SIGTERM.
    fn end(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        if let Some(mut log) = self.log.take() {
            // To its end: a full pipe would hold the proxy up.
            log.read_to_end(&mut Vec::new()).unwrap();
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_running_proxy_tells_its_state() {
    let proxy = Running::start(&[]);
    let Said { code, out, err } = proxy.ask(&["status"]);
    assert_eq!((code, &*err), (0, ""));
    let pid = proxy.child.id();
    assert!(out.starts_with(&format!("palisade {}: ready, pid {pid}, up ", env!("CARGO_PKG_VERSION"))), "{out}");
    assert!(out.contains(&format!("configuration: {}\ngeneration: 1, in force for ", proxy.path)), "{out}");
    assert!(out.contains("\nlistener: web on 127.0.0.1:"), "{out}");
    assert!(out.contains("\nPLUGIN  STATE") && out.contains("\nauth    "), "{out}");

    let socket = proxy.dir.path().join("run/admin.sock");
    let Said { code, out, .. } = run(&["status", "--json", "--admin", socket.to_str().unwrap()]);
    let answer = value(&out);
    assert_eq!((code, &answer["pid"], &answer["ready"]), (0, &json!(pid), &json!(true)));
    assert_eq!((&answer["plugins"][0]["name"], &answer["listeners"][0]["name"]), (&json!("auth"), &json!("web")));

    let Said { code, out, .. } = proxy.ask(&["status", "auth", "--json"]);
    assert_eq!((code, &value(&out)[0]["name"]), (0, &json!("auth")));
    let Said { code, err, .. } = proxy.ask(&["status", "auht"]);
    assert_eq!((code, &*err), (1, "error: no plugin is called `auht`\n  did you mean `auth`?\n"));
    assert_eq!(proxy.end(), Some(0));
}

#[test]
fn what_has_happened_is_told_and_followed() {
    let proxy = Running::start(&[]);
    let mut command = palisade();
    command.args(["events", "--follow", "--json", "-c", &proxy.path]).stdout(Stdio::piped());
    let mut follower = command.spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(|line| value(&line.unwrap()));
    let mut until = |to: &str| lines.find(|event| event["to"] == to).unwrap();
    let crash = until("backing_off");
    assert_eq!((&crash["plugin"], &crash["from"]), (&json!("auth"), &json!("await_handshake")));
    proxy.ask(&["plugin", "stop", "auth"]);
    assert_eq!(until("stopped")["reason"], "order: stop");
    follower.kill().unwrap();
    follower.wait().unwrap();

    let Said { code, out, err } = proxy.ask(&["events"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains("Z  auth  stopped -> starting: first start\n"), "{out}");
    assert!(out.ends_with("Z  auth  backing_off -> stopped: order: stop\n"), "{out}");
    let Said { out, .. } = proxy.ask(&["status", "auth"]);
    assert!(out.contains("\n\nexit of auth, ") && out.contains("while awaiting the handshake"), "{out}");
    assert_eq!(proxy.end(), Some(0));
}

#[test]
fn plugins_take_orders_and_the_exit_code_says_what_came_of_them() {
    let proxy = Running::start(&[]);
    let Said { code, out, err } = proxy.ask(&["plugin", "stop", "auth"]);
    assert_eq!((code, &*out, &*err), (0, "auth: stopped\n", ""));
    let Said { code, err, .. } = proxy.ask(&["plugin", "stop", "auht"]);
    assert_eq!((code, &*err), (1, "error: no plugin is called `auht`\n  did you mean `auth`?\n"));
    for verb in ["start", "restart"] {
        let Said { code, out, err } = proxy.ask(&["plugin", verb, "auth"]);
        assert_eq!((code, &*out), (1, ""));
        assert!(err.starts_with("error: plugin `auth` is not serving: backing off, next attempt in "), "{err}");
        assert!(err.contains("exit status 3") && err.contains("    | no key"), "{err}");
    }
    let Said { code, out, .. } = proxy.ask(&["plugin", "restart", "auth", "--json"]);
    assert_eq!((code, &value(&out)["instances"][0]["state"]), (1, &json!("backing_off")));
    assert_eq!(proxy.end(), Some(0));
}

#[test]
fn the_log_is_text_or_json_as_asked_for() {
    let mut proxy = Running::start(&["--log-format", "json", "--log", "palisade=debug"]);
    proxy.signal(Signal::SIGINT);
    let event = value(&proxy.until(|line| line.contains("draining")));
    assert_eq!((&event["message"], &event["signal"]), (&json!("draining"), &json!("SIGINT")));
}

/// As with `palisade run 2>&1 | head -1`: the log's reader goes, the proxy stays.
#[test]
fn a_proxy_outlives_the_reader_of_its_log() {
    let mut proxy = Running::start(&[]);
    proxy.log = None;
    assert_eq!(proxy.ask(&["plugin", "stop", "auth"]).code, 0, "this logs lines that can't be written");
    assert_eq!(proxy.ask(&["status"]).code, 0);
    assert_eq!(proxy.end(), Some(0));
}
