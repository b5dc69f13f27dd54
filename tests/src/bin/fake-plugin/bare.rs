//! Plugins as people write them without an SDK: no health, no controller, no graceful end.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use palisade_plugin_proto::mosn;
use palisade_plugin_proto::mosn::plugin_server::{Plugin, PluginServer};
use palisade_plugin_proto::serve::Config;
use palisade_plugin_proto::v1::filter_server::{Filter, FilterServer};
use palisade_plugin_proto::v1::lifecycle_server::{Lifecycle, LifecycleServer};
use palisade_plugin_proto::v1::{
    CheckBatch, CheckRequestRequest, CheckRequestResponse, CheckResponseRequest, CheckResponseResponse, ConfigProblem,
    ConfigureRequest, ConfigureResponse, Contract, DescribeRequest, DescribeResponse, FilterNeeds,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Code, Request, Response, Status, Streaming};

/// Serves the native contract and nothing else, until somebody kills it.
pub(crate) async fn serve(needs: FilterNeeds, refusal: Option<String>) -> ! {
    let path = crate::socket_dir().join("plugin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    crate::print(format!("1|1|unix|{}|grpc\n", path.display()).as_bytes());
    router(needs, refusal).serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
    unreachable!("nobody asks it to end")
}

/// As [`serve`], without a word about it, on an address or a path.
pub(crate) async fn serve_at(needs: FilterNeeds, place: &str) -> ! {
    let router = router(needs, None);
    match place.parse::<std::net::SocketAddr>() {
        Ok(address) => {
            let listener = TcpListener::bind(address).await.unwrap();
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        }
        Err(_) => {
            let listener = UnixListener::bind(place).unwrap();
            router.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        }
    }
    unreachable!("nobody asks it to end")
}

/// Serves batches on a second socket, in the background.
pub(crate) fn serve_beside(name: &str) {
    let listener = UnixListener::bind(crate::socket_dir().join(name)).unwrap();
    let filter = FilterServer::new(Bare {
        needs: FilterNeeds::default(),
        refusal: None,
        hash: Arc::default(),
        streams: AtomicU32::new(1000),
    });
    tokio::spawn(Server::builder().add_service(filter).serve_with_incoming(UnixListenerStream::new(listener)));
}

fn router(needs: FilterNeeds, refusal: Option<String>) -> Router {
    let bare = Arc::new(Bare { needs, refusal, hash: Arc::default(), streams: AtomicU32::default() });
    Server::builder()
        .add_service(LifecycleServer::from_arc(Arc::clone(&bare)))
        .add_service(FilterServer::from_arc(bare))
}

struct Bare {
    needs: FilterNeeds,
    refusal: Option<String>,
    hash: Arc<Mutex<String>>,
    streams: AtomicU32,
}

#[tonic::async_trait]
impl Lifecycle for Bare {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse {
            name: "bare".to_owned(),
            contracts: vec![Contract::Filter.into()],
            filter: Some(self.needs.clone()),
            ..DescribeResponse::default()
        }))
    }

    async fn configure(&self, request: Request<ConfigureRequest>) -> Result<Response<ConfigureResponse>, Status> {
        let hash = request.into_inner().hash;
        (*self.hash.lock().unwrap()).clone_from(&hash);
        let problem = |message: &String| ConfigProblem { path: "allow.0".to_owned(), message: message.clone() };
        let hash = if self.refusal.as_deref() == Some("another") { "another".to_owned() } else { hash };
        let refused = self.refusal.iter().filter(|refusal| *refusal != "another");
        Ok(Response::new(ConfigureResponse { problems: refused.map(problem).collect(), hash }))
    }
}

#[tonic::async_trait]
impl Filter for Bare {
    type CheckBatchesStream = crate::batches::Answers;

    async fn check_batches(
        &self,
        request: Request<Streaming<CheckBatch>>,
    ) -> Result<Response<Self::CheckBatchesStream>, Status> {
        Ok(Response::new(crate::batches::serve(request.into_inner(), &self.streams, Arc::clone(&self.hash))))
    }

    async fn check_request(
        &self,
        request: Request<CheckRequestRequest>,
    ) -> Result<Response<CheckRequestResponse>, Status> {
        let call = request.into_inner();
        let request = call.request.ok_or_else(|| Status::invalid_argument("no request"))?;
        let asked = request.header("x-fake").map(String::from_utf8_lossy).unwrap_or_default();
        if let Some(code) = asked.strip_prefix("code-") {
            return Err(Status::new(Code::from_i32(code.parse().unwrap()), "asked to fail"));
        }
        let verdict = crate::filter::judge(&request, &Config::default()).await;
        let verdict = verdict.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(CheckRequestResponse {
            config_hash: crate::batches::said(&asked, &self.hash.lock().unwrap()),
            ..verdict
        }))
    }

    async fn check_response(
        &self,
        _: Request<CheckResponseRequest>,
    ) -> Result<Response<CheckResponseResponse>, Status> {
        let config_hash = self.hash.lock().unwrap().clone();
        Ok(Response::new(CheckResponseResponse { config_hash, ..CheckResponseResponse::pass(Vec::new()) }))
    }
}

/// Serves MOSN's contract, as its samples do: five fields, TCP, one service.
pub(crate) async fn serve_mosn() -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    crate::print(format!("1|1|tcp|{}|grpc\n", listener.local_addr().unwrap()).as_bytes());
    Server::builder()
        .add_service(PluginServer::new(Mosn))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .unwrap();
    unreachable!("nobody asks it to end")
}

struct Mosn;

#[tonic::async_trait]
impl Plugin for Mosn {
    async fn call(&self, request: Request<mosn::Request>) -> Result<Response<mosn::Response>, Status> {
        let request = request.into_inner();
        let allowed = request.header.get("User").map(String::as_str) == Some("admin");
        let header = HashMap::from([
            ("X-Mosn-List".to_owned(), request.header.get("X-List").cloned().unwrap_or_default()),
            ("X-Mosn-Cookie".to_owned(), std::env::var("MOSN_PLUGIN").unwrap_or_default()),
        ]);
        Ok(Response::new(mosn::Response { header, status: if allowed { 1 } else { -1 }, ..mosn::Response::default() }))
    }
}
