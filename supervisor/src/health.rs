//! Whether a plugin answers, by gRPC's standard health service.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::connect::Progress;
use crate::spec::HealthPolicy;

/// Between checks while a plugin is getting ready.
const READY_RETRY: Duration = Duration::from_millis(25);

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// It says that it serves, or it has no health service but answered.
    Alive,
    /// It did not answer in time, failed, or says that it does not serve.
    Missed(String),
}

/// One check. Cancel safe.
pub(crate) async fn check(channel: Channel, policy: &HealthPolicy) -> Health {
    let request = HealthCheckRequest { service: policy.service.clone() };
    let mut client = HealthClient::new(channel);
    let Ok(answer) = timeout(policy.timeout, client.check(request)).await else {
        return Health::Missed(format!("no answer within {:?}", policy.timeout));
    };
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Health::Alive,
            other => Health::Missed(format!("it reports {}", other.as_str_name())),
        },
        // No such service at all, or not under this name: go-plugin does not require it, and MOSN's sample has none.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => Health::Alive,
        Err(status) => Health::Missed(format!("{:?}: {}", status.code(), status.message())),
    }
}

/// Checks until the plugin is alive. Has no deadline of its own.
pub(crate) async fn await_alive(channel: &Channel, policy: &HealthPolicy, progress: &Progress) {
    while let Health::Missed(why) = check(channel.clone(), policy).await {
        progress.set(format!("health check: {why}"));
        sleep(READY_RETRY).await;
    }
}

/// Checks for life, and reports each result until nobody takes it.
pub(crate) async fn watch<F: Future<Output = Option<()>>>(
    channel: Channel,
    policy: HealthPolicy,
    report: impl Fn(Health) -> F,
) {
    // The first check came before serving. A fixed beat, so that a frozen plugin is found after `failures` intervals
    // and one timeout; after a pause of the host's own, the missed beats are not caught up with.
    let start = tokio::time::Instant::now() + policy.interval;
    let mut beat = interval_at(start, policy.interval.max(Duration::from_millis(1)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if report(check(channel.clone(), &policy).await).await.is_none() {
            return;
        }
    }
}
