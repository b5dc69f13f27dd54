//! One client's HTTP/1 connection: one request behind the other, each read, handed on, and answered.
//!
//! One task does it all. A request's body is read by whoever takes it, over the same socket: see [`side`]. A connection
//! that waits for its next request holds no buffer.

mod body;
mod side;
mod watch;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{Method, StatusCode, Version};
use http_body::Body as _;
use palisade_supervisor::chain;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

pub(crate) use self::body::Http1Body;
use self::side::Side;
use self::watch::{Stop, Watch};
use super::activity::Closed;
use super::alarm::Alarm;
use super::body::Incoming;
use super::connection::{Connections, LAST_LOOK, STEPS, memory};
use super::linger::linger;
use super::wire::{self, Bounds, Cut, Ends, Fault, Outgoing, write};
use super::{Body, BoxStream, Client, Switched};
use crate::config::Limits;
use crate::listener::Slot;
use crate::overload::Load;
use crate::respond::{Failure, Reason};
use crate::tunnel;

/// How long an answer to what is no request may take to go out.
const REFUSAL: Duration = Duration::from_secs(5);

/// Of a request's body that nobody wants, this much is passed over to keep the connection.
const MOST_UNWANTED: usize = 256 * 1024;

/// Most of a head that is written; more is as good, only slower.
const HEAD: usize = 512;

/// How a connection ends.
#[derive(Debug)]
enum Over {
    /// By us, in order: the client may still be sending.
    Done,
    /// The client has ended it, or it broke.
    Gone,
    /// Now.
    Cut,
    /// What came is no request.
    Refused(Fault),
    /// It is no HTTP connection any more.
    Switched(Box<Switched>),
}

/// Serves `io`, of which `seen` has been read, until it ends.
///
/// Cancelled by [`Connections::end`]; dropping the future closes the connection.
pub(super) async fn serve(
    io: BoxStream,
    seen: Vec<u8>,
    client: Arc<Client>,
    limits: &Limits,
    slot: Arc<Slot>,
    connections: &Connections,
) {
    let bounds = Bounds { bytes: limits.max_header_bytes, fields: limits.max_headers, target: limits.max_target_bytes };
    let heard = !seen.is_empty();
    let side = Arc::new(Mutex::new(Side::new(io, bounds, &seen)));
    drop(seen);
    let mut connection = Connection {
        side,
        watch: Watch::new(connections),
        alarm: Alarm::default(),
        heard,
        begun: 0,
        idle_since: Instant::now(),
        head_since: None,
        client,
        limits,
        slot,
        connections,
    };
    let over = connection.run().await;
    // Whoever still reads a body gets to know that there is no more of it.
    let Some((io, rest)) = side::lock(&connection.side).take() else { return };
    match over {
        Over::Gone | Over::Cut => {}
        Over::Done | Over::Refused(_) => {
            tokio::select! {
                () = linger(io) => {}
                () = connections.end.cancelled() => {}
            }
        }
        Over::Switched(switched) => {
            // What has come since then is of the new protocol.
            tunnel::run(io, rest, *switched, &connections.end).await;
        }
    }
}

struct Connection<'a> {
    side: Arc<Mutex<Side>>,
    watch: Watch,
    /// Of its task: waits of the connection, and of its requests.
    alarm: Alarm,
    /// Whether any byte has come.
    heard: bool,
    /// Requests that were begun.
    begun: u64,
    idle_since: Instant,
    /// Since when a head has been there in part.
    head_since: Option<Instant>,
    client: Arc<Client>,
    limits: &'a Limits,
    slot: Arc<Slot>,
    connections: &'a Connections,
}

