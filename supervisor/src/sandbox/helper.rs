//! The helper's whole life: from a plan to the plugin in its place.
//!
//! The order, and why it is that:
//!
//! 1. Landlock's rules are made: they are about inodes, which are still to be seen.
//! 2. Namespaces: while there may be the privilege for them, and before anything forbids them.
//! 3. Mounts in them, which need the privileges that come with them.
//! 4. The bounding set, groups, user, capabilities: the last that privileges are needed for.
//! 5. Limits: on processes, counted for the user that it is from now on.
//! 6. The parent-death signal: the kernel forgets it when ids change. Then whether the parent is still there.
//! 7. `no_new_privs`, without which the next two are refused.
//! 8. Landlock.
//! 9. seccomp: last, since it forbids what the others are made of.
//! 10. Probes: that what should be gone is gone.
//! 11. The plugin.
//!
//! What comes before, a session, the guard, umask, core files, signals, descriptors, has been done between fork and exec.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use caps::Capability;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid, getppid};
use serde::{Deserialize, Serialize};

use super::files::Rules;
use super::probe::{self, Probe};
use super::syscalls::{self, ExecKey};
use super::{OnMissing, Sandbox, SyscallClass, files, ids, limits, namespaces};
use crate::sys::handover::{self, Handover};

/// What to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) sandbox: Sandbox,
    /// What is executed.
    pub(crate) path: OsString,
    /// With the plugin's own name first.
    pub(crate) arguments: Vec<OsString>,
    /// The plugin's. Not the helper's: what a dynamic loader finds in it would run with the helper's privileges.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The private directory.
    pub(crate) dir: OsString,
    /// The process that it must not outlive.
    pub(crate) host: i32,
    /// Where the answer goes.
    pub(crate) report: i32,
    /// Descriptors that are not for the plugin.
    pub(crate) close: Vec<i32>,
}

/// What the helper tells its host. After `Ready`, silence until the end of the stream means that the plugin runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// All is in force but what is missing.
    Ready { missing: Vec<String>, probes: Vec<Probe>, uid: u32 },
    /// There will be no plugin.
    Failed(String),
}

/// Why a step was not done.
#[derive(Debug)]
pub(super) struct Trouble {
    text: String,
    /// Whether it is for a lack of what the kernel or the privileges give.
    missing: bool,
}

impl Trouble {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn missing(what: String, needs: &str) -> Self {
        Self { text: format!("{what} needs {needs}"), missing: true }
    }

    pub(super) fn failed(act: String, error: io::Error) -> Self {
        Self::plain(format!("{act}: {error}"))
    }

    pub(super) fn plain(text: String) -> Self {
        Self { text, missing: false }
    }
}

/// What could not be had, where that is no error.
#[derive(Debug)]
pub(super) struct Missing {
    tolerated: bool,
    parts: Vec<String>,
}

impl Missing {
    pub(super) fn new(on_missing: OnMissing) -> Self {
        Self { tolerated: on_missing == OnMissing::Warn, parts: Vec::new() }
    }

    pub(super) fn into_parts(self) -> Vec<String> {
        self.parts
    }

    /// The result of a step, `None` where it is missing and may be.
    pub(super) fn tolerate<T>(&mut self, step: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
        match step {
            Ok(done) => Ok(Some(done)),
            Err(trouble) if trouble.missing && self.tolerated => {
                self.parts.push(trouble.text);
                Ok(None)
            }
            Err(trouble) => Err(trouble),
        }
    }
}

/// Carries a sandbox out and executes the plugin in place of this process. `argument` is what the supervisor has added
/// to the helper's arguments. To be called before anything else: this process must have one thread and no descriptors
/// but those that it was started with.
///
/// Returns only where that has failed; the host knows why already. The text is for stderr.
#[must_use]
pub fn sandbox_exec(argument: &str) -> String {
    let plan = match read_plan(argument) {
        Ok(plan) => plan,
        Err(error) => return format!("this command is for palisade's own use: {error}"),
    };
    let mut report = match handover::adopt(plan.report) {
        Ok(report) => report,
        Err(error) => return format!("this command is for palisade's own use: {error}"),
    };
    let text = run(&plan, &mut report);
    tell(&mut report, &Answer::Failed(text.clone())).ok();
    text
}

