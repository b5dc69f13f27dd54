//! A plugin that misbehaves by name: `fake-plugin ACTION...`, done in turn. Without an action that ends it, it exits.
//!
//! | action | what it does |
//! | --- | --- |
//! | `print:TEXT`, `raw:TEXT` | prints to stdout, with and without a line end; `\n \r \t \\ \xHH` and `$DIR` mean what they say |
//! | `repeat:N:TEXT` | prints a line N times |
//! | `drip` | prints one byte every 10 ms, for ever |
//! | `log:TEXT` | prints a line to stderr |
//! | `flood` | prints to stderr as fast as it can, in the background |
//! | `close-stdout` | closes it |
//! | `touch:NAME` | makes a file in the socket directory |
//! | `dig:N` | makes directories in the socket directory, N deep |
//! | `sleep:MS`, `stay` | waits, or waits for ever |
//! | `exit:CODE`, `signal:NAME` | ends itself |
//! | `exit-after:MS` | exits with 3 after a while, in the background |
//! | `ignore-term` | lives on after SIGTERM |
//! | `child`, `child-apart`, `child-bare`, `child-free` | starts a process that holds stderr, `-apart` in a session of its own, `-bare` without an environment, `-free` both; appends its pid to the file `pids` |
//! | `escape:WAY` | tries to get out of its sandbox, see `escape.rs` |
//! | `needs:body`, `needs:response`, `needs:batches`, `needs:one-stream` | what it asks for when it describes itself |
//! | `stream-socket:NAME` | what it says of a second socket for batches |
//! | `beside:NAME` | the same, and serves batches there, their streams counted from 1001 |
//! | `link:NAME:PATH`, `hard-link:NAME:PATH` | makes a link in the socket directory |
//! | `calls:N` | how many calls it takes at a time |
//! | `mute` | listens, says so, and never speaks |
//! | `serve` | serves the native contract as it should; requests choose what else happens, see `filter.rs` |
//! | `serve-bare` | the same without health, controller and certificates, and deaf to SIGTERM after `ignore-term`; batches as `batches.rs` says |
//! | `refuse-config:TEXT` | `serve-bare` that refuses its configuration |
//! | `serve-mosn` | serves MOSN's contract on TCP, without anything else |
//! | `serve-frames` | the same on a unix socket, with answers that may be no gRPC, see `frames.rs` |

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::exit, reason = "a fake for tests")]

mod bare;
mod batches;
mod certificates;
mod escape;
mod filter;
mod frames;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{Shutdown, UnixAddr, getsockname, shutdown};
use palisade_plugin_proto::env::UNIX_SOCKET_DIR;
use palisade_plugin_proto::serve::Plugin;
use palisade_plugin_proto::v1::{FilterNeeds, RequestPart};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let mut needs = FilterNeeds::default();
    let mut calls = 0;
    for action in std::env::args().skip(1) {
        let (name, value) = action.split_once(':').unwrap_or((&action, ""));
        match name {
            "print" => print(&[&unescape(value)[..], b"\n"].concat()),
            "raw" => print(&unescape(value)),
            "repeat" => {
                let (times, text) = value.split_once(':').unwrap();
                print(&[&unescape(text)[..], b"\n"].concat().repeat(times.parse().unwrap()));
            }
            "drip" => loop {
                print(b"x");
                std::thread::sleep(Duration::from_millis(10));
            },
            "log" => eprintln!("{value}"),
            "flood" => drop(std::thread::spawn(flood)),
            "close-stdout" => nix::unistd::close(1).unwrap(),
            "touch" => drop(std::fs::File::create(socket_dir().join(value)).unwrap()),
            "dig" => dig(value.parse().unwrap()),
            "sleep" => tokio::time::sleep(Duration::from_millis(value.parse().unwrap())).await,
            "stay" => std::future::pending().await,
            "exit" => std::process::exit(value.parse().unwrap()),
            "signal" => raise(value.parse().unwrap()).unwrap(),
            "exit-after" => {
                let pause = Duration::from_millis(value.parse().unwrap());
                std::thread::spawn(move || {
                    std::thread::sleep(pause);
                    std::process::exit(3)
                });
            }
            // Once tokio has a handler, the default one, which ends the process, is gone for good.
            "ignore-term" => std::mem::forget(signal(SignalKind::terminate()).unwrap()),
            "child" => child(&["stay"], false),
            "child-apart" => child(&["leave-session", "stay"], false),
            "child-bare" => child(&["stay"], true),
            "child-free" => child(&["leave-session", "stay"], true),
            "leave-session" => drop(nix::unistd::setsid().unwrap()),
            "escape" => escape::escape(value),
            "needs" => match value {
                "body" => {
                    needs.request_parts = vec![RequestPart::Headers.into(), RequestPart::Body.into()];
                }
                "response" => needs.response_phase = true,
                "batches" => needs.batches = true,
                "one-stream" => needs.one_stream = true,
                other => panic!("it can't need {other:?}"),
            },
            "stream-socket" => value.clone_into(&mut needs.stream_socket),
            "beside" => {
                value.clone_into(&mut needs.stream_socket);
                bare::serve_beside(value);
            }
            "link" | "hard-link" => {
                let (link, path) = value.split_once(':').unwrap();
                let link = socket_dir().join(link);
                match name {
                    "link" => std::os::unix::fs::symlink(path, link).unwrap(),
                    _ => std::fs::hard_link(path, link).unwrap(),
                }
            }
            "calls" => calls = value.parse().unwrap(),
            "mute" => mute().await,
            "serve" => {
                let plugin = Plugin::new("fake").version("1").max_concurrent_calls(calls);
                return plugin.filter(filter::Fake { needs }).certificates(certificates::load).serve().await;
            }
            "serve-bare" => bare::serve(needs, None).await,
            "serve-at" => bare::serve_at(needs, value).await,
            "refuse-config" => bare::serve(needs, Some(value.to_owned())).await,
            "serve-mosn" => bare::serve_mosn().await,
            "serve-frames" => frames::serve().await,
            other => panic!("no such action: {other:?}"),
        }
    }
    ExitCode::SUCCESS
}

