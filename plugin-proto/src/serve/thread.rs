//! A thread that works for one socket, and waits for nothing but it and whoever wakes the thread.
//!
//! With a runtime, a message that comes to an idle process wakes the thread that watches all sockets, which hands the
//! socket's task to itself or to another one and wakes a third to watch in its place. Here a message costs what has to
//! be: poll(2), a read, a write.

use std::cell::Cell;
use std::io::{self, IoSlice, PipeReader, PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often the socket is read in a row before the thread looks up: whoever sends without end must not keep it from
/// everything else.
const READS: u8 = 16;

/// Waits for a socket, on the thread that made it.
pub(super) struct Waiting {
    socket: Rc<Shared>,
    bell: Arc<Bell>,
    /// Holds a byte if the bell was rung while the thread slept.
    rung: PipeReader,
}

/// The socket for a future that is worked on by [`Waiting::block_on`].
pub(super) struct Socket(Rc<Shared>);

struct Shared {
    stream: UnixStream,
    /// How often it is read before poll(2) is asked. 0: it has been emptied.
    reads: Cell<u8>,
    /// It takes no more bytes for now.
    full: Cell<bool>,
}

impl Waiting {
    /// By a pipe over which the thread is woken.
    pub(super) fn on(stream: UnixStream, (rung, rope): (PipeReader, PipeWriter)) -> io::Result<(Self, Socket)> {
        stream.set_nonblocking(true)?;
        let socket = Rc::new(Shared { stream, reads: Cell::new(READS), full: Cell::new(false) });
        let bell = Arc::new(Bell { state: AtomicU8::new(AWAKE), rope });
        Ok((Self { socket: Rc::clone(&socket), bell, rung }, Socket(socket)))
    }

    /// Works on a future to its end. `None`: there was none by then.
    pub(super) fn block_on<T>(&mut self, work: impl Future<Output = T>, until: Option<Instant>) -> Option<T> {
        let mut work = pin!(work);
        let waker = Waker::from(Arc::clone(&self.bell));
        let mut cx = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = work.as_mut().poll(&mut cx) {
                return Some(output);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            if self.bell.lie_down() {
                let waited = self.wait(left);
                self.bell.get_up(&self.rung);
                waited.ok()?;
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, most: Option<Duration>) -> Result<(), Errno> {
        let Shared { stream, reads, full } = &*self.socket;
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, reads.get() == 0);
        wanted.set(PollFlags::POLLOUT, full.get());
        let mut fds = [PollFd::new(self.rung.as_fd(), PollFlags::POLLIN), PollFd::new(stream.as_fd(), wanted)];
        // That it broke is told whatever is wanted; but nobody may be about to look.
        let asked = if wanted.is_empty() { &mut fds[..1] } else { &mut fds };
        let timeout = most.map_or(PollTimeout::NONE, |most| {
            // Not a moment too early, and not never.
            PollTimeout::try_from(most + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(asked, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        let happened = fds[1].revents().unwrap_or(PollFlags::empty());
        let broken = PollFlags::POLLHUP | PollFlags::POLLERR;
        if happened.intersects(PollFlags::POLLIN | broken) {
            reads.set(READS);
        }
        if happened.intersects(PollFlags::POLLOUT | broken) {
            full.set(false);
        }
        Ok(())
    }
}

/// The thread works.
const AWAKE: u8 = 0;
/// It waits, or is about to.
const ASLEEP: u8 = 1;
/// It was woken since it last looked.
const RUNG: u8 = 2;

/// Wakes the thread: with a byte through a pipe, and with none where it is awake.
struct Bell {
    state: AtomicU8,
    rope: PipeWriter,
}

impl Bell {
    /// Whether the thread may sleep: nobody has woken it since it got up.
    fn lie_down(&self) -> bool {
        let free = self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !free {
            // Somebody may have rung once more since: a store alone would not see what was done before that.
            self.state.swap(AWAKE, Ordering::AcqRel);
        }
        free
    }

    fn get_up(&self, mut rung: &PipeReader) {
        if self.state.swap(AWAKE, Ordering::AcqRel) == RUNG {
            // It is there, or about to be.
            rung.read_exact(&mut [0]).ok();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            // One byte at a time, so there is room; and where the thread has ended, nobody to be woken.
            (&self.rope).write_all(&[0]).ok();
        }
    }
}

impl Shared {
    fn write(&self, write: impl Fn(&UnixStream) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        while !self.full.get() {
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.full.set(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return Poll::Ready(written),
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Shared { stream, reads, .. } = &*self.0;
        while reads.get() > 0 {
            let room = buf.initialize_unfilled();
            match (&*stream).read(room) {
                Ok(read) => {
                    // There is no more for now, so the next read need not be tried.
                    reads.set(if read < room.len() { 0 } else { reads.get() - 1 });
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => reads.set(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.write(|mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.write(|mut stream| stream.write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.stream.shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::future::{pending, poll_fn};
    use std::thread;

    use futures_util::future::join;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn soon() -> Option<Instant> {
        Some(Instant::now() + SOON)
    }

    #[test]
    fn whoever_wakes_it_is_heard_each_time() {
        const TURNS: usize = 20_000;
        let (mut waiting, _socket) = Waiting::on(UnixStream::pair().unwrap().0, io::pipe().unwrap()).unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let sending = thread::spawn(move || {
            for turn in 0..TURNS {
                sender.blocking_send(turn).unwrap();
            }
        });
        for turn in 0..TURNS {
            assert_eq!(waiting.block_on(receiver.recv(), soon()), Some(Some(turn)));
        }
        sending.join().unwrap();
        // Each ring was heard once: nothing is left in the pipe, which would keep it awake for ever.
        let mut polled = 0;
        let counting = poll_fn(|_| {
            polled += 1;
            Poll::<()>::Pending
        });
        assert_eq!(waiting.block_on(counting, Some(Instant::now() + Duration::from_millis(20))), None);
        assert!(polled < 10, "{polled}");
    }

    #[test]
    fn it_waits_no_longer_than_it_may() {
        let (mut waiting, _socket) = Waiting::on(UnixStream::pair().unwrap().0, io::pipe().unwrap()).unwrap();
        let until = Instant::now() + Duration::from_millis(5);
        assert_eq!(waiting.block_on(pending::<()>(), Some(until)), None);
        assert!(Instant::now() >= until);
        assert_eq!(waiting.block_on(pending::<()>(), Some(until)), None);
    }

    /// More in both directions than fits, and both ends at once.
    #[test]
    fn everything_arrives_in_both_directions() {
        const SIZE: usize = 8 << 20;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let both = |stream: UnixStream, seed: u8| {
            move || {
                let (mut waiting, socket) = Waiting::on(stream, io::pipe().unwrap()).unwrap();
                let (mut reading, mut writing) = tokio::io::split(socket);
                let sending = async {
                    let sent: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8 ^ seed).collect();
                    for part in sent.chunks(77_777) {
                        writing.write_all(part).await.unwrap();
                    }
                    writing.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let receiving = reading.read_to_end(&mut got);
                let (read, ()) = waiting.block_on(join(receiving, sending), soon()).unwrap();
                assert_eq!(read.unwrap(), SIZE);
                assert!(got.iter().enumerate().all(|(index, byte)| *byte == (index % 251) as u8 ^ seed ^ 1));
            }
        };
        let other = thread::spawn(both(theirs, 1));
        both(ours, 0)();
        other.join().unwrap();
    }

    /// A flood does not keep it from what else there is to do.
    #[test]
    fn it_looks_up_while_there_is_always_more_to_read() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = thread::spawn(move || while theirs.write_all(&[0; 4096]).is_ok() {});
        let (mut waiting, mut socket) = Waiting::on(ours, io::pipe().unwrap()).unwrap();
        let (mut turns, mut read) = (0, 0);
        let reading = poll_fn(|cx| {
            turns += 1;
            let mut byte = [0];
            while let Poll::Ready(more) = Pin::new(&mut socket).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
                more.unwrap();
                read += 1;
            }
            if turns == 10 { Poll::Ready(()) } else { Poll::Pending }
        });
        waiting.block_on(reading, soon()).unwrap();
        assert!((9..=10).contains(&(read / u32::from(READS))), "{read}");
        drop((waiting, socket));
        flood.join().unwrap();
    }

    #[test]
    fn the_end_and_a_break_are_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut waiting, mut socket) = Waiting::on(ours, io::pipe().unwrap()).unwrap();
        let leaving = thread::spawn(move || drop(theirs));
        assert_eq!(waiting.block_on(socket.read(&mut [0]), soon()).unwrap().unwrap(), 0);
        leaving.join().unwrap();
        let written = waiting.block_on(socket.write(b"x"), soon()).unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        // One that waits to write, too.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut waiting, mut socket) = Waiting::on(ours, io::pipe().unwrap()).unwrap();
        let mut filling = Box::pin(async move { while socket.write(&[b'x'; 9_000]).await.is_ok() {} });
        assert_eq!(waiting.block_on(&mut filling, Some(Instant::now() + Duration::from_millis(20))), None);
        drop(theirs);
        waiting.block_on(filling, soon()).unwrap();
    }
}
