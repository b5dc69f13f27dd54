//! A request in its one canonical form, read once before any filter. Filters, routes and the upstream all use it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri, Version, request::Parts};

use super::headers::{self, There};
use super::path;
use crate::config::{Address, Limits, Requests};
use crate::overload::Taken;
use crate::respond::{Failure, Reason};
use crate::telemetry;

/// Longest method in bytes.
const LONGEST_METHOD: usize = 32;

/// Who sent a request, and how it got here. One for each connection; it lives as long as the connection is used.
#[derive(Debug)]
pub(crate) struct Client {
    /// What the connection occupies.
    #[allow(dead_code, reason = "held, not used")]
    pub(crate) place: Option<Place>,
    /// Name of the listener.
    pub(crate) listener: Arc<str>,
    /// The client's end; `None` on a unix socket.
    pub(crate) peer: Option<SocketAddr>,
    /// The same, as upstreams get it; made once.
    pub(crate) forwarded: OnceLock<Option<HeaderValue>>,
    /// The proxy's end.
    pub(crate) local: Address,
    /// Set on a TLS connection.
    pub(crate) tls: Option<TlsFacts>,
    /// Whether the client is one of `trusted_proxies`.
    pub(crate) trusted: bool,
}

/// A connection's share of the listener's limit, and its part in the metrics.
#[derive(Debug)]
pub(crate) struct Place {
    _of_listener: Taken,
    _of_all: Taken,
    _counted: telemetry::Connection,
}

impl Place {
    pub(crate) fn new(of_listener: Taken, of_all: Taken, counted: telemetry::Connection) -> Self {
        Self { _of_listener: of_listener, _of_all: of_all, _counted: counted }
    }
}

/// What a TLS handshake established.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFacts {
    pub(crate) server_name: String,
    pub(crate) alpn: String,
    pub(crate) version: &'static str,
    /// DER, leaf first.
    pub(crate) peer_certificates: Vec<bytes::Bytes>,
}

/// A request without its body.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) client: Arc<Client>,
    pub(crate) method: Method,
    /// Host and port as the client asked for, lower case.
    pub(crate) authority: String,
    /// Normalised.
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) version: Version,
    /// Without hop-by-hop fields and `host`.
    pub(crate) headers: HeaderMap,
    /// The protocol that the client asked to upgrade to, lower case.
    pub(crate) upgrade: Option<String>,
}

impl Request {
    /// "http" or "https".
    pub(crate) fn scheme(&self) -> &'static str {
        if self.client.tls.is_some() { "https" } else { "http" }
    }

    /// The authority without its port.
    pub(crate) fn host(&self) -> &str {
        host_of(&self.authority)
    }

    /// Path and query as they go upstream.
    pub(crate) fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

/// How a listener reads requests.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) requests: Requests,
    /// Fields that only plugins set.
    pub(crate) owned: Arc<[HeaderName]>,
    pub(crate) limits: Limits,
}

/// Reads a request's head. The error is for the client.
pub(crate) fn read(
    parts: Parts,
    client: &Arc<Client>,
    rules: &Rules,
    mut id: String,
) -> Result<Request, (Failure, String)> {
    canonical(parts, client, rules, &mut id).map_err(|failure| (failure, id))
}

