//! What is wrong with a configuration: places, messages, and how they are shown.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

/// More problems than this are counted, not shown.
pub(super) const MOST_PROBLEMS: usize = 100;
/// Longer lines are shown in part.
const WIDEST_SNIPPET: usize = 100;
/// How much of a clipped line stands before the problem.
const BEFORE_THE_PROBLEM: usize = 40;
/// A tab is shown as this many blanks.
const TAB: &str = "    ";

/// A place in the file. Both count from 1; columns count characters. The default, 0 and 0, is the file as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// From 1, in characters; 0 when the file as a whole is meant.
    pub column: usize,
    /// What is wrong: lower case, one sentence, no full stop.
    pub message: String,
    /// A few words for the place itself, shown under it.
    pub label: Option<String>,
    /// What to do about it, where that takes more words.
    pub help: Option<String>,
}

impl Problem {
    pub(super) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { line: place.line, column: place.column, message: message.into(), label: None, help: None }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// `name` is what [`super::suggest::nearest`] found.
    pub(super) fn suggest(self, name: &str) -> Self {
        self.label(format!("did you mean `{name}`?"))
    }
}

/// Every problem of one file, sorted by place. `Display` shows them with the lines they are in, without colour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    file: PathBuf,
    problems: Vec<Problem>,
    /// The source line of each problem, fit to be shown. Problems on one line share it: it may be the whole file.
    lines: Vec<Option<Arc<str>>>,
    total: usize,
}

impl std::error::Error for Problems {}

impl Problems {
    /// One problem of a file as a whole.
    pub(crate) fn of_file(file: &Path, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(file, "", vec![Problem::new(Place::default(), message).help(help)])
    }

    /// Sorts, drops repetitions (an alias is read wherever it stands) and keeps the lines that will be shown.
    pub(super) fn new(file: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.dedup();
        let total = problems.len();
        problems.truncate(MOST_PROBLEMS);
        let source = Lines::of(text);
        let mut shown: BTreeMap<usize, Arc<str>> = BTreeMap::new();
        let lines = problems.iter().map(|Problem { line, .. }| {
            let source = source.line(*line)?;
            Some(Arc::clone(shown.entry(*line).or_insert_with(|| conceal(source).into())))
        });
        let lines = lines.collect();
        Self { file: file.to_owned(), problems, lines, total }
    }

    /// In the order of the file; at most 100.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// How many there are, shown or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.total
    }

    /// The file they are in.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// For a terminal: each problem under its message with the line it is in, then the count. With colour, the
    /// terminal has to understand ANSI sequences; control characters of the file never reach it.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let ink = if color { Ink::ANSI } else { Ink::NONE };
        let file = printable(&self.file.display().to_string());
        let mut out = String::new();
        for (problem, line) in self.problems.iter().zip(&self.lines) {
            render_one(&mut out, &file, problem, line.as_deref(), ink);
            out.push('\n');
        }
        let noun = if self.total == 1 { "problem" } else { "problems" };
        let hidden = self.total - self.problems.len();
        let hidden = if hidden > 0 { format!(", {hidden} of them not shown") } else { String::new() };
        out += &format!("{}error{}: {} {noun} in {file}{hidden}", ink.error, ink.off, self.total);
        out
    }

    /// For programs: `{"file": "...", "count": 2, "problems": [{"line", "column", "message", "label", "help"}]}`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self
            .problems
            .iter()
            .map(|p| {
                json!({
                    "line": p.line,
                    "column": p.column,
                    "message": p.message,
                    "label": p.label,
                    "help": p.help,
                })
            })
            .collect();
        json!({ "file": self.file.display().to_string(), "count": self.total, "problems": problems })
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Sequences around the parts of a shown problem.
#[derive(Clone, Copy)]
struct Ink {
    error: &'static str,
    frame: &'static str,
    off: &'static str,
}

impl Ink {
    const NONE: Self = Self { error: "", frame: "", off: "" };
    const ANSI: Self = Self { error: "\x1b[1;31m", frame: "\x1b[1;34m", off: "\x1b[0m" };
}

