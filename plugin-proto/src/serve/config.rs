//! The plugin's configuration as it came.

use prost_types::{Struct, Value as ProtoValue, value::Kind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

/// The value of `config:` in the host's configuration file, always a mapping.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    value: Value,
    hash: String,
}

impl Config {
    pub(super) fn new(config: Option<Struct>, hash: String) -> Self {
        Self { value: object(config.unwrap_or_default()), hash }
    }

    /// The value as JSON. Numbers without a fraction are integers.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// One entry of the mapping as text, if it is there and is text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key)?.as_str()
    }

    /// The value as a type of the plugin's own.
    ///
    /// # Errors
    ///
    /// When the value does not have the type's shape; the text names the key.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.value)
    }

    /// Identifies the value; equal values have equal hashes.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

fn object(config: Struct) -> Value {
    Value::Object(config.fields.into_iter().map(|(key, field)| (key, value(field))).collect::<Map<_, _>>())
}

fn value(proto: ProtoValue) -> Value {
    match proto.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(number)) => self::number(number),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(value).collect()),
        Some(Kind::StructValue(fields)) => object(fields),
    }
}

fn number(number: f64) -> Value {
    // Up to 2^53 a double holds every integer, so nothing is lost on the way to one.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation, reason = "an integer of at most 54 bits")]
        return Value::Number((number as i64).into());
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}
