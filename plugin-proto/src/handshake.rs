//! The handshake line: what a plugin prints on its stdout once it listens.
//!
//! ```text
//! CORE | APP | NETWORK | ADDRESS [ | PROTOCOL [ | SERVER-CERT [ | MUX ] ] ]      (without the spaces)
//! 1|1|unix|/run/palisade/p/plugin.sock|grpc
//! ```
//!
//! The rules are those of go-plugin v1.6.3 (`client.go`), which ignores what stands behind the seventh field; here it
//! is an error, since nothing is known that prints it.

use std::fmt;
use std::net::{AddrParseError, SocketAddr};
use std::num::IntErrorKind;
use std::path::{Component, Path, PathBuf};

use crate::env::MAX_SOCKET_PATH;

/// The only core protocol version there is.
pub const CORE_VERSION: u32 = 1;

/// A sixth field up to this long is junk of old implementations, not a certificate (go-plugin `client.go`).
const MAX_JUNK_CERT: usize = 50;

/// A handshake line, parsed. [`fmt::Display`] prints it without the line end, in the fewest fields that say it all;
/// parsing what was printed gives an equal value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Second field: which of the host's application versions the plugin took. The host checks it against its own.
    pub app_version: u32,
    /// Third and fourth field: where the plugin listens.
    pub address: Address,
    /// Fifth field. Absent in lines of four fields, where it means [`Protocol::NetRpc`].
    pub protocol: Option<Protocol>,
    /// Sixth field: base64 of the DER of the certificate that the plugin serves with (AutoMTLS), padded or not. `None`
    /// where it is empty or junk of up to 50 characters.
    pub server_cert: Option<String>,
    /// Seventh field: whether the plugin multiplexes its brokered connections.
    pub multiplex: Option<bool>,
}

/// Where a plugin listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An absolute path of up to 107 bytes without `..`.
    Unix(PathBuf),
    /// A literal IP address and a port other than 0. Whether it may be off this host is the reader's decision.
    Tcp(SocketAddr),
}

/// What a plugin speaks at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2 without TLS.
    Grpc,
    /// Go's net/rpc. Known to say so, spoken by no host in Rust.
    NetRpc,
}

/// What is wrong with a handshake line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Bytes that are not UTF-8.
    #[error("the line is not UTF-8 (from byte {0})")]
    NotUtf8(usize),
    /// NUL, ESC and their like.
    #[error("the line has a control character ({0:?})")]
    ControlCharacter(char),
    /// Fewer than four fields.
    #[error("the line has {0} of at least 4 fields (core|app|network|address|protocol)")]
    TooFewFields(usize),
    /// More than seven fields.
    #[error("the line has {0} fields, more than 7")]
    TooManyFields(usize),
    /// The first field is not a number.
    #[error("core version {0:?} is not a number")]
    CoreVersionNotANumber(String),
    /// The first field is not 1.
    #[error("core version {0} is not supported, expected {CORE_VERSION}")]
    CoreVersion(String),
    /// The second field is not a number from 0 to 2^32-1.
    #[error("application version {0:?} is not a number")]
    AppVersionNotANumber(String),
    /// The third field.
    #[error("network {0:?} is not supported, expected unix or tcp")]
    Network(String),
    /// The fourth field is empty.
    #[error("the address is empty")]
    EmptyAddress,
    /// A gRPC target in place of a path.
    #[error("address {0:?} must be a bare path, without the unix: prefix")]
    PrefixedPath(String),
    /// An abstract socket, which has no permissions.
    #[error("address {0:?} is an abstract socket, which any user can connect to; use a path")]
    AbstractSocket(String),
    /// A relative path.
    #[error("socket path {0:?} is not absolute")]
    RelativePath(String),
    /// A path with `..`.
    #[error("socket path {0:?} contains \"..\"")]
    ParentInPath(String),
    /// A path that does not fit `sun_path`.
    #[error("socket path is {0} bytes long, at most {MAX_SOCKET_PATH} fit; listen in PLUGIN_UNIX_SOCKET_DIR")]
    PathTooLong(usize),
    /// Not `ip:port`.
    #[error("address {0:?} is not an IP address and a port, such as 127.0.0.1:1234")]
    NotASocketAddress(String, #[source] AddrParseError),
    /// An IPv6 address bound to one interface.
    #[error("address {0:?} has a zone")]
    Zone(String),
    /// Port 0.
    #[error("address {0:?} has port 0; print the port that was bound")]
    PortZero(String),
    /// The fifth field.
    #[error("protocol {0:?} is not supported, expected grpc")]
    Protocol(String),
    /// The sixth field is long, but not base64.
    #[error("the server certificate is not base64 (character {0:?})")]
    ServerCert(char),
    /// The seventh field is not a bool in Go's spelling.
    #[error("multiplexing flag {0:?} is neither true nor false")]
    Multiplex(String),
}

