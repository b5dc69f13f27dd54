//! The documents name tests that are there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut named = 0;
    for document in ["docs/architecture.md", "docs/specification.md", "SECURITY.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let spans = text.split('`').skip(1).step_by(2);
        for (file, test) in spans.filter_map(|span| span.split_once("::")).filter(|(file, _)| file.ends_with(".rs")) {
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|_| panic!("{document} names {file}"));
            assert!(source.contains(&format!("fn {test}(")), "{document} names {file}::{test}");
            named += 1;
        }
    }
    assert!(named > 80, "{named}");
}
