//! One start of a plugin: its process, what reads its output, what talks to it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use palisade_plugin_proto::goplugin::grpc_broker_client::GrpcBrokerClient;
use palisade_plugin_proto::goplugin::grpc_controller_client::GrpcControllerClient;
use palisade_plugin_proto::goplugin::grpc_stdio_client::GrpcStdioClient;
use palisade_plugin_proto::goplugin::stdio_data::Channel as StdioChannel;
use palisade_plugin_proto::goplugin::{ConnInfo, Empty, StdioData};
use tokio::process::ChildStdout;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Code, Status as RpcStatus};
use tracing::debug;

use super::peer::{Ended, Peer};
use super::{Adapter, InstanceInfo};
use crate::answers::answers;
use crate::calls::{Calls, CallsHit};
use crate::connect::{Alive, Connector, Progress, await_listener};
use crate::handshake::{self, Accepted, HandshakeFailure, Heard};
use crate::health::{self, Health};
use crate::logs::{Log, Sink, Stream};
use crate::report::{ExitCause, ExitReport, ProcessEnd, StartFailure, user};
use crate::restart::Hope;
use crate::spec::PluginSpec;
use crate::status::State;

/// How long output may keep coming after the process has gone: its last lines are on their way, and a stranger that
/// holds the pipe must not delay the restart.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Largest announcement on go-plugin's broker, in bytes: a number, a network and a path.
const MAX_ANNOUNCEMENT: usize = 16 * 1024;

/// What the tasks of a run tell the instance.
#[derive(Debug)]
pub(super) enum News<C> {
    Handshake(Result<Accepted, HandshakeFailure>),
    Connected(Channel),
    Healthy,
    Ready(Result<Arc<C>, StartFailure>),
    Health(Health),
    Drained,
    ShutdownRefused,
}

/// The way there. `start` tells the news of this run from those of an earlier one.
#[derive(Debug)]
pub(super) struct Reporter<C> {
    pub(super) start: u64,
    pub(super) news: mpsc::Sender<(u64, News<C>)>,
}

impl<C> Clone for Reporter<C> {
    fn clone(&self) -> Self {
        Self { start: self.start, news: self.news.clone() }
    }
}

impl<C> Reporter<C> {
    /// `None` where nobody listens any more.
    async fn tell(&self, news: News<C>) -> Option<()> {
        self.news.send((self.start, news)).await.ok()
    }
}

#[derive(Debug)]
pub(super) struct Run<C> {
    spec: Arc<PluginSpec>,
    reporter: Reporter<C>,
    peer: Peer,
    private_dir: PathBuf,
    started: Instant,
    log: Log,
    /// What reads the process's output. It goes on a little after the process has gone.
    drains: JoinSet<()>,
    /// Everything else, cancelled together.
    tasks: TaskTracker,
    cancel: CancellationToken,
    /// Ends the health checks alone.
    watching: CancellationToken,
    /// Asks for a health check now.
    check: Arc<Notify>,
    calls: Calls,
    /// When calls last raised suspicion.
    suspected: Option<Instant>,
    alive: Alive,
    heard: Heard,
    progress: Progress,
    channel: Option<Channel>,
    pub(super) accepted: Option<Accepted>,
    pub(super) serving_since: Option<SystemTime>,
    pub(super) last_miss: String,
    /// What it was doing when its end was decided on, or when it ended by itself.
    ended_in: Option<State>,
    /// What its end has hit.
    hit: CallsHit,
    core_dumped: bool,
    out_of_memory: bool,
    /// Why it is about to end; the first reason counts.
    cause: Option<ExitCause>,
    pub(super) hope: Hope,
}

