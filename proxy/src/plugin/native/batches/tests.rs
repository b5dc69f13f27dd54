//! Streams to plugins that speak HTTP/2 as they like.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use http::header::CONTENT_TYPE;
use hyper_util::rt::TokioIo;
use palisade_plugin_proto::v1::{CheckBatch, CheckRequestResponse};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tonic::transport::Endpoint;

use super::*;
use crate::plugin::grpc::scripted::*;

fn batches_over(line: Line) -> Batches {
    Batches::of_worker(line, generation(), Bounds::new(0, false))
}

fn generation() -> Generation {
    Generation { hash: "hash".into(), may_be_silent: true }
}

/// Asks with all the time there is; what hangs fails the test.
fn ask(batches: &Batches) -> impl Future<Output = Answer> + use<> {
    ask_within(batches, Duration::from_secs(60))
}

fn ask_within(batches: &Batches, time: Duration) -> impl Future<Output = Answer> + use<> {
    let mut message = Message::default();
    message.bytes(1, &[b'x'; 1000]);
    let deadline = Instant::now() + time;
    let call = batches.call(Kind::Request, message, deadline);
    let long_after = deadline + Duration::from_secs(60);
    async move { tokio::time::timeout_at(long_after, call).await.expect("a call comes to an end by itself") }
}

/// Batches as the plugin reads them.
struct Asked {
    body: RecvStream,
    held: Vec<u8>,
}

impl Asked {
    fn of(body: RecvStream) -> Self {
        Self { body, held: Vec::new() }
    }

    /// The calls of the next one.
    async fn next(&mut self) -> Option<Vec<u64>> {
        loop {
            if let Some((prefix, rest)) = self.held.split_at_checked(5) {
                let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
                if let Some(batch) = rest.get(..length) {
                    let batch = CheckBatch::decode(batch).unwrap();
                    assert_eq!((prefix[0], batch.config_hash.as_str()), (0, "hash"));
                    self.held.drain(..5 + length);
                    return Some(batch.calls.iter().map(|call| call.id).collect());
                }
            }
            let data = self.body.data().await?.ok()?;
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.held.extend(data);
        }
    }
}

/// A message that allows these calls.
fn allows(calls: &[u64], taken: u32) -> Vec<u8> {
    let allow = |id: &u64| CheckAnswer { id: *id, answer: Some(allowed()) };
    let answers = calls.iter().map(allow).collect();
    framed(&CheckBatchAnswer { answers, taken, ..CheckBatchAnswer::default() }.encode_to_vec())
}

fn allowed() -> check_answer::Answer {
    check_answer::Answer::Request(CheckRequestResponse::allow())
}

async fn allow_all(mut asked: Asked, mut to: SendResponse<Bytes>) {
    let mut body = None;
    while let Some(calls) = asked.next().await {
        let body: &mut SendStream<Bytes> = body.get_or_insert_with(|| to.send_response(head(), false).unwrap());
        body.send_data(allows(&calls, 1).into(), false).unwrap();
    }
}

/// What a plugin does when it has read these calls.
type Deed = fn(SendResponse<Bytes>, &[u64]);

/// Serves the streams of a connection: `deed` is done on the first of all, the others are served well.
async fn serve(stream: DuplexStream, deed: Deed, done: Arc<AtomicBool>) {
    let mut connection = handshake(stream).await;
    while let Some(Ok((request, to))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/palisade.plugin.v1.Filter/CheckBatches");
        assert!(!request.headers().contains_key("grpc-timeout"));
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let mut asked = Asked::of(request.into_body());
            if done.swap(true, Ordering::SeqCst) {
                return allow_all(asked, to).await;
            }
            deed(to, &asked.next().await.unwrap());
            while asked.next().await.is_some() {}
        });
    }
}

