//! Namespaces: a network without interfaces, and mounts of its own.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use caps::Capability;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid};

use super::files::Given;
use super::helper::{Plan, Trouble};
use super::{Network, Sandbox, ids};
use crate::sys::mounts::{self, Below};

/// What is hidden behind an empty directory where temporary files are private. Beyond these, the host's runtime
/// directory.
const HIDDEN: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev/shm"];

/// Room for temporary files.
const TMP_OPTIONS: &str = "mode=1777,size=64m";
const EMPTY_OPTIONS: &str = "mode=0755,size=1m";

/// Whether processes can be counted for the plugin alone. Root has no number of them that is too high.
pub(super) fn countable(sandbox: &Sandbox) -> Result<(), Trouble> {
    let uid = sandbox.user.map_or_else(|| geteuid().as_raw(), |user| user.uid);
    if sandbox.limits.processes.is_some() && uid == 0 {
        return Err(Trouble::missing("`limits.processes`".to_owned(), "another user than root (`user`)"));
    }
    Ok(())
}

/// Makes the namespaces that a plan asks for. Those who may not do so by themselves get a user namespace, in which they
/// may, and in which processes are counted apart.
pub(super) fn enter(sandbox: &Sandbox) -> Result<(), Trouble> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, sandbox.network == Network::None);
    flags.set(CloneFlags::CLONE_NEWNS, sandbox.private_tmp);
    // What is in there is as open to others as files in `/dev/shm`.
    flags.set(CloneFlags::CLONE_NEWIPC, sandbox.private_tmp);
    let privileged = ids::has(Capability::CAP_SYS_ADMIN);
    let count_apart = sandbox.limits.processes.is_some() && sandbox.user.is_none() && !privileged;
    if flags.is_empty() && !count_apart {
        return Ok(());
    }
    if privileged {
        return unshare(flags).map_err(|errno| failed("make namespaces", errno));
    }
    let (uid, gid) = (geteuid(), getegid());
    if sandbox.user.is_some_and(|user| user.uid != uid.as_raw()) {
        // In the user namespace that it would take, there would be no user but this one.
        return Err(Trouble::missing("namespaces for another user".to_owned(), "CAP_SYS_ADMIN"));
    }
    unshare(flags | CloneFlags::CLONE_NEWUSER).map_err(|errno| {
        let what = format!("namespaces ({errno})");
        Trouble::missing(
            what,
            "CAP_SYS_ADMIN, or user namespaces for unprivileged users (user.max_user_namespaces, AppArmor)",
        )
    })?;
    // Without it, nobody but root may map a group.
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
    {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| Trouble::failed(format!("write /proc/self/{file}"), error))?;
    }
    Ok(())
}

/// Puts empty directories over what is hidden, and what is given back into them.
pub(super) fn hide(plan: &Plan, given: &Given) -> Result<(), Trouble> {
    let none: Option<&str> = None;
    // Nothing of what follows is seen outside.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| failed("make mounts private", errno))?;
    let act = |error: io::Error| Trouble::failed("the working directory".to_owned(), error);
    let cwd = env::current_dir().map_err(act)?;
    let (private, hidden) = (PathBuf::from(&plan.dir), HIDDEN.map(Path::new).map(Path::to_owned));
    let runtime = private.parent().map_or_else(|| private.clone(), Path::to_owned);
    let hidden: Vec<_> = hidden.into_iter().filter(|path| is_plain_dir(path)).collect();
    // Held open while they are out of sight.
    let mut held = Vec::new();
    for path in std::iter::once(&private).chain(&given.paths) {
        if hidden.iter().chain([&runtime]).any(|dir| path.starts_with(dir) && path != dir) && path.exists() {
            let writable = path.starts_with(&private) || given.is_writable(path);
            held.push(Held { path: path.clone(), fd: hold(path)?, writable });
        }
    }
    // Parents before what is in them.
    held.sort_by(|one, other| one.path.cmp(&other.path));
    for dir in &hidden {
        cover(dir)?;
    }
    let (of_runtime, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.path.starts_with(&runtime));
    give_back(&others)?;
    // Whatever has been given back around it: the host's socket is in there, and other plugins' are.
    if runtime.exists() {
        cover(&runtime)?;
    }
    give_back(&of_runtime)?;
    make_dirs(&cwd).map_err(act)?;
    if let Some(writable) = given.writable() {
        let shown = |dir: &Path| hidden.iter().chain([&runtime]).all(|hidden| !dir.starts_with(hidden));
        let private = [Path::new("/tmp"), &private];
        keep(writable.iter().map(PathBuf::as_path), shown, &private)?;
    }
    // Until here it is the directory that is out of sight, with all that is below it.
    env::set_current_dir(&cwd).map_err(act)
}

