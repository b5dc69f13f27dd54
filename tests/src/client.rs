//! A client that speaks HTTP as it should.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::soon;

type RequestBody = BoxBody<Bytes, Infallible>;

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    /// What requests without a host of their own are for.
    authority: String,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// A response, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Fields behind the body.
    pub trailers: HeaderMap,
}

impl Reply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text, empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    }

    /// Why the proxy answered this itself; empty when it did not.
    #[must_use]
    pub fn reason(&self) -> String {
        self.header("x-palisade-reason")
    }

    /// Fails unless the proxy made this reply itself, for this reason.
    ///
    /// # Panics
    ///
    /// When it is another reply.
    pub fn assert_failed(&self, status: u16, reason: &str) {
        assert_eq!((self.status, self.reason().as_str()), (status, reason), "{self:?}");
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        assert_eq!((&body["status"], &body["reason"]), (&status.into(), &reason.into()), "{self:?}");
        assert_eq!(body["request_id"], self.header("x-request-id"), "{self:?}");
    }
}

/// A request or response that is under way, both ways open.
#[derive(Debug)]
pub struct Stream {
    sender: Option<mpsc::Sender<Result<Frame<Bytes>, Infallible>>>,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Awaited(Asking),
    Coming(Box<Response<Incoming>>),
}

/// Whoever drops this has left.
#[derive(Debug)]
struct Asking(JoinHandle<hyper::Result<Response<Incoming>>>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request for a path with these header fields and no body.
///
/// # Panics
///
/// When it is no request.
#[must_use]
pub fn get(path: &str, headers: &[(&str, &str)]) -> Request<Bytes> {
    let mut request = Request::builder().method(Method::GET).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Bytes::new()).unwrap()
}

/// All of a body.
///
/// # Panics
///
/// When it breaks off.
pub async fn body_of<B>(body: B) -> Bytes
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    soon("a body", body.collect()).await.unwrap().to_bytes()
}

impl Client {
    /// Speaks HTTP/1.1 with a TCP address.
    ///
    /// # Panics
    ///
    /// When it can't be connected to.
    pub async fn http1(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::http1_over(stream, &address.to_string()).await
    }

    /// Speaks HTTP/1.1 with a unix socket.
    ///
    /// # Panics
    ///
    /// When it can't be connected to.
    pub async fn http1_unix(path: &Path) -> Self {
        let stream = soon("a connection", UnixStream::connect(path)).await;
        let stream = stream.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::http1_over(stream, "localhost").await
    }

    /// Speaks HTTP/2 with a TCP address, without asking first.
    ///
    /// # Panics
    ///
    /// When it can't be connected to.
    pub async fn http2(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::http2_over(stream, &address.to_string()).await
    }