/// `id` is taken if all goes well.
fn canonical(parts: Parts, client: &Arc<Client>, rules: &Rules, id: &mut String) -> Result<Request, Failure> {
    let Parts { method, uri, version, mut headers, .. } = parts;
    let there = There::of(&headers);
    check_method(&method)?;
    if there.via && headers::has_been_here(&headers) {
        return Err(Failure::new(Reason::LoopDetected));
    }
    framing(&method, &headers, there, version)?;
    let authority = authority(&uri, &headers, version)?;
    headers::check(&mut headers, there, rules.requests.underscores)
        .map_err(|detail| Failure::new(Reason::HeaderRefused).with(detail))?;
    let target_length = uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target_length > rules.limits.max_target_bytes {
        return Err(Failure::new(Reason::TargetTooLong).with(format!("{target_length} bytes")));
    }
    // `Uri` makes `?a` into `/?a`, as an absolute target may be written, but not what stands for itself in HTTP/2
    // (RFC 9113 section 8.3.1).
    if version == Version::HTTP_2 && uri.path_and_query().is_some_and(|target| target.as_str().starts_with('?')) {
        return Err(Failure::new(Reason::BadPath).with("the path does not begin with a slash"));
    }
    let path = match uri.path() {
        "*" if method == Method::OPTIONS => "*".to_owned(),
        // An absolute form without a path (RFC 9112 section 3.2.2).
        "" if uri.scheme().is_some() => "/".to_owned(),
        path => path::normalise(path, &rules.requests).map_err(|error| Failure::new(Reason::BadPath).with(error))?,
    };
    let query = uri.query().map(str::to_owned);
    if query.as_deref().is_some_and(|query| !path::query_is_clean(query)) {
        return Err(Failure::new(Reason::BadPath).with("the query has a character that must be percent-encoded"));
    }
    // With a body, the switch would have to wait for its end; without it, the request is like any other.
    let bodiless = !there.transfer_encoding && (!there.content_length || length(&headers).unwrap_or(0) == 0);
    let upgrade =
        (there.connection && version == Version::HTTP_11 && bodiless).then(|| headers::upgrade(&headers)).flatten();
    // The value is there already, as a part of the head, where the client wrote it as it is.
    let host = headers.get(header::HOST).filter(|host| host.as_bytes() == authority.as_bytes()).cloned();
    let host = host.or_else(|| HeaderValue::from_str(&authority).ok().filter(|host| !host.is_empty()));
    headers::clean_request(&mut headers, there, &rules.owned, client.trusted);
    if there.trailer {
        headers::keep_trailer_names(&mut headers, &rules.requests.trailers);
    }
    let scheme = if client.tls.is_some() { "https" } else { "http" };
    let peer = client.peer.and_then(|peer| client.forwarded.get_or_init(|| headers::forwarded_for(peer)).as_ref());
    headers::set_forwarded(&mut headers, peer, scheme, host);
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(headers::X_REQUEST_ID, id);
    }
    if there.cookie {
        merge_cookies(&mut headers);
    }
    let id = std::mem::take(id);
    Ok(Request { id, client: Arc::clone(client), method, authority, path, query, version, headers, upgrade })
}

/// Methods are compared case by case, but not by every server: `get` must not be what no route and no filter knows, and
/// `GET` for the upstream.
fn check_method(method: &Method) -> Result<(), Failure> {
    if matches!(*method, Method::CONNECT | Method::TRACE) || method.as_str() == "PRI" {
        return Err(Failure::new(Reason::MethodRefused).with(format!("{method} is not served")));
    }
    let known = |byte: u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    if method.as_str().len() > LONGEST_METHOD || !method.as_str().bytes().all(known) {
        return Err(Failure::new(Reason::MethodUnknown).with(format!("{method:.40} is no method in upper case")));
    }
    Ok(())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses framings that two servers could read in two ways. What the framer has refused can come from HTTP/2 here.
fn framing(method: &Method, headers: &HeaderMap, there: There, version: Version) -> Result<(), Failure> {
    if !there.transfer_encoding && !there.content_length && !there.expect {
        return Ok(());
    }
    let codings: Vec<&str> = headers::list(headers, &header::TRANSFER_ENCODING).collect();
    let encoded = headers.contains_key(header::TRANSFER_ENCODING);
    let bad = |detail: &'static str| Err(Failure::new(Reason::BadFraming).with(detail));
    match codings.as_slice() {
        [] if !encoded => {}
        [coding] if coding.eq_ignore_ascii_case("chunked") && version == Version::HTTP_11 => {
            if headers.contains_key(header::CONTENT_LENGTH) {
                return bad("content-length beside transfer-encoding");
            }
        }
        _ => return bad("transfer-encoding must be exactly one chunked, in HTTP/1.1"),
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return bad("more than one content-length");
    }
    let bodiless = matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
    if version == Version::HTTP_10 && bodiless && length(headers).is_some_and(|length| length > 0) {
        return bad("a body where HTTP/1.0 has none");
    }
    if headers.get_all(header::EXPECT).iter().any(|expect| !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Failure::new(Reason::UnknownExpectation));
    }
    Ok(())
}

