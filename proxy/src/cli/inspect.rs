//! `palisade plugin inspect`.

use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::args::PluginOrder;
use super::client::{Admin, converse};
use super::output::print;
use super::status::understood;

/// What is shown of an instance.
#[derive(Debug, Deserialize)]
struct Instance {
    instance: Option<usize>,
    state: String,
    facts: Option<Facts>,
    error: Option<String>,
    confinement: Option<Confinement>,
}

#[derive(Debug, Deserialize)]
struct Facts {
    pid: i32,
    uids: Vec<u32>,
    gids: Vec<u32>,
    groups: Vec<u32>,
    no_new_privs: bool,
    seccomp_mode: u32,
    seccomp_filters: Option<u32>,
    capabilities: std::collections::BTreeMap<String, Vec<String>>,
    own_namespaces: Vec<String>,
    cgroups: Vec<String>,
    cgroup: std::collections::BTreeMap<String, String>,
    limits: std::collections::BTreeMap<String, String>,
    dumpable: Option<bool>,
    umask: Option<String>,
    descriptors: std::collections::BTreeMap<u32, String>,
    program: String,
    program_checksum: String,
    processes: Vec<i32>,
}

#[derive(Debug, Deserialize)]
struct Confinement {
    missing: Vec<String>,
    probes: Vec<Probe>,
}

#[derive(Debug, Deserialize)]
struct Probe {
    tried: String,
    allowed: bool,
    error: Option<String>,
}

/// Limits worth a line.
const LIMITS: &[&str] =
    &["Max data size", "Max open files", "Max processes", "Max file size", "Max cpu time", "Max core file size"];

pub(super) fn inspect(asked: &PluginOrder) -> Result<(), Failure> {
    let admin = Admin::of(&asked.target)?;
    let answer: Value = converse(admin.get(&format!("/plugins/{}/inspect", asked.name)))?;
    if asked.json {
        return print(format_args!("{answer:#}"));
    }
    let instances: Vec<Instance> = understood(answer["instances"].clone())?;
    print(instances.iter().map(|instance| shown(&asked.name, instance)).collect::<Vec<_>>().join("\n\n"))
}

fn shown(name: &str, instance: &Instance) -> String {
    let number = instance.instance.map(|number| format!(" #{number}")).unwrap_or_default();
    let mut text = format!("{name}{number}: {}", instance.state.replace('_', " "));
    if let Some(error) = &instance.error {
        text += &format!("\n  {error}");
    }
    if let Some(facts) = &instance.facts {
        for (what, value) in lines(facts) {
            text += &format!("\n  {what:<18}{value}");
        }
    }
    if let Some(found) = &instance.confinement {
        if !found.probes.is_empty() {
            text += "\n  tried at its start:";
        }
        for probe in &found.probes {
            let answer = if probe.allowed { "allowed" } else { "refused" };
            let why = probe.error.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
            text += &format!("\n    {}: {answer}{why}", probe.tried);
        }
        for part in &found.missing {
            text += &format!("\n  missing: {part}");
        }
    }
    text
}

fn lines(facts: &Facts) -> Vec<(&'static str, String)> {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let numbers = |items: &[u32]| list(&items.iter().map(u32::to_string).collect::<Vec<_>>());
    let set = |name: &str| list(facts.capabilities.get(name).map_or(&[], Vec::as_slice));
    let filters = facts.seccomp_filters.map(|count| format!(", {count} filters")).unwrap_or_default();
    let seccomp = match facts.seccomp_mode {
        0 => "off".to_owned(),
        1 => "strict".to_owned(),
        _ => format!("filtered{filters}"),
    };
    let yes = |it: bool| if it { "yes" } else { "no" }.to_owned();
    let others = facts.processes.len().saturating_sub(1);
    let limits: Vec<_> = LIMITS
        .iter()
        .filter_map(|name| Some(format!("{} {}", name.trim_start_matches("Max "), facts.limits.get(*name)?)))
        .collect();
    let grouped: Vec<_> = facts.cgroup.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let descriptors: Vec<_> = facts.descriptors.iter().map(|(number, target)| format!("{number} {target}")).collect();
    vec![
        ("process", format!("{} and {others} others in its session", facts.pid)),
        ("program", facts.program.clone()),
        ("checksum", facts.program_checksum.clone()),
        ("user ids", numbers(&facts.uids)),
        ("group ids", numbers(&facts.gids)),
        ("other groups", numbers(&facts.groups)),
        ("no new privileges", yes(facts.no_new_privs)),
        ("seccomp", seccomp),
        ("capabilities", set("effective")),
        ("could regain", set("bounding")),
        ("own namespaces", list(&facts.own_namespaces)),
        ("control groups", list(&facts.cgroups)),
        ("group's limits", list(&grouped)),
        ("limits", list(&limits)),
        ("dumpable", facts.dumpable.map_or_else(|| "does not show".to_owned(), yes)),
        ("umask", facts.umask.clone().unwrap_or_default()),
        ("descriptors", list(&descriptors)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_and_trials_read_well() {
        let instance = json!({
            "instance": 2, "state": "serving", "error": null,
            "facts": {
                "pid": 41, "uids": [7, 7, 7, 7], "gids": [8, 8, 8, 8], "groups": [], "no_new_privs": true,
                "seccomp_mode": 2, "seccomp_filters": 2, "capabilities": {"effective": [], "bounding": ["CAP_KILL"]},
                "own_namespaces": ["mnt", "net"], "cgroups": ["0::/a"], "cgroup": {"pids.max": "64"}, "limits": {"Max open files": "1024"},
                "dumpable": true, "umask": "0077", "descriptors": {"0": "/dev/null"}, "program": "/bin/x",
                "program_checksum": "sha256:12", "processes": [41, 42],
            },
            "confinement": {
                "missing": ["`isolate` needs Linux 6.12"],
                "probes": [
                    {"tried": "mount", "allowed": false, "error": "EPERM"},
                    {"tried": "list the root directory", "allowed": true, "error": null},
                ],
            },
        });
        let expected = "\
auth #2: serving
  process           41 and 1 others in its session
  program           /bin/x
  checksum          sha256:12
  user ids          7, 7, 7, 7
  group ids         8, 8, 8, 8
  other groups      none
  no new privileges yes
  seccomp           filtered, 2 filters
  capabilities      none
  could regain      CAP_KILL
  own namespaces    mnt, net
  control groups    0::/a
  group's limits    pids.max 64
  limits            open files 1024
  dumpable          yes
  umask             0077
  descriptors       0 /dev/null
  tried at its start:
    mount: refused (EPERM)
    list the root directory: allowed
  missing: `isolate` needs Linux 6.12";
        let instance: Instance = understood(instance).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(shown("auth", &instance), expected);
    }
}
