//! Clients that ask without a pause and want each request to be answered as it should.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::{Client, get, soon};

/// What a client asks and which status it wants.
type Question = (&'static str, &'static [(&'static str, &'static str)], u16);

/// Asked in turn: what is let through, and what is not.
const QUESTIONS: [Question; 2] = [("/", &[("user", "admin")], 200), ("/", &[], 403)];

/// Load on one listener: over HTTP/1.1 and HTTP/2, until [`Load::end`]. Clients that are told to go connect again.
#[derive(Debug)]
pub struct Load {
    end: Arc<AtomicBool>,
    clients: Vec<LoadClient>,
}

#[derive(Debug)]
struct LoadClient {
    /// Requests answered.
    count: Arc<AtomicU64>,
    asks: JoinHandle<()>,
}

impl Load {
    /// Clients that ask one request after the other, as fast as they are answered: three of HTTP/1.1 and one of HTTP/2.
    #[must_use]
    pub fn on(address: SocketAddr) -> Self {
        Self::with(address, [false, false, false, true], None)
    }

    /// About this many requests each second.
    #[must_use]
    pub fn at_rate(address: SocketAddr, each_second: u32) -> Self {
        const CLIENTS: u32 = 8;
        let pause = Duration::from_secs(1) * CLIENTS / each_second;
        Self::with(address, [false, false, false, false, false, true, true, true], Some(pause))
    }

    fn with<const N: usize>(address: SocketAddr, http2: [bool; N], pause: Option<Duration>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let client = |http2: bool| {
            let (end, count) = (Arc::clone(&end), Arc::new(AtomicU64::new(0)));
            let answered = Arc::clone(&count);
            let asks = tokio::spawn(async move {
                let connect = async || if http2 { Client::http2(address).await } else { Client::http1(address).await };
                let mut client = connect().await;
                // Late ones are made up for: the rate is a rate.
                let mut beat = pause.map(tokio::time::interval);
                for (path, headers, status) in QUESTIONS.iter().cycle() {
                    if end.load(Ordering::SeqCst) {
                        return;
                    }
                    if let Some(beat) = &mut beat {
                        beat.tick().await;
                    }
                    let reply = match soon("an answer", client.try_send(get(path, headers))).await {
                        Ok(reply) => reply,
                        // Told to go before the request was sent, while it waited or before that: no HTTP/2 client takes
                        // that for a failure.
                        Err(error) if http2 && (error.is_canceled() || error.is_closed()) => {
                            client = connect().await;
                            client.get(path, headers).await
                        }
                        Err(error) => panic!("no answer to GET {path}: {error:?}"),
                    };
                    assert_eq!(reply.status, *status, "{reply:?}");
                    if reply.header("connection") == "close" {
                        client = connect().await;
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
            LoadClient { count, asks }
        };
        let clients = http2.map(client).into();
        Self { end, clients }
    }

    /// Requests answered so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts().sum()
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.clients.iter().map(|client| client.count.load(Ordering::SeqCst))
    }

    fn has_ended(&self) -> bool {
        self.clients.iter().any(|client| client.asks.is_finished())
    }

    /// Waits until what each client asks now is answered.
    ///
    /// # Panics
    ///
    /// When it is not within [`crate::LONG`].
    pub async fn settled(&self) {
        let before: Vec<_> = self.counts().collect();
        let settled = || self.counts().zip(&before).all(|(now, before)| now > *before) || self.has_ended();
        crate::eventually("an answer to each", settled).await;
    }

    /// Waits until some more requests have been answered.
    ///
    /// # Panics
    ///
    /// When one was not answered as it should be.
    pub async fn more(&self, requests: u64) {
        let wanted = self.count() + requests;
        crate::eventually("more requests", || self.count() >= wanted || self.has_ended()).await;
    }

    /// Ends the load; how many requests there were.
    ///
    /// # Panics
    ///
    /// When one of them was not answered as it should be.
    pub async fn end(self) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        let mut count = 0;
        for client in self.clients {
            client.asks.await.unwrap();
            count += client.count.load(Ordering::SeqCst);
        }
        count
    }
}
