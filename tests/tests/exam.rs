//! Each request gets its own verdict and its own answer, and nobody else's, whoever leaves when.
//!
//! Clients of HTTP/1 and HTTP/2 ask all the time, each request with a number of its own. Two plugins answer after random
//! pauses, one call by call and one in batches: every fifth number is denied, the others get it back in a header, on
//! their way to the upstream and on the way back. So a verdict or an answer that is another request's is seen, at both
//! ends. Three of ten requests are given up: within their head, within their body, while they are judged, within the
//! answer. All the others have to be answered as they should. In the end, descriptors, threads, tasks and memory are what
//! they were.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and tells its figures")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use palisade_tests::{Proxy, eventually, fake, process, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Of each protocol.
const CLIENTS: u64 = 32;

/// Clients that share a connection of HTTP/2.
const SHARING: u64 = 4;

/// Longest pause of one plugin.
const PAUSE: u64 = 8;

/// What the clients and the upstream have seen.
#[derive(Default)]
struct Tally {
    /// The next request's number.
    next: AtomicU64,
    answered: AtomicU64,
    denied: AtomicU64,
    given_up: AtomicU64,
    forwarded: AtomicU64,
}

impl Tally {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_denied(id: u64) -> bool {
    id.is_multiple_of(5)
}

/// Answers with the number it was asked with, in bodies of many sizes, and is told of nobody that was denied.
async fn upstream(tally: Arc<Tally>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let tally = Arc::clone(&tally);
            let service = service_fn(move |request| answer(request, Arc::clone(&tally)));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn answer(request: Request<Incoming>, tally: Arc<Tally>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let number = |name: &str| request.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
    let (id, size) = (number("x-id"), number("x-size"));
    let path = request.uri().path().to_owned();
    let right = number("x-echo-1") == id && number("x-echo-2") == id && !is_denied(id) && path == format!("/{id}");
    // Whoever reads the log sees it, whatever becomes of the answer.
    assert!(right, "the upstream got {request:?}");
    // A client that left takes its request with it.
    let body = request.into_body().collect().await?.to_bytes();
    assert!(body.iter().all(|byte| *byte == filler(id)), "another's body for {id}");
    Tally::count(&tally.forwarded);
    let mut text = format!("{id} {}\n", body.len()).into_bytes();
    text.resize(text.len() + usize::try_from(size).unwrap(), filler(id));
    Ok(Response::new(Full::new(text.into())))
}

/// What the bodies of a request and its answer are made of.
fn filler(id: u64) -> u8 {
    b'a' + u8::try_from(id % 26).unwrap()
}

/// What is asked, and what becomes of it.
struct Question {
    id: u64,
    /// Bytes of the request's body.
    body: usize,
    /// Bytes of the answer's.
    size: usize,
    end: End,
}

/// How far a client goes.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Answered,
    /// Leaves after so many percent of what it has to send.
    Sending(usize),
    /// Leaves so long after it has sent all.
    Waiting(Duration),
    /// Leaves after so many bytes of the answer.
    Reading(usize),
}

impl Question {
    fn new(tally: &Tally) -> Self {
        let size = |usual: usize, large: usize| if fastrand::u8(..8) == 0 { fastrand::usize(..large) } else { usual };
        let end = match fastrand::u8(..10) {
            0 => End::Sending(fastrand::usize(..100)),
            1 => End::Waiting(Duration::from_micros(fastrand::u64(..2 * PAUSE * 1000))),
            2 => End::Reading(fastrand::usize(..20_000)),
            _ => End::Answered,
        };
        let id = tally.next.fetch_add(1, Ordering::Relaxed);
        Self { id, body: size(0, 20_000), size: size(10, 60_000), end }
    }

    fn pause() -> String {
        format!("sleep-{}", fastrand::u64(..PAUSE))
    }

    /// Fails unless this is the answer.
    fn check(&self, tally: &Tally, status: u16, echoes: [Option<&str>; 2], body: &[u8]) {
        let id = self.id.to_string();
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]);
        if is_denied(self.id) {
            assert!(status == 403 && shown == id.as_str(), "{id} was answered {status} {echoes:?} {shown}");
            return Tally::count(&tally.denied);
        }
        let mut expected = format!("{id} {}\n", self.body).into_bytes();
        expected.resize(expected.len() + self.size, filler(self.id));
        let right = status == 200 && echoes == [Some(id.as_str()); 2] && body == expected;
        assert!(right, "{id} was answered {status} {echoes:?} {shown}");
        Tally::count(&tally.answered);
    }
}

