//! Between the proxy's types and MOSN's messages.

use std::collections::HashMap;
use std::error::Error;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};
use palisade_plugin_proto::mosn::{Request, Response};
use serde::Deserialize;
use tonic::{Code, Status};

use super::super::lines::is_unsent;
use super::super::mutation::{self, HeaderOp};
use super::super::{CallError, CertificateBundle, CertificateUpdate, Verdict, clip};
use crate::http::headers::is_owned;
use crate::respond::Reply;

/// Status of MOSN's samples for a refusal.
const DENY: i32 = -1;

/// Name of the one bundle that a loader has.
const BUNDLE: &str = "mosn";

pub(super) fn empty() -> Request {
    Request::default()
}

/// A request in MOSN's words: one value for each header, names as Go writes them (`X-User`).
///
/// Repeated fields are joined as RFC 9110 section 5.3 allows, so that none is hidden from the filter. A value that is
/// not UTF-8 can't be written, and is refused rather than left out.
pub(super) fn request(headers: &HeaderMap, authority: &str) -> Result<Request, CallError> {
    let mut fields = HashMap::with_capacity(headers.keys_len() + 1);
    for name in headers.keys() {
        let separator = if name == header::COOKIE { "; " } else { ", " };
        let values: Result<Vec<&str>, _> =
            headers.get_all(name).iter().map(|value| std::str::from_utf8(value.as_bytes())).collect();
        let values = values.map_err(|_| {
            CallError::Unrepresentable(format!("header {name} is not UTF-8, which MOSN's contract needs"))
        })?;
        fields.insert(canonical(name), values.join(separator));
    }
    fields.insert("Host".to_owned(), authority.to_owned());
    Ok(Request { header: fields, ..Request::default() })
}

/// `x-user` as `X-User` (Go's `textproto.CanonicalMIMEHeaderKey`).
fn canonical(name: &HeaderName) -> String {
    let mut upper = true;
    let letter = |character: char| {
        let written = if upper { character.to_ascii_uppercase() } else { character };
        upper = character == '-';
        written
    };
    name.as_str().chars().map(letter).collect()
}

pub(super) fn verdict(answer: Result<tonic::Response<Response>, Status>) -> Result<Verdict, CallError> {
    let answer = answer.map_err(|status| call_error(&status))?.into_inner();
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
            false => mutation::field(&name, Bytes::from(value)).map(|(name, value)| HeaderOp::Set(name, value))?,
        });
    }
    Ok(Verdict::Allow { request: ops, response: Vec::new() })
}

#[derive(Deserialize)]
struct Loaded {
    cert_pem: String,
    key_pem: String,
}

pub(super) fn certificates(answer: Result<tonic::Response<Response>, Status>) -> Result<CertificateUpdate, CallError> {
    let answer = answer.map_err(|status| call_error(&status))?.into_inner();
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

fn call_error(status: &Status) -> CallError {
    match status.code() {
        Code::DeadlineExceeded => CallError::Timeout,
        _ if is_unsent(status) => CallError::Unsent(clip(status.message())),
        Code::Unavailable => CallError::Lost(clip(status.message())),
        // What tonic itself makes of a broken connection has a source; what came over the wire has none.
        _ if status.source().is_some() => CallError::Lost(clip(status.message())),
        // A server that was told the deadline says that it has passed.
        Code::Cancelled => CallError::Timeout,
        Code::ResourceExhausted => CallError::Overloaded,
        Code::Unimplemented => CallError::Failed("it does not serve proto.Plugin".to_owned()),
        code => CallError::Failed(format!("{code:?}: {}", clip(status.message()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use http::HeaderValue;

    use super::*;

    fn answer(response: Response) -> Result<Verdict, CallError> {
        verdict(Ok(tonic::Response::new(response)))
    }

    #[test]
    fn headers_as_mosn_writes_them() {
        let mut headers = HeaderMap::new();
        headers.append("x-user-id", HeaderValue::from_static("a"));
        headers.append("x-user-id", HeaderValue::from_static("b"));
        headers.append("user", HeaderValue::from_static("admin"));
        let request = request(&headers, "h:1").unwrap();
        assert_eq!(request.header["X-User-Id"], "a, b");
        assert_eq!(request.header["User"], "admin");
        assert_eq!(request.header["Host"], "h:1");
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
    fn errors_are_one_line() {
        let status = Status::unknown(format!("a\n2026 ERROR forged {}", "x".repeat(10_000)));
        let Err(CallError::Failed(text)) = verdict(Err(status)) else { panic!("no failure") };
        assert!(!text.contains('\n') && text.len() < 1000, "{text}");
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
