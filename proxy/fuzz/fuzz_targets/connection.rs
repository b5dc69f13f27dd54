//! The whole proxy, over a pipe in memory: any connection comes to an end. `make fuzz` runs it; the short form is in `proxy/src/fuzz.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| palisade::fuzz::connection(bytes));
