//! Writes the messages of calls, straight from a request to bytes: building the generated types first would copy every
//! name and value of every request once more.

use bytes::Bytes;
use http::{HeaderMap, Version};

use super::super::{Needs, ResponseHead, Subject};
use crate::config::Address;
use crate::http::{Request, TlsFacts};

/// A message under construction. Field numbers are those of plugin-proto/proto.
#[derive(Debug, Default)]
pub(in crate::plugin) struct Message(Vec<u8>);

/// Wire types.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;

impl Message {
    pub(in crate::plugin) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(in crate::plugin) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    /// A number. Nothing is written for 0, which is what an absent one is read as.
    pub(super) fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.tag(field, VARINT);
            self.varint(value);
        }
    }

    /// Bytes or text. Nothing is written where there is none.
    pub(super) fn bytes(&mut self, field: u64, value: &[u8]) {
        if !value.is_empty() {
            self.present(field, value);
        }
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// Bytes whose presence says something even where there are none.
    pub(super) fn present(&mut self, field: u64, value: &[u8]) {
        self.tag(field, LENGTH);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// What stands in this one as it is.
    pub(in crate::plugin) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A message within this one, or bytes that come in pieces.
    pub(in crate::plugin) fn nested(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        self.tag(field, LENGTH);
        let at = self.0.len();
        // Most are shorter than 128 bytes.
        self.0.push(0);
        write(self);
        let mut length = Self::default();
        length.varint((self.0.len() - at - 1) as u64);
        self.0[at] = length.0[0];
        if length.0.len() > 1 {
            self.0.splice(at + 1..at + 1, length.0.into_iter().skip(1));
        }
    }
}

/// `CheckRequestRequest`, without the configuration's hash: a batch has it once.
pub(super) fn check_request(subject: &Subject<'_>, needs: &Needs) -> Message {
    let Subject { request, route, body } = subject;
    let client = &request.client;
    let mut message = Message::with_capacity(512 + body.as_ref().map_or(0, Bytes::len));
    message.nested(1, |context| self::context(context, request));
    message.nested(2, |message| {
        request_line(message, request);
        if needs.headers {
            fields(message, 8, &request.headers);
        }
        if needs.addresses {
            message.nested(9, |peer| {
                if let Some(socket) = client.peer {
                    socket_address(peer, socket);
                }
            });
            message.nested(10, |local| match &client.local {
                Address::Tcp(socket) => socket_address(local, *socket),
                Address::Unix(path) => local.present(2, path.display().to_string().as_bytes()),
            });
        }
        if let Some(tls) = client.tls.as_ref().filter(|_| needs.tls || needs.peer_certificate) {
            message.nested(11, |message| tls_facts(message, tls, needs.peer_certificate));
        }
        message.text(12, &client.listener);
        if let Some(route) = route.filter(|_| needs.route) {
            message.nested(13, |message| {
                message.text(1, &route.name);
                for (key, value) in &route.metadata {
                    message.nested(2, |entry| {
                        entry.text(1, key);
                        entry.text(2, value);
                    });
                }
            });
        }
        if let Some(body) = body {
            message.present(14, body);
        }
    });
    message
}

/// `CheckResponseRequest`, without the configuration's hash.
pub(super) fn check_response(request: &Request, response: &ResponseHead<'_>) -> Message {
    let mut message = Message::with_capacity(512);
    message.nested(1, |context| self::context(context, request));
    message.nested(2, |message| {
        request_line(message, request);
        message.text(12, &request.client.listener);
    });
    message.number(3, response.status.as_u16().into());
    fields(&mut message, 4, response.headers);
    message
}

/// Adds the hash to a call that goes by itself. A message that stands in two pieces is one to its reader: the context is
/// not written anew.
pub(super) fn add_config_hash(message: &mut Message, config_hash: &str) {
    message.nested(1, |context| context.text(4, config_hash));
}

fn context(message: &mut Message, request: &Request) {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    message.text(1, &request.id);
    message.text(2, text("traceparent"));
    message.text(3, text("tracestate"));
}

fn request_line(message: &mut Message, request: &Request) {
    message.text(1, request.method.as_str());
    message.text(2, request.scheme());
    message.text(3, &request.authority);
    message.text(4, &request.path);
    message.text(5, request.query.as_deref().unwrap_or_default());
    message.number(6, request.query.is_some().into());
    message.text(
        7,
        match request.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_11 => "HTTP/1.1",
            _ => "HTTP/2.0",
        },
    );
}

fn fields(message: &mut Message, field: u64, headers: &HeaderMap) {
    for (name, value) in headers {
        message.nested(field, |header| {
            header.text(1, name.as_str());
            header.bytes(2, value.as_bytes());
        });
    }
}

fn socket_address(message: &mut Message, socket: std::net::SocketAddr) {
    message.nested(1, |message| {
        message.text(1, &socket.ip().to_canonical().to_string());
        message.number(2, socket.port().into());
    });
}

