//! Sandboxes as an operator has them: what is in force, what is missing, and that nothing else suffers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use palisade_tests::process::{kill, runs};
use palisade_tests::{Options, Proxy, eventually, place, programs_in, run_to_exit, run_to_exit_with};
use serde_json::Value;
use tempfile::TempDir;

/// Ids that no account has.
const ORDINARY: u32 = 54_323;
const PLUGIN: u32 = 54_324;

/// A configuration with one plugin.
fn config(program: &Path, actions: &str, sandbox: &str) -> String {
    format!(
        "listeners: [{{address: 127.0.0.1:0}}]
routes: [{{upstream: 'http://127.0.0.1:9', filters: [fake]}}]
plugins: {{fake: {{command: ['{}', {actions}], sandbox: {sandbox}}}}}
",
        program.display()
    )
}

/// A directory with the programs, for whoever the plugin runs as.
fn open_place() -> (TempDir, Options, std::path::PathBuf) {
    let dir = place();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let [palisade, fake] = programs_in(dir.path());
    (dir, Options { program: Some(palisade), ..Options::default() }, fake)
}

async fn start(actions: &str, sandbox: &str) -> Proxy {
    let (dir, options, fake) = open_place();
    Proxy::start_with(Arc::new(dir), &config(&fake, actions, sandbox), &options).await
}

/// What the plugin says about its try.
async fn outcome(way: &str, sandbox: &str) -> String {
    let mut proxy = start(&format!("'escape:{way}', serve"), sandbox).await;
    proxy.wait_for_log("the outcome", |line| line.contains("escape ")).await
}

