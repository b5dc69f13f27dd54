//! Upstreams: clusters of endpoints, and the way of one request to one of them and back.

mod connect;
mod health;
mod http1;
mod pool;
mod resolve;

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use palisade_supervisor::chain;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::health::Health;
use self::http1::{Answer, Exchange, Head};
use self::pool::{Connection, Pool, SendError, send_http2};
use crate::config::{self, Balance};
use crate::http::wire::Piece;
use crate::http::{Alarm, Body, BoxError, Http2Body, Progress, Request, RequestBody, Switched, headers};
use crate::overload::Overload;
use crate::respond::{Failure, Reason};
use crate::telemetry::Metrics;

/// All upstreams by name.
#[derive(Debug)]
pub(crate) struct Upstreams(BTreeMap<String, Arc<Upstream>>);

/// What upstreams are a part of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct House<'a> {
    /// Those that send requests; each has its own connections.
    pub(crate) workers: usize,
    /// Connections are tasks in here; they end when the upstreams are dropped.
    pub(crate) tasks: &'a TaskTracker,
    /// Cancelled: nobody looks after them any more.
    pub(crate) end: &'a CancellationToken,
    pub(crate) metrics: &'a Arc<Metrics>,
    pub(crate) overload: &'a Arc<Overload>,
}

impl Upstreams {
    /// Those of `before` that are the same are taken over, with their connections.
    pub(crate) fn new(upstreams: &BTreeMap<String, config::Upstream>, before: Option<&Self>, house: House<'_>) -> Self {
        let House { tasks, end, .. } = house;
        let build = |(name, upstream): (&String, &config::Upstream)| {
            let same = before.and_then(|before| before.get(name)).filter(|before| before.made_of == *upstream);
            if let Some(same) = same {
                return (name.clone(), Arc::clone(same));
            }
            let upstream = Arc::new(Upstream::new(name, upstream, &house));
            let (weak, overload) = (Arc::downgrade(&upstream), Arc::clone(house.overload));
            let stop = end.clone();
            tasks.spawn(async move { stop.run_until_cancelled(evict(weak, overload)).await });
            if let Some(checks) = upstream.made_of.checks.clone() {
                let weak = Arc::downgrade(&upstream);
                let stop = end.clone();
                tasks.spawn(async move { stop.run_until_cancelled(check(weak, checks)).await });
            }
            (name.clone(), upstream)
        };
        Self(upstreams.iter().map(build).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.0.get(name)
    }
}

/// How often connections that the server has ended are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Closes connections that have been idle for too long or ended, while there is somebody to use them.
async fn evict(upstream: Weak<Upstream>, overload: Arc<Overload>) {
    loop {
        // Before it is looked how high the load is.
        let rises = overload.rises();
        let Some(upstream) = upstream.upgrade() else { return };
        for endpoint in &upstream.endpoints {
            endpoint.pool.evict(endpoint.in_flight.load(Ordering::Relaxed) == 0);
        }
        let period = upstream.idle_timeout.clamp(Duration::from_secs(1), LOOK);
        drop(upstream);
        tokio::time::timeout(period, rises).await.ok();
    }
}

/// One cluster.
#[derive(Debug)]
pub(crate) struct Upstream {
    name: String,
    made_of: config::Upstream,
    endpoints: Vec<Arc<Endpoint>>,
    balance: Balance,
    idle_timeout: Duration,
    turn: AtomicUsize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Endpoint {
    /// As the log shows it.
    label: String,
    /// `Host`, where the client sent none.
    authority: String,
    in_flight: AtomicUsize,
    health: Health,
    pool: Pool,
}

/// How one request is to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending<'a> {
    /// How long nothing may move in either direction before the response has ended.
    pub(crate) timeout: Option<Duration>,
    /// Attempts beyond the first.
    pub(crate) retries: u32,
    /// The protocol to upgrade to, where the route lets it.
    pub(crate) upgrade: Option<&'a str>,
    /// Moves while the client sends its body.
    pub(crate) progress: &'a Arc<Progress>,
    /// Of the task that waits.
    pub(crate) alarm: &'a Alarm,
}

impl Upstream {
    fn new(name: &str, config: &config::Upstream, house: &House<'_>) -> Self {
        let endpoint = |endpoint: &config::Endpoint| {
            Arc::new(Endpoint {
                label: endpoint.to_string(),
                authority: connect::authority(endpoint),
                in_flight: AtomicUsize::new(0),
                health: Health::new(),
                pool: Pool::new(endpoint, config, house),
            })
        };
        Self {
            name: name.to_owned(),
            made_of: config.clone(),
            endpoints: config.endpoints.iter().map(endpoint).collect(),
            balance: config.balance,
            idle_timeout: config.idle_timeout,
            turn: AtomicUsize::new(fastrand::usize(..config.endpoints.len().max(1))),
            metrics: Arc::clone(house.metrics),
        }
    }

