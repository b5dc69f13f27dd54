//! Whose socket a connection has reached.
//!
//! A plugin names the address itself. One that lies could name the socket of another plugin, of the host, or of any
//! service that runs as the same user, and have the host talk to it. So who listens there must be the process that was
//! started, one of its session, or a descendant of it. Nothing is sent before that is known.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

/// Longest line of ancestors that is followed.
const GENERATIONS: usize = 64;

/// Who must be behind a socket: a process, what it started, and the user that they run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// Who may be behind the socket of a plugin that somebody else has started: root, the host's own user, and one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trusted {
    uid: Option<u32>,
}

/// Why a socket is not a plugin's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Somebody else's unix socket.
    #[error("process {pid}{} listens there, which this plugin has not started", named(.name.as_deref()))]
    Stranger {
        /// Who called listen(2); 0 where that is not visible from the host's PID namespace.
        pid: i32,
        /// What it is called, where that can be read.
        name: Option<String>,
    },
    /// A process that runs as somebody else.
    #[error("process {pid}, which runs as user {uid} and not as {expected}, listens there")]
    User {
        /// Who called listen(2).
        pid: i32,
        /// Its user.
        uid: u32,
        /// The plugin's.
        expected: u32,
    },
    /// A process of a user who is not trusted, where no process was started.
    #[error("a process of user {uid} listens there; only root and {expected} may")]
    Untrusted {
        /// Its user.
        uid: u32,
        /// Who may.
        expected: String,
    },
    /// Nobody can be seen behind a port.
    #[error("whose port that is can't be seen from here")]
    Unseen,
    /// Who listened has ended, so whose the socket is can't be known any more.
    #[error("the process that made this a listening socket ({0}) has ended; listen in the process that serves")]
    Gone(i32),
    /// Somebody else's TCP port.
    #[error("no process of this plugin listens on that port")]
    Port,
    /// Processes of the plugin do not show their descriptors, such as programs that nobody may read.
    #[error("no process that shows its descriptors listens on that port; listen on a unix socket")]
    Hidden,
    /// A question to the kernel.
    #[error("who listens there can't be found out")]
    Unknown(#[source] io::Error),
}

fn named(name: Option<&str>) -> String {
    name.map(|name| format!(" ({name})")).unwrap_or_default()
}

impl Owner {
    /// Looks at who called listen(2) on the unix socket that `stream` is connected to.
    ///
    /// # Errors
    ///
    /// Unless it is a process of this owner's, and still there.
    pub(crate) fn check_unix(&self, stream: &impl AsFd) -> Result<(), PeerError> {
        let unknown = |errno: Errno| PeerError::Unknown(errno.into());
        let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(unknown)?;
        let (pid, uid) = (peer.pid(), peer.uid());
        // Held while its number is looked up, so that the number can't become somebody else's meanwhile.
        let held = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(held) => Some(held),
            // Linux before 6.5. The number may have been reused since listen(2); the directory is private all the same.
            Err(Errno::ENOPROTOOPT) => None,
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Err(PeerError::Gone(pid)),
            Err(errno) => return Err(unknown(errno)),
        };
        if uid != self.uid {
            return Err(PeerError::User { pid, uid, expected: self.uid });
        }
        let own = self.has(pid);
        match held {
            Some(held) if has_exited(&held).map_err(unknown)? => Err(PeerError::Gone(pid)),
            _ if own => Ok(()),
            _ => Err(PeerError::Stranger { pid, name: name(pid) }),
        }
    }

    /// Looks at who has the listening sockets of a loopback address open. Reads much of /proc, so it blocks.
    ///
    /// # Errors
    ///
    /// Unless processes of this owner's have all of them.
    pub(crate) fn check_tcp(&self, address: SocketAddr) -> Result<(), PeerError> {
        let mut listening = listeners(address).map_err(PeerError::Unknown)?;
        let found = !listening.is_empty();
        let mut hidden = false;
        for entry in fs::read_dir("/proc").map_err(PeerError::Unknown)?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if !self.has(pid) {
                continue;
            }
            match sockets(pid) {
                Ok(open) => listening.retain(|inode, _| !open.contains(inode)),
                Err(error) => hidden |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        match (found && listening.is_empty(), hidden) {
            (true, _) => Ok(()),
            (false, true) => Err(PeerError::Hidden),
            (false, false) => Err(PeerError::Port),
        }
    }

    /// Whether a process is the owner, of its session, or descends from it.
    fn has(&self, pid: i32) -> bool {
        descends(pid, self.pid)
    }
}

impl Trusted {
    /// Besides root and this process's user.
    pub(crate) fn new(uid: Option<u32>) -> Self {
        Self { uid }
    }

    /// Looks at who called listen(2) on the unix socket that `stream` is connected to.
    ///
    /// # Errors
    ///
    /// Unless it was one of these users.
    pub(crate) fn check_unix(self, stream: &impl AsFd) -> Result<(), PeerError> {
        let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(|errno| PeerError::Unknown(errno.into()))?;
        self.check(peer.uid())
    }

    /// Looks at who has made the listening sockets of a loopback address.
    ///
    /// # Errors
    ///
    /// Unless these users have made all of them.
    pub(crate) fn check_tcp(self, address: SocketAddr) -> Result<(), PeerError> {
        let listening = listeners(address).map_err(PeerError::Unknown)?;
        if listening.is_empty() {
            return Err(PeerError::Unseen);
        }
        listening.into_values().try_for_each(|uid| self.check(uid))
    }

    fn check(self, uid: u32) -> Result<(), PeerError> {
        let own = geteuid().as_raw();
        if uid == 0 || uid == own || Some(uid) == self.uid {
            return Ok(());
        }
        let users: Vec<_> = [own].into_iter().chain(self.uid).map(|uid| format!("user {uid}")).collect();
        Err(PeerError::Untrusted { uid, expected: users.join(" and ") })
    }
}

