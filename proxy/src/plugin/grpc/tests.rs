//! Calls to plugins that speak HTTP/2 as they like.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::mem::discriminant;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use h2::server::SendResponse;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, mpsc};

use super::scripted::*;
use super::*;

static CALL: Rpc = Rpc::new(|| Uri::from_static("http://localhost/test.Service/Call"));

/// Largest message.
const MOST: usize = 100_000;

/// Asks with all the time there is; what hangs fails the test.
async fn ask(line: &Line) -> Result<Bytes, CallError> {
    ask_within(line, Duration::from_secs(60)).await
}

async fn ask_within(line: &Line, time: Duration) -> Result<Bytes, CallError> {
    line.call(&CALL, b"asked".to_vec(), MOST, Instant::now() + time).await
}

fn answer_well(to: SendResponse<Bytes>) {
    answer(to, &[&framed(b"answered")], Some(&[("grpc-status", "0")]));
}

/// What a plugin does to a call.
type Deed = fn(SendResponse<Bytes>);

/// A plugin that does the same to every call, and what a call comes to: the same over a connection of its own as over
/// one of others.
async fn always(what: Deed) -> Result<Bytes, CallError> {
    let serve = move |stream: DuplexStream| async move {
        let mut connection = handshake(stream).await;
        while let Some(Ok((_, to))) = connection.accept().await {
            what(to);
        }
    };
    let (own, dials) = line(move |_, stream| serve(stream)).await;
    let answer = ask(&own).await;
    assert_eq!(ask(&own).await, answer, "the second call is answered like the first");
    assert_eq!(dials.load(Ordering::SeqCst), 1, "{answer:?} is no reason for another connection");
    let shared = ask(&shared_line(serve).await).await;
    match (&answer, &shared) {
        (Ok(own), Ok(shared)) => assert_eq!(own, shared),
        // The texts are those of other layers.
        (Err(own), Err(shared)) => assert_eq!(discriminant(own), discriminant(shared), "{own:?}, {shared:?}"),
        _ => panic!("{answer:?}, {shared:?}"),
    }
    answer
}

#[tokio::test]
async fn a_call_is_what_grpc_says_it_is() {
    let (sent, mut seen) = mpsc::unbounded_channel();
    let (line, _) = line(move |_, stream| {
        let sent = sent.clone();
        async move {
            let mut connection = handshake(stream).await;
            while let Some(Ok((request, to))) = connection.accept().await {
                let sent = sent.clone();
                tokio::spawn(async move {
                    let (head, mut body) = request.into_parts();
                    let mut content = Vec::new();
                    while let Some(data) = body.data().await {
                        content.extend(data.unwrap());
                    }
                    answer_well(to);
                    sent.send((head, content)).unwrap();
                });
            }
        }
    })
    .await;
    assert_eq!(ask(&line).await.unwrap(), "answered");
    let (head, content) = seen.recv().await.unwrap();
    assert_eq!(content, framed(b"asked"));
    assert_eq!((head.method, head.uri), (Method::POST, Uri::from_static("http://localhost/test.Service/Call")));
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(head.headers["content-type"], "application/grpc");
    let left = head.headers["grpc-timeout"].to_str().unwrap();
    let micros: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
    assert!(left.len() <= 9 && (1..=60_000_000).contains(&micros), "{left}");
}

#[test]
fn a_deadline_has_eight_digits_and_a_unit() {
    let now = Instant::now();
    assert_eq!(timeout(now), "0u");
    let day = timeout(now + Duration::from_secs(86_400));
    assert!(day.to_str().unwrap().ends_with('m') && day.len() <= 9, "{day:?}");
    assert_eq!(timeout(now + Duration::from_secs(1 << 40)), "99999999m");
}

