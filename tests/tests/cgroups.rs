//! Control groups of plugins. They need root, and a mounted hierarchy of version 2; limits are tested with what controllers
//! that has. What is left out for a lack of these is said.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it leaves out")]

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sys::signal::Signal;
use palisade_tests::process::{kill, runs};
use palisade_tests::{Options, Proxy, eventually, place, programs_in, run_to_exit_with};
use serde_json::Value;
use tempfile::TempDir;

/// An id that no account has.
const ORDINARY: u32 = 54_325;

/// A control group as a service manager delegates one, with what controllers there are.
struct Delegated {
    path: PathBuf,
}

impl Delegated {
    /// `None` where there can be none, which is said.
    fn new() -> Option<Self> {
        let made = Self::make();
        if made.is_none() {
            eprintln!("skipped: no control group can be made here (root, and a cgroup2 hierarchy)");
        }
        made
    }

    fn with_controllers() -> Option<Self> {
        let made = Self::new().filter(|group| !group.controllers().is_empty());
        if made.is_none() {
            eprintln!("skipped: no controller can be given away here");
        }
        made
    }

    fn make() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let root = Path::new(mount.split(' ').nth(4)?);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        if own.is_empty() {
            // The first group of all gives away what it has along with processes of its own.
            for controller in ["memory", "cpu", "pids"] {
                fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")).ok();
            }
        }
        // In others, the one above has what this one has got.
        let base = root.join(&own);
        let base = if own.is_empty() { &base } else { base.parent()? };
        let path = base.join(format!("pt-{}-{:x}", std::process::id(), fastrand::u32(..)));
        fs::create_dir(&path).ok()?;
        Some(Self { path })
    }

    fn controllers(&self) -> Vec<String> {
        let all = fs::read_to_string(self.path.join("cgroup.controllers")).unwrap_or_default();
        let known = |name: &&str| ["memory", "cpu", "pids"].contains(name);
        all.split_whitespace().filter(known).map(str::to_owned).collect()
    }

    fn has(&self, controller: &str) -> bool {
        let has = self.controllers().iter().any(|it| it == controller);
        if !has {
            eprintln!("left out: the controller {controller} is not there");
        }
        has
    }

    /// As `Delegate=yes` with `User=` does it.
    fn give_to(&self, uid: u32) {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(self.path.join(file), Some(uid), Some(uid)).unwrap();
        }
    }

    /// Groups of plugins.
    fn groups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).unwrap().flatten().map(|entry| entry.path());
        entries.filter(|path| path.to_string_lossy().contains("/palisade-plugin-fake-")).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // With all that a proxy has left there.
        fs::write(self.path.join("cgroup.kill"), "1").ok();
        remove(&self.path);
    }
}

fn remove(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|path| remove(&path));
    while fs::remove_dir(group).is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY)) {
        std::thread::yield_now();
    }
}

/// A place with a proxy that begins in a group, as this user.
struct Place {
    dir: Arc<TempDir>,
    options: Options,
    fake: PathBuf,
}

impl Place {
    fn new(group: Option<&Path>, uid: Option<u32>) -> Self {
        let dir = place();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let [palisade, fake] = programs_in(dir.path());
        let enter = group
            .map(|group| {
                // Where another proxy has been before, the group itself takes no processes any more.
                let [outer, inner] = [group.to_owned(), group.join("palisade-host")].map(|it| it.display().to_string());
                format!("echo 0 > '{outer}/cgroup.procs' || echo 0 > '{inner}/cgroup.procs' || exit 9\n")
            })
            .unwrap_or_default();
        let become_user =
            uid.map(|uid| format!("setpriv --reuid={uid} --regid={uid} --clear-groups ")).unwrap_or_default();
        let script = format!("#!/bin/sh\n{enter}exec {become_user}'{}' \"$@\"\n", palisade.display());
        let wrapper = dir.path().join("in-a-group");
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
        if uid.is_some() {
            let run = dir.path().join("run");
            fs::create_dir(&run).unwrap();
            chown(&run, uid, uid).unwrap();
        }
        Self { dir: Arc::new(dir), options: Options { program: Some(wrapper), ..Options::default() }, fake }
    }

