//! The written form: one struct for each section of the file, with the fields an operator may write.
//!
//! The doc comments are the descriptions in the JSON Schema that `palisade schema` prints. Nothing here is judged;
//! [`super::convert`] does that.

use schemars::JsonSchema;
use serde::Deserialize;

use super::slot::{Percent, Plain, Raw, Sha256, Size, Slot, Span, SpanOrNone, Table};

/// A list whose entries know their places.
pub(super) type List<T> = Slot<Vec<Slot<T>>>;

/// Configuration of Palisade, an HTTP proxy whose extensions are separate processes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "palisade.yaml", extend("required" = ["listeners"]))]
pub(super) struct File {
    /// Where the admin socket, the plugins' sockets and the lock are; a relative path is relative to this file.
    /// Default: `$PALISADE_RUNTIME_DIR`, else the first of `$RUNTIME_DIRECTORY`, `/run/palisade` for root and
    /// `$XDG_RUNTIME_DIR/palisade`, else `palisade-<uid>` in the directory for temporary files.
    pub(super) runtime_dir: Slot<String>,
    /// Threads that serve, each with its own connections to upstreams and plugins. Default: as many as there are cores for
    /// this process.
    pub(super) workers: Slot<u64>,
    /// How long open requests may go on after SIGTERM. Default 30s.
    pub(super) drain_timeout: Slot<Span>,
    /// Addresses and networks (`10.0.0.0/8`, `::1`) whose `X-Forwarded-*` and `x-request-id` are believed. Default none.
    pub(super) trusted_proxies: List<String>,
    /// What all listeners together may use.
    pub(super) overload: Slot<Overload>,
    /// Where connections are taken; at least one.
    pub(super) listeners: List<Listener>,
    /// Which requests go where; the first that matches wins.
    pub(super) routes: List<Route>,
    /// Clusters of endpoints by name. A route to a single server can do without: it writes the URL itself.
    pub(super) upstreams: Slot<Table<Upstream>>,
    /// Plugins by name: letters, digits, `-` and `_`, at most 64.
    pub(super) plugins: Slot<Table<Plugin>>,
}

/// Where connections are taken.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["address"]))]
pub(super) struct Listener {
    /// What messages and metrics call it. Default: the address.
    pub(super) name: Slot<String>,
    /// `127.0.0.1:8080`, `"[::1]:8080"`, `0.0.0.0:80` for every interface, or `unix:/run/web.sock`.
    pub(super) address: Slot<String>,
    /// The plugin that supplies certificates. Unset: cleartext.
    pub(super) tls: Slot<ListenerTls>,
    /// Filters that run before routing, in this order.
    pub(super) filters: List<Filter>,
    /// Limits on what a client may send and how long it may take.
    pub(super) limits: Slot<Limits>,
    /// How requests are read where servers differ.
    pub(super) requests: Slot<Requests>,
}

/// What all listeners together may use before connections end early, and requests are refused.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Overload {
    /// Open connections of clients, 1 to 1000000; more wait in the accept queues. Default, and most: half of what the
    /// limit of file descriptors allows.
    pub(super) max_connections: Slot<u64>,
    /// Memory of which the marks are percentages, 32MiB to 1024GiB. Default: half of what the machine, the control
    /// group or the limits of the process allow.
    pub(super) memory: Slot<Size>,
    /// Percent of memory or file descriptors from which connections end with their next response. Default 85.
    pub(super) close_at: Slot<u64>,
    /// Percent of memory or file descriptors from which requests are answered 503. Default 95.
    pub(super) shed_at: Slot<u64>,
}

/// How requests are read where servers differ. The defaults are strict.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Requests {
    /// Header names with `_`, which some servers take for `-`. Default `refuse`.
    pub(super) underscores: Slot<Underscores>,
    /// `%2f` in a path, which some servers take for `/`. Default `refuse`.
    pub(super) encoded_slashes: Slot<Ambiguous>,
    /// `;` in a path, which begins parameters for some servers. Default `refuse`.
    pub(super) parameters: Slot<Ambiguous>,
    /// `//` in a path. Default `merge`.
    pub(super) double_slashes: Slot<DoubleSlashes>,
    /// Names of the trailers of requests that are passed on; all others are taken out. Default none.
    pub(super) trailers: List<String>,
}

/// What happens to header names with `_`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Underscores {
    /// The request is refused with 400.
    Refuse,
    /// The fields are taken out of the request.
    Drop,
    /// They are passed on.
    Keep,
}

