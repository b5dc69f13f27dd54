//! An open loop: requests go out by the clock, whatever became of those before.
//!
//! One thread for all connections: with one for each, waking them took more of the core than the upstream and the plugin
//! that share it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::Tally;

/// Behind the last request, for the answers that are still awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// The request that is sent, and the status that its answer should have.
pub(super) struct Load {
    pub(super) port: u16,
    pub(super) head: String,
    pub(super) status: String,
}

struct Connection {
    stream: TcpStream,
    /// Of the next request.
    due: Instant,
    /// Since when the one that is awaited counts.
    begun: Option<Instant>,
    /// What has come of its answer.
    answer: Vec<u8>,
}

impl Load {
    /// So many connections, each of which sends after each `interval`, evenly spread, from `start` on.
    ///
    /// A request that is due while the answer before it is awaited goes when that has come, and its time counts from
    /// when it was due: who waits in line waits too. The time of one that is sent late because this thread was woken
    /// late counts from there, since that is not the proxy's doing.
    pub(super) fn run(&self, connections: u32, start: Instant, interval: Duration, end: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut open: Vec<_> =
            (0..connections).map(|index| self.connect(start + interval * index / connections)).collect();
        loop {
            let now = Instant::now();
            for connection in open.iter_mut().filter(|it| it.begun.is_none() && it.due <= now && it.due < end) {
                self.send(connection, now, interval, &mut tally);
            }
            let next = open.iter().filter(|it| it.begun.is_none()).map(|it| it.due).filter(|due| *due < end).min();
            if next.is_none() && (open.iter().all(|it| it.begun.is_none()) || now > end + PATIENCE) {
                break;
            }
            let wake = next.unwrap_or(end + PATIENCE).saturating_duration_since(Instant::now());
            let mut waiting: Vec<_> = open.iter_mut().filter(|it| it.begun.is_some()).collect();
            let mut polled: Vec<_> =
                waiting.iter().map(|it| PollFd::new(it.stream.as_fd(), PollFlags::POLLIN)).collect();
            match ppoll(&mut polled, Some(TimeSpec::from_duration(wake)), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => panic!("{error}"),
            }
            let ready: Vec<bool> = polled.iter().map(|it| it.any().unwrap_or(false)).collect();
            drop(polled);
            for (connection, _) in waiting.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
                self.receive(connection, &mut tally);
                // Late already: it has waited for the one before it.
                if connection.begun.is_none() && connection.due < Instant::now().min(end) {
                    let due = connection.due;
                    self.send(connection, due, interval, &mut tally);
                }
            }
        }
        tally.errors += open.iter().filter(|it| it.begun.is_some()).count() as u64;
        tally
    }

    fn connect(&self, due: Instant) -> Connection {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Connection { stream, due, begun: None, answer: Vec::new() }
    }

    fn send(&self, connection: &mut Connection, begins: Instant, interval: Duration, tally: &mut Tally) {
        connection.due += interval;
        match connection.stream.write_all(self.head.as_bytes()) {
            Ok(()) => connection.begun = Some(begins),
            Err(_) => self.renew(connection, tally),
        }
    }

    fn receive(&self, connection: &mut Connection, tally: &mut Tally) {
        let Some(begun) = connection.begun else { return };
        let mut buffer = [0; 16 << 10];
        match connection.stream.read(&mut buffer) {
            Ok(read @ 1..) => connection.answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => return self.renew(connection, tally),
        }
        let Some(size) = size_of(&connection.answer) else { return };
        if connection.answer.len() < size {
            return;
        }
        let line = connection.answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let right = line.split(|byte| *byte == b' ').nth(1) == Some(self.status.as_bytes());
        // What nobody has asked for is wrong, too.
        tally.wrong += u64::from(!right || connection.answer.len() > size);
        tally.times.push(begun.elapsed());
        tally.bytes += size as u64;
        connection.answer.clear();
        connection.begun = None;
    }

    /// After an error.
    fn renew(&self, connection: &mut Connection, tally: &mut Tally) {
        tally.errors += 1;
        *connection = self.connect(connection.due);
    }
}

/// Of an answer whose head is there: how many bytes it has in all.
fn size_of(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let length = head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    Some(end + length.unwrap_or(0))
}
