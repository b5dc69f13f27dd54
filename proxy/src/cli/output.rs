//! Where words for people and programs leave the process.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use super::Failure;

/// Writes to stdout. A reader that has gone, as `head` does, has what it wanted.
pub(super) fn print(text: impl Display) -> Result<(), Failure> {
    written(io::stdout().lock(), text).map_err(Failure::Output)
}

/// Writes to stderr. Where that fails, nobody is left to tell.
pub(super) fn complain(text: impl Display) {
    written(io::stderr().lock(), text).ok();
}

/// Whether what goes to stderr may be coloured.
pub(super) fn color() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn written(mut out: impl Write, text: impl Display) -> io::Result<()> {
    // As a whole: text that breaks off in the middle of a line helps nobody.
    match writeln!(out, "{}", text.to_string().trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Columns as wide as their widest cell, two blanks apart.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<_> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["auth".to_owned(), "serving".to_owned()], ["certificates".to_owned(), "-".to_owned()]];
        let expected = "PLUGIN        STATE\nauth          serving\ncertificates  -";
        assert_eq!(table(["PLUGIN", "STATE"], &rows), expected);
    }
}
