//! Splits a byte stream into lines of bounded length.

/// Longest line in bytes; the rest of a longer one is dropped up to its end.
pub(crate) const MAX_LINE: usize = 64 * 1024;

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) truncated: bool,
}

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// The line at hand was too long and has been passed on: skip the rest of it.
    skipping: bool,
}

impl Lines {
    /// Takes the next bytes and calls `each` for every line that they complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.skipping {
                self.skipping = false;
            } else if self.partial.is_empty() && head.len() <= MAX_LINE {
                each(Line { bytes: trim_end(head), truncated: false });
            } else {
                self.extend(head, &mut each);
                if !std::mem::take(&mut self.skipping) {
                    each(Line { bytes: trim_end(&self.partial), truncated: false });
                    self.clear();
                }
            }
        }
        if !self.skipping {
            self.extend(bytes, &mut each);
        }
    }

    /// The stream has ended: what is left counts as a line.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(Line<'_>)) {
        if !self.partial.is_empty() {
            each(Line { bytes: trim_end(&self.partial), truncated: false });
        }
        self.clear();
        self.skipping = false;
    }

    fn extend(&mut self, bytes: &[u8], each: &mut impl FnMut(Line<'_>)) {
        let room = MAX_LINE - self.partial.len();
        if bytes.len() <= room {
            self.partial.extend_from_slice(bytes);
            return;
        }
        self.partial.extend_from_slice(&bytes[..room]);
        each(Line { bytes: &self.partial, truncated: true });
        self.clear();
        self.skipping = true;
    }

    /// Gives the memory of a long line back: most plugins never print another one.
    fn clear(&mut self) {
        self.partial.clear();
        self.partial.shrink_to(1024);
    }
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<(usize, String, bool)> {
        let mut lines = Lines::default();
        let mut seen = vec![];
        let mut note = |line: Line<'_>| {
            let text: String = String::from_utf8_lossy(line.bytes).chars().take(8).collect();
            seen.push((line.bytes.len(), text, line.truncated));
        };
        for chunk in chunks {
            lines.feed(chunk, &mut note);
        }
        lines.finish(&mut note);
        seen
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let expected: Vec<(usize, String, bool)> =
            vec![(1, "a".into(), false), (0, String::new(), false), (2, "bc".into(), false), (1, "d".into(), false)];
        assert_eq!(split(&[b"a\n\nbc\r\nd"]), expected);
        let bytes: Vec<&[u8]> = b"a\n\nbc\r\nd".chunks(1).collect();
        assert_eq!(split(&bytes), expected);
    }

    #[test]
    fn a_line_without_end_is_cut_once_and_the_next_is_whole() {
        let flood = vec![b'x'; 3 * MAX_LINE];
        let seen = split(&[&flood, &flood, b"tail\nnext\n"]);
        assert_eq!(seen, [(MAX_LINE, "xxxxxxxx".into(), true), (4, "next".into(), false)]);
        let one = [flood.as_slice(), b"\nnext\n"].concat();
        assert_eq!(split(&[&one]), [(MAX_LINE, "xxxxxxxx".into(), true), (4, "next".into(), false)]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let full = [vec![b'x'; MAX_LINE], b"\n".to_vec()].concat();
        assert_eq!(split(&[&full]), [(MAX_LINE, "xxxxxxxx".into(), false)]);
        assert_eq!(split(&[&full[..100], &full[100..]]), [(MAX_LINE, "xxxxxxxx".into(), false)]);
    }
}
