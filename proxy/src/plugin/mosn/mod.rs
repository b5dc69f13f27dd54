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
use http::Uri;
use palisade_supervisor::Connector;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::grpc::{Line, Rpc};
use super::{CallError, CertificateUpdate, Client, Needs, Speaks, Subject, Verdict, lines};
use crate::workers::PerWorker;

/// How often certificates are asked for.
const REFRESH: Duration = Duration::from_secs(10);

/// How long such a call may take (MOSN's agent: 1 s).
const LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Largest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

static CALL: Rpc = Rpc::new(|| Uri::from_static("http://localhost/proto.Plugin/Call"));

/// One serving instance.
#[derive(Debug)]
pub(crate) struct Mosn {
    lines: PerWorker<Line>,
}

impl Mosn {
    pub(super) async fn attach(first: Channel, connector: &Connector, workers: &[Handle]) -> Self {
        Self { lines: lines::open(Line::Shared(first), workers, || Line::open(connector.clone())).await }
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
        let answer = self.lines.here().call(&CALL, message, MAX_ANSWER, deadline);
        // Boxed: every request has room for what is asked about it, whatever asks.
        Ok(Box::pin(async move { wire::verdict(answer.await?) }))
    }

    async fn load(&self) -> Result<CertificateUpdate, CallError> {
        let deadline = Instant::now() + LOAD_TIMEOUT;
        wire::certificates(self.lines.rest().call(&CALL, wire::empty(), MAX_ANSWER, deadline).await?)
    }
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