async fn inspect(proxy: &Proxy) -> Value {
    let outcome = proxy.cli(&["plugin", "inspect", "fake", "--json", "-c", "palisade.yaml"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    serde_json::from_str::<Value>(&outcome.stdout).unwrap()["instances"][0].clone()
}

#[tokio::test]
async fn inspect_shows_what_the_kernel_has_and_what_was_tried() {
    let proxy = start("serve", "hardened").await;
    let seen = inspect(&proxy).await;
    let facts = &seen["facts"];
    assert_eq!(facts["pid"].as_i64(), Some(proxy.plugin_pid("fake").await.into()));
    assert_eq!((&facts["no_new_privs"], &facts["seccomp_mode"]), (&true.into(), &2.into()), "{facts:#}");
    for set in ["effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(facts["capabilities"][set].as_array().unwrap().len(), 0, "{facts:#}");
    }
    let own = facts["own_namespaces"].as_array().unwrap();
    assert!(own.contains(&"mnt".into()) && own.contains(&"net".into()), "{facts:#}");
    assert_eq!(own.contains(&"user".into()), !geteuid().is_root(), "{facts:#}");
    assert_eq!(
        (&facts["limits"]["Max processes"], &facts["limits"]["Max core file size"]),
        (&"512".into(), &"0".into())
    );
    assert_ne!(facts["uids"][1], 0, "{facts:#}");
    let probes = seen["confinement"]["probes"].as_array().unwrap();
    assert!(probes.len() > 8 && probes.iter().all(|probe| probe["allowed"] == false), "{probes:#?}");
    let text = proxy.cli(&["plugin", "inspect", "fake", "-c", "palisade.yaml"]).await.stdout;
    assert!(text.contains("no new privileges yes") && text.contains("execute programs: refused"), "{text}");

    let proxy = start("serve", "none").await;
    let seen = inspect(&proxy).await;
    let facts = &seen["facts"];
    assert_eq!((&facts["no_new_privs"], &facts["seccomp_mode"]), (&false.into(), &0.into()), "{facts:#}");
    assert_eq!(facts["own_namespaces"].as_array().unwrap().len(), 0, "{facts:#}");
    assert_eq!(seen["confinement"], Value::Null);

    let unknown = proxy.cli(&["plugin", "inspect", "fakee", "-c", "palisade.yaml"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("did you mean `fake`?"), "{unknown:?}");
}

#[tokio::test]
async fn what_can_not_be_had_is_an_error_unless_it_may_be_missing() {
    let (dir, mut options, fake) = open_place();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    if geteuid().is_root() {
        chown(&run, Some(ORDINARY), Some(ORDINARY)).unwrap();
        options.uid = Some(ORDINARY);
    }
    let dir = Arc::new(dir);
    // Only root can become somebody else.
    let yaml = config(&fake, "serve", &format!("{{user: '{PLUGIN}'}}"));
    let outcome = run_to_exit_with(dir.path(), &yaml, &options).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let expected = format!("the sandbox can't be had: user {PLUGIN} needs CAP_SETUID and CAP_SETGID");
    assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
    let sandbox = format!("{{user: '{PLUGIN}', on_missing: warn}}");
    let proxy = Proxy::start_with(dir, &config(&fake, "serve", &sandbox), &options).await;
    assert!(proxy.log().contains("the plugin starts without a part of its sandbox: user"), "{}", proxy.log());
    let seen = inspect_by_socket(&proxy).await;
    assert!(seen["confinement"]["missing"][0].as_str().unwrap().starts_with("user "), "{seen:#}");
}

#[tokio::test]
async fn what_is_missing_takes_nothing_else_with_it() {
    if !geteuid().is_root() {
        return;
    }
    // Root's processes can't be counted. The rest is in force all the same.
    let proxy = start("serve", "{profile: hardened, user: root, on_missing: warn}").await;
    let seen = inspect(&proxy).await;
    let missing = seen["confinement"]["missing"].as_array().unwrap();
    assert!(missing.len() == 1 && missing[0].as_str().unwrap().contains("limits.processes"), "{missing:?}");
    let probes = seen["confinement"]["probes"].as_array().unwrap();
    assert!(probes.iter().all(|probe| probe["allowed"] == false), "{probes:#?}");
}

/// For proxies of other users, whose socket only root may use besides.
async fn inspect_by_socket(proxy: &Proxy) -> Value {
    let socket = proxy.runtime_dir().join("admin.sock");
    let outcome = proxy.cli(&["plugin", "inspect", "fake", "--json", "--admin", socket.to_str().unwrap()]).await;
    serde_json::from_str::<Value>(&outcome.stdout).unwrap()["instances"][0].clone()
}

#[tokio::test]
async fn another_user_has_its_socket_and_dies_with_the_proxy() {
    if !geteuid().is_root() {
        // Nobody else can become another user.
        return;
    }
    for rest in ["", ", private_tmp: true"] {
        let mut proxy = start("serve", &format!("{{user: '{PLUGIN}'{rest}}}")).await;
        let pid = proxy.plugin_pid("fake").await;
        assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), PLUGIN);
        assert_eq!(std::fs::metadata(proxy.runtime_dir().join("admin.sock")).unwrap().mode() & 0o077, 0);
        // Without the guard's help: the kernel forgets whom to tell of a parent's death when ids change.
        let children = palisade_tests::process::descendants(proxy.pid());
        let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let guard = *children.iter().find(|pid| name(pid).trim() == "palisade-guard").unwrap();
        kill(guard, Signal::SIGSTOP);
        proxy.kill9();
        eventually("the plugin is gone", || !runs(pid)).await;
        kill(guard, Signal::SIGCONT);
        proxy.nothing_is_left().await;
    }
}

#[tokio::test]
async fn ports_and_capabilities_that_are_named_can_be_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = format!("connect:127.0.0.1:{port}");
    let said = outcome(&way, &format!("{{profile: hardened, network: host, connect: [{port}]}}")).await;
    assert!(said.contains("got out"), "{said}");
    let said = outcome(&way, "{profile: hardened, network: host}").await;
    assert!(said.contains("refused"), "{said}");
    if geteuid().is_root() {
        let said = outcome("raw-socket", &format!("{{user: '{PLUGIN}', capabilities: [net_raw]}}")).await;
        assert!(said.contains("got out"), "{said}");
        let said = outcome("raw-socket", &format!("{{user: '{PLUGIN}', capabilities: [kill]}}")).await;
        assert!(said.contains("refused"), "{said}");
    }
}

/// Under `hardened`, several parts stand in the way of most tries. Each has to do alone as well.
#[tokio::test]
async fn each_part_works_without_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!("connect:{}", listener.local_addr().unwrap());
    let [mptcp, fast_open] = ["mptcp", "fast-open"].map(|way| connect.replace("connect", way));
    let name = format!("palisade-part-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let abstract_socket = format!("abstract-socket:{name}");
    for (part, way) in [
        ("isolate: true", "signal"),
        ("isolate: true", "ptrace"),
        // Those with CAP_PERFMON may look into all processes.
        ("isolate: true, capabilities: []", "environ"),
        ("isolate: true", abstract_socket.as_str()),
        ("network: none", connect.as_str()),
        ("connect: [1]", connect.as_str()),
        ("connect: [1]", mptcp.as_str()),
        ("connect: [1]", fast_open.as_str()),
        ("deny: [exec]", "shell"),
        ("deny: [namespace]", "user-namespace"),
        ("deny: [debug]", "ptrace"),
        ("read: []", "read:/etc/hostname"),
        ("limits: {memory: 64MiB}", "memory:100"),
        ("capabilities: []", "raw-socket"),
        ("capabilities: []", "mount"),
        ("deny: [raw_socket]", "raw-socket"),
        ("deny: [mount]", "mount"),
        ("deny: [kernel]", "call:kexec_file_load"),
        ("deny: [raw_socket]", "call:io_uring_setup"),
        ("deny: [mount]", "call:open_tree_attr"),
        ("deny: [admin]", "call:quotactl_fd"),
        ("deny: [clock]", "call:adjtimex"),
        ("deny: [clock]", "call:clock_adjtime"),
    ] {
        let said = outcome(way, &format!("{{profile: none, {part}}}")).await;
        assert!(said.contains(": refused"), "{part}, {way}: {said}");
    }
}

#[tokio::test]
async fn files_and_programs_that_are_named_can_be_used() {
    let (dir, _, _) = open_place();
    let file = dir.path().join("data");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let shown = file.display();
    for (way, more, expected) in [
        ("read", "", "refused"),
        ("read", ", read: [FILE]", "got out"),
        ("write", ", read: [FILE]", "refused"),
        ("write", ", read: [DIR]", "refused"),
        ("write", ", write: [FILE]", "got out"),
        ("write", ", read: [DIR], write: [FILE]", "got out"),
        ("shell", "", "refused"),
        ("shell", ", execute: [/bin]", "got out"),
    ] {
        let detail = if way == "shell" { String::new() } else { format!(":{shown}") };
        let more = more.replace("FILE", &shown.to_string()).replace("DIR", &dir.path().display().to_string());
        let said = outcome(&format!("{way}{detail}"), &format!("{{profile: hardened{more}}}")).await;
        assert!(said.contains(expected), "{way}{more}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "escaped".repeat(2));
    // By names that begin in the working directory, which is below a hidden one.
    for (more, expected) in [("", "refused"), (", read: [palisade.yaml]", "got out"), (", read: [.]", "got out")] {
        let said = outcome("read:palisade.yaml", &format!("{{profile: hardened{more}}}")).await;
        assert!(said.contains(expected), "{more}: {said}");
        let said = outcome(
            "unix-socket:run/admin.sock",
            &format!(
                "{{profile: hardened{more}, user: root, \
            on_missing: warn}}"
            ),
        )
        .await;
        assert!(said.contains("refused"), "{more}: {said}");
    }
}

#[tokio::test]
async fn a_program_of_the_system_opens_no_more_than_others() {
    // Where it stands, there is all of the system.
    for program in ["/bin/sh", "/usr/bin/sh"] {
        let (dir, options, _) = open_place();
        let script = "if read -r line < /etc/hostname; then echo escape: got out; else echo escape: refused; fi >&2";
        let yaml = config(Path::new(program), &format!("-c, '{script}'"), "hardened")
            .replace("fake: {", "fake: {required: false, restart: {policy: never}, ");
        let mut proxy = Proxy::start_with(Arc::new(dir), &yaml, &options).await;
        let said = proxy.wait_for_log("the outcome", |line| line.contains("escape: ")).await;
        assert!(said.contains("escape: refused"), "{program}: {said}");
    }
}

#[tokio::test]
async fn what_was_pinned_runs_in_a_sandbox_too_and_nothing_else_does() {
    let (dir, options, fake) = open_place();
    let dir = Arc::new(dir);
    let yaml = format!("# kept\n{}", config(&fake, "serve", "hardened"));
    let file = dir.path().join("palisade.yaml");
    std::fs::write(&file, &yaml).unwrap();
    let proxy = Proxy::start_with(Arc::clone(&dir), &yaml, &options).await;
    let pinned = proxy.cli(&["plugin", "pin", "fake", "-c", "palisade.yaml"]).await;
    assert_eq!(pinned.code, Some(0), "{pinned:?}");
    let sum = pinned.stdout.trim().rsplit(' ').next().unwrap().to_owned();
    drop(proxy);
    let edited = std::fs::read_to_string(&file).unwrap();
    assert!(edited.starts_with("# kept\n") && edited.contains(&format!("checksum: {sum}, command:")), "{edited}");

    let proxy = Proxy::start_with(Arc::clone(&dir), &edited, &options).await;
    let seen = inspect(&proxy).await;
    assert_eq!(seen["facts"]["program_checksum"], sum.as_str(), "{seen:#}");
    assert_eq!(seen["confinement"]["missing"].as_array().unwrap().len(), 0);
    drop(proxy);

    // Another file at its place, as an update leaves it.
    let mut bytes = std::fs::read(&fake).unwrap();
    bytes.push(0);
    std::fs::remove_file(&fake).unwrap();
    std::fs::write(&fake, bytes).unwrap();
    std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    let outcome = run_to_exit(dir.path(), &edited).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("is not what was pinned: its checksum is sha256:"), "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("and should be {sum}")), "{outcome:?}");
}

#[tokio::test]
async fn root_without_the_privilege_for_namespaces_is_told_what_it_lacks() {
    if !geteuid().is_root() {
        return;
    }
    // As in a container.
    let (dir, mut options, fake) = open_place();
    let wrapper = dir.path().join("as-in-a-container");
    let run = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin '{}' \"$@\"\n",
        options.program.unwrap().display()
    );
    std::fs::write(&wrapper, run).unwrap();
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
    options.program = Some(wrapper);
    let dir = Arc::new(dir);
    let outcome = run_to_exit_with(dir.path(), &config(&fake, "serve", "hardened"), &options).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("namespaces for another user needs CAP_SYS_ADMIN"), "{}", outcome.stderr);
    let sandbox = "{profile: hardened, on_missing: warn}";
    let proxy = Proxy::start_with(dir, &config(&fake, "serve", sandbox), &options).await;
    let seen = inspect_by_socket(&proxy).await;
    assert_eq!(seen["confinement"]["missing"].as_array().unwrap().len(), 1, "{seen:#}");
    assert_ne!(seen["facts"]["uids"][1], 0, "{seen:#}");
    assert_eq!(seen["facts"]["seccomp_mode"], 2, "{seen:#}");
}

#[tokio::test]
async fn the_helper_has_nothing_of_the_plugins_environment() {
    // The dynamic loader says so once for each program that it loads with this.
    let complaint = |line: &str| line.contains("from LD_PRELOAD cannot be preloaded");
    let (dir, options, fake) = open_place();
    let yaml = config(&fake, "serve", "hardened").replace("fake: {", "fake: {env: {LD_PRELOAD: /none.so, SET: a}, ");
    let mut proxy = Proxy::start_with(Arc::new(dir), &yaml, &options).await;
    proxy.wait_for_log("the complaint", complaint).await;
    let pid = proxy.plugin_pid("fake").await;
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.split(|byte| *byte == 0).any(|entry| entry == b"SET=a"));
    let log = proxy.log();
    assert_eq!(log.lines().filter(|line| complaint(line)).count(), 1, "{log}");
}

