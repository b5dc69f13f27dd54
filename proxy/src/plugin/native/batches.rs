//! Calls to one instance, gathered into batches on one stream that stays open (`Filter.CheckBatches`).
//!
//! A call is sent at once while few batches wait for the plugin, see [`Bounds`]; those that come meanwhile make the
//! next batch. So a single call never waits for company, and batches grow with the load by themselves.
//!
//! Everything that the plugin says is checked against what it was asked. An answer to a call that is not open is no
//! mistake of one call: the stream is given up with all calls on it, none of which is then taken for judged. A call
//! that nobody waits for any more keeps its place until it is answered, so a late answer is none of those.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::Stream;
use palisade_plugin_proto::v1::{CheckAnswer, CheckBatchAnswer, check_answer};
use palisade_supervisor::Answers;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::super::CallError;
use super::codec::Encoded;
use super::encode::Message;
use super::generation::Generation;
use super::wire;

/// A batch is full with this many calls, or this many bytes.
const MOST_CALLS: usize = 256;
const MOST_BYTES: usize = 64 << 10;

/// Open calls of one stream, with those that nobody waits for any more.
const MOST_OPEN: usize = 1 << 14;

/// Calls that nobody waits for and the plugin has not answered, before it is taken not to answer at all.
const MOST_ABANDONED: usize = MOST_OPEN / 2;

/// Largest message of answers.
const MAX_ANSWERS: usize = 2 << 20;

/// The larger a message, the less a batch saves, and others would wait for it. Larger ones go by themselves.
pub(super) const MAX_CALL: usize = 16 << 10;

const PATH: PathAndQuery = PathAndQuery::from_static("/palisade.plugin.v1.Filter/CheckBatches");

/// What is asked; the field of `CheckCall` that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request = 3,
    Response = 4,
}

/// What a stream may have under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Calls that the plugin works on at a time.
    calls: usize,
    /// Batches on their way that the plugin has not taken on. With more than two, they would stay small, and cost a slow
    /// plugin more than they save.
    batches: u32,
}

impl Bounds {
    /// `calls`: how many the plugin works on at a time; 0: as many as there are. `on_one_core`: whether a message costs it
    /// so much that it is better off waiting for a larger one than with one that is there when it has done its work.
    pub(super) fn new(calls: u32, on_one_core: bool) -> Self {
        let calls = match calls {
            0 => usize::MAX,
            calls => calls as usize,
        };
        Self { calls, batches: if on_one_core { 1 } else { 2 } }
    }
}

/// The stream to one instance, opened by the first call and again after it broke.
#[derive(Debug)]
pub(super) struct Batches {
    grpc: Grpc<Answers>,
    shared: Arc<Shared>,
    reader: Mutex<Option<AbortOnDropHandle<()>>>,
    /// That takes answers in; the caller's own where there is none.
    runtime: Option<Handle>,
}

#[derive(Debug)]
struct Shared {
    generation: Generation,
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts streams; 0 is none.
    stream: u64,
    open: bool,
    /// Not yet sent, in the order of their ids. Each has a slot.
    pending: VecDeque<Pending>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Counts calls.
    serial: u64,
    sent: usize,
    abandoned: usize,
    untaken: u32,
    /// Of the stream's sending half, which waits for something to send.
    sender: Option<Waker>,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    kind: Kind,
    deadline: Instant,
    message: Vec<u8>,
}

/// The place of an open call. Its index is the lower half of the call's id, so that the call is found without a search;
/// the upper half is never the same again.
#[derive(Debug)]
struct Slot {
    /// 0: free.
    id: u64,
    kind: Kind,
    sent: bool,
    /// `None`: nobody waits any more.
    waiter: Option<oneshot::Sender<Answer>>,
}

const INDEX_BITS: u32 = MOST_OPEN.trailing_zeros();

fn index_of(id: u64) -> usize {
    usize::try_from(id & (MOST_OPEN as u64 - 1)).unwrap_or(usize::MAX)
}

/// What a call comes to.
pub(super) type Answer = Result<check_answer::Answer, CallError>;

impl Shared {
    /// Nothing in a critical section can panic half-way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batches {
    /// For one worker, whose runtime takes the answers in.
    pub(super) fn of_worker(channel: Channel, generation: Generation, bounds: Bounds) -> Self {
        Self::new(channel, generation, bounds, None)
    }

    /// For all workers: this runtime takes the answers in, so that none waits for a worker that stands still.
    pub(super) fn of_all(channel: Channel, generation: Generation, bounds: Bounds) -> Self {
        Self::new(channel, generation, bounds, Some(Handle::current()))
    }

    fn new(channel: Channel, generation: Generation, bounds: Bounds, runtime: Option<Handle>) -> Self {
        Self {
            grpc: Grpc::new(palisade_supervisor::answers(channel)).max_decoding_message_size(MAX_ANSWERS),
            shared: Arc::new(Shared { generation, bounds, state: Mutex::default() }),
            reader: Mutex::new(None),
            runtime,
        }
    }

