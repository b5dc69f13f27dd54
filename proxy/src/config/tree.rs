//! The file as a tree of nodes with places, read from the parser's events within bounds.
//!
//! An alias shares the node of its anchor, so a tree never takes more memory than the file justifies; what it would
//! be when written out is counted and bounded, because that is what reading it costs.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::problem::{Place, Problem};

/// Largest file in bytes.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most nodes, aliases written out.
const MAX_NODES: usize = 100_000;

/// Which node of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

impl From<NodeId> for u64 {
    fn from(id: NodeId) -> Self {
        Self::from(id.0)
    }
}

/// One document.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: NodeId,
}

/// One value with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) shape: Shape,
    /// Nodes in it and itself, aliases written out.
    weight: usize,
    /// Levels in it and its own.
    height: usize,
    /// The key it stands at, the first if aliases repeat it.
    key: Option<NodeId>,
    /// Whether an entry of it was reported and left out.
    pub(super) incomplete: bool,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Shape {
    Scalar(Scalar),
    List(Vec<NodeId>),
    /// Keys are scalars and differ.
    Mapping(Vec<(NodeId, NodeId)>),
}

/// A scalar as written.
#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Whether it is a string whatever it looks like: quoted, a block, or tagged `!!str`.
    pub(super) quoted: bool,
}

/// What a scalar means by the core schema of YAML 1.2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Meaning<'t> {
    Null,
    Bool(bool),
    Integer(i128),
    /// An integer with more than 38 digits.
    Huge,
    /// `0600`: decimal to YAML 1.2, octal to YAML 1.1 and to the eye.
    Octalish,
    Float(f64),
    Text(&'t str),
}

impl Scalar {
    pub(super) fn meaning(&self) -> Meaning<'_> {
        let text = self.text.as_str();
        if self.quoted {
            return Meaning::Text(text);
        }
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Meaning::Null,
            "true" | "True" | "TRUE" => Meaning::Bool(true),
            "false" | "False" | "FALSE" => Meaning::Bool(false),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Meaning::Float(f64::INFINITY),
            "-.inf" | "-.Inf" | "-.INF" => Meaning::Float(f64::NEG_INFINITY),
            ".nan" | ".NaN" | ".NAN" => Meaning::Float(f64::NAN),
            _ => integer(text).or_else(|| float(text)).unwrap_or(Meaning::Text(text)),
        }
    }
}

fn integer(text: &str) -> Option<Meaning<'_>> {
    let parsed = |digits: &str, radix| i128::from_str_radix(digits, radix).map_or(Meaning::Huge, Meaning::Integer);
    let all = |digits: &str, ok: fn(char) -> bool| !digits.is_empty() && digits.chars().all(ok);
    if let Some(digits) = text.strip_prefix("0o") {
        return all(digits, |c| matches!(c, '0'..='7')).then(|| parsed(digits, 8));
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, |c| c.is_ascii_hexdigit()).then(|| parsed(digits, 16));
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !all(digits, |c| c.is_ascii_digit()) {
        return None;
    }
    let octalish = digits.len() > 1 && digits.starts_with('0');
    Some(if octalish { Meaning::Octalish } else { parsed(text, 10) })
}

fn float(text: &str) -> Option<Meaning<'_>> {
    // The core schema's form is what Rust reads, without the words Rust knows and with a digit somewhere.
    let plain = text.chars().all(|c| matches!(c, '0'..='9' | '.' | 'e' | 'E' | '+' | '-'));
    (plain && text.contains(|c: char| c.is_ascii_digit())).then(|| text.parse().ok().map(Meaning::Float)).flatten()
}

impl Tree {
    /// The tree of `text`'s only document, and what is wrong with it. What breaks the syntax or a bound leaves no tree;
    /// a key that comes twice is left out of it.
    pub(super) fn read(text: &str) -> (Option<Self>, Vec<Problem>) {
        if text.len() > MAX_BYTES {
            let message = format!("the file is larger than {MAX_BYTES} bytes");
            return (None, vec![Problem::new(Place::default(), message)]);
        }
        let mut builder = Builder::default();
        let root = builder.run(text).map_err(|problem| builder.problems.push(problem));
        (root.ok().map(|root| Self { nodes: builder.nodes, root }), builder.problems)
    }

    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(super) fn place(&self, id: NodeId) -> Place {
        self.node(id).place
    }

    /// The node that was handed out as this number.
    pub(super) fn id(&self, number: u64) -> Option<NodeId> {
        let id = u32::try_from(number).ok()?;
        ((id as usize) < self.nodes.len()).then_some(NodeId(id))
    }

