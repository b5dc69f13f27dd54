//! Whether a plugin answers, by gRPC's standard health service, and whether its process could answer at all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::answers::answers;
use crate::connect::Progress;
use crate::logs::escape_text;
use crate::spec::HealthPolicy;

/// Between checks while a plugin is getting ready.
const READY_RETRY: Duration = Duration::from_millis(25);

/// Characters of an error's text that are told.
const LONGEST: usize = 512;

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// It says that it serves, or it has no health service but answered.
    Alive,
    /// It did not answer in time, or failed.
    Missed(String),
    /// It says that it does not serve.
    Refused(String),
    /// Its process is stopped, so nobody was asked.
    Frozen,
}

/// One check. Cancel safe.
pub(crate) async fn check(channel: Channel, policy: &HealthPolicy) -> Health {
    let request = HealthCheckRequest { service: policy.service.clone() };
    let mut client = HealthClient::new(answers(channel));
    let Ok(answer) = timeout(policy.timeout, client.check(request)).await else {
        return Health::Missed(format!("no answer within {:?}", policy.timeout));
    };
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Health::Alive,
            other => Health::Refused(format!("it reports {}", other.as_str_name())),
        },
        // No such service at all, or not under this name: go-plugin does not require it, and MOSN's sample has none.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => Health::Alive,
        Err(status) => {
            let said: String = status.message().chars().take(LONGEST).collect();
            Health::Missed(format!("{:?}: {}", status.code(), escape_text(&said)))
        }
    }
}

/// Checks until the plugin is alive. Has no deadline of its own.
pub(crate) async fn await_alive(channel: &Channel, policy: &HealthPolicy, progress: &Progress) {
    while let Health::Missed(why) | Health::Refused(why) = check(channel.clone(), policy).await {
        progress.set(format!("health check: {why}"));
        sleep(READY_RETRY).await;
    }
}

/// Whether a process is stopped, by a signal or a debugger: `T` or `t` in proc_pid_stat(5). Its main thread stands for
/// all of them, which a signal stops together.
pub(crate) fn frozen(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the program's name, in parentheses, and may hold any byte.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// Checks for life at a fixed beat, and at once when it is `asked`, and reports each result until nobody takes it.
pub(crate) async fn watch<F: Future<Output = Option<()>>>(
    channel: Channel,
    pid: Option<i32>,
    policy: HealthPolicy,
    asked: Arc<Notify>,
    report: impl Fn(Health) -> F,
) {
    // The first check came before serving. A fixed beat, so that a silent plugin is found after `failures` intervals
    // and one timeout; after a pause of the host's own, the missed beats are not caught up with.
    let start = tokio::time::Instant::now() + policy.interval;
    let mut beat = interval_at(start, policy.interval.max(Duration::from_millis(1)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = asked.notified() => {}
        }
        if report(look(&channel, pid, &policy).await).await.is_none() {
            return;
        }
    }
}

/// One check, of the process before the service.
async fn look(channel: &Channel, pid: Option<i32>, policy: &HealthPolicy) -> Health {
    // Of a process that others have started, nothing is known but what it answers.
    if pid.is_some_and(frozen) {
        return Health::Frozen;
    }
    match check(channel.clone(), policy).await {
        // It may have been stopped meanwhile.
        Health::Missed(_) if pid.is_some_and(frozen) => Health::Frozen,
        found => found,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::process::{Command, Stdio};
    use std::time::Instant;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_stopped_process_is_told_from_one_that_runs() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let until = |wanted: bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while frozen(pid) != wanted {
                assert!(Instant::now() < deadline, "frozen is not {wanted}");
                std::thread::yield_now();
            }
        };
        assert!(!frozen(pid));
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        until(true);
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
        until(false);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!frozen(pid), "one that has gone is not frozen");
    }
}