fn socket_dir() -> PathBuf {
    std::env::var_os(UNIX_SOCKET_DIR).expect("a host started it").into()
}

/// Deeper than any path can say.
fn dig(depth: usize) {
    let here = std::env::current_dir().unwrap();
    std::env::set_current_dir(socket_dir()).unwrap();
    for _ in 0..depth {
        std::fs::create_dir("d").unwrap();
        std::env::set_current_dir("d").unwrap();
    }
    std::env::set_current_dir(here).unwrap();
}

/// Prints to stdout at once.
fn print(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    // The host may have stopped reading.
    let _closed = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

fn unescape(text: &str) -> Vec<u8> {
    let text = match std::env::var(UNIX_SOCKET_DIR) {
        Ok(dir) => text.replace("$DIR", &dir),
        Err(_) => text.to_owned(),
    };
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            bytes.extend(character.to_string().bytes());
            continue;
        }
        match rest.next().unwrap() {
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            other => panic!("no such escape: {other:?}"),
        }
    }
    bytes
}

fn flood() {
    let line = format!("[INFO] {}\n", "flood ".repeat(100));
    let block = line.repeat(100);
    while std::io::stderr().lock().write_all(block.as_bytes()).is_ok() {}
}

#[allow(clippy::zombie_processes, reason = "it outlives this process, that is what it is for")]
fn child(actions: &[&str], bare: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(actions).stdin(Stdio::null()).stdout(Stdio::null());
    if bare {
        command.env_clear();
    }
    let child = command.spawn().unwrap();
    let mut pids = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open("pids").unwrap();
    writeln!(pids, "{}", child.id()).unwrap();
}

/// Listens and says so; whoever connects waits.
async fn mute() -> ! {
    let path = socket_dir().join("plugin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    print(format!("1|1|unix|{}|grpc\n", path.display()).as_bytes());
    let mut kept = Vec::new();
    loop {
        kept.push(listener.accept().await.unwrap());
    }
}

/// Ends the plugin as a crash of one with much to clean up does: its connections are gone some time before it is.
fn crash_slowly() -> ! {
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let fd = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // Those of the runtime have no name.
        if getsockname::<UnixAddr>(fd).is_ok_and(|name| name.path().is_some()) {
            shutdown(fd, Shutdown::Both).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(400));
    crash()
}

/// Ends the plugin as a crash does.
fn crash() -> ! {
    raise(Signal::SIGKILL).unwrap();
    unreachable!("SIGKILL has no handler")
}
