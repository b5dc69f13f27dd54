//! Performs what the lifecycle decides for one plugin: a single task that owns the process and everything around it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tracing::{error, info, warn};

use self::peer::Peer;
use self::run::{News, Reporter, Run, report, written};
use crate::calls::Calls;
use crate::connect::Connector;
use crate::handshake::HandshakeFailure;
use crate::health::{self, Health};
use crate::lifecycle::{Action, Blame, Event, Exit, Lifecycle, Next, Order, Phase};
use crate::process::{Process, SpawnError};
use crate::report::{ExitCause, ExitReport, ProcessEnd, StartFailure};
use crate::spec::PluginSpec;
use crate::status::{Outlook, State, Status, Transition};

mod peer;
mod run;

/// Turns a raw connection into what callers use. The host's own contract with its plugins lives here.
pub trait Adapter: Send + Sync + 'static {
    /// What callers get.
    type Client: Send + Sync + 'static;

    /// Called once for each start, when the plugin is connected and healthy; only then are calls let through.
    /// Dropped when `ready_timeout` is over, or when the process ends meanwhile.
    fn attach(
        &self,
        channel: Channel,
        instance: InstanceInfo,
    ) -> impl Future<Output = Result<Self::Client, AttachError>> + Send;

    /// Told of every transition, in order, none skipped. Called by the plugin's one task, so it must not block.
    fn observe(&self, _transition: &Transition) {}
}

/// One start of a plugin.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// The plugin's name.
    pub plugin: String,
    /// Counts the starts, from 1. No two clients of a plugin have the same.
    pub start: u64,
    /// The process; `None` where somebody else has started it.
    pub pid: Option<i32>,
    /// Where it listens, as `unix:/path` or `tcp:ip:port`.
    pub endpoint: String,
    /// The application version that it chose.
    pub app_version: u32,
    /// Where the host may tell which calls are under way, and how they end.
    pub calls: Calls,
    /// Makes further connections to it.
    pub connector: Connector,
}

/// Why an [`Adapter`] does not accept a plugin.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct AttachError(Box<dyn std::error::Error + Send + Sync>);

impl AttachError {
    /// From an error of the adapter's own, or a sentence.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// An order, and whom to tell when it has been carried out.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) order: Order,
    pub(crate) done: oneshot::Sender<()>,
}

/// Where callers find the client.
pub(crate) type Slot<C> = Arc<ArcSwapOption<C>>;

pub(crate) struct Instance<A: Adapter> {
    spec: Arc<PluginSpec>,
    name: Arc<str>,
    adapter: Arc<A>,
    machine: Lifecycle,
    run: Option<Run<A::Client>>,
    /// The client of the run, from its readiness to its end.
    client: Option<Arc<A::Client>>,
    offered: Offered<A::Client>,
    status: watch::Sender<Status>,
    orders: mpsc::Receiver<Request>,
    /// The state that was shown last.
    last_shown: State,
    /// What the next transition comes of, where the machine does not say.
    reason: Option<String>,
    /// Whom to tell when the orders so far have been carried out.
    waiting: Vec<oneshot::Sender<()>>,
    starts: u64,
    spawned: mpsc::Receiver<Result<Peer, SpawnError>>,
    spawning: mpsc::Sender<Result<Peer, SpawnError>>,
    spawning_since: Instant,
    news: mpsc::Receiver<(u64, News<A::Client>)>,
    reporter: mpsc::Sender<(u64, News<A::Client>)>,
    /// Spawns under way, and the clearing of what processes left behind.
    background: TaskTracker,
}

/// Takes the client back however the instance ends.
struct Offered<C>(Slot<C>);

impl<C> Drop for Offered<C> {
    fn drop(&mut self) {
        self.0.store(None);
    }
}