impl<C: Send + Sync + 'static> Run<C> {
    /// Takes a fresh process and starts reading what it prints; or a plugin that runs already.
    pub(super) fn begin(spec: Arc<PluginSpec>, name: Arc<str>, mut peer: Peer, reporter: Reporter<C>) -> Self {
        let log = Log::new(name);
        let (stdout, stderr) = match &mut peer {
            Peer::Started(process) => process.take_output(),
            Peer::Found(_) => (None, None),
        };
        let cancel = CancellationToken::new();
        let calls = Calls::new(spec.health.call_misses);
        let mut run = Self {
            private_dir: peer.private_dir().unwrap_or_default(),
            alive: peer.alive(),
            spec,
            reporter,
            peer,
            started: Instant::now(),
            drains: JoinSet::new(),
            tasks: TaskTracker::new(),
            watching: cancel.child_token(),
            cancel,
            check: Arc::default(),
            calls,
            suspected: None,
            heard: Heard::default(),
            progress: Progress::default(),
            channel: None,
            accepted: None,
            serving_since: None,
            last_miss: String::new(),
            ended_in: None,
            hit: CallsHit::default(),
            core_dumped: false,
            out_of_memory: false,
            cause: None,
            hope: Hope::Transient,
            log,
        };
        if let Some(stderr) = stderr {
            run.drains.spawn(run.log.sink(Stream::Stderr).drain(stderr));
        }
        // `check` has seen that there is one.
        let app_version = run.spec.app_versions.first().copied().unwrap_or_default();
        let told =
            run.peer.told().map(|endpoint| Accepted { endpoint: endpoint.clone(), app_version, certificate: None });
        if let Some(told) = told {
            if let Some(stdout) = stdout {
                run.drains.spawn(run.log.sink(Stream::Stdout).drain(stdout));
            }
            match &run.peer {
                Peer::Started(_) => run.await_listener(told),
                Peer::Found(_) => run.accepted = Some(told),
            }
        } else if let Some(stdout) = stdout {
            run.drains.spawn(read_stdout(
                stdout,
                run.log.sink(Stream::Stdout),
                run.spec.clone(),
                run.private_dir.clone(),
                run.heard.clone(),
                run.reporter.clone(),
            ));
        }
        run
    }

    /// In the place of a handshake: the plugin was told where to listen, and is awaited there.
    fn await_listener(&self, told: Accepted) {
        let (alive, progress, reporter) = (self.alive.clone(), self.progress.clone(), self.reporter.clone());
        self.spawn(async move {
            let outcome = await_listener(&told.endpoint, &alive, &progress).await.map(|()| told);
            reporter.tell(News::Handshake(outcome.map_err(HandshakeFailure::Told))).await;
        });
    }

    pub(super) fn start(&self) -> u64 {
        self.reporter.start
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.peer.pid()
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Waits a moment for a process that has just failed us: its exit is the better explanation.
    pub(super) async fn exits_soon(&self) -> bool {
        timeout(LAST_WORDS, self.peer.exited()).await.is_ok()
    }

    pub(super) fn blame(&mut self, cause: ExitCause) {
        self.cause.get_or_insert(cause);
    }

    /// Why it is about to end, where that has been decided.
    pub(super) fn cause(&self) -> Option<&ExitCause> {
        self.cause.as_ref()
    }

    /// It is about to end, or has ended, while it was doing this. The first word counts.
    pub(super) fn ends_in(&mut self, state: State) {
        self.ended_in.get_or_insert(state);
    }

    pub(super) fn blame_failure(&mut self, failure: StartFailure) {
        if let StartFailure::Handshake(failure) = &failure {
            self.hope = failure.hope();
        }
        self.blame(ExitCause::StartFailure(Arc::new(failure)));
    }

    /// The handshake's part of the time is over.
    pub(super) fn handshake_overdue(&mut self) {
        let limit = self.spec.handshake.timeout;
        let failure = match self.peer.told() {
            None => HandshakeFailure::Timeout { limit, line: self.heard.last() },
            Some(endpoint) => {
                HandshakeFailure::NotListening { endpoint: endpoint.to_string(), limit, last: self.progress.get() }
            }
        };
        self.blame_failure(StartFailure::Handshake(failure));
    }

    pub(super) fn ready_overdue(&mut self) {
        self.blame_failure(StartFailure::NotReady(self.spec.ready_timeout, self.progress.get()));
    }

    /// Connects, waits for health, sets up the host's contract.
    pub(super) fn prepare<A: Adapter<Client = C>>(&mut self, adapter: Arc<A>, accepted: &Accepted) {
        let secure = match (self.peer.identity(), &accepted.certificate) {
            (None, None) => Ok(None),
            (Some(identity), Some(certificate)) => {
                identity.connector(certificate).map(Some).map_err(HandshakeFailure::Mtls)
            }
            // Refused before; in any case not plaintext.
            _ => Err(HandshakeFailure::NoCertificate),
        };
        let connector = secure.map(|secure| Connector::new(accepted.endpoint.clone(), secure, self.alive.clone()));
        let (plugin, start, pid) = (self.spec.name.clone(), self.start(), self.pid());
        let (endpoint, app_version, calls) = (accepted.endpoint.to_string(), accepted.app_version, self.calls.clone());
        let info = move |connector| InstanceInfo { plugin, start, pid, endpoint, app_version, calls, connector };
        let (spec, progress, reporter) = (self.spec.clone(), self.progress.clone(), self.reporter.clone());
        self.spawn(async move {
            let ready = match connector.map(info) {
                Ok(info) => prepare(adapter, info, &spec, &progress, &reporter).await,
                Err(failure) => Err(StartFailure::Handshake(failure)),
            };
            reporter.tell(News::Ready(ready)).await;
        });
    }

    /// From here on there is somebody to read the plugin's remote output from, and to ask to end.
    pub(super) fn connected(&mut self, channel: Channel) {
        let (out, err) = (self.log.sink(Stream::RemoteStdout), self.log.sink(Stream::RemoteStderr));
        self.drains.spawn(read_remote(channel.clone(), out, err));
        let (announcements, watching) = (take_announcements(channel.clone()), self.watching.clone());
        self.spawn(async move { watching.run_until_cancelled(announcements).await.unwrap_or_default() });
        self.channel = Some(channel);
    }

    pub(super) fn watch_health(&mut self) {
        let Some(channel) = self.channel.clone() else { return };
        let (policy, reporter, watching) = (self.spec.health.clone(), self.reporter.clone(), self.watching.clone());
        let (pid, asked) = (self.pid(), self.check.clone());
        self.spawn(async move {
            let report = |health| reporter.tell(News::Health(health));
            watching.run_until_cancelled(health::watch(channel, pid, policy, asked, report)).await;
        });
    }

    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Whether calls without an answer may lead to a check now: a plugin that is merely slow is not checked each time.
    pub(super) fn may_suspect(&mut self) -> bool {
        let now = Instant::now();
        let soon = self.suspected.is_some_and(|last| now.duration_since(last) < self.spec.health.interval);
        if !soon {
            self.suspected = Some(now);
        }
        !soon
    }

    pub(super) fn check_now(&self) {
        self.check.notify_one();
    }

    pub(super) fn tell_when_drained(&self) {
        let (calls, reporter) = (self.calls.clone(), self.reporter.clone());
        self.spawn(async move {
            calls.idle().await;
            reporter.tell(News::Drained).await;
        });
    }

    /// No calls are wanted any more.
    pub(super) fn withdraw(&self) {
        self.watching.cancel();
    }

    pub(super) fn ask_shutdown(&mut self) {
        // What others have started is not ours to end.
        let channel = self.channel.clone().filter(|_| self.peer.process().is_some());
        let reporter = self.reporter.clone();
        self.spawn(async move {
            if !shutdown_taken(channel).await {
                reporter.tell(News::ShutdownRefused).await;
            }
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(task).await;
        });
    }

    /// Cleans up after a process that has exited, and tells how it ended. `stage` is the cause where nobody has blamed
    /// anything else. What it left behind is cleared in the `background`.
    pub(super) async fn finish(
        mut self,
        background: &TaskTracker,
        stage: impl FnOnce(Option<&ProcessEnd>) -> ExitCause,
    ) -> ExitReport {
        self.alive.end();
        let after = self.started.elapsed();
        let Ended { end, core_dumped, out_of_memory } = self.peer.reap().await;
        (self.core_dumped, self.out_of_memory) = (core_dumped, out_of_memory);
        self.end_tasks().await;
        let cause = self.cause.take().unwrap_or_else(|| stage(end.as_ref()));
        self.clear_remains(background);
        self.report(cause, end, after)
    }

    /// Gives up on a process that SIGKILL did not end.
    pub(super) async fn abandon(mut self, background: &TaskTracker) -> ExitReport {
        self.alive.end();
        let after = self.started.elapsed();
        self.end_tasks().await;
        let cause = self.cause.take().unwrap_or(ExitCause::Requested);
        self.clear_remains(background);
        self.report(cause, None, after)
    }

    /// Reads what a process that has exited has left in its pipes. Its group is killed first: whoever of it still
    /// lives holds the pipes open.
    pub(super) async fn drain(&mut self) {
        self.hit = self.calls.hit();
        self.peer.signal(Signal::SIGKILL);
        let drained = async { while self.drains.join_next().await.is_some() {} };
        if timeout(LAST_WORDS, drained).await.is_err() {
            self.drains.shutdown().await;
        }
    }

    async fn end_tasks(&mut self) {
        self.drains.shutdown().await;
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.log.close();
    }

    fn clear_remains(&mut self, background: &TaskTracker) {
        if let Some(remains) = self.peer.take_remains() {
            background.spawn_blocking(|| remains.clear());
        }
    }

    fn report(&self, cause: ExitCause, end: Option<ProcessEnd>, after: Duration) -> ExitReport {
        let state = self.ended_in.unwrap_or(State::Stopping);
        let mut report = report(&self.spec, self.pid(), state, cause, end, after);
        report.core_dumped = self.core_dumped;
        report.out_of_memory = self.out_of_memory;
        report.usage = self.peer.usage();
        report.calls.clone_from(&self.hit);
        report.transcript = self.heard.transcript();
        report.stderr = self.log.tail();
        report.with_hint()
    }
}

