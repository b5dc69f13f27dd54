//! Go plugins of the tests, built from `tests/go` where Go is there.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Which release of go-plugin a Go plugin is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoPlugin {
    /// The current one.
    Current,
    /// v1.0.1, with which MOSN's SDK is made.
    V1_0_1,
    /// The one of MOSN's own SDK, by which it is made.
    MosnSdk,
}

impl GoPlugin {
    /// Both that take flags.
    pub const ALL: [Self; 2] = [Self::Current, Self::V1_0_1];

    /// The program; `None`, with a message, where the machine has no Go or can't get the modules.
    ///
    /// # Panics
    ///
    /// When it does not build.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
        let directory = BUILT.get_or_init(build).as_ref()?;
        let program = directory.join(match self {
            Self::Current => "header-auth",
            Self::V1_0_1 => "header-auth-v1.0.1",
            Self::MosnSdk => "header-auth-mosn",
        });
        if let Ok(reason) = std::fs::read_to_string(program.with_extension("skipped")) {
            #[allow(clippy::print_stderr, reason = "says why a test did nothing")]
            {
                eprint!("{reason}");
            }
            return None;
        }
        Some(program)
    }
}

fn build() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let directory = test.ancestors().nth(3).unwrap().join("go-plugins");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/go-plugins");
    let built = Command::new(script).arg(&directory).output().unwrap();
    match built.status.code() {
        Some(0) => Some(directory),
        Some(3) => {
            #[allow(clippy::print_stderr, reason = "says why a test did nothing")]
            {
                eprint!("{}", String::from_utf8_lossy(&built.stdout));
            }
            None
        }
        _ => panic!("{script}: {built:?}"),
    }
}
