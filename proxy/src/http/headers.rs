//! Header fields that a proxy must not pass on, and those that it must set itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

use crate::config::{Cidr, Underscores};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_PALISADE_REASON: HeaderName = HeaderName::from_static("x-palisade-reason");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED: &str = "x-forwarded-";

/// What else a filter may not change: framing, and what the proxy itself vouches for.
static VOUCHED: [HeaderName; 10] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRAILER,
    header::EXPECT,
    header::VIA,
    X_REQUEST_ID,
    X_PALISADE_REASON,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
];

/// What else proxies say about a client, and what some frameworks take for the request's own target.
const CLAIMS: [&str; 12] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-rewrite-uri",
];

/// Fields that can be there once; of two, each server takes another one (RFC 9110 section 5.3).
static SINGLE: [HeaderName; 17] = [
    header::AUTHORIZATION,
    header::CONTENT_ENCODING,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::DATE,
    header::EXPECT,
    header::FROM,
    header::IF_MODIFIED_SINCE,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PROXY_AUTHORIZATION,
    header::RANGE,
    header::REFERER,
    header::USER_AGENT,
];

/// What a `Connection` field of a request may name.
const OPTIONS: [&str; 8] =
    ["close", "keep-alive", "upgrade", "te", "trailer", "proxy-connection", "http2-settings", "transfer-encoding"];

/// By what this process is known to itself when a request comes back to it.
static NAME: LazyLock<String> = LazyLock::new(|| format!("palisade-{:08x}", fastrand::u32(..)));

/// Fields that are about to be set beside those of a client: its address, scheme and host, and the request's id.
const SET: usize = 4;

/// Which of the fields that the proxy reads itself are there. Most are not, and to look for one of them takes longer
/// than to look at the names of all fields once.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct There {
    pub(crate) connection: bool,
    pub(crate) content_length: bool,
    pub(crate) cookie: bool,
    pub(crate) expect: bool,
    pub(crate) te: bool,
    pub(crate) trailer: bool,
    pub(crate) transfer_encoding: bool,
    pub(crate) via: bool,
}

impl There {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut there = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => there.connection = true,
                "content-length" => there.content_length = true,
                "cookie" => there.cookie = true,
                "expect" => there.expect = true,
                "te" => there.te = true,
                "trailer" => there.trailer = true,
                "transfer-encoding" => there.transfer_encoding = true,
                "via" => there.via = true,
                _ => {}
            }
        }
        there
    }
}

/// What goes into a request's `Via` here (RFC 9110 section 7.6.3).
pub(crate) fn via(received: Version) -> &'static str {
    static VALUES: LazyLock<[String; 3]> = LazyLock::new(|| ["1.0", "1.1", "2.0"].map(|it| format!("{it} {}", *NAME)));
    match received {
        Version::HTTP_10 => &VALUES[0],
        Version::HTTP_2 => &VALUES[2],
        _ => &VALUES[1],
    }
}

/// Whether a request has been here before.
pub(crate) fn has_been_here(headers: &HeaderMap) -> bool {
    list(headers, &header::VIA).any(|hop| hop.split(' ').nth(1) == Some(NAME.as_str()))
}

/// Whether a field concerns one connection or its framing (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2): neither
/// passed on nor settable by filters. `te` is dealt with apart.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Whether a client says something in this field about where its request comes from, or what it is for.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Most names are none of these.
    matches!(name.as_bytes().first(), Some(b'c' | b'f' | b't' | b'x'))
        && (name.starts_with(X_FORWARDED) || CLAIMS.contains(&name))
}

/// Refuses fields that two servers could read in two ways, or that take others away; takes out names with underscores
/// where `underscores` says so.
pub(crate) fn check(headers: &mut HeaderMap, there: There, underscores: Underscores) -> Result<(), String> {
    let underscored = |name: &HeaderName| name.as_str().bytes().any(|byte| byte == b'_');
    match underscores {
        Underscores::Keep => {}
        Underscores::Drop => remove(headers, underscored),
        Underscores::Refuse => {
            if let Some(name) = headers.keys().find(|name| underscored(name)) {
                return Err(format!("`{name}` has an underscore"));
            }
        }
    }
    // Of most requests, no name is there twice.
    if headers.len() > headers.keys_len() {
        let twice = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
        if let Some(name) = SINGLE.iter().find(twice) {
            return Err(format!("`{name}` is there more than once"));
        }
    }
    if !there.connection {
        return Ok(());
    }
    for value in headers.get_all(header::CONNECTION) {
        let Ok(value) = value.to_str() else { return Err("`connection` is not text".to_owned()) };
        for option in value.split(',').map(str::trim) {
            let known = OPTIONS.iter().any(|known| option.eq_ignore_ascii_case(known));
            if !known && HeaderName::from_bytes(option.as_bytes()).is_ok_and(|name| headers.contains_key(&name)) {
                return Err(format!("`connection` would take `{option}` away"));
            }
        }
    }
    Ok(())
}