    /// Asks; must be called in a runtime. The future may be dropped at any time without harm to other calls.
    pub(super) fn call(
        &self,
        kind: Kind,
        message: Message,
        deadline: Instant,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let (waiter, answer) = oneshot::channel();
        let begun = self.begin(kind, message.into_bytes(), deadline, waiter);
        let open = begun.map(|id| Open { shared: Arc::clone(&self.shared), id, answered: false });
        async move {
            let Some(mut open) = open else { return Err(CallError::Overloaded) };
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(answer) => {
                    open.answered = true;
                    answer.unwrap_or_else(|_| Err(CallError::Lost("the stream ended".to_owned())))
                }
                // What the limit held back was never the plugin's to answer.
                Err(_) if open.is_held_back() => Err(CallError::Overloaded),
                Err(_) => Err(CallError::Timeout),
            }
        }
    }

    /// Puts a call among those to be sent and returns its id; `None`: too many are open.
    fn begin(&self, kind: Kind, message: Vec<u8>, deadline: Instant, waiter: oneshot::Sender<Answer>) -> Option<u64> {
        let mut state = self.shared.state();
        let id = state.place(kind, waiter)?;
        state.pending.push_back(Pending { id, kind, deadline, message });
        if !state.open {
            state.open = true;
            state.stream += 1;
            let outgoing = Outgoing { shared: Arc::clone(&self.shared), stream: state.stream };
            let read = read(self.grpc.clone(), Arc::clone(&self.shared), outgoing, state.stream);
            let reader = match &self.runtime {
                Some(runtime) => runtime.spawn(read),
                None => tokio::spawn(read),
            };
            *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(reader));
        }
        let sender = if state.may_send(self.shared.bounds) { state.sender.take() } else { None };
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        Some(id)
    }
}

impl State {
    fn place(&mut self, kind: Kind, waiter: oneshot::Sender<Answer>) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MOST_OPEN => {
                self.slots.push(Slot { id: 0, kind, sent: false, waiter: None });
                self.slots.len() - 1
            }
            None => return None,
        };
        self.serial += 1;
        let id = self.serial << INDEX_BITS | index as u64;
        self.slots[index] = Slot { id, kind, sent: false, waiter: Some(waiter) };
        Some(id)
    }

    /// The slot of an open call.
    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(index_of(id)).filter(|slot| slot.id == id && id != 0)
    }

    fn free(&mut self, id: u64) -> Option<Slot> {
        let slot = self.slot(id)?;
        let freed = std::mem::replace(slot, Slot { id: 0, kind: Kind::Request, sent: false, waiter: None });
        self.free.push(index_of(id));
        Some(freed)
    }

    /// Takes back a call that was not sent: a plugin that takes no batches must not make them pile up.
    fn take_back(&mut self, id: u64) {
        drop(self.free(id));
        // Ids grow from one call to the next, so they are in order.
        if let Ok(index) = self.pending.binary_search_by_key(&id, |pending| pending.id) {
            self.pending.remove(index);
        }
    }

    fn may_send(&self, bounds: Bounds) -> bool {
        self.untaken < bounds.batches && self.sent < bounds.calls && !self.pending.is_empty()
    }

    /// The next batch, if one may be sent.
    fn batch(&mut self, shared: &Shared) -> Option<Bytes> {
        if !self.may_send(shared.bounds) {
            return None;
        }
        let mut batch = Message::with_capacity(1024);
        batch.bytes(1, shared.generation.hash.as_bytes());
        let now = Instant::now();
        let mut calls = 0;
        while calls < MOST_CALLS && self.sent < shared.bounds.calls && batch.len() < MOST_BYTES {
            let Some(pending) = self.pending.pop_front() else { break };
            let Some(slot) = self.slot(pending.id) else { continue };
            slot.sent = true;
            self.sent += 1;
            calls += 1;
            let timeout = pending.deadline.saturating_duration_since(now).as_micros();
            batch.nested(2, |call| {
                call.number(1, pending.id);
                call.number(2, u64::try_from(timeout).unwrap_or(u64::MAX));
                call.present(pending.kind as u64, &pending.message);
            });
        }
        if calls == 0 {
            return None;
        }
        self.untaken += 1;
        Some(batch.into_bytes().into())
    }

    /// Takes an answer in. The error is a breach of the contract.
    fn answer(&mut self, answer: CheckAnswer) -> Result<(), String> {
        let CheckAnswer { id, answer } = answer;
        if !self.slot(id).is_some_and(|slot| slot.sent) {
            return Err(format!("it answers call {id}, which is not open"));
        }
        let Some(slot) = self.free(id) else { return Ok(()) };
        self.sent -= 1;
        let Some(waiter) = slot.waiter else {
            self.abandoned -= 1;
            return Ok(());
        };
        let answer = match (answer, slot.kind) {
            (Some(check_answer::Answer::Error(error)), _) => {
                Err(wire::call_error(&Status::new(Code::from(error.code.cast_signed()), error.message)))
            }
            (Some(answer @ check_answer::Answer::Request(_)), Kind::Request)
            | (Some(answer @ check_answer::Answer::Response(_)), Kind::Response) => Ok(answer),
            _ => Err(wire::other_kind()),
        };
        // Whoever does not wait any more has not abandoned it yet.
        waiter.send(answer).ok();
        Ok(())
    }

    /// Ends every open call with `error`; those that have not been sent are said to be so. The next one opens another
    /// stream.
    fn broken(&mut self, error: &CallError) {
        let unsent = match error {
            CallError::Lost(why) => &CallError::Unsent(why.clone()),
            error => error,
        };
        self.open = false;
        self.pending.clear();
        self.free.clear();
        for Slot { sent, waiter, .. } in self.slots.drain(..) {
            if let Some(waiter) = waiter {
                waiter.send(Err(if sent { error } else { unsent }.clone())).ok();
            }
        }
        self.sent = 0;
        self.abandoned = 0;
        self.untaken = 0;
        // Its stream sees that it is not the one any more.
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }
}

