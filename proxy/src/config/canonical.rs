//! A plugin's configuration for others: as JSON, and as a hash that says whether it changed.

use serde_json::{Map, Number, Value as Json};
use serde_yaml::{Mapping, Value};
use sha2::{Digest, Sha256};

/// A plugin's configuration as JSON. Keys are strings in what this room reads; other keys are written as text. What
/// JSON has no form for, such as infinity, is null; this room lets none through.
#[must_use]
pub fn to_json(config: &Mapping) -> Json {
    Json::Object(config.iter().map(|(key, value)| (key_text(key), json(value))).collect::<Map<_, _>>())
}

/// SHA-256, in lower-case hexadecimal, over a form that is the same however the configuration was written: order of
/// keys, quotes and layout make no difference.
#[must_use]
pub fn hash(config: &Mapping) -> String {
    let mut text = String::new();
    write_sorted(&to_json(config), &mut text);
    digest(&text)
}

/// SHA-256 of a text, in lower-case hexadecimal.
pub(super) fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(number) => {
            let integer = number.as_i64().map(Number::from).or_else(|| number.as_u64().map(Number::from));
            let number = integer.or_else(|| number.as_f64().and_then(Number::from_f64));
            number.map_or(Json::Null, Json::Number)
        }
        Value::String(text) => Json::String(text.clone()),
        Value::Sequence(items) => items.iter().map(json).collect(),
        Value::Mapping(mapping) => to_json(mapping),
        Value::Tagged(tagged) => json(&tagged.value),
    }
}

fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => json(other).to_string(),
    }
}

/// Sorts keys itself: whether a JSON map is sorted depends on features that any crate in the build may turn on.
fn write_sorted(value: &Json, out: &mut String) {
    match value {
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in entries {
                *out += &Json::String(key.clone()).to_string();
                out.push(':');
                write_sorted(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Json::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => *out += &scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

    use serde_json::json;
    use serde_yaml::Mapping;

    use super::{hash, to_json};

    fn mapping(text: &str) -> Mapping {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn the_hash_ignores_order_and_layout_only() {
        let first = hash(&mapping("a: 1\nb: {c: [x, 2.5], d: null}\n"));
        assert_eq!(first.len(), 64);
        assert_eq!(first, hash(&mapping("{b: {d: ~, c: ['x', 2.50]}, a: 1}")));
        for other in ["a: 1\nb: {c: [2.5, x], d: null}", "a: '1'\nb: {c: [x, 2.5], d: null}", "{}"] {
            assert_ne!(first, hash(&mapping(other)), "{other}");
        }
    }

    #[test]
    fn json_has_the_same_values() {
        let config = mapping("{allow: [admin], n: 3, f: 0.5, b: true, none: ~, 80: x}");
        let expected = json!({"allow": ["admin"], "n": 3, "f": 0.5, "b": true, "none": null, "80": "x"});
        assert_eq!(to_json(&config), expected);
    }
}
