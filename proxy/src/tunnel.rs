//! Two connections that have switched protocols, joined: WebSocket and the like.

use std::io;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::http::{BoxStream, Switched};

/// Carries bytes both ways until both sides have ended, one breaks, or `end` is cancelled. `early` came from the client
/// before.
pub(crate) async fn run(mut client: BoxStream, early: Bytes, switched: Switched, end: &CancellationToken) {
    let Switched { io: mut upstream, rest, held } = switched;
    let carried = async {
        client.write_all(&rest).await?;
        upstream.write_all(&early).await?;
        tokio::io::copy_bidirectional(&mut client, &mut upstream).await
    };
    let carried: Option<io::Result<(u64, u64)>> = end.run_until_cancelled(carried).await;
    match carried {
        Some(Ok((sent, received))) => tracing::debug!(target: "palisade::http", sent, received, "tunnel closed"),
        Some(Err(error)) => tracing::debug!(target: "palisade::http", %error, "tunnel broke"),
        None => {}
    }
    drop(held);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_came_early_goes_first_and_what_is_held_is_held_to_the_end() {
        let (mut client, near) = duplex(64);
        let (far, mut upstream) = duplex(64);
        let held = CancellationToken::new();
        let guard = Box::new(held.clone().drop_guard());
        let switched = Switched { io: Box::new(far), rest: Bytes::from_static(b"from the upstream "), held: guard };
        client.write_all(b"and more").await.unwrap();
        upstream.write_all(b"and more").await.unwrap();
        let end = CancellationToken::new();
        let talk = async {
            let mut seen = [0; 26];
            client.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"from the upstream and more");
            client.shutdown().await.unwrap();
            let mut seen = Vec::new();
            upstream.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, b"from the client and more");
            // The other direction is still there.
            upstream.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            assert!(!held.is_cancelled());
            drop(upstream);
        };
        tokio::join!(run(Box::new(near), Bytes::from_static(b"from the client "), switched, &end), talk);
        assert!(held.is_cancelled());
    }
}
