//! Between the proxy's types and the messages of `palisade.plugin.v1`. Everything that comes from a plugin is checked
//! here, whole, before any of it is used.

use bytes::Bytes;
use http::StatusCode;
use palisade_plugin_proto::v1::{
    self, CheckRequestResponse, CheckResponseResponse, ConfigureResponse, Contract, DescribeResponse, FilterNeeds,
    HeaderMutation, RequestPart, WatchCertificatesResponse, check_request_response, check_response_response,
};
use tonic::{Code, Status};

use super::super::adapter::Roles;
use super::super::mutation::{self, HeaderOp};
pub(super) use super::super::status::{call_error, status_text};
use super::super::{CallError, CertificateBundle, CertificateUpdate, Needs, ResponseVerdict, Verdict, clip};
use crate::respond::Reply;

/// Largest body of a reply.
const MAX_REPLY: usize = 1 << 20;

/// Checks that a plugin serves what the configuration uses it for.
pub(super) fn check_contracts(description: &DescribeResponse, roles: Roles) -> Result<(), String> {
    let serves = |contract: Contract| description.contracts.contains(&contract.into());
    if roles.filter && !serves(Contract::Filter) {
        return Err("it is used as a filter, but does not serve palisade.plugin.v1.Filter".to_owned());
    }
    if roles.certificates && !serves(Contract::Certificates) {
        return Err("it is used for TLS, but does not serve palisade.plugin.v1.Certificates".to_owned());
    }
    Ok(())
}

/// Why a plugin that answers gRPC could not say what it is.
pub(super) fn describe_failed(status: &Status) -> String {
    if status.code() == Code::Unimplemented {
        return "it does not serve palisade.plugin.v1.Lifecycle; if it was made for MOSN, set `contract: mosn`"
            .to_owned();
    }
    format!("Describe failed: {}", status_text(status))
}

/// Turns the problems that a plugin found in its configuration into one text.
pub(super) fn check_problems(configured: &ConfigureResponse) -> Result<(), String> {
    if configured.problems.is_empty() {
        return Ok(());
    }
    let problems = configured.problems.iter().take(10).map(|problem| match problem.path.as_str() {
        "" => clip(&problem.message),
        path => format!("config.{}: {}", clip(path), clip(&problem.message)),
    });
    Err(format!("it refuses its configuration: {}", problems.collect::<Vec<_>>().join("; ")))
}

pub(super) fn needs(filter: Option<&FilterNeeds>) -> Needs {
    let default = FilterNeeds::default();
    let filter = filter.unwrap_or(&default);
    let all = filter.request_parts.is_empty();
    let asks = |part: RequestPart| filter.request_parts.contains(&part.into());
    let body = asks(RequestPart::Body).then(|| match usize::try_from(filter.max_body_bytes) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(limit) => limit,
    });
    Needs {
        headers: all || asks(RequestPart::Headers),
        addresses: all || asks(RequestPart::Addresses),
        tls: all || asks(RequestPart::Tls),
        peer_certificate: asks(RequestPart::PeerCertificate),
        route: all || asks(RequestPart::Route),
        body,
        response: filter.response_phase,
    }
}

pub(super) fn verdict(answer: CheckRequestResponse) -> Result<Verdict, CallError> {
    match answer.verdict {
        None => Err(CallError::Invalid("the answer holds no verdict".to_owned())),
        Some(check_request_response::Verdict::Allow(allow)) => {
            Ok(Verdict::Allow { request: ops(allow.request_headers)?, response: ops(allow.response_headers)? })
        }
        Some(check_request_response::Verdict::Deny(denial)) => Ok(Verdict::Deny(reply(denial)?)),
    }
}

pub(super) fn response_verdict(answer: CheckResponseResponse) -> Result<ResponseVerdict, CallError> {
    match answer.verdict {
        None => Err(CallError::Invalid("the answer holds no verdict".to_owned())),
        Some(check_response_response::Verdict::Pass(pass)) => Ok(ResponseVerdict::Pass(ops(pass.headers)?)),
        Some(check_response_response::Verdict::Replace(replacement)) => {
            Ok(ResponseVerdict::Replace(reply(replacement)?))
        }
    }
}

/// Judges answers, applies what passes, and sees that nothing was changed that no plugin may change.
#[cfg(any(test, fuzzing))]
pub(crate) fn judge_frames(request: Option<CheckRequestResponse>, response: Option<CheckResponseResponse>) {
    let owned = [http::header::HOST, http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING];
    let kept = |ops: &[HeaderOp]| {
        let mut fields = http::HeaderMap::new();
        for name in &owned {
            fields.insert(name, http::HeaderValue::from_static("mine"));
        }
        mutation::apply(ops, &mut fields);
        for name in &owned {
            let values: Vec<_> = fields.get_all(name).iter().collect();
            assert_eq!(values, ["mine"], "{name} was changed by {ops:?}");
        }
    };
    let replied = |reply: &Reply| assert!((200..600).contains(&reply.status.as_u16()), "{reply:?}");
    match request.map(verdict) {
        Some(Ok(Verdict::Allow { request, response })) => {
            kept(&request);
            kept(&response);
        }
        Some(Ok(Verdict::Deny(reply))) => replied(&reply),
        Some(Err(_)) | None => {}
    }
    match response.map(response_verdict) {
        Some(Ok(ResponseVerdict::Pass(ops))) => kept(&ops),
        Some(Ok(ResponseVerdict::Replace(reply))) => replied(&reply),
        Some(Err(_)) | None => {}
    }
}

