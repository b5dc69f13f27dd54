//! The configuration: from the file as written to what the rest of the proxy needs, in one step.
//!
//! [`load`] reads a file and returns either a whole [`Config`], valid in every point that can be judged without
//! starting anything, or every problem in it, each with its place. The other rooms never see the written form.
//!
//! The way of a file: bytes within bounds (`source`), a tree whose nodes know their places (`tree`), the written form
//! (`decode`, `slot`, `written`), the needed form (`convert`), which is what stands here. Each step goes on past a
//! problem where it can, so that one reading shows all of them.

mod canonical;
mod convert;
mod decode;
mod effective;
mod host;
pub mod pin;
mod problem;
mod secrets;
mod slot;
mod source;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;
mod written;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_supervisor::Checksums;
use palisade_supervisor::RestartMode;
use regex::Regex;

pub use canonical::{hash, to_json};
pub use problem::{Problem, Problems};
pub(crate) use suggest::nearest;

/// Reads the configuration in the file at `path`. That the file can't be read is a problem too.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let text = source::read(path)?;
    parse(path, &text)
}

/// Reads a configuration from `text`, as if it stood in the file at `path`: messages name it, and relative paths start
/// in its directory.
pub fn parse(path: &Path, text: &str) -> Result<Config, Problems> {
    parse_on(&host::Host::here(), path, text)
}

fn parse_on(host: &host::Host, path: &Path, text: &str) -> Result<Config, Problems> {
    let (tree, mut problems) = tree::Tree::read(text);
    let config = tree.and_then(|tree| {
        let (written, misfits) = decode::decode::<written::File>(&tree);
        problems.extend(misfits);
        let (config, faults) = convert::convert(path, host, text, &tree, &written?);
        problems.extend(faults);
        Some(config)
    });
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(Problems::new(path, text, problems)),
    }
}

/// Where the runtime directory is when no configuration says so.
pub(crate) fn default_runtime_dir() -> PathBuf {
    host::Host::here().runtime_dir
}

/// The JSON Schema of a configuration file, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(written::File).to_value()
}

/// A whole, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub hash: String,
    /// Where the admin socket, plugin socket directories and the lock are. Absolute.
    pub runtime_dir: PathBuf,
    /// Threads that serve. Default as many as there are cores for this process, 1 to 1024.
    pub workers: usize,
    /// How long open requests may go on after SIGTERM. Default 30 s.
    pub drain_timeout: Duration,
    /// Addresses whose `X-Forwarded-*` and `x-request-id` are believed. Default none.
    pub trusted_proxies: Vec<Cidr>,
    /// What all listeners together may use.
    pub overload: Overload,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// In the order of the file; the first that matches wins.
    pub routes: Vec<Route>,
    /// By name. Upstreams that a route wrote as a URL are here too, named by that URL.
    pub upstreams: BTreeMap<String, Upstream>,
    /// By name.
    pub plugins: BTreeMap<String, Plugin>,
}

/// A network in CIDR notation; a bare address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The network's address.
    pub address: std::net::IpAddr,
    /// Leading bits that count: 0 to 32 or 128.
    pub prefix: u8,
}

/// Where connections are taken.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Default: the address as written.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// Set: TLS only. Unset: cleartext only.
    pub tls: Option<ListenerTls>,
    /// Run before routing, in this order.
    pub filters: Vec<Filter>,
    /// Limits on what a client may send and how long it may take.
    pub limits: Limits,
    /// How requests are read where there is more than one way.
    pub requests: Requests,
}

/// What all listeners together may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// Open connections of clients; more wait in the accept queues. Default: half of what file descriptors allow.
    pub max_connections: Option<usize>,
    /// Bytes of memory that the marks are percentages of. Default: half of what there is.
    pub memory: Option<usize>,
    /// Percent of memory or descriptors from which connections end with their next response. Default 85.
    pub close_at: u8,
    /// Percent from which requests are answered 503. Default 95.
    pub shed_at: u8,
}

/// How a listener reads requests where servers differ. The defaults are strict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requests {
    /// Header names with `_`, which some servers take for `-`. Default: refused.
    pub underscores: Underscores,
    /// `%2f` in a path. Default: refused.
    pub encoded_slashes: Ambiguous,
    /// `;` in a path, which begins parameters for some servers. Default: refused.
    pub parameters: Ambiguous,
    /// `//` in a path. Default: merged.
    pub double_slashes: DoubleSlashes,
    /// Trailers of requests that are passed on, lower case. Default none.
    pub trailers: Vec<http::HeaderName>,
}

/// What happens to header names with `_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// The request is refused.
    #[default]
    Refuse,
    /// The fields are taken out.
    Drop,
    /// They are passed on.
    Keep,
}

