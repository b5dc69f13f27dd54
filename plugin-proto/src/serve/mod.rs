//! Writes a plugin in Rust.
//!
//! ```no_run
//! use palisade_plugin_proto::serve::{Config, Plugin};
//! use palisade_plugin_proto::v1::{CheckRequestResponse, Request};
//!
//! fn check(request: &Request, _config: &Config) -> CheckRequestResponse {
//!     match request.header("x-user") {
//!         Some(b"admin") => CheckRequestResponse::allow(),
//!         _ => CheckRequestResponse::deny(403, "who are you?"),
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::process::ExitCode {
//!     Plugin::new("auth").filter(check).serve().await
//! }
//! ```
//!
//! [`Plugin::serve`] listens on a unix socket in the directory that the host gave, prints the handshake line, answers
//! health checks, takes its configuration, and ends when the host asks (`Shutdown`, SIGTERM) or is gone.

mod aside;
mod batches;
mod config;
mod key;
mod listen;
mod services;
mod spent;
mod stream;
mod thread;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tonic::service::RoutesBuilder;

pub use self::config::Config;
pub use self::key::read_private_key;
use self::listen::ServeError;
use self::services::Shared;
use crate::env::HEALTH_SERVICE;
use crate::goplugin::grpc_controller_server::GrpcControllerServer;
use crate::v1::certificates_server::CertificatesServer;
use crate::v1::filter_server::FilterServer;
use crate::v1::lifecycle_server::LifecycleServer;
use crate::v1::{
    CertificateBundle, CheckRequestResponse, CheckResponseRequest, CheckResponseResponse, Contract, DescribeResponse,
    FilterNeeds, Request,
};

/// Why a handler could not answer; becomes the gRPC status INTERNAL, on which the host applies `on_failure`.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long calls may go on after the host asked for the end.
const GRACE: Duration = Duration::from_secs(5);

/// How often [`Certificates::load`] is called again.
const REFRESH: Duration = Duration::from_secs(1);

/// Largest request in bytes, body included.
const MAX_MESSAGE: usize = 16 << 20;

/// Decides about requests, and about responses if [`Filter::needs`] says so.
///
/// Plain functions from `(&Request, &Config)` to [`CheckRequestResponse`] are filters too.
///
/// A filter is asked on a thread of the SDK's: there is one for each thread of the host that serves. It finds there the
/// runtime that [`Plugin::serve`] was called in; what it waits for, and the rest of its work from there on, is that
/// runtime's. One that blocks its thread makes others of that thread wait; after that has happened, and where a batch takes
/// long, calls are begun on threads of the runtime that may be blocked (`tokio::task::spawn_blocking`), 256 at a time.
/// So what comes before the first wait may use tokio's blocking calls. What comes after it must not block, as anywhere in
/// async code, and neither may calls over a stream of batches at the first socket, which a host opens where it knows
/// of no other.
pub trait Filter: Send + Sync + 'static {
    /// Which parts and phases the filter wants. Default: all but the body and the client's certificate, no response
    /// phase.
    fn needs(&self) -> FilterNeeds {
        FilterNeeds::default()
    }

    /// Judges one request.
    fn check_request(
        &self,
        request: &Request,
        config: &Config,
    ) -> impl Future<Output = Result<CheckRequestResponse, Error>> + Send;

    /// Judges one response. Default: it passes unchanged.
    fn check_response(
        &self,
        response: &CheckResponseRequest,
        config: &Config,
    ) -> impl Future<Output = Result<CheckResponseResponse, Error>> + Send {
        let _ = (response, config);
        async { Ok(CheckResponseResponse::pass(Vec::new())) }
    }
}

impl<F> Filter for F
where
    F: Fn(&Request, &Config) -> CheckRequestResponse + Send + Sync + 'static,
{
    async fn check_request(&self, request: &Request, config: &Config) -> Result<CheckRequestResponse, Error> {
        Ok(self(request, config))
    }
}

/// Provides certificates. Plain functions from `&Config` to bundles are providers too.
pub trait Certificates: Send + Sync + 'static {
    /// All bundles as they are now. Called at start and then every second; what differs from the time before is
    /// pushed to the host. An error or a panic is printed to stderr, and what was there stays.
    fn load(&self, config: &Config) -> impl Future<Output = Result<Vec<CertificateBundle>, Error>> + Send;
}

