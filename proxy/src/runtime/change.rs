//! Changes of what is in force, one after the other: the new is made beside the old, takes over when all of it serves,
//! and is undone when it does not last. What was replaced goes when nobody uses it any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use palisade_supervisor::{ExitCause, NotServing, Plugin, State, Status, chain};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::generation::{Generation, Key};
use super::handover::{self, Handed};
use super::{END, Error, House};
use crate::admin::{Change, Changed, Differences, Order, Refused};
use crate::config::{self, Address, Config, Problems};
use crate::listener::{self, Acceptor, Bound, Handle, Inherited, Open, Slot};
use crate::plugin::{Contracts, Plugins, Running};
use crate::telemetry::Outcome;
use crate::workers::Workers;

/// Everything that is in force, and what leaves.
#[derive(Debug)]
pub(super) struct Changes {
    house: Arc<House>,
    current: Generation,
    open: Vec<OpenListener>,
    /// Counts what was in force, from 1.
    number: u64,
    /// By name, the plugins that were replaced and are not gone yet: at most one of each.
    leaving: BTreeMap<String, JoinHandle<()>>,
    /// Whether another process serves.
    succeeded: bool,
}

/// A socket that takes connections.
#[derive(Debug)]
struct OpenListener {
    key: Key,
    address: Address,
    slot: Arc<Slot>,
    /// By each worker.
    accepting: Vec<JoinHandle<()>>,
    /// For a successor; none in a drain.
    handle: Option<Handle>,
}

/// Why [`Changes::work`] has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worked {
    /// Nobody is left to give orders.
    NoOrders,
    /// Another process serves.
    Succeeded,
}

impl OpenListener {
    /// Takes no more connections; returns when the address is free, or a worker that stands still has kept it for too long.
    async fn close(self, house: &House, timeout: Duration) {
        let Self { slot, accepting, handle, .. } = self;
        drop(handle);
        let end = house.end_background.clone();
        house.background.spawn(async move { end.run_until_cancelled(slot.close(timeout)).await });
        // An error in there would be a panic, which has been reported.
        if tokio::time::timeout(END, join_all(accepting)).await.is_err() {
            tracing::warn!(target: "palisade", "a listener that was closed is still held by a worker");
        }
    }
}

pub(super) fn warn_of_open_secrets(config: &Config) {
    if let Some(warning) = config.open_secret() {
        tracing::warn!(target: "palisade", "{warning}");
    }
}

/// Takes the addresses of a configuration that are not held yet: those that this process was given, and others.
pub(super) fn bind(config: &Config, open: &[Key], given: &mut Vec<Inherited>) -> Result<Vec<(Key, Bound)>, Error> {
    let added = config.listeners.iter().filter(|listener| !open.contains(&Key::of(listener)));
    let mut take = |listener: &config::Listener| match given.iter().position(|given| given.is_of(listener)) {
        Some(index) => given.swap_remove(index).bound(&listener.address),
        None => listener::bind(&listener.address),
    };
    let bind = |listener: &config::Listener| match take(listener) {
        Ok(bound) => Ok((Key::of(listener), bound)),
        Err(source) => {
            let (listener, address) = (listener.name.clone(), listener.address.clone());
            Err(Error::Listen { listener, address, source })
        }
    };
    added.map(bind).collect()
}

/// A socket that takes connections soon.
#[derive(Debug)]
struct Added {
    key: Key,
    open: Open,
    /// For each worker.
    acceptors: Vec<Acceptor>,
    address: Address,
    handle: Handle,
}