    fn yaml(&self, actions: &str, sandbox: &str) -> String {
        format!(
            "listeners: [{{address: 127.0.0.1:0}}]
routes: [{{upstream: 'http://127.0.0.1:9', filters: [fake]}}]
plugins: {{fake: {{command: ['{}', {actions}], sandbox: {sandbox}}}}}
",
            self.fake.display()
        )
    }

    async fn start(&self, actions: &str, sandbox: &str) -> Proxy {
        Proxy::start_with(Arc::clone(&self.dir), &self.yaml(actions, sandbox), &self.options).await
    }

    /// What it says when it does not start.
    async fn refusal(&self, sandbox: &str) -> String {
        let yaml = self.yaml("serve", sandbox);
        let outcome = run_to_exit_with(self.dir.path(), &yaml, &self.options).await;
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        outcome.stderr
    }
}

async fn inspect(proxy: &Proxy) -> Value {
    let socket = proxy.runtime_dir().join("admin.sock");
    let outcome = proxy.cli(&["plugin", "inspect", "fake", "--json", "--admin", socket.to_str().unwrap()]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    serde_json::from_str::<Value>(&outcome.stdout).unwrap()["instances"][0].clone()
}

/// The processes that a plugin has noted in its working directory.
fn noted(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("pids")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Started by a plugin, in a session of its own and without an environment.
async fn free_child(dir: &Path) -> i32 {
    let mut free = 0;
    eventually("a child is in its own session", || {
        free = noted(dir).last().copied().unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{free}/stat")).unwrap_or_default();
        let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)?.parse().ok());
        free > 0 && session == Some(free)
    })
    .await;
    free
}

#[tokio::test]
async fn each_limit_is_in_force_by_itself_and_shown() {
    let Some(group) = Delegated::with_controllers() else { return };
    let place = Place::new(Some(&group.path), None);
    let shown = [
        ("memory", "64MiB", "memory.max", "67108864"),
        ("cpu", "50%", "cpu.max", "50000 100000"),
        ("pids", "48", "pids.max", "48"),
    ];
    for (key, value, file, expected) in shown.into_iter().filter(|(key, ..)| group.has(key)) {
        for profile in ["none", "default"] {
            let mut proxy = place.start("serve", &format!("{{profile: {profile}, cgroup: {{{key}: {value}}}}}")).await;
            let seen = inspect(&proxy).await;
            assert_eq!(seen["facts"]["cgroup"][file], expected, "{seen:#}");
            assert_eq!(seen["facts"]["cgroup"]["cgroup.procs"], "1", "{seen:#}");
            assert_eq!(group.groups().len(), 1);
            proxy.terminate();
            proxy.wait_exit().await;
            assert_eq!(group.groups(), Vec::<PathBuf>::new(), "removed with the plugin");
        }
    }
    if group.has("pids") {
        // As root, whom the limits of single processes do not bind.
        let mut proxy = place.start("'escape:fork-bomb:100', serve", "{profile: none, cgroup: {pids: 48}}").await;
        let said = proxy.wait_for_log("the outcome", |line| line.contains("escape ")).await;
        assert!(said.contains("refused"), "{said}");
    }
    if group.has("cpu") {
        let proxy = place.start("flood, serve", "{profile: none, cgroup: {cpu: 20%}}").await;
        let throttled = || {
            let stat = group.groups().first().map(|path| fs::read_to_string(path.join("cpu.stat")).unwrap_or_default());
            stat.is_some_and(|stat| stat.lines().any(|line| line.starts_with("nr_throttled ") && !line.ends_with(" 0")))
        };
        eventually("it is throttled", throttled).await;
        drop(proxy);
    }
    if group.has("memory") {
        let yaml = place
            .yaml("'escape:memory:200', serve", "{profile: none, cgroup: {memory: 64MiB}}")
            .replace("fake: {", "fake: {required: false, restart: {policy: never}, ");
        let mut proxy = Proxy::start_with(Arc::clone(&place.dir), &yaml, &place.options).await;
        let said = proxy.wait_for_log("its end", |line| line.contains("sandbox.cgroup.memory")).await;
        assert!(said.contains("used up"), "{said}");
    }
}