fn ops(mutations: Vec<HeaderMutation>) -> Result<Vec<HeaderOp>, CallError> {
    use v1::header_mutation::Mutation;
    mutation::bounded(mutations.iter().map(|mutation| match &mutation.mutation {
        Some(Mutation::Set(field) | Mutation::Append(field)) => (field.name.as_str(), field.value.len()),
        Some(Mutation::Remove(name)) => (name.as_str(), 0),
        None => ("", 0),
    }))?;
    let op = |mutation: HeaderMutation| match mutation.mutation {
        None => Err(CallError::Invalid("a header mutation says nothing".to_owned())),
        Some(Mutation::Set(field)) => {
            mutation::field(&field.name, &field.value).map(|(name, value)| HeaderOp::Set(name, value))
        }
        Some(Mutation::Append(field)) => {
            mutation::field(&field.name, &field.value).map(|(name, value)| HeaderOp::Append(name, value))
        }
        Some(Mutation::Remove(name)) => mutation::name(&name).map(HeaderOp::Remove),
    };
    mutations.into_iter().map(op).collect()
}

fn reply(reply: v1::Reply) -> Result<Reply, CallError> {
    checked_reply(reply).map_err(|error| match error {
        CallError::Invalid(text) => CallError::InvalidReply(text),
        other => other,
    })
}

fn checked_reply(reply: v1::Reply) -> Result<Reply, CallError> {
    let invalid = |text: String| CallError::Invalid(text);
    let status = u16::try_from(reply.status).ok().filter(|status| (200..600).contains(status));
    let status = status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| invalid(format!("status {} is not one from 200 to 599", reply.status)))?;
    if matches!(status.as_u16(), 204 | 205 | 304) && !reply.body.is_empty() {
        return Err(invalid(format!("status {status} can't have a body")));
    }
    if reply.body.len() > MAX_REPLY {
        return Err(invalid(format!("a reply of {} bytes, at most {MAX_REPLY}", reply.body.len())));
    }
    mutation::bounded(reply.headers.iter().map(|field| (field.name.as_str(), field.value.len())))?;
    let headers =
        reply.headers.into_iter().map(|field| mutation::field(&field.name, &field.value)).collect::<Result<_, _>>()?;
    // A copy, as of header values: it would keep the whole answer.
    Ok(Reply { status, headers, body: Bytes::copy_from_slice(&reply.body) })
}

pub(super) fn certificates(update: WatchCertificatesResponse) -> Result<CertificateUpdate, CallError> {
    let bundle = |bundle: v1::CertificateBundle| match bundle.key {
        Some(v1::certificate_bundle::Key::PrivateKeyPem(key_pem)) => Ok(CertificateBundle {
            name: bundle.name,
            server_names: bundle.server_names,
            chain_pem: bundle.certificate_chain_pem,
            key_pem,
        }),
        None => Err(CallError::Invalid(format!("bundle {:?} has no key", clip(&bundle.name)))),
    };
    Ok(CertificateUpdate {
        bundles: update.bundles.into_iter().map(bundle).collect::<Result<_, _>>()?,
        removed: update.removed,
        complete: update.complete,
    })
}

/// An answer to another call than the one that was made.
pub(super) fn other_kind() -> CallError {
    CallError::Invalid("the answer is not of the kind that was asked for".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use palisade_plugin_proto::v1::{Header, HeaderMutation};

    use super::*;

    #[test]
    fn an_empty_answer_is_never_an_allow() {
        assert!(matches!(verdict(CheckRequestResponse::default()), Err(CallError::Invalid(_))));
        assert!(matches!(response_verdict(CheckResponseResponse::default()), Err(CallError::Invalid(_))));
        let nothing = CheckRequestResponse::allow().mutate(HeaderMutation { mutation: None });
        assert!(matches!(verdict(nothing), Err(CallError::Invalid(_))));
    }

    #[test]
    fn replies_that_http_does_not_know() {
        for status in [0, 99, 101, 199, 600, 1000, 70_000] {
            let denial = v1::Reply { status, ..v1::Reply::default() };
            assert!(reply(denial).is_err(), "{status}");
        }
        for status in [204, 205, 304] {
            assert!(reply(v1::Reply { status, ..v1::Reply::text(200, "x") }).is_err(), "{status}");
            assert!(reply(v1::Reply { status, ..v1::Reply::default() }).is_ok(), "{status}");
        }
        let large = v1::Reply { body: vec![0; MAX_REPLY + 1].into(), ..v1::Reply::text(200, "") };
        assert!(reply(large).is_err());
        let framed = v1::Reply { headers: vec![Header::new("content-length", "3")], ..v1::Reply::text(200, "x") };
        assert!(reply(framed).is_err());
        let split = v1::Reply { headers: vec![Header::new("location", "/\r\nx: y")], ..v1::Reply::text(302, "") };
        assert!(reply(split).is_err());
    }

    #[test]
    fn a_filter_gets_what_it_asks_for() {
        let default = needs(None);
        assert!(default.headers && default.addresses && default.tls && default.route);
        assert!(!default.peer_certificate && default.body.is_none() && !default.response);
        let body_only =
            FilterNeeds { request_parts: vec![RequestPart::Body.into()], max_body_bytes: 10, ..FilterNeeds::default() };
        let body_only = needs(Some(&body_only));
        assert!(!body_only.headers && body_only.body == Some(10));
        let unknown = FilterNeeds { request_parts: vec![999], ..FilterNeeds::default() };
        assert_eq!(needs(Some(&unknown)).body, None);
    }
}
