//! A plugin for the tests, which misbehaves by argument.
//!
//! `fake_plugin [OPTION...]`: it listens, prints its line, and serves health and the controller until it is ended.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use palisade_plugin_proto::env::UNIX_SOCKET_DIR;
use palisade_plugin_proto::goplugin::grpc_controller_server::{GrpcController, GrpcControllerServer};
use palisade_plugin_proto::goplugin::grpc_stdio_server::{GrpcStdio, GrpcStdioServer};
use palisade_plugin_proto::goplugin::{Empty, StdioData, stdio_data};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| options.iter().any(|option| option == name);
    let value = |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));

    if let Some(line) = value("stderr") {
        writeln!(std::io::stderr(), "{line}")?;
    }
    if let Some(line) = value("banner") {
        writeln!(std::io::stdout(), "{line}")?;
    }
    if has("ignore-term") {
        std::mem::forget(signal(SignalKind::terminate())?);
    }
    if has("mute-tcp") {
        // Listens, says so, and never speaks.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        writeln!(std::io::stdout(), "1|1|tcp|{}|grpc", listener.local_addr()?)?;
        std::future::pending::<()>().await;
    }
    let path = PathBuf::from(std::env::var_os(UNIX_SOCKET_DIR).ok_or("not started by a host")?).join("plugin.sock");
    let listener = UnixListener::bind(&path)?;
    writeln!(std::io::stdout(), "1|1|unix|{}|grpc", path.display())?;
    std::io::stdout().flush()?;

    if let Some(millis) = value("exit-after-ms") {
        let millis: u64 = millis.parse()?;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)
        });
    }
    if let Some(told) = value("hang-on-usr1").map(PathBuf::from) {
        let mut usr1 = signal(SignalKind::user_defined1())?;
        tokio::spawn(async move {
            usr1.recv().await;
            std::fs::write(told, "").ok();
            // The only thread there is.
            loop {
                std::thread::sleep(Duration::from_secs(3_600));
            }
        });
    }
    let router = services(&options).await?;
    router.serve_with_incoming(UnixListenerStream::new(listener)).await?;
    Ok(ExitCode::SUCCESS)
}

async fn services(options: &[String]) -> std::io::Result<Router> {
    let has = |name: &str| options.iter().any(|option| option == name);
    let (reporter, health) = tonic_health::server::health_reporter();
    let status =
        if has("not-serving") { tonic_health::ServingStatus::NotServing } else { tonic_health::ServingStatus::Serving };
    reporter.set_service_status("plugin", status).await;
    if has("health-by-signal") {
        let (mut usr1, mut usr2) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
        tokio::spawn(async move {
            loop {
                let status = tokio::select! {
                    _ = usr1.recv() => tonic_health::ServingStatus::NotServing,
                    _ = usr2.recv() => tonic_health::ServingStatus::Serving,
                };
                reporter.set_service_status("plugin", status).await;
            }
        });
    }
    // The services that are left out answer UNIMPLEMENTED.
    let health = (!has("no-health")).then_some(health);
    let controller =
        (!has("no-controller")).then(|| GrpcControllerServer::new(Controller { deaf: has("ignore-shutdown") }));
    let stdio = has("stdio").then(|| GrpcStdioServer::new(Stdio));
    let mut server = Server::builder();
    if let Some(millis) = options.iter().find_map(|option| option.strip_prefix("close-after-ms=")) {
        server = server.max_connection_age(Duration::from_millis(millis.parse().map_err(std::io::Error::other)?));
    }
    Ok(server.add_optional_service(health).add_optional_service(controller).add_optional_service(stdio))
}

struct Controller {
    deaf: bool,
}

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        if self.deaf {
            std::future::pending::<()>().await;
        }
        // As go-plugin does: the answer is lost with the connection.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).ok();
        Ok(Response::new(Empty {}))
    }
}

struct Stdio;

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = Pin<Box<dyn Stream<Item = Result<StdioData, Status>> + Send>>;

    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        let line = StdioData { channel: stdio_data::Channel::Stderr.into(), data: "[WARN] said remotely\n".into() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(line)).chain(tokio_stream::pending()))))
    }
}
