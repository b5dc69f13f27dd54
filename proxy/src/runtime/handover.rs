//! One process of the proxy takes over from another: a new binary, without a refused connection or a lost request.
//!
//! The old process starts the new one with a socket as its standard input. Over that go the descriptors of what there
//! can be only one of: the lock of the runtime directory, the admin socket, the listeners. Nothing else is inherited.
//!
//! ```text
//!   old                                          new
//!    |--- descriptors, what they are ------------>|
//!    |                                            |  reads the configuration, starts its plugins
//!    |<------------------------------------ ready-|
//!    |--- take over ----------------------------->|
//!    |                                            |  takes connections and orders
//!    |<---------------------------------- serving-|
//!    |  drains, stops its plugins, ends           |
//! ```
//!
//! Until `serving`, the old one serves as if nothing was; where it does not come, it goes on to.

use std::env;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{self, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;

use super::Error;
use crate::listener::{Handle, Inherited};

/// Tells a process that its standard input is such a socket.
const VARIABLE: &str = "PALISADE_TAKES_OVER";

/// Most descriptors that the kernel passes at a time (unix(7), SCM_MAX_FD), less the lock and the admin socket.
const MOST_LISTENERS: usize = 253 - 2;

/// How long the new process may take to be ready: its plugins start, one after the other where they fail first.
const READY: Duration = Duration::from_secs(120);

/// How long it may take from there to take over.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// The first word: what comes with the descriptors.
#[derive(Debug, Serialize, Deserialize)]
struct Estate {
    /// Bytes of the runtime directory's real path.
    runtime_dir: Vec<u8>,
    /// In the order of the descriptors: each one's name, and whether its file is to be removed in the end.
    listeners: Vec<(String, bool)>,
}

/// What one process says to the other afterwards.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ready,
    TakeOver,
    Serving,
    /// It does not come up, for this reason.
    Failed(String),
}

/// What the old process hands over.
#[derive(Debug)]
pub(super) struct Handed<'a> {
    pub(super) runtime_dir: &'a Path,
    pub(super) lock: BorrowedFd<'a>,
    pub(super) admin: &'a Handle,
    /// By name.
    pub(super) listeners: &'a [(String, &'a Handle)],
}

/// Starts the new process and waits until it serves; its pid. Where it does not come to serve, it is killed.
///
/// # Errors
///
/// Why it does not, for people.
pub(super) async fn succeed(handed: Handed<'_>) -> Result<u32, String> {
    if handed.listeners.len() > MOST_LISTENERS {
        return Err(format!("more than {MOST_LISTENERS} listeners can't be handed over"));
    }
    let program = program();
    let cannot = |act: &'static str| move |error: io::Error| format!("can't {act}: {error}");
    let (ours, theirs) = net::UnixStream::pair().map_err(cannot("make a socket"))?;
    let mut command = tokio::process::Command::new(&program);
    command.args(env::args_os().skip(1)).stdin(Stdio::from(OwnedFd::from(theirs))).env(VARIABLE, "1");
    for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        command.env_remove(variable);
    }
    let mut child = command.spawn().map_err(|error| format!("can't start {}: {error}", program.display()))?;
    // The sender's copy of the child's end: the child's exit is to be seen as the end of the conversation.
    drop(command);
    let pid = child.id().unwrap_or_default();
    tracing::info!(target: "palisade", pid, program = %program.display(), "starting a successor");
    let conversation = async {
        send(&ours, &handed).map_err(cannot("hand over"))?;
        ours.set_nonblocking(true).map_err(cannot("hand over"))?;
        let mut talk = Talk::new(UnixStream::from_std(ours).map_err(cannot("hand over"))?);
        match tokio::time::timeout(READY, talk.hear()).await {
            Ok(Some(Word::Ready)) => {}
            Ok(Some(Word::Failed(why))) => return Err(why),
            Ok(_) => return Err(String::new()),
            Err(_) => return Err(format!("it was not ready within {} s", READY.as_secs())),
        }
        talk.say(&Word::TakeOver).await.map_err(cannot("tell it to take over"))?;
        match tokio::time::timeout(TAKE_OVER, talk.hear()).await {
            Ok(Some(Word::Serving)) => Ok(()),
            Ok(Some(Word::Failed(why))) => Err(why),
            Ok(_) => Err(String::new()),
            Err(_) => Err(format!("it did not take over within {} s", TAKE_OVER.as_secs())),
        }
    };
    match conversation.await {
        Ok(()) => Ok(pid),
        Err(why) => Err(ended(child_end(&mut child).await, why)),
    }
}

