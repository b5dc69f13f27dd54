//! The one place where a request's path is read: normalised here before any filter, and never parsed again.
//!
//! What a filter judges, a route matches and the upstream gets is the same text. Where two servers could read a path in
//! two ways, and normalising can't settle it, the request is refused:
//!
//! | in the path | what happens |
//! | --- | --- |
//! | `%41` (encoded unreserved character) | decoded |
//! | `%c3%a9` (other encoded bytes) | kept, hexadecimal digits in upper case; refused when they are not UTF-8 |
//! | `/./`, `/../` | resolved |
//! | `..` above the root | refused |
//! | `//` | merged; by `double_slashes` refused or kept |
//! | `%2f` | refused; by `encoded_slashes` kept, where it hides no dot segment |
//! | `%5c`, `\` (other spellings of a slash) | refused |
//! | `%00` and other control characters | refused |
//! | `;`, `%3b` (parameters, which some servers take out before they match) | refused; by `parameters` kept, where they
//! hide no dot segment |
//! | `%` without two hexadecimal digits | refused |
//! | a character outside RFC 3986's set | refused |

use crate::config::{Ambiguous, DoubleSlashes, Requests};

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("the path does not begin with /")]
    Relative,
    #[error("the path has a character that must be percent-encoded")]
    Character,
    #[error("the path has a % without two hexadecimal digits")]
    Escape,
    #[error("the path has an encoded slash or a backslash")]
    Slash,
    #[error("the path has an encoded control character")]
    Control,
    #[error("the path's encoded bytes are not UTF-8")]
    NotUtf8,
    #[error("the path leaves the root")]
    AboveRoot,
    #[error("the path has parameters (;)")]
    Parameters,
    #[error("the path has slashes without anything between them")]
    DoubleSlash,
}

/// The canonical form of an absolute path.
pub(crate) fn normalise(path: &str, rules: &Requests) -> Result<String, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    if is_plain(path.as_bytes()) {
        return Ok(path.to_owned());
    }
    resolve(&decode(path.as_bytes(), rules)?, rules)
}

/// Whether an absolute path is its own canonical form, whatever the rules, as most are: it has only characters that
/// stand for themselves, and nothing between two slashes begins with a dot or is empty.
fn is_plain(path: &[u8]) -> bool {
    let itself = |byte: u8| byte != b';' && (byte == b'/' || is_sub_delimiter(byte) || is_unreserved(byte));
    let mut before = 0;
    path.iter().all(|byte| {
        let unclear = before == b'/' && matches!(byte, b'/' | b'.');
        before = *byte;
        !unclear && itself(*byte)
    })
}

/// Decodes what need not be encoded; checks the rest.
fn decode(path: &[u8], rules: &Requests) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut encoded = Vec::new();
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if byte != b'%' {
            decoded.push(literal(byte, rules)?);
            at += 1;
            continue;
        }
        let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(PathError::Escape)?;
        at += 3;
        match byte {
            b'/' if rules.encoded_slashes == Ambiguous::Refuse => return Err(PathError::Slash),
            b'\\' => return Err(PathError::Slash),
            b';' if rules.parameters == Ambiguous::Refuse => return Err(PathError::Parameters),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            unreserved if is_unreserved(unreserved) => decoded.push(char::from(unreserved)),
            other => {
                encoded.push(other);
                decoded.push_str(&format!("%{other:02X}"));
            }
        }
        // A character's bytes stand together, so a run ends at the first byte that is not encoded.
        if path.get(at) != Some(&b'%') || byte < 0x80 {
            std::str::from_utf8(&encoded).map_err(|_| PathError::NotUtf8)?;
            encoded.clear();
        }
    }
    Ok(decoded)
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What else may stand in a segment (RFC 3986 section 3.3).
fn is_sub_delimiter(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b';' | b'@')
}

/// A byte that may stand in a path as it is: `pchar` of RFC 3986 section 3.3, and the slash.
fn literal(byte: u8, rules: &Requests) -> Result<char, PathError> {
    match byte {
        b'\\' => Err(PathError::Slash),
        b';' if rules.parameters == Ambiguous::Refuse => Err(PathError::Parameters),
        byte if byte == b'/' || is_sub_delimiter(byte) || is_unreserved(byte) => Ok(char::from(byte)),
        _ => Err(PathError::Character),
    }
}

/// Resolves dot segments and repeated slashes.
fn resolve(path: &str, rules: &Requests) -> Result<String, PathError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    let mut directory = false;
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" if !last && rules.double_slashes == DoubleSlashes::Refuse => return Err(PathError::DoubleSlash),
            "" if !last && rules.double_slashes == DoubleSlashes::Keep => kept.push(segment),
            "" | "." => directory = last,
            ".." => {
                // Where empty segments are kept, servers differ on whether one counts here.
                match kept.pop().ok_or(PathError::AboveRoot)? {
                    "" => return Err(PathError::DoubleSlash),
                    _ => directory = last,
                }
            }
            segment => {
                hides_nothing(segment)?;
                kept.push(segment);
            }
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in &kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if directory || kept.is_empty() {
        resolved.push('/');
    }
    Ok(resolved)
}

/// Refuses a segment that would be a dot segment for a server that decodes slashes, or cuts parameters off.
fn hides_nothing(segment: &str) -> Result<(), PathError> {
    for part in segment.split("%2F") {
        let cut = part.split(';').next().unwrap_or_default();
        let cut = cut.split("%3B").next().unwrap_or_default();
        let dots = matches!(cut, "" | "." | "..");
        if dots && cut.len() < part.len() {
            return Err(PathError::Parameters);
        }
        if dots && part.len() < segment.len() {
            return Err(PathError::Slash);
        }
    }
    Ok(())
}