/// Asks over HTTP/1.1 until all has been asked, over one connection for as long as nothing is given up.
async fn client_of_http1(address: SocketAddr, tally: Arc<Tally>, total: u64) {
    let mut connection = None;
    while tally.next.load(Ordering::Relaxed) < total {
        let question = Question::new(&tally);
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => {
                let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
                stream.set_nodelay(true).unwrap();
                stream
            }
        };
        let id = question.id;
        let mut bytes = format!(
            "POST /{id} HTTP/1.1\r\nHost: exam\r\nX-Id: {id}\r\nX-Size: {}\r\nX-Fake: {}\r\nContent-Length: {}\r\n\r\n",
            question.size,
            Question::pause(),
            question.body
        )
        .into_bytes();
        bytes.resize(bytes.len() + question.body, filler(id));
        if let End::Sending(percent) = question.end {
            bytes.truncate(bytes.len() * percent / 100);
        }
        // A denial may come before the body has gone out; what comes is read either way.
        let _refused = soon("sending", stream.write_all(&bytes)).await;
        match question.end {
            End::Sending(_) => Tally::count(&tally.given_up),
            End::Waiting(time) => {
                tokio::time::sleep(time).await;
                Tally::count(&tally.given_up);
            }
            End::Reading(most) => {
                let mut piece = vec![0; most.max(1)];
                soon("a piece of an answer", stream.read(&mut piece)).await.ok();
                Tally::count(&tally.given_up);
            }
            End::Answered => {
                let (head, body) = soon(format!("an answer to {id}"), reply(&mut stream)).await;
                let mut lines = head.lines();
                let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
                let fields: HashMap<_, _> = lines.filter_map(|line| line.split_once(": ")).collect();
                let echoes = ["x-echo-1", "x-echo-2"].map(|name| fields.get(name).copied());
                question.check(&tally, status, echoes, &body);
                if fields.get("connection") != Some(&"close") {
                    connection = Some(stream);
                }
            }
        }
    }
}

/// Head and body of an answer. Empty where there is none.
async fn reply(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if !stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
            return Default::default();
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length && stream.read_buf(&mut body).await.is_ok_and(|count| count > 0) {}
    (head, body)
}

type Body = BoxBody<Bytes, Broken>;

/// A body that is given up.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("given up")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn connection_of_http2(address: SocketAddr) -> http2::SendRequest<Body> {
    let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// As [`client_of_http1`], over streams of a connection that others use as well.
async fn client_of_http2(mut sender: http2::SendRequest<Body>, tally: Arc<Tally>, total: u64) {
    while tally.next.load(Ordering::Relaxed) < total {
        let question = Question::new(&tally);
        let id = question.id;
        let whole = Bytes::from(vec![filler(id); question.body]);
        let body = match question.end {
            End::Sending(percent) => {
                let part = whole.slice(..whole.len() * percent / 100);
                // A frame of nothing is what floods are made of.
                let part = (!part.is_empty()).then_some(Ok(Frame::data(part)));
                StreamBody::new(tokio_stream::iter(part.into_iter().chain([Err(Broken)]))).boxed()
            }
            _ if whole.is_empty() => Empty::new().map_err(Broken::from).boxed(),
            _ => Full::new(whole).map_err(Broken::from).boxed(),
        };
        let request = Request::post(format!("http://exam/{id}"))
            .header("x-id", id)
            .header("x-size", question.size)
            .header("x-fake", Question::pause())
            .body(body)
            .unwrap();
        let answer = sender.send_request(request);
        match question.end {
            End::Sending(_) => {
                // How it is told that its body broke is the proxy's affair, and whether it had been denied before that.
                soon(format!("the end of {id}"), answer).await.ok();
                Tally::count(&tally.given_up);
            }
            End::Waiting(time) => {
                tokio::time::timeout(time, answer).await.ok();
                Tally::count(&tally.given_up);
            }
            End::Reading(most) => {
                let answer = soon(format!("an answer to {id}"), answer).await;
                let mut body = answer.unwrap_or_else(|error| panic!("no answer to {id}: {error:?}")).into_body();
                let mut read = 0;
                while read < most {
                    let Some(Ok(frame)) = soon("a frame", body.frame()).await else { break };
                    read += frame.data_ref().map_or(0, Bytes::len);
                }
                Tally::count(&tally.given_up);
            }
            End::Answered => {
                let answer = soon(format!("an answer to {id}"), answer).await;
                let answer = answer.unwrap_or_else(|error| panic!("no answer to {id}: {error:?}"));
                let (head, body) = answer.into_parts();
                let body = soon(format!("the body of {id}"), body.collect()).await;
                let body = body.unwrap_or_else(|error| panic!("half an answer to {id}: {error:?}")).to_bytes();
                let echo = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
                question.check(&tally, head.status.as_u16(), [echo("x-echo-1"), echo("x-echo-2")], &body);
            }
        }
    }
}