/// What happens to something that servers read in different ways.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ambiguous {
    /// The request is refused with 400.
    Refuse,
    /// It is passed on as it is.
    Keep,
}

/// What happens to `//` in a path.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum DoubleSlashes {
    /// It becomes `/`.
    Merge,
    /// The request is refused with 400.
    Refuse,
    /// It is passed on.
    Keep,
}

/// A plugin's name, or that with details.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum ListenerTls {
    /// The plugin's name.
    Text(String),
    /// The plugin's name and more.
    Mapping(TlsDetails),
}

/// Where a listener's certificates come from.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["plugin"]))]
pub(super) struct TlsDetails {
    /// The plugin that supplies certificates.
    pub(super) plugin: Slot<String>,
    /// Names of the bundles to ask for. Default: all.
    pub(super) names: List<String>,
    /// The bundle for clients that send no server name, or one that no certificate covers. Default: the only bundle
    /// there is; if there are more, such clients are refused.
    pub(super) default: Slot<String>,
    /// TLS 1.3 only. Default false: 1.2 and 1.3.
    pub(super) only_tls13: Slot<bool>,
}

/// A plugin's name, or that with details, or the built-in header check.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum Filter {
    /// The plugin's name.
    Text(String),
    /// The plugin's name and more, or a header check.
    Mapping(Box<FilterDetails>),
}

/// Either `plugin`, with its details, or `header`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FilterDetails {
    /// The plugin to ask.
    pub(super) plugin: Slot<String>,
    /// Bounds the whole check: queueing, a restart under way, the call. Default: the plugin's `timeout`.
    pub(super) timeout: Slot<Span>,
    /// What happens to a request that could not be judged. Default: the plugin's `on_failure`.
    pub(super) on_failure: Slot<OnFailure>,
    /// The largest request body sent to a filter that needs bodies, up to 64MiB. Default 1MiB.
    pub(super) max_body: Slot<Size>,
    /// Compares one header in the proxy itself.
    pub(super) header: Slot<HeaderFilter>,
}

/// Lets a request pass when the header is there and each of its fields is one of the values.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub(super) struct HeaderFilter {
    /// The header's name, in any case.
    pub(super) name: Slot<String>,
    /// The one value, compared byte for byte.
    pub(super) value: Slot<Plain>,
    /// The values, instead of `value`.
    pub(super) values: List<Plain>,
    /// Status of the refusal, 400 to 599. Default 403.
    pub(super) status: Slot<u64>,
}

/// What happens to a request that a filter could not judge.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnFailure {
    /// It gets 503, or 504 when the time is up.
    Deny,
    /// It goes on unjudged, and is counted.
    Allow,
}

/// Bounds on one listener's clients.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    /// From accept to the end of the TLS handshake. Default 10s.
    pub(super) tls_handshake_timeout: Slot<Span>,
    /// From accept, or the end of the TLS handshake, to the first byte. Default 15s.
    pub(super) first_byte_timeout: Slot<Span>,
    /// From a request's head to its response's. Default 30m.
    pub(super) request_timeout: Slot<Span>,
    /// Requests of one connection, after which it ends, 1 to 1000000000. Default 1000000.
    pub(super) max_requests: Slot<u64>,
    /// Frames of one HTTP/2 connection that carry nothing, each minute, 10 to 1000000. Default 1000.
    pub(super) max_glitches: Slot<u64>,
    /// Memory that the headers of one connection's requests in flight may take up, 64KiB to 1GiB. Default 1MiB.
    pub(super) max_header_memory: Slot<Size>,
    /// Size of a request's body, 0 to 16384GiB. Default 1GiB.
    pub(super) max_body: Slot<Size>,
    /// From the first to the last byte of a request's head. Default 10s.
    pub(super) header_timeout: Slot<Span>,
    /// How long a connection may stay without a request. Default 60s.
    pub(super) idle_timeout: Slot<Span>,
    /// How long a request's body may stand still until the response begins, and a client may leave responses
    /// unread. Default 30s.
    pub(super) body_idle_timeout: Slot<Span>,
    /// Size of a request's head, 8KiB to 1MiB. Default 32KiB.
    pub(super) max_header_bytes: Slot<Size>,
    /// Size of a request's path and query, 256B to 64KiB. Default 8KiB.
    pub(super) max_target_bytes: Slot<Size>,
    /// Header fields in a request, 1 to 10000. Default 100.
    pub(super) max_headers: Slot<u64>,
    /// Open connections, 1 to 1000000; more wait in the accept queue. Default 10000.
    pub(super) max_connections: Slot<u64>,
    /// Concurrent streams of one HTTP/2 connection, 1 to 10000. Default 100.
    pub(super) max_streams: Slot<u64>,
}

