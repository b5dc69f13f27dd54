//! What reads foreign bytes, as functions of bytes: for the fuzz targets in `proxy/fuzz`, and for the short forms of
//! them here, which run with every test. Each panics when something that must hold does not.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use palisade_plugin_proto::v1::{CheckRequestResponse, CheckResponseResponse};
use prost::Message;
use regex::bytes::{Regex, RegexBuilder};
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{self, Requests};
use crate::http::wire::{self, Bounds, Side};
use crate::http::{Client, Connections, path, serve};
use crate::listener::{Service, Serving, Slot};
use crate::plugin::{CertificateBundle, Plugins, judge_answers, judge_frames};
use crate::proxy::Proxy;
use crate::route::Routes;
use crate::telemetry::Metrics;
use crate::tls;
use crate::upstream::{House, Upstreams};

/// Any text is a configuration or a list of problems, and problems can be shown.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::parse("palisade.yaml".as_ref(), text) {
        Ok(config) => drop(config.effective_yaml()),
        Err(problems) => drop((problems.to_string(), problems.to_json())),
    }
}

/// Two implementations agree on every path.
pub fn paths(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert_eq!(path::normalise(text, &Requests::default()).ok(), reference(text), "{text:?}");
}

/// The canonical form by another way: all is decoded first, then rewritten until nothing changes.
fn reference(text: &str) -> Option<String> {
    let mut decoded = Vec::new();
    let mut written = String::new();
    let mut rest = text.strip_prefix('/').map(|_| text.as_bytes())?;
    while let Some((&first, behind)) = rest.split_first() {
        let encoded = first == b'%';
        let byte = if encoded {
            let digits = behind.get(..2)?;
            rest = &behind[2..];
            let value = |digit: u8| char::from(digit).to_digit(16);
            u8::try_from(value(digits[0])? * 16 + value(digits[1])?).ok()?
        } else {
            rest = behind;
            first
        };
        decoded.push(byte);
        match (byte, encoded) {
            (b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~', _) => written.push(char::from(byte)),
            (b'/' | b'\\' | b';', true) | (0..=0x1f | 0x7f, true) => return None,
            (_, true) => written.push_str(&format!("%{byte:02X}")),
            (_, false) if b"!$&'()*+,=:@/".contains(&byte) => written.push(char::from(byte)),
            (_, false) => return None,
        }
    }
    std::str::from_utf8(&decoded).ok()?;
    while written.contains("//") {
        written = written.replace("//", "/");
    }
    // RFC 3986 section 5.2.4, with an error where it would climb above the root.
    let mut output = String::new();
    let mut input = written;
    while !input.is_empty() {
        if let Some(behind) = input.strip_prefix("/./") {
            input = format!("/{behind}");
        } else if input == "/." {
            input = "/".to_owned();
        } else if input.starts_with("/../") || input == "/.." {
            let parent = output.rfind('/')?;
            output.truncate(parent);
            input = format!("/{}", input.get(4..).unwrap_or_default());
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input.replace_range(..end, "");
        }
    }
    Some(output)
}

/// How HTTP/1 is cut makes no difference to how it is read. The first byte says how.
pub fn heads(bytes: &[u8]) {
    let Some((&size, bytes)) = bytes.split_first() else { return };
    let bounds = Bounds { bytes: 4096, fields: 32, target: 1024 };
    for side in [Side::Client, Side::Server] {
        let whole = wire::read(side, bounds, bytes, &[]);
        let size = usize::from(size).max(1);
        let cuts: Vec<usize> = (0..bytes.len()).step_by(size).collect();
        let cut = wire::read(side, bounds, bytes, &cuts);
        assert_eq!(whole, cut, "{:?}", bytes.escape_ascii());
    }
}

/// Two implementations agree on every chunked body: where it ends, what is in it, and which are none.
pub fn chunked(bytes: &[u8]) {
    const HEAD: &[u8] = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    // Each length of it is read, so it is short.
    let bytes = &bytes[..bytes.len().min(256)];
    let bounds = Bounds { bytes: 128, fields: 4, target: 1024 };
    let read = |body: &[u8]| wire::read(Side::Client, bounds, &[HEAD, body].concat(), &[]);
    let expected = dechunk(bytes, bounds);
    let length = (0..=bytes.len()).find(|length| read(&bytes[..*length]).whole);
    assert_eq!(length, expected.as_ref().map(|(_, length)| *length), "{}", bytes.escape_ascii());
    // What it lacks to be one is mostly not much.
    for end in [&b""[..], b"\n", b"\r\n", b"\n\r\n", b"\r\n\r\n", b":\r\n\r\n", b"\r\n0\r\n\r\n"] {
        let bytes = [bytes, end].concat();
        let expected = dechunk(&bytes, bounds).filter(|(_, length)| *length == bytes.len());
        let reading = read(&bytes);
        assert_eq!(reading.whole && reading.messages.len() == 1, expected.is_some(), "{}", bytes.escape_ascii());
        if let Some((content, _)) = expected {
            let head = read(b"").messages.remove(0);
            assert_eq!(reading.messages, [format!("{head}{content}")], "{}", bytes.escape_ascii());
        }
    }
}

/// What is in a chunked body, as [`wire::read`] shows it, and its length, by another way: line by line.
fn dechunk(bytes: &[u8], bounds: Bounds) -> Option<(String, usize)> {
    static SIZE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n"));
    static FIELD: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)\r\n"));
    static LENGTH: LazyLock<Regex> = LazyLock::new(|| pattern("^(?:0|[1-9][0-9]{0,18})$"));
    let (mut rest, mut content) = (bytes, String::new());
    loop {
        let line = SIZE.captures(rest)?;
        let size = usize::from_str_radix(std::str::from_utf8(&line[1]).ok()?, 16).ok()?;
        rest = &rest[line[0].len()..];
        if size == 0 {
            break;
        }
        let (chunk, behind) = rest.split_at_checked(size)?;
        content.push_str(&chunk.escape_ascii().to_string());
        rest = behind.strip_prefix(b"\r\n")?;
    }
    let (mut trailers, mut fields, lines) = (HeaderMap::new(), 0, rest);
    while let Some(line) = FIELD.captures(rest) {
        rest = &rest[line[0].len()..];
        fields += 1;
        let (name, value) = (HeaderName::from_bytes(&line[1]).ok()?, line[2].trim_ascii());
        // Framing frames nothing here, and is none if it is there twice.
        let framing = name == "content-length" || name == "transfer-encoding";
        if framing && trailers.contains_key(&name) || name == "content-length" && !LENGTH.is_match(value) {
            return None;
        }
        let plain = |option: &[u8]| matches!(&option.trim_ascii().to_ascii_lowercase()[..], b"close" | b"keep-alive");
        if name != "connection" || !value.split(|byte| *byte == b',').all(plain) {
            trailers.append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    rest = rest.strip_prefix(b"\r\n")?;
    if fields > bounds.fields || lines.len() - rest.len() > bounds.bytes {
        return None;
    }
    if fields > 0 {
        content.push_str(&format!("{trailers:?}"));
    }
    Some((content, bytes.len() - rest.len()))
}

fn pattern(text: &str) -> Regex {
    RegexBuilder::new(text).unicode(false).build().expect("a pattern")
}

/// Any message of a plugin is refused, or changes nothing that it may not.
pub fn verdicts(bytes: &[u8]) {
    if let Ok(answer) = CheckRequestResponse::decode(bytes) {
        judge_frames(Some(answer), None);
    }
    if let Ok(answer) = CheckResponseResponse::decode(bytes) {
        judge_frames(None, Some(answer));
    }
}

/// Any bytes that a plugin answers end every call that waits for them, and judge none that they do not name. The first
/// byte says how they are cut.
pub fn answers(bytes: &[u8]) {
    let Some((&size, bytes)) = bytes.split_first() else { return };
    judge_answers(&Bytes::copy_from_slice(bytes), size.into());
}

/// Any bytes are a certificate bundle that fits, or are refused.
pub fn certificates(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (chain, key) = bytes.split_at(at);
    let sent = CertificateBundle {
        name: "fuzz".to_owned(),
        server_names: Vec::new(),
        chain_pem: chain.to_vec(),
        key_pem: key.to_vec(),
    };
    tls::judge(sent, &default_provider(), SystemTime::now());
}

/// Any bytes on a connection come to an end, whatever protocol they begin like, and whatever of them reaches an upstream
/// has been judged, and is read there as it was judged.
pub fn connection(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let sent = Bytes::copy_from_slice(bytes);
    runtime.block_on(async move {
        let ended = tokio::time::timeout(Duration::from_secs(20), exchange(sent)).await;
        assert_eq!(ended.expect("the connection does not end"), Vec::<String>::new());
    });
}

/// A server that reads requests in its own way, hyper's, and notes those that no filter can have let pass.
async fn upstream(listener: UnixListener, wrong: Arc<Mutex<Vec<String>>>) {
    let ids = Arc::new(Mutex::new(HashSet::new()));
    while let Ok((stream, _)) = listener.accept().await {
        let (wrong, ids) = (Arc::clone(&wrong), Arc::clone(&ids));
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (wrong, ids) = (Arc::clone(&wrong), Arc::clone(&ids));
            async move {
                let all = |name: &str| request.headers().get_all(name).iter().cloned().collect::<Vec<_>>();
                let path = request.uri().path();
                let id = all("x-request-id").pop().unwrap_or(HeaderValue::from_static(""));
                // There may be several, each of which has been compared.
                let users = all("user");
                let judged = !users.is_empty()
                    && users.iter().all(|user| user == "admin")
                    && all("host").len() == 1
                    && id.len() == 32
                    && path::normalise(path, &Requests::default()).is_ok_and(|canonical| canonical == path)
                    && lock(&ids).insert(id);
                if !judged {
                    lock(&wrong).push(format!("{request:?}"));
                }
                request.into_body().collect().await?;
                Ok::<_, hyper::Error>(http::Response::new("ok".to_owned()))
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what the upstream should not have got.
async fn exchange(sent: Bytes) -> Vec<String> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let socket = std::env::temp_dir().join(format!("palisade-fuzz-{}-{number}.sock", std::process::id()));
    let listener = UnixListener::bind(&socket).expect("a socket");
    let wrong = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(upstream(listener, Arc::clone(&wrong)));
    let text = format!(
        "listeners: [{{address: 'unix:/run/fuzz.sock', filters: [{{header: {{name: User, value: admin}}}}], \
         limits: {{header_timeout: 1s, idle_timeout: 1s, first_byte_timeout: 1s, body_idle_timeout: 1s}}}}]\n\
         routes: [{{upstream: 'unix:{}', timeout: 2s}}]\n",
        socket.display()
    );
    let config = config::parse("palisade.yaml".as_ref(), &text).expect("a configuration");
    let (metrics, plugins, connections) = (Arc::new(Metrics::default()), Plugins::default(), Connections::default());
    let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
    let upstreams = Upstreams::new(
        &config.upstreams,
        None,
        House { workers: 1, tasks: &tasks, end: &end, metrics: &metrics, overload: &Arc::default() },
    );
    let routes = Arc::new(Routes::new(&config.routes, &upstreams, &plugins, &metrics).expect("routes"));
    let listener = &config.listeners[0];
    let owned = Arc::default();
    let proxy = Proxy::new(listener, &routes, &plugins, &owned, &metrics).expect("no plugins");
    let service = Service {
        name: "fuzz".into(),
        address: listener.address.clone(),
        limits: listener.limits,
        tls: None,
        trusted_proxies: Vec::new(),
        connections: connections.clone(),
        metrics,
    };
    let slot = Slot::new(Arc::new(Serving { service: Arc::new(service), proxy: Arc::new(proxy) }), &end);
    let client = Client {
        place: None,
        listener: "fuzz".into(),
        peer: None,
        forwarded: std::sync::OnceLock::new(),
        local: listener.address.clone(),
        tls: None,
        trusted: false,
    };
    let (mut far, near) = duplex(1 << 20);
    let serving = serve(Box::new(near), None, Arc::new(client), &listener.limits, Arc::new(slot), &connections);
    let talking = async move {
        // The server may have had enough.
        let _closed = far.write_all(&sent).await;
        let _closed = far.shutdown().await;
        let _closed = far.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(serving, talking);
    std::fs::remove_file(socket).expect("the socket is there");
    std::mem::take(&mut *lock(&wrong))
}

#[cfg(test)]
mod tests {
    use palisade_plugin_proto::v1::{CheckAnswer, CheckBatchAnswer, check_answer};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_implementations_agree_on_paths(path in "(/|/?(\\.|%2e|%2E|a|%41|%2f|//|/|;|%c3%a9|%|%00|b|~|:|é| ){0,12})") {
            paths(path.as_bytes());
        }

        #[test]
        fn any_configuration_is_one_or_is_not(text in "(listeners|routes|: |\\n|  |- |\\[|\\]|\\{|\\}|a|&a|\\*a|'|\"|address|1s){0,20}") {
            configuration(text.as_bytes());
        }

        #[test]
        fn any_head_is_read_in_one_way(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            heads(&bytes);
        }

        #[test]
        fn two_implementations_agree_on_chunked_bodies(
            body in "(0|1|2|a|F|;|;x=y|;\t|\r|\n|\r\n|0\r\n|1\r\nx\r\n|3;q\r\nabc\r\n|\r\n\r\n|b: c\r\n|content-length: 1\r\n|connection: |close|:| |_|é|\x00){0,16}"
        ) {
            chunked(body.as_bytes());
        }

        #[test]
        fn any_verdict_is_judged(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            verdicts(&bytes);
        }

        #[test]
        fn any_answers_end_every_call(
            size in 0_u8..20,
            messages in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..8),
                (1_u64..6, 0_u64..6, any::<bool>(), 0_u32..3).prop_map(|(serial, index, request, taken)| {
                    let answer = match request {
                        true => check_answer::Answer::Request(CheckRequestResponse::allow()),
                        false => check_answer::Answer::Response(CheckResponseResponse::default()),
                    };
                    let answers = vec![CheckAnswer { id: serial << 14 | index, answer: Some(answer) }];
                    CheckBatchAnswer { answers, taken: taken / 2, config_hash: "hash".to_owned() }.encode_to_vec()
                }),
            ], 0..5),
            rest in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let framed = messages.iter().flat_map(|message| {
                let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
                [&[0][..], &length, message].concat()
            });
            let bytes: Vec<u8> = [size].into_iter().chain(framed).chain(rest).collect();
            answers(&bytes);
        }

        #[test]
        fn any_bundle_is_judged(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            certificates(&bytes);
        }
    }

    #[test]
    fn any_connection_comes_to_an_end() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let settings = [&preface[..], b"\0\0\0\x04\0\0\0\0\0"].concat();
        for sent in [
            &b""[..],
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a/../b HTTP/1.1\r\nHost: a\r\nUser: admin\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nUser: admin\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nmore",
            b"\x16\x03\x01\0\0",
            preface,
            &settings,
            &[&settings[..], b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a"].concat(),
            &[&settings[..], b"\0\0\x02\x01\x01\0\0\0\x01\x82\x86"].concat(),
        ] {
            connection(sent);
        }
    }
}