/// What of the proxy grows when something is forgotten.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    tasks: u64,
    memory: u64,
}

async fn footprint(proxy: &Proxy) -> Footprint {
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", proxy.pid())).unwrap().count();
    Footprint {
        // Before a connection of our own is made to ask.
        descriptors: entries("fd"),
        threads: entries("task"),
        tasks: proxy.metric("palisade_tasks", &[]).await,
        memory: process::memory(proxy.pid()),
    }
}

/// All clients at once, until `total` requests have been made in all.
async fn sit(proxy: &Proxy, tally: &Arc<Tally>, total: u64) {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(tokio::spawn(client_of_http1(proxy.address(), Arc::clone(tally), total)));
    }
    for _ in 0..CLIENTS / SHARING {
        let sender = connection_of_http2(proxy.address()).await;
        for _ in 0..SHARING {
            clients.push(tokio::spawn(client_of_http2(sender.clone(), Arc::clone(tally), total)));
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    proxy.until_metric("palisade_connections", &[], 0).await;
}

async fn exam(total: u64) {
    let tally = Arc::new(Tally::default());
    let plugin = |name: &str, echo: &str, actions: &[&str]| {
        format!("  {name}: {{command: {}, timeout: 20s, config: {{echo: {echo}}}}}\n", fake(actions))
    };
    let yaml = format!(
        "listeners: [{{name: web, address: 127.0.0.1:0}}]
routes: [{{filters: [single, batched], upstream: app}}]
upstreams: {{app: {{endpoints: ['{}'], idle_timeout: 1s}}}}
plugins:
{}{}",
        upstream(Arc::clone(&tally)).await,
        plugin("single", "x-echo-1", &["serve"]),
        plugin("batched", "x-echo-2", &["needs:batches", "serve"])
    );
    let proxy = Proxy::start(&yaml).await;
    // Those of each worker are among them.
    let at_first = descriptors_of_sockets(&proxy);
    // What there is when everything has been in use once.
    sit(&proxy, &tally, total / 10).await;
    eventually("connections to the upstream end", || descriptors_of_sockets(&proxy) < at_first + 5).await;
    let before = footprint(&proxy).await;
    let started = Instant::now();
    sit(&proxy, &tally, total).await;
    let time = started.elapsed();
    let all = Footprint { descriptors: before.descriptors, tasks: before.tasks + 4, ..before };
    let deadline = Instant::now() + palisade_tests::LONG;
    let after = loop {
        let now = footprint(&proxy).await;
        let back = now.descriptors <= all.descriptors && now.tasks <= all.tasks && now.threads <= all.threads + 2;
        if back || Instant::now() > deadline {
            assert!(back, "{before:?} before, {now:?} after\n{}", proxy.log());
            break now;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let grown = after.memory.saturating_sub(before.memory) / 1024;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (answered, denied, given_up) = (count(&tally.answered), count(&tally.denied), count(&tally.given_up));
    assert_eq!(answered + denied + given_up, count(&tally.next));
    assert!(given_up > total / 5 && denied > total / 10, "{given_up} {denied}");
    // Every answer but for those given up has been made by an upstream that was asked once.
    assert!(count(&tally.forwarded) >= answered);
    assert_eq!(proxy.metric("palisade_plugin_restarts_total", &[]).await, 0);
    assert!(grown < 32 << 10, "{grown} KiB more");
    eprintln!(
        "{answered} answered, {denied} denied, {given_up} given up in {:.0} s ({:.0} requests a second); {grown} KiB more, \
         {before:?} before, {after:?} after",
        time.as_secs_f64(),
        0.9 * total as f64 / time.as_secs_f64()
    );
}

fn descriptors_of_sockets(proxy: &Proxy) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().flatten();
    entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_requests_get_their_own_verdicts() {
    exam(20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make exam"]
async fn a_million_requests_get_their_own_verdicts() {
    exam(1_000_000).await;
}