/// The program that this process was started as: the name may lead to another file by now.
fn program() -> PathBuf {
    let started_as = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if started_as.as_os_str().as_bytes().contains(&b'/') {
        return started_as;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(&started_as)).find(|path| path.is_file());
    found.or_else(|| env::current_exe().ok()).unwrap_or(started_as)
}

/// Ends a process that failed, in case it has not ended by itself.
async fn child_end(child: &mut Child) -> Option<ExitStatus> {
    // It may just be stopping its plugins.
    if let Ok(status) = tokio::time::timeout(TAKE_OVER, child.wait()).await {
        return status.ok();
    }
    child.kill().await.ok();
    child.try_wait().ok().flatten()
}

fn ended(status: Option<ExitStatus>, why: String) -> String {
    match (why.is_empty(), status.and_then(|status| status.code())) {
        (false, _) => why,
        (true, Some(3)) => "its configuration is invalid (exit code 3); see the log".to_owned(),
        (true, _) => {
            let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
            format!("it ended before it served{status}; see the log")
        }
    }
}

fn send(stream: &net::UnixStream, handed: &Handed<'_>) -> io::Result<()> {
    let sockets = [handed.admin].into_iter().chain(handed.listeners.iter().map(|(_, handle)| *handle));
    let fds: Vec<_> = [handed.lock].into_iter().chain(sockets.map(|handle| handle.socket.as_fd())).collect();
    let message = SendAncillaryMessage::ScmRights(&fds);
    let mut space = vec![MaybeUninit::uninit(); message.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(message) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(stream, &[IoSlice::new(b"\n")], &mut control, SendFlags::NOSIGNAL)?;
    let estate = Estate {
        runtime_dir: handed.runtime_dir.as_os_str().as_bytes().to_owned(),
        listeners: handed.listeners.iter().map(|(name, handle)| (name.clone(), handle.ours)).collect(),
    };
    let mut line = serde_json::to_vec(&estate).map_err(io::Error::other)?;
    line.push(b'\n');
    (&*stream).write_all(&line)
}

/// What a new process is handed, and the way back.
#[derive(Debug)]
pub(super) struct Heir {
    talk: Talk,
    runtime_dir: PathBuf,
    lock_and_admin: Option<(OwnedFd, OwnedFd)>,
    pub(super) listeners: Vec<Inherited>,
}

impl Heir {
    /// `None` where this process was not started to take over.
    pub(super) async fn of_this_process() -> io::Result<Option<Self>> {
        if env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let stream = net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        stream.set_nonblocking(false)?;
        let mut fds = receive(&stream)?.into_iter();
        stream.set_nonblocking(true)?;
        let mut talk = Talk::new(UnixStream::from_std(stream)?);
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let line = talk.line().await?.ok_or_else(broken)?;
        let estate: Estate = serde_json::from_str(&line).map_err(io::Error::other)?;
        let lock_and_admin = fds.next().zip(fds.next());
        let listeners = estate.listeners.into_iter().zip(fds).map(|((name, ours), fd)| Inherited::new(name, fd, ours));
        let (listeners, runtime_dir) = (listeners.collect(), OsString::from_vec(estate.runtime_dir).into());
        Ok(Some(Self { talk, runtime_dir, lock_and_admin, listeners }))
    }

    /// The runtime directory, its lock and the admin socket; once.
    pub(super) fn estate(&mut self) -> Result<(PathBuf, OwnedFd, OwnedFd), Error> {
        let taken = self.lock_and_admin.take().ok_or_else(|| Error::Inheritance(io::ErrorKind::NotFound.into()));
        taken.map(|(lock, admin)| (self.runtime_dir.clone(), lock, admin))
    }

    /// Returns when the process before has gone. It says nothing of itself before this one is ready.
    pub(super) async fn orphaned(&mut self) {
        self.talk.hear().await;
    }

    /// Says that all is ready, and waits until it is its turn.
    pub(super) async fn turn(&mut self) -> Result<(), Error> {
        let said = self.talk.say(&Word::Ready).await;
        match tokio::time::timeout(TAKE_OVER, self.talk.hear()).await {
            Ok(Some(Word::TakeOver)) if said.is_ok() => Ok(()),
            _ => Err(Error::NotTakenOver),
        }
    }

    /// Says that it serves. One that has gone meanwhile leaves everything to this process just as well.
    pub(super) async fn serving(&mut self) {
        self.talk.say(&Word::Serving).await.ok();
    }

    /// Says why it does not come up. The other sees the exit as well.
    pub(super) async fn failed(&mut self, why: String) {
        self.talk.say(&Word::Failed(why)).await.ok();
    }
}

fn receive(stream: &net::UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(fds)
}

/// One JSON value in a line.
#[derive(Debug)]
struct Talk(BufReader<UnixStream>);

impl Talk {
    fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    async fn say(&mut self, word: &Word) -> io::Result<()> {
        let mut line = serde_json::to_vec(word).map_err(io::Error::other)?;
        line.push(b'\n');
        self.0.write_all(&line).await
    }

    /// `None` where the other has gone, or says what nobody understands.
    async fn hear(&mut self) -> Option<Word> {
        serde_json::from_str(&self.line().await.ok()??).ok()
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).await?;
        Ok((count > 0).then_some(line))
    }
}

