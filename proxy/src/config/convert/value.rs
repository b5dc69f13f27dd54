//! Values that several sections share: durations, sizes, counts, regular expressions, headers.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use super::super::slot::{Percent, Size, Slot, Span};
use super::Reading;

/// Longer than any timeout that is meant. Deadlines far beyond it overflow clocks.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Memory of one compiled expression in bytes.
const LARGEST_REGEX: usize = 1024 * 1024;

impl Reading<'_> {
    /// A duration that may be zero.
    pub(super) fn delay(&mut self, slot: &Slot<Span>, default: Duration) -> Duration {
        slot.given().and_then(|(span, node)| self.duration(&span.0, node)).unwrap_or(default)
    }

    /// A duration that something may take: more than zero.
    pub(super) fn timeout(&mut self, slot: &Slot<Span>, default: Duration) -> Duration {
        slot.given().and_then(|(span, node)| self.positive(&span.0, node)).unwrap_or(default)
    }

    pub(super) fn positive(&mut self, text: &str, node: u64) -> Option<Duration> {
        let duration = self.duration(text, node)?;
        if duration.is_zero() {
            let problem = self.problem(node, format!("{} is no time at all", self.written(text, node)));
            self.push(problem.label("more than 0"));
            return None;
        }
        Some(duration)
    }

    fn duration(&mut self, text: &str, node: u64) -> Option<Duration> {
        let (fault, label) = match duration(text) {
            Ok(duration) if duration <= LONGEST => return Some(duration),
            Ok(_) | Err(DurationFault::TooLong) => ("is too long", "at most 720h".to_owned()),
            Err(DurationFault::NoUnit) => ("has no unit", format!("write `{text}s` or `{text}ms`")),
            Err(DurationFault::Negative) => ("is negative", "a duration is 0 or more".to_owned()),
            Err(DurationFault::Fraction) => ("has a fraction", "use a smaller unit: `1500ms` for 1.5 s".to_owned()),
            Err(DurationFault::Other) => ("is not a duration", "write it like `250ms`, `5s` or `1m30s`".to_owned()),
        };
        let written = self.written(text, node);
        self.push(self.problem(node, format!("{written} {fault}")).label(label));
        None
    }

    /// A number of bytes within `range`.
    pub(super) fn size(&mut self, slot: &Slot<Size>, default: usize, range: RangeInclusive<usize>) -> usize {
        let Some((Size(text), node)) = slot.given() else { return default };
        let Some(bytes) = size(text) else {
            let problem = self.problem(node, format!("{} is not a size", self.written(text, node)));
            self.push(problem.label("write it like `64KiB`, `1MiB` or a number of bytes"));
            return default;
        };
        if !range.contains(&bytes) {
            let (least, most) = (shown_size(*range.start()), shown_size(*range.end()));
            let problem = self.problem(node, format!("{} is out of range", self.written(text, node)));
            self.push(problem.label(format!("{least} to {most}")));
        }
        bytes
    }

    /// A share in percent, within `range`.
    pub(super) fn percent(&mut self, slot: &Slot<Percent>, default: u32, range: RangeInclusive<u32>) -> u32 {
        let Some((Percent(text), node)) = slot.given() else { return default };
        let number = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match number.and_then(|digits| digits.parse().ok()).filter(|percent| range.contains(percent)) {
            Some(percent) => percent,
            None => {
                let problem = self.problem(node, format!("{} is not a share", self.written(text, node)));
                let (least, most) = (range.start(), range.end());
                self.push(problem.label(format!("write it like `20%`, `{least}%` to `{most}%`")));
                default
            }
        }
    }

    /// A number within `range`.
    pub(super) fn count(&mut self, slot: &Slot<u64>, default: u32, range: RangeInclusive<u32>) -> u32 {
        let Some((&number, node)) = slot.given() else { return default };
        match u32::try_from(number) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let problem =
                    self.problem(node, format!("{} is out of range", self.written(&number.to_string(), node)));
                self.push(problem.label(format!("{} to {}", range.start(), range.end())));
                default
            }
        }
    }

    /// An expression that matches a whole text.
    pub(super) fn regex(&mut self, pattern: &str, node: u64) -> Option<Arc<Regex>> {
        // Compiled alone first: a pattern like `a)(b` or `(?x) a #` must not be mended or broken by the anchors.
        let reason = match (compile(pattern), compile(&format!("^(?:{pattern})$"))) {
            (Ok(_), Ok(anchored)) => return Some(Arc::new(anchored)),
            (Ok(_), Err(regex::Error::Syntax(_))) => "it ends in a comment".to_owned(),
            (Err(regex::Error::CompiledTooBig(_)), _) | (_, Err(regex::Error::CompiledTooBig(_))) => {
                format!("compiled, it takes more than {}", shown_size(LARGEST_REGEX))
            }
            (Err(error), _) | (_, Err(error)) => {
                let error = error.to_string();
                error.rsplit("error: ").next().unwrap_or(&error).trim().to_owned()
            }
        };
        self.push(self.problem(node, format!("not usable as a regular expression: {reason}")));
        None
    }

    /// A header's name that a request can be judged by.
    pub(super) fn header_name(&mut self, name: &str, node: u64) -> Option<http::HeaderName> {
        let Ok(header) = http::HeaderName::from_bytes(name.as_bytes()) else {
            self.push(self.problem(node, format!("`{name}` is not a header name")));
            return None;
        };
        let problem = match header.as_str() {
            "host" => self.problem(node, "the host is not matched as a header").label("use the route's `host`"),
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "te" | "trailer" | "upgrade"
            | "content-length" => {
                let message = format!("`{header}` describes the connection or the framing, not the request");
                self.push(self.problem(node, message));
                return None;
            }
            _ => return Some(header),
        };
        self.push(problem);
        None
    }

    /// A header's value that can occur.
    pub(super) fn header_value(&mut self, value: &str, node: u64) -> Option<String> {
        let problem = if http::HeaderValue::from_bytes(value.as_bytes()).is_err() {
            self.problem(node, "a header's value can't hold control characters")
        } else if value.trim_matches([' ', '\t']) != value {
            self.problem(node, "a header's value never begins or ends with a blank")
        } else {
            return Some(value.to_owned());
        };
        self.push(problem);
        None
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(LARGEST_REGEX).build()
}

