//! Reads the answer to a call, of which every byte is a plugin's: one message, behind it that the call went well.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::future::poll_fn;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use palisade_plugin_proto::pieces::Pieces;
use percent_encoding::percent_decode;
use tonic::{Code, Status};

use super::super::CallError;
use super::super::status::call_error;

/// Reads the answer of `service`, whose one message may have `most` bytes.
pub(in crate::plugin) async fn read<B>(
    answer: Response<B>,
    most: usize,
    service: &'static str,
) -> Result<Bytes, CallError>
where
    B: Body<Data = Bytes, Error = CallError> + Unpin,
{
    let mut messages = Messages::of(answer, most, service)?;
    let Some(message) = messages.next().await? else { return Err(invalid("there is no message")) };
    match messages.next().await? {
        None => Ok(message),
        Some(_) => Err(unreadable("there is more than one message")),
    }
}

/// The messages of an answer as they come, to their end.
#[derive(Debug)]
pub(in crate::plugin) struct Messages<B> {
    body: B,
    pieces: Pieces,
    service: &'static str,
    /// It was said that the call went well.
    over: bool,
}

impl<B: Body<Data = Bytes, Error = CallError> + Unpin> Messages<B> {
    /// Those of `service`, each of at most `most` bytes.
    pub(in crate::plugin) fn of(answer: Response<B>, most: usize, service: &'static str) -> Result<Self, CallError> {
        let (head, body) = answer.into_parts();
        // Errors come without a body, and with their status in the only headers that there are.
        let said = judge(&head.headers, service)?;
        if head.status != StatusCode::OK {
            return Err(refused(head.status));
        }
        if !is_grpc(&head.headers) {
            return Err(invalid("its content-type is not application/grpc"));
        }
        let over = matches!(said, Said::Ok) && body.is_end_stream();
        Ok(Self { body, pieces: Pieces::new(most), service, over })
    }

    /// The next message, in one piece; `None`: there are no more, and the call went well. Cancel safe.
    pub(in crate::plugin) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = self.pieces.take().map_err(|error| unreadable(&error.to_string()))? {
                return Ok(Some(message));
            }
            if self.over {
                return match self.pieces.held() {
                    0 => Ok(None),
                    _ => Err(invalid("the message ends before its end")),
                };
            }
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await.transpose()?;
            let trailers = match frame.map(Frame::into_data) {
                Some(Ok(piece)) => {
                    self.pieces.push(piece);
                    continue;
                }
                Some(Err(frame)) => frame.into_trailers().unwrap_or_default(),
                None => HeaderMap::new(),
            };
            match judge(&trailers, self.service)? {
                Said::Ok => self.over = true,
                Said::Nothing => return Err(invalid("it does not say how the call went")),
            }
        }
    }
}

fn invalid(what: &str) -> CallError {
    CallError::Invalid(format!("the answer is not gRPC's: {what}"))
}

/// There was an answer, whatever it was. One that ends before it is whole, as where the plugin does, is not such a one.
fn unreadable(why: &str) -> CallError {
    CallError::Unreadable(format!("the answer can't be read: {why}"))
}

/// What headers say of how the call went, unless it is an error.
enum Said {
    Ok,
    Nothing,
}

fn judge(headers: &HeaderMap, service: &str) -> Result<Said, CallError> {
    let Some(code) = headers.get(Status::GRPC_STATUS) else { return Ok(Said::Nothing) };
    match Code::from_bytes(code.as_bytes()) {
        Code::Ok => Ok(Said::Ok),
        Code::Unimplemented => Err(CallError::Failed(format!("it does not serve {service}"))),
        code => {
            let message =
                headers.get(Status::GRPC_MESSAGE).map(|text| percent_decode(text.as_bytes()).decode_utf8_lossy());
            Err(call_error(&Status::new(code, message.unwrap_or_default())))
        }
    }
}

/// What a status of HTTP means where there is none of gRPC (gRPC's http-grpc-status-mapping).
fn refused(status: StatusCode) -> CallError {
    let text = format!("it answers with HTTP status {}", status.as_u16());
    match status.as_u16() {
        429 | 502..=504 => CallError::Lost(text),
        _ => CallError::Failed(text),
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// An answer that comes in pieces of `size` bytes, and well to its end.
#[cfg(any(test, fuzzing))]
pub(in crate::plugin) fn in_pieces(
    bytes: &Bytes,
    size: usize,
) -> Response<impl Body<Data = Bytes, Error = CallError> + Unpin + use<>> {
    use futures_util::stream;
    use http::HeaderValue;

    let cuts = (0..bytes.len()).step_by(size.max(1));
    let mut frames: Vec<_> =
        cuts.map(|at| Ok(Frame::data(bytes.slice(at..bytes.len().min(at + size.max(1)))))).collect();
    let ok = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
    frames.push(Ok(Frame::trailers(ok)));
    let mut answer = Response::new(http_body_util::StreamBody::new(stream::iter(frames)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn only_types_of_grpc_are_its() {
        let is = |kind: &'static str| is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]));
        assert!(["application/grpc", "application/grpc+proto", "application/grpc;x"].into_iter().all(is));
        assert!(!["application/grpc-web", "text/html", "", "application/json"].into_iter().any(is));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