/// A call that somebody waits for.
struct Open {
    shared: Arc<Shared>,
    id: u64,
    answered: bool,
}

impl Open {
    fn is_held_back(&self) -> bool {
        let mut state = self.shared.state();
        let sent = state.slot(self.id).is_none_or(|slot| slot.sent);
        !sent && state.sent >= self.shared.bounds.calls
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut state = self.shared.state();
        match state.slot(self.id) {
            Some(slot) if slot.sent => {
                slot.waiter = None;
                state.abandoned += 1;
                if state.abandoned > MOST_ABANDONED {
                    state.broken(&CallError::Lost("it does not answer".to_owned()));
                }
            }
            Some(_) => state.take_back(self.id),
            None => {}
        }
    }
}

/// The sending half, polled by the connection.
struct Outgoing {
    shared: Arc<Shared>,
    stream: u64,
}

impl Stream for Outgoing {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.shared.state();
        if !state.open || state.stream != self.stream {
            return Poll::Ready(None);
        }
        match state.batch(&self.shared) {
            Some(batch) => Poll::Ready(Some(batch)),
            None => {
                state.sender = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The receiving half. The response's head may come only with the first answer, so nothing waits for it.
async fn read(mut grpc: Grpc<Answers>, shared: Arc<Shared>, outgoing: Outgoing, stream: u64) {
    let error = match answers(&mut grpc, &shared, outgoing, stream).await {
        Ok(()) => CallError::Lost("the plugin ended the stream".to_owned()),
        Err(error) => error,
    };
    let mut state = shared.state();
    if state.open && state.stream == stream {
        tracing::debug!(target: "palisade::plugin", %error, calls = state.sent, "a stream of calls ended");
        state.broken(&error);
    }
}

/// Takes answers in until the stream ends.
async fn answers(grpc: &mut Grpc<Answers>, shared: &Shared, outgoing: Outgoing, stream: u64) -> Result<(), CallError> {
    let failed = |status: Status| wire::call_error(&status);
    grpc.ready().await.map_err(|error| CallError::Lost(palisade_supervisor::chain(&error)))?;
    let request = tonic::Request::new(outgoing);
    let codec = Encoded::<CheckBatchAnswer>::default();
    let mut received = grpc.streaming(request, PATH, codec).await.map_err(failed)?.into_inner();
    while let Some(message) = received.message().await.map_err(failed)? {
        let mut state = shared.state();
        if !state.open || state.stream != stream {
            return Ok(());
        }
        let untaken = state.untaken.checked_sub(message.taken);
        state.untaken = untaken.ok_or_else(|| CallError::Invalid("it takes batches that were not sent".to_owned()))?;
        let verdicts = message.answers.iter().any(|answer| !is_error(answer));
        if verdicts {
            shared.generation.check(&message.config_hash)?;
        }
        for answer in message.answers {
            state.answer(answer).map_err(CallError::Invalid)?;
        }
        let sender = if state.may_send(shared.bounds) { state.sender.take() } else { None };
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }
    Ok(())
}

/// Whether it is an answer that no configuration has a part in.
fn is_error(answer: &CheckAnswer) -> bool {
    matches!(answer.answer, Some(check_answer::Answer::Error(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_never_taken_do_not_pile_up() {
        let nobody = tower::service_fn(|_| std::future::pending::<Result<TokioIo<DuplexStream>, std::io::Error>>());
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(nobody);
        let batches =
            Batches::of_worker(channel, Generation { hash: "hash".into(), may_be_silent: true }, Bounds::new(0, false));
        let call = |after: u64| {
            let mut message = Message::default();
            message.bytes(1, &[b'x'; 1000]);
            batches.call(Kind::Request, message, Instant::now() + Duration::from_millis(after))
        };
        let last = call(30_000);
        for round in 0..10 {
            let calls = (0..100).map(|number| call(1 + (number * 7 + round) % 50));
            let answers = futures_util::future::join_all(calls).await;
            assert!(answers.iter().all(|answer| *answer == Err(CallError::Timeout)));
        }
        let (pending, free, slots) = {
            let state = batches.shared.state();
            (state.pending.len(), state.free.len(), state.slots.len())
        };
        assert_eq!((pending, slots - free), (1, 1));
        drop(last);
        assert_eq!(batches.shared.state().pending.len(), 0);
    }
}
