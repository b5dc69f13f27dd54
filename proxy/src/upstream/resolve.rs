//! The addresses behind a name. One question at a time, whatever asks and however long the host's resolver takes; the
//! answer holds for a while, and for longer when there is no other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(5);

/// How long it is used when no newer one is to be had.
const STALE: Duration = Duration::from_secs(300);

/// Addresses of one name.
const MOST: usize = 16;

/// A name, and what is known about it.
#[derive(Debug)]
pub(super) struct Name {
    host: String,
    port: u16,
    known: watch::Sender<Known>,
    /// That asks. A worker's would not do: whoever asks does so for all of them.
    runtime: Handle,
}

#[derive(Debug, Clone, Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// When the last answer with an address came.
    since: Option<Instant>,
    /// Whether somebody asks at the moment.
    asking: bool,
    /// Questions that were answered, or failed.
    round: u64,
    error: Option<String>,
}

impl Known {
    /// Takes an answer in. Where it is none, what was known before stays.
    fn take_in(&mut self, found: io::Result<impl Iterator<Item = SocketAddr>>) {
        self.asking = false;
        self.round += 1;
        match found.map(|found| found.take(MOST).collect::<Vec<_>>()) {
            Ok(addresses) if !addresses.is_empty() => {
                self.addresses = addresses;
                self.since = Some(Instant::now());
                self.error = None;
            }
            Ok(_) => self.error = Some("it has no address".to_owned()),
            Err(error) => self.error = Some(error.to_string()),
        }
    }
}

impl Name {
    /// In the runtime that is to ask.
    pub(super) fn new(host: &str, port: u16) -> Arc<Self> {
        let runtime = Handle::current();
        Arc::new(Self { host: host.to_owned(), port, known: watch::Sender::default(), runtime })
    }

    /// Its addresses, each time another one first. The caller bounds the time.
    ///
    /// Cancel safe: a question under way goes on, for whoever comes next.
    pub(super) async fn addresses(self: &Arc<Self>) -> io::Result<Vec<SocketAddr>> {
        let mut known = self.known.subscribe();
        let (round, age) = {
            let known = known.borrow_and_update();
            (known.round, known.since.map(|since| since.elapsed()))
        };
        if age.is_none_or(|age| age >= FRESH) {
            self.ask();
            // A name that is known is used meanwhile.
            if age.is_none_or(|age| age >= STALE) {
                // The sender lives in `self`.
                known.wait_for(|known| known.round > round).await.map_err(io::Error::other)?;
            }
        }
        let known = known.borrow();
        let usable = known.since.is_some_and(|since| since.elapsed() < STALE);
        if !usable || known.addresses.is_empty() {
            let error = known.error.clone().unwrap_or_else(|| "no address".to_owned());
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{}: {error}", self.host)));
        }
        let mut addresses = known.addresses.clone();
        let first = fastrand::usize(..addresses.len());
        addresses.rotate_left(first);
        Ok(addresses)
    }

    /// Asks the host's resolver, unless that is being done.
    fn ask(self: &Arc<Self>) {
        let mine = self.known.send_if_modified(|known| !std::mem::replace(&mut known.asking, true));
        if !mine {
            return;
        }
        let name = Arc::clone(self);
        // It ends when the resolver answers, which has deadlines of its own.
        self.runtime.spawn(async move {
            let found = tokio::net::lookup_host((name.host.as_str(), name.port)).await;
            name.known.send_modify(|known| known.take_in(found));
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn one_question_for_many_who_ask() {
        let name = Name::new("localhost", 80);
        let asked = futures_util::future::join_all((0..100).map(|_| name.addresses())).await;
        assert!(asked.iter().all(|addresses| addresses.as_ref().unwrap().iter().all(|it| it.port() == 80)));
        assert_eq!(name.known.borrow().round, 1);
    }

    #[tokio::test]
    async fn whoever_asks_and_stands_still_is_waited_for_by_nobody() {
        let name = Name::new("localhost", 80);
        let asks = {
            let name = Arc::clone(&name);
            // Nothing of that runtime goes on when its future has ended.
            move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(async { name.ask() })
            }
        };
        std::thread::spawn(asks).join().unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(60), name.addresses()).await;
        assert!(!asked.unwrap().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_name_that_is_not_there_says_so_and_is_asked_for_again() {
        let name = Name::new("no-such-name.invalid", 80);
        for round in 1..3 {
            let asked = tokio::time::timeout(Duration::from_secs(60), name.addresses()).await;
            assert!(asked.unwrap().unwrap_err().to_string().contains("no-such-name.invalid"));
            assert_eq!(name.known.borrow().round, round);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_until_there_is_another_but_not_for_ever() {
        let name = Name::new("no-such-name.invalid", 80);
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        name.known.send_modify(|known| known.take_in(Ok((1..100).map(address))));
        let all = name.addresses().await.unwrap();
        assert_eq!(all.len(), MOST);
        assert!((1..=16).all(|port| all.contains(&address(port))));
        let refused = || io::Error::other("refused");
        name.known.send_modify(|known| known.take_in(Err::<std::iter::Empty<_>, _>(refused())));
        name.known.send_modify(|known| known.take_in(Ok(std::iter::empty())));
        assert_eq!(name.addresses().await.unwrap().len(), MOST);
        tokio::time::advance(FRESH).await;
        assert_eq!(name.addresses().await.unwrap().len(), MOST);
        assert!(name.known.borrow().asking, "a newer one is asked for");
        tokio::time::advance(STALE - FRESH - Duration::from_millis(1)).await;
        assert_eq!(name.addresses().await.unwrap().len(), MOST);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(name.addresses().await.unwrap_err().to_string().contains("no-such-name.invalid"));
    }
}
