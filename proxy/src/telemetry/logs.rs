//! The log: one line for each event, on stderr.

use std::env;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Subscriber;
use tracing::subscriber::set_global_default;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::queue::Queue;

/// How long the last lines have to reach a log that stands still when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of this process.
static LOG: OnceLock<Queue> = OnceLock::new();

/// What is logged where nothing is said about it.
pub(crate) const DEFAULT_FILTER: &str = "info";

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A line for people; coloured on a terminal.
    Text,
    /// An object on a line, for programs.
    Json,
}

/// Reads a filter: a level (`debug`), or levels by target (`info,plugin=debug`). Nothing is the default.
pub(crate) fn parse_filter(text: &str) -> Result<String, String> {
    let text = if text.trim().is_empty() { DEFAULT_FILTER } else { text };
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            Err(format!("{error}; write a level, as in `debug`, or levels by target, as in `info,plugin=debug`"))
        }
    }
}

/// h2 warns of some of what a peer sends, each time: as often as the peer likes. A filter may name it all the same.
///
/// Who gives a filter has had it read before; an unreadable part is left out here.
fn quieted(filter: &str) -> EnvFilter {
    EnvFilter::builder().parse_lossy(format!("h2=error,{filter}"))
}

/// Sends the events of this process to stderr, without ever waiting for it. In a process that has a log already, that
/// one stays.
///
/// # Errors
///
/// When there can be no thread that writes.
pub(crate) fn init(format: Format, filter: &str) -> io::Result<()> {
    let log = Queue::new(io::stderr())?;
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let filter = quieted(filter);
    let set = match format {
        Format::Text => set_global_default(text(filter, color, log.clone())),
        Format::Json => set_global_default(json(filter, log.clone())),
    };
    // There being a log already is what the caller wants.
    if set.is_ok() {
        LOG.set(log).ok();
    }
    Ok(())
}

/// Lets what was logged reach stderr before the process ends, if it can.
pub(crate) fn settle() {
    if let Some(log) = LOG.get() {
        log.settle(LAST_LINES);
    }
}

/// Lines that were lost, since the log stood still or could not be written.
pub(super) fn lost() -> u64 {
    LOG.get().map_or(0, Queue::lost)
}

/// Lines that can't be written are lost: nothing here may take the proxy down. The library would report the loss with
/// `eprintln!`, which panics for the same reason that the line was lost.
fn text<W>(filter: EnvFilter, color: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(color)
        .with_writer(InOne(writer))
        .finish()
}

/// Sees that no text within an event looks like another event, whoever it comes from: a text's further lines are
/// indented.
#[derive(Debug)]
struct InOne<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for InOne<W> {
    type Writer = InOne<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        InOne(self.0.make_writer())
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        InOne(self.0.make_writer_for(meta))
    }
}

impl<W: io::Write> io::Write for InOne<W> {
    /// Gets a whole event at a time, with its line end.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        if text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            let mut indented = Vec::with_capacity(event.len() + 64);
            for byte in text {
                match byte {
                    b'\n' => indented.extend_from_slice(b"\n  | "),
                    b'\r' => indented.extend_from_slice(b"\\r"),
                    byte => indented.push(*byte),
                }
            }
            indented.push(b'\n');
            self.0.write_all(&indented)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// As [`text`]; the event's fields stand at the top level, beside `timestamp`, `level`, `target` and `message`.
fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(writer)
        .finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A stderr that can be read again.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// A stderr that nobody reads any more.
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn filter(text: &str) -> EnvFilter {
        EnvFilter::builder().parse(text).unwrap()
    }

    #[test]
    fn filters_are_judged_before_they_are_used() {
        assert_eq!(parse_filter(""), Ok("info".to_owned()));
        assert_eq!(parse_filter("warn,plugin=debug"), Ok("warn,plugin=debug".to_owned()));
        assert!(parse_filter("palisade=loud").unwrap_err().contains("write a level"));
    }

    #[test]
    fn an_event_is_a_line_of_text_or_an_object() {
        let log = Kept::default();
        let writer = log.clone();
        tracing::subscriber::with_default(text(filter("info"), false, move || writer.clone()), || {
            tracing::info!(target: "palisade", listener = "web", "listening");
            tracing::debug!(target: "palisade", "not shown");
        });
        assert!(log.text().ends_with("  INFO palisade: listening listener=\"web\"\n"), "{}", log.text());

        let log = Kept::default();
        let writer = log.clone();
        tracing::subscriber::with_default(json(filter("info"), move || writer.clone()), || {
            tracing::info!(target: "palisade", listener = "web", "listening");
        });
        let event: serde_json::Value = serde_json::from_str(&log.text()).unwrap();
        assert_eq!((&event["message"], &event["listener"]), (&"listening".into(), &"web".into()));
    }

    #[test]
    fn peers_write_no_lines_of_their_own_unless_they_are_asked_for() {
        for (filter, written) in [("info", false), ("debug", false), ("debug,h2=warn", true), ("h2=warn", true)] {
            let log = Kept::default();
            let writer = log.clone();
            tracing::subscriber::with_default(text(quieted(filter), false, move || writer.clone()), || {
                tracing::warn!(target: "h2::proto::ping_pong", "recv PING ack that we never sent");
            });
            assert_eq!(!log.text().is_empty(), written, "{filter}: {}", log.text());
        }
    }

    #[test]
    fn nothing_within_an_event_looks_like_another() {
        let log = Kept::default();
        let writer = log.clone();
        tracing::subscriber::with_default(text(filter("info"), false, move || writer.clone()), || {
            tracing::info!(target: "palisade", error = %"first\n2026-01-01T00:00:00Z  INFO forged\rmore", "{}", "a\nb");
        });
        let expected = "a\n  | b error=first\n  | 2026-01-01T00:00:00Z  INFO forged\\rmore\n";
        assert!(log.text().ends_with(expected), "{}", log.text());
    }

    #[test]
    fn a_log_that_nobody_reads_harms_nobody() {
        tracing::subscriber::with_default(text(filter("info"), false, || Broken), || tracing::info!("lost"));
        tracing::subscriber::with_default(json(filter("info"), || Broken), || tracing::info!("lost"));
    }

    #[test]
    fn a_second_log_leaves_the_first() {
        init(Format::Text, "off").unwrap();
        init(Format::Json, "off").unwrap();
    }
}