/// Begins to listen. Connections wait until [`Changes`] takes them.
fn listen(bound: Vec<(Key, Bound)>, generation: &Generation, workers: &Workers) -> Result<Vec<Added>, Error> {
    let listen = |(key, bound): (Key, Bound)| {
        let service = generation.listener(&key).map(|listener| Arc::clone(&listener.serving.service));
        let service = service.ok_or_else(|| Error::Internal(format!("no listener for {key:?}")))?;
        let failed =
            |source| Error::Listen { listener: service.name.to_string(), address: service.address.clone(), source };
        let open = bound.open().map_err(failed)?;
        let address = open.address().map_err(failed)?;
        let handle = open.handle().map_err(failed)?;
        let acceptors = workers.handles().iter().map(|worker| open.acceptor(worker));
        let acceptors = acceptors.collect::<Result<_, _>>().map_err(failed)?;
        Ok(Added { key, open, acceptors, address, handle })
    };
    bound.into_iter().map(listen).collect()
}

impl Changes {
    /// Opens the listeners of the first generation.
    pub(super) fn begin(house: Arc<House>, first: Generation, bound: Vec<(Key, Bound)>) -> Result<Self, Error> {
        let added = listen(bound, &first, &house.workers)?;
        let mut changes =
            Self { house, current: first, open: Vec::new(), number: 1, leaving: BTreeMap::new(), succeeded: false };
        changes.shift(added);
        changes.show();
        Ok(changes)
    }

    /// How long requests may go on when everything ends.
    pub(super) fn drain_timeout(&self) -> Duration {
        self.current.config.drain_timeout
    }

    /// Carries out orders, until nobody is left to give any. Cancel safe: whatever a change has begun is stopped with
    /// everything else.
    pub(super) async fn work(&mut self, orders: &mut mpsc::Receiver<Order>) -> Worked {
        while let Some(Order { change, answer }) = orders.recv().await {
            let done = self.carry_out(&change).await;
            self.house.metrics.changed(change.kind(), outcome(&done));
            match &done {
                Ok(changed) => tracing::info!(
                    target: "palisade", change = %change, generation = changed.generation, sha256 = changed.hash,
                    plugins = %changed.plugins, listeners = %changed.listeners, "changed",
                ),
                Err(refused) => tracing::error!(
                    target: "palisade", change = %change, error = %refused, "not changed, what was there goes on",
                ),
            }
            if self.succeeded {
                // Who has been told that another process serves is not to be answered by this one.
                self.house.retirement.retire().await;
            }
            if let Some(answer) = answer {
                // Whoever asked may have left.
                answer.send(done).ok();
            }
            if self.succeeded {
                return Worked::Succeeded;
            }
        }
        Worked::NoOrders
    }

    /// Has a new process take everything over that is there only once.
    async fn succeed(&mut self) -> Result<Changed, Refused> {
        let name = |open: &OpenListener| {
            let listener = self.current.listener(&open.key);
            listener.map(|listener| listener.serving.service.name.to_string()).unwrap_or_default()
        };
        let handles = self.open.iter().filter_map(|open| Some((name(open), open.handle.as_ref()?)));
        let listeners: Vec<_> = handles.collect();
        let admin = &self.house.admin;
        // Before the other one takes over, so that its files are not removed whatever becomes of this one meanwhile.
        let leave = |left| listeners.iter().map(|(_, handle)| *handle).chain([admin]).for_each(|it| it.leave(left));
        leave(true);
        let (runtime_dir, lock) = (&*self.house.runtime_dir, self.house.lock.as_fd());
        let succeeded = handover::succeed(Handed { runtime_dir, lock, admin, listeners: &listeners }).await;
        let pid = succeeded.map_err(|why| {
            leave(false);
            Refused::Failed(why)
        })?;
        drop(listeners);
        self.succeeded = true;
        let (plugins, listeners) = (Differences::default(), Differences::default());
        let hash = self.current.config.hash.clone();
        Ok(Changed { generation: self.number, hash, plugins, listeners, successor: Some(pid) })
    }

    /// No successor will be there any more: the sockets close when they take no more connections.
    pub(super) fn let_go(&mut self) {
        for open in &mut self.open {
            open.handle = None;
        }
    }

