//! Plugins that speak HTTP/2 as they like, for tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};

use h2::server::{Connection, SendResponse};
use http::{HeaderMap, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

/// Calls whose plugin gives each of its connections to `serve`, with its number from 0.
pub(super) fn dial<F>(serve: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static) -> (Dial, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let dial = move || {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(counted.fetch_add(1, Ordering::SeqCst), far));
        async move { Ok(Box::new(near) as Box<dyn Stream>) }.boxed()
    };
    (Box::new(dial), dials)
}

/// A connection of its own to such a plugin, and how many there have been.
pub(in crate::plugin) async fn line<F>(
    serve: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static,
) -> (Line, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (dial, dials) = dial(serve);
    (Line::Own(Arc::new(Own::open(dial).await.unwrap())), dials)
}

/// A connection that has other users.
pub(in crate::plugin) async fn shared_line<F>(serve: impl Fn(DuplexStream) -> F + Send + 'static) -> Line
where
    F: Future<Output = ()> + Send + 'static,
{
    let connector = tower::service_fn(move |_| {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(far));
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(near)) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    Line::Shared(endpoint.connect_with_connector(connector).await.unwrap())
}

pub(in crate::plugin) async fn handshake(stream: DuplexStream) -> Connection<DuplexStream, Bytes> {
    h2::server::handshake(stream).await.unwrap()
}

pub(in crate::plugin) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

pub(in crate::plugin) fn head() -> Response<()> {
    Response::builder().header(CONTENT_TYPE, "application/grpc+proto").body(()).unwrap()
}

pub(in crate::plugin) fn said(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
}

/// An answer that comes in these pieces, with these trailers.
pub(in crate::plugin) fn answer(
    mut to: SendResponse<Bytes>,
    pieces: &[&[u8]],
    trailers: Option<&[(&'static str, &str)]>,
) {
    let mut body = to.send_response(head(), false).unwrap();
    for piece in pieces {
        body.send_data(Bytes::copy_from_slice(piece), false).unwrap();
    }
    match trailers {
        Some(fields) => body.send_trailers(said(fields)).unwrap(),
        None => body.send_data(Bytes::new(), true).unwrap(),
    }
}

/// A frame of HTTP/2.
pub(in crate::plugin) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(in crate::plugin) fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

pub(in crate::plugin) const DATA: u8 = 0;
pub(in crate::plugin) const HEADERS: u8 = 1;
pub(in crate::plugin) const RST_STREAM: u8 = 3;
pub(in crate::plugin) const SETTINGS: u8 = 4;
pub(in crate::plugin) const GOAWAY: u8 = 7;
pub(in crate::plugin) const WINDOW_UPDATE: u8 = 8;

/// Says that it takes any number of calls, and of bytes.
pub(in crate::plugin) fn takes_anything() -> Vec<u8> {
    let most = (u32::MAX >> 1).to_be_bytes();
    let settings = frame(SETTINGS, 0, 0, &[&[0, 3][..], &most, &[0, 4], &most].concat());
    [settings, frame(WINDOW_UPDATE, 0, 0, &(u32::MAX >> 2).to_be_bytes())].concat()
}

/// Reads frames until one is the head of a call, and returns its stream.
pub(in crate::plugin) async fn await_call(stream: &mut DuplexStream) -> u32 {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == HEADERS {
            return u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        }
    }
}

pub(in crate::plugin) async fn begin(stream: &mut DuplexStream) {
    stream.read_exact(&mut [0; 24]).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
}
