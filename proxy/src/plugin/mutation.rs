//! Changes to headers, as plugins ask for them: checked whole before any is applied.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::{CallError, clip};
use crate::http::headers::{self, is_owned};

/// Changes in one answer.
const MAX_OPS: usize = 100;

/// Names and values of one answer together, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderOp {
    Set(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// Applies changes in their order.
pub(crate) fn apply(ops: &[HeaderOp], fields: &mut HeaderMap) {
    for op in ops {
        match op {
            HeaderOp::Set(name, value) => {
                fields.insert(name, value.clone());
            }
            HeaderOp::Append(name, value) => {
                fields.append(name, value.clone());
            }
            HeaderOp::Remove(name) => headers::remove(fields, |field| field == name),
        }
    }
}

/// The name of a header that a plugin may change.
pub(super) fn name(name: &str) -> Result<HeaderName, CallError> {
    let parsed = HeaderName::from_lowercase(name.as_bytes())
        .map_err(|_| CallError::Invalid(format!("{:?} is not a header name in lower case", clip(name))))?;
    if is_owned(&parsed) {
        return Err(CallError::Invalid(format!("header {name:?} belongs to the proxy")));
    }
    Ok(parsed)
}

/// A header that a plugin may set. The value is copied: a part of the answer would keep all of it for as long as the
/// request takes, and its size is nobody's limit there.
pub(super) fn field(field: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), CallError> {
    let name = name(field)?;
    let value = HeaderValue::from_bytes(value)
        .map_err(|_| CallError::Invalid(format!("the value of header {:?} has a forbidden byte", clip(field))))?;
    Ok((name, value))
}

/// Refuses more than a client could have sent itself.
pub(super) fn bounded<'a>(fields: impl Iterator<Item = (&'a str, usize)>) -> Result<(), CallError> {
    let (mut count, mut bytes) = (0, 0_usize);
    for (name, value) in fields {
        count += 1;
        bytes = bytes.saturating_add(name.len()).saturating_add(value);
    }
    if count > MAX_OPS || bytes > MAX_BYTES {
        return Err(CallError::Invalid(format!(
            "{count} headers of {bytes} bytes, at most {MAX_OPS} of {MAX_BYTES} bytes may be set"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_no_plugin_may_set() {
        for bad in [
            "",
            "X-Upper",
            "a b",
            "a:b",
            ":path",
            "é",
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "te",
            "upgrade",
            "trailer",
            "keep-alive",
            "proxy-connection",
            "x-request-id",
            "x-forwarded-for",
        ] {
            assert!(matches!(name(bad), Err(CallError::Invalid(_))), "{bad:?}");
        }
        for bad in ["a\r\nset-cookie: x", "a\nb", "a\0b", "\x7f"] {
            assert!(matches!(field("x-a", bad.as_bytes()), Err(CallError::Invalid(_))), "{bad:?}");
        }
        assert!(field("x-a", b"\xff\xfe").is_ok());
        assert!(bounded(std::iter::repeat_n(("a", 1), 101)).is_err());
        assert!(bounded(std::iter::once(("a", 64 * 1024))).is_err());
        assert!(bounded(std::iter::repeat_n(("a", 10), 100)).is_ok());
    }

    #[test]
    fn what_is_said_about_a_long_name_is_short() {
        for refused in [name(&"\x01".repeat(60_000)).err(), field(&"a".repeat(60_000), b"\n").err()] {
            let Some(CallError::Invalid(text)) = refused else { panic!("{refused:?}") };
            assert!(text.len() < 1000, "{} bytes", text.len());
        }
    }

    #[test]
    fn changes_apply_in_order() {
        let (a, b) = (HeaderName::from_static("a"), HeaderName::from_static("b"));
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        headers.append(&a, value("1"));
        headers.append(&a, value("2"));
        headers.append(&b, value("3"));
        let ops = [
            HeaderOp::Set(a.clone(), value("4")),
            HeaderOp::Append(a.clone(), value("5")),
            HeaderOp::Remove(b.clone()),
        ];
        apply(&ops, &mut headers);
        assert_eq!(headers.get_all(&a).iter().collect::<Vec<_>>(), ["4", "5"]);
        assert!(!headers.contains_key(&b));
    }
}
