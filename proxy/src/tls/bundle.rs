//! One bundle of a plugin, looked into before anybody is served with it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::InconsistentKeys;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pemfile::pem::{self, PemObject};
use rustls_pemfile::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::flaws::{self, Flaw};
use crate::plugin::CertificateBundle;

/// Certificates in one chain.
const MAX_CHAIN: usize = 16;

/// Longest chain in PEM, in bytes: more than that, no client takes. The key may stand in the same file.
const MAX_PEM: usize = 256 << 10;

/// What a bundle takes up beyond its chain and its names.
const LEAST_WEIGHT: usize = 1024;

/// Server names of one bundle.
const MAX_NAMES: usize = 1000;

/// How far the clock of whoever made a certificate may be ahead.
const SKEW: Duration = Duration::from_secs(300);

/// Longest name of a bundle in bytes, as the contract says.
const MAX_NAME: usize = 255;

/// A certificate that can be served.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) name: String,
    pub(super) server_names: Vec<ServerName>,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) not_after: SystemTime,
    /// What clients may refuse it for.
    pub(super) flaws: Vec<Flaw>,
    /// Roughly what it takes up in memory, in bytes.
    pub(super) weight: usize,
}

/// A server name that a certificate is for, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ServerName {
    Exact(String),
    /// `*.example`, held as `example`: exactly one label in front (RFC 9525 section 6.3).
    Wildcard(String),
}

/// Why a bundle is not served. It never quotes what could be a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BundleError {
    #[error("its name is empty or longer than {MAX_NAME} bytes")]
    Name,
    #[error("the chain is not PEM: {0}")]
    Chain(&'static str),
    #[error("the chain holds {0} certificates, must be 1 to {MAX_CHAIN}")]
    ChainLength(usize),
    #[error("the chain is {0} bytes long, at most {MAX_PEM}")]
    ChainBytes(usize),
    #[error("the key is not a PKCS#8, PKCS#1 or SEC1 key in PEM")]
    Key,
    #[error("the key is encrypted; supply it decrypted, as by `openssl pkey -in KEY -out PLAIN`")]
    EncryptedKey,
    #[error("there is more than one key")]
    Keys,
    #[error("the key is of a kind that is not supported")]
    KeyKind,
    #[error("the key does not belong to the certificate")]
    Mismatch,
    #[error("the chain does not begin with its leaf: the key belongs to number {0} of it")]
    LeafNotFirst(usize),
    #[error("the certificate can't be read: {0}")]
    Certificate(String),
    #[error("the certificate expired {0} ago")]
    Expired(String),
    #[error("the certificate is valid in {0} only")]
    NotYetValid(String),
    #[error("{0:?} is not a server name")]
    ServerName(String),
    #[error("it is for {0} server names, at most {MAX_NAMES}")]
    TooManyNames(usize),
}

