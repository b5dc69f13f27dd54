//! Any bytes that a plugin answers end every call that waits for them, and judge none that they do not name. `make fuzz` runs it; the short form is in `proxy/src/fuzz.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| palisade::fuzz::answers(bytes));
