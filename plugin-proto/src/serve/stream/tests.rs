//! A host that speaks HTTP/2 by itself, to say what no host should.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::mpsc;

use bytes::Buf;
use h2::client::{ResponseFuture, SendRequest};
use http::Method;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::Request as Call;

use super::super::batches::{MOST_WAITING, SLOW};
use super::super::services::LifecycleService;
use super::super::{Config, Error, Filter, aside, batches};
use super::*;
use crate::v1::{self, lifecycle_server::Lifecycle};
use crate::v1::{
    CheckAnswer, CheckCall, CheckRequestRequest, CheckRequestResponse, ConfigureRequest, DescribeResponse,
    check_answer, check_call, check_request_response,
};

/// Connections at a time.
const MOST: u16 = 16;

const SOON: Duration = Duration::from_secs(60);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The head of a stream of batches, in HPACK with nothing compressed.
const OPEN: [&[u8]; 8] = [
    // `:method: POST` and `:scheme: http`, as they stand in the table of RFC 7541, then `:authority`.
    &[0x83, 0x86, 0x01, 9],
    b"localhost",
    // `:path`
    &[0x04, PATH.len() as u8],
    PATH.as_bytes(),
    &[0x00, 12],
    b"content-type",
    &[16],
    b"application/grpc",
];

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it did not happen")
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Does what the path says.
struct Scripted {
    /// Of the program.
    runtime: tokio::runtime::Id,
    /// Made before, since a filter that takes long is treated otherwise.
    large: Bytes,
    judged: Arc<AtomicU32>,
    /// A call that blocks says so, and does until it is let go.
    blocks: mpsc::SyncSender<mpsc::Sender<()>>,
    /// A call that waits says so, and does until it is let go.
    waits: tokio::sync::mpsc::UnboundedSender<tokio::sync::oneshot::Sender<()>>,
}

impl Filter for Scripted {
    async fn check_request(&self, request: &v1::Request, _: &Config) -> Result<CheckRequestResponse, Error> {
        self.judged.fetch_add(1, Ordering::SeqCst);
        assert_eq!(Handle::current().id(), self.runtime);
        match request.path.as_str() {
            "/runtime" => {
                tokio::task::block_in_place(|| ());
                tokio::time::sleep(Duration::from_millis(1)).await;
                tokio::spawn(tokio::task::yield_now()).await?;
                let current = std::thread::current();
                assert_ne!(current.name(), Some("batches"), "it waits beside the stream");
            }
            "/block" => {
                let (sender, receiver) = mpsc::channel();
                self.blocks.send(sender)?;
                receiver.recv_timeout(SOON)?;
            }
            "/block_on" => drop(Handle::current().block_on(tokio::spawn(tokio::task::yield_now()))?),
            "/wait" => {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                self.waits.send(sender)?;
                receiver.await?;
            }
            "/slow" => tokio::time::sleep(Duration::from_millis(300)).await,
            "/panic" => panic!("as the test wants it"),
            "/large" => return Ok(denial(self.large.slice(..1 << 20))),
            "/huge" => return Ok(denial(self.large.clone())),
            _ => {}
        }
        Ok(CheckRequestResponse::allow())
    }
}

fn denial(body: Bytes) -> CheckRequestResponse {
    let verdict = check_request_response::Verdict::Deny(v1::Reply { body, ..v1::Reply::text(403, "") });
    CheckRequestResponse { verdict: Some(verdict), ..CheckRequestResponse::default() }
}

struct Plugin {
    _directory: TempDir,
    path: PathBuf,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
    judged: Arc<AtomicU32>,
    blocks: mpsc::Receiver<mpsc::Sender<()>>,
    waits: tokio::sync::mpsc::UnboundedReceiver<tokio::sync::oneshot::Sender<()>>,
}

