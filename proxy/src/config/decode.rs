//! The tree into the written form, through serde, with every misfit reported instead of the first.
//!
//! A [`Slot`](super::slot::Slot) stands around every value of the written form. What fails to decode inside one is
//! recorded here with its place and leaves the slot broken; decoding goes on beside it. Unknown fields are recorded
//! and skipped. So one pass finds all problems, and what was read can still be checked for meaning.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::{StrDeserializer, U64Deserializer};
use serde::de::{self, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};

use super::problem::{MOST_PROBLEMS, Place, Problem, list_of};
use super::suggest::nearest;
use super::tree::{Meaning, Node, NodeId, Scalar, Shape, Tree};

/// Asked of the deserializer by [`Slot`](super::slot::Slot): the node's number, then the value.
pub(super) const SLOT: &str = "$slot";
/// Asked by [`Raw`](super::slot::Raw): the node's number.
pub(super) const RAW: &str = "$raw";

/// What strings stand for, by the name of their type.
const NOUNS: [(&str, &str); 3] = [
    ("Span", "a duration like `5s`"),
    ("SpanOrNone", "a duration like `5s`, or `none`"),
    ("Size", "a size like `1MiB`"),
];
const STRING: &str = "a string";

/// Reads the whole tree as a `T`, along with everything in it that does not fit.
pub(super) fn decode<T: de::DeserializeOwned>(tree: &Tree) -> (Option<T>, Vec<Problem>) {
    let problems = RefCell::default();
    let at = At { tree, id: tree.root(), name: Name::File, noun: STRING, problems: &problems };
    let value = T::deserialize(at).map_err(|failure| at.record(failure)).ok();
    (value, problems.into_inner())
}

/// Why a value could not be read.
#[derive(Debug)]
pub(super) struct Failure(Problem);

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(Problem::new(Place::default(), message.to_string()))
    }
}

/// A node to be read, and what to call it in messages.
#[derive(Clone, Copy)]
struct At<'t> {
    tree: &'t Tree,
    id: NodeId,
    name: Name<'t>,
    /// What a string at this place stands for.
    noun: &'static str,
    problems: &'t RefCell<Vec<Problem>>,
}

#[derive(Clone, Copy)]
enum Name<'t> {
    File,
    Field(&'t str),
    EntryOf(&'t str),
    Key,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::Field(name) => write!(f, "`{name}`"),
            Self::EntryOf(name) => write!(f, "an entry of `{name}`"),
            Self::Key => f.write_str("a key"),
        }
    }
}

impl<'t> At<'t> {
    fn node(&self) -> &'t Node {
        self.tree.node(self.id)
    }

    fn record(&self, Failure(mut problem): Failure) {
        if problem.line == 0 {
            let place = self.node().place;
            (problem.line, problem.column) = (place.line, place.column);
        }
        self.problems.borrow_mut().push(problem);
    }

    /// "`filters` must be a list, not a string".
    fn misfit(&self, wanted: &str) -> Failure {
        let problem = match &self.node().shape {
            Shape::Scalar(scalar) if scalar.meaning() == Meaning::Null => {
                Problem::new(self.node().place, format!("{} has no value", self.name))
                    .label(format!("write {wanted}, or remove the line"))
            }
            Shape::Scalar(scalar) => {
                let text: String = scalar.text.chars().take(40).collect();
                Problem::new(self.node().place, format!("{} must be {wanted}, not `{text}`", self.name))
            }
            Shape::List(_) => Problem::new(self.node().place, format!("{} must be {wanted}, not a list", self.name)),
            Shape::Mapping(_) => {
                Problem::new(self.node().place, format!("{} must be {wanted}, not a mapping", self.name))
            }
        };
        Failure(problem)
    }

    fn scalar(&self, wanted: &str) -> Result<&'t Scalar, Failure> {
        match &self.node().shape {
            Shape::Scalar(scalar) if scalar.meaning() != Meaning::Null => Ok(scalar),
            _ => Err(self.misfit(wanted)),
        }
    }

    /// The text of any scalar but null, as written: `2` is "2" and `no` is "no" where a string is needed.
    fn text(&self, wanted: &str) -> Result<&'t str, Failure> {
        let text = &self.scalar(wanted)?.text;
        if text.contains('\0') {
            return Err(Failure(Problem::new(self.node().place, format!("{} contains a NUL character", self.name))));
        }
        Ok(text)
    }

    fn items(&self) -> Result<&'t [NodeId], Failure> {
        match &self.node().shape {
            Shape::List(items) => Ok(items),
            Shape::Scalar(scalar) if scalar.meaning() != Meaning::Null => {
                let Failure(problem) = self.misfit("a list");
                let text: String = scalar.text.chars().take(40).collect();
                Err(Failure(problem.label(format!("write `[{text}]`"))))
            }
            _ => Err(self.misfit("a list")),
        }
    }

    fn entries(&self) -> Result<&'t [(NodeId, NodeId)], Failure> {
        match &self.node().shape {
            Shape::Mapping(entries) => Ok(entries),
            // Without the text: it may be a secret that was to be a variable's.
            Shape::Scalar(scalar) if scalar.meaning() != Meaning::Null => {
                let message = format!("{} must be a mapping, not a single value", self.name);
                Err(Failure(Problem::new(self.node().place, message)))
            }
            _ => Err(self.misfit("a mapping")),
        }
    }

    fn key(&self, id: NodeId) -> Self {
        Self { id, name: Name::Key, ..*self }
    }

    fn value(&self, key: NodeId, id: NodeId) -> Self {
        Self { id, name: Name::Field(self.tree.key(key)), ..*self }
    }

    fn item(&self, id: NodeId) -> Self {
        let name = match self.name {
            Name::Field(name) | Name::EntryOf(name) => Name::EntryOf(name),
            other => other,
        };
        Self { id, name, ..*self }
    }
}

