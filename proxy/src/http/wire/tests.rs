#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { bytes: 4096, fields: 8, target: 64 };

/// What passes of `bytes` when they come in pieces that end at these places.
fn run(side: Side, bytes: &[u8], cuts: &[usize]) -> (usize, Option<Fault>) {
    let mut framer = Framer::new(side, BOUNDS);
    if side == Side::Server {
        framer.expect(false);
    }
    let mut passed = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        match framer.pass(&bytes[passed..end.max(passed)]) {
            Passed::Some(count) | Passed::Held(count) => passed += count,
            Passed::Fault(count, fault) => return (passed + count, Some(fault)),
        }
    }
    (passed, None)
}

/// The same, whole and byte by byte.
fn both(side: Side, bytes: &[u8]) -> (usize, Option<Fault>) {
    let whole = run(side, bytes, &[]);
    let cut = run(side, bytes, &(0..bytes.len()).collect::<Vec<_>>());
    assert_eq!(whole.1.map(|fault| fault.reason), cut.1.map(|fault| fault.reason), "{:?}", bytes.escape_ascii());
    whole
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
        assert_eq!(both(Side::Client, request.as_bytes()), (request.len(), None), "{request:?}");
    }
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
        let (passed, fault) = both(Side::Client, request.as_bytes());
        assert_eq!((passed, fault.map(|fault| fault.reason)), (0, Some(reason)), "{request:?}");
    }
}

#[test]
fn a_chunked_body_has_one_reading() {
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
    ] {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (passed, fault) = both(Side::Client, format!("{head}{body}").as_bytes());
        assert_eq!(fault.map(|fault| fault.reason), Some(Reason::BadBody), "{body:?}");
        assert!(passed >= head.len(), "{body:?}: {passed}");
    }
}

#[test]
fn bytes_behind_a_request_to_switch_wait() {
    let request = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    let mut framer = Framer::new(Side::Client, BOUNDS);
    assert_eq!(framer.pass(&[&request[..], b"more"].concat()), Passed::Held(request.len()));
    assert!(framer.is_undecided());
    assert_eq!(framer.pass(b"more"), Passed::Held(0));
    framer.go_on();
    assert_eq!(framer.pass(b"GET / HTTP/1.1\r\n\r\n"), Passed::Some(18));
    assert_eq!(framer.heads(), 2);
    framer.switch();
    assert_eq!(framer.pass(b"\0\xff"), Passed::Some(2));
}

#[test]
fn one_request_gets_one_response() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for response in [
        ok.to_owned(),
        "HTTP/1.1 204 \r\n\r\n".to_owned(),
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_owned(),
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n{ok}"),
        "HTTP/1.1 200 OK\r\n\r\nuntil the end".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(),
    ] {
        assert_eq!(both(Side::Server, response.as_bytes()), (response.len(), None), "{response:?}");
    }
    for response in [
        format!("{ok}{ok}"),
        format!("{ok}\r\n"),
        "HTTP/1.1 204 No Content\r\n\r\nbody".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned(),
        "HTTP/1.1 099 No\r\n\r\n".to_owned(),
        "HTTP/2 200\r\n\r\n".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(11),
    ] {
        assert!(both(Side::Server, response.as_bytes()).1.is_some(), "{response:?}");
    }
    let mut framer = Framer::new(Side::Server, BOUNDS);
    assert!(matches!(framer.pass(ok.as_bytes()), Passed::Fault(0, _)), "nothing was asked");
    let mut framer = Framer::new(Side::Server, BOUNDS);
    framer.expect(true);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(framer.pass(head.as_bytes()), Passed::Some(head.len()));
    assert!(framer.is_done(), "the answer to a HEAD has no body");
}

proptest! {
    #[test]
    fn how_bytes_are_cut_makes_no_difference(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "Host: a\r\n", "Content-Length: 5\r\n", "\r\n", "\n", "\r",
            "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n", "0\r\n\r\n", "hello", "X: y", ": ", " ", "\0", "a",
        ]), 0..12),
        cuts in prop::collection::vec(0_usize..120, 0..8),
    ) {
        let bytes = pieces.concat().into_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let whole = run(Side::Client, &bytes, &[]);
        let cut = run(Side::Client, &bytes, &cuts);
        prop_assert_eq!(whole.1.map(|fault| fault.reason), cut.1.map(|fault| fault.reason));
        if whole.1.is_none() {
            prop_assert_eq!(whole, cut);
        }
    }
}
