//! The bundles of one listener, and which of them a client gets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::bundle::{Bundle, ServerName};

/// Bundles that one listener keeps.
pub(super) const MAX_BUNDLES: usize = 10_000;

/// What they may take up together in memory, in bytes.
pub(super) const MAX_WEIGHT: usize = 128 << 20;

/// What there is at one moment. A change makes a new store, so that no handshake sees half of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    bundles: BTreeMap<String, Arc<Bundle>>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    /// For clients without a server name, or with one that nothing covers.
    default: Option<Arc<CertifiedKey>>,
}

impl Store {
    /// Indexes bundles. Of several for one server name, the first by its bundle's name is served. `default` names the
    /// one for everybody else; without it, the only bundle there is.
    pub(super) fn new(bundles: BTreeMap<String, Arc<Bundle>>, default: Option<&str>) -> Self {
        let mut store = Self { bundles, ..Self::default() };
        for bundle in store.bundles.values() {
            for name in &bundle.server_names {
                let (index, name) = match name {
                    ServerName::Exact(name) => (&mut store.exact, name),
                    ServerName::Wildcard(name) => (&mut store.wildcard, name),
                };
                index.entry(name.clone()).or_insert_with(|| Arc::clone(&bundle.key));
            }
        }
        let fallback = match default {
            Some(name) => store.bundles.get(name),
            None if store.bundles.len() == 1 => store.bundles.values().next(),
            None => None,
        };
        store.default = fallback.map(|bundle| Arc::clone(&bundle.key));
        store
    }

    pub(super) fn bundles(&self) -> &BTreeMap<String, Arc<Bundle>> {
        &self.bundles
    }

    /// The certificate for a client that asks for `server_name`. `None`: the handshake is refused.
    pub(super) fn find(&self, server_name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = server_name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = || name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
            self.exact.get(&name).or_else(wildcard)
        });
        named.or(self.default.as_ref())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::super::bundle::tests::{bundle, sent};
    use super::*;

    fn store(bundles: &[(&str, &[&str])], default: Option<&str>) -> Store {
        let bundles =
            bundles.iter().map(|(name, names)| ((*name).to_owned(), Arc::new(bundle(sent(name, names)).unwrap())));
        Store::new(bundles.collect(), default)
    }

    fn found<'a>(store: &'a Store, name: Option<&str>) -> Option<&'a str> {
        let key = store.find(name)?;
        let same = |bundle: &&Arc<Bundle>| Arc::ptr_eq(&bundle.key, key);
        store.bundles.values().find(same).map(|bundle| bundle.name.as_str())
    }

    #[test]
    fn by_server_name_exact_before_wildcard() {
        let store = store(&[("a", &["a.example"]), ("b", &["*.example"])], None);
        assert_eq!(found(&store, Some("A.Example")), Some("a"));
        assert_eq!(found(&store, Some("x.example")), Some("b"));
        for unknown in [Some("example"), Some("y.x.example"), Some("a.example.evil"), None] {
            assert_eq!(found(&store, unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn everybody_else_gets_the_default_or_the_only_one() {
        let one = store(&[("a", &["a.example"])], None);
        assert_eq!(found(&one, None), Some("a"));
        assert_eq!(found(&one, Some("other")), Some("a"));
        let two = store(&[("a", &["a.example"]), ("b", &["b.example"])], Some("b"));
        assert_eq!(found(&two, None), Some("b"));
        assert_eq!(found(&two, Some("a.example")), Some("a"));
        let absent = store(&[("a", &["a.example"])], Some("b"));
        assert_eq!(found(&absent, None), None);
        assert_eq!(found(&Store::default(), Some("a")), None);
    }

    #[test]
    fn the_first_of_two_for_one_name_is_served() {
        let store = store(&[("b", &["a.example"]), ("a", &["a.example"])], None);
        assert_eq!(found(&store, Some("a.example")), Some("a"));
    }
}
