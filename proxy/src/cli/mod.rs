//! The command line: what was typed, carried out, and told as text and an exit code.

mod args;
mod client;
mod events;
mod inspect;
mod output;
mod plugin;
mod reload;
mod run;
mod status;
mod validate;

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Cli, Command};
use self::output::{complain, print};
use crate::config::{self, Problems};

/// The command with which this program, started by itself, becomes a plugin. Not for people, so not among the others.
pub(crate) const SANDBOX_EXEC: &str = "sandbox-exec";

/// Does what the command line of this process says.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|command| command == SANDBOX_EXEC) {
        let plan = arguments.next().unwrap_or_default();
        complain(palisade_supervisor::sandbox_exec(&plan.to_string_lossy()));
        return ExitCode::from(Exit::Failed as u8);
    }
    let done = match Cli::try_parse() {
        Ok(cli) => carry_out(cli.command),
        Err(error) => {
            // Help and version are "errors" too, for stdout and with code 0. A reader that has gone does no harm.
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.exit() as u8)
        }
    }
}

fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Validate(args) => validate::validate(args),
        Command::Status(args) => status::status(args),
        Command::Reload(args) => reload::reload(&args),
        Command::Events(args) => events::events(args),
        Command::UpgradeSelf(args) => reload::upgrade_self(&args),
        Command::Plugin(args) => plugin::plugin(args),
        Command::Schema => print(format_args!("{:#}", config::schema())),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "palisade", &mut script);
            print(String::from_utf8_lossy(&script))
        }
        Command::Version => print(concat!("palisade ", env!("CARGO_PKG_VERSION"))),
    }
}

/// Exit codes other than 0. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    Failed = 1,
    Usage = 2,
    InvalidConfiguration = 3,
    NotRunning = 4,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failure {
    /// A message, and where there is something to do about it, what.
    Told { exit: Exit, message: String, help: Option<String> },
    /// The configuration is invalid.
    Invalid(Problems),
    /// All has been said already, on stdout.
    Shown(Exit),
    /// stdout can't be written to.
    Output(io::Error),
}

impl Failure {
    fn failed(message: impl Display) -> Self {
        Self::Told { exit: Exit::Failed, message: message.to_string(), help: None }
    }

    fn not_running(message: impl Display) -> Self {
        Self::Told { exit: Exit::NotRunning, message: message.to_string(), help: None }
    }

    /// Of a file that the proxy has read, with the proxy's words for what is wrong.
    fn invalid(message: impl Display) -> Self {
        Self::Told { exit: Exit::InvalidConfiguration, message: message.to_string(), help: None }
    }

    fn help(mut self, advice: impl Display) -> Self {
        if let Self::Told { help, .. } = &mut self {
            *help = Some(advice.to_string());
        }
        self
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Told { exit, .. } | Self::Shown(exit) => *exit,
            Self::Invalid(_) => Exit::InvalidConfiguration,
            Self::Output(_) => Exit::Failed,
        }
    }

    fn tell(&self) {
        match self {
            Self::Told { message, help: None, .. } => complain(format_args!("error: {message}")),
            Self::Told { message, help: Some(help), .. } => complain(format_args!("error: {message}\n  {help}")),
            Self::Invalid(problems) => complain(problems.render(output::color())),
            Self::Shown(_) => {}
            Self::Output(error) => complain(format_args!("error: can't write to stdout: {error}")),
        }
    }
}
