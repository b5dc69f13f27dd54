//! `palisade status`.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::args;
use super::client::{Admin, converse};
use super::output::{print, table};

/// What is shown of `GET /status`.
#[derive(Debug, Deserialize)]
struct Proxy {
    version: String,
    pid: u32,
    started: f64,
    config: String,
    config_sha256: String,
    generation: u64,
    loaded: f64,
    state: String,
    listeners: Vec<Listener>,
    #[serde(default)]
    flawed_certificates: Vec<FlawedCertificate>,
    plugins: Vec<Plugin>,
}

/// One that clients may refuse.
#[derive(Debug, Deserialize)]
struct FlawedCertificate {
    plugin: String,
    bundle: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Listener {
    name: String,
    address: String,
}

/// What is shown of a plugin.
#[derive(Debug, Deserialize)]
pub(super) struct Plugin {
    name: String,
    instance: Option<usize>,
    pub(super) state: String,
    next_attempt: Option<f64>,
    #[serde(default)]
    quarantined: bool,
    /// Why it does not serve though it runs, or is not started again.
    why: Option<String>,
    pub(super) pid: Option<i32>,
    restarts: u64,
    serving_since: Option<f64>,
    last_exit: Option<LastExit>,
    /// As the proxy words it.
    pub(super) last_exit_report: Option<String>,
    /// Only where one plugin is asked about.
    #[serde(default)]
    exits: Vec<Exit>,
}

#[derive(Debug, Deserialize)]
struct LastExit {
    at: f64,
}

/// What `GET /plugins/NAME` answers.
#[derive(Debug, Deserialize)]
struct Detail {
    instances: Value,
}

/// How a process ended, as the proxy words it.
#[derive(Debug, Deserialize)]
struct Exit {
    at: f64,
    report: String,
}

pub(super) fn status(args: args::Status) -> Result<(), Failure> {
    let admin = Admin::of(&args.target)?;
    if let Some(name) = &args.name {
        let Detail { instances } = converse(admin.get(&format!("/plugins/{name}")))?;
        return if args.json {
            print(format_args!("{instances:#}"))
        } else {
            print(details(&understood::<Vec<_>>(instances)?, now()))
        };
    }
    let answer: Value = converse(admin.get("/status"))?;
    if args.json { print(format_args!("{answer:#}")) } else { print(proxy(&understood(answer)?, now())) }
}

pub(super) fn understood<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::failed(format_args!("the answer of the proxy can't be understood: {error}"))
            .help("is it of the same version as this command?")
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn proxy(proxy: &Proxy, now: f64) -> String {
    let up = between(proxy.started, now);
    let mut text = format!("palisade {}: {}, pid {}, up {up}\n", proxy.version, proxy.state, proxy.pid);
    let hash = proxy.config_sha256.get(..12).unwrap_or_default();
    let loaded = between(proxy.loaded, now);
    text += &format!("configuration: {}\n", proxy.config);
    text += &format!("generation: {}, in force for {loaded}, sha256 {hash}\n", proxy.generation);
    for listener in &proxy.listeners {
        if listener.name == listener.address {
            text += &format!("listener: {}\n", listener.address);
        } else {
            text += &format!("listener: {} on {}\n", listener.name, listener.address);
        }
    }
    for FlawedCertificate { plugin, bundle, text: flaw } in &proxy.flawed_certificates {
        text += &format!("certificate {bundle:?} of {plugin}: clients may refuse it: {flaw}\n");
    }
    if !proxy.plugins.is_empty() {
        text += &format!("\n{}", plugins(&proxy.plugins, now));
    }
    text
}

/// A table of all, then a report for each whose process has ended before.
fn plugins(plugins: &[Plugin], now: f64) -> String {
    let mut text = overview(plugins, now);
    for plugin in plugins {
        if let (Some(exit), Some(report)) = (&plugin.last_exit, &plugin.last_exit_report) {
            text += &format!("\n\nlast exit of {}, {} ago:\n{report}", plugin.label(), between(exit.at, now));
        }
    }
    text
}

/// A table of a plugin's instances, then all reports that are kept, the latest first.
fn details(instances: &[Plugin], now: f64) -> String {
    let mut text = overview(instances, now);
    for instance in instances {
        for exit in &instance.exits {
            text += &format!("\n\nexit of {}, {} ago:\n{}", instance.label(), between(exit.at, now), exit.report);
        }
    }
    text
}

fn overview(plugins: &[Plugin], now: f64) -> String {
    let rows: Vec<_> = plugins
        .iter()
        .map(|plugin| {
            let pid = plugin.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let since = plugin.serving_since.map_or_else(|| "-".to_owned(), |at| format!("{} ago", between(at, now)));
            [plugin.label(), plugin.condition(now), pid, plugin.restarts.to_string(), since]
        })
        .collect();
    table(["PLUGIN", "STATE", "PID", "RESTARTS", "SERVING SINCE"], &rows)
}

impl Plugin {
    /// What it is called, with the instance's number where there are several.
    pub(super) fn label(&self) -> String {
        match self.instance {
            Some(instance) => format!("{} #{instance}", self.name),
            None => self.name.clone(),
        }
    }

