//! The building blocks of the written form: values that know their place or that they are broken.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::decode::{RAW, SLOT};

/// A value somewhere in the file.
#[derive(Debug, Default)]
pub(super) enum Slot<T> {
    /// Not written.
    #[default]
    Missing,
    /// Written, but does not fit; reported already. Whoever needs it stays silent.
    Broken,
    /// Written, at the node with this number.
    Given(T, u64),
}

impl<T> Slot<T> {
    pub(super) fn given(&self) -> Option<(&T, u64)> {
        match self {
            Self::Given(value, node) => Some((value, *node)),
            Self::Missing | Self::Broken => None,
        }
    }

    pub(super) fn value(&self) -> Option<&T> {
        self.given().map(|(value, _)| value)
    }

    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Slot<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple_struct(SLOT, 2, SlotVisitor(PhantomData))
    }
}

struct SlotVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SlotVisitor<T> {
    type Value = Slot<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node and its value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Slot<T>, A::Error> {
        let node = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        Ok(seq.next_element()?.map_or(Slot::Broken, |value| Slot::Given(value, node)))
    }
}

impl<T: JsonSchema> JsonSchema for Slot<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A mapping with keys of the operator's choice, in the order of the file.
#[derive(Debug)]
pub(super) struct Table<T>(pub(super) Vec<(Slot<String>, Slot<T>)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

struct TableVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
    type Value = Table<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Table(entries))
    }
}

impl<T: JsonSchema> JsonSchema for Table<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        BTreeMap::<String, T>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, T>::json_schema(generator)
    }
}

/// A node as it is, whatever is in it.
#[derive(Debug)]
pub(super) struct Raw(pub(super) u64);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(RAW, RawVisitor)
    }
}

struct RawVisitor;

impl Visitor<'_> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node")
    }

    fn visit_u64<E: de::Error>(self, node: u64) -> Result<Raw, E> {
        Ok(Raw(node))
    }
}

impl JsonSchema for Raw {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Mapping".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
    }
}

/// A string type with a schema of its own.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $schema:tt) => {
        $(#[$doc])*
        #[derive(Debug, serde::Deserialize)]
        pub(super) struct $name(pub(super) String);

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

text!(
    /// A scalar taken as it is written: `2` is "2".
    Plain, { "type": ["string", "number", "boolean"] }
);
text!(
    /// `250ms`, `5s`, `1m30s`.
    Span, { "type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$" }
);
text!(
    /// A [`Span`] or `none`.
    SpanOrNone, { "type": "string", "pattern": "^(none|([0-9]+(ms|s|m|h))+)$" }
);
text!(
    /// `20%`.
    Percent, { "type": "string", "pattern": "^[0-9]+%$" }
);
text!(
    /// `32KiB`, `1MiB`, or a number of bytes.
    Size, { "type": ["string", "integer"], "pattern": "^[0-9]+(B|KiB|MiB|GiB)?$", "minimum": 0 }
);
text!(
    /// `sha256:` and 64 hexadecimal digits.
    Sha256, { "type": "string", "pattern": "^sha256:[0-9a-fA-F]{64}$" }
);
