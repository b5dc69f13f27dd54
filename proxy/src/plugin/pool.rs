//! The processes of one plugin: which of them a call goes to.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join_all, select_all};
use futures_util::stream::FuturesUnordered;
use palisade_supervisor::{Plugin, PluginSpec, StartError, State, Status, Unavailable};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::gate::Gate;
use super::record::Quarantine;
use super::{CallError, Client, Contracts, Events, Roles};
use crate::config;
use crate::telemetry::Observed;

/// Of so many calls under way, one may be asked twice, and one of fewer: a plugin that is slow for all is not to get twice
/// the load.
const CALLS_OF_A_HEDGE: usize = 10;

/// How long calls may take to notice that their process has gone.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// How long a client whose connection broke may still be its instance's client before it is tried again: the time that
/// an exit takes to be noticed.
const EXIT_NOTICE: Duration = Duration::from_millis(50);

/// The same where nobody is asked any more, and whether a request may pass without a verdict depends on it: enough for a
/// machine that stands still for a moment.
const LAST_NOTICE: Duration = Duration::from_secs(2);

/// One plugin: as many processes as the configuration says, each supervised by itself.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    made_of: config::Plugin,
    roles: Roles,
    /// Whoever may still call it. Those who began before it was replaced go on with it.
    users: TaskTracker,
    /// At least one.
    instances: Vec<Instance>,
    /// Where the search among equals begins.
    turn: AtomicUsize,
    /// Calls under way. They are not cancelled when the client leaves: bursts of cancelled calls look like an attack
    /// to the plugin's HTTP/2 server, which then closes the connection under everybody's calls.
    calls: TaskTracker,
    quarantine: Quarantine,
    /// One permit: calls that were lost with their process are asked again one after the other. The one that ends the
    /// next process, too, is known by that.
    suspects: Semaphore,
    /// Second calls under way.
    hedges: Arc<AtomicUsize>,
    /// Whether any instance may have been configured.
    reached: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Instance {
    supervised: Plugin<Contracts>,
    load: Arc<Load>,
}

/// The calls of an instance, from one process to the next.
#[derive(Debug)]
struct Load {
    /// With those that wait.
    in_flight: AtomicUsize,
    gate: Gate,
    /// Second calls that it got, in all.
    hedged: AtomicU64,
}

/// A client that a call may go to.
#[derive(Debug)]
pub(crate) struct Lease {
    client: Arc<Client>,
    index: usize,
    load: Arc<Load>,
}

impl std::ops::Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A call's share of what its instance works on at a time.
#[derive(Debug)]
pub(crate) struct Place {
    _counted: Counted,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// Waits for a place, no longer than until `deadline`. Cancel safe.
    pub(crate) async fn place(&self, deadline: Instant) -> Result<Place, CallError> {
        // Those that wait count as well: others go where fewer do.
        let counted = Counted::new(&self.load);
        let permit = self.load.gate.enter(deadline).await?;
        Ok(Place { _counted: counted, _permit: permit })
    }

    pub(crate) fn is_of_the_process_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client)
    }

    fn calls(&self) -> usize {
        self.load.in_flight.load(Ordering::Relaxed)
    }
}

/// A second instance for a call that takes long.
#[derive(Debug)]
pub(crate) struct Hedge {
    pub(crate) lease: Lease,
    place: Place,
    counted: HedgeCount,
}

/// Counts second calls that are under way.
#[derive(Debug)]
struct HedgeCount(Arc<AtomicUsize>);

impl Drop for HedgeCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a call for as long as it is under way.
#[derive(Debug)]
struct Counted(Arc<Load>);

