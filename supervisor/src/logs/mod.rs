//! What plugins print, into `tracing`: bounded, escaped, with the plugin's name and the level that it meant.
//!
//! Events have the target `plugin` and the fields `plugin`, `stream`, `module` and `fields`. A plugin chooses the
//! contents of the last two and of the message, never a field's name, so it cannot forge what the host says.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep};
use tracing::{Level, debug, error, info, trace, warn};

use self::lines::{Line, Lines};
use self::parse::{Context, Record, escape, parse};
use self::rate::{Pace, Rate, Verdict};

mod lines;
mod parse;
mod rate;

pub(crate) use self::parse::escape as escape_text;

/// How many of the last lines on stderr a report shows.
const TAIL_LINES: usize = 20;

/// How much of each, in bytes.
const TAIL_LINE: usize = 1024;

/// What taking a piece of output costs beyond its bytes.
const PIECE: usize = 64;

const TRUNCATED: &str = " [truncated]";

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
    /// Standard output and error of a go-plugin after its handshake, sent over gRPC.
    RemoteStdout,
    RemoteStderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::RemoteStdout => "stdio-stdout",
            Self::RemoteStderr => "stdio-stderr",
        })
    }
}

/// The log of one process: all its streams share one allowance and one tail.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    plugin: Arc<str>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    rate: Rate,
    tail: VecDeque<Vec<u8>>,
}

/// One stream of a process.
#[derive(Debug)]
pub(crate) struct Sink {
    log: Log,
    stream: Stream,
    lines: Lines,
    context: Context,
    pace: Pace,
}

impl Log {
    pub(crate) fn new(plugin: Arc<str>) -> Self {
        let shared = Shared { rate: Rate::new(Instant::now()), tail: VecDeque::new() };
        Self { plugin, shared: Arc::new(Mutex::new(shared)) }
    }

    pub(crate) fn sink(&self, stream: Stream) -> Sink {
        Sink {
            log: self.clone(),
            stream,
            lines: Lines::default(),
            context: Context::default(),
            pace: Pace::new(Instant::now()),
        }
    }

    /// The last lines on stderr.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.lock().tail.iter().map(|line| escape(&String::from_utf8_lossy(line))).collect()
    }

    /// Reports what the rate limit swallowed and has not reported yet.
    pub(crate) fn close(&self) {
        let dropped = self.lock().rate.take_dropped();
        self.report_dropped(dropped);
    }

    fn report_dropped(&self, dropped: u64) {
        if dropped > 0 {
            warn!(target: "plugin", plugin = %self.plugin, dropped_bytes = dropped, "the plugin prints too much: output dropped");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics under this lock; even so, what it holds stays usable.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    /// Takes the next bytes of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let Self { log, stream, lines, context, .. } = self;
        // Once for all lines: in a flood they are short and many.
        let (now, mut shared) = (Instant::now(), log.lock());
        lines.feed(bytes, |line| log.line(&line, *stream, context, &mut shared, now));
    }

    /// As [`Self::feed`]; slow where more comes than anybody could want.
    pub(crate) async fn take(&mut self, bytes: &[u8]) {
        self.feed(bytes);
        // A message of nothing is work as well.
        let pause = self.pace.pause(bytes.len() + PIECE, Instant::now());
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }

    /// The stream has ended.
    pub(crate) fn finish(&mut self) {
        let Self { log, stream, lines, context, .. } = self;
        let mut shared = log.lock();
        lines.finish(|line| log.line(&line, *stream, context, &mut shared, Instant::now()));
    }

    /// Reads a stream to its end. Never stops reading before it: a plugin whose output nobody takes blocks at 64 KiB.
    pub(crate) async fn drain(mut self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.take(&buffer[..count]).await;
        }
    }
}

impl Drop for Sink {
    /// However reading ended, a last line without an end is not lost.
    fn drop(&mut self) {
        self.finish();
    }
}

impl Log {
    fn line(&self, line: &Line<'_>, stream: Stream, context: &mut Context, shared: &mut Shared, now: Instant) {
        if line.bytes.trim_ascii().is_empty() {
            return;
        }
        if matches!(stream, Stream::Stderr | Stream::RemoteStderr) {
            shared.remember(line);
        }
        match shared.rate.take(line.bytes.len(), now) {
            Verdict::Drop => return,
            Verdict::PassAfter { dropped } => self.report_dropped(dropped),
            Verdict::Pass => {}
        }
        let mut record = parse(line.bytes, context);
        if line.truncated {
            record.message.push_str(TRUNCATED);
        }
        self.emit(&record, stream);
    }

    fn emit(&self, record: &Record, stream: Stream) {
        // The level of an event is part of its call site, so there is one for each.
        macro_rules! emit {
            ($level:ident) => {
                $level!(
                    target: "plugin",
                    plugin = %self.plugin,
                    stream = %stream,
                    module = record.module.as_deref(),
                    fields = (!record.fields.is_empty()).then_some(record.fields.as_str()),
                    "{}",
                    record.message
                )
            };
        }
        match record.level {
            Level::ERROR => emit!(error),
            Level::WARN => emit!(warn),
            Level::INFO => emit!(info),
            Level::DEBUG => emit!(debug),
            Level::TRACE => emit!(trace),
        }
    }
}

impl Shared {
    /// Keeps the beginning of a line as it is; it is made presentable when somebody looks.
    fn remember(&mut self, line: &Line<'_>) {
        let oldest = if self.tail.len() == TAIL_LINES { self.tail.pop_front() } else { None };
        let mut kept = oldest.unwrap_or_default();
        kept.clear();
        let cut = line.bytes.len().min(TAIL_LINE);
        kept.extend_from_slice(&line.bytes[..cut]);
        if line.truncated || cut < line.bytes.len() {
            kept.extend_from_slice(TRUNCATED.as_bytes());
        }
        self.tail.push_back(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tail_keeps_the_last_twenty_lines_bounded_and_escaped() {
        let log = Log::new("auth".into());
        let mut sink = log.sink(Stream::Stderr);
        for line in 0..30 {
            sink.feed(format!("line {line}\n").as_bytes());
        }
        sink.feed(&[b"\x1b[31m".as_slice(), &[b'y'; 5000]].concat());
        drop(sink);
        let tail = log.tail();
        assert_eq!(tail.len(), 20);
        assert_eq!(tail[0], "line 11");
        assert!(tail[19].starts_with(r"\u{1b}[31myyy") && tail[19].ends_with(TRUNCATED), "{}", tail[19]);
        log.sink(Stream::Stdout).feed(b"no stderr\n");
        assert_eq!(log.tail(), tail);
    }

    #[tokio::test]
    async fn draining_ends_with_the_stream() {
        let log = Log::new("auth".into());
        log.sink(Stream::Stderr).drain(&b"a\nb"[..]).await;
        assert_eq!(log.tail(), ["a", "b"]);
    }
}
