//! Lets a request through only if one of its headers has the right value; 403 otherwise.
//!
//! ```yaml
//! config: { header: User, value: admin }      # the default
//! ```

use std::process::ExitCode;

use palisade_plugin_proto::serve::{Config, Plugin};
use palisade_plugin_proto::v1::{CheckRequestResponse, Request};

fn check(request: &Request, config: &Config) -> CheckRequestResponse {
    // Names of headers come in lower case.
    let header = config.text("header").unwrap_or("User").to_ascii_lowercase();
    let value = config.text("value").unwrap_or("admin").as_bytes();
    // Every line of that header must agree: with a second one, nobody knows which of them the upstream reads.
    let mut values = request.header_values(&header).peekable();
    if values.peek().is_some() && values.all(|each| each == value) {
        CheckRequestResponse::allow()
    } else {
        CheckRequestResponse::deny(403, "forbidden\n")
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    Plugin::new("example-plugin-filter").version(env!("CARGO_PKG_VERSION")).filter(check).serve().await
}