impl<'t> de::Deserializer<'t> for At<'t> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node().shape {
            Shape::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => visitor.visit_unit(),
                Meaning::Bool(value) => visitor.visit_bool(value),
                Meaning::Integer(value) => visitor.visit_i128(value),
                Meaning::Float(value) => visitor.visit_f64(value),
                Meaning::Huge | Meaning::Octalish | Meaning::Text(_) => visitor.visit_borrowed_str(&scalar.text),
            },
            Shape::List(_) => self.deserialize_seq(visitor),
            Shape::Mapping(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        let wanted = "`true` or `false`";
        let scalar = self.scalar(wanted)?;
        match scalar.meaning() {
            Meaning::Bool(value) => visitor.visit_bool(value),
            _ => {
                let Failure(problem) = self.misfit(wanted);
                Err(Failure(match scalar.text.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "y" | "true" => problem.label("write `true`"),
                    "no" | "off" | "n" | "false" => problem.label("write `false`"),
                    _ => problem,
                }))
            }
        }
    }

    fn deserialize_u64<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        let wanted = "a whole number";
        let scalar = self.scalar(wanted)?;
        match scalar.meaning() {
            Meaning::Integer(value) => match u64::try_from(value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => Err(self.misfit(if value < 0 { "0 or more" } else { "a smaller number" })),
            },
            Meaning::Huge => Err(self.misfit("a smaller number")),
            Meaning::Octalish => {
                let Failure(problem) = self.misfit("a number without leading zeros");
                Err(Failure(problem.label(format!("write `{}`", decimal(&scalar.text)))))
            }
            _ => Err(self.misfit(wanted)),
        }
    }

    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_str(self.text(self.noun)?)
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(self, name: &'static str, visitor: V) -> Result<V::Value, Failure> {
        if name == RAW {
            return visitor.visit_u64(self.id.into());
        }
        let noun = NOUNS.iter().find(|(of, _)| *of == name).map_or(STRING, |(_, noun)| noun);
        visitor.visit_newtype_struct(Self { noun, ..self })
    }

    fn deserialize_tuple_struct<V: Visitor<'t>>(
        self,
        name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if name == SLOT {
            return visitor.visit_seq(SlotAccess { at: self, step: 0 });
        }
        self.deserialize_seq(visitor)
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_seq(ListAccess { at: self, items: self.items()?.iter() })
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_map(MappingAccess { at: self, entries: self.entries()?.iter(), fields: None, value: None })
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let entries = self.entries()?.iter();
        visitor.visit_map(MappingAccess { at: self, entries, fields: Some(fields), value: None })
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if variants.iter().all(|name| SHAPES.iter().any(|(shape, _)| shape == name)) {
            return visitor.visit_enum(ByShape { at: self, shape: self.shape(variants)? });
        }
        let text = self.text(&list_of(variants))?;
        if !variants.contains(&text) {
            let Failure(problem) = self.misfit(&list_of(variants));
            return Err(Failure(match nearest(text, variants.iter().copied()) {
                Some(variant) => problem.suggest(variant),
                None => problem,
            }));
        }
        visitor.visit_enum(StrDeserializer::new(text))
    }

    serde::forward_to_deserialize_any! {
        <V: Visitor<'t>>
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char bytes byte_buf unit unit_struct tuple ignored_any
    }
}

