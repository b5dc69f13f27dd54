//! Workers: threads that serve, each with a runtime of its own.
//!
//! A connection stays with the worker that has taken it, and with it everything that a request needs: timers,
//! connections to upstreams, connections to plugins. So nothing moves from core to core on its way, and where a request
//! meets others there is nobody to wait for. All else, such as the supervision of plugins, is work of the runtime that
//! starts the workers.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Threads of one worker for work that can't be waited for otherwise: resolving names.
const BLOCKING_THREADS: usize = 16;

/// How long work that can't be cancelled may hold up the end.
const LAST_WORK: Duration = Duration::from_secs(1);

thread_local! {
    /// The worker whose thread this is, from 1; 0 on all other threads.
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Workers {
    each: Arc<[Handle]>,
    end: CancellationToken,
    alive: TaskTracker,
}

impl Workers {
    /// Starts `count` of them.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let (end, alive) = (CancellationToken::new(), TaskTracker::new());
        let mut each = Vec::new();
        for number in 1..=count {
            let name = format!("palisade-{number}");
            let runtime = Builder::new_current_thread()
                .enable_all()
                .thread_name(&name)
                .max_blocking_threads(BLOCKING_THREADS)
                .build()?;
            each.push(runtime.handle().clone());
            let (end, alive) = (end.clone(), alive.token());
            std::thread::Builder::new().name(name).spawn(move || {
                HERE.set(number);
                runtime.block_on(end.cancelled());
                runtime.shutdown_timeout(LAST_WORK);
                drop(alive);
            })?;
        }
        Ok(Self { each: each.into(), end, alive })
    }

    pub(crate) fn handles(&self) -> &Arc<[Handle]> {
        &self.each
    }

    /// Ends the threads, and whatever they still work on. One that stands still ends with the process.
    pub(crate) async fn end(&self) {
        self.end.cancel();
        self.alive.close();
        tokio::time::timeout(2 * LAST_WORK, self.alive.wait()).await.ok();
    }
}

/// What each worker has for itself, and the rest of the proxy together.
#[derive(Debug)]
pub(crate) struct PerWorker<T>(Box<[T]>);

impl<T> PerWorker<T> {
    /// For so many workers.
    pub(crate) fn new(workers: usize, make: impl FnMut() -> T) -> Self {
        let mut make = make;
        Self((0..=workers).map(|_| make()).collect())
    }

    /// What belongs to no worker, and that of each.
    pub(crate) fn of(rest: T, each: Vec<T>) -> Self {
        Self([rest].into_iter().chain(each).collect())
    }

    /// That of the worker whose thread this is.
    pub(crate) fn here(&self) -> &T {
        &self.0[HERE.get() % self.0.len()]
    }

    /// What belongs to no worker.
    pub(crate) fn rest(&self) -> &T {
        &self.0[0]
    }

    /// The same for something else.
    pub(crate) fn map<U>(&self, make: impl FnMut(&T) -> U) -> PerWorker<U> {
        PerWorker(self.0.iter().map(make).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}