#[tokio::test]
async fn whoever_leaves_its_session_and_environment_ends_with_the_plugin_all_the_same() {
    let Some(group) = Delegated::new() else { return };
    // Without a group it lives on. So it is one that nothing else finds.
    for (sandbox, lives) in [("none", true), ("{profile: none, cgroup: {}}", false)] {
        let place = Place::new(Some(&group.path), None);
        let mut proxy = place.start("child-free, serve", sandbox).await;
        let free = free_child(place.dir.path()).await;
        let stopped = proxy.cli(&["plugin", "stop", "fake", "-c", "palisade.yaml"]).await;
        assert_eq!(stopped.code, Some(0), "{stopped:?}");
        eventually("the group is gone", || group.groups().is_empty()).await;
        assert_eq!(runs(free), lives, "{sandbox}");
        if lives {
            kill(free, Signal::SIGKILL);
            continue;
        }
        // A crash, too.
        let started = proxy.cli(&["plugin", "start", "fake", "-c", "palisade.yaml"]).await;
        assert_eq!(started.code, Some(0), "{started:?}");
        eventually("another child", || noted(place.dir.path()).len() == 2).await;
        let free = free_child(place.dir.path()).await;
        let pid = proxy.plugin_pid("fake").await;
        kill(pid, Signal::SIGKILL);
        proxy.until_replaced("fake", pid).await;
        eventually("the child is gone", || !runs(free)).await;
        eventually("one group is left", || group.groups().len() == 1).await;
        proxy.terminate();
        proxy.wait_exit().await;
        assert_eq!(group.groups().len(), 0);
    }
}

#[tokio::test]
async fn the_next_start_removes_what_a_killed_proxy_has_left() {
    let Some(group) = Delegated::new() else { return };
    let place = Place::new(Some(&group.path), None);
    let mut killed = place.start("child-free, serve", "{profile: none, cgroup: {}}").await;
    let free = free_child(place.dir.path()).await;
    let pid = killed.plugin_pid("fake").await;
    killed.kill9();
    eventually("the plugin is gone", || !runs(pid)).await;
    assert!(runs(free), "the guard has no mark to find it by");
    let [left] = group.groups().try_into().unwrap();
    // One that is in use stays.
    let other = Place::new(Some(&group.path), None);
    let proxy = other.start("serve", "{profile: none, cgroup: {}}").await;
    assert!(!runs(free) && !left.exists());
    assert!(proxy.log().contains("removed a control group that a killed host had left"), "{}", proxy.log());
    let in_use = group.groups();
    let third = Place::new(Some(&group.path), None).start("serve", "{profile: none, cgroup: {}}").await;
    assert_eq!(group.groups().len(), 2);
    assert!(in_use.len() == 1 && in_use[0].exists(), "{in_use:?}");
    drop((third, proxy));
}

#[tokio::test]
async fn an_ordinary_user_needs_no_more_than_a_delegated_group() {
    let Some(group) = Delegated::new() else { return };
    let all = group.controllers();
    let value = |key: &str| match key {
        "memory" => "512MiB",
        "cpu" => "90%",
        _ => "200",
    };
    let limits: Vec<_> = all.iter().map(|key| format!("{key}: {}", value(key))).collect();
    let sandbox = format!("{{cgroup: {{{}}}}}", limits.join(", "));
    let place = Place::new(Some(&group.path), Some(ORDINARY));
    let log = place.refusal(&sandbox).await;
    assert!(log.contains("`cgroup` needs a control group that is delegated to the host"), "{log}");
    group.give_to(ORDINARY);
    let proxy = place.start("serve", &sandbox).await;
    let seen = inspect(&proxy).await;
    assert_eq!((&seen["facts"]["uids"][1], &seen["facts"]["cgroup"]["cgroup.procs"]), (&ORDINARY.into(), &"1".into()));
    for key in &all {
        assert_ne!(seen["facts"]["cgroup"][format!("{key}.max")], "max", "{seen:#}");
    }
    assert_eq!(group.path.join("palisade-host").is_dir(), !all.is_empty(), "it has made room for them");
}