/// What five calls come to of which the plugin has read all, over a connection of its own and over one of others. The
/// next call is answered by the same connection.
async fn first_five(deed: Deed) -> Vec<Answer> {
    let done = Arc::default();
    let (own, dials) = line(move |_, stream| serve(stream, deed, Arc::clone(&done))).await;
    let shared_done = Arc::default();
    let shared = shared_line(move |stream| serve(stream, deed, Arc::clone(&shared_done))).await;
    let mut all = Vec::new();
    for line in [own, shared] {
        let batches = batches_over(line);
        let answers = join_all((0..5).map(|_| ask(&batches))).await;
        assert_eq!(ask(&batches).await, Ok(allowed()), "after {answers:?}");
        all.push(answers);
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    let [own, shared] = &all[..] else { unreachable!() };
    let kinds = |answers: &[Answer]| answers.iter().map(kind).collect::<Vec<_>>();
    assert_eq!(kinds(own), kinds(shared));
    own.clone()
}

fn kind(answer: &Answer) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(CallError::Invalid(_)) => "invalid",
        Err(CallError::Failed(_)) => "failed",
        Err(CallError::Lost(_)) => "lost",
        Err(CallError::Unsent(_)) => "unsent",
        Err(CallError::Overloaded) => "overloaded",
        Err(CallError::Timeout) => "timeout",
        Err(CallError::Busy(_)) => "busy",
        Err(CallError::Unreadable(_)) => "unreadable",
        Err(_) => "other",
    }
}

fn respond(mut to: SendResponse<Bytes>, bytes: &[u8]) -> SendStream<Bytes> {
    let mut body = to.send_response(head(), false).unwrap();
    body.send_data(Bytes::copy_from_slice(bytes), false).unwrap();
    body
}

/// Says this, and nothing more, but does not end.
fn say(to: SendResponse<Bytes>, bytes: &[u8]) {
    let mut body = respond(to, bytes);
    tokio::spawn(async move { poll_fn(|cx| body.poll_reset(cx)).await });
}

