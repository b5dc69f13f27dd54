//! The native contract, `palisade.plugin.v1`, from the host's side.

mod batches;
pub(in crate::plugin) mod codec;
mod encode;
mod generation;
mod shape;
mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) use self::batches::judge_answers;
#[cfg(any(test, fuzzing))]
pub(crate) use self::wire::judge_frames;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::BoxStream;
use http::Uri;
use palisade_plugin_proto::v1::lifecycle_client::LifecycleClient;
use palisade_plugin_proto::v1::{
    self, CheckRequestResponse, CheckResponseResponse, ConfigureRequest, DescribeRequest, WatchCertificatesRequest,
    WatchCertificatesResponse, check_answer,
};
use palisade_supervisor::{Connector, answers, chain};
use prost::Message as Decoded;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use self::batches::{Batches, Bounds, Kind, MAX_CALL};
use self::codec::Encoded;
pub(in crate::plugin) use self::encode::Message;
pub(in crate::plugin) use self::generation::Generation;
use self::shape::Answer;
use super::adapter::Roles;
use super::grpc::{Line, Rpc};
use super::{CallError, CertificateUpdate, Needs, ResponseHead, ResponseVerdict, Subject, Verdict, clip, lines};
use crate::http::Request;
use crate::workers::PerWorker;

/// Largest answer of a filter: a reply of 1 MiB and its headers.
const MAX_ANSWER: usize = (1 << 20) + (128 << 10);

/// Largest message of certificates.
const MAX_CERTIFICATES: usize = 16 << 20;

/// Largest description, and list of problems in a configuration.
const MAX_DESCRIPTION: usize = 256 << 10;

static CHECK_REQUEST: Rpc = Rpc::new(|| Uri::from_static("http://localhost/palisade.plugin.v1.Filter/CheckRequest"));
static CHECK_RESPONSE: Rpc = Rpc::new(|| Uri::from_static("http://localhost/palisade.plugin.v1.Filter/CheckResponse"));
const WATCH: PathAndQuery = PathAndQuery::from_static("/palisade.plugin.v1.Certificates/Watch");

#[cfg(feature = "bench")]
pub(super) fn encoded_size(subject: &Subject<'_>) -> usize {
    encode::check_request(subject, &wire::needs(None)).len()
}

/// One serving instance.
#[derive(Debug)]
pub(crate) struct Native {
    /// That which was checked first: for everything but requests.
    first: Channel,
    streams: Streams,
    /// For what does not go in batches.
    lines: PerWorker<Line>,
    needs: Needs,
    generation: Generation,
    /// As many permits as the plugin takes calls at a time, in batches too; `None`: no limit.
    permits: Option<Arc<Semaphore>>,
}

/// How calls go in batches.
#[derive(Debug)]
enum Streams {
    /// The plugin does not take them.
    None,
    /// All workers over one stream: the plugin works on one core only, where larger batches are cheaper, or bounds how
    /// many calls it works on at a time.
    One(Box<Batches>),
    /// A stream of each worker.
    Each(PerWorker<Batches>),
}

impl Native {
    /// Asks a fresh instance what it is, and configures it. The error is for the operator.
    pub(super) async fn attach(
        (first, connector, workers): (Channel, &Connector, &[Handle]),
        roles: Roles,
        config: prost_types::Struct,
        generation: Generation,
    ) -> Result<Self, String> {
        let mut lifecycle = LifecycleClient::new(answers(first.clone())).max_decoding_message_size(MAX_DESCRIPTION);
        let host = concat!("palisade/", env!("CARGO_PKG_VERSION")).to_owned();
        let described =
            lifecycle.describe(DescribeRequest { host }).await.map_err(|status| wire::describe_failed(&status))?;
        let description = described.into_inner();
        wire::check_contracts(&description, roles)?;
        let needs = wire::needs(description.filter.as_ref());
        // Without a filter, nothing is asked for a request.
        let workers = if description.filter.is_some() { workers } else { &[] };
        let filter = description.filter.unwrap_or_default();
        let bounds = Bounds::new(description.max_concurrent_calls, filter.one_stream);
        // What a single worker has for itself is one for all.
        let one = (filter.one_stream || description.max_concurrent_calls > 0) && workers.len() > 1;
        let shared = Line::Shared(first.clone());
        let open = || Line::open(connector.clone());
        let beside = match filter.batches {
            true => beside(connector, &filter.stream_socket).await?,
            false => None,
        };
        let of_workers = |lines: &PerWorker<Line>| {
            Streams::Each(lines.map(|line| Batches::of_worker(line.clone(), generation.clone(), bounds.clone())))
        };
        let (streams, lines) = match (filter.batches, one, beside) {
            (false, ..) => (Streams::None, lines::open(shared, workers, open).await),
            (true, false, None) => {
                let lines = lines::open(shared, workers, open).await;
                (of_workers(&lines), lines)
            }
            (true, false, Some(beside)) => {
                let first = Line::open(beside.clone()).await.map_err(|why| why.to_string())?;
                let streams = lines::open(first, workers, || Line::open(beside.clone())).await;
                (of_workers(&streams), lines::open(shared, workers, open).await)
            }
            (true, true, beside) => {
                let line = match beside {
                    None => lines::one(shared.clone(), open()).await,
                    Some(beside) => Line::open(beside).await.map_err(|why| why.to_string())?,
                };
                let batches = Batches::of_all(line, generation.clone(), bounds.clone());
                (Streams::One(Box::new(batches)), PerWorker::of(shared, Vec::new()))
            }
        };
        let configure = ConfigureRequest { config: Some(config), hash: generation.hash.to_string() };
        let configured = lifecycle
            .configure(configure)
            .await
            .map_err(|status| format!("Configure failed: {}", wire::status_text(&status)))?;
        let configured = configured.into_inner();
        wire::check_problems(&configured)?;
        generation.check_configured(&configured)?;
        tracing::info!(
            target: "palisade::plugin", name = clip(&description.name),
            version = clip(&description.version),
            "plugin described itself",
        );
        Ok(Self { first, streams, lines, needs, generation, permits: bounds.places() })
    }