impl Counted {
    fn new(load: &Arc<Load>) -> Self {
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that becomes a task of its own when it is dropped before its end.
struct Kept<'a, F: Future<Output: Send + 'static> + Send + 'static> {
    call: Option<Pin<Box<F>>>,
    tasks: &'a TaskTracker,
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Future for Kept<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let call = self.call.as_mut().expect("not polled again behind its end");
        let output = ready!(call.as_mut().poll(cx));
        self.call = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Drop for Kept<'_, F> {
    fn drop(&mut self) {
        // Without a runtime the plugins have gone too.
        if let (Some(call), Ok(runtime)) = (self.call.take(), Handle::try_current()) {
            self.tasks.spawn_on(call, &runtime);
        }
    }
}

impl Running {
    /// Starts its processes, each with an adapter of its own, for what it is used for, and by so many workers.
    pub(super) fn start(
        spec: &PluginSpec,
        plugin: &config::Plugin,
        (roles, workers): (Roles, &Arc<[Handle]>),
        events: &Events,
    ) -> Result<Self, StartError> {
        let several = plugin.instances > 1;
        let reached = Arc::default();
        let start = |instance| {
            let instance = several.then_some(instance);
            let contracts = Contracts::new(plugin, (roles, workers), instance, events.clone(), Arc::clone(&reached));
            let supervised = Plugin::start(spec.clone(), contracts)?;
            let gate = Gate::new(plugin.max_calls, plugin.max_queue);
            Ok(Instance {
                supervised,
                load: Arc::new(Load { in_flight: AtomicUsize::new(0), gate, hedged: AtomicU64::new(0) }),
            })
        };
        let instances = (1..=plugin.instances.max(1)).map(start).collect::<Result<_, StartError>>()?;
        Ok(Self {
            name: spec.name.clone(),
            made_of: plugin.clone(),
            roles,
            users: TaskTracker::new(),
            instances,
            turn: AtomicUsize::new(0),
            calls: TaskTracker::new(),
            quarantine: Quarantine { failures: plugin.quarantine.failures, time: plugin.quarantine.time },
            suspects: Semaphore::new(1),
            hedges: Arc::default(),
            reached,
        })
    }

    /// Whether its processes do for this configuration and this use, too.
    pub(super) fn does_for(&self, plugin: &config::Plugin, roles: Roles) -> bool {
        self.made_of.runs_as(plugin) && self.roles.cover(roles)
    }

    /// For as long as the token is there, somebody may call it.
    pub(crate) fn in_use(&self) -> TaskTrackerToken {
        self.users.token()
    }

