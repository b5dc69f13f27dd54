//! Asks a running proxy, over its admin socket.

use std::error::Error;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyperlocal::{UnixClientExt, UnixConnector};
use palisade_supervisor::chain;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Failure;
use super::args::Target;
use crate::{admin, config};

/// For questions, which the proxy answers from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// For orders, which wait for processes to end and to start. The proxy answers before, see [`admin::ORDER_TIMEOUT`].
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);
/// For changes. The proxy answers before, see [`admin::CHANGE_TIMEOUT`].
const CHANGE_TIMEOUT: Duration = Duration::from_secs(180);
/// Longest answer that is read: reports of dead plugins with their last lines are tens of KiB each.
const MOST_BYTES: usize = 16 << 20;
/// Longest path of a unix socket.
const LONGEST_PATH: usize = 107;

/// An admin socket that may have a proxy behind it.
pub(super) struct Admin {
    socket: PathBuf,
    http: Client<UnixConnector, Empty<Bytes>>,
}

/// What the admin socket says when it can't do something.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    help: Option<String>,
    /// Set: the problems of a configuration.
    invalid: Option<serde_json::Value>,
}

/// Runs a conversation with a proxy to its end.
pub(super) fn converse<T>(conversation: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("can't wait for answers: {error}")))?;
    runtime.block_on(conversation)
}

impl Admin {
    pub(super) fn of(target: &Target) -> Result<Self, Failure> {
        let socket = match (&target.admin, &target.config) {
            (Some(socket), _) => socket.clone(),
            (None, Some(file)) => config::load(file).map_err(Failure::Invalid)?.runtime_dir.join(admin::SOCKET),
            (None, None) => config::default_runtime_dir().join(admin::SOCKET),
        };
        Self::at(socket)
    }

    pub(super) fn at(socket: PathBuf) -> Result<Self, Failure> {
        let shown = socket.display();
        // The client writes the path into a URI, as text.
        match socket.to_str() {
            None => Err(Failure::failed(format_args!("the socket's path is not UTF-8: {shown}"))),
            Some("") => Err(Failure::failed("the socket's path is empty")),
            Some(path) if path.len() > LONGEST_PATH => {
                Err(Failure::failed(format_args!("the socket's path is longer than {LONGEST_PATH} bytes: {shown}")))
            }
            Some(_) => Ok(Self { socket, http: Client::unix() }),
        }
    }

    /// Asks for what stands at `path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::GET, path, ANSWER_TIMEOUT).await
    }

    /// Asks for what the proxy may let wait for as long as [`admin::LONGEST_WAIT`].
    pub(super) async fn wait<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::GET, path, admin::LONGEST_WAIT + ANSWER_TIMEOUT).await
    }

    /// Gives an order.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::POST, path, ORDER_TIMEOUT).await
    }

    /// Gives an order that changes what is in force.
    pub(super) async fn change<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::POST, path, CHANGE_TIMEOUT).await
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, time: Duration) -> Result<T, Failure> {
        let exchange = tokio::time::timeout(time, self.request(method, path));
        let (status, body) = exchange.await.map_err(|_| {
            Failure::failed(format_args!("no answer from {} within {} s", self.socket.display(), time.as_secs()))
        })??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.strange(error));
        }
        let refusal: Refusal =
            serde_json::from_slice(&body).map_err(|_| self.strange(format_args!("status {status}")))?;
        let failure = match refusal.invalid {
            Some(_) => Failure::invalid(refusal.error),
            None => Failure::failed(refusal.error),
        };
        Err(match refusal.help {
            Some(help) => failure.help(help),
            None => failure,
        })
    }

    async fn request(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method;
        *request.uri_mut() = hyperlocal::Uri::new(&self.socket, path).into();
        let response = self.http.request(request).await.map_err(|error| self.unreached(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return self.strange(format_args!("more than {MOST_BYTES} bytes"));
            }
            Failure::failed(format_args!("the answer broke off: {error}"))
        })?;
        Ok((status, body.to_bytes()))
    }

    fn unreached(&self, error: &hyper_util::client::legacy::Error) -> Failure {
        let socket = self.socket.display();
        if !error.is_connect() {
            return Failure::failed(format_args!("no answer from {socket}: {}", chain(error)));
        }
        let mut below = error.source();
        let mut kind = None;
        while let Some(error) = below {
            kind = kind.or(error.downcast_ref::<io::Error>().map(io::Error::kind));
            below = error.source();
        }
        let start = "start it with: palisade run -c FILE\n  if it runs with a runtime_dir of its own, name its \
                     configuration with -c FILE, or its socket with --admin PATH";
        match kind {
            Some(io::ErrorKind::NotFound) => {
                Failure::not_running(format_args!("palisade is not running: there is no socket {socket}")).help(start)
            }
            Some(io::ErrorKind::ConnectionRefused) => {
                Failure::not_running(format_args!("palisade is not running: nobody listens on {socket}")).help(start)
            }
            Some(io::ErrorKind::PermissionDenied) => {
                Failure::failed(format_args!("no access to {socket}")).help("ask as the user that palisade runs as")
            }
            _ => Failure::failed(format_args!("can't connect to {socket}: {}", chain(error))),
        }
    }

    fn strange(&self, what: impl std::fmt::Display) -> Failure {
        let socket = self.socket.display();
        Failure::failed(format_args!("the answer from {socket} can't be understood: {what}"))
            .help("is it the admin socket of palisade, and of the same version as this command?")
    }
}