/// Fields that a filter may not change: framing, hop-by-hop, and what the proxy itself vouches for.
pub(crate) fn is_owned(name: &HeaderName) -> bool {
    is_hop_by_hop(name) || VOUCHED.contains(name)
}

/// Removes what concerns one connection only, including what its `Connection` field names, and keeps `te: trailers`,
/// which gRPC needs.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let there = There::of(headers);
    remove_with_hop_by_hop(headers, there, 0, |_| false);
}

/// Removes from a client's request what goes no further: what concerns its connection, what the proxy has read and says
/// itself, what `owned` names for plugins to say, and, unless the client is `trusted`, its claims.
pub(crate) fn clean_request(headers: &mut HeaderMap, there: There, owned: &[HeaderName], trusted: bool) {
    // In HTTP/1.1 the proxy answers `100-continue` itself, when a filter or the upstream begins to read the body.
    remove_with_hop_by_hop(headers, there, SET, |name| {
        name == header::HOST || name == header::EXPECT || owned.contains(name) || (!trusted && is_claim(name))
    });
}

fn remove_with_hop_by_hop(headers: &mut HeaderMap, there: There, room: usize, others: impl Fn(&HeaderName) -> bool) {
    let mut nominated: Vec<HeaderName> = Vec::new();
    if there.connection {
        let names = list(headers, &header::CONNECTION).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
        // Framing and addressing can't be talked away by a peer.
        nominated.extend(names.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH));
    }
    let trailers = there.te && list(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    remove_for(headers, room, |name| is_hop_by_hop(name) || nominated.contains(name) || others(name));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes fields and keeps the order of the others, which `HeaderMap::remove` does not.
pub(crate) fn remove(headers: &mut HeaderMap, removed: impl FnMut(&HeaderName) -> bool) {
    remove_for(headers, 0, removed);
}

/// The same where so many fields are about to be set.
fn remove_for(headers: &mut HeaderMap, room: usize, mut removed: impl FnMut(&HeaderName) -> bool) {
    if !headers.keys().any(&mut removed) {
        return;
    }
    let mut kept = HeaderMap::with_capacity(headers.len() + room);
    let mut last: Option<HeaderName> = None;
    for (name, value) in std::mem::take(headers) {
        // Only the first of several values comes with its name.
        let Some(name) = name.or_else(|| last.take()) else { continue };
        if !removed(&name) {
            kept.append(name.clone(), value);
        }
        last = Some(name);
    }
    *headers = kept;
}

/// Takes out of a response's trailers what would be refused as a header: framing, and what the proxy itself vouches
/// for.
pub(crate) fn clean_trailers<D>(frame: Frame<D>) -> Frame<D> {
    without_trailers(frame, |name| is_owned(name) || is_claim(name))
}

/// Takes fields out of trailers.
pub(crate) fn without_trailers<D>(frame: Frame<D>, removed: impl FnMut(&HeaderName) -> bool) -> Frame<D> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            remove(&mut trailers, removed);
            Frame::trailers(trailers)
        }
        Err(data) => data,
    }
}

/// Announces only trailers that are passed on.
pub(crate) fn keep_trailer_names(headers: &mut HeaderMap, kept: &[HeaderName]) {
    let announced: Vec<&str> = list(headers, &header::TRAILER)
        .filter(|member| kept.iter().any(|name| member.eq_ignore_ascii_case(name.as_str())))
        .collect();
    let announced = HeaderValue::try_from(announced.join(", ")).ok().filter(|value| !value.is_empty());
    remove(headers, |name| name == header::TRAILER);
    if let Some(announced) = announced {
        headers.insert(header::TRAILER, announced);
    }
}

/// The trailers of a request that are passed on.
pub(crate) fn kept_trailers(mut trailers: HeaderMap, kept: &[HeaderName]) -> Option<HeaderMap> {
    remove(&mut trailers, |name| !kept.contains(name) || is_owned(name) || is_claim(name));
    (!trailers.is_empty()).then_some(trailers)
}

/// The members of a comma-separated field, over all its lines.
pub(crate) fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

/// The protocol that an HTTP/1.1 request asks to upgrade to, lower case.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<String> {
    let asked = list(headers, &header::CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    asked.then(|| list(headers, &header::UPGRADE).next().map(str::to_ascii_lowercase)).flatten()
}

