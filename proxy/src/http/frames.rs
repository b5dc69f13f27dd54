//! HTTP/2 as it comes in: whether a client is amid something that must not take long, and how often it sends what
//! carries nothing.
//!
//! h2 parses the frames; this looks at their heads only (RFC 9113 section 4.1). A *glitch* is a frame that is neither a
//! request nor a part of one: PING, SETTINGS, RST_STREAM, PRIORITY, unknown ones, DATA without anything in them but
//! padding, CONTINUATION, HEADERS of a stream that has had some, windows opened by next to nothing. Each is legal, and
//! some of each are normal; without end they cost work and nothing else. Each request makes up for one, and time for the
//! rest. RST_STREAM is two: a request that is taken back has begun to cost, and makes up for nothing.

use std::time::Duration;

use tokio::time::Instant;

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// A frame's head.
const HEAD: usize = 9;

/// How long it takes until as many glitches as there may be are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// A window opened by less than this is hardly opened.
const LEAST_WINDOW: u32 = 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Reads along.
#[derive(Debug)]
pub(super) struct Frames {
    preface: usize,
    head: [u8; HEAD],
    /// How much of the head is there.
    have: usize,
    /// How long the payload is, and how much of it is to come.
    length: usize,
    left: usize,
    /// The first bytes of a WINDOW_UPDATE's payload.
    window: u32,
    /// Within HEADERS and their CONTINUATIONs.
    block: bool,
    /// The stream of the last request.
    last: u32,
    /// Frames and whole header blocks that have come.
    whole: u64,
    /// Bytes of header blocks that have come since they were forgotten.
    heads: usize,
    most: u32,
    glitches: f64,
    counted: Instant,
}

/// There were too many of them.
#[derive(Debug, thiserror::Error)]
#[error("too many HTTP/2 frames that carry nothing")]
pub(super) struct Glitches;

impl Frames {
    /// `most` glitches at a time.
    pub(super) fn new(most: u32) -> Self {
        Self {
            preface: PREFACE,
            head: [0; HEAD],
            have: 0,
            length: 0,
            left: 0,
            window: 0,
            block: false,
            last: 0,
            whole: 0,
            heads: 0,
            most,
            glitches: 0.0,
            counted: Instant::now(),
        }
    }

    /// Whether the client is amid something that is no body: a preface, a frame, the headers of a request.
    pub(super) fn is_amid(&self) -> bool {
        let payload = self.have == HEAD && self.head[3] != DATA;
        let head = self.have > 0 && self.have < HEAD;
        self.whole == 0 || self.block || payload || head
    }

    /// How many frames have come whole; headers that are cut into several count as one.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// Bytes of header blocks that have come since [`Frames::forget_heads`].
    pub(super) fn heads(&self) -> usize {
        self.heads
    }

    /// They have been looked at.
    pub(super) fn forget_heads(&mut self) {
        self.heads = 0;
    }