impl<F> Certificates for F
where
    F: Fn(&Config) -> Result<Vec<CertificateBundle>, Error> + Send + Sync + 'static,
{
    async fn load(&self, config: &Config) -> Result<Vec<CertificateBundle>, Error> {
        self(config)
    }
}

/// A plugin under construction.
#[must_use = "a plugin does nothing until it is served"]
pub struct Plugin {
    description: DescribeResponse,
    shared: Arc<Shared>,
    filter: Option<AddService>,
    batches: Option<stream::Judge>,
    certificates: Option<AddService>,
}

/// Adds one gRPC service to those of the plugin.
type AddService = Box<dyn FnOnce(&mut RoutesBuilder) + Send>;

impl Plugin {
    /// A plugin with its own name, which the host shows beside the one of its configuration.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            description: DescribeResponse { name: name.into(), ..DescribeResponse::default() },
            shared: Arc::new(Shared::new()),
            filter: None,
            batches: None,
            certificates: None,
        }
    }

    /// The plugin's version, free text. Default empty.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.description.version = version.into();
        self
    }

    /// How many calls are worked on at a time; the host queues the rest. Default 0: no limit.
    pub fn max_concurrent_calls(mut self, calls: u32) -> Self {
        self.description.max_concurrent_calls = calls;
        self
    }

    /// Serves the Filter contract with this.
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.description.filter = Some(FilterNeeds { batches: true, ..filter.needs() });
        let filter = Arc::new(filter);
        let (judge, shared) = (Arc::clone(&filter), Arc::clone(&self.shared));
        self.batches =
            Some(Arc::new(move |batches| batches::serve(Arc::clone(&judge), Arc::clone(&shared), batches).boxed()));
        let service = FilterServer::new(services::FilterService { filter, shared: Arc::clone(&self.shared) })
            .max_decoding_message_size(MAX_MESSAGE);
        self.filter = Some(Box::new(|routes| {
            routes.add_service(service);
        }));
        self
    }

    /// Serves the Certificates contract with this.
    pub fn certificates(mut self, certificates: impl Certificates) -> Self {
        let shared = Arc::clone(&self.shared);
        // Loading begins with serving: here may be no runtime yet.
        self.certificates = Some(Box::new(|routes| {
            routes.add_service(CertificatesServer::new(services::CertificatesService::start(certificates, shared)));
        }));
        self
    }

    /// Serves until the host asks for the end or is gone. Failure is printed to stderr, where the host reads it.
    ///
    /// Not cancel safe: meant to be the whole of `main`.
    pub async fn serve(self) -> ExitCode {
        match self.try_serve().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                report(&error);
                ExitCode::FAILURE
            }
        }
    }

    async fn try_serve(mut self) -> Result<(), ServeError> {
        listen::check_environment()?;
        let listening = listen::Listening::choose(self.batches).await?;
        if let Some(needs) = &mut self.description.filter {
            needs.stream_socket = listening.beside().to_owned();
        }
        let parts = [(Contract::Filter, self.filter), (Contract::Certificates, self.certificates)];
        let mut routes = RoutesBuilder::default();
        for (contract, part) in parts {
            if let Some(add) = part {
                self.description.contracts.push(contract.into());
                add(&mut routes);
            }
        }
        let lifecycle = services::LifecycleService { description: self.description, shared: Arc::clone(&self.shared) };
        routes.add_service(LifecycleServer::new(lifecycle));
        routes.add_service(GrpcControllerServer::new(services::ControllerService { shared: Arc::clone(&self.shared) }));
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(HEALTH_SERVICE, tonic_health::ServingStatus::Serving).await;
        routes.add_service(health_service);
        listening.run(routes.routes(), &self.shared).await
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("description", &self.description).finish_non_exhaustive()
    }
}

/// Prints an error with its causes to stderr.
#[allow(clippy::print_stderr, reason = "stderr is the log of a plugin, read by its host")]
fn report(error: &(dyn std::error::Error + 'static)) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    eprintln!("[ERROR] {text}");
}
