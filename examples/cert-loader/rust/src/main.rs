//! Serves the certificate in `cert.pem` and `key.pem` of a directory, and its successor soon after those files were
//! replaced.
//!
//! ```yaml
//! config: { dir: /etc/palisade/tls }
//! ```

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Once;

use palisade_plugin_proto::serve::{Config, Error, Plugin};
use palisade_plugin_proto::v1::{CertificateBundle, certificate_bundle::Key};

/// Called every second; only what differs from the time before is sent to the proxy.
fn load(config: &Config) -> Result<Vec<CertificateBundle>, Error> {
    let dir = Path::new(config.text("dir").ok_or("config has no `dir`")?);
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read(&path).map_err(|error| format!("can't read {}: {error}", path.display()))
    };
    Ok(vec![CertificateBundle {
        name: "default".to_owned(),
        // None: the names in the certificate.
        server_names: Vec::new(),
        certificate_chain_pem: read("cert.pem")?,
        key: Some(Key::PrivateKeyPem(read_key(&dir.join("key.pem"))?)),
    }])
}

/// A private key is for its owner.
fn read_key(path: &Path) -> Result<Vec<u8>, Error> {
    static OPEN: Once = Once::new();
    let told = |error| format!("can't read {}: {error}", path.display());
    let mut file = File::open(path).map_err(told)?;
    let mode = file.metadata().map_err(told)?.permissions().mode();
    let key = path.display();
    if mode & 0o002 != 0 {
        return Err(format!("everyone can write to the private key {key}; try: chmod o-rwx {key}").into());
    }
    if mode & 0o004 != 0 {
        #[allow(clippy::print_stderr, reason = "a plugin's stderr is its log")]
        OPEN.call_once(|| eprintln!("everyone on this host can read the private key {key}; try: chmod o-rwx {key}"));
    }
    let mut pem = Vec::new();
    file.read_to_end(&mut pem).map_err(told)?;
    Ok(pem)
}

#[tokio::main]
async fn main() -> ExitCode {
    Plugin::new("example-cert-loader").version(env!("CARGO_PKG_VERSION")).certificates(load).serve().await
}