#[tokio::test]
async fn an_answer_may_come_in_any_pieces() {
    let whole = always(answer_well).await;
    assert_eq!(whole.unwrap(), "answered");
    let bytes = always(|to| {
        let framed = framed(b"answered");
        let pieces: Vec<_> = framed.chunks(1).collect();
        answer(to, &pieces, Some(&[("grpc-status", "0")]));
    });
    assert_eq!(bytes.await.unwrap(), "answered");
    let empty = always(|to| answer(to, &[b"", &framed(b""), b""], Some(&[("grpc-status", "0")])));
    assert_eq!(empty.await.unwrap(), "");
    let large = always(|to| answer(to, &[&framed(&[7; MOST])], Some(&[("grpc-status", "0")])));
    assert_eq!(large.await.unwrap().len(), MOST);
}

#[tokio::test]
async fn what_is_read_makes_room_for_more() {
    let (line, dials) = line(|_, stream| async move {
        let mut connection = handshake(stream).await;
        while let Some(Ok((_, to))) = connection.accept().await {
            answer(to, &[&framed(&[7; MOST])], Some(&[("grpc-status", "0")]));
        }
    })
    .await;
    for _ in 0..=CONNECTION_WINDOW as usize / MOST {
        assert_eq!(ask(&line).await.unwrap().len(), MOST);
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_no_answer_of_grpc_is_none() {
    let invalid: [(&str, Deed); 9] = [
        ("no trailers", |to| answer(to, &[&framed(b"x")], None)),
        ("trailers without a status", |to| answer(to, &[&framed(b"x")], Some(&[("x-a", "b")]))),
        ("nothing", |to| answer(to, &[], None)),
        ("no message", |to| answer(to, &[], Some(&[("grpc-status", "0")]))),
        ("half a message", |to| answer(to, &[&framed(b"answered")[..9]], Some(&[("grpc-status", "0")]))),
        ("half a prefix", |to| answer(to, &[&[0, 0]], Some(&[("grpc-status", "0")]))),
        ("a byte too many", |to| answer(to, &[&framed(b"x"), b"x"], Some(&[("grpc-status", "0")]))),
        ("a page", |mut to| {
            let page = Response::builder().header(CONTENT_TYPE, "text/html").body(()).unwrap();
            let mut body = to.send_response(page, false).unwrap();
            body.send_data(framed(b"x").into(), false).unwrap();
            body.send_trailers(said(&[("grpc-status", "0")])).unwrap();
        }),
        ("a success without a body", |mut to| {
            let mut head = head();
            head.headers_mut().extend(said(&[("grpc-status", "0")]));
            to.send_response(head, true).unwrap();
        }),
    ];
    for (name, what) in invalid {
        let answer = always(what).await;
        assert!(matches!(answer, Err(CallError::Invalid(_))), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn an_answer_that_can_t_be_read_is_known_for_one() {
    let unreadable: [(&str, Deed); 4] = [
        ("two messages", |to| answer(to, &[&framed(b"x"), &framed(b"x")], Some(&[("grpc-status", "0")]))),
        ("a compressed message", |to| answer(to, &[&[1, 0, 0, 0, 1, 0]], Some(&[("grpc-status", "0")]))),
        // Refused as soon as it is announced.
        ("a message that is too large", |mut to| {
            let mut body = to.send_response(head(), false).unwrap();
            body.send_data(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]), false).unwrap();
            tokio::spawn(async move { poll_fn(|cx| body.poll_reset(cx)).await });
        }),
        ("a head that is too large", |mut to| {
            let mut head = head();
            head.headers_mut().extend(said(&[("x-large", &"x".repeat(MAX_HEADERS as usize))]));
            let mut body = to.send_response(head, false).unwrap();
            tokio::spawn(async move { poll_fn(|cx| body.poll_reset(cx)).await });
        }),
    ];
    for (name, what) in unreadable {
        let answer = always(what).await;
        let Err(CallError::Unreadable(text)) = answer else { panic!("{name}: {answer:?}") };
        assert!(text.len() < 2_500 && !text.contains('\n'), "{name}: {text}");
    }
}

#[tokio::test]
async fn an_error_is_told_and_bounded() {
    let failed: [(&str, Deed); 6] = [
        ("a status", |to| answer(to, &[], Some(&[("grpc-status", "7"), ("grpc-message", "no%20entry%0A2026 ERROR")]))),
        ("a status after a message", |to| answer(to, &[&framed(b"x")], Some(&[("grpc-status", "13")]))),
        ("no such status", |to| answer(to, &[&framed(b"x")], Some(&[("grpc-status", "x")]))),
        ("a long message", |to| {
            let long = "%FF".repeat(4000);
            answer(to, &[], Some(&[("grpc-status", "2"), ("grpc-message", &long)]));
        }),
        ("details that are none", |to| {
            answer(to, &[], Some(&[("grpc-status", "3"), ("grpc-status-details-bin", "!")]));
        }),
        ("a status of HTTP", |mut to| {
            drop(to.send_response(Response::builder().status(404).body(()).unwrap(), true).unwrap());
        }),
    ];
    for (name, what) in failed {
        let answer = always(what).await;
        let Err(CallError::Failed(text)) = answer else { panic!("{name}: {answer:?}") };
        assert!(text.len() < 2_500 && !text.contains('\n'), "{name}: {text}");
    }
    let own: [(&str, CallError); 4] = [
        ("1", CallError::Timeout),
        ("4", CallError::Timeout),
        ("8", CallError::Busy("ResourceExhausted: ".to_owned())),
        ("12", CallError::Failed("it does not serve test.Service".to_owned())),
    ];
    for (code, expected) in own {
        let (line, _) = line(move |_, stream| async move {
            let mut connection = handshake(stream).await;
            while let Some(Ok((_, mut to))) = connection.accept().await {
                let mut head = head();
                head.headers_mut().extend(said(&[("grpc-status", code)]));
                to.send_response(head, true).unwrap();
            }
        })
        .await;
        assert_eq!(ask(&line).await, Err(expected), "{code}");
    }
}

#[tokio::test]
async fn what_may_have_been_seen_is_lost_and_what_was_refused_is_unsent() {
    let refused = always(|mut to| to.send_reset(Reason::REFUSED_STREAM)).await;
    assert!(matches!(refused, Err(CallError::Unsent(_))), "{refused:?}");
    let lost: [(&str, Deed); 4] = [
        ("a reset", |mut to| to.send_reset(Reason::INTERNAL_ERROR)),
        ("a refusal in the middle of an answer", |mut to| {
            let mut body = to.send_response(head(), false).unwrap();
            body.send_data(framed(b"x").into(), false).unwrap();
            tokio::spawn(async move {
                // When it has been read.
                poll_fn(|cx| {
                    body.reserve_capacity(1 << 21);
                    body.poll_capacity(cx)
                })
                .await;
                body.send_reset(Reason::REFUSED_STREAM);
            });
        }),
        ("a gateway's status", |mut to| {
            drop(to.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap());
        }),
        ("headers without an end", |mut to| {
            let mut head = head();
            head.headers_mut().insert("x", "x".repeat(20_000).parse().unwrap());
            drop(to.send_response(head, false));
        }),
    ];
    for (name, what) in lost {
        let answer = always(what).await;
        assert!(matches!(answer, Err(CallError::Lost(_))), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn after_a_goaway_there_is_another_connection() {
    let (line, dials) = line(|number, mut stream| async move {
        match number {
            // It has looked at none, at the first one, and goes without a word.
            0 | 1 => {
                begin(&mut stream).await;
                let call = await_call(&mut stream).await;
                let storm: Vec<u8> = (0..100).flat_map(|_| goaway(if number == 0 { 0 } else { call })).collect();
                stream.write_all(&storm).await.unwrap();
                if number == 0 {
                    // It stays all the same.
                    stream.read_to_end(&mut Vec::new()).await.ok();
                }
            }
            2 => {
                begin(&mut stream).await;
                await_call(&mut stream).await;
            }
            _ => {
                let mut connection = handshake(stream).await;
                while let Some(Ok((_, to))) = connection.accept().await {
                    answer_well(to);
                    connection.graceful_shutdown();
                }
            }
        }
    })
    .await;
    let unseen = ask(&line).await;
    assert!(matches!(unseen, Err(CallError::Unsent(_))), "{unseen:?}");
    for _ in 0..2 {
        let seen = ask(&line).await;
        assert!(matches!(seen, Err(CallError::Lost(_))), "{seen:?}");
    }
    for _ in 0..3 {
        // The last call of a connection of a certain age, and of the next.
        assert_eq!(ask(&line).await.unwrap(), "answered");
    }
    assert!(dials.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_no_more() {
    let (line, _) = line(|number, mut stream| async move {
        if number == 0 {
            begin(&mut stream).await;
            await_call(&mut stream).await;
            stream.write_all(&frame(SETTINGS, 0, 0, b"odd")).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.ok();
            return;
        }
        let mut connection = handshake(stream).await;
        while let Some(Ok((_, to))) = connection.accept().await {
            answer_well(to);
        }
    })
    .await;
    let nonsense = ask(&line).await;
    assert!(matches!(nonsense, Err(CallError::Lost(_))), "{nonsense:?}");
    assert_eq!(ask(&line).await.unwrap(), "answered");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_answer_runs_into_the_deadline() {
    let silent: [Deed; 3] = [
        std::mem::forget,
        |mut to| std::mem::forget(to.send_response(head(), false).unwrap()),
        |mut to| {
            let mut body = to.send_response(head(), false).unwrap();
            body.send_data(framed(b"answered").into(), false).unwrap();
            std::mem::forget(body);
        },
    ];
    for what in silent {
        assert_eq!(always(what).await, Err(CallError::Timeout));
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_reset_and_harms_no_other() {
    let (given_up, mut resets) = mpsc::unbounded_channel();
    let (line, dials) = line(move |_, stream| {
        let given_up = given_up.clone();
        async move {
            let mut connection = handshake(stream).await;
            let mut calls = 0;
            while let Some(Ok((_, mut to))) = connection.accept().await {
                calls += 1;
                if calls % 2 == 0 {
                    answer_well(to);
                    continue;
                }
                let given_up = given_up.clone();
                tokio::spawn(async move { given_up.send(poll_fn(|cx| to.poll_reset(cx)).await.unwrap()) });
            }
        }
    })
    .await;
    for _ in 0..100 {
        let given_up = ask_within(&line, Duration::from_millis(1));
        let (given_up, answered) = tokio::join!(given_up, async {
            tokio::task::yield_now().await;
            ask(&line).await
        });
        assert_eq!((given_up, answered.unwrap()), (Err(CallError::Timeout), Bytes::from("answered")));
        assert_eq!(resets.recv().await, Some(Reason::CANCEL));
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_gets_no_more_calls_at_a_time_than_it_takes_and_none_that_nobody_waits_for() {
    let go = Arc::new(Notify::new());
    let (sent, mut seen) = mpsc::unbounded_channel();
    let going = Arc::clone(&go);
    let (line, dials) = line(move |_, stream| {
        let (go, sent) = (Arc::clone(&going), sent.clone());
        async move {
            let mut server = h2::server::Builder::new();
            server.max_concurrent_streams(1);
            let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((_, mut to))) = connection.accept().await {
                sent.send(()).unwrap();
                let go = Arc::clone(&go);
                tokio::spawn(async move {
                    tokio::select! {
                        _ = poll_fn(|cx| to.poll_reset(cx)) => {}
                        () = go.notified() => answer_well(to),
                    }
                });
            }
        }
    })
    .await;
    go.notify_one();
    assert_eq!(ask(&line).await.unwrap(), "answered");
    let (first, ()) = tokio::join!(ask(&line), async {
        for _ in 0..10 {
            assert_eq!(ask_within(&line, Duration::from_secs(1)).await, Err(CallError::Timeout));
        }
        go.notify_one();
    });
    assert_eq!(first.unwrap(), "answered");
    let (last, ()) = tokio::join!(ask(&line), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        go.notify_one();
    });
    assert_eq!(last.unwrap(), "answered");
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    let mut calls = 0;
    while seen.try_recv().is_ok() {
        calls += 1;
    }
    // Three that were answered, and the one whose turn it was.
    assert_eq!(calls, 4);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_without_room_for_messages_costs_its_own_calls() {
    let (line, _) = line(|_, stream| async move {
        let mut server = h2::server::Builder::new();
        server.initial_window_size(0);
        let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
        let mut calls = Vec::new();
        while let Some(Ok(call)) = connection.accept().await {
            calls.push(call);
        }
    })
    .await;
    for _ in 0..3 {
        assert_eq!(ask_within(&line, Duration::from_secs(1)).await, Err(CallError::Timeout));
    }
}

/// However many calls it says that it takes, and however large.
#[tokio::test(start_paused = true)]
async fn a_plugin_that_reads_nothing_is_sent_nothing_more() {
    const MESSAGE: usize = 10_000;
    let (reads, mut seen) = (Arc::new(Notify::new()), mpsc::unbounded_channel());
    let (go, sent) = (Arc::clone(&reads), seen.0);
    let (line, dials) = line(move |_, mut stream| {
        let (go, sent) = (Arc::clone(&go), sent.clone());
        async move {
            begin(&mut stream).await;
            stream.write_all(&takes_anything()).await.unwrap();
            go.notified().await;
            loop {
                let call = await_call(&mut stream).await;
                sent.send(call).unwrap();
                stream.write_all(&frame(RST_STREAM, 0, call, &8_u32.to_be_bytes())).await.unwrap();
            }
        }
    })
    .await;
    for _ in 0..100 {
        let calls =
            (0..3).map(|_| line.call(&CALL, vec![7; MESSAGE], MOST, Instant::now() + Duration::from_millis(10)));
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(answers, [Err(CallError::Timeout), Err(CallError::Timeout), Err(CallError::Timeout)]);
    }
    // One whose turn comes when it reads again.
    let waiting = tokio::spawn({
        let line = line.clone();
        async move { ask(&line).await }
    });
    tokio::task::yield_now().await;
    reads.notify_one();
    let reset = waiting.await.unwrap();
    assert!(matches!(reset, Err(CallError::Lost(_))), "{reset:?}");
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    let mut calls = 0;
    while seen.1.try_recv().is_ok() {
        calls += 1;
    }
    // What the connection had room for, those that were made at the same time, and the last one.
    assert!(calls <= (1 << 16) / MESSAGE + 1 + 3 + 1, "{calls}");
}

#[tokio::test]
async fn all_wait_for_one_attempt_and_the_next_call_makes_the_next() {
    let (serving, dials) = dial(|number, mut stream| async move {
        if number == 0 {
            return begin(&mut stream).await;
        }
        let mut connection = handshake(stream).await;
        while let Some(Ok((_, to))) = connection.accept().await {
            answer_well(to);
        }
    });
    let failures = Arc::new(AtomicUsize::new(0));
    let failed = Arc::clone(&failures);
    let refuse = Arc::new(AtomicUsize::new(0));
    let refusing = Arc::clone(&refuse);
    let dial: Dial = Box::new(move || {
        if refusing.load(Ordering::SeqCst) == 0 {
            return serving();
        }
        failed.fetch_add(1, Ordering::SeqCst);
        async { Err(ConnectError::Slow("unix:/x".to_owned())) }.boxed()
    });
    let own = Arc::new(Own::open(dial).await.unwrap());
    let line = Line::Own(Arc::clone(&own));
    while own.connection().is_ok() {
        tokio::task::yield_now().await;
    }
    // That was an attempt of its own.
    assert_eq!(ask(&line).await.unwrap(), "answered");
    assert_eq!(dials.load(Ordering::SeqCst), 2);

    refuse.store(1, Ordering::SeqCst);
    *own.last.lock().unwrap() = futures_util::future::ready(Err("ended".into())).boxed().shared();
    let answers = futures_util::future::join_all((0..50).map(|_| ask(&line))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(CallError::Unsent(_)))), "{answers:?}");
    assert_eq!(failures.load(Ordering::SeqCst), 1);

    refuse.store(0, Ordering::SeqCst);
    let answers = futures_util::future::join_all((0..50).map(|_| ask(&line))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(dials.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_outlives_the_calls_that_wait_for_it() {
    let (serving, _) = dial(|_, stream| async move {
        let mut connection = handshake(stream).await;
        while let Some(Ok((_, to))) = connection.accept().await {
            answer_well(to);
        }
    });
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let dial: Dial = Box::new(move || {
        let (dialled, slow) = (serving(), counted.fetch_add(1, Ordering::SeqCst) > 0);
        async move {
            if slow {
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
            dialled.await
        }
        .boxed()
    });
    let own = Arc::new(Own::open(dial).await.unwrap());
    let line = Line::Own(Arc::clone(&own));
    *own.last.lock().unwrap() = futures_util::future::ready(Err("ended".into())).boxed().shared();
    for _ in 0..4 {
        assert_eq!(ask_within(&line, Duration::from_millis(200)).await, Err(CallError::Timeout));
    }
    assert_eq!(ask_within(&line, Duration::from_millis(200)).await.unwrap(), "answered");
    assert_eq!(dials.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_ends_with_its_line() {
    let (ended, mut end) = mpsc::unbounded_channel();
    let (line, _) = line(move |_, stream| {
        let ended = ended.clone();
        async move {
            let mut connection = handshake(stream).await;
            while let Some(Ok((_, to))) = connection.accept().await {
                answer_well(to);
            }
            ended.send(()).unwrap();
        }
    })
    .await;
    assert_eq!(ask(&line).await.unwrap(), "answered");
    drop(line);
    assert_eq!(end.recv().await, Some(()));
}

#[tokio::test]
async fn over_a_shared_connection_it_is_known_too_what_was_seen() {
    // With the stream of the call.
    type End = fn(u32) -> Vec<u8>;
    let ends: [(bool, End); 5] = [
        (true, |_| goaway(0)),
        (true, |call| frame(RST_STREAM, 0, call, &7_u32.to_be_bytes())),
        (false, goaway),
        (false, |call| frame(GOAWAY, 0, 0, &[call.to_be_bytes(), 11_u32.to_be_bytes()].concat())),
        (false, |_| Vec::new()),
    ];
    for (index, (unsent, end)) in ends.into_iter().enumerate() {
        let line = shared_line(move |mut stream| async move {
            begin(&mut stream).await;
            let call = await_call(&mut stream).await;
            stream.write_all(&end(call)).await.unwrap();
        })
        .await;
        let answer = ask(&line).await;
        assert_eq!(matches!(answer, Err(CallError::Unsent(_))), unsent, "{index}: {answer:?}");
        assert_eq!(matches!(answer, Err(CallError::Lost(_))), !unsent, "{index}: {answer:?}");
    }
}

#[tokio::test]
async fn what_was_never_given_to_a_shared_connection_is_unsent() {
    let end = Arc::new(Notify::new());
    let ends = Arc::clone(&end);
    let line = shared_line(move |stream| {
        let end = Arc::clone(&ends);
        async move {
            let mut connection = handshake(stream).await;
            answer_well(connection.accept().await.unwrap().unwrap().1);
            tokio::select! {
                biased;
                () = end.notified() => {}
                _ = connection.accept() => panic!("a call"),
            }
        }
    })
    .await;
    assert_eq!(ask(&line).await.unwrap(), "answered");
    // Nobody has seen its end when the calls are made.
    end.notify_one();
    let answers = futures_util::future::join_all((0..5).map(|_| ask(&line))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(CallError::Unsent(_)))), "{answers:?}");
}
