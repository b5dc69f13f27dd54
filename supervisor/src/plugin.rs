//! A plugin by its name: the handle that callers and operators hold.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::instance::{Adapter, Instance, Request, Slot};
use crate::lifecycle::Order;
use crate::process::{PrivateDirError, prepare_runtime_dir, sweep};
use crate::sandbox::sweep_cgroups;
use crate::spec::{PluginSpec, SpecError};
use crate::status::{Outlook, State, Status};

/// A supervised plugin. Cheap to clone; all clones are the same plugin.
///
/// End it with [`Plugin::shutdown`]. When the last clone is dropped without it, the plugin's processes are killed,
/// without being asked first and without anybody waiting for it.
pub struct Plugin<A: Adapter> {
    shared: Arc<Shared<A::Client>>,
}

struct Shared<C> {
    spec: Arc<PluginSpec>,
    slot: Slot<C>,
    status: watch::Receiver<Status>,
    orders: mpsc::Sender<Request>,
    instance: Mutex<Option<JoinHandle<()>>>,
}

/// Why a plugin could not be taken on. What goes wrong later is no error of a call but part of [`Status`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The specification.
    #[error("plugin `{plugin}`")]
    Spec {
        /// The plugin's name.
        plugin: String,
        /// What is wrong.
        #[source]
        source: SpecError,
    },
    /// The runtime directory.
    #[error("plugin `{plugin}`")]
    RuntimeDir {
        /// The plugin's name.
        plugin: String,
        /// What is wrong.
        #[source]
        source: PrivateDirError,
    },
    /// Nothing to run tasks on.
    #[error("plugin `{0}`: not called within a tokio runtime")]
    NoRuntime(String),
}

/// No client can be had in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugin `{plugin}` is unavailable ({state})")]
pub struct Unavailable {
    /// The plugin's name.
    pub plugin: String,
    /// What it is doing instead of serving.
    pub state: State,
}

impl<A: Adapter> Plugin<A> {
    /// Takes a plugin on and starts it, or connects to one that is [`PluginSpec::found`]. Returns before it serves: [`Plugin::wait_client`] and [`Plugin::watch`] tell
    /// when it does. Leftovers of a killed host in the runtime directory are removed.
    ///
    /// # Errors
    ///
    /// Where no start could ever work: a faulty specification, or a runtime directory that is unsafe or too long.
    pub fn start(spec: PluginSpec, adapter: A) -> Result<Self, StartError> {
        let plugin = spec.name.clone();
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime(plugin.clone()))?;
        spec.check().map_err(|source| StartError::Spec { plugin: plugin.clone(), source })?;
        let unusable = |source| StartError::RuntimeDir { plugin: plugin.clone(), source };
        if spec.found.is_none() {
            prepare_runtime_dir(&spec.runtime_dir).map_err(unusable)?;
            sweep(&spec.runtime_dir).map_err(unusable)?;
            sweep_cgroups();
        }

        let spec = Arc::new(spec);
        let slot = Slot::default();
        let (orders, inbox) = mpsc::channel(16);
        let (instance, status) = Instance::new(spec.clone(), adapter, slot.clone(), inbox);
        let instance = Mutex::new(Some(runtime.spawn(instance.run())));
        Ok(Self { shared: Arc::new(Shared { spec, slot, status, orders, instance }) })
    }

    /// The plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.spec.name
    }

    /// What it was started with.
    #[must_use]
    pub fn spec(&self) -> &PluginSpec {
        &self.shared.spec
    }

    /// The client of the serving process; `None` while none serves. Takes no lock. A client stays usable for calls
    /// under way after its process has been replaced; they fail, others are not affected. So take it for each call.
    #[must_use]
    pub fn client(&self) -> Option<Arc<A::Client>> {
        self.shared.slot.load_full()
    }

    /// The client: at once while one serves, else as soon as one does. Cancel safe.
    ///
    /// # Errors
    ///
    /// When `deadline` passes; at once when nothing can come before it, because the plugin is stopped or the next
    /// attempt to start it is later.
    pub async fn wait_client(&self, deadline: impl Into<Instant>) -> Result<Arc<A::Client>, Unavailable> {
        if let Some(client) = self.client() {
            return Ok(client);
        }
        let deadline = deadline.into();
        let mut status = self.shared.status.clone();
        loop {
            let (state, outlook) = {
                let now = status.borrow_and_update();
                (now.state, now.outlook)
            };
            // After the state was read: a change from here on wakes the wait below.
            if let Some(client) = self.client() {
                return Ok(client);
            }
            let unavailable = || Unavailable { plugin: self.name().to_owned(), state };
            let hopeless = match outlook {
                Outlook::Soon => false,
                Outlook::NotBefore(attempt) => attempt > deadline,
                Outlook::Never => true,
            };
            if hopeless {
                return Err(unavailable());
            }
            match timeout_at(deadline, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(unavailable()),
            }
        }
    }

    /// A snapshot of what it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Every change of it. States that pass quickly may be skipped; the latest is always seen.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Stops the process and starts a new one; starts one where none runs. Earlier failures are forgotten. Returns
    /// when the old process has gone and the new one is being started. Cancel safe: once begun, it is carried out.
    pub async fn restart(&self) {
        self.order(Order::Restart).await;
    }

    /// Stops the process. None is started until [`Plugin::start_again`] or [`Plugin::restart`]. Returns when it has
    /// gone. Cancel safe: once begun, it is carried out.
    pub async fn stop(&self) {
        self.order(Order::Stop).await;
    }

    /// Starts a process where none runs; earlier failures are forgotten. Returns when it is being started. Cancel
    /// safe: once begun, it is carried out.
    pub async fn start_again(&self) {
        self.order(Order::Start).await;
    }

    /// Has nothing started any more until [`Plugin::release`], whatever ends and whoever asks; or connected to, if it is
    /// [`PluginSpec::found`]. What serves goes on, and a start that is under way is ended. Returns when no start is
    /// under way. Cancel safe: once begun, it is carried out.
    pub async fn hold(&self) {
        self.order(Order::Hold).await;
    }

    /// Ends [`Plugin::hold`]: a start that was put off comes now. Returns when it is under way. Cancel safe: once
    /// begun, it is carried out.
    pub async fn release(&self) {
        self.order(Order::Release).await;
    }

    /// Stops for good: when it returns, no process, task or directory of the plugin is left. Bounded by the limits of
    /// [`crate::StopPolicy`]. Cancel safe: once begun, it is carried out.
    pub async fn shutdown(&self) {
        self.order(Order::Finish).await;
        let mut instance = self.shared.instance.lock().await;
        if let Some(task) = instance.as_mut() {
            // A panic in there has been reported by the runtime, and its process dropped, so killed.
            task.await.ok();
            *instance = None;
        }
    }

    /// Gives an order and waits until it has been carried out, or until there is nobody to do so.
    async fn order(&self, order: Order) {
        let (done, carried_out) = oneshot::channel();
        if self.shared.orders.send(Request { order, done }).await.is_ok() {
            carried_out.await.ok();
        }
    }
}

impl<A: Adapter> Clone for Plugin<A> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<A: Adapter> fmt::Debug for Plugin<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name()).field("state", &self.status().state).finish()
    }
}
