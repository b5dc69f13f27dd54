//! The command line as it is written.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::telemetry::logs;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong
  3  the configuration is invalid
  4  no proxy runs that could be asked";

/// An HTTP proxy whose extensions are separate processes.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the proxy until SIGTERM or SIGINT
    ///
    /// Starts the plugins, opens the listeners once every required plugin serves, and logs to stderr. SIGTERM and
    /// SIGINT end it: listeners close, open requests may go on for `drain_timeout`, plugins are stopped.
    Run(Run),
    /// Judge a configuration without starting anything
    ///
    /// Shows every problem with its place. Exits with 3 if there is one.
    Validate(Validate),
    /// Show a running proxy and its plugins
    ///
    /// For plugins whose process has ended before: how, with its last lines on stderr. With a plugin's name: all that
    /// is known of its last ends.
    Status(Status),
    /// Show what has happened to the plugins of a running proxy
    ///
    /// Each step from one state to the next, as far as the last thousand go.
    Events(Events),
    /// Have a running proxy read its configuration again
    ///
    /// A valid one takes over without a gap: unchanged plugins, connections to upstreams and sockets stay. One that is
    /// invalid, or whose new plugins or listeners don't come up, changes nothing.
    Reload(Reload),
    /// Have a new process take over from a running proxy
    ///
    /// It is the binary that is there now, with the same arguments. It starts its own plugins beside the running ones; when
    /// all is ready, it takes over the listening sockets, and the process before it drains and ends. No connection is
    /// refused and no request lost. If the new one does not come up, the running one goes on.
    UpgradeSelf(Reload),
    /// Restart, upgrade, stop or start a plugin of a running proxy; pin what a plugin runs
    #[command(subcommand)]
    Plugin(Plugin),
    /// Print the JSON Schema of configuration files, for editors
    Schema,
    /// Print the completions of a shell
    ///
    /// For example: palisade completions bash > /etc/bash_completion.d/palisade
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// How log lines are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(super) log_format: logs::Format,
    /// What is logged: a level, or levels by target, as in `info,plugin=debug`
    #[arg(
        long,
        env = "PALISADE_LOG",
        value_name = "FILTER",
        default_value = logs::DEFAULT_FILTER,
        value_parser = logs::parse_filter
    )]
    pub(super) log: String,
}

#[derive(Debug, Args)]
pub(super) struct Validate {
    #[command(flatten)]
    pub(super) file: FileOrConfig,
    /// Print problems as JSON on stdout; with --effective, the configuration
    #[arg(long)]
    pub(super) json: bool,
    /// Print the configuration with every default filled in and secrets left out
    #[arg(long)]
    pub(super) effective: bool,
}

/// The file is an argument for those who type it, an option for those who come from `run`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct FileOrConfig {
    /// The configuration
    file: Option<PathBuf>,
    /// The configuration, as `run` takes it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FileOrConfig {
    pub(super) fn path(self) -> PathBuf {
        // The parser takes exactly one of them.
        self.file.or(self.config).unwrap_or_default()
    }
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Show this plugin only
    #[arg(value_parser = plugin_name)]
    pub(super) name: Option<String>,
    /// Print the answer of the proxy as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what happens from now on, until interrupted
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Print each event as JSON, in a line of its own
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Debug, Args)]
pub(super) struct Reload {
    /// Print what has changed as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Debug, Subcommand)]
pub(super) enum Plugin {
    /// Replace the plugin's processes by new ones, without a gap
    ///
    /// The new ones start beside the old, take over when all of them serve, and the old ones end when their last
    /// request has. When a new one fails before, or within its `probation`, the old ones are back or stay.
    Upgrade(PluginOrder),
    /// Stop the plugin's process and start a new one; earlier failures are forgotten
    Restart(PluginOrder),
    /// Stop the plugin's process; none is started until `start` or `restart`
    Stop(PluginOrder),
    /// Start a process where none runs; earlier failures are forgotten
    Start(PluginOrder),
    /// Show what a running plugin may do: from the kernel, not from the configuration
    Inspect(PluginOrder),
    /// Write the checksums of what a plugin runs into the configuration
    ///
    /// Of its program, and of the script or archive that its interpreter is told to run. From its next start on, the
    /// plugin runs only if they are the same. The rest of the file stays as it is.
    Pin(Pin),
}

#[derive(Debug, Args)]
pub(super) struct Pin {
    /// The plugin
    #[arg(value_parser = plugin_name)]
    pub(super) name: String,
    /// The configuration to write them into
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Print the checksums and leave the file alone
    #[arg(long)]
    pub(super) print: bool,
    /// Print the checksums as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PluginOrder {
    /// The plugin
    #[arg(value_parser = plugin_name)]
    pub(super) name: String,
    /// Print the answer of the proxy as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

/// Which running proxy is meant. Without either, the one in the default runtime directory.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct Target {
    /// The admin socket of the proxy [default: admin.sock in the default runtime directory]
    #[arg(long, value_name = "PATH")]
    pub(super) admin: Option<PathBuf>,
    /// The configuration that the proxy runs with; says where its admin socket is
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

/// Names go into the request's path, so what can't be a plugin's name never does.
fn plugin_name(text: &str) -> Result<String, &'static str> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=64).contains(&text.len()) && text.chars().all(valid) {
        Ok(text.to_owned())
    } else {
        Err("names of plugins are made of letters, digits, `-` and `_`, at most 64")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_file_to_validate_is_an_argument_or_an_option_but_not_both() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["palisade", "validate"], words].concat());
        for words in [&["x.yaml"][..], &["-c", "x.yaml"], &["--config", "x.yaml", "--effective"]] {
            let Command::Validate(validate) = parse(words).unwrap().command else { unreachable!() };
            assert_eq!(validate.file.path(), PathBuf::from("x.yaml"));
        }
        for words in [&[][..], &["x.yaml", "-c", "x.yaml"], &["--json"]] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn a_name_can_never_become_another_path() {
        assert!(plugin_name("auth-2_b").is_ok());
        for name in ["", "a/b", "..", "a b", "a?b", "ä", &"a".repeat(65)] {
            assert!(plugin_name(name).is_err(), "{name}");
        }
    }
}