fn render_one(out: &mut String, file: &str, problem: &Problem, line: Option<&str>, ink: Ink) {
    let Ink { error, frame, off } = ink;
    *out += &format!("{error}error{off}: {}\n", printable(&problem.message));
    let number = problem.line.to_string();
    let margin = " ".repeat(number.len());
    if problem.line == 0 {
        *out += &format!("{margin} {frame}-->{off} {file}\n");
    } else {
        *out += &format!("{margin} {frame}-->{off} {file}:{number}:{}\n", problem.column);
    }
    if let Some(line) = line {
        let (shown, indent) = snippet(line, problem.column);
        *out += format!("{frame}{number} |{off} {shown}").trim_end();
        *out += &format!("\n{frame}{margin} |{off} {indent}{error}^");
        if let Some(label) = &problem.label {
            *out += &format!(" {}", printable(label));
        }
        *out += &format!("{off}\n");
    }
    if let Some(help) = &problem.help {
        *out += &format!("{margin} {frame}={off} help: {}\n", printable(help));
    }
}

/// The part of `line` around `column`, fit for a terminal, and the blanks that put a mark under the column.
fn snippet(line: &str, column: usize) -> (String, String) {
    let before = column.saturating_sub(1);
    let length = line.chars().count();
    let start = if length > WIDEST_SNIPPET { before.saturating_sub(BEFORE_THE_PROBLEM) } else { 0 };
    let mut shown = String::new();
    let mut indent = String::new();
    if start > 0 {
        shown += "...";
        indent += "   ";
    }
    for (position, c) in line.chars().enumerate().skip(start).take(WIDEST_SNIPPET) {
        let piece = if c == '\t' { TAB.to_owned() } else { printable(c.encode_utf8(&mut [0; 4])) };
        if position < before {
            indent.extend(std::iter::repeat_n(' ', columns(&piece)));
        }
        shown += &piece;
    }
    if length > start + WIDEST_SNIPPET {
        shown += "...";
    }
    (shown, indent)
}

/// `text` without control characters, and without the marks that reorder text on a terminal.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || reorders {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// How many columns a terminal needs. East Asian wide forms and emoji take two, combining marks none; the blocks are
/// those of Unicode's East Asian Width "W" and "F" in rough, which is enough to put a mark near its character.
fn columns(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            0x0300..=0x036f | 0xfe00..=0xfe0f => 0,
            0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f => 2,
            0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd => 2,
            _ => 1,
        })
        .sum()
}

/// Problems go to logs and terminals, so a line of the file is shown without the values of its secrets. Each character
/// becomes one, which leaves places where they are.
fn conceal(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    let mut in_flow = false;
    while let Some(mark) = rest.find([':', '=']) {
        let blanks = rest[mark + 1..].len() - rest[mark + 1..].trim_start().len();
        let (head, tail) = rest.split_at(mark + 1 + blanks);
        let key = head[..mark].rsplit(['{', '[', ',', ' ', '\t']).next().unwrap_or_default();
        let is_entry = blanks > 0 || rest[mark..].starts_with('=');
        in_flow |= head.contains(['{', '[']);
        out += head;
        rest = tail;
        if is_entry && super::effective::is_secret(key) {
            let (value, behind) = tail.split_at(if in_flow { flow_value(tail) } else { tail.len() });
            out.extend(value.chars().map(|_| '*'));
            rest = behind;
        }
    }
    out + rest
}

/// The length of the value at the start of `text`, in a list or mapping on one line.
fn flow_value(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut quote = None;
    for (position, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}' | ',') if depth == 0 => return position,
            (None, ']' | '}') => depth -= 1,
            (None, _) => {}
        }
    }
    text.len()
}

/// The lines of a file, cut where YAML cuts them: at CR LF, LF, or a CR alone.
struct Lines<'a>(Vec<&'a str>);

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let unix = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        Self(unix.flat_map(|line| line.split('\r')).collect())
    }

    fn line(&self, number: usize) -> Option<&'a str> {
        number.checked_sub(1).and_then(|index| self.0.get(index)).copied()
    }
}

/// `a`, `a or b`, `a, b or c`, each in backquotes.
pub(super) fn list_of(names: &[&str]) -> String {
    let mut out = String::new();
    for (i, name) in names.iter().enumerate() {
        let joint = match i {
            0 => "",
            _ if i + 1 == names.len() => " or ",
            _ => ", ",
        };
        // Writing to a string can't fail.
        write!(out, "{joint}`{name}`").unwrap_or_default();
    }
    out
}