    /// Sends a request and returns the response's head, its body still on the way.
    ///
    /// Sent again, at most `retries` times and to another endpoint if there is one: what was certainly not sent, and
    /// what is idempotent (RFC 9110 section 9.2.2), has no body, and got no answer.
    pub(crate) async fn send(
        &self,
        request: &Request,
        mut body: RequestBody,
        sending: Sending<'_>,
    ) -> Result<Response<UpstreamBody>, Failure> {
        let mut failed = None;
        let mut retries = sending.retries;
        loop {
            let endpoint = self.pick(failed.as_ref());
            let spare = body.is_empty().then(|| body.duplicate()).flatten();
            let Failed { failure, unsent, refused } = match self.attempt(&endpoint, request, body, sending).await {
                Ok(response) => {
                    endpoint.health.succeeded();
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            self.count(&endpoint, &failure);
            let spare = spare.filter(|_| refused || is_idempotent(&request.method));
            let again = unsent.or(spare).filter(|_| retries > 0 && retryable(failure.reason()));
            let Some(again) = again else { return Err(failure) };
            tracing::debug!(
                target: "palisade::upstream", upstream = %self.name, endpoint = %endpoint.label,
                request_id = %request.id, failure = %failure, "sending the request again",
            );
            retries -= 1;
            body = again;
            failed = Some(endpoint);
        }
    }

    /// A failure that is the endpoint's own counts against it.
    fn count(&self, endpoint: &Endpoint, failure: &Failure) {
        let own = retryable(failure.reason())
            || matches!(failure.reason(), Reason::UpstreamInvalid | Reason::UpstreamTimeout);
        let outliers = &self.made_of.outliers;
        if own && let Some(period) = endpoint.health.failed(outliers.failures, outliers.eject_for) {
            self.metrics.ejected(&self.name, &endpoint.label);
            tracing::warn!(
                target: "palisade::upstream", upstream = %self.name, endpoint = %endpoint.label, ?period, %failure,
                "it gets no requests for a while, if others are there",
            );
        }
    }

    /// One attempt at one endpoint. The error comes with the body if nothing of the request was sent.
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &Request,
        mut body: RequestBody,
        sending: Sending<'_>,
    ) -> Result<Response<UpstreamBody>, Failed> {
        /// Kept connections that turn out closed before a failure counts.
        const STALE: usize = 3;
        let guard = EndpointGuard::new(endpoint);
        let mut stale = 0;
        loop {
            let connection = match endpoint.pool.checkout().await {
                Ok(connection) => connection,
                Err(failure) => {
                    return Err(Failed { failure: failure.about(&endpoint.label), unsent: Some(body), refused: true });
                }
            };
            sending.progress.mark();
            let reused = connection.is_reused();
            let sent = {
                let sent = pin!(self.send_over(connection, endpoint, request, body, sending.upgrade));
                in_time(sent, sending).await
            };
            match sent {
                None => {
                    let reason = match sending.progress.waits_for_client() {
                        // It has not had the request, or not all of it.
                        true => Reason::BodyTimeout,
                        false => Reason::UpstreamTimeout,
                    };
                    return Err(Failed::sent(Failure::new(reason).about(&endpoint.label)));
                }
                // A kept connection that the server has closed meanwhile says nothing about the server.
                Some(Err(SendError { unsent: Some(unsent), .. })) if reused && stale < STALE => {
                    stale += 1;
                    body = unsent;
                }
                Some(Err(SendError { error, invalid, refused, unsent })) => {
                    let failure = broken(&*error, invalid, sending.progress).about(&endpoint.label);
                    return Err(Failed { failure, unsent, refused });
                }
                Some(Ok((answer, incoming))) => {
                    sending.progress.answered();
                    return received(answer, incoming, guard, sending).map_err(Failed::sent);
                }
            }
        }
    }

    /// Sends a request over a connection and waits for the response's head.
    async fn send_over(
        &self,
        connection: Connection,
        endpoint: &Endpoint,
        request: &Request,
        body: RequestBody,
        upgrade: Option<&str>,
    ) -> Result<(Answer, Incoming), SendError> {
        let authority = if request.authority.is_empty() { &endpoint.authority } else { &request.authority };
        match connection {
            Connection::Http1 { connection, .. } => {
                let head = Head::new(request, authority, upgrade, &body);
                let (answer, exchange) = connection.send(head, body).await?;
                Ok((answer, Incoming::Http1(Some(exchange))))
            }
            Connection::Http2 { mut sender, .. } => {
                let mut message = http::Request::new(body);
                *message.method_mut() = request.method.clone();
                *message.version_mut() = Version::HTTP_2;
                *message.uri_mut() =
                    http2_uri(authority, &request.target()).map_err(|error| SendError::new(error.into()))?;
                *message.headers_mut() = request.headers.clone();
                message.headers_mut().append(header::VIA, HeaderValue::from_static(headers::via(request.version)));
                let (parts, incoming) = Box::pin(send_http2(&mut sender, message)).await?.into_parts();
                Ok((Answer { status: parts.status, headers: parts.headers }, Incoming::Http2(incoming.into())))
            }
        }
    }

    /// Picks an endpoint, another than `not` where there is one, and one that is up unless too few are.
    fn pick(&self, not: Option<&Arc<Endpoint>>) -> Arc<Endpoint> {
        let count = self.endpoints.len();
        let up = self.endpoints.iter().filter(|endpoint| endpoint.health.is_up()).count();
        let panics = up == 0 || up * 100 < count * usize::from(self.made_of.panic_below);
        let first = match self.balance {
            Balance::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed) % count,
            Balance::Random => fastrand::usize(..count),
            Balance::LeastRequest => {
                let load = |index: usize| self.endpoints[index].in_flight.load(Ordering::Relaxed);
                let (one, other) = (fastrand::usize(..count), fastrand::usize(..count));
                if load(other) < load(one) { other } else { one }
            }
        };
        let from_first = (0..count).map(|step| &self.endpoints[(first + step) % count]);
        let wanted = |endpoint: &&Arc<Endpoint>| panics || endpoint.health.is_up();
        let other = |endpoint: &&Arc<Endpoint>| not.is_none_or(|not| !Arc::ptr_eq(endpoint, not));
        let picked = from_first.clone().find(|endpoint| wanted(endpoint) && other(endpoint));
        Arc::clone(picked.unwrap_or(&self.endpoints[first]))
    }

