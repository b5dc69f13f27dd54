//! User, groups and capabilities.

use std::collections::BTreeSet;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use super::User;
use super::helper::Trouble;

/// Whether this process has a capability now.
pub(super) fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Becomes another user, who keeps the capabilities in `kept` only.
pub(super) fn apply(user: Option<User>, kept: Option<&BTreeSet<String>>) -> Result<(), Trouble> {
    let wanted = kept.map(parsed).transpose()?;
    if let Some(wanted) = &wanted {
        drop_bounding(wanted)?;
    }
    if let Some(user) = user {
        switch(user, wanted.as_ref().is_some_and(|wanted| !wanted.is_empty()))?;
    }
    match &wanted {
        Some(wanted) => keep(wanted),
        None => Ok(()),
    }
}

fn parsed(names: &BTreeSet<String>) -> Result<CapsHashSet, Trouble> {
    let parse = |name: &String| name.parse().map_err(|_| Trouble::plain(format!("no capability is called `{name}`")));
    names.iter().map(parse).collect()
}

/// What no process after this one can get back, by no program. Without the privilege to do so nothing is dropped here,
/// and `no_new_privs` has to keep it out of reach.
fn drop_bounding(kept: &CapsHashSet) -> Result<(), Trouble> {
    if !has(Capability::CAP_SETPCAP) {
        return Ok(());
    }
    let bounding = caps::read(None, CapSet::Bounding).map_err(|error| failed("capabilities", &error))?;
    for capability in bounding.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(|error| failed("drop a capability", &error))?;
    }
    Ok(())
}

fn switch(user: User, keeps_capabilities: bool) -> Result<(), Trouble> {
    if user.uid == geteuid().as_raw() && !has(Capability::CAP_SETUID) {
        return Ok(());
    }
    if !has(Capability::CAP_SETUID) || !has(Capability::CAP_SETGID) {
        return Err(Trouble::missing(format!("user {}", user.uid), "CAP_SETUID and CAP_SETGID, or to be root"));
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let failed = |act: &str, errno: nix::Error| Trouble::failed(act.to_owned(), io::Error::from(errno));
    if keeps_capabilities {
        caps::securebits::set_keepcaps(true).map_err(|error| self::failed("keep capabilities", &error))?;
    }
    setgroups(&[]).map_err(|errno| failed("drop supplementary groups", errno))?;
    setresgid(gid, gid, gid).map_err(|errno| failed("become the group", errno))?;
    setresuid(uid, uid, uid).map_err(|errno| failed("become the user", errno))
}

fn keep(wanted: &CapsHashSet) -> Result<(), Trouble> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|error| failed("capabilities", &error))?;
    if let Some(absent) = wanted.difference(&permitted).next() {
        return Err(Trouble::missing(format!("capability {absent}"), "a host that has it"));
    }
    caps::clear(None, CapSet::Ambient).map_err(|error| failed("ambient capabilities", &error))?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::set(None, set, wanted).map_err(|error| failed("capabilities", &error))?;
    }
    // So that they outlive exec as another user than root.
    for capability in wanted {
        caps::raise(None, CapSet::Ambient, *capability).map_err(|error| failed("keep a capability", &error))?;
    }
    Ok(())
}

fn failed(act: &str, error: &caps::errors::CapsError) -> Trouble {
    Trouble::plain(format!("{act}: {error}"))
}
