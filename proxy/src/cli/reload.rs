//! `palisade reload` and `palisade upgrade-self`.

use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::args::Reload;
use super::client::{Admin, converse};
use super::output::print;
use super::status::understood;

/// What is shown of a change.
#[derive(Debug, Deserialize)]
struct Changed {
    generation: u64,
    plugins: Differences,
    listeners: Differences,
}

#[derive(Debug, Deserialize)]
struct Differences {
    added: Vec<String>,
    replaced: Vec<String>,
    removed: Vec<String>,
}

pub(super) fn reload(args: &Reload) -> Result<(), Failure> {
    let admin = Admin::of(&args.target)?;
    let answer: Value = converse(admin.change("/reload"))?;
    if args.json {
        return print(format_args!("{answer:#}"));
    }
    print(told(&understood(answer)?))
}

pub(super) fn upgrade_self(args: &Reload) -> Result<(), Failure> {
    let admin = Admin::of(&args.target)?;
    let answer: Value = converse(admin.change("/upgrade"))?;
    if args.json {
        return print(format_args!("{answer:#}"));
    }
    let successor = answer["successor"].as_u64().unwrap_or_default();
    print(format_args!("upgraded: pid {successor} serves"))
}

fn told(changed: &Changed) -> String {
    let mut text = format!("reloaded: generation {}", changed.generation);
    for (what, Differences { added, replaced, removed }) in
        [("plugins", &changed.plugins), ("listeners", &changed.listeners)]
    {
        for (how, names) in [("added", added), ("replaced", replaced), ("removed", removed)] {
            if !names.is_empty() {
                text += &format!("\n{what} {how}: {}", names.join(", "));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_changed_reads_well() {
        let none = json!({"added": [], "replaced": [], "removed": []});
        let answer = json!({"generation": 7, "config_sha256": "ab", "plugins": none, "listeners": none});
        assert_eq!(told(&understood(answer).unwrap()), "reloaded: generation 7");
        let plugins = json!({"added": ["a", "b"], "replaced": ["c"], "removed": []});
        let listeners = json!({"added": [], "replaced": [], "removed": ["web"]});
        let answer = json!({"generation": 8, "config_sha256": "ab", "plugins": plugins, "listeners": listeners});
        let expected = "reloaded: generation 8\nplugins added: a, b\nplugins replaced: c\nlisteners removed: web";
        assert_eq!(told(&understood(answer).unwrap()), expected);
    }
}