/// Sets the fields that tell the upstream about the client, beside what a trusted proxy has said in them. `peer` is the
/// client's address, `host` the one it asked for.
pub(crate) fn set_forwarded(
    headers: &mut HeaderMap,
    peer: Option<&HeaderValue>,
    scheme: &'static str,
    host: Option<HeaderValue>,
) {
    if let Some(peer) = peer {
        let mut chain = peer.clone();
        if headers.contains_key(X_FORWARDED_FOR) {
            let before = list(headers, &X_FORWARDED_FOR).chain(peer.to_str()).collect::<Vec<_>>().join(", ");
            chain = HeaderValue::try_from(before).unwrap_or(chain);
        }
        headers.insert(X_FORWARDED_FOR, chain);
    }
    headers.entry(X_FORWARDED_PROTO).or_insert_with(|| HeaderValue::from_static(scheme));
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// An address as `x-forwarded-for` has it.
pub(crate) fn forwarded_for(peer: SocketAddr) -> Option<HeaderValue> {
    HeaderValue::try_from(peer.ip().to_canonical().to_string()).ok()
}

/// The request's id: the one that a trusted proxy sent, else a new one of 32 hexadecimal digits.
pub(crate) fn request_id(headers: &HeaderMap, trusted: bool) -> String {
    const LONGEST: usize = 128;
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let sent = headers.get(X_REQUEST_ID).filter(|_| trusted).and_then(|id| id.to_str().ok());
    match sent {
        Some(id) if !id.is_empty() && id.len() <= LONGEST => id.to_owned(),
        _ => {
            let mut digits = [0; 32];
            for (pair, byte) in digits.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
                pair[0] = DIGITS[usize::from(byte >> 4)];
                pair[1] = DIGITS[usize::from(byte & 15)];
            }
            String::from_utf8(digits.to_vec()).unwrap_or_default()
        }
    }
}

impl Cidr {
    /// Whether the network holds an address. An IPv4 address in IPv6 clothes counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                u64::from(network.to_bits()) >> shift == u64::from(address.to_bits()) >> shift
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                shift == 128 || network.to_bits() >> shift == address.to_bits() >> shift
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_is_there_is_seen() {
        let all = ["connection", "content-length", "cookie", "expect", "te", "trailer", "transfer-encoding", "via"];
        let seen = |fields: &[(&'static str, &'static str)]| {
            let There { connection, content_length, cookie, expect, te, trailer, transfer_encoding, via } =
                There::of(&headers(fields));
            [connection, content_length, cookie, expect, te, trailer, transfer_encoding, via]
        };
        assert_eq!(seen(&[("host", "a"), ("x-via", "a")]), [false; 8]);
        for name in all {
            assert_eq!(seen(&[("host", "a"), (name, "a"), ("accept", "a")]), all.map(|it| it == name));
        }
    }

    #[test]
    fn what_a_connection_nominates_goes_with_it() {
        let mut fields = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "host, content-length"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("host", "a"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut fields);
        let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "content-length", "host", "te"]);
        assert_eq!(fields["te"], "trailers");
    }

    #[test]
    fn what_is_removed_leaves_the_order_of_the_rest() {
        let mut fields = headers(&[("a", "1"), ("b", "2"), ("c", "3"), ("b", "4"), ("d", "5"), ("c", "6"), ("e", "7")]);
        remove(&mut fields, |name| name == "a" || name == "b");
        let left: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("c", "3"), ("c", "6"), ("d", "5"), ("e", "7")]);
    }

    #[test]
    fn an_untrusted_client_says_nothing_about_itself() {
        let claims = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-real-ip", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-original-url", "/admin"),
            ("x-forwarded-client-cert", "CN=admin"),
        ];
        let peer = forwarded_for("10.0.0.9:55".parse().unwrap());
        let host = Some(HeaderValue::from_static("a.example"));
        let mut fields = headers(&claims);
        clean_request(&mut fields, There::default(), &[], false);
        set_forwarded(&mut fields, peer.as_ref(), "http", host.clone());
        assert_eq!(fields["x-forwarded-for"], "10.0.0.9");
        assert_eq!(fields["x-forwarded-proto"], "http");
        assert_eq!(fields["x-forwarded-host"], "a.example");
        assert_eq!(fields.len(), 3, "{fields:?}");

        let mut fields = headers(&claims);
        clean_request(&mut fields, There::default(), &[], true);
        set_forwarded(&mut fields, peer.as_ref(), "http", host);
        assert_eq!(fields["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["x-forwarded-host"], "evil");
    }

    #[test]
    fn request_ids_are_taken_from_trusted_proxies_only() {
        let fields = headers(&[("x-request-id", "abc")]);
        assert_eq!(request_id(&fields, true), "abc");
        let made = request_id(&fields, false);
        assert_eq!(made.len(), 32);
        assert_ne!(made, request_id(&fields, false));
        let mut empty = HeaderMap::new();
        empty.insert(X_REQUEST_ID, HeaderValue::from_bytes(&[0xff]).unwrap());
        assert_eq!(request_id(&empty, true).len(), 32);
    }

    #[test]
    fn networks() {
        let cidr = |address: &str, prefix| Cidr { address: address.parse().unwrap(), prefix };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(cidr("10.0.0.0", 8).contains(ip("10.255.1.2")));
        assert!(cidr("10.0.0.0", 8).contains(ip("::ffff:10.1.1.1")));
        assert!(!cidr("10.0.0.0", 8).contains(ip("11.0.0.1")));
        assert!(cidr("0.0.0.0", 0).contains(ip("1.2.3.4")) && !cidr("0.0.0.0", 0).contains(ip("::1")));
        assert!(cidr("::", 0).contains(ip("fe80::1")));
        assert!(cidr("127.0.0.1", 32).contains(ip("127.0.0.1")) && !cidr("127.0.0.1", 32).contains(ip("127.0.0.2")));
    }
}