/// Checks a query, which is passed on as it came: only what could end or split a request line is refused.
pub(crate) fn query_is_clean(query: &str) -> bool {
    query.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_text_for_each_meaning() {
        let cases = [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/admin/", "/admin/"),
            ("//admin", "/admin"),
            ("/./admin", "/admin"),
            ("/a/../admin", "/admin"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/a/.%2E/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/admin/.", "/admin/"),
            ("/admin/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a//b///c", "/a/b/c"),
            ("/a/..//b/", "/b/"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%e2%82%ac", "/%E2%82%AC"),
            ("/a%20b%3f", "/a%20b%3F"),
            ("/...", "/..."),
            ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ];
        for (path, canonical) in cases {
            assert_eq!(normalise(path, &Requests::default()).as_deref(), Ok(canonical), "{path}");
        }
    }

    #[test]
    fn what_two_servers_could_read_in_two_ways_is_refused() {
        use PathError as E;
        let cases = [
            ("admin", E::Relative),
            ("", E::Relative),
            ("*", E::Relative),
            ("/a%2f..%2fadmin", E::Slash),
            ("/a%5cadmin", E::Slash),
            ("/a\\..\\admin", E::Slash),
            ("/admin%00", E::Control),
            ("/admin%0d%0ax", E::Control),
            ("/%7f", E::Control),
            ("/a/..;x/admin", E::Parameters),
            ("/admin;x", E::Parameters),
            ("/admin%3Bx", E::Parameters),
            ("/admin%3b", E::Parameters),
            ("/..", E::AboveRoot),
            ("/a/../../admin", E::AboveRoot),
            ("/%c0%ae%c0%ae/", E::NotUtf8),
            ("/%e9", E::NotUtf8),
            ("/%c3x%a9", E::NotUtf8),
            ("/%c3%41%a9", E::NotUtf8),
            ("/%", E::Escape),
            ("/%4", E::Escape),
            ("/%zz", E::Escape),
            ("/%+1", E::Escape),
            ("/a b", E::Character),
            ("/é", E::Character),
            ("/a\"b", E::Character),
            ("/a|b", E::Character),
            ("/a#b", E::Character),
        ];
        for (path, error) in cases {
            assert_eq!(normalise(path, &Requests::default()), Err(error), "{path}");
        }
    }

    #[test]
    fn what_a_listener_keeps_hides_no_dot_segment() {
        use PathError as E;
        let slashes = Requests { encoded_slashes: Ambiguous::Keep, ..Requests::default() };
        let parameters = Requests { parameters: Ambiguous::Keep, ..Requests::default() };
        let doubled = Requests { double_slashes: DoubleSlashes::Keep, ..Requests::default() };
        let single = Requests { double_slashes: DoubleSlashes::Refuse, ..Requests::default() };
        let cases = [
            (&slashes, "/p/group%2fproject", Ok("/p/group%2Fproject")),
            (&slashes, "/a%2f..%2fadmin", Err(E::Slash)),
            (&slashes, "/a%2f%2e%2e", Err(E::Slash)),
            (&slashes, "/a%2f", Err(E::Slash)),
            (&slashes, "/a%5cb", Err(E::Slash)),
            (&slashes, "/a;b", Err(E::Parameters)),
            (&parameters, "/a;v=1/b", Ok("/a;v=1/b")),
            (&parameters, "/a%3bv=1/b", Ok("/a%3Bv=1/b")),
            (&parameters, "/a/..;x/admin", Err(E::Parameters)),
            (&parameters, "/a/%2e%2e%3bx/admin", Err(E::Parameters)),
            (&parameters, "/;x/admin", Err(E::Parameters)),
            (&parameters, "/a%2fb", Err(E::Slash)),
            (&doubled, "/a//b", Ok("/a//b")),
            (&doubled, "/a//", Ok("/a//")),
            (&doubled, "/a//../b", Err(E::DoubleSlash)),
            (&doubled, "/a/../b", Ok("/b")),
            (&single, "/a//b", Err(E::DoubleSlash)),
            (&single, "/a/", Ok("/a/")),
        ];
        for (rules, path, expected) in cases {
            assert_eq!(normalise(path, rules).as_deref().map_err(|error| *error), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in "/[ -~]{0,40}") {
            let rules = Requests::default();
            if let Ok(once) = normalise(&path, &rules) {
                prop_assert_eq!(normalise(&once, &rules), Ok(once.clone()));
                prop_assert!(!once.contains("//") && !once.contains("/../") && !once.contains("/./"));
            }
        }

        #[test]
        fn what_is_taken_as_it_is_would_come_out_the_same(
            path in "/[a./;%~!2Ff\\\\ é]{0,12}",
            encoded_slashes in any::<bool>(), parameters in any::<bool>(), slashes in 0..3_usize,
        ) {
            let kept = |keep| if keep { Ambiguous::Keep } else { Ambiguous::Refuse };
            let rules = Requests {
                encoded_slashes: kept(encoded_slashes),
                parameters: kept(parameters),
                double_slashes: [DoubleSlashes::Merge, DoubleSlashes::Refuse, DoubleSlashes::Keep][slashes],
                ..Requests::default()
            };
            let whole = decode(path.as_bytes(), &rules).and_then(|decoded| resolve(&decoded, &rules));
            prop_assert_eq!(normalise(&path, &rules), whole);
        }

        #[test]
        fn any_text_gives_an_answer(path in ".{0,60}") {
            let _answer = normalise(&path, &Requests::default());
        }
    }
}