impl Handshake {
    /// A line of five fields for a plugin that speaks gRPC at `address`.
    #[must_use]
    pub fn grpc(app_version: u32, address: Address) -> Self {
        Self { app_version, address, protocol: Some(Protocol::Grpc), server_cert: None, multiplex: None }
    }

    /// Whether a line was meant as a handshake, right or wrong: its first field is a number, or it has four fields or
    /// more. Anything else is something that a library printed.
    #[must_use]
    pub fn looks_like(line: &[u8]) -> bool {
        let line = line.trim_ascii();
        let mut fields = line.split(|byte| *byte == b'|');
        let first = fields.next().unwrap_or_default();
        let more = fields.count();
        more >= 3 || (more >= 1 && !first.is_empty() && first.iter().all(u8::is_ascii_digit))
    }

    /// Parses one line; white space around it, the line end included, does not count.
    ///
    /// # Errors
    ///
    /// One variant of [`HandshakeError`] for each fault; the leftmost fault wins.
    pub fn parse(line: &[u8]) -> Result<Self, HandshakeError> {
        let line = std::str::from_utf8(line).map_err(|error| HandshakeError::NotUtf8(error.valid_up_to()))?.trim();
        if let Some(control) = line.chars().find(|character| character.is_control()) {
            return Err(HandshakeError::ControlCharacter(control));
        }
        let fields: Vec<&str> = line.split('|').collect();
        if fields.len() < 4 {
            return Err(HandshakeError::TooFewFields(fields.len()));
        }
        core_version(fields[0])?;
        let app_version = fields[1].parse().map_err(|_| HandshakeError::AppVersionNotANumber(fields[1].to_owned()))?;
        let address = match fields[2] {
            "unix" => unix_address(fields[3])?,
            "tcp" => tcp_address(fields[3])?,
            other => return Err(HandshakeError::Network(other.to_owned())),
        };
        let protocol = match fields.get(4).copied() {
            None => None,
            Some("grpc") => Some(Protocol::Grpc),
            Some("netrpc") => Some(Protocol::NetRpc),
            Some(other) => return Err(HandshakeError::Protocol(other.to_owned())),
        };
        let server_cert = match fields.get(5) {
            Some(cert) if cert.len() > MAX_JUNK_CERT => Some(base64(cert)?),
            _ => None,
        };
        let multiplex = fields.get(6).map(|flag| go_bool(flag)).transpose()?;
        if fields.len() > 7 {
            return Err(HandshakeError::TooManyFields(fields.len()));
        }
        Ok(Self { app_version, address, protocol, server_cert, multiplex })
    }
}

fn core_version(field: &str) -> Result<(), HandshakeError> {
    match field.parse::<u32>() {
        Ok(CORE_VERSION) => Ok(()),
        Ok(_) => Err(HandshakeError::CoreVersion(field.to_owned())),
        // A number that does not fit is a number all the same.
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => Err(HandshakeError::CoreVersion(field.to_owned())),
        Err(_) if field.parse::<i64>().is_ok() => Err(HandshakeError::CoreVersion(field.to_owned())),
        Err(_) => Err(HandshakeError::CoreVersionNotANumber(field.to_owned())),
    }
}

fn unix_address(field: &str) -> Result<Address, HandshakeError> {
    let named = || field.to_owned();
    if field.is_empty() {
        return Err(HandshakeError::EmptyAddress);
    }
    if field.starts_with('@') {
        return Err(HandshakeError::AbstractSocket(named()));
    }
    if field.starts_with("unix:") {
        return Err(HandshakeError::PrefixedPath(named()));
    }
    let path = Path::new(field);
    if !path.is_absolute() {
        return Err(HandshakeError::RelativePath(named()));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(HandshakeError::ParentInPath(named()));
    }
    if field.len() > MAX_SOCKET_PATH {
        return Err(HandshakeError::PathTooLong(field.len()));
    }
    Ok(Address::Unix(path.to_owned()))
}

fn tcp_address(field: &str) -> Result<Address, HandshakeError> {
    if field.is_empty() {
        return Err(HandshakeError::EmptyAddress);
    }
    let address: SocketAddr =
        field.parse().map_err(|error| HandshakeError::NotASocketAddress(field.to_owned(), error))?;
    if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) || field.contains('%') {
        return Err(HandshakeError::Zone(field.to_owned()));
    }
    if address.port() == 0 {
        return Err(HandshakeError::PortZero(field.to_owned()));
    }
    Ok(Address::Tcp(address))
}

