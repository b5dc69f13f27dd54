//! `palisade plugin`.

use serde_json::Value;

use super::args::{self, PluginOrder};
use super::client::{Admin, converse};
use super::output::print;
use super::status::{self, understood};
use super::{Exit, Failure};

pub(super) fn order(order: args::Plugin) -> Result<(), Failure> {
    let (verb, wanted, PluginOrder { name, json, target }) = match order {
        args::Plugin::Restart(order) => ("restart", "serving", order),
        args::Plugin::Stop(order) => ("stop", "stopped", order),
        args::Plugin::Start(order) => ("start", "serving", order),
    };
    let admin = Admin::of(&target)?;
    let answer: Value = converse(admin.post(&format!("/plugins/{name}/{verb}")))?;
    if json {
        print(format_args!("{answer:#}"))?;
        return if answer["state"] == wanted { Ok(()) } else { Err(Failure::Shown(Exit::Failed)) };
    }
    let plugin: status::Plugin = understood(answer)?;
    if plugin.state == wanted {
        let pid = plugin.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        return print(format_args!("{}: {wanted}{pid}", plugin.name));
    }
    // Carried out, but not with the result that it was given for.
    let failure = Failure::failed(format_args!("plugin `{}` is not {wanted}: {}", plugin.name, plugin.condition_now()));
    Err(match plugin.last_exit_report {
        Some(report) => failure.help(format_args!("its last exit:\n{report}")),
        None => failure,
    })
}
