//! Compiles the .proto files with protox, so that no machine needs protoc.

use std::path::Path;

const FILES: [&str; 6] = [
    "palisade/plugin/v1/common.proto",
    "palisade/plugin/v1/lifecycle.proto",
    "palisade/plugin/v1/filter.proto",
    "palisade/plugin/v1/certificates.proto",
    "goplugin/plugin.proto",
    "mosn/plugin.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES.map(|file| root.join(file)), [root])?;
    tonic_prost_build::configure()
        .bytes(".palisade.plugin.v1.Header.value")
        .bytes(".palisade.plugin.v1.Reply.body")
        .bytes(".palisade.plugin.v1.Request.body")
        .compile_fds(descriptors)?;
    Ok(())
}
