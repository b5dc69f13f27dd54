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