/// Whether a process is this one, of its session, or descends from it.
pub(crate) fn descends(pid: i32, ancestor: i32) -> bool {
    let mut pid = pid;
    for _ in 0..GENERATIONS {
        if pid == ancestor {
            return true;
        }
        let Some(Kin { parent, session }) = kin(pid) else { return false };
        if session == ancestor {
            return true;
        }
        pid = parent;
    }
    false
}

struct Kin {
    parent: i32,
    session: i32,
}

fn kin(pid: i32) -> Option<Kin> {
    if pid <= 0 {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything. Behind it: state, parent, group, session.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Kin { parent, session })
}

/// The session of a process; `None` where there is no such process.
pub(crate) fn session(pid: i32) -> Option<i32> {
    kin(pid).map(|kin| kin.session)
}

fn name(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().escape_debug().to_string())
}

fn has_exited(process: &OwnedFd) -> Result<bool, Errno> {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
}

/// The inodes of the sockets that connections to `address` may reach, and whose they are.
fn listeners(address: SocketAddr) -> io::Result<HashMap<u64, u32>> {
    const LISTEN: &str = "0A";
    let mut inodes = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            Err(error) => return Err(error),
        };
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let (Some(&local), Some(&LISTEN)) = (fields.get(1), fields.get(3)) else { continue };
            let (Some(uid), Some(inode)) = (fields.get(7), fields.get(9)) else { continue };
            let (Some(local), Ok(uid), Ok(inode)) = (parse(local), uid.parse(), inode.parse()) else { continue };
            let ip = local.ip().to_canonical();
            if local.port() == address.port() && (ip == address.ip().to_canonical() || ip.is_unspecified()) {
                inodes.insert(inode, uid);
            }
        }
    }
    Ok(inodes)
}

/// An address as in /proc/net/tcp: words in the machine's own byte order, written as hexadecimal numbers.
fn parse(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut words = Vec::new();
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?;
        words.extend(word.to_ne_bytes());
    }
    let ip = match words.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(words).ok()?)),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn sockets(pid: i32) -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        // Closed meanwhile.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let number = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(inodes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::TcpListener;
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::unistd::{Pid, geteuid, getsid};

    use super::*;

    /// This process, and one that has nothing to do with it.
    fn owners() -> [Owner; 2] {
        let uid = geteuid().as_raw();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_ne!(getsid(None).unwrap(), Pid::from_raw(i32::MAX));
        [Owner { pid: own, uid }, Owner { pid: i32::MAX, uid }]
    }

    #[test]
    fn a_unix_socket_has_the_owner_that_listens() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let stream = UnixStream::connect(dir.path().join("s")).unwrap();
        let [own, other] = owners();
        own.check_unix(&stream).unwrap();
        let found = other.check_unix(&stream).unwrap_err();
        assert!(matches!(found, PeerError::Stranger { pid, name: Some(_) } if pid == own.pid), "{found}");
        let found = Owner { uid: own.uid + 1, ..own }.check_unix(&stream).unwrap_err();
        assert!(matches!(found, PeerError::User { uid, .. } if uid == own.uid), "{found}");
        drop(listener);
    }

    #[test]
    fn descendants_and_the_session_count() {
        let [own, _] = owners();
        let session = getsid(None).unwrap().as_raw();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(own.has(pid));
        assert!(Owner { pid: session, ..own }.has(pid));
        assert!(!Owner { pid, ..own }.has(own.pid));
        assert!(!own.has(0) && !own.has(1));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_tcp_port_has_the_owner_whose_descriptor_it_is() {
        let [own, other] = owners();
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let ip = if address.starts_with("[::1]") { "::1".parse().unwrap() } else { IpAddr::from([127, 0, 0, 1]) };
            let reached = SocketAddr::new(ip, port);
            own.check_tcp(reached).unwrap();
            assert!(matches!(other.check_tcp(reached), Err(PeerError::Port)), "{address}");
            drop(listener);
            assert!(matches!(own.check_tcp(reached), Err(PeerError::Port)), "{address}");
        }
    }

    #[test]
    fn the_users_of_a_found_plugin_are_root_ours_and_one_more() {
        let uid = geteuid().as_raw();
        let other = uid + 7;
        for (trusted, of, expected) in [
            (None, 0, true),
            (None, uid, true),
            (None, other, false),
            (Some(other), other, true),
            (Some(other), uid, true),
            (Some(other), other + 1, false),
        ] {
            assert_eq!(Trusted::new(trusted).check(of).is_ok(), expected, "{trusted:?} {of}");
        }
        let text = Trusted::new(Some(other)).check(other + 1).unwrap_err().to_string();
        assert_eq!(
            text,
            format!("a process of user {} listens there; only root and user {uid} and user {other} may", other + 1)
        );
    }

    #[test]
    fn whose_a_port_is_shows_without_looking_at_processes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listeners(address).unwrap().into_values().collect::<Vec<_>>(), [geteuid().as_raw()]);
        Trusted::new(None).check_tcp(address).unwrap();
        drop(listener);
        assert!(matches!(Trusted::new(None).check_tcp(address), Err(PeerError::Unseen)));
    }

    #[test]
    fn addresses_of_the_kernels_table() {
        let little = cfg!(target_endian = "little");
        let [v4, v6] =
            if little { ["0100007F:1F90", "00000000000000000000000001000000:0050"] } else { ["7F000001:1F90", "0:0"] };
        assert_eq!(parse(v4).unwrap(), "127.0.0.1:8080".parse().unwrap());
        if little {
            assert_eq!(parse(v6).unwrap(), "[::1]:80".parse().unwrap());
        }
    }
}