fn refuse(mut to: SendResponse<Bytes>, fields: &[(&'static str, &str)]) {
    let mut head = head();
    head.headers_mut().extend(said(fields));
    to.send_response(head, true).unwrap();
}

fn respond_with(mut to: SendResponse<Bytes>, status: u16) {
    to.send_response(Response::builder().status(status).body(()).unwrap(), true).unwrap();
}

#[tokio::test]
async fn what_is_no_stream_of_answers_ends_every_call_on_it() {
    let all: [(&str, &str, Deed); 21] = [
        ("a status of HTTP", "failed", |to, _| respond_with(to, 404)),
        ("a gateway's status", "lost", |to, _| respond_with(to, 503)),
        ("a page", "invalid", |mut to, calls| {
            let page = Response::builder().header(CONTENT_TYPE, "text/html").body(()).unwrap();
            to.send_response(page, false).unwrap().send_data(allows(calls, 1).into(), true).unwrap();
        }),
        ("an end at once", "lost", |to, _| refuse(to, &[("grpc-status", "0")])),
        ("an error at once", "failed", |to, _| refuse(to, &[("grpc-status", "13"), ("grpc-message", "no%0A")])),
        ("no room", "busy", |to, _| refuse(to, &[("grpc-status", "8")])),
        ("no such method", "failed", |to, _| refuse(to, &[("grpc-status", "12")])),
        ("details that are none", "failed", |to, _| {
            refuse(to, &[("grpc-status", "3"), ("grpc-status-details-bin", "!")]);
        }),
        ("an end", "lost", |to, _| answer(to, &[], Some(&[("grpc-status", "0")]))),
        ("an error", "failed", |to, _| answer(to, &[], Some(&[("grpc-status", "2")]))),
        ("an end without a status", "invalid", |to, _| answer(to, &[], None)),
        ("an end within a message", "invalid", |to, calls| {
            answer(to, &[&allows(calls, 1)[..9]], Some(&[("grpc-status", "0")]));
        }),
        ("a compressed message", "unreadable", |to, _| say(to, &[1, 0, 0, 0, 1, 0])),
        ("a message that is too large", "unreadable", |to, _| say(to, &[0, 0xff, 0xff, 0xff, 0xff])),
        ("no message of answers", "unreadable", |to, _| say(to, &framed(b"garbage"))),
        ("too many fields", "unreadable", |to, _| say(to, &framed(&[0x0a, 0].repeat(1 << 19)))),
        ("an answer to nothing", "unreadable", |to, calls| say(to, &allows(&[calls[0] + (1 << 40)], 1))),
        ("more batches than were sent", "unreadable", |to, _| say(to, &allows(&[], 2))),
        ("another configuration's answer", "other", |to, calls| {
            let answers = vec![CheckAnswer { id: calls[0], answer: Some(allowed()) }];
            let other = CheckBatchAnswer { answers, taken: 1, config_hash: "other".to_owned() };
            say(to, &framed(&other.encode_to_vec()));
        }),
        ("a refusal", "unsent", |mut to, _| to.send_reset(Reason::REFUSED_STREAM)),
        ("a reset", "lost", |mut to, _| to.send_reset(Reason::INTERNAL_ERROR)),
    ];
    for (name, expected, deed) in all {
        let answers = first_five(deed).await;
        let kinds: Vec<_> = answers.iter().map(kind).collect();
        assert_eq!(kinds, [expected; 5], "{name}: {answers:?}");
        let Err(CallError::Failed(text) | CallError::Invalid(text) | CallError::Lost(text)) = &answers[0] else {
            continue;
        };
        assert!(text.len() < 2_500 && !text.contains('\n'), "{name}: {text}");
    }
}

/// What is said of other calls is not said of those that were never sent: they are made again.
#[tokio::test]
async fn calls_that_were_not_sent_are_told_so_however_the_stream_ends() {
    let all: [(&str, &str, Deed); 5] = [
        ("an error", "failed", |to, _| answer(to, &[], Some(&[("grpc-status", "2")]))),
        ("no room", "busy", |to, _| refuse(to, &[("grpc-status", "8")])),
        ("no status", "invalid", |to, _| answer(to, &[], None)),
        ("nonsense", "unreadable", |to, _| say(to, &framed(b"garbage"))),
        ("another configuration's answer", "other", |to, calls| {
            let answers = vec![CheckAnswer { id: calls[0], answer: Some(allowed()) }];
            let other = CheckBatchAnswer { answers, taken: 1, config_hash: "other".to_owned() };
            say(to, &framed(&other.encode_to_vec()));
        }),
    ];
    for (name, expected, deed) in all {
        let done = Arc::default();
        let (line, _) = line(move |_, stream| serve(stream, deed, Arc::clone(&done))).await;
        let batches = Batches::of_worker(line, generation(), Bounds::new(2, false));
        let answers = join_all((0..4).map(|_| ask(&batches))).await;
        let kinds: Vec<_> = answers.iter().map(kind).collect();
        assert_eq!(kinds, [expected, expected, "unsent", "unsent"], "{name}: {answers:?}");
    }
}

#[tokio::test]
async fn what_was_answered_before_the_end_counts() {
    let all: [(&str, &str, Deed); 3] = [
        ("an end", "lost", |to, calls| answer(to, &[&allows(&calls[..2], 1)], Some(&[("grpc-status", "0")]))),
        ("a second answer", "unreadable", |to, calls| say(to, &allows(&[calls[0], calls[1], calls[1]], 1))),
        ("a message of nonsense", "unreadable", |to, calls| {
            say(to, &[allows(&calls[..2], 1), framed(b"garbage")].concat());
        }),
    ];
    for (name, expected, deed) in all {
        let kinds: Vec<_> = first_five(deed).await.iter().map(kind).collect();
        assert_eq!(kinds, ["ok", "ok", expected, expected, expected], "{name}");
    }
}

#[tokio::test]
async fn answers_may_come_in_any_pieces() {
    let all: [Deed; 3] = [
        |to, calls| say(to, &calls.iter().flat_map(|call| allows(&[*call], 0)).collect::<Vec<_>>()),
        |mut to, calls| {
            let mut body = to.send_response(head(), false).unwrap();
            for byte in allows(calls, 1) {
                body.send_data(Bytes::copy_from_slice(&[byte]), false).unwrap();
            }
            tokio::spawn(async move { poll_fn(|cx| body.poll_reset(cx)).await });
        },
        |to, calls| {
            let mut body = respond(to, &allows(calls, 1)[..7]);
            body.send_data(allows(calls, 1).split_off(7).into(), false).unwrap();
            tokio::spawn(async move { poll_fn(|cx| body.poll_reset(cx)).await });
        },
    ];
    for deed in all {
        let done = Arc::default();
        let (line, dials) = line(move |_, stream| serve(stream, deed, Arc::clone(&done))).await;
        let batches = batches_over(line);
        let answers = join_all((0..5).map(|_| ask(&batches))).await;
        assert!(answers.iter().all(|answer| *answer == Ok(allowed())), "{answers:?}");
        assert_eq!(dials.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_connection_that_ends_is_made_anew_and_says_what_was_seen() {
    // With the stream of the call.
    type End = fn(u32) -> Vec<u8>;
    let ends: [(&str, End); 5] = [
        ("unsent", |_| goaway(0)),
        ("lost", goaway),
        ("lost", |call| frame(GOAWAY, 0, 0, &[call.to_be_bytes(), 11_u32.to_be_bytes()].concat())),
        ("lost", |_| frame(SETTINGS, 0, 0, b"odd")),
        ("lost", |_| Vec::new()),
    ];
    for (expected, end) in ends {
        let (line, dials) = line(move |number, mut stream| async move {
            if number > 0 {
                return serve(stream, |_, _| {}, Arc::new(AtomicBool::new(true))).await;
            }
            begin(&mut stream).await;
            let call = await_call(&mut stream).await;
            // The first bytes of a batch.
            stream.read_exact(&mut [0; 9]).await.unwrap();
            stream.write_all(&end(call)).await.unwrap();
        })
        .await;
        let batches = batches_over(line);
        let answers = join_all((0..5).map(|_| ask(&batches))).await;
        let kinds: Vec<_> = answers.iter().map(kind).collect();
        assert_eq!(kinds, [expected; 5], "{answers:?}");
        for _ in 0..3 {
            assert_eq!(ask(&batches).await, Ok(allowed()));
        }
        assert_eq!(dials.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn the_head_of_the_answer_is_waited_for_by_nobody() {
    let (line, _) = line(|_, stream| async move {
        let mut connection = handshake(stream).await;
        while let Some(Ok((request, to))) = connection.accept().await {
            tokio::spawn(async move {
                let mut asked = Asked::of(request.into_body());
                let (first, second) = (asked.next().await.unwrap(), asked.next().await.unwrap());
                say(to, &allows(&[second, first].concat(), 2));
                while asked.next().await.is_some() {}
            });
        }
    })
    .await;
    let batches = batches_over(line);
    let first = tokio::spawn(ask(&batches));
    while batches.shared.state().sent == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&batches).await, Ok(allowed()));
    assert_eq!(first.await.unwrap(), Ok(allowed()));
}

/// A plugin that says it has taken what it has not read does not make the proxy keep that for it.
#[tokio::test(start_paused = true)]
async fn what_a_plugin_does_not_read_is_not_sent_whatever_it_says() {
    const WINDOW: u32 = 500;
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let (line, _) = line(move |_, stream| {
        let read = Arc::clone(&counted);
        async move {
            let mut server = h2::server::Builder::new();
            let mut connection = server.initial_window_size(WINDOW).handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((request, mut to))) = connection.accept().await {
                let read = Arc::clone(&read);
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut answers = to.send_response(head(), false).unwrap();
                    while read.load(Ordering::SeqCst) < WINDOW as usize {
                        read.fetch_add(body.data().await.unwrap().unwrap().len(), Ordering::SeqCst);
                    }
                    answers.send_data(allows(&[], 1).into(), false).unwrap();
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    // Now it goes on.
                    body.flow_control().release_capacity(WINDOW as usize).unwrap();
                    while let Some(Ok(data)) = body.data().await {
                        read.fetch_add(data.len(), Ordering::SeqCst);
                        body.flow_control().release_capacity(data.len()).unwrap();
                    }
                });
            }
        }
    })
    .await;
    let batches = batches_over(line);
    for _ in 0..5 {
        assert_eq!(ask_within(&batches, Duration::from_secs(1)).await, Err(CallError::Timeout));
        let state = batches.shared.state();
        assert_eq!((state.pending.len(), state.sent, state.abandoned), (0, 1, 1));
    }
    assert_eq!(read.load(Ordering::SeqCst), WINDOW as usize);
    // By then it has room again.
    let unanswered = ask_within(&batches, Duration::from_secs(20)).await;
    assert_eq!(unanswered, Err(CallError::Timeout));
    assert_eq!(batches.shared.state().sent, 2);
    assert!(read.load(Ordering::SeqCst) > 2000);
}

#[tokio::test(start_paused = true)]
async fn calls_end_with_the_task_of_their_stream() {
    let (line, _) = line(|_, stream| serve(stream, |_, _| {}, Arc::default())).await;
    let batches = batches_over(line);
    let open = tokio::spawn(ask(&batches));
    while batches.shared.state().sent == 0 {
        tokio::task::yield_now().await;
    }
    // As after a panic.
    drop(batches.task.lock().unwrap().take());
    assert_eq!(kind(&open.await.unwrap()), "lost");
    assert_eq!(ask(&batches).await, Ok(allowed()));
}

#[tokio::test(start_paused = true)]
async fn a_late_call_keeps_its_place_once_whether_or_not_somebody_looks() {
    let (line, _) = line(|_, stream| serve(stream, |to, _| std::mem::forget(to), Arc::default())).await;
    let batches = batches_over(line);
    let unseen = ask_within(&batches, Duration::from_secs(1));
    let seen = ask_within(&batches, Duration::from_secs(2));
    assert_eq!(seen.await, Err(CallError::Timeout));
    let places = |batches: &Batches| {
        let state = batches.shared.state();
        (state.sent, state.abandoned)
    };
    assert_eq!(places(&batches), (2, 2));
    drop(unseen);
    assert_eq!(places(&batches), (2, 2));
    // Not sent, for the first batch is not taken.
    drop(ask(&batches));
    assert_eq!((places(&batches), batches.shared.state().pending.len()), ((2, 2), 0));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_never_taken_do_not_pile_up() {
    for new in [Batches::of_worker, Batches::of_all] {
        let nobody = tower::service_fn(|_| std::future::pending::<Result<TokioIo<DuplexStream>, std::io::Error>>());
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(nobody);
        let batches = new(Line::Shared(channel), generation(), Bounds::new(0, false));
        let last = ask_within(&batches, Duration::from_secs(30));
        for round in 0..10 {
            let calls =
                (0..100).map(|number| ask_within(&batches, Duration::from_millis(1 + (number * 7 + round) % 50)));
            let answers = join_all(calls).await;
            assert!(answers.iter().all(|answer| *answer == Err(CallError::Timeout)));
        }
        let (pending, free, slots) = {
            let state = batches.shared.state();
            (state.pending.len(), state.free.len(), state.slots.len())
        };
        assert_eq!((pending, slots - free), (1, 1));
        drop(last);
        assert_eq!(batches.shared.state().pending.len(), 0);
    }
}

/// Whether calls come to be answered again after the plugin has answered none of some for ever.
async fn until_answered(batches: &Batches) -> Answer {
    let mut last = ask_within(batches, Duration::from_secs(1)).await;
    // Within twice the time that the plugin has for it.
    for _ in 0..10 {
        if last.is_ok() {
            break;
        }
        last = ask_within(batches, Duration::from_secs(1)).await;
    }
    last
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_served_any_more_is_given_up_with_its_connection() {
    for bounds in [Bounds::new(0, false), Bounds::new(0, true), Bounds::new(3, false)] {
        let done = Arc::default();
        let serve = move |_, stream| serve(stream, |to, _| std::mem::forget(to), Arc::clone(&done));
        let (line, dials) = line(serve).await;
        let batches = Batches::of_all(line, generation(), bounds.clone());
        assert_eq!(until_answered(&batches).await, Ok(allowed()), "{bounds:?}");
        // Whatever serves the first one may stand still.
        assert_eq!(dials.load(Ordering::SeqCst), 2, "{bounds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_is_busy_with_a_call_keeps_its_stream() {
    let (line, dials) = line(|_, stream| async move {
        let mut connection = handshake(stream).await;
        while let Some(Ok((request, to))) = connection.accept().await {
            tokio::spawn(async move {
                let mut asked = Asked::of(request.into_body());
                let first = asked.next().await.unwrap();
                tokio::time::sleep(Duration::from_secs(30)).await;
                let mut body = respond(to, &allows(&first, 1));
                while let Some(calls) = asked.next().await {
                    body.send_data(allows(&calls, 1).into(), false).unwrap();
                }
            });
        }
    })
    .await;
    let batches = Batches::of_worker(line, generation(), Bounds::new(0, true));
    let long = tokio::spawn(ask(&batches));
    while batches.shared.state().sent == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        assert_eq!(ask_within(&batches, Duration::from_secs(1)).await, Err(CallError::Timeout));
    }
    assert_eq!(long.await.unwrap(), Ok(allowed()));
    assert_eq!(ask(&batches).await, Ok(allowed()));
    assert_eq!((dials.load(Ordering::SeqCst), batches.shared.state().stream), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_never_answered_take_no_place_for_ever() {
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let (line, _) = line(move |_, stream| {
        let released = Arc::clone(&released);
        async move {
            let mut connection = handshake(stream).await;
            while let Some(Ok((request, mut to))) = connection.accept().await {
                let released = Arc::clone(&released);
                tokio::spawn(async move {
                    let mut asked = Asked::of(request.into_body());
                    let mut body = to.send_response(head(), false).unwrap();
                    let dropped = asked.next().await.unwrap();
                    body.send_data(allows(&[], 1).into(), false).unwrap();
                    loop {
                        tokio::select! {
                            () = released.notified() => body.send_data(allows(&dropped, 0).into(), false).unwrap(),
                            calls = asked.next() => match calls {
                                Some(calls) => body.send_data(allows(&calls, 1).into(), false).unwrap(),
                                None => return,
                            },
                        }
                    }
                });
            }
        }
    })
    .await;
    let batches = Batches::of_all(line, generation(), Bounds::new(2, false));
    let long = ask_within(&batches, Duration::from_secs(1));
    assert_eq!(long.await, Err(CallError::Timeout));
    // The other place does for all, and they are heard: that one answer is missing is no reason to end them.
    for _ in 0..5 {
        tokio::time::sleep(PATIENCE / 4).await;
        assert_eq!(ask(&batches).await, Ok(allowed()));
    }
    let places = |batches: &Batches| {
        let state = batches.shared.state();
        (state.stream, state.sent, state.abandoned, state.forgotten)
    };
    assert_eq!(places(&batches), (1, 1, 1, 0));
    let both = join_all((0..2).map(|_| ask(&batches))).await;
    assert_eq!((both, places(&batches)), (vec![Ok(allowed()); 2], (1, 1, 1, 0)));
    // Where there is no place left, the forgotten one's is.
    assert!(batches.shared.bounds.take_place());
    assert_eq!(ask(&batches).await, Ok(allowed()));
    assert_eq!(places(&batches), (1, 0, 1, 1));
    // A late answer is nobody's, and breaks nothing.
    release.notify_one();
    while batches.shared.state().forgotten == 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&batches).await, Ok(allowed()));
    assert_eq!(places(&batches), (1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_in_batches_and_by_themselves_share_their_places() {
    let (line, _) = line(|_, stream| serve(stream, |_, _| {}, Arc::new(AtomicBool::new(true)))).await;
    let bounds = Bounds::new(2, false);
    let places = bounds.places().unwrap();
    let batches = Batches::of_all(line, generation(), bounds);
    // As a call by itself does.
    let both = Arc::clone(&places).acquire_many_owned(2).await.unwrap();
    assert_eq!(ask_within(&batches, Duration::from_secs(1)).await, Err(CallError::Overloaded));
    let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(ask(&batches))).collect();
    while batches.shared.state().pending.len() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(batches.shared.state().sent, 0);
    // The stream is told of one that is free.
    drop(both);
    for call in waiting {
        assert_eq!(call.await.unwrap(), Ok(allowed()));
    }
    assert_eq!(places.available_permits(), 2);
    // Nobody has the turn of a call that was given up.
    let both = Arc::clone(&places).acquire_many_owned(2).await.unwrap();
    assert_eq!(ask_within(&batches, Duration::from_secs(1)).await, Err(CallError::Overloaded));
    drop(both);
    while places.available_permits() < 2 {
        tokio::task::yield_now().await;
    }
}
