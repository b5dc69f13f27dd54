//! The end of a connection whose client may still be sending.
//!
//! Closing a socket that holds unread bytes, or gets more, makes the kernel reset the connection: a client that still
//! uploads, or that acknowledges a response over HTTP/2, then loses the end of a response that it has not read yet (RFC
//! 9112 section 9.6). So our side ends first, and the client has some time to end its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// How long a client may send on.
const WHOLE: Duration = Duration::from_secs(10);

/// How long it may be silent.
const SILENT: Duration = Duration::from_secs(2);

/// A connection that comes back when it is dropped, unless its client has ended it.
pub(super) struct Lent<I> {
    /// `None` only while it is dropped.
    io: Option<I>,
    back: Option<oneshot::Sender<I>>,
}

/// Where a [`Lent`] connection comes back to.
pub(super) struct Back<I>(oneshot::Receiver<I>);

/// Lends `io`.
pub(super) fn lend<I>(io: I) -> (Lent<I>, Back<I>) {
    let (back, receiver) = oneshot::channel();
    (Lent { io: Some(io), back: Some(back) }, Back(receiver))
}

/// Ends our side of a connection, and reads until the client has ended its own, or time is up. What comes is thrown
/// away.
///
/// Cancel safe: dropping the future closes the connection.
pub(super) async fn linger<I: AsyncRead + AsyncWrite + Unpin>(mut io: I) {
    let end = Instant::now() + WHOLE;
    if !matches!(timeout_at(end, io.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    // Not in the future: each connection would hold it.
    let mut ignored = vec![0; 4096];
    while let Ok(Ok(1..)) = timeout_at(end.min(Instant::now() + SILENT), io.read(&mut ignored)).await {}
}

impl<I: AsyncRead + AsyncWrite + Unpin> Back<I> {
    /// [`linger`]s, if the connection has come back.
    pub(super) async fn linger(mut self) {
        let Ok(io) = self.0.try_recv() else { return };
        linger(io).await;
    }
}

impl<I> Lent<I> {
    fn io(&mut self) -> io::Result<Pin<&mut I>>
    where
        I: Unpin,
    {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<I> Drop for Lent<I> {
    fn drop(&mut self) {
        if let (Some(io), Some(back)) = (self.io.take(), self.back.take()) {
            // Nobody waits for a connection that was cut.
            back.send(io).ok();
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lent<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = self.io()?.poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) if buf.filled().len() > before || buf.remaining() == 0 => {}
            Poll::Pending => {}
            // Ended, or broken.
            Poll::Ready(_) => self.back = None,
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Lent<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::duplex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_that_are_silent_are_left_soon_and_those_that_send_on_later() {
        let (client, server) = duplex(64);
        let (lent, back) = lend(server);
        drop(lent);
        let started = Instant::now();
        back.linger().await;
        assert_eq!(started.elapsed().as_secs(), SILENT.as_secs());
        drop(client);

        let (mut client, server) = duplex(64);
        let (lent, back) = lend(server);
        drop(lent);
        let sender = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(SILENT / 2).await;
            }
        });
        let started = Instant::now();
        back.linger().await;
        assert_eq!(started.elapsed().as_secs(), WHOLE.as_secs());
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn what_the_client_ended_or_somebody_still_uses_does_not_come_back() {
        let (client, server) = duplex(64);
        let (mut lent, back) = lend(server);
        drop(client);
        assert_eq!(lent.read(&mut [0; 8]).await.unwrap(), 0);
        drop(lent);
        back.linger().await;

        let (_client, server) = duplex(64);
        let (_lent, back) = lend(server);
        back.linger().await;
    }
}