impl<A: Adapter> Instance<A> {
    pub(crate) fn new(
        spec: Arc<PluginSpec>,
        adapter: A,
        slot: Slot<A::Client>,
        orders: mpsc::Receiver<Request>,
    ) -> (Self, watch::Receiver<Status>) {
        let machine = Lifecycle::new(&spec, fastrand::u64(..));
        let initial = Status {
            name: spec.name.clone(),
            state: State::Starting,
            pid: None,
            restarts: 0,
            failures: 0,
            since: SystemTime::now(),
            serving_since: None,
            missed_checks: 0,
            endpoint: None,
            app_version: None,
            confinement: None,
            last_exit: None,
            exits: Vec::new(),
            command: written(&spec),
            outlook: Outlook::Soon,
        };
        let (status, watching) = watch::channel(initial);
        let (spawning, spawned) = mpsc::channel(1);
        let (reporter, news) = mpsc::channel(8);
        let instance = Self {
            name: spec.name.as_str().into(),
            spec,
            adapter: Arc::new(adapter),
            machine,
            run: None,
            client: None,
            offered: Offered(slot),
            status,
            orders,
            last_shown: State::Stopped,
            reason: None,
            waiting: vec![],
            starts: 0,
            spawned,
            spawning,
            spawning_since: Instant::now(),
            news,
            reporter,
            background: TaskTracker::new(),
        };
        (instance, watching)
    }

    /// The whole life of the plugin. Ends when an order says so, or when nobody is left to give orders.
    pub(crate) async fn run(mut self) {
        self.reason = Some("first start".to_owned());
        self.feed(Event::Order(Order::Start)).await;
        let mut open = true;
        while self.machine.phase() != Phase::Finished {
            let deadline = self.machine.deadline();
            tokio::select! {
                biased;
                request = self.orders.recv(), if open => match request {
                    Some(Request { order, done }) => {
                        self.waiting.push(done);
                        self.reason = Some(format!("order: {order}"));
                        self.feed(Event::Order(order)).await;
                    }
                    None => {
                        open = false;
                        self.reason = Some("its host dropped it".to_owned());
                        self.feed(Event::Order(Order::Discard)).await;
                    }
                },
                () = exit_of(self.run.as_ref()) => self.process_exited().await,
                Some(spawned) = self.spawned.recv() => self.process_spawned(spawned).await,
                Some((start, news)) = self.news.recv() => {
                    if self.run.as_ref().is_some_and(|run| run.start() == start) {
                        self.hear(news).await;
                    }
                }
                () = suspicion_of(self.run.as_ref()) => {
                    if self.run.as_mut().is_some_and(Run::may_suspect) {
                        self.feed(Event::CallsMissed).await;
                    }
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    let thawed = matches!(self.machine.phase(), Phase::NotServing { .. })
                        && self.run.as_ref().and_then(Run::pid).is_some_and(|pid| !health::frozen(pid));
                    self.feed(if thawed { Event::Thawed } else { Event::Deadline }).await;
                }
            }
        }
        self.background.close();
        self.background.wait().await;
    }

    async fn process_spawned(&mut self, spawned: Result<Peer, SpawnError>) {
        match spawned {
            Ok(peer) => {
                for part in peer.confinement().map_or(&[][..], |found| &found.missing) {
                    warn!(plugin = %self.name, pid = peer.pid(), "the plugin starts without a part of its sandbox: {part}");
                }
                let reporter = Reporter { start: self.starts, news: self.reporter.clone() };
                let event = if peer.process().is_some() { Event::Spawned } else { Event::Found };
                self.run = Some(Run::begin(self.spec.clone(), self.name.clone(), peer, reporter));
                self.feed(event).await;
            }
            Err(error) => {
                let hope = error.hope();
                let cause = ExitCause::StartFailure(Arc::new(StartFailure::Spawn(error)));
                let report = report(&self.spec, None, State::Starting, cause, None, self.spawning_since.elapsed());
                self.ended(report.with_hint(), Event::SpawnFailed(hope)).await;
            }
        }
    }

    async fn hear(&mut self, news: News<A::Client>) {
        let Some(run) = self.run.as_mut() else { return };
        match news {
            News::Handshake(Ok(accepted)) => {
                run.accepted = Some(accepted);
                self.feed(Event::Handshaken).await;
            }
            News::Handshake(Err(failure)) => self.start_failed(StartFailure::Handshake(failure)).await,
            News::Connected(channel) => run.connected(channel),
            News::Healthy => self.feed(Event::Healthy).await,
            News::Ready(Ok(client)) => {
                self.client = Some(client);
                self.feed(Event::Ready).await;
            }
            News::Ready(Err(failure)) => self.start_failed(failure).await,
            News::Health(Health::Alive) => self.feed(Event::HealthAnswered).await,
            News::Health(Health::Missed(why)) => {
                warn!(plugin = %self.name, pid = run.pid(), %why, "the plugin missed a health check");
                run.last_miss = why;
                self.feed(Event::HealthMissed).await;
            }
            News::Health(Health::Refused(why)) => {
                run.last_miss = why;
                self.feed(Event::HealthRefused).await;
            }
            News::Health(Health::Frozen) => self.feed(Event::Frozen).await,
            News::Drained => self.feed(Event::Drained).await,
            News::ShutdownRefused => self.feed(Event::ShutdownRefused).await,
        }
    }