/// The authority that a request is for: exactly one, whichever way it is written (RFC 9112 section 3.2, RFC 9113
/// section 8.3.1).
fn authority(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<String, Failure> {
    let bad = |detail: &'static str| Failure::new(Reason::BadHost).with(detail);
    if uri.scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") {
        return Err(Failure::new(Reason::BadPath).with("the scheme is neither http nor https"));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| host.to_str().map_err(|_| bad("the host is not ASCII"))).transpose()?;
    if hosts.next().is_some() {
        return Err(bad("more than one host"));
    }
    let authority = match (uri.authority(), host) {
        (Some(authority), Some(host))
            if version >= Version::HTTP_2 && !host.eq_ignore_ascii_case(authority.as_str()) =>
        {
            return Err(bad(":authority and host differ"));
        }
        (Some(_), None) if version == Version::HTTP_11 => return Err(bad("no host")),
        (Some(_), Some(host)) if !is_authority(&host.to_ascii_lowercase()) => {
            return Err(bad("the host beside an absolute target is malformed"));
        }
        // In HTTP/1.1 the absolute form wins, and Host is rewritten.
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host,
        (None, None) if version == Version::HTTP_10 => "",
        (None, None) => return Err(bad("no host")),
    };
    if authority.is_empty() && version != Version::HTTP_10 {
        return Err(bad("the host is empty"));
    }
    let authority = authority.to_ascii_lowercase();
    if !authority.is_empty() && !is_authority(&authority) {
        return Err(bad("the host is not a name or an address, with or without a port"));
    }
    Ok(authority)
}