    /// Asks every endpoint whether it answers.
    async fn check(&self, checks: &config::Checks) {
        let each = self.endpoints.iter().map(|endpoint| async move {
            let answers = tokio::time::timeout(checks.timeout, self.answers(endpoint, &checks.path)).await;
            let answers = answers.unwrap_or(false);
            if endpoint.health.checked(answers, checks.failures, checks.successes) {
                tracing::warn!(
                    target: "palisade::upstream", upstream = %self.name, endpoint = %endpoint.label, answers,
                    "checks say otherwise than before",
                );
            }
            self.metrics.upstream_up(&self.name, &endpoint.label, endpoint.health.is_up());
        });
        futures_util::future::join_all(each).await;
    }

    /// Whether an endpoint answers with a status of 2xx or 3xx.
    async fn answers(&self, endpoint: &Endpoint, path: &str) -> bool {
        // What is left of the answer is not read, so the connection ends with it, or with what is not needed of it.
        let answer = match endpoint.pool.checkout().await {
            Err(_) => return false,
            Ok(Connection::Http1 { connection, .. }) => {
                let head = Head::check(path, &endpoint.authority);
                connection.send(head, RequestBody::nothing()).await.map(|(answer, _)| answer.status)
            }
            Ok(Connection::Http2 { mut sender, .. }) => {
                let mut message = http::Request::new(RequestBody::nothing());
                let Ok(uri) = http2_uri(&endpoint.authority, path) else { return false };
                *message.uri_mut() = uri;
                *message.version_mut() = Version::HTTP_2;
                send_http2(&mut sender, message).await.map(|response| response.status())
            }
        };
        answer.is_ok_and(|status| status.is_success() || status.is_redirection())
    }
}

fn http2_uri(authority: &str, target: &str) -> Result<Uri, http::Error> {
    Uri::builder().scheme("http").authority(authority).path_and_query(target).build()
}

/// Checks a response's head and cleans it of what concerned only this connection.
fn received(
    answer: Answer,
    mut incoming: Incoming,
    guard: EndpointGuard,
    sending: Sending<'_>,
) -> Result<Response<UpstreamBody>, Failure> {
    let invalid = |detail: &'static str| Failure::new(Reason::UpstreamInvalid).with(detail).about(&guard.0.label);
    let Answer { status, mut headers } = answer;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let agreed = headers::upgrade(&headers);
        if agreed.is_none() || agreed.as_deref() != sending.upgrade {
            return Err(invalid("it switches to a protocol that was not asked for"));
        }
        incoming = match incoming {
            Incoming::Http1(Some(exchange)) if exchange.is_sent() => Incoming::Switched(exchange),
            _ => return Err(invalid("it switches protocols where that can't be")),
        };
    } else if status.is_informational() {
        return Err(invalid("an informational status in place of a final one"));
    }
    headers::remove_hop_by_hop(&mut headers);
    let stall = sending.timeout.map(|timeout| Stall::new(timeout, Arc::clone(sending.progress)));
    let mut response = Response::new(UpstreamBody { incoming, stall, guard, owned: None });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// An attempt that came to nothing.
struct Failed {
    failure: Failure,
    /// The body, if nothing of the request was sent.
    unsent: Option<RequestBody>,
    /// The server has done nothing, or says so.
    refused: bool,
}

impl Failed {
    fn sent(failure: Failure) -> Self {
        Self { failure, unsent: None, refused: false }
    }
}

/// Checks an upstream's endpoints, while there is somebody to use them.
async fn check(upstream: Weak<Upstream>, checks: config::Checks) {
    while let Some(upstream) = upstream.upgrade() {
        upstream.check(&checks).await;
        drop(upstream);
        tokio::time::sleep(checks.interval).await;
    }
}

/// Whether another attempt may help. A timeout has already taken all the time there was.
fn retryable(reason: Reason) -> bool {
    matches!(reason, Reason::UpstreamConnect | Reason::UpstreamConnectTimeout | Reason::UpstreamReset)
}

fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method)
}

