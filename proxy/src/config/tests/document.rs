//! The page for operators says what the code does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Place;
use crate::config::{effective, parse, schema};

const PAGE: &str = include_str!("../../../../docs/configuration.md");

/// The first block of this language.
fn block(language: &str) -> &'static str {
    let start = PAGE.split_once(&format!("```{language}\n")).unwrap().1;
    start.split_once("```").unwrap().0
}

/// The names of all properties in a schema.
fn properties(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Object(properties)) = object.get("properties") {
                found.extend(properties.keys().cloned());
            }
            object.values().for_each(|value| properties(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| properties(value, found)),
        _ => {}
    }
}

#[test]
fn the_page_has_every_key_of_the_schema() {
    let mut keys = BTreeSet::new();
    properties(&schema(), &mut keys);
    assert!(keys.len() > 60, "{keys:?}");
    let named = |key: &str| PAGE.contains(&format!("`{key}`")) || PAGE.contains(&format!("`{key}: "));
    let absent: Vec<_> = keys.iter().filter(|key| !named(key)).collect();
    assert!(absent.is_empty(), "{absent:?}");
}

#[test]
fn the_example_is_valid() {
    let place = Place::new();
    let config = place.parse(block("yaml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((config.listeners.len(), config.routes.len(), config.plugins.len()), (2, 4, 3));
}

#[test]
fn the_problems_are_shown_as_they_are() {
    let lines = [
        "listeners:",
        "  - address: 127.0.0.1:0",
        "",
        "",
        "routes:",
        "  - upstream: http://127.0.0.1:1",
        "  - path: /a",
    ];
    let rest =
        ["    upstrem: http://127.0.0.1:9000", "  - path: /b", "    upstream: http://127.0.0.1:1", "    retries: 7"];
    let text = [&lines[..], &rest].concat().join("\n");
    let problems = parse("palisade.yaml".as_ref(), &text).unwrap_err();
    assert_eq!(format!("{problems}\n"), block("text"));
    let json: Value = serde_json::from_str(block("json")).unwrap();
    assert_eq!(problems.to_json()["problems"][0], json["problems"][0]);
}

#[test]
fn the_schema_names_required_fields_and_refuses_unknown_ones() {
    let schema = schema();
    for (name, required) in [
        ("Listener", "address"),
        ("Route", "upstream"),
        ("Upstream", "endpoints"),
        ("TlsDetails", "plugin"),
        ("HeaderFilter", "name"),
    ] {
        let section = &schema["$defs"][name];
        assert_eq!(section["required"], serde_json::json!([required]), "{name}");
        assert_eq!(section["additionalProperties"], Value::Bool(false), "{name}");
        let described =
            section["properties"].as_object().unwrap().values().all(|field| field["description"].is_string());
        assert!(described, "{name}");
    }
    assert_eq!(schema["required"], serde_json::json!(["listeners"]));
    let either = serde_json::json!([{"required": ["command"]}, {"required": ["address"]}]);
    assert_eq!(schema["$defs"]["Plugin"]["oneOf"], either);
}

#[test]
fn keys_of_secrets_are_known() {
    for key in ["password", "DB_PASSWORD", "client-secret", "apiToken", "private_key", "credentials"] {
        assert!(effective::is_secret(key), "{key}");
    }
    for key in ["allow", "dir", "path", "name"] {
        assert!(!effective::is_secret(key), "{key}");
    }
}
