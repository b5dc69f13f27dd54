//! Listeners.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::super::slot::Slot;
use super::super::written;
use super::super::{Address, Limits, Listener, ListenerTls, Overload};
use super::{Plugins, Reading};

/// What fits into a `sockaddr_un` with its NUL.
const LONGEST_SOCKET_PATH: usize = 107;

impl Reading<'_> {
    pub(super) fn listeners(&mut self, written: &written::List<written::Listener>, plugins: &Plugins) -> Vec<Listener> {
        if let Some((listeners, node)) = written.given()
            && listeners.is_empty()
        {
            self.push(self.problem(node, "`listeners` is empty").label("at least one is needed"));
        }
        let mut names = Vec::new();
        let mut addresses = Vec::new();
        let listeners = self.list(written, |reading, listener, node| {
            reading.require(&listener.address, "address", node);
            let tls = listener.tls.given().and_then(|(tls, node)| reading.tls(tls, node, plugins));
            let filters = reading.filters(&listener.filters, plugins);
            let limits = reading.limits(listener.limits.value().unwrap_or(&written::Limits::default()));
            let requests = reading.requests(listener.requests.value().unwrap_or(&written::Requests::default()));
            let (text, address_node) = listener.address.given()?;
            let address = reading.listen_address(text, address_node)?;
            let (name, name_node) = listener.name.given().unwrap_or((text, address_node));
            if name.is_empty() {
                reading.push(reading.problem(name_node, "a listener's name is empty"));
            }
            names.push((name.clone(), name.clone(), name_node));
            // Port 0 is a different port each time.
            if !matches!(address, Address::Tcp(tcp) if tcp.port() == 0) {
                addresses.push((shown(&address), text.clone(), address_node));
            }
            Some(Listener { name: name.clone(), address, tls, filters, limits, requests })
        });
        // A name that is the address repeats with it; once is enough.
        let of_addresses: HashSet<u64> = addresses.iter().map(|(_, _, node)| *node).collect();
        names.retain(|(_, _, node)| !of_addresses.contains(node));
        self.unique("the address", addresses);
        self.unique("the listener's name", names);
        listeners
    }

    fn listen_address(&mut self, text: &str, node: u64) -> Option<Address> {
        if let Some(path) = text.strip_prefix("unix:") {
            return self.socket_path(path, node).map(Address::Unix);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Address::Tcp(address));
        }
        let problem = self.problem(node, format!("`{text}` is not an address to listen on"));
        let label = match text.rsplit_once(':') {
            _ if text.contains("://") => "an address has no scheme: `127.0.0.1:8080`".to_owned(),
            _ if text.starts_with('/') => format!("write `unix:{text}`"),
            Some(("", port)) => format!("write `0.0.0.0:{port}` for every interface, `127.0.0.1:{port}` for this host"),
            Some(("*", port)) => format!("write `0.0.0.0:{port}` or `\"[::]:{port}\"` for every interface"),
            Some(("localhost", port)) => {
                format!("names are not resolved: write `127.0.0.1:{port}` or `\"[::1]:{port}\"`")
            }
            _ if text.parse::<std::net::IpAddr>().is_ok() => "the port is missing".to_owned(),
            Some((host, port)) if host.contains(':') && !host.starts_with('[') => {
                format!("write `\"[{host}]:{port}\"`")
            }
            Some((_, port)) if port.parse::<u16>().is_err() => "the port must be 0 to 65535".to_owned(),
            Some((_, port)) => format!("names are not resolved: write an IP address, as in `0.0.0.0:{port}`"),
            None if text.parse::<u16>().is_ok() => format!("write `0.0.0.0:{text}` or `127.0.0.1:{text}`"),
            None => "write it like `127.0.0.1:8080` or `unix:/run/web.sock`".to_owned(),
        };
        self.push(problem.label(label));
        None
    }

    /// The path of a socket, as written behind `unix:`.
    pub(super) fn socket_path(&mut self, path: &str, node: u64) -> Option<PathBuf> {
        let problem = if !path.starts_with('/') {
            let problem = self.problem(node, "the path of a unix socket must be absolute");
            problem.label("write it like `unix:/run/app.sock`")
        } else if path.len() > LONGEST_SOCKET_PATH {
            let message = format!("the path of a unix socket has {} bytes", path.len());
            self.problem(node, message).label(format!("{LONGEST_SOCKET_PATH} at most"))
        } else if path.ends_with('/') {
            self.problem(node, "the path of a unix socket is a directory's")
        } else {
            return Some(path.into());
        };
        self.push(problem);
        None
    }

    fn tls(&mut self, written: &written::ListenerTls, node: u64, plugins: &Plugins) -> Option<ListenerTls> {
        let details = match written {
            written::ListenerTls::Text(name) => {
                let plugin = self.certificate_plugin(name, node, plugins)?;
                return Some(ListenerTls { plugin, names: Vec::new(), default: None, only_tls13: false });
            }
            written::ListenerTls::Mapping(details) => details,
        };
        self.require(&details.plugin, "plugin", node);
        let names = self.list(&details.names, |_, name, _| Some(name.clone()));
        let nodes = self.list(&details.names, |_, name, node| Some((name.clone(), name.clone(), node)));
        self.unique("the bundle", nodes);
        if let Some((default, node)) = details.default.given()
            && !names.is_empty()
            && !names.contains(default)
        {
            self.unknown("bundle", default, node, names.iter().map(String::as_str));
        }
        let (plugin, node) = details.plugin.given()?;
        Some(ListenerTls {
            plugin: self.certificate_plugin(plugin, node, plugins)?,
            names,
            default: details.default.value().cloned(),
            only_tls13: details.only_tls13.value().copied().unwrap_or(false),
        })
    }

    fn limits(&mut self, written: &written::Limits) -> Limits {
        let default = Limits::default();
        Limits {
            tls_handshake_timeout: self.timeout(&written.tls_handshake_timeout, default.tls_handshake_timeout),
            first_byte_timeout: self.timeout(&written.first_byte_timeout, default.first_byte_timeout),
            header_timeout: self.timeout(&written.header_timeout, default.header_timeout),
            request_timeout: self.timeout(&written.request_timeout, default.request_timeout),
            idle_timeout: self.timeout(&written.idle_timeout, default.idle_timeout),
            body_idle_timeout: self.timeout(&written.body_idle_timeout, default.body_idle_timeout),
            // hyper takes no less than 8 KiB.
            max_header_bytes: self.size(&written.max_header_bytes, default.max_header_bytes, 8 << 10..=1 << 20),
            max_target_bytes: self.size(&written.max_target_bytes, default.max_target_bytes, 256..=64 << 10),
            max_headers: self.number(&written.max_headers, default.max_headers, 1..=10_000),
            max_connections: self.number(&written.max_connections, default.max_connections, 1..=1_000_000),
            max_streams: self.count(&written.max_streams, default.max_streams, 1..=10_000),
            max_requests: self.count(&written.max_requests, 1_000_000, 1..=1_000_000_000).into(),
            max_glitches: self.count(&written.max_glitches, default.max_glitches, 10..=1_000_000),
            max_header_memory: self.size(&written.max_header_memory, default.max_header_memory, 64 << 10..=1 << 30),
            max_body: self.size(&written.max_body, 1 << 30, 0..=1 << 44) as u64,
        }
    }

    pub(super) fn overload(&mut self, written: &Slot<written::Overload>) -> Overload {
        let default = Overload::default();
        let Some((written, node)) = written.given() else { return default };
        let close_at = self.count(&written.close_at, default.close_at.into(), 1..=100);
        let shed_at = self.count(&written.shed_at, default.shed_at.into(), 1..=100);
        if close_at > shed_at {
            self.push(self.problem(node, "`close_at` is above `shed_at`"));
        }
        let given = |slot: &Slot<u64>| !slot.is_missing();
        Overload {
            max_connections: given(&written.max_connections)
                .then(|| self.number(&written.max_connections, 1, 1..=1_000_000)),
            memory: (!written.memory.is_missing()).then(|| self.size(&written.memory, 1 << 30, 32 << 20..=1 << 40)),
            close_at: u8::try_from(close_at).unwrap_or(default.close_at),
            shed_at: u8::try_from(shed_at).unwrap_or(default.shed_at),
        }
    }

    /// [`Reading::count`] for sizes of collections.
    pub(super) fn number(&mut self, slot: &Slot<u64>, default: usize, range: std::ops::RangeInclusive<u32>) -> usize {
        let default = u32::try_from(default).unwrap_or(*range.end());
        self.count(slot, default, range) as usize
    }
}

fn shown(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

impl Default for Overload {
    fn default() -> Self {
        Self { max_connections: None, memory: None, close_at: 85, shed_at: 95 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tls_handshake_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(15),
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30 * 60),
            idle_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(30),
            max_header_bytes: 32 * 1024,
            max_target_bytes: 8 * 1024,
            max_headers: 100,
            max_connections: 10_000,
            max_streams: 100,
            max_requests: 1_000_000,
            max_glitches: 1000,
            max_header_memory: 1 << 20,
            max_body: 1 << 30,
        }
    }
}