    async fn carry_out(&mut self, change: &Change) -> Result<Changed, Refused> {
        match change {
            Change::Reload => {
                let (config, dir) = (self.read().await?, &self.house.runtime_dir);
                if config.runtime_dir.canonicalize().ok().as_ref() != Some(dir) {
                    let message = format!("`runtime_dir` is {} while the proxy runs", dir.display());
                    let help = "restart the proxy to change it";
                    return Err(Refused::Invalid(Problems::of_file(&config.file, message, help)));
                }
                let workers = self.house.workers.handles().len();
                if config.workers != workers {
                    let message = format!("`workers` is {workers} while the proxy runs");
                    let help = "restart the proxy, or run `palisade upgrade-self`, to change it";
                    return Err(Refused::Invalid(Problems::of_file(&config.file, message, help)));
                }
                let config = Config { runtime_dir: dir.clone(), ..config };
                self.apply(config, None).await
            }
            Change::Upgrade(name) => {
                let mut config = self.current.config.clone();
                match config.plugins.get_mut(name) {
                    Some(plugin) => plugin.look_again(),
                    None => return Err(Refused::Failed(format!("no plugin is called `{name}`"))),
                }
                self.apply(config, Some(name)).await
            }
            Change::UpgradeSelf => self.succeed().await,
        }
    }

    async fn read(&self) -> Result<Config, Refused> {
        let file = self.current.config.file.clone();
        match tokio::task::spawn_blocking(move || config::load(&file)).await {
            Ok(read) => {
                let config = read.map_err(Refused::Invalid)?;
                warn_of_open_secrets(&config);
                Ok(config)
            }
            Err(error) => Err(Refused::Failed(format!("the file could not be read: {error}"))),
        }
    }

    /// Puts a configuration in force, or leaves everything as it is.
    async fn apply(&mut self, config: Config, renew: Option<&str>) -> Result<Changed, Refused> {
        self.room_for(&config, renew).await;
        let former = Arc::clone(&self.current.plugins);
        let prepared = async {
            let held: Vec<_> = self.open.iter().map(|open| open.key.clone()).collect();
            let bound = bind(&config, &held, &mut Vec::new())?;
            former.make_way(&config, renew).await;
            let plugins = match Plugins::start(&config, &former, renew, &self.house.plugins) {
                Ok(plugins) => Arc::new(plugins),
                Err(error) => {
                    former.come_back(&Plugins::default()).await;
                    return Err(error.into());
                }
            };
            let made = async {
                let next = Generation::new(&self.house, config, Arc::clone(&plugins), Some(&self.current))?;
                next.ready(Some(&self.current), None).await?;
                let added = listen(bound, &next, &self.house.workers)?;
                Ok::<_, Error>((next, added))
            };
            match made.await {
                Ok(made) => Ok(made),
                Err(error) => {
                    // First: what is dismissed may take its time.
                    former.come_back(&plugins).await;
                    join_all(plugins.without(&former).map(|plugin| self.house.plugins.dismiss(plugin))).await;
                    Err(error)
                }
            }
        };
        let (next, added) = prepared.await.map_err(|error: Error| Refused::Failed(told(&error)))?;

        let differences = differences(&self.current, &next);
        let before = std::mem::replace(&mut self.current, next);
        let number = self.number;
        let opened: Vec<_> = added.iter().map(|added| added.key.clone()).collect();
        self.number += 1;
        self.shift(added);
        self.show();
        if let Err(report) = self.lasts(&former).await {
            let undone = std::mem::replace(&mut self.current, before);
            // First: requests wait for a plugin that is to be configured, and fail where it has another configuration.
            former.come_back(&undone.plugins).await;
            self.shift(Vec::new());
            self.house.in_force.set(number, &self.current.config.hash, &self.current.plugins);
            self.house.connections.overload.set(&self.current.config);
            self.close(|key| opened.contains(key)).await;
            self.show_listeners();
            self.leave(&undone).await;
            return Err(Refused::Undone(report));
        }
        let gone = |key: &Key| self.current.listener(key).is_none();
        let gone: Vec<_> = self.open.iter().map(|open| open.key.clone()).filter(gone).collect();
        self.close(|key| gone.contains(key)).await;
        self.show_listeners();
        self.part(&before);
        self.leave(&before).await;
        let (plugins, listeners) = differences;
        let hash = self.current.config.hash.clone();
        Ok(Changed { generation: self.number, hash, plugins, listeners, successor: None })
    }

