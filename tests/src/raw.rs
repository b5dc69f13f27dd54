//! A client that sends the bytes that it is given.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::soon;

/// A connection over TCP, or whatever else carries bytes.
#[derive(Debug)]
pub struct Raw<I = TcpStream> {
    stream: I,
    buffer: Vec<u8>,
}

/// A response of HTTP/1.1 as it came.
#[derive(Debug, Clone)]
pub struct RawReply {
    /// The status code.
    pub status: u16,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, without chunks.
    pub body: Vec<u8>,
    /// Fields behind the body.
    pub trailers: Vec<(String, Vec<u8>)>,
}

impl RawReply {
    /// A header as text, empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(have, _)| have == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }

    /// All values of a header.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<Vec<u8>> {
        self.headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value.clone()).collect()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Raw {
    /// Connects.
    ///
    /// # Panics
    ///
    /// When nobody listens.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Connects, with room for little that was sent and not read yet.
    ///
    /// # Panics
    ///
    /// When nobody listens.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Before connecting, for the window is agreed upon with the connection.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let stream = soon("a connection", socket.connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Raw<I> {
    /// Uses an open connection.
    #[must_use]
    pub fn over(stream: I) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes. A server that has stopped reading is no failure.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _closed = soon("sending", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Sends no more.
    pub async fn close_write(&mut self) {
        let _closed = soon("closing", self.stream.shutdown()).await;
    }

    /// Reads one response; `None` when the connection ended before it.
    ///
    /// # Panics
    ///
    /// When it is no response, or does not come.
    pub async fn reply(&mut self) -> Option<RawReply> {
        let mut reply = self.reply_head().await?;
        if reply.status < 200 || reply.status == 204 || reply.status == 304 {
            return Some(reply);
        }
        if reply.header("transfer-encoding") == "chunked" {
            self.chunks(&mut reply).await;
        } else if !reply.values("content-length").is_empty() {
            let length = reply.header("content-length").parse().unwrap();
            reply.body = self.exactly(length).await;
        } else {
            reply.body = self.rest().await;
        }
        Some(reply)
    }

    /// Reads so many bytes.
    ///
    /// # Panics
    ///
    /// When the connection ends before.
    pub async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.fill().await, "the connection ended within {:?}", String::from_utf8_lossy(&self.buffer));
        }
        self.buffer.drain(..length).collect()
    }

    /// Reads until the connection ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads a response's head and leaves its body; `None` when the connection ended before it.
    ///
    /// # Panics
    ///
    /// When it is no response, or does not come.
    pub async fn reply_head(&mut self) -> Option<RawReply> {
        let (status, headers) = parse_head(&self.head().await?);
        Some(RawReply { status, headers, body: Vec::new(), trailers: Vec::new() })
    }

    /// Reads up to the blank line. `None`: the connection ended.
    async fn head(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return Some(self.buffer.drain(..at + 4).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            assert!(self.fill().await, "the connection ended within {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    async fn chunks(&mut self, reply: &mut RawReply) {
        loop {
            let size = usize::from_str_radix(&self.line().await, 16).unwrap();
            if size == 0 {
                break;
            }
            reply.body.extend(self.exactly(size).await);
            assert_eq!(self.line().await, "");
        }
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else { break };
            reply.trailers.push((name.to_ascii_lowercase(), value.trim().as_bytes().to_vec()));
        }
    }

    /// Reads what there is. A reset counts as an end.
    async fn fill(&mut self) -> bool {
        soon("bytes", self.stream.read_buf(&mut self.buffer)).await.is_ok_and(|count| count > 0)
    }
}

fn parse_head(head: &[u8]) -> (u16, Vec<(String, Vec<u8>)>) {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let fields = lines.filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8_lossy(&line[..at]).to_ascii_lowercase();
        Some((name, line[at + 1..].trim_ascii().to_vec()))
    });
    (status.unwrap_or_else(|| panic!("no status in {first:?}")), fields.collect())
}
