//! How problems look.

use std::path::Path;

use super::{LISTENER, Place};
use crate::config::{Problems, parse};

fn problems(text: &str) -> Problems {
    parse(Path::new("palisade.yaml"), text).unwrap_err()
}

#[test]
fn a_problem_names_its_place_shows_its_line_and_says_what_was_meant() {
    let text = "\
listeners:
  - address: 127.0.0.1:8080
routes:
  - path: /a
    upstream: http://127.0.0.1:9001

  - path: /
    upstrem: http://127.0.0.1:9000
  - path: /b
    upstream: http://127.0.0.1:9000
    retries: 7
";
    let expected = "\
error: unknown field `upstrem`
  --> palisade.yaml:8:5
8 |     upstrem: http://127.0.0.1:9000
  |     ^ did you mean `upstream`?

error: `retries: 7` is out of range
   --> palisade.yaml:11:14
11 |     retries: 7
   |              ^ 0 to 1

error: 2 problems in palisade.yaml";
    assert_eq!(problems(text).to_string(), expected);
}

#[test]
fn a_problem_of_the_whole_file_has_no_line() {
    let expected = "\
error: the file is empty
  --> palisade.yaml
  = help: the least is `listeners:` with one `- address: 127.0.0.1:8080`

error: 1 problem in palisade.yaml";
    assert_eq!(problems("").to_string(), expected);
}

#[test]
fn colour_is_around_the_text_and_only_if_asked_for() {
    let problems = problems("listener: []\n");
    assert!(!problems.render(false).contains('\x1b'));
    let coloured = problems.render(true);
    assert!(coloured.starts_with("\x1b[1;31merror\x1b[0m: unknown field"), "{coloured:?}");
    let mut plain = coloured;
    for sequence in ["\x1b[1;31m", "\x1b[1;34m", "\x1b[0m"] {
        plain = plain.replace(sequence, "");
    }
    assert_eq!(plain, problems.render(false));
}

/// The shown line and the line with the mark.
fn snippet(text: &str) -> (String, String) {
    let shown = problems(text).to_string();
    let mut lines = shown.lines().skip(2);
    (lines.next().unwrap().to_owned(), lines.next().unwrap().to_owned())
}

#[test]
fn the_mark_stands_under_its_character() {
    for (name, shown_name, width) in [
        ("plain", "plain", 5),
        ("k\u{fc}", "k\u{fc}", 2),
        ("\u{540d}\u{524d}", "\u{540d}\u{524d}", 4),
        ("e\u{301}", "e\u{301}", 1),
        ("\"a\tb\"", "\"a    b\"", 8),
        ("\"\u{85}\"", "\"\\u{85}\"", 8),
    ] {
        let (shown, mark) = snippet(&format!("listeners: [{{name: {name}, adress: x}}]"));
        assert_eq!(shown, format!("1 | listeners: [{{name: {shown_name}, adress: x}}]"));
        let blanks = " ".repeat("listeners: [{name: , ".len() + width);
        assert_eq!(mark, format!("  | {blanks}^ did you mean `address`?"), "{shown}");
    }
}

#[test]
fn nothing_in_the_file_reaches_the_terminal_as_a_command() {
    let text = format!("{LISTENER}\"\u{202e}\u{85}\\e[31m\": 1\n");
    let shown = problems(&text).to_string();
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{shown:?}");
    assert!(shown.contains("unknown field `\\u{202e}\\u{85}\\u{1b}[31m`"), "{shown}");
}

#[test]
fn a_long_line_is_shown_around_the_problem() {
    let padding = "a".repeat(5000);
    let (shown, mark) = snippet(&format!("{{listeners: [{{name: {padding}, address: x, filters: []}}]}}"));
    assert!(shown.len() < 120 && shown.contains("...") && shown.contains("address: x"), "{shown}");
    assert_eq!(shown.chars().nth(mark.find('^').unwrap()), Some('x'), "{shown}\n{mark}");
    let (shown, _) = snippet(&format!("{{x: 1, y: {padding}}}"));
    assert!(shown.len() < 120 && shown.ends_with("..."), "{shown}");
}

#[test]
fn a_shown_line_keeps_its_secrets() {
    let place = Place::new();
    for (plugin, expected) in [
        (
            "{env: {API_TOKEN: hunter2, A: [b], Password: 'hunter, 2'}, x: 1}",
            "API_TOKEN: *******, A: [b], Password: ***********}",
        ),
        ("{config: {keys: [hunter2, {a: hunter2}], token: {a: hunter2}, b: c}, x: 1}", "token: ************, b: c}"),
        ("{env: [TOKEN=hunter2, A=b], x: 1}", "{env: [TOKEN=*******, A=b], x: 1}"),
        ("{env: TOKEN=hunter2}", "{env: TOKEN=*******}"),
        ("{config: {token: 99999999999999999}}", "{token: *****************}"),
        ("\n    env: TOKEN=hunter2, a", "env: TOKEN=**********"),
        ("\n    password: hunter2, {a}", "password: ************"),
    ] {
        let shown = place.parse(&format!("{LISTENER}plugins:\n  a: {plugin}\n")).unwrap_err().to_string();
        assert!(shown.contains(expected), "{shown}");
        assert!(!shown.contains("hunter") && !shown.contains("9999"), "{shown}");
    }
}

#[test]
fn programs_get_the_same_as_json() {
    let json = problems(&format!("{LISTENER}upstrem: {{}}\n")).to_json();
    let expected = serde_json::json!({
        "file": "palisade.yaml",
        "count": 1,
        "problems": [{
            "line": 2,
            "column": 1,
            "message": "unknown field `upstrem`",
            "label": "did you mean `upstreams`?",
            "help": null,
        }],
    });
    assert_eq!(json, expected);
}

#[test]
fn the_first_hundred_are_shown_and_all_are_counted() {
    let mut text = LISTENER.to_owned();
    for i in 0..250 {
        text += &format!("field{i}: 1\n");
    }
    let problems = problems(&text);
    assert_eq!((problems.count(), problems.iter().count()), (250, 100));
    let shown = problems.to_string();
    assert!(shown.ends_with("error: 250 problems in palisade.yaml, 150 of them not shown"), "{shown}");
}