/// What happens to something that servers read in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ambiguous {
    /// The request is refused.
    #[default]
    Refuse,
    /// It is passed on as it is.
    Keep,
}

/// What happens to `//` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DoubleSlashes {
    /// It becomes `/`.
    #[default]
    Merge,
    /// The request is refused.
    Refuse,
    /// It is passed on.
    Keep,
}

/// Bounds on one listener's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From accept to the end of the TLS handshake. Default 10 s.
    pub tls_handshake_timeout: Duration,
    /// From accept, or the end of the TLS handshake, to the first byte. Default 15 s.
    pub first_byte_timeout: Duration,
    /// From the first to the last byte of a request's head. Default 10 s.
    pub header_timeout: Duration,
    /// From a request's head to its response's. Default 30 min.
    pub request_timeout: Duration,
    /// How long a connection may stay without a request. Default 60 s.
    pub idle_timeout: Duration,
    /// How long a request's body may stand still until the response begins, and a client may leave responses
    /// unread. Default 30 s.
    pub body_idle_timeout: Duration,
    /// Bytes of a request's head. Default 32 KiB.
    pub max_header_bytes: usize,
    /// Bytes of a request's path and query. Default 8 KiB.
    pub max_target_bytes: usize,
    /// Header fields in a request. Default 100.
    pub max_headers: usize,
    /// Open connections; more wait in the accept queue. Default 10 000.
    pub max_connections: usize,
    /// Concurrent streams of one HTTP/2 connection. Default 100.
    pub max_streams: u32,
    /// Requests of one connection, after which it ends. Default 1 000 000.
    pub max_requests: u64,
    /// Frames of one HTTP/2 connection that carry nothing, each minute. Default 1000.
    pub max_glitches: u32,
    /// Bytes that the headers of one connection's requests in flight may take up. Default 1 MiB.
    pub max_header_memory: usize,
    /// Bytes of a request's body. Default 1 GiB.
    pub max_body: u64,
}

/// An address to listen on or to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket's path, absolute.
    Unix(PathBuf),
}

/// Where a listener's certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// A plugin in [`Config::plugins`].
    pub plugin: String,
    /// Names of the bundles to ask for; empty: all.
    pub names: Vec<String>,
    /// Name of the bundle for clients that send no server name, or one that no certificate covers. Unset: clients
    /// without a name get the only bundle there is, else the handshake is refused.
    pub default: Option<String>,
    /// TLS 1.3 only. Default false: 1.2 and 1.3.
    pub only_tls13: bool,
}

/// One step of a filter chain.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Asks a plugin.
    Plugin(PluginFilter),
    /// Compares one header with a value in the proxy itself.
    Header(HeaderFilter),
}

/// A filter that asks a plugin.
#[derive(Debug, Clone)]
pub struct PluginFilter {
    /// A plugin in [`Config::plugins`].
    pub plugin: String,
    /// Bounds the whole check: queueing, a restart under way, the call. Default: the plugin's, 200 ms.
    pub timeout: Duration,
    /// What happens to a request that could not be judged. Default: the plugin's, deny.
    pub on_failure: OnFailure,
    /// The largest request body in bytes sent to a filter that needs bodies. Default 1 MiB.
    pub max_body: usize,
}

/// The built-in header check: lets a request pass when the header is there and each of its fields is one
/// of the values.
#[derive(Debug, Clone)]
pub struct HeaderFilter {
    /// Lower case.
    pub name: http::HeaderName,
    /// Compared byte for byte.
    pub values: Vec<String>,
    /// Status of the refusal. Default 403.
    pub status: http::StatusCode,
}

/// What happens when a filter can't judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The request gets 503 or 504.
    Deny,
    /// The request goes on unjudged, and is counted.
    Allow,
}

/// Which requests go where.
#[derive(Debug, Clone)]
pub struct Route {
    /// Default: `route-1`, `route-2`, ... by position.
    pub name: String,
    /// Empty: any host.
    pub hosts: Vec<HostPattern>,
    /// Default prefix `/`.
    pub path: PathPattern,
    /// Empty: any method.
    pub methods: Vec<http::Method>,
    /// All must match.
    pub headers: Vec<HeaderMatch>,
    /// Run after this route was chosen, in this order.
    pub filters: Vec<Filter>,
    /// An upstream in [`Config::upstreams`].
    pub upstream: String,
    /// How long nothing may move in either direction, till the response has ended. Default 60 s. None: no bound.
    pub timeout: Option<Duration>,
    /// Attempts beyond the first, for requests that are safe to repeat: 0 or 1. Default 1.
    pub retries: u32,
    /// Protocols a client may upgrade to, lower case. Default none.
    pub upgrades: Vec<String>,
    /// Handed to filters.
    pub metadata: BTreeMap<String, String>,
}

