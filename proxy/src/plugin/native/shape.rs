//! How many fields a message has, before it is read.
//!
//! A field without anything in it is two bytes on the wire, and a hundred times that in memory where it is a message of
//! its own. So a bound on bytes alone is none on memory. This counts fields where they can be messages or stand in
//! lists, and knows no more of a message than which of its fields to look into.

use palisade_plugin_proto::mosn;
use palisade_plugin_proto::v1::{
    CheckBatchAnswer, CheckRequestResponse, CheckResponseResponse, WatchCertificatesResponse,
};

/// The fields of a message that are messages, by their numbers.
pub(in crate::plugin) struct Shape(&'static [(u64, &'static Shape)]);

/// An answer that is looked at before it is read.
pub(in crate::plugin) trait Answer {
    const SHAPE: &'static Shape;
    /// Fields of all messages in it together.
    const MOST_FIELDS: usize;
}

/// Two lists of 100 changes are 800 fields, and a reply's headers less.
const ONE: usize = 4096;

/// For answers to as many calls as there can be.
const MANY: usize = 1 << 18;

const LEAF: Shape = Shape(&[]);
const HEADER: Shape = LEAF;
const MUTATION: Shape = Shape(&[(1, &HEADER), (2, &HEADER)]);
const ALLOW: Shape = Shape(&[(1, &MUTATION), (2, &MUTATION)]);
const PASS: Shape = Shape(&[(1, &MUTATION)]);
const REPLY: Shape = Shape(&[(2, &HEADER)]);
const REQUEST: Shape = Shape(&[(1, &ALLOW), (2, &REPLY)]);
const RESPONSE: Shape = Shape(&[(1, &PASS), (2, &REPLY)]);
const ANSWER: Shape = Shape(&[(2, &REQUEST), (3, &RESPONSE), (4, &LEAF)]);
const ANSWERS: Shape = Shape(&[(1, &ANSWER)]);
const CERTIFICATES: Shape = Shape(&[(1, &LEAF)]);
const MOSN: Shape = Shape(&[(1, &LEAF), (2, &LEAF)]);

impl Answer for CheckRequestResponse {
    const SHAPE: &'static Shape = &REQUEST;
    const MOST_FIELDS: usize = ONE;
}

impl Answer for CheckResponseResponse {
    const SHAPE: &'static Shape = &RESPONSE;
    const MOST_FIELDS: usize = ONE;
}

impl Answer for mosn::Response {
    const SHAPE: &'static Shape = &MOSN;
    const MOST_FIELDS: usize = ONE;
}

impl Answer for CheckBatchAnswer {
    const SHAPE: &'static Shape = &ANSWERS;
    const MOST_FIELDS: usize = MANY;
}

impl Answer for WatchCertificatesResponse {
    const SHAPE: &'static Shape = &CERTIFICATES;
    const MOST_FIELDS: usize = MANY;
}

/// Whether a message has no more fields than it may. One that is malformed is left to who reads it: that ends there.
pub(super) fn is_modest<A: Answer>(bytes: &[u8]) -> bool {
    is_within(bytes, A::SHAPE, &mut A::MOST_FIELDS.clone())
}

/// As [`is_modest`], where so many calls are open: there are no more answers than those.
pub(super) fn are_modest(bytes: &[u8], calls: usize) -> bool {
    let mut left = calls.saturating_add(1).saturating_mul(ONE).min(MANY);
    let (mut rest, mut answers) = (bytes, 0);
    while let Some(Field { number, .. }) = field(&mut rest) {
        answers += usize::from(number == ANSWERS.0[0].0);
        if answers > calls {
            return false;
        }
    }
    is_within(bytes, &ANSWERS, &mut left)
}

/// Takes the fields of a message off what is `left`.
fn is_within(mut bytes: &[u8], shape: &Shape, left: &mut usize) -> bool {
    while !bytes.is_empty() {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        let Some(Field { number, kind, inside }) = field(&mut bytes) else { return true };
        // Groups are nobody's any more, and who reads would skip them.
        if !matches!(kind, 0 | 1 | 2 | 5) {
            return false;
        }
        let inner = shape.0.iter().find(|(known, _)| *known == number).filter(|_| kind == 2);
        if inner.is_some_and(|(_, shape)| !is_within(inside, shape, left)) {
            return false;
        }
    }
    true
}

/// A field as it stands in a message. What it holds is told of one that has a length; of a group, none is.
struct Field<'a> {
    number: u64,
    kind: u64,
    inside: &'a [u8],
}

