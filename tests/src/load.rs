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
    count: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
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
        let (end, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |http2: bool| {
            let (end, count) = (Arc::clone(&end), Arc::clone(&count));
            tokio::spawn(async move {
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
                    count.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let clients = http2.map(client).into();
        Self { end, count, clients }
    }

    /// Requests answered so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits until some more requests have been answered.
    ///
    /// # Panics
    ///
    /// When one was not answered as it should be.
    pub async fn more(&self, requests: u64) {
        let wanted = self.count() + requests;
        crate::eventually("more requests", || {
            self.count() >= wanted || self.clients.iter().any(JoinHandle::is_finished)
        })
        .await;
    }

    /// Ends the load; how many requests there were.
    ///
    /// # Panics
    ///
    /// When one of them was not answered as it should be.
    pub async fn end(self) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        self.count.load(Ordering::SeqCst)
    }
}
