//! `palisade run`.

use std::time::Duration;

use palisade_supervisor::{chain, stand_by_as_pid_1};

use super::Failure;
use super::args::Run;
use crate::config;
use crate::runtime;
use crate::telemetry::logs;

/// One that stands still does not keep the supervision of plugins from going on.
const THREADS: usize = 2;

/// How long work that can't be cancelled, such as resolving a name, may hold up the end of the process.
const LAST_WORK: Duration = Duration::from_secs(1);

pub(super) fn run(args: Run) -> Result<(), Failure> {
    stand_by_as_pid_1().map_err(|error| Failure::failed(format_args!("can't run as pid 1: {error}")))?;
    let config = config::load(&args.config).map_err(Failure::Invalid)?;
    let no_threads = |error| Failure::failed(format_args!("can't start threads: {error}"));
    logs::init(args.log_format, &args.log).map_err(no_threads)?;
    // For everything but requests, which have threads of their own.
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .thread_name("palisade")
        .build()
        .map_err(no_threads)?;
    let ended = threads.block_on(runtime::run(config));
    threads.shutdown_timeout(LAST_WORK);
    logs::settle();
    ended.map_err(|error| {
        let message = chain(&error);
        // A plugin's report begins with the word by itself.
        Failure::failed(message.strip_prefix("error: ").unwrap_or(&message))
    })
}