/// Lets nothing be written but what is `writable`, and the `private` directories. Landlock has no say in modes, owners,
/// times and attributes, and its rule for `/tmp` holds for all that is given back below it.
fn keep<'a>(
    writable: impl Iterator<Item = &'a Path> + Clone,
    shown: impl Fn(&Path) -> bool,
    private: &[&'a Path],
) -> Result<(), Trouble> {
    let none: Option<&str> = None;
    let writable = writable.filter(|path| path.exists());
    for path in writable.clone().filter(|path| shown(path)) {
        // A mount of its own, that can be told from the others.
        mount(Some(path), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .map_err(|errno| failed(&format!("mount {}", path.display()), errno))?;
    }
    let act = |what: &Path| format!("what may be written: {}", what.display());
    let root = Path::new("/");
    match mounts::forbid_writing(root) {
        // Linux before 5.12, which has no Landlock that is of use here either: that is missing already.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(()),
        done => done.map_err(|error| Trouble::failed(act(root), error))?,
    }
    // What is read only has been mounted into `/tmp`, and nothing into the private directory.
    let below = writable.map(|path| (path, Below::Too)).chain(private.iter().map(|path| (*path, Below::Not)));
    for (path, below) in below {
        match mounts::allow_writing(path, below) {
            // It could not be written before, or is a part of one that can.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL)) => {}
            done => done.map_err(|error| Trouble::failed(act(path), error))?,
        }
    }
    Ok(())
}

fn cover(dir: &Path) -> Result<(), Trouble> {
    let options = if dir == Path::new("/tmp") { TMP_OPTIONS } else { EMPTY_OPTIONS };
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .map_err(|errno| failed(&format!("hide {}", dir.display()), errno))
}

/// What is to be seen at its place again.
struct Held {
    path: PathBuf,
    fd: OwnedFd,
    writable: bool,
}

fn give_back(held: &[Held]) -> Result<(), Trouble> {
    let none: Option<&str> = None;
    for Held { path, fd, writable } in held {
        let act = |error: io::Error| Trouble::failed(format!("give {} back", path.display()), error);
        let source = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let is_there = path.exists();
        if is_there && !writable {
            // In a directory that has been given back.
            continue;
        }
        let is_dir = fs::metadata(&source).map_err(act)?.is_dir();
        let parent = if is_dir { Some(path.as_path()) } else { path.parent() };
        if let Some(parent) = parent {
            make_dirs(parent).map_err(act)?;
        }
        if !is_dir && !is_there {
            fs::File::create(path).map_err(act)?;
        }
        mount(Some(&source), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .map_err(|errno| act(errno.into()))?;
    }
    Ok(())
}

/// Passable for whoever the plugin runs as, whatever the umask is.
fn make_dirs(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut missing: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    while let Some(dir) = missing.pop() {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// `/var/run` and the like are links to what is hidden already.
fn is_plain_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn hold(path: &Path) -> Result<OwnedFd, Trouble> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| failed(&format!("open {}", path.display()), errno))
}

fn failed(act: &str, errno: nix::Error) -> Trouble {
    Trouble::failed(act.to_owned(), io::Error::from(errno))
}
