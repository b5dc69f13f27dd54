//! The only place that turns a failure into a status.
//!
//! Replies made here are clean: they carry nothing of the request but its id, a machine-readable reason in
//! `x-palisade-reason`, and the same in a JSON body. What exactly went wrong is for the log, not for the client.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::http::headers::{X_PALISADE_REASON, X_REQUEST_ID};
use crate::http::{Body, full};

/// Declares each reason once: its name in Rust, its name on the wire, the status, and the sentence for the client.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $status:ident, $message:literal;)*) => {
        /// Why the proxy answered a request itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As it stands in `x-palisade-reason`.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            fn message(self) -> &'static str {
                match self { $(Self::$variant => $message,)* }
            }
        }
    };
}

reasons! {
    /// The path can't be brought into one form, or the query is not clean.
    BadPath = "bad_path", BAD_REQUEST, "the path is malformed or ambiguous";
    /// Not exactly one valid host.
    BadHost = "bad_host", BAD_REQUEST, "the host is missing, malformed or ambiguous";
    /// `transfer-encoding` and `content-length`.
    BadFraming = "bad_framing", BAD_REQUEST, "the body's framing is ambiguous";
    /// The body broke off or was malformed before it was judged.
    BadBody = "bad_body", BAD_REQUEST, "the body could not be read";
    /// A header that the plugin's contract has no room for.
    BadHeader = "bad_header", BAD_REQUEST, "a header value is not text";
    /// Header fields that could be read in two ways.
    HeaderRefused = "header_refused", BAD_REQUEST, "a header field is malformed or ambiguous";
    /// A transfer coding other than `chunked`.
    CodingRefused = "coding_refused", NOT_IMPLEMENTED, "this transfer coding is not served";
    /// A method that is not in upper case.
    MethodUnknown = "method_unknown", NOT_IMPLEMENTED, "this method is not known";
    /// The head did not come whole in time.
    HeaderTimeout = "header_timeout", REQUEST_TIMEOUT, "the request's head did not arrive in time";
    /// `CONNECT`, `TRACE`.
    MethodRefused = "method_refused", METHOD_NOT_ALLOWED, "this method is not served";
    /// No body byte came for too long.
    BodyTimeout = "body_timeout", REQUEST_TIMEOUT, "the body did not arrive in time";
    /// The head is not HTTP.
    Malformed = "malformed", BAD_REQUEST, "the request is not well-formed HTTP";
    /// Too many header fields, or too many bytes of them.
    HeadersTooLarge = "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "the header fields are too many or too large";
    /// Longer than a filter may judge.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "the body is larger than a filter may judge";
    /// The path and query.
    TargetTooLong = "target_too_long", URI_TOO_LONG, "the path and query are too long";
    /// `expect` with anything but `100-continue`.
    UnknownExpectation = "unknown_expectation", EXPECTATION_FAILED, "only 100-continue can be expected";
    /// The built-in header check, without a plugin.
    HeaderCheck = "header_check", FORBIDDEN, "access denied";
    /// No route matches.
    NoRoute = "no_route", NOT_FOUND, "no route matches";
    /// The plugin is not serving and was not back in time.
    PluginUnavailable = "plugin_unavailable", SERVICE_UNAVAILABLE, "a filter is unavailable";
    /// An upstream is the proxy itself.
    LoopDetected = "loop_detected", LOOP_DETECTED, "the request has been here before";
    /// More memory or descriptors are in use than `overload` lets be.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "the proxy is overloaded";
    /// The headers of a connection's requests take too much memory together.
    HeaderMemory = "header_memory", REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields at a time";
    /// The request did not come to a response in time.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "the request took too long";
    /// More body than the listener takes.
    RequestTooLarge = "request_too_large", PAYLOAD_TOO_LARGE, "the body is too large";
    /// More calls wait for the plugin than it can take in time.
    PluginOverloaded = "plugin_overloaded", SERVICE_UNAVAILABLE, "a filter is overloaded";
    /// The plugin failed the call.
    PluginFailed = "plugin_failed", SERVICE_UNAVAILABLE, "a filter failed";
    /// The plugin answered something that is no valid answer.
    PluginInvalid = "plugin_invalid", SERVICE_UNAVAILABLE, "a filter gave an invalid answer";
    /// The plugin answered by another configuration than the one in force for the request.
    PluginOtherConfig = "plugin_other_config", SERVICE_UNAVAILABLE, "a filter answered by another configuration";
    /// Two processes of a plugin ended while they judged it, one after the other.
    PoisonRequest = "poison_request", SERVICE_UNAVAILABLE, "this request can't be judged";
    /// The plugin did not answer in time.
    PluginTimeout = "plugin_timeout", GATEWAY_TIMEOUT, "a filter did not answer in time";
    /// No endpoint could be connected to.
    UpstreamConnect = "upstream_connect", SERVICE_UNAVAILABLE, "the upstream can't be reached";
    /// No connection within the connect timeout.
    UpstreamConnectTimeout = "upstream_connect_timeout", GATEWAY_TIMEOUT, "the upstream can't be reached in time";
    /// No response head within the route's timeout.
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, "the upstream did not answer in time";
    /// The connection broke before a response head.
    UpstreamReset = "upstream_reset", BAD_GATEWAY, "the upstream closed the connection";
    /// The response is not HTTP, or switches protocols unasked.
    UpstreamInvalid = "upstream_invalid", BAD_GATEWAY, "the upstream's answer is invalid";
    /// A bug of ours, kept from taking anything else down.
    Internal = "internal", INTERNAL_SERVER_ERROR, "internal error";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request that the proxy answers itself, with what the log should say about it.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    reason: Reason,
    status: StatusCode,
    detail: Cow<'static, str>,
}

