//! TLS with certificates that a plugin supplies: watched, checked, and swapped while connections go on.

mod bundle;
mod flaws;
mod store;
mod watch;

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ResolvesServerCert;
use rustls::{ServerConfig, SupportedProtocolVersion};

pub(crate) use self::flaws::Flaw;
pub(crate) use self::watch::{Arrival, Certificates};
use crate::config::ListenerTls;

const TLS12_UP: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
const TLS13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Judges what a plugin sent, as [`Certificates`] do.
#[cfg(any(test, fuzzing))]
pub(crate) fn judge(
    sent: crate::plugin::CertificateBundle,
    provider: &rustls::crypto::CryptoProvider,
    now: std::time::SystemTime,
) {
    if let Ok(bundle) = bundle::Bundle::new(sent, provider, now) {
        drop(bundle.fingerprint());
    }
}

/// The configuration of a listener's handshakes: HTTP/2 and HTTP/1.1 by ALPN (RFC 7301), no early data.
///
/// Sessions are resumed by tickets (RFC 8446 section 4.6.1, RFC 5077) that hold all of them. What a server keeps of
/// sessions is bounded, so it would forget those of few clients when many come. The key is made here, is replaced every
/// 6 hours, and opens tickets for 12; it never leaves the process.
///
/// # Errors
///
/// Where there is no randomness for that key.
pub(crate) fn server_config(
    tls: &ListenerTls,
    certificates: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = if tls.only_tls13 { TLS13_ONLY } else { TLS12_UP };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}