    /// The text of the key that a node stands at.
    pub(super) fn key_of(&self, id: NodeId) -> Option<&str> {
        self.node(id).key.map(|key| self.key(key))
    }

    /// A key's text. Keys are scalars.
    pub(super) fn key(&self, id: NodeId) -> &str {
        match &self.node(id).shape {
            Shape::Scalar(scalar) => &scalar.text,
            Shape::List(_) | Shape::Mapping(_) => "",
        }
    }
}

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, NodeId>,
    problems: Vec<Problem>,
}

/// A list or mapping whose end has not come yet.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
    weight: usize,
    height: usize,
    incomplete: bool,
}

enum Content {
    List(Vec<NodeId>),
    Mapping { entries: Vec<(NodeId, NodeId)>, key: Option<Key>, seen: HashMap<String, Place> },
}

/// A key whose value comes next.
#[derive(Clone, Copy)]
enum Key {
    Good(NodeId),
    /// Reported; the entry is left out.
    Bad,
}

impl Builder {
    fn run(&mut self, text: &str) -> Result<NodeId, Problem> {
        let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
        let mut root = None;
        while let Some(next) = parser.next_event() {
            let (event, span) = next.map_err(|error| syntax(&error, text))?;
            let place = place(&span.start);
            let done = match event {
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(Problem::new(place, "a second document begins here")
                        .help("a configuration is one document; `---` may stand only before it"));
                }
                Event::Alias(anchor) => Some(self.alias(anchor, place)?),
                Event::Scalar(text, style, anchor, tag) => {
                    let quoted = self.is_text(style, tag.as_deref(), place);
                    let shape = Shape::Scalar(Scalar { text: text.into_owned(), quoted });
                    let node = Node { place, shape, weight: 1, height: 1, key: None, incomplete: false };
                    Some(self.finish(node, anchor)?)
                }
                Event::SequenceStart(anchor, tag) => {
                    self.open(place, anchor, tag.as_deref(), Content::List(Vec::new()))?;
                    None
                }
                Event::MappingStart(anchor, tag) => {
                    let content = Content::Mapping { entries: Vec::new(), key: None, seen: HashMap::new() };
                    self.open(place, anchor, tag.as_deref(), content)?;
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => self.close()?,
                _ => None,
            };
            if let (Some(id), true) = (done, self.open.is_empty()) {
                root = Some(id);
            }
        }
        let empty = root.is_none_or(
            |id| matches!(&self.nodes[id.0 as usize].shape, Shape::Scalar(s) if s.meaning() == Meaning::Null),
        );
        match root {
            Some(root) if !empty => Ok(root),
            _ => Err(Problem::new(Place::default(), "the file is empty")
                .help("the least is `listeners:` with one `- address: 127.0.0.1:8080`")),
        }
    }

    fn open(&mut self, place: Place, anchor: usize, tag: Option<&Tag>, content: Content) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(place));
        }
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "seq" | "map"))
        {
            self.problems.push(unknown_tag(tag, place));
        }
        self.open.push(Open { place, anchor, content, weight: 1, height: 1, incomplete: false });
        Ok(())
    }

    fn close(&mut self) -> Result<Option<NodeId>, Problem> {
        let Some(open) = self.open.pop() else { return Ok(None) };
        let shape = match open.content {
            Content::List(items) => Shape::List(items),
            Content::Mapping { entries, .. } => Shape::Mapping(entries),
        };
        let Open { place, weight, height, incomplete, .. } = open;
        let node = Node { place, shape, weight, height, key: None, incomplete };
        self.finish(node, open.anchor).map(Some)
    }

    fn finish(&mut self, node: Node, anchor: usize) -> Result<NodeId, Problem> {
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        let place = node.place;
        self.nodes.push(node);
        // Anchors count from 1; 0 is none.
        if anchor > 0 {
            self.anchors.insert(anchor, id);
        }
        self.attach(id, place)?;
        Ok(id)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<NodeId, Problem> {
        let Some(&id) = self.anchors.get(&anchor) else {
            return Err(Problem::new(place, "the alias refers to a value that contains it"));
        };
        self.attach(id, place)?;
        Ok(id)
    }

    /// Puts a node, which may be shared, into what is open.
    fn attach(&mut self, id: NodeId, place: Place) -> Result<(), Problem> {
        let (weight, height) = {
            let node = &self.nodes[id.0 as usize];
            (node.weight, node.height)
        };
        if self.open.len() + height > MAX_DEPTH {
            return Err(too_deep(place));
        }
        // What is open already counts in full here, as each alias adds all that it stands for.
        let total = self.open.iter().fold(weight, |sum, open| sum.saturating_add(open.weight));
        if total > MAX_NODES {
            let message = format!("the file has more than {MAX_NODES} values, counting those that aliases repeat");
            return Err(Problem::new(place, message));
        }
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        // A parent's weight is complete only when its children are closed; `close` adds the rest through this.
        open.weight = open.weight.saturating_add(weight);
        open.height = open.height.max(height + 1);
        match &mut open.content {
            Content::List(items) => items.push(id),
            Content::Mapping { entries, key, seen } => match key.take() {
                Some(Key::Good(key)) => {
                    entries.push((key, id));
                    self.nodes[id.0 as usize].key.get_or_insert(key);
                }
                Some(Key::Bad) => open.incomplete = true,
                None => {
                    let Shape::Scalar(scalar) = &self.nodes[id.0 as usize].shape else {
                        return Err(Problem::new(place, "a key must be a string, not a list or a mapping"));
                    };
                    let problem = key_problem(scalar, place, seen);
                    *key = Some(if problem.is_some() { Key::Bad } else { Key::Good(id) });
                    self.problems.extend(problem);
                }
            },
        }
        Ok(())
    }

    /// Whether a scalar is a string whatever it looks like.
    fn is_text(&mut self, style: ScalarStyle, tag: Option<&Tag>, place: Place) -> bool {
        let Some(tag) = tag else { return style != ScalarStyle::Plain };
        match tag.suffix.as_str() {
            "str" if tag.is_yaml_core_schema() => true,
            "null" | "bool" | "int" | "float" if tag.is_yaml_core_schema() => false,
            _ => {
                self.problems.push(unknown_tag(tag, place));
                true
            }
        }
    }
}