impl Failure {
    pub(crate) fn new(reason: Reason) -> Self {
        Self { reason, status: reason.status(), detail: Cow::Borrowed("") }
    }

    /// Adds what exactly went wrong, for the log.
    pub(crate) fn with(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Cow::Owned(detail.to_string());
        self
    }

    /// Says whom it is about, for the log.
    pub(crate) fn about(self, subject: &str) -> Self {
        let detail = if self.detail.is_empty() { subject.to_owned() } else { format!("{subject}: {}", self.detail) };
        self.with(detail)
    }

    /// Answers with another status than the reason's own.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn reason(&self) -> Reason {
        self.reason
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_str())?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

/// The reply to a request that failed.
pub(crate) fn failure(failure: &Failure, request_id: &str) -> Response<Body> {
    let body = serde_json::json!({
        "status": failure.status.as_u16(),
        "reason": failure.reason.as_str(),
        "message": failure.reason.message(),
        "request_id": request_id,
    });
    let mut response = Response::new(full(format!("{body}\n").into()));
    *response.status_mut() = failure.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_PALISADE_REASON, HeaderValue::from_static(failure.reason.as_str()));
    if failure.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if failure.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    set_request_id(headers, request_id);
    response
}

fn set_request_id(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// A reply made by a filter: a plugin's verdict, already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

/// The response that carries a reply.
pub(crate) fn reply(reply: &Reply, request_id: &str) -> Response<Body> {
    let mut response = Response::new(full(reply.body.clone()));
    *response.status_mut() = reply.status;
    for (name, value) in &reply.headers {
        response.headers_mut().append(name, value.clone());
    }
    set_request_id(response.headers_mut(), request_id);
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reasons_are_distinct_and_failures_never_look_like_a_verdict() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let verdict = *reason == Reason::HeaderCheck;
            assert_eq!(reason.status() == StatusCode::FORBIDDEN, verdict, "{reason}");
        }
    }

    #[test]
    fn the_reply_says_why_and_which_request() {
        let response = failure(&Failure::new(Reason::PluginTimeout).with("secret detail"), "abc");
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()[X_PALISADE_REASON], "plugin_timeout");
        assert_eq!(response.headers()[X_REQUEST_ID], "abc");
    }
}
