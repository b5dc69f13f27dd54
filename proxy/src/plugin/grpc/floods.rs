//! Plugins that send without end, from threads of their own: what comes of the calls to them, and that another plugin's
//! are answered by the same worker.
//!
//! What each of h2's own bounds ends is named, as is what nothing ends: there the call is late, and nothing is kept. How
//! much of it is looked at in a turn is the connection's to bound (`palisade_supervisor`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write, copy, sink};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_util::future::join_all;
use palisade_plugin_proto::socket::UnixSocket;

use super::scripted::*;
use super::*;

static CALL: Rpc = Rpc::new(|| Uri::from_static("http://localhost/test.Service/Call"));

/// What a plugin sends of the stream of a call: at first, and then again and again.
type Flood = (fn(u32) -> Vec<u8>, fn(u32) -> Vec<u8>);

/// With little more, it would be the machine's speed that is tested.
const FLOOD: usize = 128 << 10;

const END_HEADERS: u8 = 4;

/// `:status: 100`, and what puts a field of 4,000 bytes, or of two, into the table of header compression.
const INTERIM: &[u8] = &[8, 3, b'1', b'0', b'0'];
const LARGE: &[u8] = &[0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
const SMALL: &[u8] = &[0x40, 1, b'x', 1, b'a'];
/// The field that was put there last.
const AGAIN: u8 = 0xbe;

fn head(call: u32) -> Vec<u8> {
    // `:status: 200`, and `content-type`.
    frame(HEADERS, END_HEADERS, call, &[&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat())
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

/// A connection to a plugin that is a thread.
async fn line_to(serve: impl Fn(UnixStream) -> Option<()> + Send + Sync + Clone + 'static) -> Line {
    let dial: Dial = Box::new(move || {
        let (near, far) = UnixStream::pair().unwrap();
        let serve = serve.clone();
        std::thread::spawn(move || serve(far));
        near.set_nonblocking(true).unwrap();
        let near = UnixSocket::new(tokio::net::UnixStream::from_std(near).unwrap()).unwrap();
        async move { Ok(Box::new(near) as Box<dyn Stream>) }.boxed()
    });
    Line::Own(Arc::new(Own::open(dial).await.unwrap()))
}

fn begin(stream: &mut UnixStream) -> Option<()> {
    stream.read_exact(&mut [0; 24]).ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).ok()
}

/// Reads frames until one is the head of a call, and returns its stream; `None`: it is over.
fn next_call(stream: &mut impl Read) -> Option<u32> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        copy(&mut stream.take(length.into()), &mut sink()).ok()?;
        if head[3] == HEADERS {
            return Some(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        }
    }
}

fn flood(mut stream: UnixStream, (first, again): Flood) -> Option<()> {
    begin(&mut stream)?;
    let call = next_call(&mut stream)?;
    let mut reads = stream.try_clone().ok()?;
    let reading = std::thread::spawn(move || copy(&mut reads, &mut sink()));
    stream.write_all(&first(call)).ok()?;
    let again = again(call);
    for _ in 0..FLOOD / again.len() {
        stream.write_all(&again).ok()?;
    }
    // Until the other side ends it.
    reading.join().ok()?.ok().map(drop)
}

fn serve_well(mut stream: UnixStream) -> Option<()> {
    begin(&mut stream)?;
    loop {
        let call = next_call(&mut stream)?;
        let status = [&[0, 11][..], b"grpc-status", &[1], b"0"].concat();
        let (data, end) = (frame(DATA, 0, call, &framed(b"answered")), frame(HEADERS, END_HEADERS | 1, call, &status));
        stream.write_all(&[head(call), data, end].concat()).ok()?;
    }
}

async fn ask(line: &Line, time: Duration) -> &'static str {
    match line.call(&CALL, b"asked".to_vec(), 100_000, Instant::now() + time).await {
        Ok(_) => "ok",
        Err(CallError::Timeout) => "late",
        Err(CallError::Lost(_)) => "lost",
        Err(CallError::Unsent(_)) => "unsent",
        Err(CallError::Unreadable(_)) => "unreadable",
        Err(_) => "other",
    }
}