impl Connection<'_> {
    async fn run(&mut self) -> Over {
        loop {
            let over = match self.head().await {
                Ok(head) => self.exchange(head).await.err(),
                Err(over) => Some(over),
            };
            match over {
                None => self.idle_since = Instant::now(),
                Some(Over::Refused(fault)) => return self.refuse(fault).await,
                Some(over) => return over,
            }
        }
    }

    /// Waits for the next request's head.
    async fn head(&mut self) -> Result<wire::Request, Over> {
        let mut last_look = None;
        std::future::poll_fn(|cx| {
            let side = &mut *side::lock(&self.side);
            loop {
                match side.reader.request() {
                    Ok(Some(head)) => {
                        self.head_since = None;
                        return Poll::Ready(Ok(head));
                    }
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Err(Over::Refused(fault))),
                }
                match side.poll_read(cx) {
                    Poll::Ready(Ok(1..)) => self.heard = true,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Over::Gone)),
                    Poll::Pending => break,
                }
            }
            let stop = if side.reader.is_empty() {
                let limit = if self.heard { self.limits.idle_timeout } else { self.limits.first_byte_timeout };
                let deadline = self.idle_since + limit;
                let deadline = self.watch.leaves(self.begun > 0).map_or(deadline, |leaves| leaves.min(deadline));
                let stop = std::task::ready!(self.watch.poll(cx, &self.alarm, Some(last_look.unwrap_or(deadline))));
                if stop == Stop::Late && last_look.is_none() {
                    let look = Instant::now() + LAST_LOOK;
                    last_look = Some(look);
                    std::task::ready!(self.watch.poll(cx, &self.alarm, Some(look)))
                } else {
                    stop
                }
            } else {
                let since = *self.head_since.get_or_insert_with(Instant::now);
                std::task::ready!(self.watch.poll(cx, &self.alarm, Some(since + self.limits.header_timeout)))
            };
            Poll::Ready(Err(match stop {
                Stop::End => Over::Cut,
                Stop::Late if !side.reader.is_empty() => {
                    self.closed(Closed::Header);
                    Over::Refused(Fault::late())
                }
                Stop::Late => {
                    if self.watch.leaves(self.begun > 0).is_none() {
                        self.closed(if self.heard { Closed::Idle } else { Closed::FirstByte });
                    }
                    Over::Done
                }
            }))
        })
        .await
    }

    /// Has a request answered. The error is how the connection ends.
    async fn exchange(&mut self, head: wire::Request) -> Result<(), Over> {
        self.begun += 1;
        let wire::Request { method, uri, version, headers, stays, .. } = head;
        let load = self.connections.overload.load();
        let refused = if load == Load::Over {
            Some(Failure::new(Reason::Overloaded))
        } else {
            let taken = memory(&headers);
            (taken > self.limits.max_header_memory)
                .then(|| Failure::new(Reason::HeaderMemory).with(format!("{taken} bytes")))
        };
        let enough = if load >= Load::High {
            Some(Closed::Overload)
        } else {
            (self.begun >= self.limits.max_requests).then_some(Closed::Requests)
        };
        let stays = stays && enough.is_none();
        let headless = method == Method::HEAD;
        let incoming = self.incoming(version, &headers);
        let mut request = http::Request::new(incoming);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = headers;

        // The request's own from its first step to its last, whatever is loaded meanwhile.
        let proxy = self.slot.proxy();
        // Not in the task of a connection, which mostly waits.
        let handling = Box::pin(proxy.handle(request, &self.client, &self.alarm, refused));
        let response = while_there(handling, &mut self.watch, &self.side).await?;
        if matches!(response.body(), Body::Switched(_)) {
            return Err(self.switch(response, version).await);
        }
        let answered = self.answer(response, version, headless, stays).await?;
        if let Some(reason) = enough {
            self.closed(reason);
        }
        if answered { Ok(()) } else { Err(Over::Done) }
    }

    /// The body that follows a head.
    fn incoming(&self, version: Version, headers: &HeaderMap) -> Incoming {
        let mut side = side::lock(&self.side);
        if side.reader.is_at_end() {
            return Incoming::None;
        }
        // It has been judged elsewhere whether anything else is expected (RFC 9110 section 10.1.1).
        side.expects(version == Version::HTTP_11 && headers.contains_key(header::EXPECT));
        Incoming::Http1(Http1Body::new(&self.side, side.reader.left()))
    }

    /// Sends a response. Returns whether another request may come.
    async fn answer(
        &mut self,
        response: http::Response<Body>,
        version: Version,
        headless: bool,
        stays: bool,
    ) -> Result<bool, Over> {
        let (mut parts, mut body) = response.into_parts();
        let length = body.size_hint().exact();
        let (ends, bodiless) = match parts.status {
            StatusCode::NOT_MODIFIED => (Ends::AtHead, true),
            StatusCode::NO_CONTENT => {
                parts.headers.remove(header::CONTENT_LENGTH);
                (Ends::AtHead, true)
            }
            _ => match length {
                Some(0) | None if headless => (Ends::AtHead, true),
                Some(_) if headless && parts.headers.contains_key(header::CONTENT_LENGTH) => (Ends::AtHead, true),
                Some(length) => (Ends::Length(length), headless),
                None if version == Version::HTTP_10 => (Ends::Closed, false),
                None => (Ends::Chunked, false),
            },
        };
        let goes_on = self.is_sending_on();
        let carries = body.carries_request();
        // A client that is not told would lose the request that it sends next.
        let stays = stays && ends != Ends::Closed && !self.watch.is_draining() && self.body_is_over(carries).await;
        let mut out = Vec::with_capacity(HEAD);
        write::response(&mut out, version, parts.status, &parts.headers, ends, !stays);
        let mut outgoing = Outgoing::new(out, ends, bodiless, false);
        let sent = self.send(&mut outgoing, Pin::new(&mut body)).await;
        if let Err((over, why)) = sent {
            if ends == Ends::Closed {
                side::lock(&self.side).reset();
            }
            if outgoing.is_begun() || !bodiless {
                self.slot.proxy().cut(&self.client, &why);
            }
            return Err(over);
        }
        // One that has gone on to its end meanwhile has a connection to give back.
        if goes_on || !side::lock(&self.side).reader.is_at_end() {
            self.let_go_on(Pin::new(&mut body)).await?;
        }
        Ok(stays)
    }

    /// Whether somebody still has the request's body.
    fn is_sending_on(&self) -> bool {
        Arc::strong_count(&self.side) > 1
    }

    /// Lets what is left of a request go on its way, which was answered before it had ended: to who still takes it, or
    /// to nobody. The error is how the connection ends.
    async fn let_go_on(&mut self, mut body: Pin<&mut Body>) -> Result<(), Over> {
        let deadline = Instant::now() + self.limits.request_timeout;
        std::future::poll_fn(|cx| {
            loop {
                match body.as_mut().poll_frame(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(_)) | None) => break,
                    Poll::Pending => return self.watch.poll(cx, &self.alarm, Some(deadline)).map(|_| Err(Over::Cut)),
                }
            }
            // What is left is nobody's, unless somebody takes it still.
            let over = !self.is_sending_on() && side::lock(&self.side).skip_body() == Ok(true);
            Poll::Ready(if over { Ok(()) } else { Err(Over::Done) })
        })
        .await
    }

    /// Passes over what has come of a body that nobody wants. Whether another request may follow. `carries`: the response
    /// ends only when the request has ended, too.
    async fn body_is_over(&mut self, carries: bool) -> bool {
        let mut left = MOST_UNWANTED;
        let over = std::future::poll_fn(|cx| {
            let mut side = side::lock(&self.side);
            loop {
                if side.reader.is_at_end() {
                    return Poll::Ready(true);
                }
                // It goes on beside the response, or nobody knows for how long.
                if Arc::strong_count(&self.side) > 1 {
                    return Poll::Ready(carries);
                }
                // A client that waits to be asked has not decided.
                if side.is_expecting() {
                    return Poll::Ready(false);
                }
                match side.skip_body() {
                    Ok(true) => return Poll::Ready(true),
                    Ok(false) => {}
                    Err(_) => return Poll::Ready(false),
                }
                match side.poll_read(cx) {
                    Poll::Ready(Ok(count @ 1..)) if count <= left => left -= count,
                    Poll::Ready(_) | Poll::Pending => return Poll::Ready(false),
                }
            }
        });
        unconstrained(over).await
    }

    /// Writes a response. The error comes with why.
    async fn send(&mut self, outgoing: &mut Outgoing, mut body: Pin<&mut Body>) -> Result<(), (Over, String)> {
        side::lock(&self.side).expects(false);
        std::future::poll_fn(|cx| {
            // Not locked while the body is asked: it may read the request's.
            let sent = outgoing.poll(cx, Pin::new(&mut side::Writing(&self.side)), body.as_mut());
            if let Poll::Ready(sent) = sent {
                return Poll::Ready(sent.map_err(|cut| match cut {
                    Cut::Body(error) => (Over::Cut, chain(&*error).to_string()),
                    Cut::Io(error) => (Over::Gone, error.to_string()),
                }));
            }
            let deadline = outgoing.blocked().map(|since| since + self.limits.body_idle_timeout * STEPS);
            match self.watch.poll(cx, &self.alarm, deadline) {
                Poll::Ready(Stop::End) => return Poll::Ready(Err((Over::Cut, "the proxy ends".to_owned()))),
                Poll::Ready(Stop::Late) => {
                    tracing::debug!(target: "palisade::http", "the client does not read its response");
                    self.closed(Closed::Unread);
                    return Poll::Ready(Err((Over::Cut, "the client does not read".to_owned())));
                }
                Poll::Pending => {}
            }
            side::lock(&self.side).poll_gone(cx).map(|()| Err((Over::Gone, "the client left".to_owned())))
        })
        .await
    }

    /// Says that the protocol is switched.
    async fn switch(&mut self, response: http::Response<Body>, version: Version) -> Over {
        let (parts, mut body) = response.into_parts();
        let early = std::future::poll_fn(|cx| {
            let mut side = side::lock(&self.side);
            let gone = side.poll_gone(cx).is_ready();
            Poll::Ready(gone || !side.reader.is_empty())
        });
        // Asked for in earnest: a task that has done its share for now would be told to wait.
        if unconstrained(early).await {
            // Nobody knew when they came whether they are a request.
            return Over::Refused(Fault::new(Reason::Malformed, "bytes before the protocol was switched"));
        }
        let mut out = Vec::with_capacity(HEAD);
        write::response(&mut out, version, parts.status, &parts.headers, Ends::AtHead, false);
        let mut outgoing = Outgoing::new(out, Ends::AtHead, true, false);
        if let Err((over, _)) = self.send(&mut outgoing, Pin::new(&mut body)).await {
            return over;
        }
        let Body::Switched(switched) = body else { return Over::Cut };
        Over::Switched(switched)
    }

    /// Answers what is no request, and ends.
    async fn refuse(&mut self, fault: Fault) -> Over {
        if fault.is_foreign() && self.begun == 0 {
            // Another protocol has no use for an answer of this one.
            self.closed(Closed::NotHttp);
            return Over::Done;
        }
        let response = self.slot.proxy().refuse(fault, &self.client);
        match tokio::time::timeout(REFUSAL, self.answer(response, Version::HTTP_11, false, false)).await {
            Ok(Ok(_)) => Over::Done,
            Ok(Err(over)) => over,
            Err(_) => Over::Cut,
        }
    }

    /// A limit ends the connection.
    fn closed(&self, reason: Closed) {
        self.slot.service().metrics.closed(&self.client.listener, reason);
    }
}

/// Waits for the response, while the client does.
async fn while_there(
    mut handling: Pin<Box<impl Future<Output = http::Response<Body>>>>,
    watch: &mut Watch,
    side: &Mutex<Side>,
) -> Result<http::Response<Body>, Over> {
    std::future::poll_fn(|cx| {
        // Looked at even where there is a response: that says whether another request may come.
        let over = watch.is_over(cx);
        if let Poll::Ready(response) = handling.as_mut().poll(cx) {
            return Poll::Ready(Ok(response));
        }
        if over {
            return Poll::Ready(Err(Over::Cut));
        }
        side::lock(side).poll_gone(cx).map(|()| Err(Over::Gone))
    })
    .await
}
