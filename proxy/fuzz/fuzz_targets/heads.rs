//! HTTP/1 is read in one way however it is cut, in both directions. `make fuzz` runs it; the short form is in `proxy/src/fuzz.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| palisade::fuzz::heads(bytes));
