//! One message behind the other: where each head begins is known exactly, for each body is followed to its end.

use super::Fault;
use super::chunked::Chunked;
use super::head::{self, Bounds, Framing, Scan};
use crate::respond::Reason;

/// Whose messages they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Requests, from a client.
    Client,
    /// Responses, from a server.
    Server,
}

/// How much of some bytes may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    /// So many, of messages that were judged. The rest is a head that is not whole yet.
    Some(usize),
    /// So many; what comes behind them waits until it is known whether the protocol is switched.
    Held(usize),
    /// So many, and then a fault.
    Fault(usize, Fault),
}

#[derive(Debug)]
enum State {
    Head(Scan),
    Length(u64),
    Chunked(Chunked),
    /// Until the connection ends.
    Rest,
    /// A request that asks to switch protocols has passed: what follows is the next head, or no HTTP.
    Undecided,
    /// A response has passed, and no other is expected.
    Done,
    /// No HTTP any more.
    Switched,
    Faulty(Fault),
}

/// Reads along with one direction of a connection.
#[derive(Debug)]
pub(crate) struct Framer {
    side: Side,
    bounds: Bounds,
    state: State,
    /// The request that a server answers was a `HEAD`.
    headless: bool,
    /// Heads of 1xx before the response.
    interim: usize,
    /// Heads that have passed.
    heads: u64,
}

/// Interim responses before a final one.
const MOST_INTERIM: usize = 10;

impl Framer {
    pub(crate) fn new(side: Side, bounds: Bounds) -> Self {
        let state = match side {
            Side::Client => State::Head(Scan::default()),
            Side::Server => State::Done,
        };
        Self { side, bounds, state, headless: false, interim: 0, heads: 0 }
    }

    /// A request goes to the server: one response is expected. `headless`: it has no body, whatever its head says.
    pub(crate) fn expect(&mut self, headless: bool) {
        if matches!(self.state, State::Done) {
            self.state = State::Head(Scan::default());
            self.headless = headless;
            self.interim = 0;
        }
    }

    /// Whether bytes that come now begin a head, or go on with one.
    pub(crate) fn is_at_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Whether a message has passed that asks to switch protocols.
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// Whether the connection may be used for another exchange.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How many heads have passed.
    pub(crate) fn heads(&self) -> u64 {
        self.heads
    }

    /// The protocol was switched.
    pub(crate) fn switch(&mut self) {
        self.state = State::Switched;
    }

    /// The protocol was not switched: another request may come.
    pub(crate) fn go_on(&mut self) {
        if self.is_undecided() {
            self.state = State::Head(Scan::default());
        }
    }

    /// How much of `bytes` may go on. What did not has to come again, in front of what follows.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Passed {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let passed = match &mut self.state {
                State::Head(scan) => match scan.end(rest, &self.bounds) {
                    Ok(None) => return Passed::Some(at),
                    Ok(Some(length)) => self.head(&rest[..length]).map(|()| length),
                    Err(fault) => Err(fault),
                },
                State::Length(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= here as u64;
                    if *left == 0 {
                        self.state = self.after();
                    }
                    Ok(here)
                }
                State::Chunked(chunked) => {
                    let passed = chunked.pass(rest, &self.bounds);
                    if chunked.is_at_end() {
                        self.state = self.after();
                    }
                    passed
                }
                State::Rest | State::Switched => Ok(rest.len()),
                State::Undecided => return Passed::Held(at),
                State::Done if rest.is_empty() => Ok(0),
                State::Done => Err(Fault::new(Reason::UpstreamInvalid, "bytes behind the response")),
                State::Faulty(fault) => return Passed::Fault(at, *fault),
            };
            match passed {
                Ok(count) => at += count,
                Err(fault) => self.state = State::Faulty(fault),
            }
            if at == bytes.len() && !matches!(self.state, State::Faulty(_)) {
                return Passed::Some(at);
            }
        }
    }

    /// Judges a head and says what follows it.
    fn head(&mut self, head: &[u8]) -> Result<(), Fault> {
        self.state = match self.side {
            Side::Client => {
                let request = head::request(head, &self.bounds)?;
                match request.framing {
                    Framing::Unframed | Framing::Length(0) if request.upgrade => State::Undecided,
                    Framing::Unframed | Framing::Length(0) => self.after(),
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Chunked(Chunked::new()),
                }
            }
            Side::Server => {
                let response = head::response(head, &self.bounds)?;
                match (response.status, response.framing) {
                    (101, _) => State::Switched,
                    (100..=199, _) if self.interim == MOST_INTERIM => {
                        return Err(Fault::new(Reason::UpstreamInvalid, "too many interim responses"));
                    }
                    (100..=199, _) => {
                        self.interim += 1;
                        State::Head(Scan::default())
                    }
                    (204 | 304, _) | (_, Framing::Length(0)) => self.after(),
                    _ if self.headless => self.after(),
                    (_, Framing::Unframed) => State::Rest,
                    (_, Framing::Length(length)) => State::Length(length),
                    (_, Framing::Chunked) => State::Chunked(Chunked::new()),
                }
            }
        };
        self.heads += 1;
        Ok(())
    }

    /// What follows a message.
    fn after(&self) -> State {
        match self.side {
            Side::Client => State::Head(Scan::default()),
            Side::Server => State::Done,
        }
    }
}