/// Sockets that a service manager has opened for this process (sd_listen_fds(3)). Their files are the manager's.
pub(super) fn activated() -> Vec<Inherited> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut sockets = ListenFd::from_env();
    let count = sockets.len();
    let take = |index| {
        let name = names.next().unwrap_or_default().to_owned();
        // What is neither stays where it is.
        let tcp = sockets.take_tcp_listener(index).ok().flatten().map(OwnedFd::from);
        let socket = tcp.or_else(|| sockets.take_unix_listener(index).ok().flatten().map(OwnedFd::from));
        if socket.is_none() {
            tracing::warn!(target: "palisade", index, name, "what a service manager has handed over is no listener");
        }
        Some(Inherited::new(name, socket?, false))
    };
    (0..count).filter_map(take).collect()
}

/// Tells a service manager, where there is one, that this process is the one that serves (sd_notify(3)).
pub(super) fn notify() {
    let Some(place) = env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = place.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name),
        None => std::os::unix::net::SocketAddr::from_pathname(&place),
    };
    let state = format!("READY=1\nMAINPID={}", std::process::id());
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(target: "palisade", %error, "the service manager could not be notified");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn descriptors_and_names_arrive_together() {
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let (first, second) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), std::fs::File::open("/").unwrap());
        let address = first.local_addr().unwrap();
        let handle = Handle::new(&first, None).unwrap();
        let listeners = [("a:b".to_owned(), &handle), ("c".to_owned(), &handle)];
        let (runtime_dir, lock) = (Path::new("/run/x"), second.as_fd());
        send(&ours, &Handed { runtime_dir, lock, admin: &handle, listeners: &listeners }).unwrap();
        let fds = receive(&theirs).unwrap();
        assert_eq!(fds.len(), 4);
        assert_eq!(std::net::TcpListener::from(fds.into_iter().nth(3).unwrap()).local_addr().unwrap(), address);
        theirs.set_nonblocking(true).unwrap();
        let line = Talk::new(UnixStream::from_std(theirs).unwrap()).line().await.unwrap().unwrap();
        let estate: Estate = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (estate.runtime_dir.as_slice(), estate.listeners),
            (&b"/run/x"[..], vec![("a:b".to_owned(), false), ("c".to_owned(), false)])
        );
    }
}
