//! What is wrong with a certificate that is served all the same: clients may refuse it, and only they know.
//!
//! | flaw | what it means |
//! | --- | --- |
//! | `incomplete_chain` | a certificate that somebody else issued stands alone: whoever does not have its issuer can't verify it |
//! | `broken_chain` | a certificate was not issued by the one behind it |
//! | `expired_issuer` | a certificate behind the leaf is not valid at this time |
//! | `other_names` | the bundle is for a server name that the leaf is not for |
//!
//! None of them is certain. A private authority may issue leaves itself, and clients may have what the chain lacks.

use std::time::SystemTime;

use rustls_pemfile::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::{ServerName, time};
use crate::plugin::clip;

/// One of them, with the text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// In one word, for metrics.
    pub(crate) kind: &'static str,
    pub(crate) text: String,
}

/// What clients may take offence at. `names` are those that the bundle is for, `certified` those that its leaf is for.
pub(super) fn find(
    chain: &[CertificateDer<'_>],
    names: &[ServerName],
    certified: &[ServerName],
    now: SystemTime,
) -> Vec<Flaw> {
    let parsed: Vec<_> = chain.iter().map_while(|der| X509Certificate::from_der(der).ok()).map(|(_, it)| it).collect();
    let mut flaws = Vec::new();
    let mut flaw = |kind, text| flaws.push(Flaw { kind, text });
    if let [leaf] = &parsed[..]
        && leaf.issuer().as_raw() != leaf.subject().as_raw()
    {
        let issuer = clip(&leaf.issuer().to_string());
        flaw(
            "incomplete_chain",
            format!(
                "it comes without the certificate of its issuer, `{issuer}`; append that to the chain, unless clients have it"
            ),
        );
    }
    if let Some(at) = parsed.windows(2).position(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw()) {
        let issuer = clip(&parsed[at].issuer().to_string());
        flaw(
            "broken_chain",
            format!(
                "number {} of the chain is not of `{issuer}`, who issued number {}; begin with the leaf, each followed by its issuer",
                at + 2,
                at + 1
            ),
        );
    }
    let valid = |it: &X509Certificate<'_>| time(it.validity().not_before) <= now && now < time(it.validity().not_after);
    if let Some(at) = parsed.iter().skip(1).position(|it| !valid(it)) {
        let subject = clip(&parsed[at + 1].subject().to_string());
        flaw("expired_issuer", format!("number {} of the chain, `{subject}`, is not valid now", at + 2));
    }
    if let Some(name) = names.iter().find(|name| !certified.iter().any(|certified| certified.covers(name))) {
        flaw("other_names", format!("it is for the server name `{name}`, and the certificate is not"));
    }
    flaws
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::super::bundle::tests::bundle;
    use super::*;
    use crate::plugin::CertificateBundle;

    /// A root, an authority below it that is valid for a time only, and a leaf of that one with its key.
    fn chain(valid_until: SystemTime) -> ([String; 3], String) {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let [root_key, below_key, key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let (root, mut below) = (authority("root"), authority("below"));
        below.not_after = valid_until.into();
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let below_pem = below.signed_by(&below_key, &Issuer::new(root, root_key)).unwrap().pem();
        let leaf = CertificateParams::new(vec!["a.example".to_owned(), "*.b.example".to_owned()]).unwrap();
        let leaf_pem = leaf.signed_by(&key, &Issuer::new(below, below_key)).unwrap().pem();
        ([leaf_pem, below_pem, root_pem], key.serialize_pem())
    }

    fn flaws(chain: &[&str], key: &str, names: &[&str]) -> Vec<&'static str> {
        let sent = CertificateBundle {
            name: "a".to_owned(),
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            chain_pem: chain.concat().into_bytes(),
            key_pem: key.as_bytes().to_vec(),
        };
        bundle(sent).unwrap().flaws.iter().map(|flaw| flaw.kind).collect()
    }

    #[test]
    fn each_flaw_is_found_and_nothing_else() {
        let later = SystemTime::now() + Duration::from_secs(3600);
        let ([leaf, below, root], key) = chain(later);
        let found = |chain: &[&str], names: &[&str]| flaws(chain, &key, names);
        assert!(found(&[&leaf, &below], &[]).is_empty());
        assert!(found(&[&leaf, &below, &root], &["A.example", "x.b.example", "*.b.example"]).is_empty());
        assert_eq!(found(&[&leaf], &[]), ["incomplete_chain"]);
        assert_eq!(found(&[&leaf, &root], &[]), ["broken_chain"]);
        assert_eq!(found(&[&leaf, &root, &below], &[]), ["broken_chain"]);
        for other in ["b.example", "y.x.b.example", "*.example", "*.a.example"] {
            assert_eq!(found(&[&leaf, &below], &["a.example", other]), ["other_names"], "{other}");
        }
        let ([leaf, below, _], key) = chain(SystemTime::now() - Duration::from_secs(3600));
        assert_eq!(flaws(&[&leaf, &below], &key, &[]), ["expired_issuer"]);
    }
}