fn read_plan(argument: &str) -> io::Result<Plan> {
    let fd = argument.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut text = String::new();
    handover::adopt(fd)?.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// The text is what went wrong.
fn run(plan: &Plan, report: &mut File) -> String {
    let handover = match prepare(plan) {
        Ok(handover) => handover,
        Err(error) => return error,
    };
    let [path, arguments, environment] = handover.addresses();
    let missing = match confine(plan, ExecKey { path, arguments, environment }) {
        Ok(missing) => missing,
        Err(trouble) => return trouble.text,
    };
    let probes = probe::all(plan.host, plan.sandbox.cgroup.is_some());
    if let Err(error) = plan.close.iter().try_for_each(|fd| handover::close_at_exec(*fd)) {
        return format!("a descriptor of the plan: {error}");
    }
    if let Err(error) = tell(report, &Answer::Ready { missing, probes, uid: geteuid().as_raw() }) {
        return format!("report to the host: {error}");
    }
    let error = handover.exec();
    format!("execute {}: {error}", Path::new(&plan.path).display())
}

fn prepare(plan: &Plan) -> Result<Handover, String> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a NUL byte in the command".to_owned());
    let path = text(plan.path.as_bytes())?;
    let arguments = plan.arguments.iter().map(|argument| text(argument.as_bytes())).collect::<Result<_, _>>()?;
    let entry = |(name, value): &(OsString, OsString)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat());
    let environment = plan.environment.iter().map(entry).collect::<Result<_, _>>()?;
    Handover::new(path, arguments, environment).map_err(|error| format!("memory for the command: {error}"))
}

fn confine(plan: &Plan, key: ExecKey) -> Result<Vec<String>, Trouble> {
    let sandbox = &plan.sandbox;
    let mut missing = Missing::new(sandbox.on_missing);
    let mut rules = files::prepare(plan, &mut missing)?;
    let given = files::Given::by(plan);
    let countable = missing.tolerate(namespaces::countable(sandbox))?.is_some();
    let entered = missing.tolerate(namespaces::enter(sandbox))?.is_some();
    if entered && sandbox.private_tmp {
        namespaces::hide(plan, &given)?;
        rules = rules.map(|rules| rules.allow_temporary()).transpose()?;
    }
    // Then executing another program might give capabilities back.
    let unbounded = sandbox.capabilities.is_some() && !ids::has(Capability::CAP_SETPCAP);
    missing.tolerate(ids::apply(sandbox.user, sandbox.capabilities.as_ref()))?;
    limits::apply(&sandbox.limits, countable && (entered || sandbox.user.is_some()))?;
    let failed = |act: &str, errno: nix::Error| Trouble::failed(act.to_owned(), errno.into());
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed("ask to die with the host", errno))?;
    if getppid() != Pid::from_raw(plan.host) {
        return Err(Trouble::plain("the host has gone".to_owned()));
    }
    if sandbox.no_new_privs || unbounded || rules.is_some() || !sandbox.deny.is_empty() {
        prctl::set_no_new_privs().map_err(|errno| failed("renounce new privileges", errno))?;
    }
    let ports = rules.as_ref().is_some_and(Rules::with_ports);
    if let Some(rules) = rules {
        rules.restrict()?;
    }
    let mut denied = sandbox.deny.clone();
    if sandbox.files.as_ref().is_some_and(|files| !files.execute.is_empty()) {
        denied.remove(&SyscallClass::Exec);
    }
    syscalls::apply(&denied, ports, key)?;
    Ok(missing.into_parts())
}

fn tell(report: &mut File, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    report.write_all(&line)
}
