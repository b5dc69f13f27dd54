//! Names of the variables that a host puts into a plugin's environment.
//!
//! All but the cookies are go-plugin's (v1.6.3, `client.go` and `server.go`).

/// Prefix of every variable of the protocol. A host removes inherited ones: a stale `PLUGIN_CLIENT_CERT` would make a
/// plugin serve TLS that nobody asked for.
pub const PREFIX: &str = "PLUGIN_";

/// Comma-separated application versions that the host speaks, in no order.
pub const PROTOCOL_VERSIONS: &str = "PLUGIN_PROTOCOL_VERSIONS";

/// Directory for the plugin's socket: private to this start, removed after it. Plugins from before go-plugin v1.5.0
/// only know `TMPDIR`, so a host sets both.
pub const UNIX_SOCKET_DIR: &str = "PLUGIN_UNIX_SOCKET_DIR";

/// Group, by name or number, that the plugin gives its socket to, with mode 0660. Only set where the host says so.
pub const UNIX_SOCKET_GROUP: &str = "PLUGIN_UNIX_SOCKET_GROUP";

/// Lowest port for plugins that listen on TCP and choose a port themselves.
pub const MIN_PORT: &str = "PLUGIN_MIN_PORT";

/// Highest port for plugins that listen on TCP and choose a port themselves.
pub const MAX_PORT: &str = "PLUGIN_MAX_PORT";

/// The host's certificate as PEM, for AutoMTLS. Its presence alone makes a go-plugin program serve TLS.
pub const CLIENT_CERT: &str = "PLUGIN_CLIENT_CERT";

/// The cookie (name, value) of plugins that speak `palisade.plugin.v1`. It tells a plugin that a host started it, not
/// a person; it is no secret.
pub const COOKIE: (&str, &str) = ("PALISADE_PLUGIN", "ON");

/// The cookie (name, value) of plugins made for MOSN.
pub const MOSN_COOKIE: (&str, &str) = ("MOSN_PLUGIN", "ON");

/// The application version of both contracts, the second field of the handshake line.
pub const APP_VERSION: u32 = 1;

/// The gRPC health service's name for the whole plugin (go-plugin `grpc_server.go`).
pub const HEALTH_SERVICE: &str = "plugin";

/// Longest path of a unix socket in bytes: `sun_path` has 108 with the terminating NUL (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;
