//! One question to a plugin: within its time, asked a second time only if the first connection broke, or of a second
//! instance if the first one takes long.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use palisade_supervisor::Unavailable;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use crate::config;
use crate::http::{Request, RequestBody};
use crate::plugin::{CallError, Lease, Needs, ResponseHead, ResponseVerdict, Running, Subject, Verdict};
use crate::respond::{Failure, Reason};

/// An answer, and what the instance that gave it needs.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) answer: Verdict,
    pub(super) needs: Needs,
}

/// No usable answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// `on_failure: allow` does not let it pass: nobody could judge this request, or it was refused.
    pub(super) stops: bool,
}

impl Failed {
    fn stopping(failure: Failure) -> Self {
        Self { failure, stops: true }
    }
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        let reason = match &error {
            CallError::Lost(_) | CallError::Unsent(_) => Reason::PluginUnavailable,
            CallError::Timeout => Reason::PluginTimeout,
            CallError::Overloaded | CallError::Busy(_) => Reason::PluginOverloaded,
            CallError::Failed(_) => Reason::PluginFailed,
            CallError::Invalid(_) => Reason::PluginInvalid,
            CallError::OtherConfig(_) => Reason::PluginOtherConfig,
            // Else one that ends the plugin would get past it.
            CallError::Poison => return Self::stopping(Failure::new(Reason::PoisonRequest).with(error)),
            CallError::InvalidReply(_) | CallError::Unreadable(_) => {
                return Self::stopping(Failure::new(Reason::PluginInvalid).with(error));
            }
            CallError::Unrepresentable(_) => return Self::stopping(Failure::new(Reason::BadHeader).with(error)),
        };
        Self { failure: Failure::new(reason).with(error), stops: false }
    }
}

impl From<Unavailable> for Failed {
    fn from(error: Unavailable) -> Self {
        Self { failure: Failure::new(Reason::PluginUnavailable).with(error.state), stops: false }
    }
}

/// Asks about a request. `timeout` bounds everything but the reading of the client's body, which has bounds of its own,
/// and the wait for the news that two processes have ended ([`Running::are_gone`]).
pub(super) async fn ask_request(
    plugin: &Running,
    timeout: Duration,
    max_body: usize,
    request: &Request,
    body: &mut RequestBody,
    route: Option<&config::Route>,
) -> Result<Asked, Failed> {
    let mut deadline = Instant::now() + timeout;
    let mut attempts = Attempts::new(plugin);
    loop {
        let client = attempts.client(deadline).await?;
        // Another instance may need other things than the one before it.
        let needs = client.needs();
        let content = held(&needs, max_body, body, &mut deadline).await?;
        let subject = Subject { request, route, body: content };
        let call = |client: &Lease| client.check_request(&subject, deadline);
        if let Some(answer) = attempts.ask(client, &request.id, deadline, call).await? {
            return Ok(Asked { answer, needs });
        }
    }
}

/// Asks about a response.
pub(super) async fn ask_response(
    plugin: &Running,
    timeout: Duration,
    request: &Request,
    response: &ResponseHead<'_>,
) -> Result<ResponseVerdict, Failed> {
    let deadline = Instant::now() + timeout;
    let mut attempts = Attempts::new(plugin);
    loop {
        let client = attempts.client(deadline).await?;
        let call = |client: &Lease| Ok(client.check_response(request, response, deadline));
        if let Some(answer) = attempts.ask(client, &request.id, deadline, call).await? {
            return Ok(answer);
        }
    }
}

/// The answer to `call`, or to a second one that `again` makes of another instance, where the first takes longer than
/// `after`: that which comes first. The other call goes on without anybody, as those do whose client has left. With no
/// answer comes who was lost besides.
async fn hedged<T, F>(
    (plugin, after): (&Running, Duration),
    first: &Lease,
    id: &str,
    call: impl Future<Output = Result<T, CallError>>,
    again: impl Fn(&Lease) -> Result<F, CallError>,
) -> (Result<T, CallError>, Option<Lease>)
where
    T: Send + 'static,
    F: Future<Output = Result<T, CallError>> + Send + 'static,
{
    let mut call = pin!(call);
    if let Ok(answer) = tokio::time::timeout(after, call.as_mut()).await {
        return (answer, None);
    }
    // What is sent is what the first one needs.
    let hedge = plugin.hedge(first).filter(|hedge| hedge.lease.needs() == first.needs());
    let second = hedge.and_then(|hedge| Some((again(&hedge.lease).ok()?, hedge)));
    let Some((second, hedge)) = second else { return (call.await, None) };
    let second = pin!(plugin.call_beside(hedge, id, second));
    // What one of them fails may be answered by the other.
    let (answer, (other, besides)) = match select(call, second).await {
        Either::Left((answer, _)) | Either::Right(((_, answer), _)) if decides(&answer) => return (answer, None),
        Either::Left((answer, second)) => (answer, second.await),
        Either::Right((besides, call)) => (call.await, besides),
    };
    match besides {
        besides if !decides(&answer) && decides(&besides) => (besides, None),
        Err(CallError::Lost(_)) => (answer, Some(other)),
        _ => (answer, None),
    }
}