    /// Waits until earlier processes of the plugins that will be replaced have gone: of each there are at most two
    /// generations.
    async fn room_for(&mut self, config: &Config, renew: Option<&str>) {
        self.leaving.retain(|_, leaving| !leaving.is_finished());
        let replaced = config.plugins.keys().filter(|name| self.current.plugins.lasting(config, name, renew).is_none());
        for name in replaced {
            if let Some(leaving) = self.leaving.remove(name) {
                leaving.await.ok();
            }
        }
    }

    /// Lets the current generation serve: on the sockets there are, and on those that were added.
    fn shift(&mut self, added: Vec<Added>) {
        for open in &self.open {
            if let Some(listener) = self.current.listener(&open.key) {
                open.slot.serve_by(Arc::clone(&listener.serving));
            }
        }
        for Added { key, open, acceptors, address, handle } in added {
            open.claim();
            let Some(listener) = self.current.listener(&key) else { continue };
            let name = &*listener.serving.service.name;
            tracing::info!(target: "palisade", listener = name, address = %address, "listening");
            let slot = Arc::new(Slot::new(Arc::clone(&listener.serving), &self.house.connections.drain));
            let tasks = &self.house.connections.tasks;
            let accepting = acceptors.into_iter().zip(self.house.workers.handles().iter());
            let accepting = accepting
                .map(|(acceptor, worker)| tasks.spawn_on(listener::accept(acceptor, Arc::clone(&slot)), worker))
                .collect();
            self.open.push(OpenListener { key, address, slot, accepting, handle: Some(handle) });
        }
    }

    /// Whether the plugins that took over from `former` ones last for as long as they have to.
    async fn lasts(&self, former: &Plugins) -> Result<(), String> {
        let watched = self.current.plugins.without(former).filter(|plugin| former.get(plugin.name()).is_some());
        let watched = watched.map(|plugin| async move {
            let probation = self.current.config.plugins.get(plugin.name()).map(|plugin| plugin.probation);
            let falls = try_join_all(plugin.instances().map(falls));
            match tokio::time::timeout(probation.unwrap_or_default(), falls).await {
                Ok(Err(report)) => Err(report),
                Ok(Ok(_)) | Err(_) => Ok(()),
            }
        });
        try_join_all(watched).await.map(drop)
    }

    /// Closes listeners. Their open connections have the drain timeout.
    async fn close(&mut self, which: impl Fn(&Key) -> bool) {
        let timeout = self.current.config.drain_timeout;
        let (closed, kept) = std::mem::take(&mut self.open).into_iter().partition(|open| which(&open.key));
        self.open = kept;
        let closed: Vec<OpenListener> = closed;
        join_all(closed.into_iter().map(|open| open.close(&self.house, timeout))).await;
    }

    /// Ends the connections whose listener has changed between cleartext and TLS.
    fn part(&self, before: &Generation) {
        let timeout = self.current.config.drain_timeout;
        let now = |key: &Key| self.current.listener(key).map(|listener| &listener.serving.service);
        for listener in &before.listeners {
            let before = &listener.serving.service;
            if now(&listener.key).is_some_and(|now| now.tls.is_some() != before.tls.is_some()) {
                let (connections, end) = (before.connections.clone(), self.house.end_background.clone());
                connections.drain.cancel();
                self.house.background.spawn(async move {
                    end.run_until_cancelled(tokio::time::sleep(timeout)).await;
                    connections.end.cancel();
                });
            }
        }
    }