impl Plugin {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stream.sock");
        let (shared, judged) = (Arc::new(Shared::new()), Arc::<AtomicU32>::default());
        configure(&shared, "one").await;
        let ((blocking, blocks), (waiting, waits)) = (mpsc::sync_channel(999), tokio::sync::mpsc::unbounded_channel());
        let runtime = Handle::current().id();
        let large = vec![b'x'; 3 << 20].into();
        let filter =
            Arc::new(Scripted { runtime, large, judged: Arc::clone(&judged), blocks: blocking, waits: waiting });
        let known = Arc::clone(&shared);
        let judge: Judge =
            Arc::new(move |batches| batches::serve(Arc::clone(&filter), Arc::clone(&known), batches).boxed());
        let serving = tokio::spawn(serve(UnixListener::bind(&path).unwrap(), judge, Arc::clone(&shared), MOST));
        Self { _directory: directory, path, shared, serving, judged, blocks, waits }
    }

    async fn connect(&self) -> Host {
        Host::over(UnixStream::connect(&self.path).await.unwrap()).await.unwrap()
    }

    /// One more call blocks by now.
    async fn blocked(&self) -> mpsc::Sender<()> {
        soon(async {
            loop {
                match self.blocks.try_recv() {
                    Ok(release) => break release,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await
    }

    async fn answers(&self) {
        self.connect().await.is_answered().await;
    }
}

async fn configure(shared: &Arc<Shared>, hash: &str) {
    let lifecycle = LifecycleService { description: DescribeResponse::default(), shared: Arc::clone(shared) };
    lifecycle.configure(Call::new(ConfigureRequest { config: None, hash: hash.to_owned() })).await.unwrap();
}

/// One connection.
struct Host {
    send: SendRequest<Bytes>,
    ping: h2::PingPong,
    /// How it ended.
    over: JoinHandle<Result<(), h2::Error>>,
}

impl Host {
    async fn over(stream: UnixStream) -> Result<Self, h2::Error> {
        let (send, mut connection) = h2::client::Builder::new().initial_window_size(1 << 20).handshake(stream).await?;
        let ping = connection.ping_pong().unwrap();
        Ok(Self { send, ping, over: tokio::spawn(connection) })
    }

    async fn request(&mut self, request: Request<()>) -> Result<Stream, h2::Error> {
        self.send = self.send.clone().ready().await?;
        let (response, send) = self.send.send_request(request, false)?;
        Ok(Stream { send, response: Some(response), body: None, pieces: Pieces::new(4 << 20) })
    }

    async fn open(&mut self) -> Stream {
        self.request(batches_request()).await.unwrap()
    }

    async fn is_answered(&mut self) {
        let mut stream = self.open().await;
        stream.ask(&[(1, "/")]);
        assert_eq!(stream.codes().await, [(1, 0)]);
    }

    /// Everything that was sent has been read, and what was to be done at once has been.
    async fn settled(&mut self) {
        for _ in 0..3 {
            soon(self.ping.ping(h2::Ping::opaque())).await.unwrap();
        }
    }
}

fn batches_request() -> Request<()> {
    let request = Request::builder().method(Method::POST).uri(format!("http://localhost{PATH}"));
    request.header(CONTENT_TYPE, "application/grpc").body(()).unwrap()
}

struct Stream {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    pieces: Pieces,
}

fn call(id: u64, path: &str, timeout: Duration) -> CheckCall {
    let request = v1::Request { path: path.to_owned(), ..v1::Request::default() };
    let call = check_call::Call::Request(CheckRequestRequest { context: None, request: Some(request) });
    CheckCall { id, timeout_micros: u64::try_from(timeout.as_micros()).unwrap(), call: Some(call) }
}

fn prefixed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

fn code(answer: &CheckAnswer) -> u32 {
    match answer.answer.as_ref().unwrap() {
        check_answer::Answer::Error(error) => error.code,
        _ => 0,
    }
}

impl Stream {
    fn ask(&mut self, calls: &[(u64, &str)]) {
        self.ask_by("one", calls.iter().map(|(id, path)| call(*id, path, SOON)));
    }

    fn ask_by(&mut self, hash: &str, calls: impl IntoIterator<Item = CheckCall>) {
        let batch = CheckBatch { config_hash: hash.to_owned(), calls: calls.into_iter().collect() };
        self.send.send_data(prefixed(&batch.encode_to_vec()), false).unwrap();
    }

    async fn body(&mut self) -> Result<&mut RecvStream, h2::Error> {
        if let Some(response) = self.response.take() {
            let response = soon(response).await?;
            assert_eq!(response.status(), 200);
            self.body = Some(response.into_body());
        }
        Ok(self.body.as_mut().unwrap())
    }

    /// The next message, or the status with which the stream has ended.
    async fn next(&mut self) -> Result<Result<CheckBatchAnswer, u32>, h2::Error> {
        loop {
            if let Some(message) = self.pieces.take().unwrap() {
                return Ok(Ok(CheckBatchAnswer::decode(message).unwrap()));
            }
            let body = self.body().await?;
            match soon(body.data()).await {
                Some(piece) => {
                    let piece = piece?;
                    body.flow_control().release_capacity(piece.remaining())?;
                    self.pieces.push(piece);
                }
                None => {
                    let trailers = soon(body.trailers()).await?.unwrap();
                    return Ok(Err(trailers["grpc-status"].to_str().unwrap().parse().unwrap()));
                }
            }
        }
    }

    async fn message(&mut self) -> CheckBatchAnswer {
        self.next().await.unwrap().unwrap()
    }

    /// Ids and codes of the next message.
    async fn codes(&mut self) -> Vec<(u64, u32)> {
        self.message().await.answers.iter().map(|answer| (answer.id, code(answer))).collect()
    }

    async fn status(&mut self) -> u32 {
        self.next().await.unwrap().unwrap_err()
    }
}

#[tokio::test]
async fn calls_of_a_batch_are_answered_together_and_by_the_right_configuration() {
    let mut plugin = Plugin::start().await;
    let mut stream = plugin.connect().await.open().await;
    stream.ask(&[(1, "/"), (2, "/"), (3, "/huge")]);
    let message = stream.message().await;
    let codes: Vec<_> = message.answers.iter().map(|answer| (answer.id, code(answer))).collect();
    assert_eq!(codes, [(1, 0), (2, 0), (3, 0)]);
    assert_eq!((message.taken, message.config_hash.as_str()), (0, "one"));
    assert_eq!(stream.message().await.taken, 1, "behind a message that is full");
    let unknown = CheckCall { id: 5, timeout_micros: 1, call: None };
    stream.ask_by("one", [unknown]);
    assert_eq!(stream.codes().await, [(5, Code::Unimplemented as u32)]);
    // One that waits while another configuration comes.
    stream.ask(&[(6, "/wait")]);
    assert_eq!(stream.codes().await, []);
    let waits = plugin.waits.recv().await.unwrap();
    configure(&plugin.shared, "two").await;
    stream.ask(&[(7, "/")]);
    assert_eq!(stream.codes().await, [(7, Code::FailedPrecondition as u32)]);
    stream.ask_by("two", [call(8, "/", SOON)]);
    let message = stream.message().await;
    assert_eq!((message.config_hash.as_str(), message.answers[0].id), ("two", 8));
    waits.send(()).unwrap();
    let message = stream.message().await;
    assert_eq!((message.config_hash.as_str(), message.answers[0].id, message.taken), ("one", 6, 0));
    // Last: the panic's backtrace takes a while, and a filter that takes long is treated otherwise.
    stream.ask_by("two", [call(9, "/panic", SOON)]);
    assert_eq!(stream.codes().await, [(9, Code::Internal as u32)]);
    stream.send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(stream.status().await, 0);
}

/// Of each flavour, since a stream's thread is none of it.
#[test]
fn filters_find_the_runtime_of_the_program() {
    use tokio::runtime::Builder;
    for mut runtime in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        runtime.enable_all().build().unwrap().block_on(async {
            let plugin = Plugin::start().await;
            let mut stream = plugin.connect().await.open().await;
            stream.ask(&[(1, "/runtime")]);
            assert_eq!(stream.codes().await, []);
            assert_eq!(stream.codes().await, [(1, 0)]);
        });
    }
}

/// The runtime has one thread, and it is the test's.
#[tokio::test]
async fn one_that_blocks_holds_up_its_own_connection_and_the_runtime_not_at_all() {
    let plugin = Plugin::start().await;
    let (mut first, mut second) = (plugin.connect().await, plugin.connect().await);
    let mut blocked = first.open().await;
    blocked.ask(&[(1, "/block"), (2, "/")]);
    let release = plugin.blocked().await;
    second.is_answered().await;
    release.send(()).unwrap();
    assert_eq!(blocked.codes().await[0], (1, 0));
}

/// What becomes of calls once one was slow: they may block as before. The runtime has one thread, and it is the test's.
#[tokio::test]
async fn calls_behind_a_slow_one_may_block_too_and_the_runtime_does_not() {
    let plugin = Plugin::start().await;
    let (mut host, mut other) = (plugin.connect().await, plugin.connect().await);
    let mut stream = host.open().await;
    stream.ask(&[(1, "/block"), (2, "/block"), (3, "/block"), (4, "/block_on")]);
    let first = plugin.blocked().await;
    // So that it was a slow one.
    tokio::time::sleep(2 * SLOW).await;
    first.send(()).unwrap();
    let rest = [plugin.blocked().await, plugin.blocked().await];
    let mut answered = stream.codes().await;
    assert_eq!(answered, [(1, 0)]);
    // The one beside them, and what comes later; and other connections.
    assert_eq!(stream.codes().await, [(4, 0)]);
    stream.ask(&[(5, "/block_on")]);
    assert_eq!(stream.codes().await, []);
    assert_eq!(stream.codes().await, [(5, 0)]);
    stream.ask(&[(6, "/panic")]);
    assert_eq!(stream.codes().await, []);
    assert_eq!(stream.codes().await, [(6, Code::Internal as u32)]);
    other.is_answered().await;
    for release in rest {
        release.send(()).unwrap();
    }
    answered.clear();
    while answered.len() < 2 {
        answered.extend(stream.codes().await);
    }
    answered.sort_unstable();
    assert_eq!(answered, [(2, 0), (3, 0)]);
}

/// Nobody can end a filter that blocks; but its calls are answered, and those that never began are not begun any more.
#[tokio::test]
async fn calls_that_block_are_given_up_in_time() {
    let plugin = Plugin::start().await;
    let mut stream = plugin.connect().await.open().await;
    stream.ask(&[(1, "/block")]);
    let first = plugin.blocked().await;
    tokio::time::sleep(2 * SLOW).await;
    first.send(()).unwrap();
    assert_eq!(stream.codes().await, [(1, 0)]);
    let calls = 2..aside::PLACES as u64 + 3;
    stream.ask_by("one", calls.clone().map(|id| call(id, "/block", Duration::from_secs(1))));
    let mut answered = Vec::new();
    while answered.len() < aside::PLACES + 1 {
        answered.extend(stream.codes().await);
    }
    answered.sort_unstable();
    assert!(answered.into_iter().eq(calls.map(|id| (id, Code::DeadlineExceeded as u32))));
    let judged = plugin.judged.load(Ordering::SeqCst) as usize;
    assert!(judged < aside::PLACES + 2, "{judged}: the one without a place never was");
    plugin.blocks.try_iter().for_each(drop);
    stream.ask(&[(999, "/")]);
    assert_eq!(stream.codes().await, []);
    assert_eq!(stream.codes().await, [(999, 0)]);
}

/// Behind a call that blocks, others wait; they have no more time for that than the host has.
#[tokio::test]
async fn a_call_that_is_late_is_not_judged() {
    let plugin = Plugin::start().await;
    let mut stream = plugin.connect().await.open().await;
    stream.ask_by("one", [call(1, "/block", SOON), call(2, "/", Duration::from_micros(1)), call(3, "/", SOON)]);
    let release = plugin.blocked().await;
    tokio::time::sleep(2 * SLOW).await;
    release.send(()).unwrap();
    let mut answered = stream.codes().await;
    while answered.len() < 3 {
        answered.extend(stream.codes().await);
    }
    answered.sort_unstable();
    assert_eq!(answered, [(1, 0), (2, Code::DeadlineExceeded as u32), (3, 0)]);
    assert_eq!(plugin.judged.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_waits_ends_in_time_and_with_its_stream() {
    let mut plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    let mut stream = host.open().await;
    stream.ask_by("one", [call(1, "/wait", Duration::from_millis(1))]);
    assert_eq!(stream.codes().await, []);
    let mut work = plugin.waits.recv().await.unwrap();
    assert_eq!(stream.codes().await, [(1, Code::DeadlineExceeded as u32)]);
    soon(work.closed()).await;
    for half_closed in [false, true] {
        let mut stream = host.open().await;
        stream.ask(&[(1, "/wait")]);
        assert_eq!(stream.codes().await, []);
        let mut work = plugin.waits.recv().await.unwrap();
        if half_closed {
            stream.send.send_data(Bytes::new(), true).unwrap();
            host.settled().await;
        }
        stream.send.send_reset(Reason::CANCEL);
        soon(work.closed()).await;
    }
    let mut stream = host.open().await;
    stream.ask(&[(1, "/wait")]);
    assert_eq!(stream.codes().await, []);
    let mut work = plugin.waits.recv().await.unwrap();
    host.over.abort();
    soon(work.closed()).await;
    plugin.answers().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_stream_is_that_streams_alone() {
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    let mut beside = host.open().await;
    for (bytes, end, code) in [
        (Bytes::from_static(&[1, 0, 0, 0, 0]), false, Code::Unimplemented),
        (Bytes::from_static(&[0, 1, 0, 0, 1]), false, Code::ResourceExhausted),
        (prefixed(&[0xff; 9]), false, Code::Internal),
        (Bytes::from_static(&[0, 0, 0, 0, 9, 1]), true, Code::Internal),
        (Bytes::from_static(&[0, 0]), true, Code::Internal),
        (Bytes::new(), true, Code::Ok),
    ] {
        let mut stream = host.open().await;
        stream.send.send_data(bytes.clone(), end).unwrap();
        assert_eq!(stream.status().await, code as u32, "{bytes:?}");
    }
    let other = Request::post("http://localhost/palisade.plugin.v1.Filter/CheckRequest");
    let other = other.header(CONTENT_TYPE, "application/grpc+proto").body(()).unwrap();
    let refused = host.request(other).await.unwrap().response.unwrap();
    assert_eq!(soon(refused).await.unwrap().headers()["grpc-status"], "12");
    let not_grpc = |change: fn(&mut Request<()>)| {
        let mut request = batches_request();
        change(&mut request);
        request
    };
    for request in [
        not_grpc(|request| *request.method_mut() = Method::GET),
        not_grpc(|request| drop(request.headers_mut().remove(CONTENT_TYPE))),
        not_grpc(|request| {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc-web"));
        }),
    ] {
        let response = host.request(request).await.unwrap().response.unwrap();
        assert_eq!(soon(response).await.unwrap().status(), 415);
    }
    beside.ask(&[(1, "/")]);
    assert_eq!(beside.codes().await, [(1, 0)]);
}

#[tokio::test]
async fn messages_come_however_they_are_cut() {
    let plugin = Plugin::start().await;
    let mut stream = plugin.connect().await.open().await;
    let batch = |id| CheckBatch { config_hash: String::new(), calls: vec![call(id, "/", SOON)] };
    let both = [prefixed(&batch(1).encode_to_vec()), prefixed(&batch(2).encode_to_vec())].concat();
    for byte in both {
        stream.send.send_data(vec![byte].into(), false).unwrap();
    }
    assert_eq!(stream.codes().await, [(1, 0)]);
    assert_eq!(stream.codes().await, [(2, 0)]);
    // Larger than both windows, so that they have to be opened on the way.
    let mut large = call(3, "/", SOON);
    if let Some(check_call::Call::Request(CheckRequestRequest { request: Some(request), .. })) = &mut large.call {
        request.query = "x".repeat(9 << 20);
    }
    stream.ask_by("", [large]);
    assert_eq!(stream.codes().await, [(3, 0)]);
}

#[tokio::test]
async fn a_peer_that_breaks_http2_harms_its_own_connection() {
    let plugin = Plugin::start().await;
    let mut beside = plugin.connect().await;
    let settings = &frame(4, 0, 0, &[]);
    let goes_away = |frame: Vec<u8>| [PREFACE, settings, &frame].concat();
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 1000],
        // DATA and WINDOW_UPDATE on streams that were never opened, CONTINUATION of nothing, a frame that is too large.
        goes_away(frame(0, 0, 1, &[7])),
        goes_away(frame(8, 0, 1, &[0, 0, 0, 1])),
        goes_away(frame(9, 4, 1, &[])),
        goes_away(vec![255, 255, 255, 0, 0, 0, 0, 0, 1]),
    ] {
        let mut stream = UnixStream::connect(&plugin.path).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        // Whatever it is told before: the connection ends.
        while soon(stream.read(&mut [0; 1024])).await.is_ok_and(|read| read > 0) {}
        beside.is_answered().await;
    }
    // One that says nothing at all, and one that leaves at once.
    let _silent = UnixStream::connect(&plugin.path).await.unwrap();
    drop(UnixStream::connect(&plugin.path).await.unwrap());
    beside.is_answered().await;
}

/// So that those below may be, too.
#[tokio::test]
async fn frames_by_hand_are_judged() {
    let plugin = Plugin::start().await;
    let mut stream = UnixStream::connect(&plugin.path).await.unwrap();
    let batch = CheckBatch { config_hash: String::new(), calls: vec![call(1, "/", SOON)] };
    let data = frame(0, 0, 1, &prefixed(&batch.encode_to_vec()));
    let frames = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 4, 1, &OPEN.concat()), &data];
    stream.write_all(&frames.concat()).await.unwrap();
    while plugin.judged.load(Ordering::SeqCst) == 0 {
        assert!(soon(stream.read(&mut [0; 1024])).await.unwrap() > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Frames of any kind, on any stream, with streams of batches among them: the connection ends with the peer's half at
    /// the latest, and nobody else notices.
    #[test]
    fn any_frames_harm_their_own_connection(
        frames in proptest::collection::vec(
            prop_oneof![
                (0_u8..11, any::<u8>(), 0_u32..6, proptest::collection::vec(any::<u8>(), 0..24))
                    .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload)),
                (0_u32..6).prop_map(|stream| frame(1, 4, stream, &OPEN.concat())),
                (0_u32..6, any::<u64>()).prop_map(|(stream, id)| {
                    let batch = CheckBatch { config_hash: String::new(), calls: vec![call(id, "/", SOON)] };
                    frame(0, 0, stream, &prefixed(&batch.encode_to_vec()))
                }),
            ],
            0..12,
        ),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let plugin = Plugin::start().await;
            let mut stream = UnixStream::connect(&plugin.path).await.unwrap();
            let bytes = [PREFACE, &frame(4, 0, 0, &[]), &frames.concat()].concat();
            // It may have ended before all of them are sent.
            stream.write_all(&bytes).await.ok();
            stream.shutdown().await.ok();
            while soon(stream.read(&mut [0; 1024])).await.is_ok_and(|read| read > 0) {}
            plugin.answers().await;
            plugin.shared.end();
            tokio::time::timeout(GRACE, plugin.serving).await.unwrap().unwrap();
        });
    }
}