/// The pattern of an expression that [`Reading::regex`] made.
pub(in super::super) fn pattern(regex: &Regex) -> &str {
    let anchored = regex.as_str();
    anchored.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(anchored)
}

#[derive(Debug, PartialEq)]
enum DurationFault {
    NoUnit,
    Negative,
    Fraction,
    TooLong,
    Other,
}

/// `1m30s`: numbers with units, in any order.
fn duration(text: &str) -> Result<Duration, DurationFault> {
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    if number(text) {
        return Err(DurationFault::NoUnit);
    }
    if text.starts_with('-') {
        return Err(DurationFault::Negative);
    }
    if text.is_empty() {
        return Err(DurationFault::Other);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (count, tail) = rest.split_at(digits);
        if tail.starts_with('.') {
            return Err(DurationFault::Fraction);
        }
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(DurationFault::Other),
        };
        if count.is_empty() {
            return Err(DurationFault::Other);
        }
        // Digits alone fail to parse only when there are too many.
        let count: u64 = count.parse().map_err(|_| DurationFault::TooLong)?;
        let part = count.checked_mul(millis).map(Duration::from_millis).ok_or(DurationFault::TooLong)?;
        total = total.checked_add(part).ok_or(DurationFault::TooLong)?;
        rest = tail;
    }
    Ok(total)
}

/// The largest units that need no fraction; what [`duration`] reads.
pub(in super::super) fn shown_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (seconds, millis) = (millis / 1000, millis % 1000);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60, millis) {
        (0, 0, 0, millis) => format!("{millis}ms"),
        (h, m, s, ms) => [(h, "h"), (m, "m"), (s, "s"), (ms, "ms")]
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, unit)| format!("{count}{unit}"))
            .collect(),
    }
}

const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

fn size(text: &str) -> Option<usize> {
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .or_else(|| Some((text.strip_suffix('B')?, 1)))
        .unwrap_or((text, 1));
    let valid = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    // Too many digits are out of every range.
    valid.then(|| digits.parse().unwrap_or(usize::MAX).saturating_mul(unit))
}

/// The largest unit that needs no fraction; what [`size`] reads.
pub(in super::super) fn shown_size(bytes: usize) -> String {
    UNITS
        .iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DurationFault, duration, shown_duration, shown_size, size};

    #[test]
    fn durations_are_read_and_shown() {
        for (text, millis) in [("250ms", 250), ("5s", 5000), ("1m30s", 90_000), ("2h", 7_200_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(shown_duration(Duration::from_millis(90_250)), "1m30s250ms");
        assert_eq!(shown_duration(Duration::ZERO), "0ms");
    }

    #[test]
    fn other_texts_are_no_durations() {
        for (text, fault) in [
            ("5", DurationFault::NoUnit),
            ("-5s", DurationFault::Negative),
            ("1.5s", DurationFault::Fraction),
            ("99999999999999999999s", DurationFault::TooLong),
            ("9999999999999999h", DurationFault::TooLong),
            ("", DurationFault::Other),
            ("s", DurationFault::Other),
            ("5 s", DurationFault::Other),
            ("5sec", DurationFault::Other),
            ("1d", DurationFault::Other),
        ] {
            assert_eq!(duration(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [("512", 512), ("512B", 512), ("32KiB", 32 << 10), ("1MiB", 1 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "1KB", "1 MiB", "-1", "1.5MiB", "1k"] {
            assert_eq!(size(text), None, "{text}");
        }
        assert_eq!(size("99999999999999999999GiB"), Some(usize::MAX));
        assert_eq!((shown_size(1 << 20), shown_size(1500)), ("1MiB".to_owned(), "1500".to_owned()));
    }
}
