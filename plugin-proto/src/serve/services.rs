//! The gRPC services of a plugin, over the handlers that it was given.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::aside::Aside;
use super::batches::{self, guarded};
use super::{Certificates, Config, Filter, REFRESH, report};
use crate::goplugin::{Empty, grpc_controller_server::GrpcController};
use crate::v1::{
    self, CallContext, CertificateBundle, CheckBatch, CheckBatchAnswer, CheckRequestRequest, CheckRequestResponse,
    CheckResponseRequest, CheckResponseResponse, ConfigureRequest, ConfigureResponse, DescribeRequest,
    DescribeResponse, WatchCertificatesRequest, WatchCertificatesResponse, lifecycle_server::Lifecycle,
};

/// What the services share: the configuration in force, the end, and where calls are begun that may block.
pub(super) struct Shared {
    pub(super) aside: Aside,
    config: watch::Sender<Option<Arc<Config>>>,
    end: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { aside: Aside::new(), config: watch::Sender::new(None), end: watch::Sender::new(false) }
    }

    /// Asks everything to end.
    pub(super) fn end(&self) {
        self.end.send_replace(true);
    }

    /// Waits until the end was asked for.
    pub(super) async fn ended(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let mut ended = self.end.subscribe();
        let _waited = ended.wait_for(|ended| *ended).await;
    }

    /// Whether the end was asked for.
    pub(super) fn watch_end(&self) -> watch::Receiver<bool> {
        self.end.subscribe()
    }

    /// The configuration for one call, if it is the one that the host means.
    fn config_for(&self, context: Option<&CallContext>) -> Result<Arc<Config>, Status> {
        self.config_by_hash(context.map_or("", |context| &context.config_hash))
    }

    /// The configuration in force, if it has this hash or none was said.
    pub(super) fn config_by_hash(&self, hash: &str) -> Result<Arc<Config>, Status> {
        let config = self.config.borrow().clone();
        let config = config.ok_or_else(|| Status::failed_precondition("Configure was not called"))?;
        if !hash.is_empty() && hash != config.hash() {
            return Err(Status::failed_precondition("another configuration is in force"));
        }
        Ok(config)
    }
}

pub(super) struct LifecycleService {
    pub(super) description: DescribeResponse,
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Lifecycle for LifecycleService {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.description.clone()))
    }

    async fn configure(&self, request: Request<ConfigureRequest>) -> Result<Response<ConfigureResponse>, Status> {
        let ConfigureRequest { config, hash } = request.into_inner();
        self.shared.config.send_replace(Some(Arc::new(Config::new(config, hash.clone()))));
        Ok(Response::new(ConfigureResponse { problems: Vec::new(), hash }))
    }
}

pub(super) struct ControllerService {
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl GrpcController for ControllerService {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.shared.end();
        Ok(Response::new(Empty {}))
    }
}

