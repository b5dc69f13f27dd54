//! Hosts a plugin: `cargo run --example host -- COMMAND [ARGUMENT...]`. Ends with ctrl-c, and the plugin with it.

use std::time::Duration;

use palisade_supervisor::{Adapter, AttachError, InstanceInfo, Plugin, PluginSpec};
use tonic::transport::Channel;

/// Callers get the bare channel. A real host would make its generated client here, and its first calls.
struct Bare;

impl Adapter for Bare {
    type Client = Channel;
    async fn attach(&self, channel: Channel, _: InstanceInfo) -> Result<Channel, AttachError> {
        Ok(channel)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    let runtime_dir = std::env::temp_dir().join(format!("palisade-host-{}", std::process::id()));
    let plugin = Plugin::start(PluginSpec::new("example", std::env::args_os().skip(1), runtime_dir), Bare)?;
    let channel = plugin.wait_client(tokio::time::Instant::now() + Duration::from_secs(10)).await?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tracing::info!(?channel, pid = plugin.status().pid, "ready to call");
    interrupt.recv().await;
    plugin.shutdown().await;
    Ok(())
}