/// Which requests go where.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["upstream"]))]
pub(super) struct Route {
    /// What messages and metrics call it. Default `route-1`, `route-2`, ... by position.
    pub(super) name: Slot<String>,
    /// The host: `api.example`, `"*.example"` for any name below it, `"*"` for any. Default any.
    pub(super) host: Slot<String>,
    /// Several hosts, instead of `host`.
    pub(super) hosts: List<String>,
    /// The path: a string is a prefix of whole segments. Default `/`, which is every path.
    pub(super) path: Slot<PathMatch>,
    /// Methods. Default any.
    pub(super) methods: List<String>,
    /// Headers by name, all of which must match.
    pub(super) headers: Slot<Table<HeaderMatch>>,
    /// Filters that run once this route was chosen, in this order.
    pub(super) filters: List<Filter>,
    /// `http://127.0.0.1:9000`, `unix:/run/app.sock`, or a name from `upstreams`.
    pub(super) upstream: Slot<String>,
    /// How long nothing may move in either direction, till the response has ended, or `none`. Default 60s.
    pub(super) timeout: Slot<SpanOrNone>,
    /// Attempts beyond the first, for requests that are safe to repeat: 0 or 1. Default 1.
    pub(super) retries: Slot<u64>,
    /// Protocols a client may upgrade to. Default none.
    pub(super) upgrades: List<String>,
    /// Handed to filters: a string for each name.
    pub(super) metadata: Slot<Table<Plain>>,
}

/// A prefix, or how else the path is matched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum PathMatch {
    /// A prefix: `/a` covers `/a` and `/a/b`, not `/ab`.
    Text(String),
    /// One of `exact`, `prefix` and `regex`.
    Mapping(PathDetails),
}

/// Exactly one of these.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct PathDetails {
    /// The whole path.
    pub(super) exact: Slot<String>,
    /// The path or its first segments.
    pub(super) prefix: Slot<String>,
    /// A regular expression for the whole path.
    pub(super) regex: Slot<String>,
}

/// The value, or how else the header is matched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum HeaderMatch {
    /// The value.
    Text(Plain),
    /// One of `exact`, `prefix`, `regex` and `present`.
    Mapping(HeaderDetails),
}

/// Exactly one of these. A header that is there several times matches if one of its values does.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct HeaderDetails {
    /// The whole value.
    pub(super) exact: Slot<Plain>,
    /// How the value begins.
    pub(super) prefix: Slot<Plain>,
    /// A regular expression for the whole value.
    pub(super) regex: Slot<String>,
    /// true: there, with any value; false: not there.
    pub(super) present: Slot<bool>,
}

/// A cluster of endpoints.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["endpoints"]))]
pub(super) struct Upstream {
    /// `http://127.0.0.1:9000`, `127.0.0.1:9000`, `app.internal:9000` or `unix:/run/app.sock`; at least one.
    pub(super) endpoints: List<String>,
    /// How an endpoint is picked. Default `round_robin`.
    pub(super) balance: Slot<Balance>,
    /// What the endpoints speak. Default `http1`.
    pub(super) protocol: Slot<Protocol>,
    /// For a connection to an endpoint. Default 1s.
    pub(super) connect_timeout: Slot<Span>,
    /// How long an unused connection is kept; servers that close earlier need a lower value. Default 60s.
    pub(super) idle_timeout: Slot<Span>,
    /// Idle HTTP/1.1 connections kept for each endpoint, 0 to 100000. Default 1024.
    pub(super) max_idle: Slot<u64>,
    /// Size of a response's head, 8KiB to 1MiB. Default 64KiB.
    pub(super) max_header_bytes: Slot<Size>,
    /// Header fields in a response, 1 to 10000. Default 200.
    pub(super) max_headers: Slot<u64>,
    /// When an endpoint that fails gets no requests for a while.
    pub(super) outliers: Slot<Outliers>,
    /// Has endpoints asked whether they answer.
    pub(super) checks: Slot<Checks>,
    /// Percent of endpoints, 0 to 100, below which all get requests, whatever is known about them. Default 50.
    pub(super) panic_below: Slot<u64>,
}