    /// Stops what is only of `generation`, once the requests that began with it have ended. What others have started is
    /// no longer its to configure.
    async fn leave(&mut self, generation: &Generation) {
        for plugin in generation.plugins.without(&self.current.plugins) {
            if plugin.is_found() {
                plugin.hold().await;
            }
            let (house, plugin) = (Arc::clone(&self.house), Arc::clone(plugin));
            let timeout = self.current.config.drain_timeout;
            let name = plugin.name().to_owned();
            let leaving = self.house.background.spawn(async move {
                tokio::select! {
                    _ = tokio::time::timeout(timeout, plugin.unused()) => {}
                    () = house.end_background.cancelled() => {}
                }
                house.plugins.dismiss(&plugin).await;
            });
            self.leaving.insert(name, leaving);
        }
    }

    /// Tells who asks what is in force.
    fn show(&self) {
        self.house.in_force.set(self.number, &self.current.config.hash, &self.current.plugins);
        self.house.connections.overload.set(&self.current.config);
        self.show_listeners();
    }

    fn show_listeners(&self) {
        let address = |key: &Key| self.open.iter().find(|open| open.key == *key).map(|open| open.address.clone());
        let listeners = self.current.listeners.iter();
        let listeners = listeners.filter_map(|it| Some((it.serving.service.name.to_string(), address(&it.key)?)));
        self.house.readiness.ready(listeners.collect());
    }
}

/// Returns when an instance ends without having been asked to, with its report; or when it does not pass a health check.
async fn falls(instance: &Plugin<Contracts>) -> Result<(), String> {
    let ended = |status: &Status| {
        let exit = status.last_exit.as_ref().filter(|exit| !matches!(exit.cause, ExitCause::Requested))?;
        Some(exit.to_string())
    };
    let ails = |status: &Status| match status.state {
        // A check is under way, and decides.
        State::NotServing { why: NotServing::Suspect } => None,
        State::NotServing { why } => Some(format!("plugin `{}` does not serve: {why}", status.name)),
        _ if status.missed_checks > 0 => Some(format!("plugin `{}` missed a health check", status.name)),
        _ => None,
    };
    let fallen = |status: &Status| ended(status).or_else(|| ails(status));
    match instance.watch().wait_for(|status| fallen(status).is_some()).await {
        Ok(status) => Err(fallen(&status).unwrap_or_default()),
        // Shut down for good, as everything is.
        Err(_) => Ok(()),
    }
}

/// By name, the plugins and the listeners that a change adds, replaces and removes.
fn differences(before: &Generation, next: &Generation) -> (Differences, Differences) {
    let named = |plugins: &Plugins, others: &Plugins, there: bool| {
        let plugins = plugins.without(others).map(|plugin: &Arc<Running>| plugin.name().to_owned());
        plugins.filter(|name| others.get(name).is_some() == there).collect()
    };
    let plugins = Differences {
        added: named(&next.plugins, &before.plugins, false),
        replaced: named(&next.plugins, &before.plugins, true),
        removed: named(&before.plugins, &next.plugins, false),
    };
    let missing = |of: &Generation, others: &Generation| {
        let missing = of.listeners.iter().filter(|listener| others.listener(&listener.key).is_none());
        missing.map(|listener| listener.serving.service.name.to_string()).collect()
    };
    let listeners = Differences { added: missing(next, before), replaced: Vec::new(), removed: missing(before, next) };
    (plugins, listeners)
}

fn outcome(done: &Result<Changed, Refused>) -> Outcome {
    match done {
        Ok(_) => Outcome::Done,
        Err(Refused::Undone(_)) => Outcome::Undone,
        Err(Refused::Invalid(_) | Refused::Failed(_)) => Outcome::Refused,
    }
}

/// For people. A plugin's report begins with the word by itself.
fn told(error: &Error) -> String {
    let text = chain(error);
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}
