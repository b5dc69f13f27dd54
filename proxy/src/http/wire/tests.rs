#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use http_body::Frame;
use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::judge::Reading;
use super::*;
use crate::http::BoxError;

const BOUNDS: Bounds = Bounds { bytes: 4096, fields: 8, target: 64 };

/// What is read of `bytes`, whole and byte by byte.
fn both(side: Side, bytes: &[u8]) -> Reading {
    let whole = read(side, BOUNDS, bytes, &[]);
    let cut = read(side, BOUNDS, bytes, &(0..bytes.len()).collect::<Vec<_>>());
    assert_eq!(whole, cut, "{:?}", bytes.escape_ascii());
    whole
}

#[test]
fn a_body_is_never_read_as_a_head() {
    for framing in ["Content-Length: 60", "Transfer-Encoding: chunked"] {
        let mut reader = Reader::new(BOUNDS);
        reader.feed(format!("POST / HTTP/1.1\r\n{framing}\r\n\r\nGET / HTTP/1.1\r\n\r\n").as_bytes());
        assert!(reader.request().unwrap().is_some());
        assert!(reader.request().is_err() && reader.response().is_err(), "{framing}");
    }
}

/// The pieces that a body of 1 MB is read in. `first`: bytes of its message that come before all others.
async fn pieces(first: usize) -> Vec<usize> {
    let bytes = [&b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"[..], &[b'x'; 1_000_000]].concat();
    let (mut from, rest) = bytes.split_at(first);
    let mut reader = Reader::new(BOUNDS);
    let mut pieces = Vec::new();
    while !reader.is_at_end() || pieces.is_empty() {
        if from.is_empty() {
            from = rest;
        }
        std::future::poll_fn(|cx| reader.poll_read(Pin::new(&mut from), cx)).await.unwrap();
        if pieces.is_empty() {
            let head = reader.response().unwrap().unwrap();
            reader.begin(head.framing);
        }
        let Piece::Data(data) = reader.body().unwrap() else { panic!("no data") };
        pieces.push(data.len());
    }
    assert_eq!(pieces.iter().sum::<usize>(), 1_000_000);
    pieces
}

#[tokio::test]
async fn what_has_come_of_a_body_is_read_in_few_pieces_of_bounded_size() {
    let all_there = pieces(1_000_000).await;
    assert!(all_there[0] <= 4 << 10 && all_there.iter().all(|piece| *piece <= 64 << 10), "{all_there:?}");
    assert!(all_there.len() < 40, "{all_there:?}");
    // More may not come: no room is held for it.
    let begun = pieces(1000).await;
    assert!(begun[0] <= 1000 && begun[1] <= 8 << 10 && begun.len() < 40, "{begun:?}");
}

#[test]
fn requests_that_can_be_read_in_one_way_pass() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:a\r\nX: \t y \r\nEmpty:\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \u{e9}\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 28\r\n\r\nGET /inner HTTP/1.1\r\nHost:\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000001A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n",
    ] {
        let reading = both(Side::Client, request.as_bytes());
        let heads = request.matches(" HTTP/1.").count();
        assert_eq!((reading.whole, reading.messages.len()), (true, heads - usize::from(request.contains("inner"))));
    }
}

#[test]
fn what_is_read_is_what_was_sent() {
    let request = "\r\nPOST /a?b HTTP/1.0\r\nHost:a\r\nX: \t y z \r\nx:\r\nContent-Length: 3\r\n\r\nabc";
    let mut reader = Reader::new(BOUNDS);
    reader.feed(request.as_bytes());
    let head = reader.request().unwrap().unwrap();
    assert_eq!((head.method.as_str(), head.uri.to_string(), head.version), ("POST", "/a?b".into(), Version::HTTP_10));
    let values: Vec<_> = head.headers.get_all("x").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!((values, head.headers.len(), &head.headers["host"]), (vec!["y z", ""], 4, &"a".parse().unwrap()));
    assert_eq!(reader.left(), Some(3));
    assert!(matches!(reader.body(), Ok(Piece::Data(data)) if data == "abc"));
    assert!(matches!(reader.body(), Ok(Piece::End)) && reader.is_empty());

    reader.feed(b"PUT * HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX-Sum: 1\r\n\r\nG");
    assert_eq!(reader.request().unwrap().unwrap().method, "PUT");
    assert_eq!(reader.left(), None);
    for piece in ["ab", "c"] {
        assert!(matches!(reader.body(), Ok(Piece::Data(data)) if data == piece));
    }
    assert!(matches!(reader.body(), Ok(Piece::Trailers(trailers)) if trailers["x-sum"] == "1"));
    assert!(reader.is_at_end() && matches!(reader.body(), Ok(Piece::End)));
    assert_eq!(reader.rest(), "G", "the next one is left alone");
}