/// When an endpoint that fails gets no requests for a while.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Outliers {
    /// Failures in a row, 0 to 1000; 0 for never. Default 5.
    pub(super) failures: Slot<u64>,
    /// For how long the first time; doubled each time after that. Default 10s.
    pub(super) eject_for: Slot<Span>,
}

/// How endpoints are asked whether they answer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["path"]))]
pub(super) struct Checks {
    /// What is asked for; a status of 2xx or 3xx is an answer.
    pub(super) path: Slot<String>,
    /// Between checks. Default 5s.
    pub(super) interval: Slot<Span>,
    /// For one check. Default 1s.
    pub(super) timeout: Slot<Span>,
    /// Failures in a row from which an endpoint gets no requests, 1 to 100. Default 3.
    pub(super) failures: Slot<u64>,
    /// Successes in a row from which it gets some again, 1 to 100. Default 1.
    pub(super) successes: Slot<u64>,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Balance {
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// The one of two random ones with fewer requests in flight.
    LeastRequest,
}

/// What endpoints speak.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// A plugin's process and how it is used.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["command"]}, {"required": ["address"]}]))]
pub(super) struct Plugin {
    /// Program and arguments: `[python3, auth.py]`. A program with a `/` is relative to `cwd`; else it is looked up in
    /// `PATH`. No shell is involved. An argument with `{socket}` or `{port}` tells a program that prints no handshake where
    /// to listen.
    pub(super) command: Slot<Command>,
    /// In the place of `command`: where a plugin listens that runs already, `unix:/run/auth.sock` or
    /// `tcp:127.0.0.1:9000`. It is connected to, and never ended.
    pub(super) address: Slot<String>,
    /// With `address`: the user, by name or number, who may listen there besides root and the proxy's own. Default nobody.
    pub(super) peer_user: Slot<Plain>,
    /// Working directory, relative to this file's. Default: this file's directory.
    pub(super) cwd: Slot<String>,
    /// Variables set for the plugin. Secrets don't belong here: others can read them.
    pub(super) env: Slot<Table<Plain>>,
    /// Names of the proxy's own variables to hand on. Default none: a plugin inherits nothing.
    pub(super) env_pass: List<String>,
    /// What the program must be: `sha256:` and 64 hexadecimal digits, or that with files of the command. Default: not
    /// looked at. `palisade plugin pin` writes it.
    pub(super) checksum: Slot<Checksum>,
    /// What its processes may do: a profile, or that with details. Default `default`.
    pub(super) sandbox: Slot<Sandbox>,
    /// The group, by name or number, that may connect to the plugin's socket. Default: nobody but its user.
    pub(super) socket_group: Slot<Plain>,
    /// What the plugin speaks. Default `palisade`.
    pub(super) contract: Slot<Contract>,
    /// Names of headers that only plugins set: taken out of every client's request, before any filter, and of every
    /// upstream's response. Default none.
    pub(super) owns: List<String>,
    /// Processes of it, 1 to 64. Default 1.
    pub(super) instances: Slot<u64>,
    /// Calls that one process works on at a time, 1 to 100000. Default 1000.
    pub(super) max_calls: Slot<u64>,
    /// Calls that wait for one process beyond these, 0 to 100000; more are refused at once. Default 1000.
    pub(super) max_queue: Slot<u64>,
    /// When a process that fails its calls, while others do not, gets none for a while.
    pub(super) quarantine: Slot<Quarantine>,
    /// After how long without an answer a second instance is asked, too; whichever answers first decides. Needs `instances`
    /// of 2 or more. Default: never.
    pub(super) hedge_after: Slot<Span>,
    /// Handed to the plugin as it is.
    pub(super) config: Slot<Raw>,
    /// How long a filter waits for the plugin's verdict. Default 200ms.
    pub(super) timeout: Slot<Span>,
    /// What happens to a request that could not be judged. Default `deny`.
    pub(super) on_failure: Slot<OnFailure>,
    /// Whether listeners stay closed until it serves, and start fails when it can't. Default true.
    pub(super) required: Slot<bool>,
    /// From start to the handshake line. Default 15s.
    pub(super) handshake_timeout: Slot<Span>,
    /// From the handshake line to serving: connect, health, configure. Default 10s.
    pub(super) ready_timeout: Slot<Span>,
    /// Whether a TCP address outside loopback is accepted. Default false.
    pub(super) allow_remote_tcp: Slot<bool>,
    /// Whether the proxy talks to it over mutual TLS, with certificates made for each start: go-plugin's AutoMTLS. Plugins
    /// made with go-plugin support it; one that does not fails to start. Default false.
    pub(super) auto_mtls: Slot<bool>,
    /// Health checks while it serves.
    pub(super) health: Slot<Health>,
    /// How it is started again.
    pub(super) restart: Slot<Restart>,
    /// How long calls under way may go on when it is to stop. Default 5s.
    pub(super) drain_timeout: Slot<Span>,
    /// From SIGTERM to SIGKILL. Default 5s.
    pub(super) stop_timeout: Slot<Span>,
    /// How long processes that took over in an upgrade or a reload have to last, else those before them are back.
    /// Default 5s.
    pub(super) probation: Slot<Span>,
    /// Reports of ended processes that are kept for each instance, 1 to 100. Default 10.
    pub(super) exit_reports: Slot<u64>,
}

/// Program and arguments, each an entry of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum Command {
    // Wrong, and read only to show how the list would be written.
    #[schemars(skip)]
    Text(String),
    /// Program and arguments.
    List(Vec<Slot<String>>),
}

