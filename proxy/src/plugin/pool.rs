//! The processes of one plugin: which of them a call goes to.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join_all, select_all};
use futures_util::stream::FuturesUnordered;
use palisade_supervisor::{Plugin, PluginSpec, StartError, State, Status, Unavailable};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{CallError, Client, Contracts, Events, Roles};
use crate::config;

/// How long a client whose connection broke may still be its instance's client before it is tried again: the time that
/// an exit takes to be noticed.
const EXIT_NOTICE: Duration = Duration::from_millis(50);

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
}

#[derive(Debug)]
struct Instance {
    supervised: Plugin<Contracts>,
    in_flight: Arc<AtomicUsize>,
}

/// A client that a call may go to.
#[derive(Debug)]
pub(crate) struct Lease {
    client: Arc<Client>,
    index: usize,
    in_flight: Arc<AtomicUsize>,
}

impl std::ops::Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Counts a call for as long as it is under way.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(in_flight: &Arc<AtomicUsize>) -> Self {
        in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(in_flight))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    /// Starts its processes, each with an adapter of its own.
    pub(super) fn start(
        spec: &PluginSpec,
        plugin: &config::Plugin,
        roles: Roles,
        events: &Events,
    ) -> Result<Self, StartError> {
        let several = plugin.instances > 1;
        let start = |instance| {
            let contracts = Contracts::new(plugin, roles, several.then_some(instance), events.clone());
            let supervised = Plugin::start(spec.clone(), contracts)?;
            Ok(Instance { supervised, in_flight: Arc::default() })
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

    /// Its instances, always in the same order.
    pub(crate) fn instances(&self) -> impl ExactSizeIterator<Item = &Plugin<Contracts>> {
        self.instances.iter().map(|instance| &instance.supervised)
    }

    /// The state of each instance.
    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.instances().map(Plugin::status).collect()
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
        let instance = &self.instances[lost.index].supervised;
        let mut status = instance.watch();
        let same = || instance.client().is_some_and(|client| Arc::ptr_eq(&client, &lost.client));
        let notice = deadline.min(Instant::now() + EXIT_NOTICE);
        while same() {
            match tokio::time::timeout_at(notice, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.client_by(deadline).await
    }

    /// Of those that serve, the one with the fewest calls under way.
    fn pick(&self, not: Option<usize>) -> Option<Lease> {
        let count = self.instances.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..count)
            .map(|step| first.wrapping_add(step) % count)
            .filter(|index| Some(*index) != not)
            .filter_map(|index| Some(self.lease(index, self.instances[index].supervised.client()?)))
            .min_by_key(|lease| lease.in_flight.load(Ordering::Relaxed))
    }

    fn lease(&self, index: usize, client: Arc<Client>) -> Lease {
        Lease { client, index, in_flight: Arc::clone(&self.instances[index].in_flight) }
    }

    /// Makes a call about the request `id`, which keeps to its deadline itself. Goes on without a caller who leaves.
    pub(crate) async fn call<T, F>(&self, lease: &Lease, id: &str, call: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let counted = Counted::new(&lease.in_flight);
        let told = lease.client.calls.begin(id);
        let call = async move {
            let answer = call.await;
            match &answer {
                Err(CallError::Timeout) => told.missed(),
                Err(CallError::Lost(_)) => told.broken(),
                // It has not been asked.
                Err(CallError::Overloaded) => drop(told),
                Ok(_) | Err(_) => told.answered(),
            }
            drop(counted);
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

    /// Stops every instance for good, and waits for the calls under way.
    pub(super) async fn shutdown(&self) {
        join_all(self.instances().map(Plugin::shutdown)).await;
        self.calls.close();
        self.calls.wait().await;
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