/// Whether it is the plugin's decision. A refusal is one, whatever its reply is, and what can't be read may be one.
fn decides<T>(answer: &Result<T, CallError>) -> bool {
    matches!(answer, Ok(_) | Err(CallError::InvalidReply(_) | CallError::Unreadable(_)))
}

/// Calls about one request that found no connection, before it is given up: as many instances as may have ended at once.
const MOST_UNSENT: usize = 8;

/// Whom to ask, after what has been lost: another process once, and the same one once more if it seems to live. The
/// second call may reach a plugin that has seen the first one: a filter that is asked twice gives two verdicts, of which
/// the client gets one.
struct Attempts<'a> {
    plugin: &'a Running,
    lost: Option<Lease>,
    /// Whom the last call could not be sent to.
    unsent: Option<Lease>,
    /// How many calls could not be sent.
    failed: usize,
    /// Taken after a loss.
    turn: Option<SemaphorePermit<'a>>,
}

impl<'a> Attempts<'a> {
    fn new(plugin: &'a Running) -> Self {
        Self { plugin, lost: None, unsent: None, failed: 0, turn: None }
    }

    async fn client(&mut self, deadline: Instant) -> Result<Lease, Failed> {
        if self.lost.is_some() && self.turn.is_none() {
            self.turn = self.plugin.suspected(deadline).await;
        }
        match self.unsent.as_ref().or(self.lost.as_ref()) {
            None => Ok(self.plugin.client_by(deadline).await?),
            Some(before) => Ok(self.plugin.client_after(before, deadline).await?),
        }
    }

    /// Asks `client` by the call that `make` makes of it, and a second instance too where that takes long. `None`: the
    /// call came to nothing, and there is somebody else to ask.
    async fn ask<T, F>(
        &mut self,
        client: Lease,
        id: &str,
        deadline: Instant,
        make: impl Fn(&Lease) -> Result<F, CallError>,
    ) -> Result<Option<T>, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        // Waited for by the caller, before anything is sent: a call whose client has left is not made.
        let place = client.place(deadline).await?;
        let call = self.plugin.call(&client, id, place, make(&client)?);
        // What may have ended a process is not let near two others at a time.
        let (answer, besides) = match self.plugin.hedge_after().filter(|_| self.lost.is_none()) {
            None => (call.await, None),
            // Boxed: it is large, and rare.
            Some(after) => Box::pin(hedged((self.plugin, after), &client, id, call, make)).await,
        };
        match (answer, besides) {
            (Err(CallError::Lost(error)), None) => self.lost(client, error, deadline).await.map(|()| None),
            (Err(CallError::Lost(error)), Some(other)) => {
                // Of two that ended while it was with both, it is known no more than of one: it is asked about by itself.
                self.plugin.is_gone(&other, deadline).await;
                self.lost(client, error, deadline).await.map(|()| None)
            }
            (Err(CallError::Unsent(error)), Some(other)) => self.lost(other, error, deadline).await.map(|()| None),
            (Err(CallError::Unsent(error)), None) => self.unsent(client, error).map(|()| None),
            (answer, _) => answer.map(Some),
        }
    }

    /// There was no connection. That is not this request's doing, and says nothing about who is asked next. `Err`: that
    /// was the last attempt.
    fn unsent(&mut self, client: Lease, error: String) -> Result<(), CallError> {
        self.unsent = Some(client);
        self.failed += 1;
        if self.failed > MOST_UNSENT { Err(CallError::Unsent(error)) } else { Ok(()) }
    }

    /// The connection broke. `Err`: that was the last attempt.
    async fn lost(&mut self, client: Lease, error: String, deadline: Instant) -> Result<(), CallError> {
        self.unsent = None;
        let Some(before) = &self.lost else {
            self.lost = Some(client);
            return Ok(());
        };
        match client.is_of_the_process_of(before) {
            // It was on its way out already: nobody else has been asked yet.
            true if self.plugin.is_gone(&client, deadline).await => Ok(()),
            // It has most likely ended both: it is not let near a third.
            false if self.plugin.are_gone([&client, before]).await => Err(CallError::Poison),
            true | false => Err(CallError::Lost(error)),
        }
    }
}

/// The body, where the plugin needs it. The time that the client takes to send it is added to the deadline.
async fn held(
    needs: &Needs,
    max_body: usize,
    body: &mut RequestBody,
    deadline: &mut Instant,
) -> Result<Option<Bytes>, Failed> {
    let Some(limit) = needs.body else { return Ok(None) };
    let started = Instant::now();
    let content = body.hold(limit.min(max_body)).await.map_err(Failed::stopping)?;
    *deadline += started.elapsed();
    Ok(Some(content))
}