/// The program's checksum, or that with the checksums of files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum Checksum {
    /// The program's.
    Text(Sha256),
    /// The program's, and those of files.
    Mapping(ChecksumDetails),
}

/// Checksums of what a plugin runs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ChecksumDetails {
    /// The program's. Default: not looked at.
    pub(super) program: Slot<Sha256>,
    /// Those of files that the command names, such as a script or an archive, by the argument as written there.
    pub(super) files: Slot<Table<Sha256>>,
}

/// A profile, or that with what is different.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(untagged)]
pub(super) enum Sandbox {
    /// The profile as it is.
    Text(Profile),
    /// The profile, and what is different.
    Mapping(Box<SandboxDetails>),
}

/// What a sandbox begins with.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Profile {
    /// Nothing beyond what every plugin gets: its own session, umask 077, no core files, no descriptors.
    None,
    /// No new privileges.
    Default,
    /// Everything that a filter can do without.
    Hardened,
}

/// Each replaces what the profile says.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SandboxDetails {
    /// What it begins with. Default `default`.
    pub(super) profile: Slot<Profile>,
    /// What happens where the kernel or the privileges can't give a part of it. Default `fail`.
    pub(super) on_missing: Slot<OnMissing>,
    /// The user to run as, by name or number. Default: the proxy's; in `hardened` under root one of its own.
    pub(super) user: Slot<Plain>,
    /// The group, by name or number. Default: the user's.
    pub(super) group: Slot<Plain>,
    /// Whether set-user-ID programs and file capabilities have no effect.
    pub(super) no_new_privs: Slot<bool>,
    /// Capabilities that it keeps, such as `net_bind_service`.
    pub(super) capabilities: List<String>,
    /// Files and directories to read, beyond what runtimes and the command need.
    pub(super) read: List<String>,
    /// Files and directories to read and write, beyond its private directory.
    pub(super) write: List<String>,
    /// Programs and directories of programs to execute, beyond the command.
    pub(super) execute: List<String>,
    /// Whether processes outside can neither be signalled nor traced, nor their abstract sockets connected to.
    pub(super) isolate: Slot<bool>,
    /// Which network it sees.
    pub(super) network: Slot<Network>,
    /// TCP ports that it may connect to, with `network: host`.
    pub(super) connect: List<u64>,
    /// TCP ports that it may listen on, with `network: host`.
    pub(super) bind: List<u64>,
    /// Whether it has a `/tmp` of its own, and sees nothing of `/run`, `/var/tmp` and `/dev/shm`.
    pub(super) private_tmp: Slot<bool>,
    /// Classes of system calls that fail.
    pub(super) deny: List<SyscallClass>,
    /// Limits of each of its processes.
    pub(super) limits: Slot<SandboxLimits>,
    /// A control group of its own, and limits of all of its processes together.
    pub(super) cgroup: Slot<SandboxCgroup>,
}

/// What happens where a part of a sandbox can't be had.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnMissing {
    /// The plugin is not started.
    Fail,
    /// It is started without, and a warning is logged.
    Warn,
}