    /// Speaks HTTP/1.1 over an open connection.
    ///
    /// # Panics
    ///
    /// When the connection breaks.
    pub async fn http1_over<I>(io: I, authority: &str) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = soon("a handshake", http1::handshake(TokioIo::new(io))).await.unwrap();
        // How a connection ends is seen by its requests.
        tokio::spawn(async move { connection.with_upgrades().await.ok() });
        Self { sender: Sender::Http1(sender), authority: authority.to_owned() }
    }

    /// Speaks HTTP/2 over an open connection.
    ///
    /// # Panics
    ///
    /// When the connection breaks.
    pub async fn http2_over<I>(io: I, authority: &str) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::http2_with(&http2::Builder::new(TokioExecutor::new()), io, authority).await
    }

    /// Speaks HTTP/2 over an open connection, with room for little that was sent and not read yet.
    ///
    /// # Panics
    ///
    /// When the connection breaks.
    pub async fn http2_narrow<I>(io: I, authority: &str) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        const WINDOW: u32 = 64 * 1024;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        Self::http2_with(&builder, io, authority).await
    }

    async fn http2_with<I>(builder: &http2::Builder<TokioExecutor>, io: I, authority: &str) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = soon("a handshake", builder.handshake(TokioIo::new(io))).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        Self { sender: Sender::Http2(sender), authority: authority.to_owned() }
    }

    /// Asks for a path.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(get(path, headers)).await
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    pub async fn send(&mut self, request: Request<Bytes>) -> Reply {
        let what = format!("an answer to {} {}", request.method(), request.uri());
        soon(&what, self.try_send(request)).await.unwrap_or_else(|error| panic!("{what}: {error:?}"))
    }

    /// Sends a request and reads the whole answer, which may fail to come.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    ///
    /// # Panics
    ///
    /// When the request can't be written.
    pub async fn try_send(&mut self, request: Request<Bytes>) -> hyper::Result<Reply> {
        let (parts, body) = request.into_parts();
        // The end of an answer is seen a moment before its connection can take the next request.
        self.ready().await?;
        let response = self.dispatch(Request::from_parts(parts, Full::new(body).boxed())).await?;
        whole(response).await
    }

    /// Begins a request whose body is sent piece by piece.
    ///
    /// # Panics
    ///
    /// When the request can't be written.
    pub fn stream(&mut self, request: Request<()>) -> Stream {
        let (sender, receiver) = mpsc::channel(16);
        let body = StreamBody::new(ReceiverStream::new(receiver)).boxed();
        let answer = Asking(tokio::spawn(self.dispatch(request.map(|()| body))));
        Stream { sender: Some(sender), answer: Answer::Awaited(answer) }
    }

    fn dispatch(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + Send + 'static {
        type Sent = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;
        let sent: Sent = match &mut self.sender {
            Sender::Http1(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", HeaderValue::from_str(&self.authority).unwrap());
                }
                Box::pin(sender.send_request(request))
            }
            Sender::Http2(sender) => {
                *request.version_mut() = Version::HTTP_2;
                let host = request.headers_mut().remove("host");
                let authority = host.as_ref().map_or(self.authority.as_str(), |host| host.to_str().unwrap());
                let path = request.uri().path_and_query().unwrap().clone();
                let uri = http::Uri::builder().scheme("http").authority(authority).path_and_query(path);
                *request.uri_mut() = uri.build().unwrap();
                Box::pin(sender.send_request(request))
            }
        };
        sent
    }

    /// Waits until the connection can take a request.
    ///
    /// # Errors
    ///
    /// When it has been closed.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender) => sender.ready().await,
        }
    }
}

async fn whole(response: Response<Incoming>) -> hyper::Result<Reply> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes(), trailers })
}

impl Stream {
    /// Sends a piece of the body.
    ///
    /// # Panics
    ///
    /// When the request has ended.
    pub async fn send(&mut self, piece: impl Into<Bytes>) {
        let sender = self.sender.as_ref().unwrap();
        soon("room for a piece", sender.send(Ok(Frame::data(piece.into())))).await.unwrap();
    }

    /// Sends trailers, which end the request.
    ///
    /// # Panics
    ///
    /// When the request has ended.
    pub async fn send_trailers(&mut self, fields: &[(&'static str, &'static str)]) {
        let fields = fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let sender = self.sender.take().unwrap();
        soon("room for trailers", sender.send(Ok(Frame::trailers(fields.collect())))).await.unwrap();
    }

    /// Ends the request's body.
    pub fn end(&mut self) {
        self.sender = None;
    }

    /// Waits for the response's head.
    ///
    /// # Panics
    ///
    /// When it does not come.
    pub async fn head(&mut self) -> &Response<Incoming> {
        if let Answer::Awaited(awaited) = &mut self.answer {
            let response = soon("a response's head", &mut awaited.0).await.unwrap().unwrap();
            self.answer = Answer::Coming(Box::new(response));
        }
        match &self.answer {
            Answer::Coming(response) => response,
            Answer::Awaited(_) => unreachable!("it has come"),
        }
    }

    /// Reads the response's body to its end, or to where it breaks off.
    ///
    /// # Panics
    ///
    /// When there is no response.
    pub async fn rest(mut self) -> Bytes {
        self.head().await;
        let Answer::Coming(response) = &mut self.answer else { unreachable!("it has come") };
        let mut body = Vec::new();
        while let Some(Ok(frame)) = soon("a frame", response.body_mut().frame()).await {
            body.extend(frame.into_data().unwrap_or_default());
        }
        body.into()
    }

    /// Waits for the next frame of the response's body.
    ///
    /// # Panics
    ///
    /// When it breaks off.
    pub async fn frame(&mut self) -> Option<Frame<Bytes>> {
        self.head().await;
        let Answer::Coming(response) = &mut self.answer else { unreachable!("it has come") };
        soon("a frame", response.body_mut().frame()).await.map(|frame| frame.unwrap())
    }

    /// Reads the response to its end.
    ///
    /// # Panics
    ///
    /// When it breaks off.
    pub async fn finish(mut self) -> Reply {
        self.end();
        self.head().await;
        let Answer::Coming(response) = self.answer else { unreachable!("it has come") };
        soon("the response's end", whole(*response)).await.unwrap()
    }
}