/// Whose fault a broken exchange is.
fn broken(error: &(dyn std::error::Error + 'static), invalid: bool, progress: &Progress) -> Failure {
    let reason = match progress.fault() {
        // The body that we sent came to an error: it is the client's.
        Some(fault) => fault,
        None if invalid => Reason::UpstreamInvalid,
        None => Reason::UpstreamReset,
    };
    Failure::new(reason).with(chain(error))
}

/// Waits for a response's head until the request's body has not moved for the timeout. `None`: it did not come.
async fn in_time<T>(answer: Pin<&mut impl Future<Output = T>>, sending: Sending<'_>) -> Option<T> {
    let Sending { progress, alarm, .. } = sending;
    let Some(timeout) = sending.timeout else { return Some(answer.await) };
    alarm.bound(answer, || progress.last() + timeout).await
}

/// Counts a request as in flight at an endpoint.
#[derive(Debug)]
struct EndpointGuard(Arc<Endpoint>);

impl EndpointGuard {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for EndpointGuard {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body, which gives its connection back when it has ended.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    stall: Option<Stall>,
    guard: EndpointGuard,
    /// Trailers that are not the upstream's to send.
    owned: Option<Arc<[HeaderName]>>,
}

/// What comes from the upstream.
#[derive(Debug)]
enum Incoming {
    /// `None` once it has ended and its connection was given back.
    Http1(Option<Box<Exchange>>),
    Http2(Http2Body),
    /// No response any more.
    Switched(Box<Exchange>),
}

impl From<UpstreamBody> for Body {
    fn from(body: UpstreamBody) -> Self {
        let UpstreamBody { incoming, stall, guard, owned } = body;
        match incoming {
            Incoming::Switched(exchange) => match exchange.into_switched() {
                Some((io, rest)) => Self::Switched(Box::new(Switched { io, rest, held: Box::new(guard) })),
                // Never: only one that has sent its request switches.
                None => crate::http::empty(),
            },
            incoming => {
                let mut body = UpstreamBody { incoming, stall, guard, owned };
                body.release();
                match &body.incoming {
                    Incoming::Http1(None) => crate::http::empty(),
                    Incoming::Http2(incoming) if incoming.is_end_stream() => crate::http::empty(),
                    // A request may be on its way still when its response has ended.
                    _ => Self::Streaming(Box::new(body)),
                }
            }
        }
    }
}

/// Nothing moved for too long, in either direction.
#[derive(Debug, thiserror::Error)]
#[error("the upstream sent nothing for {0:?}")]
struct UpstreamStalled(Duration);

/// Watches a response that stands still.
#[derive(Debug)]
struct Stall {
    timeout: Duration,
    /// Of the request's body: a stream in one direction stands still in the other.
    progress: Arc<Progress>,
    /// While the response stands still.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(timeout: Duration, progress: Arc<Progress>) -> Self {
        Self { timeout, progress, timer: None }
    }

    /// The response moved.
    fn moved(&mut self) {
        self.timer = None;
    }

    /// Ready when the response has stood still for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<UpstreamStalled> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.timeout)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let deadline = self.progress.last() + self.timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(UpstreamStalled(self.timeout));
            }
            timer.as_mut().reset(deadline);
        }
    }
}

