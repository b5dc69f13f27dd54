//! Resource limits. They are lowered only, so they need no privilege.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Limits;
use super::helper::Trouble;

/// `counted`: whether processes are counted for the plugin alone. Otherwise a limit would count the host's own.
pub(super) fn apply(limits: &Limits, counted: bool) -> Result<(), Trouble> {
    let cpu_time = limits.cpu_time.map(|time| time.as_secs().max(1));
    for (name, resource, limit) in [
        ("memory", Resource::RLIMIT_DATA, limits.memory),
        ("open_files", Resource::RLIMIT_NOFILE, limits.open_files),
        ("processes", Resource::RLIMIT_NPROC, limits.processes.filter(|_| counted)),
        ("file_size", Resource::RLIMIT_FSIZE, limits.file_size),
        ("cpu_time", Resource::RLIMIT_CPU, cpu_time),
    ] {
        let Some(limit) = limit else { continue };
        let failed = |errno: nix::Error| Trouble::failed(format!("limit {name}"), io::Error::from(errno));
        let (_, hard) = getrlimit(resource).map_err(failed)?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit).map_err(failed)?;
    }
    Ok(())
}