pub(super) struct FilterService<F> {
    pub(super) filter: Arc<F>,
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl<F: Filter> v1::filter_server::Filter for FilterService<F> {
    type CheckBatchesStream = BoxStream<CheckBatchAnswer>;

    async fn check_batches(
        &self,
        request: Request<Streaming<CheckBatch>>,
    ) -> Result<Response<Self::CheckBatchesStream>, Status> {
        let answers = batches::serve(Arc::clone(&self.filter), Arc::clone(&self.shared), request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn check_request(
        &self,
        request: Request<CheckRequestRequest>,
    ) -> Result<Response<CheckRequestResponse>, Status> {
        let call = request.into_inner();
        let config = self.shared.config_for(call.context.as_ref())?;
        let request = call.request.ok_or_else(|| Status::invalid_argument("no request"))?;
        let filter = Arc::clone(&self.filter);
        let judged = self.aside(async move {
            let verdict = filter.check_request(&request, &config).await.map_err(internal)?;
            Ok(CheckRequestResponse { config_hash: config.hash().to_owned(), ..verdict })
        });
        judged.await.map(Response::new)
    }

    async fn check_response(
        &self,
        request: Request<CheckResponseRequest>,
    ) -> Result<Response<CheckResponseResponse>, Status> {
        let response = request.into_inner();
        let config = self.shared.config_for(response.context.as_ref())?;
        let filter = Arc::clone(&self.filter);
        let judged = self.aside(async move {
            let verdict = filter.check_response(&response, &config).await.map_err(internal)?;
            Ok(CheckResponseResponse { config_hash: config.hash().to_owned(), ..verdict })
        });
        judged.await.map(Response::new)
    }
}

impl<F> FilterService<F> {
    /// One call by itself is begun where those of a batch are that may block.
    async fn aside<T: Send + 'static>(
        &self,
        judged: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let judged = self.shared.aside.begin(Box::pin(guarded(judged))).await;
        judged.unwrap_or_else(|| Err(Status::unavailable("the plugin ends")))
    }
}

/// Characters of an error that the host is told. It takes 16 KiB of trailers, where each may be 12 bytes: with more,
/// the connection would break, and every call that is under way there.
const MAX_DETAILS: usize = 500;

/// A call that failed; stderr has all of the error.
pub(super) fn internal(error: super::Error) -> Status {
    report(error.as_ref());
    Status::internal(error.to_string().chars().take(MAX_DETAILS).collect::<String>())
}

/// Hands out what a task of its own loads.
pub(super) struct CertificatesService {
    bundles: watch::Receiver<Option<Arc<Vec<CertificateBundle>>>>,
    shared: Arc<Shared>,
}

impl CertificatesService {
    /// Starts loading; must be called in a runtime. The task ends with the plugin.
    pub(super) fn start(certificates: impl Certificates, shared: Arc<Shared>) -> Self {
        let (sender, bundles) = watch::channel(None);
        let end = Arc::clone(&shared);
        tokio::spawn(async move {
            tokio::select! {
                () = end.ended() => {}
                () = load(certificates, &end, sender) => {}
            }
        });
        Self { bundles, shared }
    }
}

/// Loads until the plugin ends; publishes what differs.
async fn load(
    certificates: impl Certificates,
    shared: &Shared,
    sender: watch::Sender<Option<Arc<Vec<CertificateBundle>>>>,
) {
    let mut configured = shared.config.subscribe();
    loop {
        let config = configured.borrow_and_update().clone();
        if let Some(config) = config {
            // The panic itself is on stderr; the next turn tries again.
            match AssertUnwindSafe(async { certificates.load(&config).await }).catch_unwind().await {
                Err(_) => {}
                Ok(Ok(bundles)) => {
                    sender.send_if_modified(|current| {
                        let changed = current.as_deref() != Some(&bundles);
                        if changed {
                            *current = Some(Arc::new(bundles));
                        }
                        changed
                    });
                }
                Ok(Err(error)) => report(error.as_ref()),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            changed = configured.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

#[tonic::async_trait]
impl v1::certificates_server::Certificates for CertificatesService {
    type WatchStream = ReceiverStream<Result<WatchCertificatesResponse, Status>>;

    async fn watch(&self, request: Request<WatchCertificatesRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchCertificatesRequest { context, names } = request.into_inner();
        self.shared.config_for(context.as_ref())?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut bundles = self.bundles.clone();
        bundles.mark_changed();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let push = async {
                while bundles.changed().await.is_ok() {
                    let current = bundles.borrow_and_update().clone();
                    let Some(current) = current else { continue };
                    let wanted = current.iter().filter(|bundle| names.is_empty() || names.contains(&bundle.name));
                    let message = WatchCertificatesResponse {
                        bundles: wanted.cloned().collect(),
                        removed: Vec::new(),
                        complete: true,
                    };
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            };
            // Without the second branch an open stream would hold up the graceful end; without the third the task
            // of a host that left would wait for the next rotation.
            tokio::select! {
                () = push => {}
                () = shared.ended() => {}
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio_stream::StreamExt;

    use super::super::{Error, Plugin};
    use super::v1::certificates_server::Certificates as _;
    use super::*;

    /// Says which configuration it was loaded by, and panics by the first.
    #[allow(clippy::unnecessary_wraps, reason = "it is a provider")]
    fn load_but_once(config: &Config) -> Result<Vec<CertificateBundle>, Error> {
        assert_ne!(config.hash(), "one", "as the test wants it");
        Ok(vec![CertificateBundle { name: config.hash().to_owned(), ..CertificateBundle::default() }])
    }

    #[tokio::test]
    async fn a_load_that_panics_is_not_the_last() {
        let shared = Arc::new(Shared::new());
        let service = CertificatesService::start(load_but_once, Arc::clone(&shared));
        let set = |hash: &str| shared.config.send_replace(Some(Arc::new(Config::new(None, hash.to_owned()))));
        set("one");
        let mut pushed = service.watch(Request::new(WatchCertificatesRequest::default())).await.unwrap().into_inner();
        let mut pushed_soon = async || tokio::time::timeout(std::time::Duration::from_secs(60), pushed.next()).await;
        tokio::task::yield_now().await;
        set("two");
        let message = pushed_soon().await.expect("it was loaded again").unwrap().unwrap();
        assert_eq!(message.bundles[0].name, "two");
    }

    /// The host takes no more of headers, and a status is one of them where a call goes by itself.
    const MAX_HEADERS: usize = 16 << 10;

    struct Failing(fn(String) -> Error);

    impl Filter for Failing {
        async fn check_request(&self, request: &v1::Request, _: &Config) -> Result<v1::CheckRequestResponse, Error> {
            Err(self.0(request.path.clone()))
        }

        async fn check_response(
            &self,
            response: &CheckResponseRequest,
            _: &Config,
        ) -> Result<CheckResponseResponse, Error> {
            Err(self.0(response.request.clone().unwrap_or_default().path))
        }
    }

    #[tokio::test]
    async fn what_an_error_quotes_of_a_client_never_breaks_the_connection() {
        let errors: [fn(String) -> Error; 2] =
            [|text| text.into(), |text| Box::new(Status::new(tonic::Code::Unavailable, text))];
        for (error, character) in
            errors.into_iter().flat_map(|error| ["x", "%", "\u{e4}", "\u{10348}"].map(|c| (error, c)))
        {
            let shared = Arc::new(Shared::new());
            shared.config.send_replace(Some(Arc::new(Config::new(None, String::new()))));
            let service = FilterService { filter: Arc::new(Failing(error)), shared };
            let request = Some(v1::Request { path: character.repeat(100_000), ..v1::Request::default() });
            let call = CheckRequestRequest { request: request.clone(), ..CheckRequestRequest::default() };
            let checked = v1::filter_server::Filter::check_request(&service, Request::new(call)).await.map(drop);
            let call = CheckResponseRequest { request, ..CheckResponseRequest::default() };
            let answered = v1::filter_server::Filter::check_response(&service, Request::new(call)).await.map(drop);
            for status in [checked.unwrap_err(), answered.unwrap_err()] {
                assert_eq!(status.code(), tonic::Code::Internal);
                assert!(status.message().contains(character), "what went wrong is told");
                assert_eq!(status.message().chars().count(), MAX_DETAILS);
                let headers = status.into_http::<()>().into_parts().0.headers;
                let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
                assert!(size < MAX_HEADERS, "{size}");
            }
        }
    }

    #[test]
    fn a_plugin_is_made_without_a_runtime() {
        drop(Plugin::new("certificates").certificates(load_but_once));
    }
}
