//! What a line that a plugin printed says: level, message, module, key-value pairs.
//!
//! Knows hclog's JSON, the JSON of zap, slog, pino, bunyan, logback, zerolog, structlog and tracing, `[LEVEL]` and
//! `LEVEL:` prefixes, `level=` pairs, and the traces of panics and exceptions. Nothing here fails: what is not
//! understood is text.

use serde_json::{Map, Value};
use tracing::Level;

/// One line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) level: Level,
    pub(crate) message: String,
    /// The logger within the plugin.
    pub(crate) module: Option<String>,
    /// `key=value` pairs, escaped and joined by blanks.
    pub(crate) fields: String,
}

/// What earlier lines of the same stream say about the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Context {
    #[default]
    Plain,
    /// Inside a Python traceback or a Java stack trace, up to the line that ends it.
    Trace,
    /// After a Go panic: all that follows belongs to it.
    Panic,
}

const LEVEL_KEYS: [&str; 8] = ["@level", "level", "severity", "lvl", "levelname", "log.level", "loglevel", "log_level"];
const MESSAGE_KEYS: [&str; 5] = ["@message", "message", "msg", "event", "text"];
const MODULE_KEYS: [&str; 6] = ["@module", "logger_name", "logger", "module", "target", "name"];
/// The host's own log has a time, and these say nothing else.
const NOISE_KEYS: [&str; 9] =
    ["@timestamp", "timestamp", "time", "ts", "asctime", "@version", "level_value", "v", "datetime"];

/// Understands one line. `raw` may hold anything; the result holds no control characters.
pub(crate) fn parse(raw: &[u8], context: &mut Context) -> Record {
    let text = String::from_utf8_lossy(raw);
    if let Some(record) = json(&text) {
        *context = Context::Plain;
        return record;
    }
    let (level, next) = plain_level(&text, *context);
    *context = next;
    let message = strip_prefix(&text).unwrap_or(&text);
    Record { level, message: escape(message), module: None, fields: String::new() }
}

