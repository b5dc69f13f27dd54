//! Two implementations of chunked bodies agree. `make fuzz` runs it; the short form is in `proxy/src/fuzz.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| palisade::fuzz::chunked(bytes));