/// Which network a plugin sees.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Network {
    /// The machine's.
    Host,
    /// One without interfaces; unix sockets work.
    None,
}

/// System calls that belong together.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SyscallClass {
    /// Tracing, and memory and descriptors of other processes.
    Debug,
    /// Mounting and changing roots.
    Mount,
    /// Modules, kexec, BPF, io_uring, userfaultfd.
    Kernel,
    /// New namespaces, and entering others.
    Namespace,
    /// Raw sockets, and families of sockets beyond unix, IP and netlink.
    RawSocket,
    /// The kernel's keyrings.
    Keyring,
    /// Setting the clock.
    Clock,
    /// Rebooting, swapping, quotas, host names.
    Admin,
    /// Executing any program after the plugin's own; lifted where `execute` names some.
    Exec,
}

/// Limits of one process.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SandboxLimits {
    /// Writable memory of its own, at least 1MiB. What is only reserved does not count.
    pub(super) memory: Slot<Size>,
    /// Open descriptors, at least 8.
    pub(super) open_files: Slot<u64>,
    /// Processes and threads of the plugin.
    pub(super) processes: Slot<u64>,
    /// Largest file.
    pub(super) file_size: Slot<Size>,
    /// Time on a processor, rounded down to seconds.
    pub(super) cpu_time: Slot<Span>,
}

/// Limits of all processes of a plugin together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SandboxCgroup {
    /// Memory, at least 1MiB. Where it is used up, all of them are killed.
    pub(super) memory: Slot<Size>,
    /// Percent of one processor, 1% to 100000%; 200% are two.
    pub(super) cpu: Slot<Percent>,
    /// Processes and threads, 1 to 4194304.
    pub(super) pids: Slot<u64>,
}

/// What a plugin speaks.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Contract {
    /// `palisade.plugin.v1`.
    Palisade,
    /// MOSN's `proto.Plugin/Call`.
    Mosn,
}

/// Health checks of a serving plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Health {
    /// Between checks. Default 5s.
    pub(super) interval: Slot<Span>,
    /// For one check. Default 1s.
    pub(super) timeout: Slot<Span>,
    /// Failures in a row that make it dead: killed and started again; 1 to 100. Default 3.
    pub(super) failures: Slot<u64>,
    /// Calls in a row without an answer in time after which it is checked at once, and killed if that fails too; 0 to
    /// 1000, 0: calls say nothing. Default 3.
    pub(super) call_misses: Slot<u64>,
    /// How long its process may be stopped, by SIGSTOP or a debugger, before it is killed. Default 5s.
    pub(super) stopped_timeout: Slot<Span>,
}

/// When one of several processes is left out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Quarantine {
    /// Failed calls in a row, 1 to 100000. Default 5.
    pub(super) failures: Slot<u64>,
    /// From one failure to the next try. Default 10s.
    pub(super) time: Slot<Span>,
}

/// How a plugin is started again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Restart {
    /// After which ends it is started again. Default `always`.
    pub(super) policy: Slot<RestartPolicy>,
    /// Delay before the second restart in a row; the first is immediate. Default 100ms.
    pub(super) initial: Slot<Span>,
    /// Longest delay. Default 30s.
    pub(super) max: Slot<Span>,
    /// Growth from one delay to the next, 1 to 10. Default 2.
    pub(super) multiplier: Slot<u64>,
    /// By how much a delay is varied at random, up and down: `0%` to `100%`. Default 20%.
    pub(super) jitter: Slot<Percent>,
    /// Serving this long forgets earlier failures. Default 60s.
    pub(super) reset_after: Slot<Span>,
    /// Failures in a row from which it shows as crash looped, 1 to 1000; it is still tried at `max`. Default 5.
    pub(super) crash_loop_after: Slot<u64>,
    /// One more restart than this within `window` is not made: the plugin is disabled until an operator starts it; 1 to
    /// 1000. Default: no limit.
    pub(super) max_restarts: Slot<u64>,
    /// What `max_restarts` counts within. Default 60s.
    pub(super) window: Slot<Span>,
    /// How far apart restarts of several instances are at least. Of those that die together, the first is started at once.
    /// Default 0s.
    pub(super) stagger: Slot<Span>,
}

/// After which ends a plugin is started again.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum RestartPolicy {
    /// After any.
    Always,
    /// Not after it exited by itself with status 0, having served.
    OnFailure,
    /// After none.
    Never,
}