#[tokio::test]
async fn streams_that_are_opened_for_nothing_end_the_connection() {
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    for _ in 0..2 * MAX_OPENED {
        host.is_answered().await;
    }
    host.settled().await;
    for _ in 0..MAX_OPENED {
        host.open().await.send.send_reset(Reason::CANCEL);
        host.settled().await;
    }
    let _last = host.open().await;
    let error = soon(host.over).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error:?}");
    plugin.answers().await;
}

#[tokio::test]
async fn no_batches_are_taken_of_a_host_that_does_not_read() {
    const BATCHES: u32 = 40;
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    let mut stream = host.open().await;
    for id in 0..BATCHES {
        stream.ask(&[(u64::from(id) + 1, "/large")]);
    }
    host.settled().await;
    // The window of the host has room for one.
    let judged = plugin.judged.load(Ordering::SeqCst);
    assert!((1..5).contains(&judged), "{judged}");
    // Which costs no other stream anything but the window of the connection, and the plugin nothing at all.
    plugin.answers().await;
    for id in 0..BATCHES {
        let message = stream.message().await;
        assert_eq!(stream.message().await.taken, 1, "behind a message that is full");
        let answer = message.answers[0].answer.as_ref().unwrap();
        let check_answer::Answer::Request(CheckRequestResponse { verdict: Some(verdict), .. }) = answer else {
            panic!("{answer:?}")
        };
        assert!(matches!(verdict, check_request_response::Verdict::Deny(reply) if reply.body.len() == 1 << 20));
        assert_eq!(message.answers[0].id, u64::from(id) + 1);
    }
}