    pub(super) fn needs(&self) -> Needs {
        self.needs
    }

    pub(super) fn check_request(
        &self,
        subject: &Subject<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Verdict, CallError>> + Send + use<> {
        let message = encode::check_request(subject, &self.needs);
        match self.batched(Kind::Request, message, deadline) {
            Ok(answer) => Either::Left(async move {
                match answer.await? {
                    check_answer::Answer::Request(answer) => wire::verdict(answer),
                    _ => Err(wire::other_kind()),
                }
            }),
            Err(message) => {
                let answer = self.unary::<CheckRequestResponse>(&CHECK_REQUEST, message, deadline);
                let generation = self.generation.clone();
                // Boxed: it is large, and rare.
                Either::Right(Box::pin(async move {
                    let answer = answer.await?;
                    generation.check(&answer.config_hash)?;
                    wire::verdict(answer)
                }))
            }
        }
    }

    pub(super) fn check_response(
        &self,
        request: &Request,
        response: &ResponseHead<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<ResponseVerdict, CallError>> + Send + use<> {
        let message = encode::check_response(request, response);
        match self.batched(Kind::Response, message, deadline) {
            Ok(answer) => Either::Left(async move {
                match answer.await? {
                    check_answer::Answer::Response(answer) => wire::response_verdict(answer),
                    _ => Err(wire::other_kind()),
                }
            }),
            Err(message) => {
                let answer = self.unary::<CheckResponseResponse>(&CHECK_RESPONSE, message, deadline);
                let generation = self.generation.clone();
                // Boxed: it is large, and rare.
                Either::Right(Box::pin(async move {
                    let answer = answer.await?;
                    generation.check(&answer.config_hash)?;
                    wire::response_verdict(answer)
                }))
            }
        }
    }

    /// Asks over the stream; the message comes back where it has to go by itself.
    fn batched(
        &self,
        kind: Kind,
        message: Message,
        deadline: Instant,
    ) -> Result<impl Future<Output = batches::Answer> + Send + use<>, Message> {
        let batches = match &self.streams {
            _ if message.len() > MAX_CALL => return Err(message),
            Streams::None => return Err(message),
            Streams::One(batches) => batches,
            Streams::Each(each) => each.here(),
        };
        Ok(batches.call(kind, message, deadline))
    }

    /// Asks with a call of its own.
    fn unary<A: Decoded + Answer + Default>(
        &self,
        rpc: &'static Rpc,
        mut message: Message,
        deadline: Instant,
    ) -> impl Future<Output = Result<A, CallError>> + Send + use<A> {
        encode::add_config_hash(&mut message, &self.generation.hash);
        let call = self.lines.here().call(rpc, message.into_bytes(), MAX_ANSWER, deadline);
        let permits = self.permits.clone();
        async move {
            let _permit = permit(permits, deadline).await?;
            codec::read(call.await?).map_err(CallError::Unreadable)
        }
    }

    pub(super) async fn certificates(
        &self,
        names: &[String],
    ) -> Result<BoxStream<'static, Result<CertificateUpdate, CallError>>, CallError> {
        let context = v1::CallContext { config_hash: self.generation.hash.to_string(), ..v1::CallContext::default() };
        let request = WatchCertificatesRequest { context: Some(context), names: names.to_vec() };
        let mut certificates = Grpc::new(answers(self.first.clone())).max_decoding_message_size(MAX_CERTIFICATES);
        certificates.ready().await.map_err(|error| CallError::Lost(chain(&error)))?;
        let request = tonic::Request::new(Bytes::from(request.encode_to_vec()));
        let codec = Encoded::<WatchCertificatesResponse>::default();
        let stream = certificates.server_streaming(request, WATCH, codec).await;
        let stream = stream.map_err(|status| wire::call_error(&status))?;
        let updates = stream.into_inner().map(|update| match update {
            Ok(update) => wire::certificates(update),
            Err(status) => Err(wire::call_error(&status)),
        });
        Ok(updates.boxed())
    }
}

/// To the socket that batches have for themselves, if they have one that may be connected to. The error is for the operator.
async fn beside(connector: &Connector, stream_socket: &str) -> Result<Option<Connector>, String> {
    if stream_socket.is_empty() || !connector.has_several() {
        return Ok(None);
    }
    let beside = connector.beside(stream_socket).await;
    beside.map(Some).map_err(|error| format!("its `stream_socket` is no good: {}", chain(&error)))
}

/// Waits for the plugin to have room for a call.
async fn permit(
    permits: Option<Arc<Semaphore>>,
    deadline: Instant,
) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, CallError> {
    let Some(permits) = permits else { return Ok(None) };
    match tokio::time::timeout_at(deadline, permits.acquire_owned()).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        Ok(Err(_)) | Err(_) => Err(CallError::Overloaded),
    }
}