/// Matches the host of an authority, without its port, lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// `a.example`
    Exact(String),
    /// `*.example`, held as `.example`: at least one label in front.
    Suffix(String),
    /// `*`
    Any,
}

/// Matches a normalised path.
#[derive(Debug, Clone)]
pub enum PathPattern {
    /// Equal.
    Exact(String),
    /// Equal, or continued behind a `/`: `/a` covers `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// Matches the whole path.
    Regex(Arc<Regex>),
}

/// Matches one header.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: http::HeaderName,
    /// How.
    pub rule: HeaderRule,
}

/// How a header is matched. A header that is there several times matches if one of its values does.
#[derive(Debug, Clone)]
pub enum HeaderRule {
    /// There, with any value.
    Present,
    /// Not there.
    Absent,
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Matches the whole value; a value that is not UTF-8 does not match.
    Regex(Arc<Regex>),
}

/// A cluster of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// How one is picked.
    pub balance: Balance,
    /// Which protocol they speak.
    pub protocol: UpstreamProtocol,
    /// TCP or unix connect. Default 1 s.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Default 60 s; servers that close earlier need a lower value.
    pub idle_timeout: Duration,
    /// Idle HTTP/1.1 connections kept for each endpoint. Default 1024.
    pub max_idle: usize,
    /// Bytes of a response's head. Default 64 KiB.
    pub max_header_bytes: usize,
    /// Header fields in a response. Default 200.
    pub max_headers: usize,
    /// When an endpoint that fails gets no requests.
    pub outliers: Outliers,
    /// Set: endpoints are asked whether they answer.
    pub checks: Option<Checks>,
    /// Percent of endpoints below which all get requests, whatever is known about them. Default 50.
    pub panic_below: u8,
}

/// When an endpoint that fails gets no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outliers {
    /// Failures in a row; 0: never. Default 5.
    pub failures: u32,
    /// For how long the first time; doubled each time after that, up to 32 times as long. Default 10 s.
    pub eject_for: Duration,
}

/// How endpoints are asked whether they answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    /// What is asked for; a status of 2xx or 3xx is an answer.
    pub path: String,
    /// Between checks. Default 5 s.
    pub interval: Duration,
    /// For one check. Default 1 s.
    pub timeout: Duration,
    /// Failures in a row from which an endpoint gets no requests. Default 3.
    pub failures: u32,
    /// Successes in a row from which it gets some again. Default 1.
    pub successes: u32,
}

/// One server of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Host and port; a host that is a name is resolved at each connect.
    Tcp {
        /// An IP address or a DNS name.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// A unix socket's path, absolute.
    Unix(PathBuf),
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// The one of two random ones with fewer requests in flight.
    LeastRequest,
}

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// A plugin's process and how it is used.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// Program and arguments, at least one. A program with a `/` is relative to [`Plugin::cwd`]; else it is looked up
    /// in `PATH` of the proxy. Empty where it is found at an address.
    pub command: Vec<String>,
    /// Where it listens, if somebody else starts it.
    pub found: Option<palisade_supervisor::Found>,
    /// Default: the directory of the configuration file.
    pub cwd: PathBuf,
    /// Variables set for the plugin.
    pub env: BTreeMap<String, String>,
    /// Names of the proxy's own variables to hand on. Default none.
    pub env_pass: Vec<String>,
    /// What of the command must be as it was pinned. Default: nothing is looked at.
    pub checksums: Checksums,
    /// What its processes may do.
    pub sandbox: Sandbox,
    /// The group that may connect to its socket. Default: nobody but its user.
    pub socket_group: Option<u32>,
    /// What it speaks.
    pub contract: Contract,
    /// Headers that only the plugins set: taken out of every client's request. Lower case. Default none.
    pub owns: Vec<http::HeaderName>,
    /// Processes of it: 1 to 64, default 1.
    pub instances: usize,
    /// Calls that one process works on at a time. Default 1000.
    pub max_calls: usize,
    /// Calls that wait for one process beyond these; more are refused. Default 1000.
    pub max_queue: usize,
    /// When a process that fails its calls, while others do not, gets none for a while.
    pub quarantine: Quarantine,
    /// After how long without an answer a second instance is asked, too. Default never.
    pub hedge_after: Option<Duration>,
    /// Handed over by `Configure`; always a mapping.
    pub config: serde_yaml::Mapping,
    /// Default of [`PluginFilter::timeout`].
    pub timeout: Duration,
    /// Default of [`PluginFilter::on_failure`].
    pub on_failure: OnFailure,
    /// Whether listeners stay closed until it serves, and start fails when it can't. Default true.
    pub required: bool,
    /// From start to the handshake line. Default 15 s.
    pub handshake_timeout: Duration,
    /// From the handshake line to serving: connect, health, configure. Default 10 s.
    pub ready_timeout: Duration,
    /// Whether a TCP address outside loopback is accepted. Default false.
    pub allow_remote_tcp: bool,
    /// Whether the proxy and the plugin talk over go-plugin's AutoMTLS. Default false.
    pub auto_mtls: bool,
    /// Health checks while it serves.
    pub health: Health,
    /// How it is started again.
    pub restart: Restart,
    /// How long calls under way may go on when it is to stop. Default 5 s.
    pub drain_timeout: Duration,
    /// From SIGTERM to SIGKILL. Default 5 s.
    pub stop_timeout: Duration,
    /// How long processes that took over in an upgrade or a reload have to last, else those before them are back.
    /// Default 5 s.
    pub probation: Duration,
    /// Reports of ended processes that are kept for each instance: 1 to 100, default 10.
    pub exit_reports: usize,
    /// The program, and what an interpreter is told to run, as they were when the configuration was read: where they
    /// are replaced, the next reading is a different plugin.
    pub files: Vec<SourceFile>,
}

