//! Plugins that run already: where they listen, and which keys mean nothing for them.

use std::net::SocketAddr;

use nix::unistd::User as Account;
use palisade_supervisor::{Endpoint, Found};

use super::super::slot::Slot;
use super::super::written;
use super::Reading;

impl Reading<'_> {
    /// Either `command` is written or `address` is.
    pub(super) fn found(&mut self, written: &written::Plugin, node: u64) -> Option<Found> {
        let Some((text, address)) = written.address.given() else {
            let known = ["command", "address"].iter().any(|field| self.has_key_like(field, node));
            if written.command.is_missing() && written.address.is_missing() && !known {
                let problem = self.problem(node, "missing field `command`");
                self.push(problem.label("or `address`, for a plugin that runs already"));
            }
            if let Some((_, node)) = written.peer_user.given() {
                self.push(self.problem(node, "`peer_user` without `address`"));
            }
            return None;
        };
        self.only_for_processes(written);
        let remote = written.allow_remote_tcp.value() == Some(&true);
        let endpoint = self.plugin_address(text, address, remote);
        let uid = self.peer_user(written, endpoint.as_ref());
        Some(Found { endpoint: endpoint?, uid })
    }

    /// Keys that would be obeyed by nobody, some of which protect.
    fn only_for_processes(&mut self, written: &written::Plugin) {
        fn place<T>(slot: &Slot<T>) -> Option<u64> {
            slot.given().map(|(_, node)| node)
        }
        let stopped = written.health.value().and_then(|health| place(&health.stopped_timeout));
        let keys = [
            ("command", place(&written.command)),
            ("cwd", place(&written.cwd)),
            ("env", place(&written.env)),
            ("env_pass", place(&written.env_pass)),
            ("checksum", place(&written.checksum)),
            ("sandbox", place(&written.sandbox)),
            ("socket_group", place(&written.socket_group)),
            ("instances", place(&written.instances)),
            ("handshake_timeout", place(&written.handshake_timeout)),
            ("auto_mtls", place(&written.auto_mtls)),
            ("stopped_timeout", stopped),
            ("stop_timeout", place(&written.stop_timeout)),
        ];
        for (key, node) in keys {
            if let Some(node) = node {
                let problem = self.problem(node, format!("`{key}` is for plugins that the proxy starts"));
                self.push(problem.label("this one has an `address`"));
            }
        }
    }

    fn plugin_address(&mut self, text: &str, node: u64, remote: bool) -> Option<Endpoint> {
        if let Some(path) = text.strip_prefix("unix:") {
            return self.socket_path(path, node).map(Endpoint::Unix);
        }
        let address = text.strip_prefix("tcp:").and_then(|address| address.parse::<SocketAddr>().ok());
        let problem = match address {
            Some(address) if address.port() == 0 || address.ip().to_canonical().is_unspecified() => {
                self.problem(node, format!("`{text}` is for listening only")).label("write where to connect to")
            }
            Some(address) if !remote && !address.ip().is_loopback() => {
                let problem = self.problem(node, format!("`{text}` is not a loopback address"));
                problem.label("`allow_remote_tcp: true` lifts this: in clear text, to whoever has that address")
            }
            Some(address) => return Some(Endpoint::Tcp(address)),
            None => {
                let problem = self.problem(node, format!("`{text}` is not the address of a plugin"));
                problem.label("write it like `unix:/run/auth.sock` or `tcp:127.0.0.1:9000`")
            }
        };
        self.push(problem);
        None
    }

    fn peer_user(&mut self, written: &written::Plugin, endpoint: Option<&Endpoint>) -> Option<u32> {
        let (name, node) = written.peer_user.given()?;
        if let Some(Endpoint::Tcp(address)) = endpoint
            && !address.ip().to_canonical().is_loopback()
        {
            self.push(self.problem(node, "who listens on another machine can't be seen").label("remove `peer_user`"));
        }
        let uid = name.0.parse().ok().or_else(|| Some(Account::from_name(&name.0).ok()??.uid.as_raw()));
        if uid.is_none() {
            self.push(self.problem(node, format!("no user is called `{}`", name.0)));
        }
        uid
    }
}