    /// Returns when nobody may call it any more.
    pub(crate) async fn unused(&self) {
        self.users.close();
        self.users.wait().await;
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether somebody else has started it.
    pub(crate) fn is_found(&self) -> bool {
        self.made_of.found.is_some()
    }

    /// Whether somebody else has started it, and `other` is at the same address: both are one process, which has the
    /// configuration that it was given last.
    pub(super) fn is_one_with(&self, other: &config::Plugin) -> bool {
        let endpoint = |plugin: &config::Plugin| plugin.found.as_ref().map(|found| found.endpoint.clone());
        self.is_found() && endpoint(&self.made_of) == endpoint(other)
    }

    /// From now on it configures nothing: what it is connected to serves on, and is not connected to again.
    pub(crate) async fn hold(&self) {
        join_all(self.instances().map(Plugin::hold)).await;
    }

    /// Takes [`Running::hold`] back, after one of `others` may have configured what is at its address: if so, it is
    /// connected to anew, and configured as before.
    pub(super) async fn release(&self, others: &[&Arc<Self>]) {
        let configured = |other: &&Arc<Self>| self.is_one_with(&other.made_of) && other.reached.load(Ordering::Acquire);
        let configured = others.iter().any(configured);
        join_all(self.instances().map(|instance| async move {
            // Where there is no connection, the next one configures anyway, or an operator wants none.
            let connected = !matches!(instance.status().state, State::Stopped | State::Disabled { .. });
            instance.release().await;
            if configured && connected {
                instance.restart().await;
            }
        }))
        .await;
    }

    /// Its instances, always in the same order.
    pub(crate) fn instances(&self) -> impl ExactSizeIterator<Item = &Plugin<Contracts>> {
        self.instances.iter().map(|instance| &instance.supervised)
    }

    /// Each instance as it is now.
    pub(crate) fn observed(&self) -> Vec<Observed> {
        let fails = |instance: &Instance| Some(instance.supervised.client()?.record.fails(self.quarantine));
        let fails: Vec<_> = self.instances.iter().map(fails).collect();
        let sound = fails.contains(&Some(false));
        let observed = |(instance, fails): (&Instance, Option<bool>)| Observed {
            status: instance.supervised.status(),
            quarantined: sound && fails == Some(true),
            hedged: instance.load.hedged.load(Ordering::Relaxed),
        };
        self.instances.iter().zip(fails).map(observed).collect()
    }

    /// The client with the fewest calls under way, waiting for one no longer than until `deadline`.
    pub(crate) async fn client_by(&self, deadline: Instant) -> Result<Lease, Unavailable> {
        if let Some(lease) = self.pick(None) {
            return Ok(lease);
        }
        let wait = |index: usize| async move {
            let client = self.instances[index].supervised.wait_client(deadline).await;
            client.map(|client| self.lease(index, client))
        };
        let mut waits: FuturesUnordered<_> = (0..self.instances.len()).map(wait).collect();
        let mut unavailable = Unavailable { plugin: self.name.clone(), state: State::Stopped };
        while let Some(waited) = waits.next().await {
            match waited {
                Ok(lease) => return Ok(lease),
                Err(error) => unavailable = error,
            }
        }
        Err(unavailable)
    }

    /// A client after `lost` broke: another instance's, else the next of its own, or the same if its process seems to
    /// live.
    pub(crate) async fn client_after(&self, lost: &Lease, deadline: Instant) -> Result<Lease, Unavailable> {
        if let Some(lease) = self.pick(Some(lost.index)) {
            return Ok(lease);
        }
        self.is_gone(lost, deadline).await;
        self.client_by(deadline).await
    }

    /// Whether the process of `lost` has ended, waiting for the news for a part of the time until `deadline`: the rest is
    /// for asking somebody else.
    pub(crate) async fn is_gone(&self, lost: &Lease, deadline: Instant) -> bool {
        self.is_gone_within(EXIT_NOTICE.min(deadline.saturating_duration_since(Instant::now()) / 2), lost).await
    }

    /// Whether the processes of both have ended. The news may come after the call's deadline, which is for an answer.
    pub(crate) async fn are_gone(&self, lost: [&Lease; 2]) -> bool {
        let [first, second] = lost.map(|lost| self.is_gone_within(LAST_NOTICE, lost));
        let (first, second) = tokio::join!(first, second);
        first && second
    }

    async fn is_gone_within(&self, notice: Duration, lost: &Lease) -> bool {
        let instance = &self.instances[lost.index].supervised;
        let mut status = instance.watch();
        let ended = async {
            while lost.client.lives(instance.client(), &status.borrow_and_update()) {
                if status.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(notice, ended).await.unwrap_or(false)
    }

    /// The turn of a call that was lost. Waiting for it takes no more than half of the time there is; then it goes on
    /// without, beside another one.
    pub(crate) async fn suspected(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        tokio::time::timeout(patience, self.suspects.acquire()).await.ok()?.ok()
    }

    /// Of those that serve, the one with the fewest calls under way. One that fails its calls while another does not is
    /// passed over, but for a try now and then.
    fn pick(&self, not: Option<usize>) -> Option<Lease> {
        match self.least_busy(not) {
            (Some(_), Some(failing)) if failing.client.record.may_be_tried(self.quarantine) => Some(failing),
            (sound, failing) => sound.or(failing),
        }
    }

    /// Of those that serve, but for one, the one with the fewest calls under way: of the sound ones, and of those that fail.
    fn least_busy(&self, not: Option<usize>) -> (Option<Lease>, Option<Lease>) {
        let count = self.instances.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let (mut sound, mut failing): (Option<Lease>, Option<Lease>) = (None, None);
        for index in (0..count).map(|step| first.wrapping_add(step) % count).filter(|index| Some(*index) != not) {
            let Some(client) = self.instances[index].supervised.client() else { continue };
            let lease = self.lease(index, client);
            let best = if lease.client.record.fails(self.quarantine) { &mut failing } else { &mut sound };
            if best.as_ref().is_none_or(|best| lease.calls() < best.calls()) {
                *best = Some(lease);
            }
        }
        (sound, failing)
    }

    /// After how long a call is asked of a second instance.
    pub(crate) fn hedge_after(&self) -> Option<Duration> {
        self.made_of.hedge_after
    }

    /// Another instance than that of `first`, where a sound one has room at this moment, and not too many calls are asked
    /// twice.
    pub(crate) fn hedge(&self, first: &Lease) -> Option<Hedge> {
        let calls: usize = self.instances.iter().map(|it| it.load.in_flight.load(Ordering::Relaxed)).sum();
        let most = (calls / CALLS_OF_A_HEDGE).max(1);
        let begin = |hedges| (hedges < most).then_some(hedges + 1);
        self.hedges.fetch_update(Ordering::Relaxed, Ordering::Relaxed, begin).ok()?;
        let counted = HedgeCount(Arc::clone(&self.hedges));
        let lease = self.least_busy(Some(first.index)).0?;
        let permit = lease.load.gate.try_enter()?;
        let place = Place { _counted: Counted::new(&lease.load), _permit: permit };
        Some(Hedge { lease, place, counted })
    }

    /// As [`Running::call`], of a second instance.
    pub(crate) async fn call_beside<T, F>(&self, hedge: Hedge, id: &str, call: F) -> (Lease, Result<T, CallError>)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let Hedge { lease, place, counted } = hedge;
        lease.load.hedged.fetch_add(1, Ordering::Relaxed);
        let call = async move {
            let answer = call.await;
            drop(counted);
            answer
        };
        let answer = self.call(&lease, id, place, call).await;
        (lease, answer)
    }

    fn lease(&self, index: usize, client: Arc<Client>) -> Lease {
        Lease { client, index, load: Arc::clone(&self.instances[index].load) }
    }

    /// Makes a call about the request `id`, which keeps to its deadline itself. Goes on without
    /// a caller who leaves.
    pub(crate) async fn call<T, F>(&self, lease: &Lease, id: &str, place: Place, call: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let client = Arc::clone(&lease.client);
        let told = client.calls.begin(id);
        let call = async move {
            let answer = call.await;
            client.record.note(&answer);
            match &answer {
                Err(CallError::Timeout) => told.missed(),
                Err(CallError::Lost(_)) => told.broken(),
                // It has not been asked.
                Err(CallError::Overloaded | CallError::Unsent(_)) => drop(told),
                Ok(_) | Err(_) => told.answered(),
            }
            drop(place);
            answer
        };
        Kept { call: Some(Box::pin(call)), tasks: &self.calls }.await
    }

    /// The client of the first instance that serves, for what needs only one: certificates.
    pub(crate) fn any_client(&self) -> Option<Arc<Client>> {
        self.instances().find_map(Plugin::client)
    }

    /// Whether a client is still one of an instance that serves.
    pub(crate) fn is_current(&self, client: &Arc<Client>) -> bool {
        self.instances().any(|instance| instance.client().is_some_and(|now| Arc::ptr_eq(&now, client)))
    }

    /// Every change of any instance.
    pub(crate) fn watch(&self) -> Watch {
        Watch(self.instances().map(Plugin::watch).collect())
    }

    /// Restarts one instance after the other. The next one's turn comes when the one before serves again, so that a
    /// plugin with several is never without; one that does not come to serve ends the round.
    pub(crate) async fn restart(&self) {
        for instance in self.instances() {
            instance.restart().await;
            let settled =
                instance.watch().wait_for(|status| status.state.is_settled()).await.map(|status| status.state);
            if settled.ok() != Some(State::Serving) {
                return;
            }
        }
    }

    /// Stops every instance.
    pub(crate) async fn stop(&self) {
        join_all(self.instances().map(Plugin::stop)).await;
    }

    /// Starts every instance that does not run, and waits until each serves or has failed to.
    pub(crate) async fn start_again(&self) {
        join_all(self.instances().map(|instance| async {
            instance.start_again().await;
            // An error says that it has been taken off, which its state says too.
            instance.watch().wait_for(|status| status.state.is_settled()).await.map(drop).ok();
        }))
        .await;
    }

    /// Stops every instance for good, and waits for the calls under way, which end with them; but for those of a worker
    /// that stands still.
    pub(super) async fn shutdown(&self) {
        join_all(self.instances().map(Plugin::shutdown)).await;
        self.calls.close();
        if tokio::time::timeout(LAST_CALLS, self.calls.wait()).await.is_err() {
            tracing::warn!(target: "palisade::plugin", plugin = self.name, "calls under way have not ended with it");
        }
    }
}

/// Sees every change of a plugin's instances.
#[derive(Debug)]
pub(crate) struct Watch(Vec<watch::Receiver<Status>>);

impl Watch {
    /// What has happened so far counts as seen.
    pub(crate) fn mark_seen(&mut self) {
        for status in &mut self.0 {
            status.mark_unchanged();
        }
    }

    /// Returns at the next change; `false` when there will be none any more. Cancel safe.
    pub(crate) async fn changed(&mut self) -> bool {
        let changes = self.0.iter_mut().map(|status| Box::pin(status.changed()));
        select_all(changes).await.0.is_ok()
    }
}