#[tokio::test]
async fn no_batches_are_taken_while_too_many_calls_wait() {
    let mut plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    let mut stream = host.open().await;
    let most = MOST_WAITING as u64;
    stream.ask_by("one", (1..=most).map(|id| call(id, "/wait", 10 * SOON)));
    assert_eq!(stream.codes().await, []);
    let mut waits = Vec::new();
    while waits.len() < MOST_WAITING {
        waits.push(soon(plugin.waits.recv()).await.unwrap());
    }
    stream.ask(&[(most + 1, "/")]);
    host.settled().await;
    assert_eq!(plugin.judged.load(Ordering::SeqCst) as usize, MOST_WAITING);
    waits.pop().unwrap().send(()).unwrap();
    let mut answered = Vec::new();
    while answered.len() < 2 {
        answered.extend(stream.codes().await);
    }
    assert_eq!(answered[1], (most + 1, 0));
}

#[tokio::test]
async fn connections_are_bounded() {
    let plugin = Plugin::start().await;
    let mut hosts = Vec::new();
    for _ in 0..MOST {
        hosts.push(plugin.connect().await);
        hosts.last_mut().unwrap().is_answered().await;
    }
    let mut more = UnixStream::connect(&plugin.path).await.unwrap();
    assert_eq!(soon(more.read(&mut [0])).await.unwrap(), 0);
    hosts.pop().unwrap().over.abort();
    soon(async {
        loop {
            let stream = UnixStream::connect(&plugin.path).await.unwrap();
            if let Ok(mut host) = Host::over(stream).await
                && host.request(batches_request()).await.is_ok()
                && host.ping.ping(h2::Ping::opaque()).await.is_ok()
            {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_there_is_at_the_end_is_answered_and_nothing_else_is_waited_for() {
    let plugin = Plugin::start().await;
    let (mut host, mut idle) = (plugin.connect().await, plugin.connect().await);
    let _silent = UnixStream::connect(&plugin.path).await.unwrap();
    idle.is_answered().await;
    let mut stream = host.open().await;
    stream.ask(&[(1, "/slow")]);
    assert_eq!(stream.codes().await, []);
    plugin.shared.end();
    assert_eq!(stream.codes().await, [(1, 0)]);
    assert_eq!(stream.status().await, 0);
    // It was told to go elsewhere, before the answer.
    assert!(host.request(batches_request()).await.is_err());
    // Whatever is left then is cut off, so that would be too late.
    tokio::time::timeout(GRACE, plugin.serving).await.unwrap().unwrap();
    soon(host.over).await.unwrap().ok();
    soon(idle.over).await.unwrap().ok();
    UnixStream::connect(&plugin.path).await.unwrap_err();
}

#[tokio::test]
async fn who_stops_serving_ends_the_threads() {
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    host.is_answered().await;
    plugin.serving.abort();
    soon(host.over).await.unwrap().ok();
    assert!(*plugin.shared.watch_end().borrow());
}