    /// Looks at what came.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Glitches> {
        while !bytes.is_empty() {
            if self.preface > 0 {
                let here = self.preface.min(bytes.len());
                self.preface -= here;
                bytes = &bytes[here..];
            } else if self.have < HEAD {
                let here = (HEAD - self.have).min(bytes.len());
                self.head[self.have..self.have + here].copy_from_slice(&bytes[..here]);
                self.have += here;
                bytes = &bytes[here..];
                if self.have == HEAD {
                    self.length =
                        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                    self.left = self.length;
                    self.window = 0;
                    self.glance()?;
                }
            } else {
                let here = self.left.min(bytes.len());
                // The first byte says how much at the end is nothing.
                let padded = self.head[3] == DATA && self.head[4] & PADDED != 0 && self.left == self.length;
                if padded && usize::from(bytes[0]) + 1 >= self.length && self.head[4] & END_STREAM == 0 {
                    self.glitch()?;
                }
                if matches!(self.head[3], HEADERS | CONTINUATION) {
                    self.heads += here;
                }
                if self.head[3] == WINDOW_UPDATE {
                    self.window = bytes[..here].iter().fold(self.window, |window, byte| window << 8 | u32::from(*byte));
                }
                self.left -= here;
                bytes = &bytes[here..];
            }
            if self.have == HEAD && self.left == 0 {
                self.have = 0;
                self.whole += u64::from(!self.block);
                if self.head[3] == WINDOW_UPDATE && self.window < LEAST_WINDOW {
                    self.glitch()?;
                }
            }
        }
        Ok(())
    }

    /// A frame's head is there.
    fn glance(&mut self) -> Result<(), Glitches> {
        let (kind, flags) = (self.head[3], self.head[4]);
        match kind {
            DATA if self.left > 0 || flags & END_STREAM != 0 => Ok(()),
            WINDOW_UPDATE => Ok(()),
            HEADERS => {
                self.block = flags & END_HEADERS == 0;
                let [_, _, _, _, _, stream @ ..] = self.head;
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                // Trailers, else.
                if stream <= self.last {
                    return self.glitch();
                }
                self.last = stream;
                self.glitches = (self.glitches - 1.0).max(0.0);
                Ok(())
            }
            RST_STREAM => self.glitch().and_then(|()| self.glitch()),
            CONTINUATION => {
                self.block &= flags & END_HEADERS == 0;
                self.glitch()
            }
            _ => self.glitch(),
        }
    }

    fn glitch(&mut self) -> Result<(), Glitches> {
        let now = Instant::now();
        let forgotten = (now - self.counted).as_secs_f64() / FORGET.as_secs_f64() * f64::from(self.most);
        self.counted = now;
        self.glitches = (self.glitches - forgotten).max(0.0) + 1.0;
        if self.glitches > f64::from(self.most) { Err(Glitches) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        frame_of(1, kind, flags, payload)
    }

    fn frame_of(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn begun(most: u32) -> Frames {
        let mut frames = Frames::new(most);
        assert!(frames.is_amid(), "the preface is awaited");
        frames.pass(&[0; PREFACE]).unwrap();
        assert!(frames.is_amid(), "the first frame is awaited");
        frames.pass(&frame(4, 0, &[])).unwrap();
        assert!(!frames.is_amid());
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_not_take_long() {
        let mut frames = begun(100);
        for piece in frame(HEADERS, 0, b"abc") {
            frames.pass(&[piece]).unwrap();
            assert!(frames.is_amid());
        }
        frames.pass(&frame(CONTINUATION, 0, b"d")).unwrap();
        assert!(frames.is_amid());
        frames.pass(&frame(CONTINUATION, END_HEADERS, b"e")).unwrap();
        assert!(!frames.is_amid());
        frames.pass(&frame(DATA, 0, b"body")[..11]).unwrap();
        assert!(!frames.is_amid(), "bodies have a bound of their own");
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_carry_nothing_are_counted_and_forgotten() {
        for glitch in [
            frame(6, 0, &[0; 8]),
            frame(4, 0, &[]),
            frame(2, 0, &[0; 5]),
            frame(DATA, 0, &[]),
            frame(DATA, PADDED, &[0]),
            frame(DATA, PADDED, &[5, 0, 0, 0, 0, 0]),
            frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]),
            frame(77, 0, b"?"),
        ] {
            let mut frames = begun(10);
            // The first SETTINGS was one.
            for _ in 0..9 {
                frames.pass(&glitch).unwrap();
            }
            assert!(frames.pass(&glitch).is_err(), "{glitch:?}");
            let mut frames = begun(10);
            for n in 1..=100 {
                frames.pass(&glitch).unwrap();
                frames.pass(&frame_of(2 * n + 1, HEADERS, END_HEADERS, b"abc")).unwrap();
                frames.pass(&frame(DATA, 0, b"body")).unwrap();
                frames.pass(&frame(DATA, PADDED, &[4, b'b', 0, 0, 0, 0])).unwrap();
                frames.pass(&frame(WINDOW_UPDATE, 0, &[0, 1, 0, 0])).unwrap();
            }
            let mut frames = begun(10);
            for _ in 0..100 {
                tokio::time::advance(FORGET / 10).await;
                frames.pass(&glitch).unwrap();
            }
        }
    }
    /// How many times `bytes` of each stream, from the first on, are let through.
    fn let_through(bytes: impl Fn(u32) -> Vec<u8>) -> u32 {
        let mut frames = begun(10);
        (1..1000).find(|n| frames.pass(&bytes(2 * n - 1)).is_err()).map_or(1000, |n| n - 1)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_make_up_for_glitches_unless_they_are_taken_back() {
        let request = |stream| frame_of(stream, HEADERS, END_HEADERS, b"abc");
        let reset = |stream| frame_of(stream, RST_STREAM, 0, &[0; 4]);
        assert_eq!(let_through(request), 1000);
        assert_eq!(let_through(|stream| [request(stream), request(stream)].concat()), 1000, "trailers");
        let mut frames = begun(10);
        frames.pass(&request(7)).unwrap();
        assert!((0..20).any(|_| frames.pass(&request(7)).is_err()), "one stream has no requests without end");
        let half = |stream| if stream % 4 == 1 { request(stream) } else { [request(stream), reset(stream)].concat() };
        assert_eq!(let_through(half), 1000, "every other one is taken back");
        assert!((5..12).contains(&let_through(|stream| [request(stream), reset(stream)].concat())));
    }
}