#[test]
fn requests_that_could_be_read_in_two_ways_do_not_pass() {
    use Reason as R;
    let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    let cases = [
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), R::Malformed),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), R::Malformed),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(), R::Malformed),
        ("\nGET / HTTP/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("GET  / HTTP/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("GET /\tHTTP/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("GET / HTTP/1.1 \r\n\r\n".to_owned(), R::Malformed),
        ("GET /\r\n\r\n".to_owned(), R::Malformed),
        ("GET / HTTP/1.2\r\n\r\n".to_owned(), R::Malformed),
        ("GET / http/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("GET / HTTP/01.1\r\n\r\n".to_owned(), R::Malformed),
        ("G(T / HTTP/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("GET /\u{e9} HTTP/1.1\r\n\r\n".to_owned(), R::Malformed),
        ("GET /a#b HTTP/1.1\r\n\r\n".to_owned(), R::BadPath),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64)), R::TargetTooLong),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(5000)), R::TargetTooLong),
        (head(&format!("X: {}", "a".repeat(5000))), R::HeadersTooLarge),
        (head(&["X: 1"; 8].join("\r\n")), R::HeadersTooLarge),
        (head("X: a\r\n b"), R::Malformed),
        (head("X: a\r\n\tb: c"), R::Malformed),
        (head("X : a"), R::Malformed),
        (head(": a"), R::Malformed),
        (head("X"), R::Malformed),
        (head("X\u{e9}: a"), R::Malformed),
        (head("X: a\rb"), R::Malformed),
        (head("X: a\0b"), R::Malformed),
        (head("X: a\u{b}b"), R::Malformed),
        (head("Content-Length: 3\r\nContent-Length: 3"), R::BadFraming),
        (head("Content-Length: 3, 3"), R::BadFraming),
        (head("Content-Length: +3"), R::BadFraming),
        (head("Content-Length: -0"), R::BadFraming),
        (head("Content-Length: 0x1"), R::BadFraming),
        (head("Content-Length: 03"), R::BadFraming),
        (head("Content-Length:"), R::BadFraming),
        (head("Content-Length: 99999999999999999999"), R::BadFraming),
        (head("Content-Length: 3\r\nTransfer-Encoding: chunked"), R::BadFraming),
        (head("Transfer-Encoding: chunked\r\nContent-Length: 3"), R::BadFraming),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), R::BadFraming),
        (head("Transfer-Encoding: chunked, chunked"), R::BadFraming),
        (head("Transfer-Encoding: chunked, identity"), R::BadFraming),
        (head("Transfer-Encoding: \"chunked\""), R::BadFraming),
        (head("Transfer-Encoding:"), R::BadFraming),
        (head("Transfer-Encoding: chunked,"), R::BadFraming),
        (head("Transfer-Encoding: gzip, chunked"), R::CodingRefused),
        (head("Transfer-Encoding: identity"), R::CodingRefused),
        (head("Transfer-Encoding: xchunked"), R::CodingRefused),
        (head("Transfer-Encoding\t: chunked"), R::Malformed),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), R::BadFraming),
    ];
    for (request, reason) in cases {
        let reading = both(Side::Client, request.as_bytes());
        assert_eq!((reading.messages.len(), reading.fault), (0, Some(reason)), "{request:?}");
    }
}

#[test]
fn a_chunked_body_has_one_reading() {
    let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "x\r\n",
        "\r\n",
        " 3\r\nabc",
        "3 \r\nabc",
        "0x3\r\nabc",
        "+3\r\nabc",
        "3\nabc",
        "3\r\nabcd\r\n",
        "3\r\nabc\n",
        "3;a\n\r\n",
        "3;\0\r\n",
        "0\r\n\n",
        "0\r\n \r\n",
        "0\r\nX\r\n\r\n",
        "0\r\nX : 1\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
        "1234567890123456\r\n",
        "1\r\na\r\n5 XXX\r\n0\r\n\r\n",
    ] {
        let reading = both(Side::Client, format!("{head}{body}").as_bytes());
        assert_eq!((reading.messages.len(), reading.fault), (1, Some(Reason::BadBody)), "{body:?}");
    }
    let trailers = "0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(both(Side::Client, format!("{head}{trailers}").as_bytes()).fault, Some(Reason::BadFraming));
}

