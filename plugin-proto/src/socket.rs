//! A connected unix socket that is woken for what it waits for, and for nothing else.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Where the host and a plugin talk.
///
/// Each time that the other end of a unix socket has read something, the kernel wakes whoever has asked when it can be
/// written to again. Tokio's own stream asks for that at all times, so that a call and its answer wake both processes
/// twice as often as they have something to do. This one asks while a write does not fit, and not before.
#[derive(Debug)]
pub struct UnixSocket {
    /// `None`: it could not be registered, and is of no use any more.
    registered: Option<AsyncFd<net::UnixStream>>,
    /// Whether it is registered for writing, too.
    waits_to_write: bool,
    /// Whoever waits to read; registering anew would forget it.
    reader: Option<Waker>,
}

impl UnixSocket {
    /// Takes a connection over; in the runtime that will work for it.
    ///
    /// # Errors
    ///
    /// Where epoll(7) takes no more.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let stream = register(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { registered: Some(stream), waits_to_write: false, reader: None })
    }

    fn registered(&self) -> io::Result<&AsyncFd<net::UnixStream>> {
        self.registered.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn wait_to_write(&mut self, waits: bool) -> io::Result<()> {
        let stream = self.registered.take().ok_or(io::ErrorKind::NotConnected)?.into_inner();
        let interest = if waits { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.registered = Some(register(stream, interest)?);
        self.waits_to_write = waits;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&net::UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.waits_to_write {
                let mut guard = ready!(self.registered()?.poll_write_ready(cx))?;
                if let Ok(written) = guard.try_io(|stream| write(stream.get_ref())) {
                    self.wait_to_write(false)?;
                    return Poll::Ready(written);
                }
            } else {
                match write(self.registered()?.get_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_to_write(true)?,
                    written => return Poll::Ready(written),
                }
            }
        }
    }
}

#[allow(unsafe_code, reason = "Tokio has no safe way for what owns its descriptor")]
fn register(stream: net::UnixStream, interest: Interest) -> io::Result<AsyncFd<net::UnixStream>> {
    // SAFETY: the stream owns its descriptor, which `AsyncFd` gives up before it lets go of the stream; nothing here
    // closes it or puts another in its place.
    Ok(unsafe { AsyncFd::register_with_interest(stream, interest) }?)
}

impl AsyncRead for UnixSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(ready) = this.registered()?.poll_read_ready(cx) else {
                this.reader.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
                return Poll::Pending;
            };
            let mut ready = ready?;
            let room = buf.initialize_unfilled();
            match ready.try_io(|stream| stream.get_ref().read(room)) {
                Ok(Ok(read)) => {
                    // There is no more for now, so the next read need not be tried.
                    if 0 < read && read < room.len() {
                        ready.clear_ready();
                    }
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for UnixSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_written(cx, |mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_written(cx, |mut stream| stream.write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.registered()?.get_ref().shutdown(Shutdown::Write))
    }
}

/// What a plugin's server may know of a connection: nothing that it would need.
impl tonic::transport::server::Connected for UnixSocket {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;
    use std::os::fd::AsRawFd;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (UnixSocket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (UnixSocket::new(ours).unwrap(), theirs)
    }

    /// Whether the kernel tells when it can be written to; EPOLLOUT is 4.
    fn is_told_of_room(socket: &UnixSocket) -> bool {
        let wanted = format!("tfd:{:>9} events:", socket.registered().unwrap().as_raw_fd());
        let infos = fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(|info| {
            fs::read_to_string(info.unwrap().path()).ok()?.lines().find_map(|line| {
                let events = line.strip_prefix(&wanted)?.split_whitespace().next()?.to_owned();
                Some(u32::from_str_radix(&events, 16).unwrap() & 4 != 0)
            })
        });
        infos.last().expect("it is registered")
    }

    #[tokio::test]
    async fn only_a_write_that_does_not_fit_asks_for_room() {
        let (mut ours, mut theirs) = pair();
        assert!(!is_told_of_room(&ours));
        ours.write_all(b"hello").await.unwrap();
        assert!(!is_told_of_room(&ours));
        let mut sent = 5;
        while let Some(written) = ours.write(&[b'x'; 9_000]).now_or_never() {
            sent += written.unwrap();
        }
        assert!(is_told_of_room(&ours));
        let (mut read, mut buffer) = (0, vec![0; 64 << 10]);
        while read < sent {
            read += theirs.read(&mut buffer).await.unwrap();
        }
        ours.write_all(b"more").await.unwrap();
        assert!(!is_told_of_room(&ours));
        assert_eq!(theirs.read(&mut buffer).await.unwrap(), 4);
    }

    /// More in both directions than fits, by one task and by two: whoever waits to read is not forgotten while the other
    /// half waits to write.
    #[tokio::test]
    async fn everything_arrives_in_both_directions() {
        const SIZE: usize = 8 << 20;
        let (ours, theirs) = pair();
        let both = async |stream: Box<dyn ReadWrite>, seed: u8| {
            let (mut reading, mut writing) = tokio::io::split(stream);
            let sending = tokio::spawn(async move {
                let sent: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8 ^ seed).collect();
                for part in sent.chunks(77_777) {
                    writing.write_all(part).await.unwrap();
                }
                writing.shutdown().await.unwrap();
            });
            let mut got = Vec::new();
            reading.read_to_end(&mut got).await.unwrap();
            sending.await.unwrap();
            assert_eq!(got.len(), SIZE);
            assert!(got.iter().enumerate().all(|(index, byte)| *byte == (index % 251) as u8 ^ seed ^ 1));
        };
        let all = async { tokio::join!(both(Box::new(ours), 0), both(Box::new(theirs), 1)) };
        tokio::time::timeout(std::time::Duration::from_secs(60), all).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_to_read_does_so_beside_one_who_waits_to_write() {
        let (ours, mut theirs) = pair();
        let (mut reading, mut writing) = tokio::io::split(ours);
        let read = tokio::spawn(async move { reading.read_u8().await });
        // It waits from here on.
        tokio::task::yield_now().await;
        while let Some(written) = writing.write(&[b'x'; 9_000]).now_or_never() {
            written.unwrap();
        }
        theirs.write_all(b"y").await.unwrap();
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), read).await;
        assert_eq!(read.unwrap().unwrap().unwrap(), b'y');
    }

    trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

    #[tokio::test]
    async fn the_end_and_a_break_are_seen() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (mut ours, theirs) = pair();
        while let Some(written) = ours.write(&[b'x'; 9_000]).now_or_never() {
            written.unwrap();
        }
        let blocked = tokio::spawn(async move { ours.write(b"x").await });
        tokio::task::yield_now().await;
        drop(theirs);
        assert_eq!(blocked.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
