//! Reads the answer to a call, of which every byte is a plugin's: one message, behind it that the call went well.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::poll_fn;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Response, StatusCode};
use http_body::Body;
use percent_encoding::percent_decode;
use tonic::{Code, Status};

use super::super::CallError;
use super::super::status::call_error;

/// What stands before a message: a byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Reads the answer of `service`, whose message may have `most` bytes. `broken` says what an error of the connection
/// means.
pub(super) async fn read<B>(
    answer: Response<B>,
    most: usize,
    service: &str,
    broken: impl Fn(B::Error) -> CallError,
) -> Result<Bytes, CallError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, mut body) = answer.into_parts();
    // Errors come without a body, and with their status in the only headers that there are.
    judge(&head.headers, service)?;
    if head.status != StatusCode::OK {
        return Err(refused(head.status));
    }
    if !is_grpc(&head.headers) {
        return Err(invalid("its content-type is not application/grpc"));
    }
    let mut message = Message { most, first: Bytes::new(), rest: BytesMut::new() };
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map_err(&broken)?.into_data() {
            Ok(piece) => message.push(piece)?,
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return match judge(&trailers, service)? {
                    Said::Ok => message.whole(),
                    Said::Nothing => break,
                };
            }
        }
    }
    Err(invalid("it does not say how the call went"))
}

fn invalid(what: &str) -> CallError {
    CallError::Invalid(format!("the answer is not gRPC's: {what}"))
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

/// One message, that comes in pieces.
#[derive(Debug)]
struct Message {
    most: usize,
    /// Most come in one piece, which is not copied.
    first: Bytes,
    rest: BytesMut,
}

impl Message {
    /// Never holds more than there may be, and one piece. What can't become a message is refused at once.
    fn push(&mut self, piece: Bytes) -> Result<(), CallError> {
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.rest.put(piece);
        }
        match self.length()? {
            Some(length) if self.held() > PREFIX + length => Err(invalid("there is more than one message")),
            _ => Ok(()),
        }
    }

    fn held(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// How long the message is, as soon as that is there.
    fn length(&self) -> Result<Option<usize>, CallError> {
        let mut prefix = [0; PREFIX];
        let held = self.first.iter().chain(&self.rest);
        if prefix.iter_mut().zip(held).map(|(to, from)| *to = *from).count() < PREFIX {
            return Ok(None);
        }
        let [compressed, length @ ..] = prefix;
        if compressed != 0 {
            return Err(invalid("the message is compressed"));
        }
        let length = u32::from_be_bytes(length) as usize;
        match length > self.most {
            true => Err(CallError::Failed(format!("an answer of {length} bytes, at most {}", self.most))),
            false => Ok(Some(length)),
        }
    }

    fn whole(mut self) -> Result<Bytes, CallError> {
        match self.length()? {
            Some(length) if self.held() == PREFIX + length => {}
            Some(_) => return Err(invalid("the message ends before its end")),
            None => return Err(invalid("there is no message")),
        }
        if self.rest.is_empty() {
            return Ok(self.first.split_off(PREFIX));
        }
        let mut whole = BytesMut::with_capacity(self.held());
        whole.put(self.first);
        whole.put(self.rest);
        Ok(whole.freeze().split_off(PREFIX))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn gathered(pieces: impl Iterator<Item = Bytes>, most: usize) -> Result<Bytes, CallError> {
        let mut message = Message { most, first: Bytes::new(), rest: BytesMut::new() };
        for piece in pieces {
            let before = message.held();
            assert!(before <= PREFIX + most);
            message.push(piece)?;
        }
        message.whole()
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_however_it_is_cut(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                (0_u8..20, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(length, message)| {
                    [&[0, 0, 0, 0, length][..], &message].concat()
                }),
            ],
            cuts in proptest::collection::vec(0_usize..40, 0..8),
        ) {
            let most = 15;
            let whole = gathered(std::iter::once(Bytes::from(bytes.clone())), most);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| Bytes::copy_from_slice(&bytes[cut[0]..cut[1]]));
            prop_assert_eq!(&gathered(pieces, most), &whole);
            let expected = match &bytes[..] {
                [0, 0, 0, 0, length, message @ ..] if usize::from(*length) == message.len() && message.len() <= most => {
                    Some(Bytes::copy_from_slice(message))
                }
                _ => None,
            };
            prop_assert_eq!(whole.ok(), expected);
        }
    }

    #[test]
    fn only_types_of_grpc_are_its() {
        let is = |kind: &'static str| is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]));
        assert!(["application/grpc", "application/grpc+proto", "application/grpc;x"].into_iter().all(is));
        assert!(!["application/grpc-web", "text/html", "", "application/json"].into_iter().any(is));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
