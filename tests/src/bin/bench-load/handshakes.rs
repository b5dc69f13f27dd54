//! TLS handshakes, one after the other on each of the connections: connect, handshake, close.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, HandshakeKind, SignatureScheme, version};

use super::Tally;

/// Which handshakes, with whom.
pub(super) struct Load {
    resumed: bool,
    port: u16,
    certificate: CertificateDer<'static>,
}

impl Load {
    pub(super) fn new(resumed: bool, port: u16, certificate: &Path) -> Load {
        Load { resumed, port, certificate: CertificateDer::from_pem_file(certificate).unwrap() }
    }

    /// One after the other until `end`; where they are to be resumed, a first one that is not counted gives the ticket.
    pub(super) fn run(&self, end: Instant) -> Tally {
        let config = self.config();
        let mut tally = Tally::default();
        if self.resumed {
            tally.errors += u64::from(self.handshake(&config).is_err());
        }
        let wanted = if self.resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
        while Instant::now() < end {
            match self.handshake(&config) {
                Ok((kind, took)) => {
                    tally.wrong += u64::from(kind != wanted);
                    tally.times.push(took);
                }
                Err(_) => tally.errors += 1,
            }
        }
        tally
    }

    /// TLS 1.3 with X25519 and AES-128, as all have them: what is compared is the servers, not what they prefer.
    fn config(&self) -> Arc<ClientConfig> {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        let provider = Arc::new(provider);
        let pinned = Pinned { certificate: self.certificate.clone(), provider: Arc::clone(&provider) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth();
        config.resumption = if self.resumed { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Arc::new(config)
    }

    /// From connect to the last message of the handshake. Then the server closes too, and its tickets are read.
    fn handshake(&self, config: &Arc<ClientConfig>) -> std::io::Result<(HandshakeKind, Duration)> {
        let begin = Instant::now();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut session = ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        let kind = session.handshake_kind().ok_or_else(|| std::io::Error::other("no handshake"))?;
        let took = begin.elapsed();
        session.send_close_notify();
        while session.wants_write() {
            session.write_tls(&mut stream)?;
        }
        stream.shutdown(Shutdown::Write)?;
        // Some servers end without a word of TLS, some reset what they have closed.
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => return Err(error),
            _ => {}
        }
        let mut rest = rest.as_slice();
        while !rest.is_empty() && session.read_tls(&mut rest)? > 0 {
            session.process_new_packets().map_err(std::io::Error::other)?;
        }
        Ok((kind, took))
    }
}

/// Takes this certificate and no other. The server proves that it has the key, but no chain is looked at: that would be
/// work of the client's alone.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("another certificate".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
