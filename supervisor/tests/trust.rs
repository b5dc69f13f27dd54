//! What was pinned is what runs, or nothing runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use palisade_supervisor::{Checksum, State};
use support::{Scenario, client, example, until_report};

fn script(path: &Path, text: &str) -> Checksum {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    Checksum::of(path).unwrap()
}

#[tokio::test]
async fn a_pinned_program_runs_and_knows_its_name() {
    let mut scenario = Scenario::fake(&[]);
    scenario.spec.checksums.program = Some(Checksum::of(&example("fake_plugin")).unwrap());
    let plugin = scenario.start();
    let pid = client(&plugin).await.pid();
    let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(name.starts_with(example("fake_plugin").as_os_str().as_encoded_bytes()));
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), example("fake_plugin"));
    // The descriptor that it was executed from is not its own.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(!links.iter().any(|link| *link == example("fake_plugin")), "{links:?}");
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_program_that_was_changed_is_never_started() {
    let mut scenario = Scenario::shell("");
    let program = scenario.dir.path().join("plugin.sh");
    let pinned = script(&program, "#!/bin/sh\nexec \"$FAKE\"\n");
    scenario.spec.command = vec![program.clone().into()];
    scenario.spec.checksums.program = Some(pinned);
    let plugin = scenario.start();
    client(&plugin).await;
    plugin.shutdown().await;

    let found = script(&program, "#!/bin/sh\ntouch \"$OUT\"; exec \"$FAKE\"\n");
    let plugin = scenario.start();
    let report = until_report(&plugin).await.to_string();
    assert!(report.contains(&format!("is not what was pinned: its checksum is {found}, and should be {pinned}")));
    assert!(report.contains("likely: "), "{report}");
    // Trying again soon does not cure it.
    let State::BackingOff { next_attempt } = support::until(&plugin, |status| status.pid.is_none()).await.state else {
        panic!("{:?}", plugin.status())
    };
    assert!(next_attempt > std::time::SystemTime::now() + std::time::Duration::from_secs(20));
    plugin.shutdown().await;
    assert!(!scenario.out().exists());
}

#[tokio::test]
async fn what_an_interpreter_is_given_is_the_sealed_copy_that_was_looked_at() {
    let mut scenario = Scenario::shell("");
    let path = scenario.dir.path().join("plugin.sh");
    // It changes its own file while it runs, and looks at what it was started from after that.
    let text = format!(
        "echo evil > {}\ncat \"$0\" > \"$OUT\"; echo \"$0 $1\" >> \"$OUT\"; (echo evil > \"$0\") && touch \"$OUT.bad\"; exec \"$FAKE\"\n",
        path.display()
    );
    let pinned = script(&path, &text);
    scenario.spec.command = vec!["sh".into(), "plugin.sh".into(), "plugin.sh".into()];
    scenario.spec.cwd = scenario.dir.path().into();
    scenario.spec.checksums.files.insert("plugin.sh".into(), pinned);
    let plugin = scenario.start();
    client(&plugin).await;
    let seen = fs::read_to_string(scenario.out()).unwrap();
    let (copy, names) = seen.split_at(text.len());
    assert_eq!(copy, text);
    assert!(names.split_whitespace().all(|name| name.starts_with("/proc/self/fd/")), "{names}");
    assert!(!scenario.dir.path().join("out.bad").exists());
    assert_eq!(fs::read_to_string(&path).unwrap(), "evil\n");
    plugin.shutdown().await;

    let plugin = scenario.start();
    let report = until_report(&plugin).await.to_string();
    assert!(report.contains("plugin.sh\" is not what was pinned"), "{report}");
    plugin.shutdown().await;
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let mut scenario = Scenario::shell("");
    scenario.spec.command.push("none.py".into());
    let sum = Checksum::of(Path::new("Cargo.toml")).unwrap();
    scenario.spec.checksums.files.insert("none.py".into(), sum);
    let plugin = scenario.start();
    let report = until_report(&plugin).await.to_string();
    assert!(report.contains("none.py\" can't be told: No such file"), "{report}");
    plugin.shutdown().await;
}

#[tokio::test]
async fn what_takes_its_place_after_the_look_does_not_run() {
    let mut scenario = Scenario::fake(&[]);
    let [program, other] = ["plugin", "other"].map(|name| scenario.dir.path().join(name));
    fs::copy(example("fake_plugin"), &program).unwrap();
    // What follows a program in its file is read as well. It takes a while, for this test to come in between.
    fs::OpenOptions::new().append(true).open(&program).unwrap().set_len(64 << 20).unwrap();
    scenario.spec.command = vec![program.clone().into()];
    scenario.spec.checksums.program = Some(Checksum::of(&program).unwrap());
    script(&other, "#!/bin/sh\ntouch \"$OUT\"\n");
    let plugin = scenario.start();
    let is_open = || {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| link == program)
    };
    while !is_open() {
        tokio::task::yield_now().await;
    }
    fs::rename(&other, &program).unwrap();
    let pid = client(&plugin).await.pid();
    let runs = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(runs.to_string_lossy().ends_with("plugin (deleted)"), "{runs:?}");
    plugin.shutdown().await;
    assert!(!scenario.out().exists());
}