#[tokio::test]
async fn a_flood_costs_its_own_plugin_its_calls() {
    let floods: [(&str, &str, Flood); 27] = [
        ("PING", "late", (nothing, |_| frame(6, 0, 0, &[7; 8]))),
        ("PING that nobody asked for", "late", (nothing, |_| frame(6, 1, 0, &[7; 8]))),
        ("SETTINGS", "late", (nothing, |_| frame(SETTINGS, 0, 0, &[]))),
        ("SETTINGS that nobody asked for", "lost", (nothing, |_| frame(SETTINGS, 1, 0, &[]))),
        (
            "SETTINGS of windows",
            "late",
            (nothing, |_| {
                [frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])].concat()
            }),
        ),
        (
            "SETTINGS of header tables",
            "late",
            (nothing, |_| {
                [frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]), frame(SETTINGS, 0, 0, &[0, 1, 0xff, 1, 0, 0])].concat()
            }),
        ),
        ("WINDOW_UPDATE", "late", (nothing, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("WINDOW_UPDATE of the stream", "late", (nothing, |call| frame(WINDOW_UPDATE, 0, call, &[0, 0, 0, 1]))),
        ("windows that are too large", "lost", (nothing, |_| frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]))),
        ("RST_STREAM of no call", "lost", (nothing, |call| frame(RST_STREAM, 0, call + 2, &[0, 0, 0, 8]))),
        ("RST_STREAM", "lost", (nothing, |call| frame(RST_STREAM, 0, call, &[0, 0, 0, 8]))),
        ("PRIORITY", "late", (nothing, |call| frame(2, 0, call, &[0, 0, 0, 0, 1]))),
        ("PUSH_PROMISE", "lost", (nothing, |call| frame(5, END_HEADERS, call, &[0, 0, 0, 2, 0x82, 0x84, 0x86]))),
        ("no frame of HTTP/2", "late", (nothing, |_| frame(77, 0, 0, &[]))),
        ("interim heads", "late", (nothing, |call| frame(HEADERS, END_HEADERS, call, INTERIM))),
        (
            "large interim heads",
            "late",
            (
                |call| frame(HEADERS, END_HEADERS, call, &[INTERIM, LARGE, &[b'a'; 4000]].concat()),
                |call| frame(HEADERS, END_HEADERS, call, &[INTERIM, &[AGAIN; 3]].concat()),
            ),
        ),
        (
            "interim heads of many fields",
            "late",
            (
                |call| frame(HEADERS, END_HEADERS, call, &[INTERIM, SMALL].concat()),
                |call| frame(HEADERS, END_HEADERS, call, &[INTERIM, &[AGAIN; 400]].concat()),
            ),
        ),
        (
            "a head that is small until it is read",
            "lost",
            (
                |call| frame(HEADERS, END_HEADERS, call, &[INTERIM, LARGE, &[b'a'; 4000]].concat()),
                |call| frame(HEADERS, END_HEADERS, call, &[&[0x88][..], &[AGAIN; 16_000]].concat()),
            ),
        ),
        ("CONTINUATION", "lost", (|call| frame(HEADERS, 0, call, &[0x88]), |call| frame(9, 0, call, &[]))),
        (
            "large CONTINUATION",
            "lost",
            (|call| frame(HEADERS, 0, call, &[0x88]), |call| frame(9, 0, call, &[LARGE, &[b'a'; 4000]].concat())),
        ),
        ("trailers that end nothing", "unreadable", (head, |call| frame(HEADERS, END_HEADERS, call, SMALL))),
        (
            "trailers without an end",
            "lost",
            (|call| [head(call), frame(HEADERS, 1, call, SMALL)].concat(), |call| frame(9, 0, call, SMALL)),
        ),
        ("empty DATA", "lost", (head, |call| frame(DATA, 0, call, &[]))),
        ("padding", "lost", (head, |call| frame(DATA, 8, call, &[3, 0, 0, 0]))),
        ("messages", "unreadable", (head, |call| frame(DATA, 0, call, &framed(&[])))),
        ("GOAWAY that stays", "late", (nothing, |_| goaway(u32::MAX >> 1))),
        ("GOAWAY", "unsent", (nothing, |_| goaway(0))),
    ];
    let (good, long) = (&line_to(serve_well).await, Duration::from_secs(60));
    let flooded = floods.map(|(name, expected, what)| async move {
        let bad = line_to(move |stream| flood(stream, what)).await;
        let time = if expected == "late" { Duration::from_millis(500) } else { long };
        assert_eq!(ask(&bad, time).await, expected, "{name}");
        assert_eq!(ask(good, long).await, "ok", "{name}");
    });
    join_all(flooded).await;
}

#[tokio::test]
async fn whoever_waits_for_a_plugin_that_reads_nothing_learns_of_its_end() {
    let (end, ends) = std::sync::mpsc::channel();
    let ends = Arc::new(Mutex::new(ends));
    let (said, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let line = line_to(move |mut stream| {
        begin(&mut stream)?;
        stream.write_all(&takes_anything()).ok()?;
        said.send(()).ok()?;
        ends.lock().unwrap().recv().ok()
    })
    .await;
    taken.recv().await.unwrap();
    let large = || line.call(&CALL, vec![7; 1 << 20], 100_000, Instant::now() + Duration::from_millis(500));
    assert_eq!(tokio::join!(large(), large()), (Err(CallError::Timeout), Err(CallError::Timeout)));
    let (waited, ()) = tokio::join!(ask(&line, Duration::from_secs(60)), async { end.send(()).unwrap() });
    assert_eq!(waited, "unsent");
}
