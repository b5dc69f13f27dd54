//! Files made to hurt, and files made of noise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::{LISTENER, Place};
use crate::config::{load, parse};

/// The first message, or none if the file was taken.
fn verdict(text: &str) -> Option<String> {
    let problems = parse(Path::new("palisade.yaml"), text).err()?;
    // Showing them must be as safe as finding them.
    assert!(!problems.to_string().is_empty());
    problems.iter().next().map(|problem| problem.message.clone())
}

#[test]
fn bombs_are_refused() {
    let mut laughs = "a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n".to_owned();
    for pair in "abcdefghi".as_bytes().windows(2) {
        let (before, name) = (char::from(pair[0]), char::from(pair[1]));
        laughs += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", "));
    }
    let mut chain = "a0: &a0 [x]\n".to_owned();
    for i in 1..100 {
        chain += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
    }
    let keys = |line: fn(usize) -> String| (0..100_000).map(line).collect::<String>();
    for (name, text, expected) in [
        ("aliases of aliases", laughs, "the file has more than 100000 values, counting those that aliases repeat"),
        ("a chain of aliases", chain, "nested more than 64 levels deep"),
        ("open brackets", format!("a: {}", "[".repeat(100_000)), "nested more than 64 levels deep"),
        ("open braces", format!("a: {}", "{a: ".repeat(100_000)), "nested more than 64 levels deep"),
        ("dashes", "- ".repeat(100_000), "nested more than 64 levels deep"),
        ("question marks", "? ".repeat(100_000), "nested more than 64 levels deep"),
        (
            "keys",
            keys(|i| format!("k{i}: 1\n")),
            "the file has more than 100000 values, counting those that aliases repeat",
        ),
        ("keys within bounds", (0..49_000).map(|i| format!("k{i}: 1\n")).collect(), "unknown field `k"),
        ("the same key", "k: 1\n".repeat(49_000), "unknown field `k"),
        ("a large file", format!("#{}", "x".repeat(1 << 20)), "the file is larger than 1048576 bytes"),
        ("one long comment", format!("#{}", "x".repeat((1 << 20) - 1)), "the file is empty"),
        ("one long string", format!("a: {}", "x".repeat(1 << 19)), "unknown field `a`"),
        ("one long quoted string", format!("a: \"{}", "\\x41".repeat(1 << 17)), "not valid YAML: "),
        ("anchors", keys(|i| format!("- &a{i}\n")), "the file has more than 100000 values"),
        ("spaces", format!("a:\n{}b", " ".repeat(1 << 19)), "unknown field `a`"),
        ("commas", format!("a: [{}", "a,".repeat(200_000)), "the file has more than 100000 values"),
        ("colons", "a:".repeat(1 << 18), "not valid YAML: "),
    ] {
        let found = verdict(&text).unwrap_or_default();
        assert!(found.starts_with(expected), "{name}: {found}");
    }
}

#[test]
fn many_wrong_names_are_refused() {
    let filters: String = (0..20_000).map(|i| format!("x{i}, ")).collect();
    let plugins: String = (0..10_000).map(|i| format!("  p{i}: {{}}\n")).collect();
    let text = format!("listeners: [{{address: 127.0.0.1:0, filters: [{filters}]}}]\nplugins:\n{plugins}");
    assert_eq!(verdict(&text).as_deref(), Some("unknown plugin `x0`"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_of_its_own() {
    let place = Place::new();
    let path = place.file();
    let message = || place.shown(load(&path).unwrap_err().iter().next().unwrap());

    assert!(message().starts_with("0:0 can't read the file: no such file or directory"), "{}", message());
    place.write("palisade.yaml", LISTENER, 0o644);
    assert!(load(&path).is_ok());
    place.write("palisade.yaml", LISTENER, 0o666);
    assert!(message().contains("can be written by everyone"), "{}", message());
    assert!(message().ends_with("[try: chmod go-w DIR/palisade.yaml]"), "{}", message());

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"listeners: []\nroutes: \xff\n").unwrap();
    assert_eq!(message(), "2:9 the file is not UTF-8 from here on");
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(message(), "0:0 the file is larger than 1048576 bytes");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(message().starts_with("0:0 can't read the file: is a directory"), "{}", message());
}

/// What the parser and the decoder look at, so that noise gets past the first character.
const PIECES: &[&str] = &[
    "listeners",
    "routes",
    "upstreams",
    "plugins",
    "address",
    "filters",
    "command",
    "config",
    "path",
    "headers",
    "tls",
    "127.0.0.1:0",
    "5s",
    "auth",
    "*a",
    "&a ",
    "!!str ",
    "!x ",
    "<<",
    ": ",
    ":",
    "- ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "\n",
    "\n  ",
    "\n    ",
    "\t",
    "\"",
    "'",
    "|\n",
    ">-\n",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "\r",
    "\u{feff}",
    "\u{85}",
    "\0",
    "é",
    "~",
    "0600",
    ".nan",
    "99999999999999999999",
    "-1",
    "\\",
    "yes",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        verdict(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn pieces_of_configurations_do_no_harm(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
        verdict(&pieces.concat());
        verdict(&format!("{LISTENER}{}", pieces.concat()));
    }

    #[test]
    fn a_damaged_configuration_does_no_harm(at in 0.0..1.0_f64, gone in 0..40_usize, piece in prop::sample::select(PIECES)) {
        let whole = super::valid::FULL;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short text")]
        let start = (whole.len() as f64 * at) as usize;
        let end = (start + gone).min(whole.len());
        prop_assume!(whole.is_char_boundary(start) && whole.is_char_boundary(end));
        verdict(&format!("{}{piece}{}", &whole[..start], &whole[end..]));
    }
}
