//! What is asked in the benchmark: a server that lets a request with `user: admin` pass and answers 403 to others.
//!
//! ```text
//! bench-auth http SOCKET    # nginx's auth_request
//! bench-auth grpc SOCKET    # Envoy's ext_authz
//! ```
//!
//! And two plugins that let all pass but requests of `/guest`:
//!
//! ```text
//! bench-auth whole          # is sent what filters are sent that ask for nothing in particular
//! bench-auth line           # is sent the request line and the route
//! ```
//!
//! One thread, like the plugins that it is compared with.

#![allow(clippy::unwrap_used, reason = "a tool of the tests fails by panicking")]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use palisade_plugin_proto::serve::{Config, Error, Filter, Plugin};
use palisade_plugin_proto::v1::{self, CheckRequestResponse, FilterNeeds, RequestPart};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Status, async_trait};

use self::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use self::ext_authz::{CheckRequest, CheckResponse, DeniedHttpResponse, HttpStatus, OkHttpResponse, check_response};

mod ext_authz {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from bench/ext_authz.proto"
    )]
    tonic::include_proto!("envoy.service.auth.v3");
}

const HEADER: &str = "user";
const VALUE: &str = "admin";
const DENIAL: &str = "forbidden\n";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["http", socket] => http(UnixListener::bind(socket).unwrap()).await,
        ["grpc", socket] => grpc(UnixListener::bind(socket).unwrap()).await,
        ["whole"] => plugin(FilterNeeds::default()).await,
        ["line"] => {
            plugin(FilterNeeds { request_parts: vec![RequestPart::Route.into()], ..FilterNeeds::default() }).await
        }
        _ => panic!("bench-auth http|grpc SOCKET, or bench-auth whole|line"),
    }
}

/// One that judges by the path.
async fn plugin(needs: FilterNeeds) {
    Plugin::new("bench-auth").filter(ByPath(needs)).serve().await;
}

struct ByPath(FilterNeeds);

impl Filter for ByPath {
    fn needs(&self) -> FilterNeeds {
        self.0.clone()
    }

    async fn check_request(&self, request: &v1::Request, _: &Config) -> Result<CheckRequestResponse, Error> {
        let denied = request.path == "/guest";
        Ok(if denied { CheckRequestResponse::deny(403, DENIAL) } else { CheckRequestResponse::allow() })
    }
}

async fn http(listener: UnixListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            let admitted = request.headers().get(HEADER).is_some_and(|value| value == VALUE);
            let (status, body) = if admitted { (StatusCode::OK, "") } else { (StatusCode::FORBIDDEN, DENIAL) };
            let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

struct Check;

#[async_trait]
impl Authorization for Check {
    async fn check(&self, request: Request<CheckRequest>) -> Result<tonic::Response<CheckResponse>, Status> {
        let http = request.into_inner().attributes.and_then(|attributes| attributes.request?.http);
        let admitted = http.is_some_and(|http| http.headers.get(HEADER).is_some_and(|value| value == VALUE));
        let (code, verdict) = if admitted {
            (0, check_response::HttpResponse::OkResponse(OkHttpResponse {}))
        } else {
            let denied = DeniedHttpResponse { status: Some(HttpStatus { code: 403 }), body: DENIAL.to_owned() };
            (7, check_response::HttpResponse::DeniedResponse(denied))
        };
        let answer = CheckResponse { status: Some(ext_authz::Status { code }), http_response: Some(verdict) };
        Ok(tonic::Response::new(answer))
    }
}

async fn grpc(listener: UnixListener) {
    tonic::transport::Server::builder()
        .add_service(AuthorizationServer::new(Check))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .unwrap();
}