/// Variants of the enums that are told apart by how a value is written.
const SHAPES: [(&str, &str); 3] = [("text", "a string"), ("list", "a list"), ("mapping", "a mapping")];

impl At<'_> {
    /// Which of `variants` this node is.
    fn shape(&self, variants: &[&'static str]) -> Result<&'static str, Failure> {
        let shape = match &self.node().shape {
            Shape::Scalar(scalar) if scalar.meaning() == Meaning::Null => None,
            Shape::Scalar(_) => Some("text"),
            Shape::List(_) => Some("list"),
            Shape::Mapping(_) => Some("mapping"),
        };
        shape.filter(|shape| variants.contains(shape)).ok_or_else(|| {
            let wanted = SHAPES.iter().filter(|(shape, _)| variants.contains(shape)).map(|(_, noun)| *noun);
            self.misfit(&wanted.collect::<Vec<_>>().join(" or "))
        })
    }
}

/// `0600` without its zeros.
fn decimal(text: &str) -> &str {
    match text.trim_start_matches(['+', '0']) {
        "" => "0",
        digits => digits,
    }
}

struct SlotAccess<'t> {
    at: At<'t>,
    step: u8,
}

impl<'t> de::SeqAccess<'t> for SlotAccess<'t> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        self.step += 1;
        match self.step {
            1 => {
                let id: U64Deserializer<Failure> = u64::from(self.at.id).into_deserializer();
                seed.deserialize(id).map(Some)
            }
            // The slot keeps no failure: recorded here, it only learns that there was one.
            2 => Ok(seed.deserialize(self.at).map_err(|failure| self.at.record(failure)).ok()),
            _ => Ok(None),
        }
    }
}

struct ListAccess<'t> {
    at: At<'t>,
    items: std::slice::Iter<'t, NodeId>,
}

impl<'t> de::SeqAccess<'t> for ListAccess<'t> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        self.items.next().map(|&id| seed.deserialize(self.at.item(id))).transpose()
    }
}

struct MappingAccess<'t> {
    at: At<'t>,
    entries: std::slice::Iter<'t, (NodeId, NodeId)>,
    /// Unset: any key will do.
    fields: Option<&'static [&'static str]>,
    value: Option<At<'t>>,
}

impl<'t> de::MapAccess<'t> for MappingAccess<'t> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        for &(key, value) in self.entries.by_ref() {
            let name = self.at.tree.key(key);
            if let Some(fields) = self.fields
                && !fields.contains(&name)
            {
                self.at.key(key).record(self.at.unknown_field(name, fields));
                continue;
            }
            self.value = Some(self.at.value(key, value));
            return seed.deserialize(self.at.key(key)).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        match self.value.take() {
            Some(at) => seed.deserialize(at),
            None => Err(de::Error::invalid_type(Unexpected::Map, &"a key before its value")),
        }
    }
}

impl At<'_> {
    fn unknown_field(&self, name: &str, fields: &[&str]) -> Failure {
        let problem = Problem::new(Place::default(), format!("unknown field `{name}`"));
        if self.problems.borrow().len() >= MOST_PROBLEMS {
            return Failure(problem);
        }
        Failure(match nearest(name, fields.iter().copied()) {
            Some(field) => problem.suggest(field),
            None => problem.help(format!("known here: {}", fields.join(", "))),
        })
    }
}

struct ByShape<'t> {
    at: At<'t>,
    shape: &'static str,
}

impl<'t> de::EnumAccess<'t> for ByShape<'t> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'t>>(self, seed: S) -> Result<(S::Value, Self), Failure> {
        Ok((seed.deserialize(StrDeserializer::<Failure>::new(self.shape))?, self))
    }
}

impl<'t> de::VariantAccess<'t> for ByShape<'t> {
    type Error = Failure;

    fn newtype_variant_seed<S: DeserializeSeed<'t>>(self, seed: S) -> Result<S::Value, Failure> {
        seed.deserialize(self.at)
    }

    fn unit_variant(self) -> Result<(), Failure> {
        Err(de::Error::custom("a variant told by its shape has a value"))
    }

    fn tuple_variant<V: Visitor<'t>>(self, _len: usize, visitor: V) -> Result<V::Value, Failure> {
        de::Deserializer::deserialize_seq(self.at, visitor)
    }

    fn struct_variant<V: Visitor<'t>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        de::Deserializer::deserialize_struct(self.at, "", fields, visitor)
    }
}