#[tokio::test]
async fn whether_a_plugin_could_leave_is_tried() {
    let Some(group) = Delegated::new() else { return };
    group.give_to(ORDINARY);
    // Where it is the proxy's user, nothing but bounds on files keeps it from its own limits.
    for (uid, sandbox, allowed) in [
        (None, "{profile: hardened, cgroup: {}}", false),
        (Some(ORDINARY), "{profile: hardened, cgroup: {}}", false),
        (Some(ORDINARY), "{cgroup: {}, network: none}", true),
        (None, "{user: '54326', cgroup: {}}", false),
    ] {
        let place = Place::new(Some(&group.path), uid);
        let proxy = place.start("serve", sandbox).await;
        let seen = inspect(&proxy).await;
        let probes = seen["confinement"]["probes"].as_array().unwrap();
        let tried = probes.iter().find(|probe| probe["tried"] == "leave its control group").unwrap();
        assert_eq!(tried["allowed"], allowed, "{sandbox} of {uid:?}: {tried}");
        assert_eq!(seen["facts"]["cgroup"]["cgroup.procs"], "1", "{seen:#}");
    }
}

#[tokio::test]
async fn a_group_that_others_are_in_is_not_touched() {
    let Some(group) = Delegated::with_controllers() else { return };
    struct Stranger(Child);
    impl Drop for Stranger {
        fn drop(&mut self) {
            self.0.kill().and_then(|()| self.0.wait()).unwrap();
        }
    }
    let stranger = Stranger(Command::new("sleep").arg("600").spawn().unwrap());
    let procs = group.path.join("cgroup.procs");
    OpenOptions::new().write(true).open(&procs).unwrap().write_all(stranger.0.id().to_string().as_bytes()).unwrap();
    let place = Place::new(Some(&group.path), None);
    let limit = match group.controllers()[0].as_str() {
        "memory" => "memory: 1GiB",
        "cpu" => "cpu: 90%",
        _ => "pids: 200",
    };
    let log = place.refusal(&format!("{{cgroup: {{{limit}}}}}")).await;
    let expected = format!("needs a control group without other processes: {} is in", stranger.0.id());
    assert!(log.contains(&expected), "{log}");
    assert!(fs::read_to_string(&procs).unwrap().contains(&stranger.0.id().to_string()));
}

#[tokio::test]
async fn what_is_not_there_is_an_error_unless_it_may_be_missing() {
    let Some(outer) = Delegated::new() else { return };
    // One without controllers, whatever the machine has.
    let inner = outer.path.join("without");
    fs::create_dir(&inner).unwrap();
    let place = Place::new(Some(&inner), None);
    let log = place.refusal("{cgroup: {memory: 1GiB}}").await;
    assert!(log.contains("the sandbox can't be had: `cgroup.memory` needs the controller `memory` in"), "{log}");
    let proxy = place.start("serve", "{cgroup: {memory: 1GiB}, on_missing: warn}").await;
    assert!(
        proxy.log().contains("the plugin starts without a part of its sandbox: `cgroup.memory`"),
        "{}",
        proxy.log()
    );
    let seen = inspect(&proxy).await;
    let missing = seen["confinement"]["missing"].as_array().unwrap();
    assert!(missing.len() == 1 && missing[0].as_str().unwrap().starts_with("`cgroup.memory` needs"), "{seen:#}");
    // Its group is there all the same.
    assert_eq!(seen["facts"]["cgroup"]["cgroup.procs"], "1", "{seen:#}");
}