fn base64(field: &str) -> Result<String, HandshakeError> {
    let padding = field.find('=').unwrap_or(field.len());
    let stray = field.char_indices().find(|(at, character)| match character {
        '=' => field.len() - at > 2,
        other => *at > padding || !(other.is_ascii_alphanumeric() || matches!(other, '+' | '/')),
    });
    match stray {
        None => Ok(field.to_owned()),
        Some((_, character)) => Err(HandshakeError::ServerCert(character)),
    }
}

/// The spellings of Go's `strconv.ParseBool`.
fn go_bool(field: &str) -> Result<bool, HandshakeError> {
    match field {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(HandshakeError::Multiplex(other.to_owned())),
    }
}

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CORE_VERSION}|{}|{}", self.app_version, self.address)?;
        let more = self.server_cert.is_some() || self.multiplex.is_some();
        match self.protocol {
            None if !more => return Ok(()),
            // A line of four fields means net/rpc, so the field is spelled out where others follow it.
            None | Some(Protocol::NetRpc) => f.write_str("|netrpc")?,
            Some(Protocol::Grpc) => f.write_str("|grpc")?,
        }
        if more {
            write!(f, "|{}", self.server_cert.as_deref().unwrap_or_default())?;
        }
        if let Some(multiplex) = self.multiplex {
            write!(f, "|{multiplex}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    /// `unix|/path` or `tcp|ip:port`, as in the line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix|{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp|{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn unix(path: &str) -> Address {
        Address::Unix(path.into())
    }

    #[test]
    fn every_fault_has_its_error() {
        use HandshakeError as E;
        let long_path = format!("1|1|unix|/{}|grpc", "x".repeat(200));
        let long_cert = format!("1|1|unix|/x|grpc|{}-", "A".repeat(60));
        let early_padding = format!("1|1|unix|/x|grpc|={}", "A".repeat(60));
        let cases: &[(&[u8], E)] = &[
            (b"", E::TooFewFields(1)),
            (b"1|1|unix", E::TooFewFields(3)),
            (b"\xff\xfe|1|unix|/x|grpc", E::NotUtf8(0)),
            (b"1|1|unix|/x\x1b[0m|grpc", E::ControlCharacter('\x1b')),
            (b"1|1|unix|/x\0|grpc", E::ControlCharacter('\0')),
            (b"x|1|unix|/x|grpc", E::CoreVersionNotANumber("x".into())),
            (b"1 |1|unix|/x|grpc", E::CoreVersionNotANumber("1 ".into())),
            (b"|1|unix|/x|grpc", E::CoreVersionNotANumber("".into())),
            (b"2|1|unix|/x|grpc", E::CoreVersion("2".into())),
            (b"-1|1|unix|/x|grpc", E::CoreVersion("-1".into())),
            (b"18446744073709551616|1|unix|/x|grpc", E::CoreVersion("18446744073709551616".into())),
            (b"1|one|unix|/x|grpc", E::AppVersionNotANumber("one".into())),
            (b"1||unix|/x|grpc", E::AppVersionNotANumber("".into())),
            (b"1|1|udp|/x|grpc", E::Network("udp".into())),
            (b"1|1||/x|grpc", E::Network("".into())),
            (b"1|1|unix||grpc", E::EmptyAddress),
            (b"1|1|tcp||grpc", E::EmptyAddress),
            (b"1|1|unix|unix:/x|grpc", E::PrefixedPath("unix:/x".into())),
            (b"1|1|unix|@x|grpc", E::AbstractSocket("@x".into())),
            (b"1|1|unix|x/y|grpc", E::RelativePath("x/y".into())),
            (b"1|1|unix|/x/../y|grpc", E::ParentInPath("/x/../y".into())),
            (long_path.as_bytes(), E::PathTooLong(201)),
            (b"1|1|tcp|127.0.0.1:0|grpc", E::PortZero("127.0.0.1:0".into())),
            (b"1|1|tcp|[::1%1]:80|grpc", E::Zone("[::1%1]:80".into())),
            (b"1|1|unix|/x|http", E::Protocol("http".into())),
            (b"1|1|unix|/x|", E::Protocol("".into())),
            (long_cert.as_bytes(), E::ServerCert('-')),
            (early_padding.as_bytes(), E::ServerCert('=')),
            (b"1|1|unix|/x|grpc||yes", E::Multiplex("yes".into())),
            (b"1|1|unix|/x|grpc||true|more", E::TooManyFields(8)),
        ];
        for (line, expected) in cases {
            assert_eq!(Handshake::parse(line).unwrap_err(), *expected, "{}", String::from_utf8_lossy(line));
        }
        for address in ["localhost:1", "127.1:1", "127.0.0.1", "127.0.0.1:65536", "::1:80", "example.org:1"] {
            let line = format!("1|1|tcp|{address}|grpc");
            let error = Handshake::parse(line.as_bytes()).unwrap_err();
            assert!(matches!(error, HandshakeError::NotASocketAddress(..)), "{address}: {error}");
        }
    }

    #[test]
    fn lines_that_plugins_print() {
        let grpc = |address| Handshake::grpc(1, address);
        let cert = "MIICTjCC".repeat(8);
        let cases = [
            ("1|1|unix|/run/x/plugin3976416648|grpc|".into(), grpc(unix("/run/x/plugin3976416648"))),
            ("1|1|unix|/x|grpc\r\n".into(), grpc(unix("/x"))),
            ("  1|1|unix|/x|grpc \n".into(), grpc(unix("/x"))),
            ("1|1|unix|/x|grpc|junk".into(), grpc(unix("/x"))),
            ("1|1|tcp|127.0.0.1:1234|grpc".into(), grpc(Address::Tcp("127.0.0.1:1234".parse().unwrap()))),
            ("1|1|tcp|[::1]:1234|grpc".into(), grpc(Address::Tcp("[::1]:1234".parse().unwrap()))),
            ("1|1|unix|/x|grpc||true".into(), Handshake { multiplex: Some(true), ..grpc(unix("/x")) }),
            (
                format!("1|1|unix|/x|grpc|{cert}==|F"),
                Handshake { server_cert: Some(format!("{cert}==")), multiplex: Some(false), ..grpc(unix("/x")) },
            ),
            ("1|3|unix|/path".into(), Handshake { app_version: 3, protocol: None, ..grpc(unix("/path")) }),
            ("1|1|unix|/x|netrpc".into(), Handshake { protocol: Some(Protocol::NetRpc), ..grpc(unix("/x")) }),
        ];
        for (line, expected) in cases {
            assert_eq!(Handshake::parse(line.as_bytes()).as_ref(), Ok(&expected), "{line}");
        }
    }

    #[test]
    fn what_libraries_print_is_no_handshake() {
        for line in ["", "hello", "WARNING: a|b", "a|b|c", "|", "12", "[INFO] x | y"] {
            assert!(!Handshake::looks_like(line.as_bytes()), "{line:?}");
        }
        for line in ["1|1", "2|1|unix|/x|grpc", "x|1|unix|/x|grpc", " 1|1|unix|/x|grpc\r\n", "|||"] {
            assert!(Handshake::looks_like(line.as_bytes()), "{line:?}");
        }
    }

    fn address() -> impl Strategy<Value = Address> {
        prop_oneof![
            "(/[a-zA-Z0-9._ -]{1,20}){1,4}"
                .prop_filter("no parent components", |path| !path.split('/').any(|part| part == ".."))
                // White space at the end of a line does not count, so no printer may rely on it.
                .prop_filter("ends visibly", |path| !path.ends_with(' '))
                .prop_map(|path| Address::Unix(path.into())),
            (any::<std::net::IpAddr>(), 1..u16::MAX).prop_map(|(ip, port)| Address::Tcp(SocketAddr::new(ip, port))),
        ]
    }

    prop_compose! {
        fn handshake()(
            app_version: u32,
            address in address(),
            protocol in prop::option::of(prop_oneof![Just(Protocol::Grpc), Just(Protocol::NetRpc)]),
            server_cert in prop::option::of("[A-Za-z0-9+/]{51,200}={0,2}"),
            multiplex: Option<bool>,
        ) -> Handshake {
            // A line of more than four fields always names its protocol.
            let protocol = match protocol {
                None if server_cert.is_some() || multiplex.is_some() => Some(Protocol::NetRpc),
                protocol => protocol,
            };
            Handshake { app_version, address, protocol, server_cert, multiplex }
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(handshake in handshake()) {
            let line = handshake.to_string();
            prop_assert!(Handshake::looks_like(line.as_bytes()));
            prop_assert_eq!(Handshake::parse(line.as_bytes()), Ok(handshake));
        }

        #[test]
        fn any_bytes_give_an_answer(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(handshake) = Handshake::parse(&line) {
                prop_assert_eq!(Handshake::parse(handshake.to_string().as_bytes()), Ok(handshake));
            }
        }

        #[test]
        fn near_misses_give_an_answer(line in "[0-9a-z]{0,3}(\\|[ -~]{0,12}){0,8}") {
            if let Ok(handshake) = Handshake::parse(line.as_bytes()) {
                prop_assert_eq!(Handshake::parse(handshake.to_string().as_bytes()), Ok(handshake));
            }
        }
    }
}