#[test]
fn responses_have_one_reading() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for (response, messages) in [
        (ok.to_owned(), 1),
        ("HTTP/1.1 204 \r\n\r\n".to_owned(), 1),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_owned(), 1),
        (format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n{ok}"), 3),
        ("HTTP/1.1 200 OK\r\n\r\nuntil the end".to_owned(), 1),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(), 1),
    ] {
        let reading = both(Side::Server, response.as_bytes());
        assert_eq!((reading.whole, reading.messages.len()), (true, messages), "{response:?}");
    }
    for response in [
        format!("{ok}more\r\n\r\n"),
        "HTTP/1.1 204 No Content\r\n\r\nbody\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned(),
        "HTTP/1.1 099 No\r\n\r\n".to_owned(),
        "HTTP/1.1 600 No\r\n\r\n".to_owned(),
        "HTTP/1.1 2000 No\r\n\r\n".to_owned(),
        "HTTP/2 200\r\n\r\n".to_owned(),
    ] {
        assert!(both(Side::Server, response.as_bytes()).fault.is_some(), "{response:?}");
    }
    assert!(!both(Side::Server, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok").whole, "it was cut off");
}

/// A body that comes in these frames.
struct Frames(Vec<Option<Frame<Bytes>>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        let Some(frame) = self.0.remove(0) else {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

#[tokio::test]
async fn what_is_written_is_read_again() {
    let large = Bytes::from(vec![b'x'; 70_000]);
    let data = |data: &Bytes| Some(Frame::data(data.clone()));
    let small = Bytes::from_static(b"small");
    let pieces = || vec![data(&small), None, data(&large), data(&Bytes::new()), data(&small), None, data(&large)];
    let length = 2 * (large.len() + small.len());
    for ends in [Ends::Length(length as u64), Ends::Chunked, Ends::Closed] {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", HeaderValue::from_static("7"));
        let mut out = Vec::new();
        write::response(&mut out, Version::HTTP_11, StatusCode::OK, &headers, ends, false);
        let mut outgoing = Outgoing::new(out, ends, false, true);
        let (mut near, mut far) = tokio::io::duplex(100);
        let mut body = Frames(pieces());
        if ends == Ends::Chunked {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("1"));
            body.0.push(Some(Frame::trailers(trailers)));
        }
        let writing = async move {
            std::future::poll_fn(|cx| outgoing.poll(cx, Pin::new(&mut near), Pin::new(&mut body))).await.unwrap();
            assert!(outgoing.is_done() && outgoing.is_begun());
        };
        let mut sent = Vec::new();
        tokio::join!(writing, async { far.read_to_end(&mut sent).await.unwrap() });

        let mut reader = Reader::new(BOUNDS);
        reader.feed(&sent);
        let head = reader.response().unwrap().unwrap();
        reader.begin(head.framing);
        let (mut read, mut trailers) = (0, 0);
        loop {
            match reader.body().unwrap() {
                Piece::Data(data) => read += data.len(),
                Piece::Trailers(fields) => trailers = fields.len(),
                Piece::End => break,
                Piece::More => break assert!(reader.finish() && ends == Ends::Closed),
            }
        }
        assert_eq!((read, trailers), (length, usize::from(ends == Ends::Chunked)), "{ends:?}");
        assert!(reader.is_empty());
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_was_said_is_cut() {
    for said in [4, 6] {
        let mut outgoing = Outgoing::new(Vec::new(), Ends::Length(said), false, false);
        let mut body = Frames(vec![Some(Frame::data(Bytes::from_static(b"small")))]);
        let mut out = tokio::io::sink();
        let sent = std::future::poll_fn(|cx| outgoing.poll(cx, Pin::new(&mut out), Pin::new(&mut body))).await;
        assert!(matches!(sent, Err(Cut::Body(_))), "{said}");
    }
}

#[test]
fn numbers_are_written_as_they_are_read() {
    for number in [0, 1, 9, 10, 15, 16, 255, 256, 4096, 65_535, usize::MAX] {
        let mut out = Vec::new();
        write::chunk(&mut out, number);
        assert_eq!(out, format!("{number:x}\r\n").as_bytes());
        let mut out = Vec::new();
        write::end(&mut out, Ends::Length(number as u64));
        assert_eq!(out, format!("content-length: {number}\r\n\r\n").as_bytes());
    }
}

proptest! {
    #[test]
    fn how_bytes_are_cut_makes_no_difference(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "Host: a\r\n", "Content-Length: 5\r\n", "\r\n", "\n", "\r",
            "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n", "5 X\r\n", "0\r\n\r\n", "hello", "X: y", ": ", " ", "\0", "a",
        ]), 0..12),
        cuts in prop::collection::vec(0_usize..120, 0..8),
    ) {
        let bytes = pieces.concat().into_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        prop_assert_eq!(read(Side::Client, BOUNDS, &bytes, &[]), read(Side::Client, BOUNDS, &bytes, &cuts));
    }
}
