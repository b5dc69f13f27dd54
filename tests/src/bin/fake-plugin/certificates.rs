//! Certificates of a directory: a bundle for each `NAME.pem` and `NAME.key` in `config: {dir: ...}`.

use std::ffi::OsStr;
use std::path::Path;

use palisade_plugin_proto::serve::{Config, Error};
use palisade_plugin_proto::v1::{CertificateBundle, certificate_bundle};

pub(crate) fn load(config: &Config) -> Result<Vec<CertificateBundle>, Error> {
    let Some(dir) = config.text("dir") else { return Ok(Vec::new()) };
    let mut bundles = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("pem")) {
            bundles.push(bundle(&path)?);
        }
    }
    bundles.sort_by(|one: &CertificateBundle, other| one.name.cmp(&other.name));
    Ok(bundles)
}

fn bundle(path: &Path) -> Result<CertificateBundle, Error> {
    Ok(CertificateBundle {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        server_names: Vec::new(),
        certificate_chain_pem: std::fs::read(path)?,
        key: Some(certificate_bundle::Key::PrivateKeyPem(std::fs::read(path.with_extension("key"))?)),
    })
}
