//! Lines on their way to the log: a bounded queue, and one thread that writes.
//!
//! Whoever logs never waits for the log. Where it stands still, as a pipe that nobody reads, or fails, as a full disk,
//! lines are lost and counted; once it takes lines again, it is told how many.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that wait to be written; a line more is lost. About a second of a log that scrolls by too fast to be read.
const MOST_BYTES: usize = 1 << 20;

/// Between attempts to write to what would block: who handed us this stderr has made it so for itself.
const PAUSE: Duration = Duration::from_millis(20);

/// A log, for all who write into it.
#[derive(Debug, Clone)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// All that came has been written, or lost.
    settled: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The thread has taken a line and not come back for another one.
    writing: bool,
    /// Lost since it was told last.
    untold: u64,
}

impl Queue {
    /// Writes to `out` from a thread of its own, which lives as long as the process.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub(super) fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            settled: Condvar::new(),
            lost: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("palisade-log".to_owned()).spawn(move || of_thread.write_to(out))?;
        Ok(Self(shared))
    }

    /// Lines that were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits until all that waits is written or lost, at most so long.
    pub(super) fn settle(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut waiting = self.0.waiting();
        while waiting.writing || !waiting.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self.0.settled.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > MOST_BYTES {
            waiting.untold += 1;
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_owned());
        self.arrived.notify_one();
    }

    fn write_to(&self, mut out: impl Write) {
        // A line that broke off is not to be continued by the next one.
        let mut torn = false;
        loop {
            let mut line = self.next();
            if torn {
                line.insert(0, b'\n');
            }
            let done = whole(&mut out, &line);
            let mut waiting = self.waiting();
            waiting.writing = false;
            let untold = match done {
                Ok(()) => {
                    torn = false;
                    // Told when there is room for it, else it would be lost itself.
                    if waiting.lines.is_empty() { std::mem::take(&mut waiting.untold) } else { 0 }
                }
                Err(written) => {
                    torn |= written;
                    waiting.untold += 1;
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    0
                }
            };
            if waiting.lines.is_empty() {
                self.settled.notify_all();
            }
            drop(waiting);
            if untold > 0 {
                tracing::warn!(target: "palisade", lines = untold, "lines of the log were lost: it could not be written");
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes -= line.len();
                waiting.writing = true;
                return line;
            }
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes all of it. The error says whether a part was written.
fn whole(out: &mut impl Write, bytes: &[u8]) -> Result<(), bool> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(rest.len() < bytes.len()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(_) => return Err(rest.len() < bytes.len()),
        }
    }
    Ok(())
}

/// One line: each event is written in one piece.
#[derive(Debug)]
pub(super) struct Line<'a>(&'a Shared);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Takes what it is told to: so many bytes, or none.
    struct Fickle {
        room: Arc<Mutex<usize>>,
        kept: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Fickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let taken = bytes.len().min(*room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= taken;
            self.kept.send(bytes[..taken].to_vec()).unwrap();
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_and_tears_no_other() {
        let (kept, written) = mpsc::channel();
        let room = Arc::new(Mutex::new(8));
        let queue = Queue::new(Fickle { room: Arc::clone(&room), kept }).unwrap();
        for line in ["first\n", "second\n", "third\n"] {
            queue.make_writer().write_all(line.as_bytes()).unwrap();
            queue.settle(LONG);
        }
        assert_eq!(queue.lost(), 2);
        *room.lock().unwrap() = 100;
        queue.make_writer().write_all(b"fourth\n").unwrap();
        queue.settle(LONG);
        let text: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(String::from_utf8(text).unwrap(), "first\nse\nfourth\n");
    }

    /// A pipe that nobody reads.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_stands_still_holds_up_nobody_and_takes_a_bounded_room() {
        let (go_on, wait) = mpsc::channel();
        let queue = Queue::new(Stuck(wait)).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..5000 {
            queue.make_writer().write_all(&line).unwrap();
        }
        let lost = queue.lost();
        // One more is in the thread's hands.
        assert!((3950..=3952).contains(&lost), "{lost}");
        assert!(queue.0.waiting().bytes <= MOST_BYTES);
        queue.settle(Duration::from_millis(1));
        drop(go_on);
        queue.settle(LONG);
        assert_eq!((queue.0.waiting().bytes, queue.lost()), (0, lost));
    }
}
