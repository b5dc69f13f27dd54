//! Serves the certificate in `cert.pem` and `key.pem` of a directory, and its successor soon after those files were
//! replaced.
//!
//! ```yaml
//! config: { dir: /etc/palisade/tls }
//! config: { dir: /mnt/tls, allow_open_keys: true }    # key.pem may be a file that everyone can read
//! ```

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use palisade_plugin_proto::serve::{Config, Error, Plugin, read_private_key};
use palisade_plugin_proto::v1::{CertificateBundle, certificate_bundle::Key};

/// Called every second; only what differs from the time before is sent to the proxy.
fn load(config: &Config) -> Result<Vec<CertificateBundle>, Error> {
    let dir = Path::new(config.text("dir").ok_or("config has no `dir`")?);
    let chain = dir.join("cert.pem");
    let allow_open_keys = config.value()["allow_open_keys"] == true;
    Ok(vec![CertificateBundle {
        name: "default".to_owned(),
        // None: the names in the certificate.
        server_names: Vec::new(),
        certificate_chain_pem: fs::read(&chain).map_err(|error| format!("can't read {}: {error}", chain.display()))?,
        key: Some(Key::PrivateKeyPem(read_private_key(dir.join("key.pem"), allow_open_keys)?)),
    }])
}

#[tokio::main]
async fn main() -> ExitCode {
    Plugin::new("example-cert-loader").version(env!("CARGO_PKG_VERSION")).certificates(load).serve().await
}
