//! Between the proxy's types and MOSN's messages.

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};
use palisade_plugin_proto::mosn::Response;
use serde::Deserialize;

use super::super::mutation::{self, HeaderOp};
use super::super::native::{Message, codec};
use super::super::{CallError, CertificateBundle, CertificateUpdate, Verdict};
use crate::http::headers::is_owned;
use crate::respond::Reply;

/// Status of MOSN's samples for a refusal.
const DENY: i32 = -1;

/// Name of the one bundle that a loader has.
const BUNDLE: &str = "mosn";

/// A call about nothing.
pub(super) fn empty() -> Vec<u8> {
    Vec::new()
}

/// A request in MOSN's words: one value for each header, names as Go writes them (`X-User`).
///
/// Repeated fields are joined as RFC 9110 section 5.3 allows, so that none is hidden from the filter. A value that is
/// not UTF-8 can't be written, and is refused rather than left out.
pub(super) fn request(headers: &HeaderMap, authority: &str) -> Result<Vec<u8>, CallError> {
    let mut message = Message::with_capacity(512);
    // `Request.header`, of which each entry is a message of two fields.
    let mut field = |name: &str, values: &mut dyn Iterator<Item = &str>, separator: &str| {
        message.nested(1, |entry| {
            entry.nested(1, |text| canonical(name).for_each(|byte| text.raw(&[byte])));
            entry.nested(2, |text| {
                for (place, value) in values.enumerate() {
                    text.raw(if place > 0 { separator.as_bytes() } else { b"" });
                    text.raw(value.as_bytes());
                }
            });
        });
    };
    field("host", &mut [authority].into_iter(), "");
    for name in headers.keys().filter(|name| *name != header::HOST) {
        let separator = if name == header::COOKIE { "; " } else { ", " };
        let values = headers.get_all(name).iter().map(|value| std::str::from_utf8(value.as_bytes()));
        let mut text = true;
        field(name.as_str(), &mut values.map_while(|value| value.inspect_err(|_| text = false).ok()), separator);
        if !text {
            let why = format!("header {name} is not UTF-8, which MOSN's contract needs");
            return Err(CallError::Unrepresentable(why));
        }
    }
    Ok(message.into_bytes())
}

/// `x-user` as `X-User` (Go's `textproto.CanonicalMIMEHeaderKey`).
fn canonical(name: &str) -> impl Iterator<Item = u8> {
    let mut upper = true;
    name.bytes().map(move |byte| {
        let written = if upper { byte.to_ascii_uppercase() } else { byte };
        upper = byte == b'-';
        written
    })
}

pub(super) fn verdict(answer: Bytes) -> Result<Verdict, CallError> {
    let answer = read(answer)?;
    if answer.status == DENY {
        return Ok(Verdict::Deny(Reply {
            status: StatusCode::FORBIDDEN,
            headers: Vec::new(),
            body: Bytes::from(answer.body),
        }));
    }
    // Plugins that answer with all that they were sent would otherwise fail on `Host`.
    let owned = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| is_owned(&name));
    let fields: Vec<_> = answer.header.into_iter().filter(|(name, _)| !owned(name)).collect();
    mutation::bounded(fields.iter().map(|(name, value)| (name.as_str(), value.len())))?;
    let mut ops = Vec::new();
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        ops.push(match value.is_empty() {
            true => HeaderOp::Remove(mutation::name(&name)?),
            false => mutation::field(&name, value.as_bytes()).map(|(name, value)| HeaderOp::Set(name, value))?,
        });
    }
    Ok(Verdict::Allow { request: ops, response: Vec::new() })
}

#[derive(Deserialize)]
struct Loaded {
    cert_pem: String,
    key_pem: String,
}

pub(super) fn certificates(answer: Bytes) -> Result<CertificateUpdate, CallError> {
    let answer = read(answer)?;
    // The error's text could quote the key.
    let loaded: Loaded = serde_json::from_slice(&answer.body).map_err(|error| {
        CallError::Invalid(format!("the body is not JSON with cert_pem and key_pem ({:?})", error.classify()))
    })?;
    let bundle = CertificateBundle {
        name: BUNDLE.to_owned(),
        server_names: Vec::new(),
        chain_pem: loaded.cert_pem.into_bytes(),
        key_pem: loaded.key_pem.into_bytes(),
    };
    Ok(CertificateUpdate { bundles: vec![bundle], removed: Vec::new(), complete: true })
}

fn read(answer: Bytes) -> Result<Response, CallError> {
    codec::read(answer).map_err(CallError::Unreadable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use http::HeaderValue;
    use palisade_plugin_proto::mosn::Request;
    use prost::Message as _;

    use super::*;

    fn answer(response: Response) -> Result<Verdict, CallError> {
        verdict(response.encode_to_vec().into())
    }

    #[test]
    fn headers_as_mosn_writes_them() {
        let mut headers = HeaderMap::new();
        headers.append("x-user-id", HeaderValue::from_static("a"));
        headers.append("x-user-id", HeaderValue::from_static("b"));
        headers.append("user", HeaderValue::from_static("admin"));
        headers.append("cookie", HeaderValue::from_static("a=1"));
        headers.append("cookie", HeaderValue::from_static("b=2"));
        headers.append("host", HeaderValue::from_static("other"));
        headers.append("empty", HeaderValue::from_static(""));
        let long = "x".repeat(300);
        headers.append("long", HeaderValue::from_str(&long).unwrap());
        let request = Request::decode(&*request(&headers, "h:1").unwrap()).unwrap();
        assert_eq!(request.header["X-User-Id"], "a, b");
        assert_eq!(request.header["User"], "admin");
        assert_eq!(request.header["Host"], "h:1");
        assert_eq!((&*request.header["Cookie"], &*request.header["Empty"]), ("a=1; b=2", ""));
        assert_eq!(request.header["Long"], long);
        assert_eq!(request.header.len(), 6);
    }

    #[test]
    fn a_value_that_is_not_text_is_not_left_out() {
        let mut headers = HeaderMap::new();
        headers.append("x", HeaderValue::from_bytes(&[0xff]).unwrap());
        assert!(matches!(request(&headers, "h"), Err(CallError::Unrepresentable(_))));
    }

    #[test]
    fn only_minus_one_denies() {
        let status = |status| answer(Response { status, ..Response::default() }).unwrap();
        assert!(matches!(status(-1), Verdict::Deny(reply) if reply.status == 403));
        for allowed in [0, 1, 7] {
            assert!(matches!(status(allowed), Verdict::Allow { .. }), "{allowed}");
        }
    }

    #[test]
    fn what_can_t_be_read_may_be_a_refusal() {
        // `status` is -1, and the header's value is not UTF-8.
        let torn = Bytes::from_static(b"\x0a\x06\x0a\x01a\x12\x01\xff\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        assert!(matches!(verdict(torn), Err(CallError::Unreadable(_))));
        // Each of two bytes, and of hundreds when it is read.
        let many = Bytes::from([0x0a, 0].repeat(5000));
        assert!(matches!(verdict(many), Err(CallError::Unreadable(_))));
    }

    #[test]
    fn answers_that_echo_the_request_are_harmless() {
        let header = [("Host", "x"), ("Content-Length", "5"), ("X-A", "1"), ("X-B", "")];
        let header = header.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let Verdict::Allow { request, .. } = answer(Response { header, ..Response::default() }).unwrap() else {
            panic!("denied");
        };
        assert_eq!(request.len(), 2);
    }
}
