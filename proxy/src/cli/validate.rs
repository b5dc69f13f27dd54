//! `palisade validate`.

use serde_json::{Value, json};

use super::args::Validate;
use super::output::{complain, print};
use super::{Exit, Failure};
use crate::config::{self, Config};

pub(super) fn validate(args: Validate) -> Result<(), Failure> {
    let file = args.file.path();
    let config = match config::load(&file) {
        Ok(config) => config,
        Err(problems) if args.json => {
            print(format_args!("{:#}", problems.to_json()))?;
            return Err(Failure::Shown(Exit::InvalidConfiguration));
        }
        Err(problems) => return Err(Failure::Invalid(problems)),
    };
    if let Some(warning) = config.open_secret() {
        complain(format_args!("warning: {warning}"));
    }
    let file = file.display();
    match (args.effective, args.json) {
        (false, false) => print(format_args!("{file} is valid")),
        (false, true) => print(format_args!("{:#}", json!({"file": file.to_string(), "count": 0, "problems": []}))),
        (true, false) => print(config.effective_yaml()),
        (true, true) => print(format_args!("{:#}", effective_json(&config)?)),
    }
}

fn effective_json(config: &Config) -> Result<Value, Failure> {
    serde_yaml::from_str(&config.effective_yaml())
        .map_err(|error| Failure::failed(format_args!("the configuration can't be written as JSON: {error}")))
}
