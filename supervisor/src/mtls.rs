//! AutoMTLS, go-plugin's own kind of mutual TLS: host and plugin each make a certificate for one start, hand it to the
//! other, and accept that one and nothing else.
//!
//! The plugin's comes in the handshake line, ours goes into its environment (`PLUGIN_CLIENT_CERT`). No authority
//! vouches for either, so the plugin's is pinned by its DER: Go's is marked as an authority's own, which every verifier
//! by the rules of the web refuses in a server. Ours has a P-256 key, since servers on BoringSSL, such as Python's
//! grpcio, do not take the P-521 that go-plugin's own hosts use. The key never leaves this process's memory.

use std::fmt;
use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The name in certificates of both sides (go-plugin `mtls.go`).
const NAME: &str = "localhost";

/// Go writes the sixth field without padding, others with it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why there can be no AutoMTLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MtlsError {
    /// Our certificate could not be made.
    #[error("the host's certificate can't be made")]
    Identity(#[source] rcgen::Error),
    /// rustls refuses what we made.
    #[error("TLS can't be set up")]
    Setup(#[source] rustls::Error),
    /// The sixth field of the handshake line.
    #[error("the server certificate (6th field) is not base64 of DER")]
    Base64(#[source] base64::DecodeError),
    /// The sixth field of the handshake line.
    #[error("the server certificate (6th field) is not an X.509 certificate")]
    Certificate(#[source] rustls::Error),
}

/// The host's certificate and key for one start of a plugin. Its `Debug` shows no key.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    pub(crate) fn new() -> Result<Self, MtlsError> {
        // The default kind is ECDSA on P-256. The default validity has no end that anybody will see, as go-plugin's:
        // the certificate goes with the process, however long that lives and whatever the clock says.
        let key = KeyPair::generate().map_err(MtlsError::Identity)?;
        let mut params = CertificateParams::new([NAME.to_owned()]).map_err(MtlsError::Identity)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, NAME);
        // No authority's, as go-plugin's own are: Go takes either, and verifiers by the rules of the web this one only.
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.self_signed(&key).map_err(MtlsError::Identity)?;
        Ok(Self { pem: certificate.pem(), certificate: certificate.into(), key: key.serialize_der().into() })
    }

    /// What the plugin is to trust.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// TLS to the plugin that announced this certificate, and to nobody else.
    pub(crate) fn connector(&self, announced: &Announced) -> Result<Secure, MtlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pinned = Pinned { certificate: announced.0.clone(), provider: Arc::clone(&provider) };
        let key = PrivateKeyDer::Pkcs8(self.key.clone_key());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(MtlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_client_auth_cert(vec![self.certificate.clone()], key)
            .map_err(MtlsError::Setup)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(NAME).map_err(|_| MtlsError::Setup(rustls::Error::General(NAME.to_owned())))?;
        Ok(Secure { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The certificate that a plugin announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced(CertificateDer<'static>);

impl Announced {
    /// From the sixth field of the handshake line, padded or not.
    pub(crate) fn parse(field: &str) -> Result<Self, MtlsError> {
        let der = CertificateDer::from(BASE64.decode(field).map_err(MtlsError::Base64)?);
        ParsedCertificate::try_from(&der).map_err(MtlsError::Certificate)?;
        Ok(Self(der))
    }
}

/// How connections to one plugin are secured.
#[derive(Clone)]
pub(crate) struct Secure {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Secure {
    /// The TLS handshake. Where the plugin refuses our certificate, TLS 1.3 tells only with the first answer.
    pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure").finish_non_exhaustive()
    }
}

/// Accepts one certificate, byte for byte, from whoever proves to have its key.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *presented == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    use rcgen::{BasicConstraints, PKCS_ECDSA_P521_SHA512};
    use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
    use rustls::sign::CertifiedKey;
    use rustls::version::{TLS12, TLS13};
    use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A certificate as Go makes it: P-521, marked as an authority's own.
    struct Go {
        certificate: CertificateDer<'static>,
        key: Arc<dyn rustls::sign::SigningKey>,
    }

    impl Go {
        fn new() -> Self {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
            let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap().into();
            let key = aws_lc_rs::sign::any_supported_type(&PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap();
            Self { certificate, key }
        }

        fn announced(&self) -> Announced {
            Announced::parse(&STANDARD_NO_PAD.encode(&self.certificate)).unwrap()
        }
    }

    /// Presents a certificate whether or not it has its key.
    #[derive(Debug)]
    struct Presented(Arc<CertifiedKey>);

    impl ResolvesServerCert for Presented {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// A plugin's side of a connection: trusts `host` only, answers one byte.
    async fn serve(
        stream: DuplexStream,
        host: &CertificateDer<'static>,
        certified: CertifiedKey,
        version: &'static SupportedProtocolVersion,
    ) -> io::Result<()> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(host.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Presented(Arc::new(certified))));
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        stream.write_all(b"!").await?;
        stream.flush().await
    }

    async fn talk(
        identity: &Identity,
        announced: &Announced,
        certified: CertifiedKey,
        version: &'static SupportedProtocolVersion,
    ) -> io::Result<u8> {
        let (ours, theirs) = duplex(64 * 1024);
        let secure = identity.connector(announced).unwrap();
        let asking = async { secure.over(ours).await?.read_u8().await };
        let (answer, _) = tokio::join!(asking, serve(theirs, &identity.certificate, certified, version));
        answer
    }

    #[test]
    fn the_announced_certificate_is_read_padded_or_not() {
        let go = Go::new();
        let (padded, bare) = (STANDARD.encode(&go.certificate), STANDARD_NO_PAD.encode(&go.certificate));
        assert_eq!(Announced::parse(&padded).unwrap(), Announced::parse(&bare).unwrap());
        assert!(matches!(Announced::parse(&"A".repeat(601)), Err(MtlsError::Base64(_))));
        assert!(matches!(Announced::parse(&"A".repeat(600)), Err(MtlsError::Certificate(_))));
    }

    #[tokio::test]
    async fn go_s_certificate_is_accepted_and_ours_proves_who_we_are() {
        let (identity, go) = (Identity::new().unwrap(), Go::new());
        for version in [&TLS12, &TLS13] {
            let certified = CertifiedKey::new(vec![go.certificate.clone()], go.key.clone());
            assert_eq!(talk(&identity, &go.announced(), certified, version).await.unwrap(), b'!');
        }
    }

    #[tokio::test]
    async fn another_certificate_is_refused_and_so_is_the_right_one_without_its_key() {
        let (identity, go, other) = (Identity::new().unwrap(), Go::new(), Go::new());
        for version in [&TLS12, &TLS13] {
            let another = CertifiedKey::new(vec![other.certificate.clone()], other.key.clone());
            let error = talk(&identity, &go.announced(), another, version).await.unwrap_err();
            assert!(error.to_string().contains("invalid peer certificate"), "{error}");
            let stolen = CertifiedKey::new(vec![go.certificate.clone()], other.key.clone());
            let error = talk(&identity, &go.announced(), stolen, version).await.unwrap_err();
            assert!(error.to_string().contains("BadSignature"), "{error}");
        }
    }

    #[tokio::test]
    async fn plaintext_is_not_spoken() {
        let (identity, go) = (Identity::new().unwrap(), Go::new());
        let (ours, mut theirs) = duplex(64 * 1024);
        let secure = identity.connector(&go.announced()).unwrap();
        let answering = async move {
            let mut hello = [0; 3];
            theirs.read_exact(&mut hello).await.unwrap();
            theirs.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            hello
        };
        let (refused, hello) = tokio::join!(secure.over(ours), answering);
        assert_eq!(hello[0], 0x16, "a TLS record");
        assert!(refused.is_err());
    }

    #[test]
    fn the_key_is_not_shown() {
        let identity = Identity::new().unwrap();
        assert_eq!(format!("{identity:?}"), "Identity { .. }");
        assert!(!identity.pem().contains("PRIVATE"));
    }
}
