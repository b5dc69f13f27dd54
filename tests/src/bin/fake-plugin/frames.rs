//! MOSN's contract over HTTP/2 as a plugin likes it: `X-Fake` in a call says what comes of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use palisade_plugin_proto::mosn;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// Serves until somebody kills it.
pub(crate) async fn serve() -> ! {
    let path = crate::socket_dir().join("plugin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    crate::print(format!("1|1|unix|{}|grpc\n", path.display()).as_bytes());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(connection(stream));
    }
}

/// How a call ends its connection.
#[derive(Default)]
struct End {
    goaway: Notify,
    cut: Notify,
}

async fn connection(stream: UnixStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let end = Arc::new(End::default());
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, to))) = accepted else { return };
                match request.uri().path() {
                    "/proto.Plugin/Call" => drop(tokio::spawn(call(request.into_body(), to, Arc::clone(&end)))),
                    // Not base64.
                    _ => fail(to, &[("grpc-status", "12"), ("grpc-status-details-bin", "!")]),
                }
            }
            () = end.goaway.notified() => connection.abrupt_shutdown(Reason::NO_ERROR),
            () = end.cut.notified() => return,
        }
    }
}

fn head(kind: &'static str) -> Response<()> {
    Response::builder().header("content-type", kind).body(()).unwrap()
}

fn fail(mut to: SendResponse<Bytes>, said: &[(&'static str, &'static str)]) {
    let mut head = head("application/grpc");
    head.headers_mut()
        .extend(said.iter().map(|(name, text)| (HeaderName::from_static(name), HeaderValue::from_static(text))));
    // Whoever asked may have left.
    to.send_response(head, true).map(drop).ok();
}

/// Whether this request was not asked about before.
fn is_new(id: String) -> bool {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    SEEN.lock().unwrap().insert(id)
}

async fn call(mut body: RecvStream, mut to: SendResponse<Bytes>, end: Arc<End>) {
    let mut sent = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        sent.extend(data);
    }
    let Some(request) = sent.get(5..).and_then(|message| mosn::Request::decode(message).ok()) else { return };
    let said = |name: &str| request.header.get(name).cloned().unwrap_or_default();
    let status = if said("User") == "admin" { 1 } else { -1 };
    let answer = mosn::Response { status, ..mosn::Response::default() }.encode_to_vec();
    let mut framed = [&[0, 0, 0, 0, u8::try_from(answer.len()).unwrap()][..], &answer].concat();
    let mut kind = "application/grpc";
    let mut trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    match &*said("X-Fake") {
        "" => {}
        "page" => kind = "text/html",
        "no-status" => trailers.clear(),
        "two" => framed = framed.repeat(2),
        "half" => drop(framed.pop()),
        "compressed" => framed[0] = 1,
        "large" => framed[1] = 0xff,
        "odd" => framed[5..].fill(0xff),
        "details" => return fail(to, &[("grpc-status", "3"), ("grpc-status-details-bin", "!")]),
        "refuse" => return to.send_reset(Reason::REFUSED_STREAM),
        "refuse-first" if is_new(said("X-Request-Id")) => return to.send_reset(Reason::REFUSED_STREAM),
        "refuse-first" => {}
        "reset" => return to.send_reset(Reason::INTERNAL_ERROR),
        "goaway" => end.goaway.notify_one(),
        "cut" => return end.cut.notify_one(),
        "mute" => std::future::pending().await,
        "half-mute" => {
            let mut body = to.send_response(head(kind), false).unwrap();
            body.send_data(framed.into(), false).unwrap();
            return std::future::pending().await;
        }
        other => panic!("no such thing: {other:?}"),
    }
    let Ok(mut body) = to.send_response(head(kind), false) else { return };
    if body.send_data(framed.into(), false).is_ok() {
        body.send_trailers(trailers).ok();
    }
}
