//! gRPC's messages in the bytes of a stream, which come in pieces of any size.

use bytes::{BufMut, Bytes, BytesMut};

/// What stands before a message: a byte that says whether it is compressed, and its length.
pub const PREFIX: usize = 5;

/// Bytes that can't become a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PiecesError {
    /// No compression is spoken between the host and a plugin.
    #[error("the message is compressed")]
    Compressed,
    /// More than is taken.
    #[error("a message of {length} bytes, at most {most}")]
    TooLarge {
        /// What it says of itself, in bytes.
        length: usize,
        /// What is taken, in bytes.
        most: usize,
    },
}

/// Messages one behind the other, that come in pieces.
#[derive(Debug)]
pub struct Pieces {
    most: usize,
    /// Most messages come in one piece, which is not copied. Empty: there is nothing in `rest` either.
    first: Bytes,
    rest: BytesMut,
}

impl Pieces {
    /// For messages of at most so many bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, first: Bytes::new(), rest: BytesMut::new() }
    }

    /// Takes one piece more. Only when [`take`](Self::take) gives nothing: so it never holds more than one message, and
    /// one piece.
    pub fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.rest.put(piece);
        }
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// The next message, once it is whole.
    ///
    /// # Errors
    ///
    /// What can't become a message is refused at once, when no more than its prefix is there.
    pub fn take(&mut self) -> Result<Option<Bytes>, PiecesError> {
        let Some(length) = self.length()? else { return Ok(None) };
        if self.held() < PREFIX + length {
            return Ok(None);
        }
        if !self.rest.is_empty() {
            let mut whole = BytesMut::with_capacity(self.held());
            whole.put(std::mem::take(&mut self.first));
            whole.put(std::mem::take(&mut self.rest));
            self.first = whole.freeze();
        }
        Ok(Some(self.first.split_to(PREFIX + length).split_off(PREFIX)))
    }

    /// How long the next message is, as soon as that is there.
    fn length(&self) -> Result<Option<usize>, PiecesError> {
        let mut prefix = [0; PREFIX];
        let held = self.first.iter().chain(&self.rest);
        if prefix.iter_mut().zip(held).map(|(to, from)| *to = *from).count() < PREFIX {
            return Ok(None);
        }
        let [compressed, length @ ..] = prefix;
        if compressed != 0 {
            return Err(PiecesError::Compressed);
        }
        let length = u32::from_be_bytes(length) as usize;
        match length > self.most {
            true => Err(PiecesError::TooLarge { length, most: self.most }),
            false => Ok(Some(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gathered(pieces: impl Iterator<Item = Bytes>, most: usize) -> Result<(Vec<Bytes>, usize), PiecesError> {
        let mut held = Pieces::new(most);
        let mut messages = Vec::new();
        for piece in pieces {
            held.push(piece);
            while let Some(message) = held.take()? {
                messages.push(message);
            }
            assert!(held.held() < PREFIX + most);
        }
        Ok((messages, held.held()))
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            parts in proptest::collection::vec(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                (0_u8..20, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(length, message)| {
                    [&[0, 0, 0, 0, length][..], &message].concat()
                }),
                proptest::collection::vec(any::<u8>(), 0..16).prop_map(|message| {
                    [&[0, 0, 0, 0, message.len().to_le_bytes()[0]][..], &message].concat()
                }),
            ], 0..4),
            cuts in proptest::collection::vec(0_usize..160, 0..8),
        ) {
            let (most, bytes) = (15, parts.concat());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| Bytes::copy_from_slice(&bytes[cut[0]..cut[1]]));
            let mut expected = Vec::new();
            let mut rest = &bytes[..];
            let refused = loop {
                match rest {
                    [0, 0, 0, 0, length, behind @ ..] if usize::from(*length) <= most => {
                        let Some((message, behind)) = behind.split_at_checked((*length).into()) else { break false };
                        expected.push(Bytes::copy_from_slice(message));
                        rest = behind;
                    }
                    [_, _, _, _, _, ..] => break true,
                    _ => break false,
                }
            };
            let gathered = gathered(pieces, most);
            prop_assert_eq!(gathered.is_err(), refused);
            if let Ok(gathered) = gathered {
                prop_assert_eq!(gathered, (expected, rest.len()));
            }
        }
    }

    #[test]
    fn what_can_not_become_a_message_is_said() {
        let refused = |bytes: &'static [u8]| gathered([Bytes::from_static(bytes)].into_iter(), 15).err();
        let too_large = |length| Some(PiecesError::TooLarge { length, most: 15 });
        assert_eq!(refused(&[1, 0, 0, 0, 0]), Some(PiecesError::Compressed));
        assert_eq!(refused(&[0, 0, 0, 0, 16]), too_large(16));
        assert_eq!(refused(&[0, 255, 255, 255, 255]), too_large(0xffff_ffff));
    }
}