impl Bundle {
    /// Checks what a plugin sent.
    pub(super) fn new(
        sent: CertificateBundle,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<Self, BundleError> {
        if sent.name.is_empty() || sent.name.len() > MAX_NAME {
            return Err(BundleError::Name);
        }
        if sent.chain_pem.len() > MAX_PEM {
            return Err(BundleError::ChainBytes(sent.chain_pem.len()));
        }
        if sent.key_pem.len() > MAX_PEM {
            return Err(BundleError::Key);
        }
        let chain = CertificateDer::pem_slice_iter(&sent.chain_pem)
            .take(MAX_CHAIN + 1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| BundleError::Chain(fault(&error)))?;
        if chain.is_empty() || chain.len() > MAX_CHAIN {
            return Err(BundleError::ChainLength(chain.len()));
        }
        let key = only_key(&sent.key_pem)?;
        let Leaf { not_before, not_after, alternative_names } = examine(&chain[0])?;
        if let Ok(ahead) = not_before.duration_since(now + SKEW) {
            return Err(BundleError::NotYetValid(format!("{} s", (ahead + SKEW).as_secs())));
        }
        if let Ok(ago) = now.duration_since(not_after) {
            return Err(BundleError::Expired(format!("{} s", ago.as_secs())));
        }
        let key = pair(chain, key, provider)?;
        // What is no server name is of use to nobody, unless it is all that the bundle is for.
        let certified: Vec<_> = alternative_names.iter().filter_map(|name| ServerName::parse(name).ok()).collect();
        let names = if sent.server_names.is_empty() { alternative_names } else { sent.server_names };
        if names.len() > MAX_NAMES {
            return Err(BundleError::TooManyNames(names.len()));
        }
        let server_names: Vec<_> = names.iter().map(|name| ServerName::parse(name)).collect::<Result<_, _>>()?;
        let flaws = flaws::find(&key.cert, &server_names, &certified, now);
        // Names are held by the bundle and by the index of all.
        let weight = LEAST_WEIGHT
            + key.cert.iter().map(|certificate| certificate.len()).sum::<usize>()
            + names.iter().map(|name| 2 * name.len() + 100).sum::<usize>();
        Ok(Self { name: sent.name, server_names, key: Arc::new(key), not_after, flaws, weight })
    }

    /// What the log says of it: the leaf's fingerprint (SHA-256), as `openssl x509 -fingerprint -sha256` shows it.
    pub(super) fn fingerprint(&self) -> String {
        use sha2::{Digest, Sha256};
        let leaf = self.key.cert.first().map(AsRef::as_ref).unwrap_or_default();
        let bytes: Vec<_> = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02X}")).collect();
        bytes.join(":")
    }
}

/// The chain with the key of its first certificate.
fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, BundleError> {
    let key = provider.key_provider.load_private_key(key).map_err(|_| BundleError::KeyKind)?;
    let fits = |chain: Vec<_>| {
        let pair = CertifiedKey::new(chain, Arc::clone(&key));
        match pair.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
            Err(rustls::Error::InconsistentKeys(_)) => Err(BundleError::Mismatch),
            Err(_) => Err(BundleError::KeyKind),
        }
    };
    fits(chain.clone()).map_err(|error| {
        let leaf = chain.into_iter().skip(1).position(|certificate| fits(vec![certificate]).is_ok());
        leaf.map_or(error, |at| BundleError::LeafNotFirst(at + 2))
    })
}

/// Of two keys, which one is meant must not be a riddle.
fn only_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, BundleError> {
    let mut keys = PrivateKeyDer::pem_slice_iter(pem);
    match (keys.next(), keys.next()) {
        (Some(Ok(key)), None) => Ok(key),
        (Some(_), Some(_)) => Err(BundleError::Keys),
        _ if is_encrypted(pem) => Err(BundleError::EncryptedKey),
        _ => Err(BundleError::Key),
    }
}

/// As PKCS#8 and the older form of OpenSSL say it (RFC 7468 section 11, RFC 1421 section 4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    let says = |words: &[u8]| pem.windows(words.len()).any(|window| window == words);
    says(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || says(b"Proc-Type: 4,ENCRYPTED")
}

/// In words of ours: the library's quote the line, and where line ends were lost, that may hold a key as well.
fn fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a line that begins a section holds more than that",
        pem::Error::Base64Decode(_) => "a section is not base64",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it can't be read",
    }
}

/// What is used of a leaf.
struct Leaf {
    not_before: SystemTime,
    not_after: SystemTime,
    /// DNS names that it is for.
    alternative_names: Vec<String>,
}

fn examine(leaf: &CertificateDer<'_>) -> Result<Leaf, BundleError> {
    let unreadable = |error: String| BundleError::Certificate(error);
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| unreadable(error.to_string()))?;
    let (not_before, not_after) = (time(leaf.validity().not_before), time(leaf.validity().not_after));
    let names = leaf.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let names = names.map_or_else(Vec::new, |names| {
        let dns = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        };
        names.value.general_names.iter().filter_map(dns).collect()
    });
    Ok(Leaf { not_before, not_after, alternative_names: names })
}

