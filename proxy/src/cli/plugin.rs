//! `palisade plugin`.

use serde_json::Value;

use super::args::{self, PluginOrder};
use super::client::{Admin, converse};
use super::output::print;
use super::status::{self, understood};
use super::{Exit, Failure};

pub(super) fn order(order: args::Plugin) -> Result<(), Failure> {
    let (verb, wanted, PluginOrder { name, json, target }) = match order {
        args::Plugin::Upgrade(order) => ("upgrade", "serving", order),
        args::Plugin::Restart(order) => ("restart", "serving", order),
        args::Plugin::Stop(order) => ("stop", "stopped", order),
        args::Plugin::Start(order) => ("start", "serving", order),
    };
    let admin = Admin::of(&target)?;
    let path = format!("/plugins/{name}/{verb}");
    let answer: Value =
        converse(async { if verb == "upgrade" { admin.change(&path).await } else { admin.post(&path).await } })?;
    let instances: Vec<status::Plugin> = understood(answer["instances"].clone())?;
    let missed = instances.iter().find(|instance| instance.state != wanted);
    if json {
        print(format_args!("{answer:#}"))?;
        return if missed.is_none() { Ok(()) } else { Err(Failure::Shown(Exit::Failed)) };
    }
    let Some(missed) = missed else {
        let line = |instance: &status::Plugin| {
            let pid = instance.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            format!("{}: {wanted}{pid}", instance.label())
        };
        return print(instances.iter().map(line).collect::<Vec<_>>().join("\n"));
    };
    // Carried out, but not with the result that it was given for.
    let condition = missed.condition_now();
    let failure = Failure::failed(format_args!("plugin `{}` is not {wanted}: {condition}", missed.label()));
    Err(match &missed.last_exit_report {
        Some(report) => failure.help(format_args!("its last exit:\n{report}")),
        None => failure,
    })
}