    async fn start_failed(&mut self, failure: StartFailure) {
        // Where an order is ending the process already, it fails because of that.
        let expected = matches!(
            self.machine.phase(),
            Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. }
        );
        let Some(run) = self.run.as_mut().filter(|_| expected) else { return };
        // An exit breaks all that was begun. So it is waited for a moment: the same fault is told the same each time.
        let exited = run.exits_soon().await;
        if !(exited && breaks_by_exit(&failure)) {
            run.blame_failure(failure);
        }
        let hope = run.hope;
        if exited { self.process_exited().await } else { self.feed(Event::StartFailed(hope)).await }
    }

    async fn process_exited(&mut self) {
        let Some(mut run) = self.run.take() else { return };
        // At once: what is called now can only fail.
        self.offered.0.store(None);
        self.client = None;
        // What it said before it went may still be on the way.
        let start = run.start();
        let phase = self.machine.phase();
        run.ends_in(self.shown().0);
        run.drain().await;
        while let Ok((of, news)) = self.news.try_recv() {
            match news {
                News::Handshake(Err(failure)) if of == start => {
                    let failure = StartFailure::Handshake(failure);
                    if !breaks_by_exit(&failure) {
                        run.blame_failure(failure);
                    }
                }
                News::Handshake(Ok(accepted)) if of == start => run.accepted = Some(accepted),
                _ => {}
            }
        }
        let (handshaken, hope) = (run.accepted.is_some(), run.hope);
        let report = run.finish(&self.background, |end| match phase {
            Phase::AwaitHandshake { .. } | Phase::AwaitHealth { .. } | Phase::AwaitReady { .. } if end.is_some() => {
                let failure =
                    if handshaken { StartFailure::ExitedBeforeReady } else { StartFailure::ExitedBeforeHandshake };
                ExitCause::StartFailure(Arc::new(failure))
            }
            _ => match end {
                Some(ProcessEnd::Exited(code)) => ExitCause::Exited(*code),
                Some(ProcessEnd::Signalled(signal)) => ExitCause::Signalled(signal.clone()),
                None => ExitCause::Disconnected,
            },
        });
        let report = report.await;
        let exit = if matches!(report.cause, ExitCause::Exited(0)) { Exit::Clean } else { Exit::Failed(hope) };
        self.ended(report, Event::Exited(exit)).await;
    }

    /// There is no process any more, or there was none: says so, and goes on.
    async fn ended(&mut self, report: ExitReport, event: Event) {
        let report = Arc::new(report);
        self.keep(report.clone());
        self.reason = Some(report.headline());
        Box::pin(self.feed(event)).await;
        let next = match self.machine.phase() {
            Phase::Starting { .. } => Some(Duration::ZERO),
            Phase::Waiting { until, .. } => Some(until - Instant::now()),
            _ => None,
        };
        if matches!(report.cause, ExitCause::Requested) {
            info!(plugin = %self.name, pid = report.pid, "{}", report.headline());
        } else if let Phase::Disabled { why } = self.machine.phase() {
            error!(
                plugin = %self.name,
                pid = report.pid,
                likely = report.likely.as_deref(),
                failures = self.machine.failures(),
                "{}; it is not started again until an operator asks: {why}",
                report.headline()
            );
        } else {
            warn!(
                plugin = %self.name,
                pid = report.pid,
                likely = report.likely.as_deref(),
                next_attempt_in = next.map(tracing::field::debug),
                failures = self.machine.failures(),
                "{}",
                report.headline()
            );
        }
    }

    /// Gives the machine an event, does what it says, and shows the result.
    async fn feed(&mut self, event: Event) {
        let (machine, actions) = self.machine.clone().on(event, Instant::now());
        self.machine = machine;
        for action in actions {
            self.perform(action).await;
        }
        self.publish();
        let settled = !matches!(
            self.machine.phase(),
            Phase::Draining { .. } | Phase::Ending { .. } | Phase::Starting { order: Some(_) }
        );
        if settled {
            for done in self.waiting.drain(..) {
                // Nobody has to wait.
                done.send(()).ok();
            }
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Spawn => self.spawn(),
            Action::Prepare => {
                if let Some(run) = self.run.as_mut()
                    && let Some(accepted) = run.accepted.clone()
                {
                    run.prepare(self.adapter.clone(), &accepted);
                }
            }
            Action::Serve => {
                // The client first: who sees the state may call at once.
                self.offered.0.store(self.client.clone());
                if let Some(run) = self.run.as_mut() {
                    run.serving_since = Some(SystemTime::now());
                    run.watch_health();
                    let endpoint = run.accepted.as_ref().map(|accepted| accepted.endpoint.to_string());
                    info!(plugin = %self.name, pid = run.pid(), endpoint, "the plugin serves");
                }
            }
            Action::Withhold => {
                self.offered.0.store(None);
                if let (State::NotServing { why }, _) = self.shown() {
                    warn!(plugin = %self.name, pid = self.run.as_ref().and_then(Run::pid), "the plugin does not serve: {why}");
                }
            }
            Action::Offer => {
                self.offered.0.store(self.client.clone());
                info!(plugin = %self.name, pid = self.run.as_ref().and_then(Run::pid), "the plugin serves again");
            }
            Action::Check => {
                if let Some(run) = &self.run {
                    run.check_now();
                }
            }
            Action::Withdraw => {
                self.offered.0.store(None);
                self.client = None;
                if let Some(run) = &self.run {
                    run.withdraw();
                }
            }
            Action::Drain => {
                if let Some(run) = &self.run {
                    run.tell_when_drained();
                }
            }
            Action::AskShutdown => {
                if let Some(run) = self.run.as_mut() {
                    run.ask_shutdown();
                }
            }
            Action::Terminate => self.signal(Signal::SIGTERM),
            Action::Kill => self.signal(Signal::SIGKILL),
            Action::Abandon => self.abandon().await,
            Action::Blame(blame) => {
                if let Some(run) = self.run.as_mut() {
                    match blame {
                        Blame::Requested => run.blame(ExitCause::Requested),
                        Blame::HandshakeTimeout => run.handshake_overdue(),
                        Blame::ReadyTimeout => run.ready_overdue(),
                        Blame::Unhealthy => run.blame(ExitCause::Unhealthy(run.last_miss.clone())),
                        Blame::Unresponsive => run.blame(ExitCause::Unresponsive(run.last_miss.clone())),
                        Blame::Frozen => run.blame(ExitCause::Frozen(self.spec.health.stopped_timeout)),
                    }
                }
            }
        }
    }

    fn spawn(&mut self) {
        self.starts += 1;
        self.spawning_since = Instant::now();
        let (spec, spawning) = (self.spec.clone(), self.spawning.clone());
        self.background.spawn(async move {
            // Dropped where the instance has ended, and killed by that.
            let peer = match &spec.found {
                Some(found) => Ok(Peer::found(found)),
                None => Process::spawn(spec).await.map(|process| Peer::Started(Box::new(process))),
            };
            spawning.send(peer).await.ok();
        });
    }

    fn signal(&self, signal: Signal) {
        if let Some(run) = &self.run {
            run.peer().signal(signal);
        }
    }

    async fn abandon(&mut self) {
        let Some(run) = self.run.take() else { return };
        error!(plugin = %self.name, pid = run.pid(), "the process outlived SIGKILL; it is stuck in the kernel");
        let report = Arc::new(run.abandon(&self.background).await);
        self.keep(report);
    }

    /// Keeps a report, for as long as there are not enough later ones.
    fn keep(&self, report: Arc<ExitReport>) {
        self.status.send_modify(|status| {
            status.exits.insert(0, report.clone());
            status.exits.truncate(self.spec.exit_reports.max(1));
            status.last_exit = Some(report);
        });
    }

    fn publish(&mut self) {
        let (state, outlook) = self.shown();
        let from = std::mem::replace(&mut self.last_shown, state);
        let moved = !from.is_alike(&state);
        if moved
            && state == State::Stopping
            && let Some(run) = self.run.as_mut()
        {
            run.ends_in(from);
        }
        let run = self.run.as_ref();
        self.status.send_modify(|status| {
            if moved {
                status.since = SystemTime::now();
            }
            status.state = state;
            status.outlook = outlook;
            status.restarts = self.machine.restarts();
            status.failures = self.machine.failures();
            status.missed_checks = self.machine.misses();
            status.pid = run.and_then(Run::pid);
            let accepted = run.and_then(|run| run.accepted.as_ref());
            status.endpoint = accepted.map(|accepted| accepted.endpoint.to_string());
            status.app_version = accepted.map(|accepted| accepted.app_version);
            status.confinement = run.and_then(|run| run.peer().confinement().cloned());
            status.serving_since = run.and_then(|run| run.serving_since);
        });
        if moved {
            let transition = Transition {
                plugin: self.spec.name.clone(),
                at: SystemTime::now(),
                start: self.starts,
                pid: run.and_then(Run::pid),
                from,
                to: state,
                reason: self.reason_of(&state),
            };
            self.adapter.observe(&transition);
        }
        self.reason = None;
    }

    /// Why it is in this state now, where that does not go without saying.
    fn reason_of(&self, state: &State) -> Option<String> {
        let run = self.run.as_ref();
        match state {
            State::NotServing { why } => Some(why.to_string()),
            State::Disabled { why } => Some(match &self.reason {
                Some(reason) => format!("{reason}; {why}"),
                None => why.to_string(),
            }),
            // Decided by the machine, and blamed on something.
            State::Stopping => run.and_then(Run::cause).map(ToString::to_string).or_else(|| self.reason.clone()),
            _ => self.reason.clone(),
        }
    }

    fn shown(&self) -> (State, Outlook) {
        match self.machine.phase() {
            Phase::Stopped | Phase::Held | Phase::Finished => (State::Stopped, Outlook::Never),
            Phase::Disabled { why } => (State::Disabled { why }, Outlook::Never),
            Phase::Starting { order: None } => (State::Starting, Outlook::Soon),
            Phase::AwaitHandshake { .. } => (State::AwaitHandshake, Outlook::Soon),
            Phase::AwaitHealth { .. } => (State::AwaitHealth, Outlook::Soon),
            Phase::AwaitReady { .. } => (State::AwaitReady, Outlook::Soon),
            Phase::Serving { .. } => (State::Serving, Outlook::Soon),
            Phase::NotServing { why, .. } => (State::NotServing { why: why.into() }, Outlook::Soon),
            Phase::Draining { next, .. } => (State::Draining, outlook_of(next)),
            Phase::Waiting { until, crash_looped } => {
                let next_attempt = SystemTime::now() + (until - Instant::now());
                let state =
                    if crash_looped { State::CrashLooped { next_attempt } } else { State::BackingOff { next_attempt } };
                (state, Outlook::NotBefore(until))
            }
            Phase::Starting { order: Some(next) } | Phase::Ending { next, .. } => (State::Stopping, outlook_of(next)),
        }
    }
}

fn outlook_of(next: Next) -> Outlook {
    match next {
        Next::Stay | Next::Finish => Outlook::Never,
        Next::Again | Next::BackOff(_) => Outlook::Soon,
    }
}

/// Whether the exit of a process may itself have made it fail this way: then the exit is what is told.
fn breaks_by_exit(failure: &StartFailure) -> bool {
    match failure {
        StartFailure::Handshake(failure) => matches!(failure, HandshakeFailure::Closed { .. }),
        _ => true,
    }
}

async fn exit_of<C: Send + Sync + 'static>(run: Option<&Run<C>>) {
    match run {
        Some(run) => run.peer().exited().await,
        None => std::future::pending().await,
    }
}

async fn suspicion_of<C: Send + Sync + 'static>(run: Option<&Run<C>>) {
    match run {
        Some(run) => run.calls().suspicious().await,
        None => std::future::pending().await,
    }
}