fn host_of(authority: &str) -> &str {
    let at = |byte| authority.bytes().position(|it| it == byte);
    let host = match at(b']') {
        // An IPv6 address keeps its brackets, as in a URL.
        Some(end) => &authority[..=end],
        None => at(b':').map_or(authority, |colon| &authority[..colon]),
    };
    // A name and its absolute form are the same host.
    host.strip_suffix('.').unwrap_or(host)
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`, without user information.
fn is_authority(authority: &str) -> bool {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (None, port.strip_prefix(':').or((!port.is_empty()).then_some("?")))
    } else {
        match authority.bytes().position(|byte| byte == b':') {
            Some(colon) => (Some(&authority[..colon]), Some(&authority[colon + 1..])),
            None => (Some(authority), None),
        }
    };
    let named = host.is_none_or(|host| {
        let label = |label: &[u8]| {
            !label.is_empty() && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        host.strip_suffix('.').unwrap_or(host).as_bytes().split(|byte| *byte == b'.').all(label)
    });
    let ported = port.is_none_or(|port| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    named && ported
}

/// HTTP/2 may split `cookie` into several fields; everybody behind the proxy expects one (RFC 9113 section 8.2.3).
fn merge_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if cookies.by_ref().nth(1).is_none() {
        return;
    }
    let joined = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn client() -> Arc<Client> {
        Arc::new(Client {
            place: None,
            listener: "test".into(),
            peer: Some("127.0.0.1:5".parse().unwrap()),
            forwarded: OnceLock::new(),
            local: Address::Tcp("127.0.0.1:80".parse().unwrap()),
            tls: None,
            trusted: false,
        })
    }

    fn read_request(request: http::Request<()>) -> Result<Request, Reason> {
        let rules = Rules {
            requests: Requests::default(),
            owned: [HeaderName::from_static("x-user")].into(),
            limits: Limits::default(),
        };
        read(request.into_parts().0, &client(), &rules, "id".into()).map_err(|(failure, _)| failure.reason())
    }

    fn get(uri: &str, version: Version, fields: &[(&str, &str)]) -> Result<Request, Reason> {
        let mut request = http::Request::builder().uri(uri).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        read_request(request.body(()).unwrap())
    }

    #[test]
    fn a_path_begins_with_a_slash_unless_a_host_stands_before_it() {
        let target = |version| get("http://a?b", version, &[("host", "a")]).map(|request| request.target());
        assert_eq!(target(Version::HTTP_11), Ok("/?b".into()));
        assert_eq!(target(Version::HTTP_2), Err(Reason::BadPath));
    }

    #[test]
    fn one_authority() {
        let h1 = Version::HTTP_11;
        let authority = |uri, version, fields: &[_]| get(uri, version, fields).map(|request| request.authority);
        assert_eq!(authority("/", h1, &[("host", "A.Example:80")]), Ok("a.example:80".into()));
        assert_eq!(authority("http://b/", h1, &[("host", "a")]), Ok("b".into()));
        assert_eq!(authority("/", Version::HTTP_10, &[]), Ok(String::new()));
        assert_eq!(authority("http://a/", Version::HTTP_2, &[("host", "A")]), Ok("a".into()));
        assert_eq!(authority("/", h1, &[("host", "[::1]:80")]), Ok("[::1]:80".into()));
        for (uri, version, fields) in [
            ("/", h1, vec![]),
            ("/", h1, vec![("host", "a"), ("host", "a")]),
            ("/", h1, vec![("host", "")]),
            ("/", h1, vec![("host", "a b")]),
            ("/", h1, vec![("host", ".")]),
            ("/", h1, vec![("host", "a..")]),
            ("/", h1, vec![("host", "a..b")]),
            ("/", h1, vec![("host", ".a")]),
            ("/", h1, vec![("host", "u@a")]),
            ("/", h1, vec![("host", "a:x")]),
            ("/", h1, vec![("host", "a:99999")]),
            ("/", h1, vec![("host", "a:")]),
            ("/", h1, vec![("host", "[::1]x")]),
            ("/", h1, vec![("host", "[::g]")]),
            ("http://u@a/", h1, vec![("host", "a")]),
            ("http://a/", Version::HTTP_2, vec![("host", "b")]),
            ("http://a/", h1, vec![]),
            ("http://a/", h1, vec![("host", "a b@c")]),
        ] {
            assert_eq!(authority(uri, version, &fields), Err(Reason::BadHost), "{uri} {fields:?}");
        }
    }

    #[test]
    fn hosts_are_compared_without_port_and_root_dot() {
        assert_eq!(host_of("a.example:80"), "a.example");
        assert_eq!(host_of("a.example."), "a.example");
        assert_eq!(host_of("[::1]:80"), "[::1]");
        assert_eq!(host_of(""), "");
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let host = ("host", "a");
        for fields in [
            vec![host, ("transfer-encoding", "gzip, chunked")],
            vec![host, ("transfer-encoding", "identity")],
            vec![host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            vec![host, ("transfer-encoding", "")],
            vec![host, ("transfer-encoding", "chunked"), ("content-length", "3")],
            vec![host, ("content-length", "3"), ("content-length", "3")],
        ] {
            assert_eq!(get("/", Version::HTTP_11, &fields).unwrap_err(), Reason::BadFraming, "{fields:?}");
        }
        assert!(get("/", Version::HTTP_11, &[host, ("transfer-encoding", "Chunked")]).is_ok());
    }

    #[test]
    fn what_goes_on_is_canonical() {
        let request = get(
            "/a/../b%41?x=%2F",
            Version::HTTP_11,
            &[("host", "a"), ("cookie", "a=1"), ("cookie", "b=2"), ("keep-alive", "5"), ("x-user", "admin")],
        )
        .unwrap();
        assert_eq!(request.target(), "/bA?x=%2F");
        assert_eq!(request.headers["cookie"], "a=1; b=2");
        assert_eq!(request.headers["x-request-id"], "id");
        assert!(!request.headers.contains_key("host") && !request.headers.contains_key("keep-alive"));
        assert!(!request.headers.contains_key("x-user"), "only plugins say who somebody is");
    }

    #[test]
    fn fields_that_can_be_read_in_two_ways_are_refused() {
        let host = ("host", "a");
        for fields in [
            vec![host, ("x_user", "admin")],
            vec![host, ("authorization", "a"), ("authorization", "b")],
            vec![host, ("content-type", "a"), ("content-type", "a")],
            vec![host, ("connection", "close, x-secret"), ("x-secret", "1")],
            vec![host, ("connection", "Authorization"), ("authorization", "a")],
            vec![host, ("connection", "host")],
        ] {
            assert_eq!(get("/", Version::HTTP_11, &fields).unwrap_err(), Reason::HeaderRefused, "{fields:?}");
        }
        let fields =
            [host, ("connection", "close, te, x-absent"), ("te", "trailers"), ("accept", "a"), ("accept", "b")];
        assert!(get("/", Version::HTTP_11, &fields).is_ok());
    }

    #[test]
    fn methods_and_expectations_that_are_not_served() {
        let connect = http::Request::builder().method("CONNECT").uri("a:1").body(()).unwrap();
        assert_eq!(read_request(connect).unwrap_err(), Reason::MethodRefused);
        for (method, reason) in [("get", Reason::MethodUnknown), ("PRI", Reason::MethodRefused)] {
            let request = http::Request::builder().method(method).uri("/").header("host", "a").body(()).unwrap();
            assert_eq!(read_request(request).unwrap_err(), reason);
        }
        let fields = [("host", "a"), ("expect", "junk")];
        assert_eq!(get("/", Version::HTTP_11, &fields).unwrap_err(), Reason::UnknownExpectation);
    }
}