/// Before 1970 is long ago either way.
pub(super) fn time(at: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(name) => write!(f, "*.{name}"),
        }
    }
}

impl ServerName {
    /// Whether a certificate for this name is one for `other`.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Wildcard(parent), Self::Exact(name)) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
            _ => self == other,
        }
    }

    fn parse(name: &str) -> Result<Self, BundleError> {
        let lower = name.trim_end_matches('.').to_ascii_lowercase();
        let (wildcard, rest) = match lower.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, lower.as_str()),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if rest.len() > 253 || !rest.split('.').all(label) {
            return Err(BundleError::ServerName(name.chars().take(253).collect()));
        }
        let rest = rest.to_owned();
        Ok(if wildcard { Self::Wildcard(rest) } else { Self::Exact(rest) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A bundle with a certificate of its own.
    pub(in crate::tls) fn sent(name: &str, names: &[&str]) -> CertificateBundle {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        CertificateBundle {
            name: name.to_owned(),
            server_names: Vec::new(),
            chain_pem: certificate.pem().into_bytes(),
            key_pem: key.serialize_pem().into_bytes(),
        }
    }

    pub(in crate::tls) fn bundle(sent: CertificateBundle) -> Result<Bundle, BundleError> {
        Bundle::new(sent, &rustls::crypto::aws_lc_rs::default_provider(), SystemTime::now())
    }

    #[test]
    fn each_fault_has_its_error() {
        let good = || sent("a", &["a.example"]);
        let other = sent("a", &["a.example"]);
        let fault = |bundle_: CertificateBundle| bundle(bundle_).unwrap_err();
        assert_eq!(fault(CertificateBundle { name: String::new(), ..good() }), BundleError::Name);
        assert_eq!(fault(CertificateBundle { name: "x".repeat(256), ..good() }), BundleError::Name);
        assert_eq!(fault(CertificateBundle { chain_pem: Vec::new(), ..good() }), BundleError::ChainLength(0));
        let long = good().chain_pem.repeat(MAX_CHAIN + 1);
        assert_eq!(fault(CertificateBundle { chain_pem: long, ..good() }), BundleError::ChainLength(MAX_CHAIN + 1));
        let junk = b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n".to_vec();
        assert!(matches!(fault(CertificateBundle { chain_pem: junk, ..good() }), BundleError::Chain(_)));
        let junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
        assert!(matches!(fault(CertificateBundle { chain_pem: junk, ..good() }), BundleError::Certificate(_)));
        let long = good().chain_pem.repeat(1000);
        assert!(matches!(fault(CertificateBundle { chain_pem: long, ..good() }), BundleError::ChainBytes(_)));
        let long = good().key_pem.repeat(2000);
        assert_eq!(fault(CertificateBundle { key_pem: long, ..good() }), BundleError::Key);
        assert_eq!(fault(CertificateBundle { key_pem: b"secret".to_vec(), ..good() }), BundleError::Key);
        assert_eq!(fault(CertificateBundle { key_pem: other.key_pem, ..good() }), BundleError::Mismatch);
        for bad in ["", "a b", "*", "*.", "a.*", "a..b", &"x".repeat(64)] {
            let named = CertificateBundle { server_names: vec![bad.to_owned()], ..good() };
            assert!(matches!(fault(named), BundleError::ServerName(_)), "{bad:?}");
        }
    }

    #[test]
    fn keys_come_in_many_forms_and_one_at_a_time() {
        let text = |pem: &[u8]| String::from_utf8(pem.to_vec()).unwrap();
        let good = || sent("a", &["a.example"]);
        let crlf = |pem: &[u8]| text(pem).replace("\r\n", "\n").replace('\n', "\r\n").into_bytes();
        let taken = |sent: CertificateBundle| bundle(sent).map(|_| ());
        let CertificateBundle { chain_pem, key_pem, .. } = good();
        let with_line_ends = CertificateBundle { chain_pem: crlf(&chain_pem), key_pem: crlf(&key_pem), ..good() };
        assert_eq!(taken(with_line_ends), Ok(()));
        // One file for both, in either order, with words around.
        for file in [[&key_pem[..], b"words\n", &chain_pem].concat(), [&chain_pem[..], &key_pem].concat()] {
            assert_eq!(taken(CertificateBundle { chain_pem: file.clone(), key_pem: file, ..good() }), Ok(()));
        }
        let two = [&key_pem[..], &good().key_pem].concat();
        let sent =
            |key_pem: &[u8]| CertificateBundle { chain_pem: chain_pem.clone(), key_pem: key_pem.to_vec(), ..good() };
        assert_eq!(taken(sent(&two)), Err(BundleError::Keys));
        let pkcs8 = text(&key_pem).replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        for encrypted in [pkcs8.as_str(), old] {
            assert_eq!(taken(sent(encrypted.as_bytes())), Err(BundleError::EncryptedKey), "{encrypted}");
        }
        let cut = &key_pem[..key_pem.len() / 2];
        assert_eq!(taken(sent(cut)), Err(BundleError::Key));
        assert_eq!(taken(sent(&chain_pem)), Err(BundleError::Key));
    }

    #[test]
    fn an_error_quotes_no_key() {
        // As it comes out of a variable whose line ends were escaped, with the key behind the chain.
        let CertificateBundle { chain_pem, key_pem, .. } = sent("a", &["a.example"]);
        let all = String::from_utf8([chain_pem, key_pem.clone()].concat()).unwrap();
        for joined in [all.replace('\n', "\\n"), all.replace('\n', " "), all.replace('\n', "")] {
            for text in [joined.clone(), joined.replace("-----BEGIN PRIVATE", "\n-----BEGIN PRIVATE")] {
                let bad = CertificateBundle { chain_pem: text.into_bytes(), ..sent("a", &["a.example"]) };
                let error = bundle(bad).unwrap_err();
                assert!(matches!(error, BundleError::Chain(_) | BundleError::ChainLength(_)), "{error}");
                assert!(error.to_string().len() < 100, "{error}");
            }
        }
    }

    #[test]
    fn a_chain_begins_with_its_leaf() {
        let (own, other) = (sent("a", &["a.example"]), sent("a", &["b.example"]));
        let turned = [&other.chain_pem[..], &other.chain_pem, &own.chain_pem].concat();
        assert_eq!(bundle(CertificateBundle { chain_pem: turned, ..own }).unwrap_err(), BundleError::LeafNotFirst(3));
    }

    #[test]
    fn an_expired_certificate_is_not_served() {
        let sent = sent("a", &["a.example"]);
        let after = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        let error = Bundle::new(sent, &rustls::crypto::aws_lc_rs::default_provider(), after).unwrap_err();
        assert!(matches!(error, BundleError::Expired(_)));
    }

    #[test]
    fn a_certificate_of_the_future_is_not_served_yet() {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let sent = sent("a", &["a.example"]);
        // What it is valid from is long ago; 1969 is longer ago.
        let before = SystemTime::UNIX_EPOCH;
        assert!(matches!(Bundle::new(sent, &provider, before), Err(BundleError::NotYetValid(_))));
    }

    #[test]
    fn names_come_from_the_plugin_else_from_the_leaf() {
        let from_leaf = bundle(sent("a", &["A.example", "*.b.example"])).unwrap();
        let expected = [ServerName::Exact("a.example".into()), ServerName::Wildcard("b.example".into())];
        assert_eq!(from_leaf.server_names, expected);
        let named = CertificateBundle { server_names: vec!["c.example.".into()], ..sent("a", &["a.example"]) };
        assert_eq!(bundle(named).unwrap().server_names, [ServerName::Exact("c.example".into())]);
    }
}
