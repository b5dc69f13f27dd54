//! Any bytes are a handshake line or a precise error; what parses prints as a line that parses to the same.
//!
//! With coverage: `make fuzz`, which needs cargo-fuzz and a nightly compiler. With neither, in `plugin-proto/fuzz`:
//! `cargo run -- -runs=0 corpus/handshake` tries each file of the corpus once. The same property is a proptest of
//! `src/handshake.rs`, so every run of the tests tries it a little.

#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_plugin_proto::handshake::Handshake;

fuzz_target!(|line: &[u8]| {
    match Handshake::parse(line) {
        Ok(handshake) => {
            let printed = handshake.to_string();
            assert!(Handshake::looks_like(printed.as_bytes()), "{printed:?} is taken for something else");
            assert_eq!(Handshake::parse(printed.as_bytes()).as_ref(), Ok(&handshake), "{printed:?}");
        }
        // Errors are shown to operators, so making the text belongs to it.
        Err(error) => drop(error.to_string()),
    }
});
