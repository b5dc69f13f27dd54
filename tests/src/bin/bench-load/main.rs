//! Loads that neither wrk nor h2load can make, for the benchmark.
//!
//! ```text
//! bench-load full|resumed PORT CERTIFICATE CONNECTIONS SECONDS    # TLS 1.3 handshakes, and nothing more
//! bench-load rate PORT PATH USER STATUS CONNECTIONS SECONDS RATE  # an open loop, evenly spread
//! ```
//!
//! Prints what `wrk.lua` prints: one line of JSON, times in microseconds.

#![allow(clippy::unwrap_used, reason = "a tool of the tests fails by panicking")]
#![allow(clippy::print_stdout, reason = "its result")]

use std::thread;
use std::time::{Duration, Instant};

mod handshakes;
mod rate;

/// What one connection, or one after the other, came to.
#[derive(Default)]
struct Tally {
    times: Vec<Duration>,
    bytes: u64,
    wrong: u64,
    errors: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (tallies, took) = match words.as_slice() {
        [kind @ ("full" | "resumed"), port, certificate, connections, seconds] => {
            let load = handshakes::Load::new(*kind == "resumed", number(port), certificate.as_ref());
            together(number(connections), seconds, |_, end| load.run(end))
        }
        ["rate", port, path, user, status, connections, seconds, rate] => {
            let head = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nuser: {user}\r\n\r\n");
            let load = rate::Load { port: number(port), head, status: (*status).to_owned() };
            let (connections, rate): (u32, f64) = (number(connections), rate.parse().unwrap());
            let each = Duration::from_secs_f64(f64::from(connections) / rate);
            together(1, seconds, |start, end| load.run(connections, start, each, end))
        }
        _ => panic!("see the comment at the top of bench-load"),
    };
    print(tallies, took);
}

fn number<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
}

/// Runs `work` in as many threads, which all begin and end at the same instants.
fn together(count: u32, seconds: &str, work: impl Fn(Instant, Instant) -> Tally + Sync) -> (Vec<Tally>, Duration) {
    // How late a sleeping thread may be woken, in nanoseconds; 50 us if nobody says otherwise. Threads inherit it.
    std::fs::write("/proc/self/timerslack_ns", "1000").unwrap();
    // Time to get all threads going.
    let start = Instant::now() + Duration::from_millis(20);
    let end = start + Duration::from_secs_f64(number(seconds));
    let tallies = thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(|| work(start, end))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (tallies, start.elapsed())
}

fn print(tallies: Vec<Tally>, took: Duration) {
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (bytes, wrong, errors) = (sum(|tally| tally.bytes), sum(|tally| tally.wrong), sum(|tally| tally.errors));
    let mut times: Vec<Duration> = tallies.into_iter().flat_map(|tally| tally.times).collect();
    times.sort_unstable();
    let at = |thousandth: usize| times.get(times.len() * thousandth / 1000).map_or(0, Duration::as_micros);
    println!(
        r#"{{"requests":{},"bytes":{bytes},"us":{},"status_errors":{wrong},"errors":{errors},"p50":{},"p99":{},"p999":{}}}"#,
        times.len(),
        took.as_micros(),
        at(500),
        at(990),
        at(999),
    );
}