    /// Its state in words, with when it is started again.
    pub(super) fn condition(&self, now: f64) -> String {
        let state = match &*self.state {
            "await_handshake" => "awaiting the handshake".to_owned(),
            "await_health" => "awaiting health".to_owned(),
            "await_ready" => "awaiting readiness".to_owned(),
            "disabled" => "disabled, no further attempt".to_owned(),
            other => other.replace('_', " "),
        };
        let why = self.why.as_deref().map(|why| match why {
            "policy" => "its restart policy is `never`".to_owned(),
            "reported" => "it reports so".to_owned(),
            "suspect" => "calls got no answer, it is being checked".to_owned(),
            "frozen" => "its process is stopped by a signal or a debugger".to_owned(),
            other => other.replace('_', " "),
        });
        if let Some(why) = why {
            return format!("{state}: {why}");
        }
        match self.next_attempt {
            None if self.quarantined => format!("{state}, quarantined"),
            Some(next) if next - now >= 1.0 => format!("{state}, next attempt in {}", between(now, next)),
            Some(_) => format!("{state}, next attempt now"),
            None => state,
        }
    }

    pub(super) fn condition_now(&self) -> String {
        self.condition(now())
    }
}

/// The time from one moment to another, both since the epoch, as people say it.
fn between(from: f64, to: f64) -> String {
    // Clocks may be set back, and numbers that make no duration are no time.
    let seconds = Duration::try_from_secs_f64(to - from).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "version": "0.1.0", "pid": 41, "started": 1000.0, "config": "/etc/palisade.yaml", "state": "ready",
            "config_sha256": "0123456789abcdef", "generation": 3, "loaded": 8250.0,
            "ready": true,
            "listeners": [{"name": "web", "address": "127.0.0.1:8080"}, {"name": "[::]:81", "address": "[::]:81"}],
            "flawed_certificates": [
                {"plugin": "certs", "bundle": "site", "flaw": "other_names", "text": "it is for another name"}],
            "plugins": [
                {"name": "auth", "state": "serving", "pid": 42, "restarts": 0, "serving_since": 1001.5,
                 "last_exit": null, "last_exit_report": null},
                {"name": "certs", "state": "crash_looped", "next_attempt": 8270.5, "pid": null, "restarts": 9,
                 "serving_since": null, "last_exit": {"at": 8258.0},
                 "last_exit_report": "error: plugin `certs` exited (exit status 1, after 212 ms)\n  command: certs"},
            ],
        })
    }

    #[test]
    fn the_state_of_a_proxy_reads_well() {
        let expected = "\
palisade 0.1.0: ready, pid 41, up 2 h 1 min
configuration: /etc/palisade.yaml
generation: 3, in force for 10 s, sha256 0123456789ab
listener: web on 127.0.0.1:8080
listener: [::]:81
certificate \"site\" of certs: clients may refuse it: it is for another name

PLUGIN  STATE                               PID  RESTARTS  SERVING SINCE
auth    serving                             42   0         2 h 0 min ago
certs   crash looped, next attempt in 10 s  -    9         -

last exit of certs, 2 s ago:
error: plugin `certs` exited (exit status 1, after 212 ms)
  command: certs";
        assert_eq!(proxy(&understood(answer()).unwrap(), 8260.0), expected);
    }

    #[test]
    fn a_state_says_whether_there_will_be_another_attempt() {
        let shown = |state: Value| {
            let mut plugin = answer()["plugins"][1].clone();
            plugin.as_object_mut().unwrap().remove("next_attempt");
            plugin.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
            understood::<Plugin>(plugin).unwrap().condition(8260.0)
        };
        let cases = [
            (json!({"state": "backing_off", "next_attempt": 8260.5}), "backing off, next attempt now"),
            (json!({"state": "crash_looped", "next_attempt": 8265.5}), "crash looped, next attempt in 5 s"),
            (
                json!({"state": "disabled", "why": "too_many_restarts"}),
                "disabled, no further attempt: too many restarts",
            ),
            (
                json!({"state": "disabled", "why": "policy"}),
                "disabled, no further attempt: its restart policy is `never`",
            ),
            (json!({"state": "not_serving", "why": "reported"}), "not serving: it reports so"),
            (
                json!({"state": "not_serving", "why": "frozen"}),
                "not serving: its process is stopped by a signal or a debugger",
            ),
            (json!({"state": "stopped"}), "stopped"),
        ];
        for (state, expected) in cases {
            assert_eq!(shown(state), expected);
        }
    }

    #[test]
    fn the_ends_of_a_plugin_are_told_one_after_the_other() {
        let mut plugin = answer()["plugins"][1].clone();
        plugin["exits"] =
            json!([{"at": 8258.0, "report": "error: second\n  x"}, {"at": 8200.0, "report": "error: first"}]);
        let expected = "\
PLUGIN  STATE                               PID  RESTARTS  SERVING SINCE
certs   crash looped, next attempt in 10 s  -    9         -

exit of certs, 2 s ago:
error: second
  x

exit of certs, 1 min 0 s ago:
error: first";
        assert_eq!(details(&[understood(plugin).unwrap()], 8260.0), expected);
    }

    #[test]
    fn times_read_well_whatever_the_clocks_say() {
        let shown = |seconds| between(0.0, seconds);
        assert_eq!(shown(59.9), "59 s");
        assert_eq!(shown(61.0), "1 min 1 s");
        assert_eq!(shown(86_400.0 * 3.0 + 7200.0), "3 d 2 h");
        assert_eq!(shown(-5.0), "0 s");
        assert_eq!(shown(f64::INFINITY), "0 s");
    }
}