/// The same key twice is an error, never "the last one wins": which of two `on_failure` counts must not be a riddle.
fn key_problem(scalar: &Scalar, place: Place, seen: &mut HashMap<String, Place>) -> Option<Problem> {
    if !scalar.quoted && scalar.text == "<<" {
        return Some(
            Problem::new(place, "merge keys (`<<`) are not part of YAML 1.2")
                .help("write the entries out, or give the whole mapping an alias"),
        );
    }
    if scalar.meaning() == Meaning::Null {
        return Some(Problem::new(place, "a key is empty"));
    }
    match seen.get(&scalar.text) {
        Some(first) => Some(
            Problem::new(place, format!("duplicate key `{}`", scalar.text))
                .label(format!("first written at {}:{}", first.line, first.column)),
        ),
        None => {
            seen.insert(scalar.text.clone(), place);
            None
        }
    }
}

fn too_deep(place: Place) -> Problem {
    Problem::new(place, format!("nested more than {MAX_DEPTH} levels deep"))
}

fn unknown_tag(tag: &Tag, place: Place) -> Problem {
    let name = if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { tag.to_string() };
    Problem::new(place, format!("the tag `{name}` is not supported"))
}

fn place(mark: &Marker) -> Place {
    Place { line: mark.line(), column: mark.col() + 1 }
}

/// The parser's words are kept, being what a search finds; advice is added for the usual causes.
fn syntax(error: &ScanError, text: &str) -> Problem {
    let info = error.info();
    if info.contains("recursion limit") {
        return too_deep(place(error.marker()));
    }
    let problem = Problem::new(place(error.marker()), format!("not valid YAML: {info}"));
    let line = text.lines().nth(error.marker().line().saturating_sub(1)).unwrap_or_default();
    if info.contains("tab") || line.trim_start_matches(' ').starts_with('\t') {
        problem.help("YAML is indented with spaces, never with tabs")
    } else if info.contains("mapping values are not allowed") {
        problem.help("a value with `: ` in it has to be quoted; else look at the indentation")
    } else if info.contains("unknown anchor") {
        problem
            .help("an alias `*name` needs an anchor `&name` before it; a string that begins with `*` has to be quoted")
    } else if line.trim_start().contains(": *") {
        problem.help("a string that begins with `*` has to be quoted")
    } else if line.contains(": [:") || line.contains(": [0") {
        problem.help("an IPv6 address in brackets has to be quoted: \"[::1]:8080\"")
    } else if ["unexpected end of stream", "unexpected eof", "expected ',' or"].iter().any(|known| info.contains(known))
    {
        problem.help("a quote or a bracket is not closed, or a comma is missing")
    } else if info.contains("while parsing a block") || info.contains("indent") {
        problem.help("look at the indentation of this line and of the one before")
    } else {
        problem
    }
}
