//! Two connections that have switched protocols, joined: WebSocket and the like.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

/// How long either side may take to give up its connection once the response's head is there.
const SWITCH: Duration = Duration::from_secs(10);

/// Carries bytes both ways until both sides have ended, one breaks, or `end` is cancelled.
pub(crate) async fn run(client: OnUpgrade, upstream: OnUpgrade, end: CancellationToken, request_id: &str) {
    let switched = tokio::time::timeout(SWITCH, async { tokio::try_join!(client, upstream) });
    let (client, upstream) = match switched.await {
        Ok(Ok(switched)) => switched,
        Ok(Err(error)) => {
            tracing::debug!(target: "palisade::http", request_id, %error, "the connection did not switch protocols");
            return;
        }
        Err(_) => {
            tracing::debug!(target: "palisade::http", request_id, "the connection did not switch protocols in time");
            return;
        }
    };
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut upstream) => match copied {
            Ok((sent, received)) => {
                tracing::debug!(target: "palisade::http", request_id, sent, received, "tunnel closed");
            }
            Err(error) => tracing::debug!(target: "palisade::http", request_id, %error, "tunnel broke"),
        },
        () = end.cancelled() => {}
    }
}