impl Plugin {
    /// Whether processes made of `other` do for this one, too: everything is the same but what concerns the proxy
    /// alone.
    #[must_use]
    pub fn runs_as(&self, other: &Self) -> bool {
        let Self { timeout, on_failure, required, probation, .. } = *self;
        *self == Self { timeout, on_failure, required, probation, ..other.clone() }
    }

    /// Notes the files as they are now.
    pub(crate) fn look_again(&mut self) {
        let files = std::mem::take(&mut self.files);
        self.files = files.into_iter().filter_map(|file| SourceFile::at(file.path)).collect();
    }
}

/// A file by what shows that it was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where.
    pub path: PathBuf,
    /// Device and inode.
    pub inode: (u64, u64),
    /// In bytes.
    pub size: u64,
    /// When it was last written: seconds since the epoch, and nanoseconds.
    pub written: (i64, i64),
}

impl SourceFile {
    /// `None`: it can't be looked at.
    fn at(path: PathBuf) -> Option<Self> {
        let found = std::fs::metadata(&path).ok()?;
        let written = (found.mtime(), found.mtime_nsec());
        Some(Self { path, inode: (found.dev(), found.ino()), size: found.size(), written })
    }
}

/// What a plugin's processes may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// What it was made from.
    pub profile: Profile,
    /// The whole of it.
    pub policy: palisade_supervisor::Sandbox,
}

/// What a sandbox begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// What every plugin gets.
    None,
    /// No new privileges.
    Default,
    /// Everything that a filter can do without.
    Hardened,
}

/// What a plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// `palisade.plugin.v1`.
    Palisade,
    /// MOSN's `proto.Plugin/Call`.
    Mosn,
}

/// Health checks of a serving plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Default 5 s.
    pub interval: Duration,
    /// Default 1 s.
    pub timeout: Duration,
    /// Failures in a row that make it dead: killed and started again. Default 3.
    pub failures: u32,
    /// Calls in a row without an answer in time after which it is checked at once, and killed if that fails too.
    /// Default 3. 0: calls say nothing.
    pub call_misses: u32,
    /// How long its process may be stopped, by SIGSTOP or a debugger, before it is killed. Default 5 s.
    pub stopped_timeout: Duration,
}

/// When one of several processes is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantine {
    /// Failed calls in a row. Default 5.
    pub failures: u32,
    /// From one failure to the next try. Default 10 s.
    pub time: Duration,
}

/// How a plugin is started again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restart {
    /// After which ends. Default always.
    pub policy: RestartMode,
    /// Delay before the second restart in a row; the first is immediate. Default 100 ms.
    pub initial: Duration,
    /// Longest delay. Default 30 s.
    pub max: Duration,
    /// Growth from one delay to the next: 1 to 10, default 2.
    pub multiplier: u32,
    /// By how much a delay is varied at random, up and down: 0 to 100 percent, default 20.
    pub jitter: u32,
    /// Serving this long forgets earlier failures. Default 60 s.
    pub reset_after: Duration,
    /// Failures in a row from which the plugin shows as crash looped. Default 5. It is still tried at `max`.
    pub crash_loop_after: u32,
    /// One more restart than this within [`Restart::window`] disables the plugin. Default none: no limit.
    pub max_restarts: Option<u32>,
    /// Default 60 s.
    pub window: Duration,
    /// How far apart restarts of its instances are at least. Default 0.
    pub stagger: Duration,
}
