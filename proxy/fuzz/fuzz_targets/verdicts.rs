//! Any message of a plugin is refused, or changes no header that it may not. `make fuzz` runs it; the short form is in `proxy/src/fuzz.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| palisade::fuzz::verdicts(bytes));
