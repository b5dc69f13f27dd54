//! A connection of which no turn reads much.
//!
//! A task gives way to others after 128 acts of I/O (`tokio::task::coop`), and a read of a socket that is full counts as
//! one. Of frames that say nothing, one after the other, that would be a megabyte at a time: all else that the same
//! thread works for would wait while they are looked at, a fraction of a second for each turn.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

/// What a task reads in a turn, and with one read more.
const TURN: usize = 16 << 10;

/// Bytes that count as an act of I/O.
const ACT: usize = TURN / 128;

/// Counts what is read by its size.
#[derive(Debug)]
pub(super) struct Paced<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        for _ in 0..(buf.filled().len() - before) / ACT {
            match coop::poll_proceed(cx) {
                Poll::Ready(act) => act.made_progress(),
                // The turn ends with the next read.
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::cell::Cell;
    use std::os::unix::net;
    use std::rc::Rc;

    use palisade_plugin_proto::socket::UnixSocket;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn whoever_sends_without_end_leaves_others_their_turns() {
        const ROOM: usize = 8 << 10;
        let (near, far) = net::UnixStream::pair().unwrap();
        let sender = std::thread::spawn(move || while io::Write::write(&mut &far, &[0; ROOM]).is_ok() {});
        near.set_nonblocking(true).unwrap();
        let mut stream = Paced(UnixSocket::new(UnixStream::from_std(near).unwrap()).unwrap());
        let read = Rc::new(Cell::new(0));
        let others = tokio::task::LocalSet::new();
        let count = Rc::clone(&read);
        let reads = others.spawn_local(async move {
            let mut room = [0; ROOM];
            loop {
                count.set(count.get() + stream.read(&mut room).await.unwrap());
            }
        });
        others
            .run_until(async {
                let mut before = 0;
                while before < 100 * TURN {
                    tokio::task::yield_now().await;
                    let turn = read.get() - before;
                    assert!(turn < TURN + ROOM, "{turn} bytes in a turn");
                    before += turn;
                }
                reads.abort();
                assert!(reads.await.unwrap_err().is_cancelled());
            })
            .await;
        sender.join().unwrap();
    }
}
