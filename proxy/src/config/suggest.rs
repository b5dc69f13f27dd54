//! The nearest name to one that does not exist.

/// Candidates that are looked at. Who has more names than that gets no suggestion, but an answer within a second.
const MOST_CANDIDATES: usize = 1000;

/// The candidate that `written` most likely meant, if any is near enough not to mislead.
pub(crate) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names are short; a long one is no typo and would only cost time.
    if written.len() > 64 {
        return None;
    }
    let written = normal(written);
    candidates
        .into_iter()
        .take(MOST_CANDIDATES)
        .map(|name| (strsim::damerau_levenshtein(&written, &normal(name)), name))
        .filter(|(distance, name)| {
            let shorter = name.len().min(written.len());
            *distance < shorter && *distance <= 1 + shorter / 4
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `maxHeaders`, `max-headers` and `max_headers` are the same mistake or none.
fn normal(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_other_spellings_but_not_strangers() {
        let names = ["upstream", "timeout", "filters", "max_headers"];
        for (written, expected) in [
            ("upstrem", Some("upstream")),
            ("timeuot", Some("timeout")),
            ("filter", Some("filters")),
            ("maxHeaders", Some("max_headers")),
            ("backend", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, names), expected, "{written}");
        }
    }
}