/// Makes text safe for a terminal and for one line of a log: control characters, line separators and the marks that
/// turn the direction of writing become escapes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        let hostile = character.is_control()
            || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if hostile {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

fn json(text: &str) -> Option<Record> {
    let text = text.trim();
    if !text.starts_with('{') {
        return None;
    }
    let mut object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let level = LEVEL_KEYS.iter().find_map(|key| Some((key, level_of(object.get(*key)?)?)));
    if let Some((key, _)) = level {
        object.remove(*key);
    }
    let mut message = take_text(&mut object, &MESSAGE_KEYS);
    // tracing's JSON nests what belongs to the event.
    if let Some(Value::Object(inner)) = object.get_mut("fields") {
        message = message.or_else(|| take_text(inner, &MESSAGE_KEYS));
    }
    if level.is_none() && message.is_none() {
        return None;
    }
    let module = take_text(&mut object, &MODULE_KEYS);
    let mut fields = String::new();
    for (key, value) in object.iter().filter(|(key, _)| !NOISE_KEYS.contains(&key.as_str())) {
        match (key.as_str(), value) {
            ("fields", Value::Object(inner)) => inner.iter().for_each(|(key, value)| push(&mut fields, key, value)),
            _ => push(&mut fields, key, value),
        }
    }
    Some(Record {
        level: level.map_or(Level::INFO, |(_, level)| level),
        message: message.unwrap_or_default(),
        module,
        fields,
    })
}

/// Takes the first of `keys` that is there and holds text or a number.
fn take_text(object: &mut Map<String, Value>, keys: &[&str]) -> Option<String> {
    let key = keys.iter().find(|key| matches!(object.get(**key), Some(Value::String(_) | Value::Number(_))))?;
    match object.remove(*key)? {
        Value::String(text) => Some(escape(&text)),
        other => Some(other.to_string()),
    }
}

fn push(fields: &mut String, key: &str, value: &Value) {
    if !fields.is_empty() {
        fields.push(' ');
    }
    fields.push_str(&quoted(key));
    fields.push('=');
    match value {
        Value::String(text) => fields.push_str(&quoted(text)),
        other => fields.push_str(&escape(&other.to_string())),
    }
}

/// Text that cannot be taken for several pairs.
fn quoted(text: &str) -> String {
    let plain = |character: char| character.is_alphanumeric() || "-_.:/@+,".contains(character);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("\"{}\"", escape(&text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn level_of(value: &Value) -> Option<Level> {
    match value {
        Value::String(word) => level_word(word),
        Value::Number(number) => Some(match number.as_i64()? {
            // pino and bunyan: 10 trace, 20 debug, 30 info, 40 warn, 50 error, 60 fatal.
            ..=10 => Level::TRACE,
            11..=20 => Level::DEBUG,
            21..=30 => Level::INFO,
            31..=40 => Level::WARN,
            41.. => Level::ERROR,
        }),
        _ => None,
    }
}

fn level_word(word: &str) -> Option<Level> {
    Some(match word.to_ascii_lowercase().as_str() {
        "trace" | "trc" | "finest" | "finer" | "verbose" => Level::TRACE,
        "debug" | "dbg" | "fine" | "config" => Level::DEBUG,
        "info" | "inf" | "information" | "notice" | "default" => Level::INFO,
        "warn" | "warning" | "wrn" => Level::WARN,
        "error" | "err" | "severe" | "fatal" | "ftl" | "critical" | "crit" | "alert" | "emergency" | "emerg"
        | "panic" | "dpanic" => Level::ERROR,
        _ => return None,
    })
}

fn plain_level(text: &str, context: Context) -> (Level, Context) {
    let trimmed = text.trim_start();
    let indented = trimmed.len() < text.len();
    if context == Context::Panic {
        return (Level::ERROR, Context::Panic);
    }
    if text.starts_with("panic: ") || text.starts_with("fatal error: ") {
        return (Level::ERROR, Context::Panic);
    }
    if trimmed.starts_with("Traceback (most recent call last)")
        || text.starts_with("Exception in thread ")
        || text.starts_with("Caused by: ")
        || (text.starts_with("thread '") && text.contains("panicked at"))
    {
        return (Level::ERROR, Context::Trace);
    }
    if context == Context::Trace {
        // Python ends a traceback with the first line that is not indented, Java indents all but the first and the
        // causes, Rust puts the message of a panic there.
        let next = if indented || text.is_empty() { Context::Trace } else { Context::Plain };
        return (Level::ERROR, next);
    }
    if text.starts_with("Error: ") || text.starts_with("java.lang.") || trimmed.starts_with("at java.") {
        return (Level::ERROR, Context::Plain);
    }
    let level = prefix(text).map(|(level, _)| level).or_else(|| logfmt_level(text)).unwrap_or(Level::INFO);
    (level, Context::Plain)
}

/// `[WARN] text`, `WARNING:logger:text`, `WARN: text`.
fn prefix(text: &str) -> Option<(Level, usize)> {
    if let Some(rest) = text.strip_prefix('[') {
        let end = rest.find(']')?;
        let level = level_word(rest[..end].trim())?;
        return Some((level, end + 2));
    }
    let end = text.find(':')?;
    // Only shouting: `error: x` may be prose, yet is worth its level too.
    let level = level_word(&text[..end])?;
    Some((level, end + 1))
}

/// Drops a `[LEVEL]` prefix, which the record's level repeats. `LEVEL:` stays: it may be part of the sentence.
fn strip_prefix(text: &str) -> Option<&str> {
    if !text.starts_with('[') {
        return None;
    }
    prefix(text).map(|(_, end)| text[end..].trim_start())
}

fn logfmt_level(text: &str) -> Option<Level> {
    let at = text.find("level=").filter(|at| *at == 0 || text.as_bytes()[at - 1] == b' ')?;
    let word = text[at + "level=".len()..].split([' ', ',']).next()?;
    level_word(word.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: &str) -> (Level, String, Option<String>, String) {
        let Record { level, message, module, fields } = parse(line.as_bytes(), &mut Context::Plain);
        (level, message, module, fields)
    }

    #[test]
    fn json_dialects() {
        let cases = [
            // hclog, with any number of digits in the time, and with a field of the wrong type.
            (
                r#"{"@level":"warn","@message":"disk","@module":"kv","@timestamp":"2026-01-02T03:04:05.000Z","free":3,"path":"/a b"}"#,
                (Level::WARN, "disk", Some("kv"), r#"free=3 path="/a b""#),
            ),
            (r#"{"@message":1}"#, (Level::INFO, "1", None, "")),
            (r#"{"@level":"off","@message":"x"}"#, (Level::INFO, "x", None, "@level=off")),
            // zap, slog, zerolog
            (r#"{"level":"error","ts":1.5,"msg":"m","caller":"a.go:1"}"#, (Level::ERROR, "m", None, "caller=a.go:1")),
            (r#"{"time":"t","level":"DEBUG","msg":"m","n":null}"#, (Level::DEBUG, "m", None, "n=null")),
            // pino, bunyan
            (r#"{"level":40,"time":1,"pid":3,"msg":"m"}"#, (Level::WARN, "m", None, "pid=3")),
            (r#"{"v":0,"name":"app","level":60,"msg":"m"}"#, (Level::ERROR, "m", Some("app"), "")),
            // logback's encoder
            (
                r#"{"@timestamp":"t","@version":"1","message":"m","logger_name":"a.B","level":"INFO","level_value":20000}"#,
                (Level::INFO, "m", Some("a.B"), ""),
            ),
            // Google Cloud, structlog, Python
            (r#"{"severity":"CRITICAL","message":"m"}"#, (Level::ERROR, "m", None, "")),
            (r#"{"event":"m","level":"warning"}"#, (Level::WARN, "m", None, "")),
            (r#"{"levelname":"WARNING","name":"n","message":"m"}"#, (Level::WARN, "m", Some("n"), "")),
            // tracing
            (
                r#"{"timestamp":"t","level":"TRACE","fields":{"message":"m","k":true},"target":"a::b"}"#,
                (Level::TRACE, "m", Some("a::b"), "k=true"),
            ),
            // Not a log record.
            (r#"{"a":1}"#, (Level::INFO, r#"{"a":1}"#, None, "")),
            (r#"{"a":"#, (Level::INFO, r#"{"a":"#, None, "")),
            (r#"["level","error"]"#, (Level::INFO, r#"["level","error"]"#, None, "")),
        ];
        for (line, (level, message, module, fields)) in cases {
            let expected = (level, message.to_owned(), module.map(str::to_owned), fields.to_owned());
            assert_eq!(record(line), expected, "{line}");
        }
    }

    #[test]
    fn plain_dialects() {
        let cases = [
            ("hello", Level::INFO, "hello"),
            ("[WARN] low", Level::WARN, "low"),
            ("[ERROR]  x", Level::ERROR, "x"),
            ("[x] y", Level::INFO, "[x] y"),
            ("[", Level::INFO, "["),
            ("WARNING:root:low", Level::WARN, "WARNING:root:low"),
            ("ERROR: no", Level::ERROR, "ERROR: no"),
            ("time=t level=error msg=m", Level::ERROR, "time=t level=error msg=m"),
            ("sublevel=error", Level::INFO, "sublevel=error"),
        ];
        for (line, level, message) in cases {
            assert_eq!(record(line), (level, message.to_owned(), None, String::new()), "{line}");
        }
    }

    #[test]
    fn traces_are_errors_to_their_end() {
        let levels = |lines: &[&str]| -> String {
            let mut context = Context::Plain;
            lines
                .iter()
                .map(|line| if parse(line.as_bytes(), &mut context).level == Level::ERROR { 'E' } else { '.' })
                .collect()
        };
        let python = ["a", "Traceback (most recent call last):", "  File \"x\"", "    y()", "KeyError: 'z'", "after"];
        assert_eq!(levels(&python), ".EEEE.");
        assert_eq!(levels(&["panic: boom", "", "goroutine 1 [running]:", "main.main()"]), "EEEE");
        assert_eq!(levels(&["thread 'main' (7) panicked at src/main.rs:1:1:", "boom", "after"]), "EE.");
        assert_eq!(levels(&["Exception in thread \"main\" x", "\tat a.B(C.java:1)", "Caused by: y", "\tat z"]), "EEEE");
    }

    #[test]
    fn nothing_forges_a_line_or_a_field() {
        let (_, message, _, _) = record("\x1b]0;owned\x07 \r fake \u{202e}x\u{2028}y\0");
        assert_eq!(message, r"\u{1b}]0;owned\u{7} \r fake \u{202e}x\u{2028}y\u{0}");
        let (_, message, _, fields) =
            record(r#"{"@message":"m\nplugin=other","a b":"c\" level=error d=\"e","k\n":{"x":"\u001b[0m"}}"#);
        assert_eq!(message, r"m\nplugin=other");
        assert_eq!(fields, r#""a b"="c\" level=error d=\"e" "k\n"={"x":"\u001b[0m"}"#);
        assert_eq!(parse(b"\xff\xfeok", &mut Context::Plain).message, "\u{fffd}\u{fffd}ok");
    }

    #[test]
    fn deep_nesting_is_text() {
        let bomb = format!("{{\"msg\":{}", "[".repeat(60_000));
        assert_eq!(record(&bomb).0, Level::INFO);
    }
}
