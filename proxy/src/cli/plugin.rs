//! `palisade plugin`.

use serde_json::{Value, json};

use super::args::{self, PluginOrder};
use super::client::{Admin, converse};
use super::output::print;
use super::status::{self, understood};
use super::{Exit, Failure};
use crate::config;

pub(super) fn plugin(command: args::Plugin) -> Result<(), Failure> {
    let (verb, wanted, order) = match command {
        args::Plugin::Upgrade(order) => ("upgrade", "serving", order),
        args::Plugin::Restart(order) => ("restart", "serving", order),
        args::Plugin::Stop(order) => ("stop", "stopped", order),
        args::Plugin::Start(order) => ("start", "serving", order),
        args::Plugin::Inspect(asked) => return super::inspect::inspect(&asked),
        args::Plugin::Pin(pin) => return self::pin(&pin),
    };
    self::order(verb, wanted, order)
}

/// Without a proxy: what is pinned counts from the plugin's next start with this file.
fn pin(args: &args::Pin) -> Result<(), Failure> {
    let name = &args.name;
    let config = config::load(&args.config).map_err(Failure::Invalid)?;
    let Some(plugin) = config.plugins.get(name) else {
        let failure = Failure::failed(format_args!("no plugin is called `{name}`"));
        return Err(match config::nearest(name, config.plugins.keys().map(String::as_str)) {
            Some(near) => failure.help(format_args!("did you mean `{near}`?")),
            None => failure,
        });
    };
    let sums = config::pin::checksums(plugin).map_err(|error| Failure::failed(&error))?;
    if !args.print {
        config::pin::write(&config, name, &sums).map_err(|error| Failure::failed(&error))?;
    }
    let program = sums.program.map(|sum| sum.to_string());
    let files = sums.files.iter().map(|(file, sum)| (file.to_string_lossy().into_owned(), sum.to_string()));
    if args.json {
        let files: serde_json::Map<_, _> = files.map(|(file, sum)| (file, sum.into())).collect();
        return print(format_args!("{:#}", json!({"name": name, "program": program, "files": files})));
    }
    let program = program.map(|sum| (plugin.command.first().cloned().unwrap_or_default(), sum));
    let lines = program.into_iter().chain(files).map(|(file, sum)| format!("{name}: {file} {sum}"));
    print(lines.collect::<Vec<_>>().join("\n"))
}

fn order(verb: &str, wanted: &str, order: PluginOrder) -> Result<(), Failure> {
    let PluginOrder { name, json, target } = order;
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
