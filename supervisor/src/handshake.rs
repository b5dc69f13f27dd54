//! Reads a plugin's standard output until its line, within bounds, and decides whether what it says is acceptable.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_plugin_proto::handshake::{Handshake, HandshakeError, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::connect::{ConnectError, Endpoint, EndpointError};
use crate::logs::{Sink, escape_text};
use crate::mtls::{Announced, MtlsError};
use crate::restart::Hope;
use crate::spec::{HandshakePolicy, PluginSpec};

/// How much of a line is shown.
const SHOWN: usize = 256;

/// What is wrong with what a plugin printed, or did not print.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeFailure {
    /// Nothing more can come.
    #[error("stdout was closed before the handshake{}", got(.line.as_deref()))]
    Closed {
        /// What was printed last.
        line: Option<String>,
    },
    /// The time was up.
    #[error("no handshake within {limit:?}{}", got(.line.as_deref()))]
    Timeout {
        /// How much there was.
        limit: Duration,
        /// What was printed last.
        line: Option<String>,
    },
    /// A line without an end in sight.
    #[error("stdout must carry the handshake; got a line of more than {limit} bytes: {line:?}")]
    LineTooLong {
        /// The most that is read.
        limit: usize,
        /// Its beginning.
        line: String,
    },
    /// Too much before the line.
    #[error("stdout must carry the handshake; got {lines} other lines ({bytes} bytes), the last of them {line:?}")]
    TooMuchBefore {
        /// How many lines.
        lines: usize,
        /// How long they are together.
        bytes: usize,
        /// The last of them.
        line: String,
    },
    /// A line that was meant as the handshake.
    #[error("line {line:?}")]
    Line {
        /// The line.
        line: String,
        /// What is wrong with it.
        #[source]
        source: HandshakeError,
    },
    /// A version that was not offered. Plugins answer with their lowest one where none matches.
    #[error("application version {got} is not offered by the host, which speaks {offered:?}")]
    AppVersion {
        /// The plugin's.
        got: u32,
        /// The host's.
        offered: Vec<u32>,
    },
    /// Go's own RPC, also meant by a line without a fifth field.
    #[error("the plugin speaks net/rpc, the host gRPC only (a line without a fifth field means net/rpc)")]
    NetRpc,
    /// A certificate that nobody asked for.
    #[error("the plugin serves with a certificate (6th field), but AutoMTLS was not asked for")]
    Certificate,
    /// No certificate where AutoMTLS was asked for.
    #[error(
        "the plugin announced no certificate (6th field): it does not speak AutoMTLS; remove `auto_mtls: true`, or build \
         it with go-plugin"
    )]
    NoCertificate,
    /// Told where to listen, the plugin did not.
    #[error("does not listen on {endpoint}, as it was told, within {limit:?}: {last}")]
    NotListening {
        /// Where.
        endpoint: String,
        /// How much time there was.
        limit: Duration,
        /// How the last attempt failed.
        last: String,
    },
    /// Where it was told to listen, somebody else does, or what is there is no socket.
    #[error("told where to listen")]
    Told(#[source] ConnectError),
    /// A certificate that can't be read.
    #[error("AutoMTLS")]
    Mtls(#[source] MtlsError),
    /// An address that must not be connected to.
    #[error("address")]
    Endpoint(#[source] EndpointError),
    /// Reading failed.
    #[error("read stdout")]
    Read(#[source] io::Error),
}

fn got(line: Option<&str>) -> String {
    line.map(|line| format!("; got {line:?}")).unwrap_or_default()
}

impl HandshakeFailure {
    /// Whether the same plugin may do better the next time.
    pub(crate) fn hope(&self) -> Hope {
        match self {
            Self::AppVersion { .. }
            | Self::NetRpc
            | Self::Certificate
            | Self::NoCertificate
            | Self::Line { source: HandshakeError::CoreVersion(_), .. } => Hope::Permanent,
            _ => Hope::Transient,
        }
    }
}

/// What the plugin said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) endpoint: Endpoint,
    pub(crate) app_version: u32,
    /// With AutoMTLS: what the plugin is to prove that it is.
    pub(crate) certificate: Option<Announced>,
}

/// What has been printed so far, up to the handshake: for reports.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// Not more than may come before the handshake, and itself.
    whole: Vec<String>,
    /// The beginning of one more.
    part: Option<String>,
}

impl Heard {
    /// What came last, whole or not.
    pub(crate) fn last(&self) -> Option<String> {
        let lines = self.lock();
        lines.part.as_ref().or(lines.whole.last()).cloned()
    }

    pub(crate) fn transcript(&self) -> Vec<String> {
        let lines = self.lock();
        lines.whole.iter().chain(&lines.part).cloned().collect()
    }

    fn line(&self, line: &[u8]) {
        let mut lines = self.lock();
        lines.part = None;
        if !line.trim_ascii().is_empty() {
            lines.whole.push(shown(line));
        }
    }

    fn part(&self, line: &[u8]) {
        let part = (!line.trim_ascii().is_empty()).then(|| shown(line));
        self.lock().part = part;
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Whole between its lines: nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads up to the handshake line. Other lines go to `sink`; what was read beyond the line is returned. Has no
/// deadline of its own: the lifecycle's covers the whole, however the bytes drip.
pub(crate) async fn read(
    from: &mut (impl AsyncRead + Unpin),
    policy: &HandshakePolicy,
    sink: &mut Sink,
    heard: &Heard,
) -> Result<(Handshake, Vec<u8>), HandshakeFailure> {
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 1024];
    let mut stray = Stray::default();
    loop {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(end + 1);
            let line = std::mem::replace(&mut buffer, rest);
            heard.line(&line);
            if line.len() > policy.max_line {
                return Err(too_long(policy, &line));
            }
            if Handshake::looks_like(&line) {
                return parse(&line).map(|handshake| (handshake, buffer));
            }
            sink.feed(&line);
            stray.add(&line, policy)?;
        }
        heard.part(&buffer);
        if buffer.len() > policy.max_line {
            return Err(too_long(policy, &buffer));
        }
        match from.read(&mut chunk).await.map_err(HandshakeFailure::Read)? {
            // The last line needs no end where the stream has one.
            0 if Handshake::looks_like(&buffer) => return parse(&buffer).map(|handshake| (handshake, Vec::new())),
            0 => {
                sink.feed(&buffer);
                return Err(HandshakeFailure::Closed { line: heard.last() });
            }
            count => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Decides on a line that is well formed.
pub(crate) async fn accept(
    handshake: &Handshake,
    spec: &PluginSpec,
    private_dir: &Path,
) -> Result<Accepted, HandshakeFailure> {
    // The most telling fault first: a plugin of another generation may well differ in all that follows.
    if !spec.app_versions.contains(&handshake.app_version) {
        return Err(HandshakeFailure::AppVersion { got: handshake.app_version, offered: spec.app_versions.clone() });
    }
    if handshake.protocol != Some(Protocol::Grpc) {
        return Err(HandshakeFailure::NetRpc);
    }
    let certificate = match (&handshake.server_cert, spec.auto_mtls) {
        (None, false) => None,
        (Some(field), true) => Some(Announced::parse(field).map_err(HandshakeFailure::Mtls)?),
        (Some(_), false) => return Err(HandshakeFailure::Certificate),
        (None, true) => return Err(HandshakeFailure::NoCertificate),
    };
    let endpoint =
        Endpoint::accept(&handshake.address, private_dir, spec.tcp).await.map_err(HandshakeFailure::Endpoint)?;
    Ok(Accepted { endpoint, app_version: handshake.app_version, certificate })
}

#[derive(Default)]
struct Stray {
    lines: usize,
    bytes: usize,
}

impl Stray {
    fn add(&mut self, line: &[u8], policy: &HandshakePolicy) -> Result<(), HandshakeFailure> {
        self.lines += 1;
        self.bytes += line.len();
        if self.lines <= policy.max_stray_lines && self.bytes <= policy.max_line {
            return Ok(());
        }
        Err(HandshakeFailure::TooMuchBefore { lines: self.lines, bytes: self.bytes, line: shown(line) })
    }
}

fn parse(line: &[u8]) -> Result<Handshake, HandshakeFailure> {
    Handshake::parse(line).map_err(|source| HandshakeFailure::Line { line: shown(line), source })
}

fn too_long(policy: &HandshakePolicy, line: &[u8]) -> HandshakeFailure {
    HandshakeFailure::LineTooLong { limit: policy.max_line, line: shown(line) }
}

fn shown(line: &[u8]) -> String {
    let line = line.trim_ascii();
    let mut text = escape_text(&String::from_utf8_lossy(&line[..line.len().min(SHOWN)]));
    if line.len() > SHOWN {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::logs::{Log, Stream};

    async fn outcome(output: &[u8]) -> Result<(Handshake, Vec<u8>), HandshakeFailure> {
        let mut sink = Log::new("auth".into()).sink(Stream::Stdout);
        let mut output = output;
        read(&mut output, &HandshakePolicy::default(), &mut sink, &Heard::default()).await
    }

    #[tokio::test]
    async fn the_line_is_found_and_what_follows_is_kept() {
        let line = b"1|1|unix|/x|grpc\n";
        let cases: [(&[u8], &[u8]); 4] = [
            (b"1|1|unix|/x|grpc\n", b""),
            (b"1|1|unix|/x|grpc\r\nmore\nlines", b"more\nlines"),
            (b"a banner\n\n| boxed |\n1|1|unix|/x|grpc|\n", b""),
            (b"1|1|unix|/x|grpc", b""),
        ];
        let expected = Handshake::parse(line).unwrap();
        for (output, rest) in cases {
            let found = outcome(output).await.unwrap();
            assert_eq!(found, (expected.clone(), rest.to_vec()), "{}", String::from_utf8_lossy(output));
        }
        let many = [b"x\n".repeat(32), line.to_vec()].concat();
        assert!(outcome(&many).await.is_ok());
    }

    #[tokio::test]
    async fn every_other_output_fails_at_once() {
        let text = |output: Vec<u8>| async move { outcome(&output).await.unwrap_err().to_string() };
        assert_eq!(text(b"".to_vec()).await, "stdout was closed before the handshake");
        assert_eq!(text(b"a\nb".to_vec()).await, "stdout was closed before the handshake; got \"b\"");
        assert!(text(b"x\n".repeat(33)).await.contains("got 33 other lines (66 bytes), the last of them \"x\""));
        assert!(text(vec![b'y'; 9000]).await.contains("got a line of more than 8192 bytes: \"yyy"));
        assert!(text([vec![b'y'; 10 << 20], b"\n".to_vec()].concat()).await.contains("more than 8192 bytes"));
        assert!(text([vec![b'z'; 5000], b"\n".to_vec()].concat().repeat(2)).await.contains("got 2 other lines"));
        assert_eq!(text(b"2|1|unix|/x|grpc\n1|1|unix|/x|grpc\n".to_vec()).await, "line \"2|1|unix|/x|grpc\"");
        assert_eq!(
            text(b"\xff\xfe|1|unix|/x\x1b|grpc\n".to_vec()).await,
            "line \"\u{fffd}\u{fffd}|1|unix|/x\\\\u{1b}|grpc\""
        );
    }

    #[tokio::test]
    async fn a_well_formed_line_may_still_be_refused() {
        let spec = PluginSpec::new("auth", ["x"], "/run");
        let cases = [
            (
                "1|7|unix|/run/p-1/s|grpc",
                "application version 7 is not offered by the host, which speaks [1]",
                Hope::Permanent,
            ),
            ("1|1|unix|/run/p-1/s", "net/rpc", Hope::Permanent),
            ("1|1|unix|/run/p-1/s|netrpc", "net/rpc", Hope::Permanent),
            ("1|1|unix|/run/p-2/s|grpc", "address", Hope::Transient),
        ];
        for (line, expected, hope) in cases {
            let handshake = Handshake::parse(line.as_bytes()).unwrap();
            let failure = accept(&handshake, &spec, Path::new("/run/p-1")).await.unwrap_err();
            assert!(failure.to_string().contains(expected), "{failure}");
            assert_eq!(failure.hope(), hope);
        }
        let cert = format!("1|1|unix|/run/p-1/s|grpc|{}", "A".repeat(600));
        let handshake = Handshake::parse(cert.as_bytes()).unwrap();
        let failure = accept(&handshake, &spec, Path::new("/run/p-1")).await.unwrap_err();
        assert!(failure.to_string().contains("AutoMTLS was not asked for"));
        let good = Handshake::parse(b"1|1|unix|/run/p-1/s|grpc||true").unwrap();
        let accepted = accept(&good, &spec, Path::new("/run/p-1")).await.unwrap();
        assert_eq!(accepted.endpoint.to_string(), "unix:/run/p-1/s");
    }
}
