//! Compiles Envoy's contract for the benchmark's authorization server.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=bench/ext_authz.proto");
    let descriptors = protox::compile(["ext_authz.proto"], [Path::new("bench")])?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}
