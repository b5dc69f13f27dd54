//! What usually lies behind a failed start: a table from words in the report to one sentence.

use crate::report::{ExitCause, ExitReport, chain};

/// Words that must all be there, and what they mean. The first match wins, so the special come before the general.
const HINTS: &[(&[&str], &str)] = &[
    (
        &["ModuleNotFoundError: No module named 'grpc'"],
        "the interpreter has no `grpcio`; try: pip install palisade-plugin",
    ),
    (
        &["ModuleNotFoundError: No module named 'palisade'"],
        "the interpreter does not see the SDK; try: pip install palisade-plugin, or name the virtual environment's python in `command`",
    ),
    (
        &["ModuleNotFoundError: No module named"],
        "a Python package is missing; install it for the interpreter named in `command`",
    ),
    (&["Unable to access jarfile"], "the jar is not there; build it, or correct its path (relative to cwd)"),
    (
        &["UnsupportedClassVersionError"],
        "the jar was built for a newer Java than the one that runs it; name a newer java in `command`",
    ),
    (&["can't open file"], "the script is not there; correct its path (relative to cwd)"),
    (&["Cannot find module"], "the script or a package is not there; correct its path (relative to cwd)"),
    (&["socket path is", "bytes long"], "choose a shorter runtime directory, or listen in PLUGIN_UNIX_SOCKET_DIR"),
    (&["bind: invalid argument"], "the socket's path is longer than 107 bytes; choose a shorter runtime directory"),
    (&["AF_UNIX path too long"], "the socket's path is longer than 107 bytes; choose a shorter runtime directory"),
    (
        &["ddress already in use"],
        "another process has the plugin's port; let the plugin listen on the unix socket, or on a free port",
    ),
    (&["This binary is a plugin"], "the plugin expects another cookie; one made for MOSN needs `contract: mosn`"),
    (
        &["application version", "is not offered"],
        "plugin and host are of different generations; rebuild the plugin against this host's contract",
    ),
    (&["net/rpc"], "the plugin was built without gRPC; serve it with go-plugin's GRPCServer"),
    // The C library hands what the kernel cannot execute to a shell, which stumbles over it.
    (&["\\u{7f}ELF"], "the program is for another architecture"),
    (&["Exec format error"], "the program is for another architecture, or a script without a `#!` line"),
    (&["interpreter", "not found"], "install the interpreter, or correct the `#!` line (mind Windows line ends)"),
    (
        &["is not what was pinned"],
        "it was updated, or somebody has replaced it; if you know by whom, pin it again: palisade plugin pin",
    ),
    (
        &["the sandbox can't be had: `cgroup"],
        "let the service manager delegate a control group to the host (systemd: Delegate=yes)",
    ),
    (
        &["the sandbox can't be had: execute", "Permission denied"],
        "under `hardened`, root's plugins run as a user of their own: let others read the program, or name a user (`sandbox.user`)",
    ),
    (&["not found in PATH"], "install the program, or write its full path in `command`"),
    (&["is not executable"], "make it executable (chmod +x), or name its interpreter first in `command`"),
    (&["Permission denied"], "the user has no access to the program or one of its directories; check owner and mode"),
    (&["error while loading shared libraries"], "a shared library is missing on this machine"),
    (&["GLIBC_", "not found"], "the program was built for a newer system; build it here, or link it statically"),
    (
        &["no handshake within"],
        "the plugin does not flush its stdout, or takes longer to start than the handshake timeout",
    ),
    (&["stdout must carry the handshake"], "something else prints to stdout first; send it to stderr"),
];

pub(super) fn likely(report: &ExitReport) -> Option<String> {
    if report.out_of_memory {
        return Some(
            "its processes together have used up `sandbox.cgroup.memory`; give them more, or find out why".to_owned(),
        );
    }
    let ExitCause::StartFailure(failure) = &report.cause else { return None };
    let reason = chain(failure.as_ref());
    let said = |word: &str| reason.contains(word) || report.stderr.iter().any(|line| line.contains(word));
    HINTS.iter().find(|(words, _)| words.iter().all(|word| said(word))).map(|(_, advice)| (*advice).to_owned())
}