#[tokio::test]
async fn a_set_user_id_program_gains_nothing() {
    if !geteuid().is_root() {
        // Only root can make such a program.
        return;
    }
    // With `none` it does what it is made for; that this is possible here, and no mount forbids it, is seen first.
    for (sandbox, expected) in [
        ("none", 0),
        ("default", ORDINARY),
        ("hardened", ORDINARY),
        // The bounding set can't be reduced by this user.
        ("{profile: none, capabilities: []}", ORDINARY),
    ] {
        let (dir, mut options, fake) = open_place();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        chown(&run, Some(ORDINARY), Some(ORDINARY)).unwrap();
        // Not the file that other tests link to.
        let own = dir.path().join("set-user-id");
        std::fs::copy(&fake, &own).unwrap();
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o4755)).unwrap();
        options.uid = Some(ORDINARY);
        let yaml = config(&own, "stay", sandbox).replace("fake: {", "fake: {required: false, ");
        let proxy = Proxy::spawn(Arc::new(dir), &yaml, &options);
        let effective = || {
            let pids = palisade_tests::process::descendants(proxy.pid());
            let uid = |pid: &i32| {
                let command = palisade_tests::process::command(*pid);
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
                command.contains("set-user-id stay").then(|| uids.split_whitespace().nth(1)?.parse::<u32>().ok())?
            };
            pids.iter().find_map(uid)
        };
        eventually(format_args!("{sandbox}: the plugin runs as {expected}"), || effective() == Some(expected)).await;
        let pid = *palisade_tests::process::descendants(proxy.pid()).first().unwrap();
        proxy.watch(pid);
    }
}