/// A report of this plugin's with what is known of every end, also where there was no process.
pub(super) fn report(
    spec: &PluginSpec,
    pid: Option<i32>,
    state: State,
    cause: ExitCause,
    end: Option<ProcessEnd>,
    after: Duration,
) -> ExitReport {
    ExitReport {
        plugin: spec.name.clone(),
        at: SystemTime::now(),
        pid,
        cause,
        end,
        core_dumped: false,
        out_of_memory: false,
        state,
        after,
        calls: CallsHit::default(),
        usage: None,
        transcript: Vec::new(),
        stderr: Vec::new(),
        command: written(spec),
        address: spec.found.as_ref().map(|found| found.endpoint.to_string()),
        cwd: spec.cwd.clone(),
        user: user(),
        likely: None,
    }
}

/// The command as an operator wrote it.
pub(super) fn written(spec: &PluginSpec) -> Vec<String> {
    spec.command.iter().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// Finds the handshake, then keeps reading for life: a pipe that nobody reads blocks the plugin.
async fn read_stdout<C>(
    mut stdout: ChildStdout,
    mut sink: Sink,
    spec: Arc<PluginSpec>,
    private_dir: PathBuf,
    heard: Heard,
    reporter: Reporter<C>,
) {
    let outcome = match handshake::read(&mut stdout, &spec.handshake, &mut sink, &heard).await {
        Ok((line, rest)) => {
            sink.feed(&rest);
            handshake::accept(&line, &spec, &private_dir).await
        }
        Err(failure) => Err(failure),
    };
    reporter.tell(News::Handshake(outcome)).await;
    sink.drain(stdout).await;
}

async fn prepare<A: Adapter>(
    adapter: Arc<A>,
    info: InstanceInfo,
    spec: &PluginSpec,
    progress: &Progress,
    reporter: &Reporter<A::Client>,
) -> Result<Arc<A::Client>, StartFailure> {
    progress.set("connection");
    let channel = info.connector.first(progress).await.map_err(StartFailure::Connect)?;
    reporter.tell(News::Connected(channel.clone())).await;
    progress.set("health check");
    health::await_alive(&channel, &spec.health, progress).await;
    reporter.tell(News::Healthy).await;
    progress.set("answer to the host's first calls");
    adapter.attach(channel, info).await.map(Arc::new).map_err(StartFailure::Attach)
}

/// What a go-plugin's program prints after the handshake comes over gRPC, and blocks the program where nobody takes it.
/// Data is sent once, so this is called once for each process.
async fn read_remote(channel: Channel, mut out: Sink, mut err: Sink) {
    // UNIMPLEMENTED or UNAVAILABLE: it has none, and prints to its own stdout and stderr.
    let Ok(answer) = GrpcStdioClient::new(answers(channel)).stream_stdio(()).await else { return };
    let mut stream = answer.into_inner();
    while let Ok(Some(StdioData { channel, data })) = stream.message().await {
        match StdioChannel::try_from(channel) {
            Ok(StdioChannel::Stderr) => err.take(&data).await,
            _ => out.take(&data).await,
        }
    }
}

/// The host's side of go-plugin's broker, by which a plugin announces further services of its own. Nothing here calls
/// them, but a plugin's `Accept` blocks until somebody takes its announcement. The host announces none.
async fn take_announcements(channel: Channel) {
    let mut broker = GrpcBrokerClient::new(answers(channel)).max_decoding_message_size(MAX_ANNOUNCEMENT);
    // UNIMPLEMENTED: it has none.
    let Ok(answer) = broker.start_stream(tokio_stream::pending()).await else { return };
    let mut announced = answer.into_inner();
    while let Ok(Some(ConnInfo { service_id, network, address, .. })) = announced.message().await {
        debug!(service_id, ?network, ?address, "the plugin announced a service that nothing here uses");
    }
}

/// Whether the plugin takes the request to end. The lifecycle's deadline ends the wait.
async fn shutdown_taken(channel: Option<Channel>) -> bool {
    let Some(channel) = channel else { return false };
    match GrpcControllerClient::new(answers(channel)).shutdown(Empty {}).await {
        Ok(_) => true,
        // Go plugins drop the connection while they answer.
        Err(status) => dropped_connection(&status),
    }
}

fn dropped_connection(status: &RpcStatus) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal)
}
