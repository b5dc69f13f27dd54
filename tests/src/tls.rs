//! Certificates and TLS clients.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::soon;

/// A certificate authority that only the tests trust.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// What stands behind the leaf in the chains of its certificates, as PEM: itself, unless it is a root.
    issuers_pem: String,
    /// Its own certificate as PEM.
    pub pem: String,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate as it is sent.
    pub der: CertificateDer<'static>,
    /// The same as PEM.
    pub chain_pem: String,
    /// Its key as PEM.
    pub key_pem: String,
}

impl Certificate {
    /// Writes `NAME.pem` and `NAME.key`, each in one step.
    ///
    /// # Panics
    ///
    /// When the directory can't be written.
    pub fn write(&self, dir: &Path, name: &str) {
        // The key first: a plugin that reads in between sees a pair that does not match, as with any two files.
        replace(&dir.join(format!("{name}.key")), &self.key_pem);
        replace(&dir.join(format!("{name}.pem")), &self.chain_pem);
    }
}

/// Replaces a file in one step.
///
/// # Panics
///
/// When it can't be written.
pub fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    // A key among them is for its owner.
    std::fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, path).unwrap();
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A fresh one.
    ///
    /// # Panics
    ///
    /// When no key can be made.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "palisade tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap();
        let (certificate, pem) = (own.der().clone(), own.pem());
        Self { issuer: Issuer::new(params, key), certificate, issuers_pem: String::new(), pem }
    }

    /// An authority whose certificate this one has issued.
    ///
    /// # Panics
    ///
    /// When no key can be made.
    #[must_use]
    pub fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "palisade tests, below");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate, pem) = (own.der().clone(), own.pem());
        Self { issuer: Issuer::new(params, key), certificate, issuers_pem: pem.clone(), pem }
    }

    /// A fresh certificate for these names.
    ///
    /// # Panics
    ///
    /// When no key can be made.
    #[must_use]
    pub fn certificate(&self, names: &[&str]) -> Certificate {
        self.certificate_from(names, SystemTime::UNIX_EPOCH)
    }

    /// A fresh certificate for these names that is valid from then on.
    ///
    /// # Panics
    ///
    /// When no key can be made.
    #[must_use]
    pub fn certificate_from(&self, names: &[&str], not_before: SystemTime) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = not_before.into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain_pem = certificate.pem() + &self.issuers_pem;
        Certificate { der: certificate.der().clone(), chain_pem, key_pem: key.serialize_pem() }
    }

    /// A client that trusts this authority only.
    ///
    /// # Panics
    ///
    /// When the crypto provider lacks a protocol version.
    #[must_use]
    pub fn client(&self) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Arc::clone(&roots))
            .with_no_client_auth();
        TlsClient(config, roots)
    }
}

/// How to connect with TLS.
#[derive(Debug, Clone)]
pub struct TlsClient(ClientConfig, Arc<RootCertStore>);

impl TlsClient {
    /// Offers these protocols by ALPN.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.0.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Speaks TLS 1.2 and nothing newer.
    #[must_use]
    pub fn only_tls12(mut self) -> Self {
        let provider = Arc::clone(self.0.crypto_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]);
        self.0 = builder.unwrap().with_root_certificates(Arc::clone(&self.1)).with_no_client_auth();
        self
    }

    /// Sends no server name.
    #[must_use]
    pub fn without_sni(mut self) -> Self {
        self.0.enable_sni = false;
        self
    }

    /// Makes a handshake.
    ///
    /// # Errors
    ///
    /// When the server refuses it, or its certificate is not for the name.
    ///
    /// # Panics
    ///
    /// When the server does not answer, or the name is none.
    pub async fn connect(&self, address: SocketAddr, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = soon("a connection", TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        self.connect_over(stream, name).await
    }

    /// Makes a handshake over an open connection.
    ///
    /// # Errors
    ///
    /// As [`TlsClient::connect`].
    ///
    /// # Panics
    ///
    /// As [`TlsClient::connect`].
    pub async fn connect_over<I>(&self, io: I, name: &str) -> io::Result<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(self.0.clone()));
        soon("a TLS handshake", connector.connect(name, io)).await
    }

    /// The certificate that a server presents for a name.
    ///
    /// # Errors
    ///
    /// As [`TlsClient::connect`].
    ///
    /// # Panics
    ///
    /// As [`TlsClient::connect`].
    pub async fn presented(&self, address: SocketAddr, name: &str) -> io::Result<CertificateDer<'static>> {
        let stream = self.connect(address, name).await?;
        Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
    }
}
