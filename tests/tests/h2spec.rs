//! HTTP/2 as the RFCs have it: every case of h2spec, the strict ones too.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it did nothing")]

use std::path::{Path, PathBuf};

use palisade_tests::tls::Authority;
use palisade_tests::{Proxy, Upstream, fake, place, soon};
use tokio::process::Command;

/// h2spec, built from the modules that `tests/go/h2spec` pins; `None` where there is no Go, or no way to the modules.
async fn h2spec() -> Option<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go/h2spec");
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(3).unwrap().join("h2spec");
    let go = |arguments: &[&str]| {
        let mut command = Command::new("go");
        command.args(arguments).current_dir(&module);
        command
    };
    if go(&["version"]).output().await.is_err() {
        eprintln!("skipped: Go is not installed, so h2spec can't be built");
        return None;
    }
    let download = go(&["mod", "download"]).output().await.unwrap();
    if !download.status.success() {
        eprintln!("skipped: Go can't get h2spec: {}", String::from_utf8_lossy(&download.stderr));
        return None;
    }
    let package = "github.com/summerwind/h2spec/cmd/h2spec";
    let built = go(&["build", "-mod=readonly", "-o", program.to_str().unwrap(), package]).output().await.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}

#[tokio::test]
async fn every_case_of_h2spec_passes() {
    let Some(h2spec) = h2spec().await else { return };
    let (authority, certificates) = (Authority::new(), place());
    authority.certificate(&["a.example"]).write(certificates.path(), "a");
    let upstream = Upstream::http1("app").await;
    let yaml = format!(
        "listeners:
  - {{name: web, address: 127.0.0.1:0, limits: {{header_timeout: 1s}}}}
  - {{name: secure, address: 127.0.0.1:0, limits: {{header_timeout: 1s}}, tls: {{plugin: certs, default: a}}}}
routes: [{{upstream: 'http://{}'}}]
plugins: {{certs: {{command: {}, config: {{dir: '{}'}}}}}}
",
        upstream.address(),
        fake(&["serve"]),
        certificates.path().display()
    );
    let proxy = Proxy::start(&yaml).await;
    for (listener, more) in [("web", &[][..]), ("secure", &["--tls", "--insecure"])] {
        let port = proxy.address_of(listener).port().to_string();
        let mut command = Command::new(&h2spec);
        command.args(["--strict", "--host", "127.0.0.1", "--port", &port, "--path", "/bytes/100"]).args(more);
        let output = soon("h2spec's end", command.output()).await.unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains(", 0 failed"), "{listener}:\n{report}");
    }
}
