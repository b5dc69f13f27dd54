//! MOSN's contract, `proto.Plugin/Call`, from the host's side.
//!
//! As MOSN's own agents use it: a filter is asked with the request's headers and denies with status -1; a certificate
//! loader answers JSON with `cert_pem`, `key_pem` and `ca_pem`. MOSN has no push, so certificates are asked for again
//! every [`REFRESH`].

mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use palisade_plugin_proto::mosn::plugin_client::PluginClient;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::lines::Lines;
use super::{CallError, CertificateUpdate, Client, Needs, Speaks, Subject, Verdict};

/// How often certificates are asked for.
const REFRESH: Duration = Duration::from_secs(10);

/// How long such a call may take (MOSN's agent: 1 s).
const LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Largest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// One serving instance.
#[derive(Debug)]
pub(crate) struct Mosn {
    lines: Lines,
}

impl Mosn {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines }
    }

    pub(super) fn needs(&self) -> Needs {
        Needs {
            headers: true,
            addresses: false,
            tls: false,
            peer_certificate: false,
            route: false,
            body: None,
            response: false,
        }
    }

    pub(super) fn check_request(
        &self,
        subject: &Subject<'_>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<Verdict, CallError>> + Send + use<>, CallError> {
        let message = wire::request(&subject.request.headers, &subject.request.authority)?;
        let mut plugin = client(self.lines.here());
        // Boxed: it is large, and what it is a part of is moved.
        Ok(Box::pin(async move {
            let mut call = tonic::Request::new(message);
            call.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = tokio::time::timeout_at(deadline, plugin.call(call)).await;
            wire::verdict(answer.map_err(|_| CallError::Timeout)?)
        }))
    }

    async fn load(&self) -> Result<CertificateUpdate, CallError> {
        let mut plugin = client(self.lines.first());
        let answer = tokio::time::timeout(LOAD_TIMEOUT, plugin.call(wire::empty())).await;
        wire::certificates(answer.map_err(|_| CallError::Timeout)?)
    }
}

fn client(channel: &Channel) -> PluginClient<Channel> {
    PluginClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER)
}

/// Certificates now and every [`REFRESH`]; ends with the first error.
pub(super) fn certificates(client: Arc<Client>) -> BoxStream<'static, Result<CertificateUpdate, CallError>> {
    stream::unfold((client, false), |(client, asked)| async move {
        if asked {
            tokio::time::sleep(REFRESH).await;
        }
        let Speaks::Mosn(mosn) = &client.speaks else { return None };
        let update = mosn.load().await;
        Some((update, (client, true)))
    })
    .boxed()
}