impl UpstreamBody {
    /// Takes these out of its trailers.
    pub(crate) fn without_trailers(&mut self, owned: &Arc<[HeaderName]>) {
        self.owned = Some(Arc::clone(owned));
    }

    /// Whether it comes to its end only when the request has gone out, too.
    pub(crate) fn carries_request(&self) -> bool {
        matches!(self.incoming, Incoming::Http1(Some(_)))
    }

    /// What the upstream may say.
    fn cleaned(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if frame.is_data() {
            return frame;
        }
        let frame = headers::clean_trailers(frame);
        match &self.owned {
            Some(owned) => headers::without_trailers(frame, |name| owned.contains(name)),
            None => frame,
        }
    }

    /// Gives the connection back if the exchange is over. One that was given up half-way can't be used again.
    fn release(&mut self) {
        if let Incoming::Http1(exchange) = &mut self.incoming
            && exchange.as_ref().is_some_and(|exchange| exchange.is_over())
            && let Some(idle) = exchange.take().and_then(Exchange::into_idle)
        {
            self.guard.0.pool.keep(idle);
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.incoming {
            Incoming::Http1(None) | Incoming::Switched(_) => Poll::Ready(None),
            Incoming::Http1(Some(exchange)) => exchange.poll_body(cx).map(|piece| match piece {
                Ok(Piece::Data(data)) => Some(Ok(Frame::data(data))),
                Ok(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Ok(Piece::End | Piece::More) => None,
                Err(error) => Some(Err(error)),
            }),
            Incoming::Http2(incoming) => Pin::new(incoming).poll_frame(cx),
        }
    }
}

impl http_body::Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = self.poll_incoming(cx);
        self.release();
        match (polled, &mut self.stall) {
            (Poll::Ready(frame), stall) => {
                if let Some(stall) = stall {
                    stall.moved();
                }
                Poll::Ready(frame.map(|frame| frame.map(|frame| self.cleaned(frame))))
            }
            (Poll::Pending, Some(stall)) => stall.poll(cx).map(|stalled| Some(Err(stalled.into()))),
            (Poll::Pending, None) => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.incoming {
            Incoming::Http1(exchange) => exchange.as_ref().is_none_or(|exchange| exchange.is_at_end()),
            Incoming::Http2(incoming) => incoming.is_end_stream(),
            Incoming::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.incoming {
            Incoming::Http1(None) | Incoming::Switched(_) => SizeHint::with_exact(0),
            Incoming::Http1(Some(exchange)) => exchange.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Incoming::Http2(incoming) => incoming.size_hint(),
        }
    }
}
