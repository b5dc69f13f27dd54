//! Maps of what the operator has named: looked up with every request, and never filled by a client.
//!
//! So nobody can choose keys that fall together, and a hash that is cheap for short text will do (FNV-1a). Where a client
//! chooses what is kept, the standard library's maps stay.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by names of the configuration.
pub(crate) type Known<K, V> = HashMap<K, V, BuildHasherDefault<Fnv>>;

/// <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>
#[derive(Debug)]
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hash_that_it_says() {
        let mut hasher = Fnv::default();
        hasher.write(b"foobar");
        assert_eq!(hasher.finish(), 0x8594_4171_f739_67e8);
    }
}