fn tls_facts(message: &mut Message, tls: &TlsFacts, peer_certificate: bool) {
    message.text(1, &tls.server_name);
    message.text(2, &tls.alpn);
    message.text(3, tls.version);
    if peer_certificate {
        for der in &tls.peer_certificates {
            message.present(4, der);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;
    use std::sync::Arc;

    use http::{HeaderName, HeaderValue, Method, StatusCode};
    use palisade_plugin_proto::v1::{self, CheckRequestRequest, CheckResponseRequest};
    use prost::Message as _;

    use super::*;
    use crate::http::Client;

    fn all() -> Needs {
        Needs {
            headers: true,
            addresses: true,
            tls: true,
            peer_certificate: true,
            route: true,
            body: Some(10),
            response: true,
        }
    }

    fn request() -> Request {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("x-a", HeaderValue::from_static(""));
        headers.append("traceparent", HeaderValue::from_static("00-1-2-01"));
        headers.append(HeaderName::from_static("x-long"), HeaderValue::try_from("v".repeat(70_000)).unwrap());
        Request {
            id: "id".into(),
            client: Arc::new(Client {
                place: None,
                listener: "web".into(),
                peer: Some("[::ffff:1.2.3.4]:5".parse().unwrap()),
                forwarded: std::sync::OnceLock::new(),
                local: Address::Unix("/run/web".into()),
                tls: Some(TlsFacts {
                    server_name: "a.example".into(),
                    alpn: "h2".into(),
                    version: "TLSv1.3",
                    peer_certificates: vec![Bytes::from_static(b"leaf"), Bytes::new()],
                }),
                trusted: false,
            }),
            method: Method::POST,
            authority: "a.example:80".into(),
            path: "/p".into(),
            query: Some(String::new()),
            version: Version::HTTP_2,
            headers,
            upgrade: None,
        }
    }

    fn header(name: &str, value: &[u8]) -> v1::Header {
        v1::Header { name: name.into(), value: Bytes::copy_from_slice(value) }
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let request = request();
        let route = crate::config::Route {
            metadata: BTreeMap::from([("team".to_owned(), "a".to_owned()), ("empty".to_owned(), String::new())]),
            ..crate::config::parse(
                std::path::Path::new("/p.yaml"),
                "{listeners: [{address: '127.0.0.1:1'}], routes: [{name: r, upstream: 'http://127.0.0.1:2'}]}",
            )
            .unwrap()
            .routes
            .remove(0)
        };
        let subject = Subject { request: &request, route: Some(&route), body: Some(Bytes::new()) };
        let mut message = check_request(&subject, &all());
        add_config_hash(&mut message, "hash");
        let read = CheckRequestRequest::decode(&*message.into_bytes()).unwrap();
        let context = read.context.unwrap();
        assert_eq!((context.request_id.as_str(), context.config_hash.as_str()), ("id", "hash"));
        assert_eq!((context.traceparent.as_str(), context.tracestate.as_str()), ("00-1-2-01", ""));
        let read = read.request.unwrap();
        let expected = v1::Request {
            method: "POST".into(),
            scheme: "https".into(),
            authority: "a.example:80".into(),
            path: "/p".into(),
            query: String::new(),
            has_query: true,
            protocol: "HTTP/2.0".into(),
            headers: vec![
                header("x-a", b"\xff"),
                header("x-a", b""),
                header("traceparent", b"00-1-2-01"),
                header("x-long", "v".repeat(70_000).as_bytes()),
            ],
            peer: Some(v1::Address {
                address: Some(v1::address::Address::Socket(v1::SocketAddress { ip: "1.2.3.4".into(), port: 5 })),
            }),
            local: Some(v1::Address { address: Some(v1::address::Address::UnixPath("/run/web".into())) }),
            tls: Some(v1::TlsFacts {
                server_name: "a.example".into(),
                alpn: "h2".into(),
                version: "TLSv1.3".into(),
                peer_certificates: vec![b"leaf".to_vec(), Vec::new()],
            }),
            listener: "web".into(),
            route: Some(v1::Route {
                name: "r".into(),
                metadata: [("team".to_owned(), "a".to_owned()), ("empty".to_owned(), String::new())].into(),
            }),
            body: Some(Bytes::new()),
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let request = request();
        let none = Needs {
            headers: false,
            addresses: false,
            tls: false,
            peer_certificate: false,
            route: false,
            body: None,
            response: false,
        };
        let subject = Subject { request: &request, route: None, body: None };
        let bytes = check_request(&subject, &none).into_bytes();
        let read = CheckRequestRequest::decode(&*bytes).unwrap().request.unwrap();
        assert_eq!(read.headers, []);
        assert_eq!((read.peer, read.local, read.tls, read.route, read.body), (None, None, None, None, None));
        let no_certificate = Needs { tls: true, ..none };
        let bytes = check_request(&subject, &no_certificate).into_bytes();
        let tls = CheckRequestRequest::decode(&*bytes).unwrap().request.unwrap().tls.unwrap();
        assert_eq!((tls.alpn.as_str(), tls.peer_certificates.len()), ("h2", 0));
    }

    #[test]
    fn a_response_is_read_as_it_was_written() {
        let request = request();
        let mut headers = HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        let response = ResponseHead { status: StatusCode::IM_A_TEAPOT, headers: &headers };
        let bytes = check_response(&request, &response).into_bytes();
        let read = CheckResponseRequest::decode(&*bytes).unwrap();
        assert_eq!(read.status, 418);
        assert_eq!(read.headers, [header("set-cookie", b"a=1"), header("set-cookie", b"b=2")]);
        let line = read.request.unwrap();
        assert_eq!((line.path.as_str(), line.listener.as_str(), line.headers.len()), ("/p", "web", 0));
        assert_eq!(read.context.unwrap().request_id, "id");
    }
}