/// Takes the next field off; `None`: it is malformed, or there is none.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<Field<'a>> {
    let tag = varint(bytes)?;
    let length = match tag & 7 {
        0 => varint(bytes).map(|_| 0)?,
        1 => 8,
        2 => varint(bytes)?,
        5 => 4,
        _ => 0,
    };
    let (inside, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(Field { number: tag >> 3, kind: tag & 7, inside })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use palisade_plugin_proto::v1::{CertificateBundle, Header, HeaderMutation, Reply, check_answer};
    use palisade_plugin_proto::v1::{CheckAnswer, HeaderMutations, check_response_response};
    use prost::Message;

    use super::*;

    /// As many changes as an answer may ask for.
    fn allow() -> CheckRequestResponse {
        (0..100).fold(CheckRequestResponse::allow(), |answer, _| {
            answer.mutate(HeaderMutation::set("a", "1")).mutate_response(HeaderMutation::set("b", "2"))
        })
    }

    #[test]
    fn all_that_may_be_said_is_modest() {
        assert!(is_modest::<CheckRequestResponse>(&allow().encode_to_vec()));
        let headers = vec![Header::new("a", "1"); 100];
        let replace = Reply { headers, ..Reply::text(200, "x".repeat(1 << 20)) };
        let replace = CheckResponseResponse {
            verdict: Some(check_response_response::Verdict::Replace(replace)),
            ..Default::default()
        };
        assert!(is_modest::<CheckResponseResponse>(&replace.encode_to_vec()));
        let answer = CheckAnswer { id: 1, answer: Some(check_answer::Answer::Request(allow())) };
        let answers = CheckBatchAnswer { answers: vec![answer; 256], taken: 1, ..Default::default() };
        assert!(is_modest::<CheckBatchAnswer>(&answers.encode_to_vec()));
        assert!(are_modest(&answers.encode_to_vec(), 256));
        let names = vec!["a.example".to_owned(); 20];
        let bundle = CertificateBundle { name: "a".to_owned(), server_names: names, ..CertificateBundle::default() };
        let update =
            WatchCertificatesResponse { bundles: vec![bundle; 10_000], ..WatchCertificatesResponse::default() };
        assert!(is_modest::<WatchCertificatesResponse>(&update.encode_to_vec()));
    }

    #[test]
    fn what_grows_when_it_is_read_is_not() {
        let nothing = vec![HeaderMutation { mutation: None }; 5000];
        let pass = HeaderMutations { headers: nothing };
        let pass =
            CheckResponseResponse { verdict: Some(check_response_response::Verdict::Pass(pass)), ..Default::default() };
        assert!(!is_modest::<CheckResponseResponse>(&pass.encode_to_vec()));
        let answers = CheckBatchAnswer { answers: vec![CheckAnswer::default(); 1 << 19], ..Default::default() };
        assert!(!is_modest::<CheckBatchAnswer>(&answers.encode_to_vec()));
        let removed = vec![String::new(); 1 << 19];
        let update = WatchCertificatesResponse { removed, ..WatchCertificatesResponse::default() };
        assert!(!is_modest::<WatchCertificatesResponse>(&update.encode_to_vec()));
        // Behind a group of a field that nobody knows.
        let hidden = [&[0xfb, 0x01, 0xfc, 0x01][..], &update.encode_to_vec()].concat();
        assert!(WatchCertificatesResponse::decode(&*hidden).is_ok());
        assert!(!is_modest::<WatchCertificatesResponse>(&hidden));
    }

    #[test]
    fn answers_are_as_many_as_calls_at_most() {
        let of = |answer: CheckAnswer, count| {
            CheckBatchAnswer { answers: vec![answer; count], taken: 1, ..Default::default() }.encode_to_vec()
        };
        let small = CheckAnswer { id: 1, ..CheckAnswer::default() };
        assert!(are_modest(&of(small.clone(), 2), 2) && are_modest(&of(small.clone(), 0), 0));
        assert!(!are_modest(&of(small.clone(), 3), 2) && !are_modest(&of(small, 1), 0));
        let nothing = vec![HeaderMutation { mutation: None }; 3 * ONE];
        let pass = check_response_response::Verdict::Pass(HeaderMutations { headers: nothing });
        let pass = CheckResponseResponse { verdict: Some(pass), ..Default::default() };
        let large = CheckAnswer { id: 1, answer: Some(check_answer::Answer::Response(pass)) };
        assert!(!are_modest(&of(large, 1), 1));
    }

    #[test]
    fn what_is_malformed_is_left_to_its_reader() {
        for malformed in [&[0x0a][..], &[0x0a, 0x05, 0x01], &[0xff; 20], &[0x0d, 1], &[0x0a, 0x01, 0x0a]] {
            assert!(is_modest::<CheckBatchAnswer>(malformed), "{malformed:?}");
            assert!(CheckBatchAnswer::decode(malformed).is_err(), "{malformed:?}");
        }
    }
}
