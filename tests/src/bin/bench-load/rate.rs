//! An open loop: requests go out by the clock, whatever became of those before.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::Tally;

/// The request that is sent, and the status that its answer should have.
pub(super) struct Load {
    pub(super) port: u16,
    pub(super) head: String,
    pub(super) status: String,
}

impl Load {
    /// One connection, which sends at `first` and after each `interval` from there.
    ///
    /// A request that is due while the answer before it is awaited goes when that has come, and its time counts from
    /// when it was due: who waits in line waits too. The time of one that is sent late because this thread was woken
    /// late counts from there, since that is not the proxy's doing.
    pub(super) fn run(&self, first: Instant, interval: Duration, end: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut stream = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap());
        stream.get_ref().set_nodelay(true).unwrap();
        stream.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut due = first;
        while due < end {
            let begins = match due.checked_duration_since(Instant::now()) {
                Some(early) if !early.is_zero() => {
                    thread::sleep(early);
                    Instant::now()
                }
                _ => due,
            };
            match self.exchange(&mut stream) {
                Ok((size, right)) => {
                    tally.times.push(begins.elapsed());
                    tally.bytes += size;
                    tally.wrong += u64::from(!right);
                }
                Err(_) => {
                    tally.errors += 1;
                    break;
                }
            }
            due += interval;
        }
        tally
    }

    /// Its size in bytes, and whether it has the status.
    fn exchange(&self, stream: &mut BufReader<TcpStream>) -> std::io::Result<(u64, bool)> {
        stream.get_mut().write_all(self.head.as_bytes())?;
        let (mut size, mut length, mut right) = (0, 0, false);
        let mut line = String::new();
        loop {
            line.clear();
            let read = stream.read_line(&mut line)?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let first = size == 0;
            size += u64::try_from(read).unwrap();
            let text = line.trim_end();
            if first {
                right = text.split(' ').nth(1) == Some(&self.status);
            } else if text.is_empty() {
                break;
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let body = std::io::copy(&mut stream.take(length), &mut std::io::sink())?;
        if body != length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok((size + body, right))
    }
}
