//! Calls to one instance, gathered into batches on one stream that stays open (`Filter.CheckBatches`).
//!
//! A call is sent at once while few batches wait for the plugin, see [`Bounds`]; those that come meanwhile make the
//! next batch. So a single call never waits for company, and batches grow with the load by themselves.
//!
//! Everything that the plugin says is checked against what it was asked. An answer to a call that is not open is no
//! mistake of one call: the stream is given up with all calls on it, none of which is then taken for judged. A call
//! that nobody waits for any more keeps its place until it is answered, so a late answer is none of those.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use http::Uri;
use palisade_plugin_proto::v1::{CheckAnswer, CheckBatchAnswer, check_answer};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::super::CallError;
use super::super::grpc::{Incoming, Line, Outgoing, Rpc};
use super::codec;
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

static CHECK_BATCHES: Rpc = Rpc::new(|| Uri::from_static("http://localhost/palisade.plugin.v1.Filter/CheckBatches"));

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
    line: Line,
    shared: Arc<Shared>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
    /// That works for the stream; the caller's own where there is none.
    runtime: Option<Handle>,
}

#[derive(Debug)]
struct Shared {
    generation: Generation,
    bounds: Bounds,
    /// Held while a batch is handed to HTTP/2, whose locks are taken within this one, never around it: of what is here,
    /// HTTP/2 has nothing but bytes and the wakers of tasks.
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
    /// The stream's sending half, once it is open.
    outgoing: Option<Outgoing>,
    /// Of the stream's task, where it waits for something to send.
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

    /// `None`: the stream of this number is over.
    fn state_of(&self, stream: u64) -> Option<MutexGuard<'_, State>> {
        Some(self.state()).filter(|state| state.open && state.stream == stream)
    }
}

impl Batches {
    /// For one worker, whose runtime takes the answers in.
    pub(super) fn of_worker(line: Line, generation: Generation, bounds: Bounds) -> Self {
        Self::new(line, generation, bounds, None)
    }

    /// For all workers: this runtime takes the answers in, so that none waits for a worker that stands still.
    pub(super) fn of_all(line: Line, generation: Generation, bounds: Bounds) -> Self {
        Self::new(line, generation, bounds, Some(Handle::current()))
    }

    fn new(line: Line, generation: Generation, bounds: Bounds, runtime: Option<Handle>) -> Self {
        Self {
            line,
            shared: Arc::new(Shared { generation, bounds, state: Mutex::default() }),
            task: Mutex::new(None),
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
            let work = work(self.line.clone(), Arc::clone(&self.shared), state.stream);
            let task = match &self.runtime {
                Some(runtime) => runtime.spawn(work),
                None => tokio::spawn(work),
            };
            *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(task));
        }
        let sender = state.send_first(&self.shared);
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

    /// For who has put a call among those to be sent. Where the plugin has nothing to do, it is sent at once. Otherwise by
    /// the stream's task, which is to be woken: what comes in the same turn goes with it.
    fn send_first(&mut self, shared: &Shared) -> Option<Waker> {
        if self.untaken == 0 {
            return self.send(shared);
        }
        if self.may_send(shared.bounds) { self.sender.take() } else { None }
    }

    /// Sends what may be sent. Where there is no room for it, the stream's task has to wait for some: it is to be woken.
    fn send(&mut self, shared: &Shared) -> Option<Waker> {
        while self.may_send(shared.bounds) {
            if !self.outgoing.as_mut().is_some_and(Outgoing::has_room) {
                return self.sender.take();
            }
            self.send_batch(shared);
        }
        None
    }

    /// Sends what may be sent, and has the stream's task woken for more.
    fn poll_send(&mut self, shared: &Shared, cx: &mut Context<'_>) {
        while self.may_send(shared.bounds) {
            if !self.outgoing.as_mut().is_some_and(|outgoing| outgoing.poll_room(cx).is_ready()) {
                // It waits for room.
                self.sender = None;
                return;
            }
            self.send_batch(shared);
        }
        if !self.sender.as_ref().is_some_and(|sender| sender.will_wake(cx.waker())) {
            self.sender = Some(cx.waker().clone());
        }
    }

    /// What HTTP/2 has not sent yet is less than two batches: there was room when the last one was made, so nothing of the
    /// one before was left. A batch is at most [`MOST_BYTES`] and one call.
    fn send_batch(&mut self, shared: &Shared) {
        let batch = self.batch(shared);
        if let (Some(batch), Some(outgoing)) = (batch, &mut self.outgoing) {
            outgoing.send(batch);
        }
    }

    /// The next batch.
    fn batch(&mut self, shared: &Shared) -> Option<Bytes> {
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
        self.outgoing = None;
        // Its task sees that the stream is not the one any more.
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

/// Works for a stream until it ends, and then ends all calls on it.
async fn work(line: Line, shared: Arc<Shared>, stream: u64) {
    let mut end = End { shared, stream, error: CallError::Lost("the stream's task ended".to_owned()) };
    end.error = exchange(&line, &end.shared, stream).await;
}

/// Ends the calls of a stream, however its task ends.
struct End {
    shared: Arc<Shared>,
    stream: u64,
    error: CallError,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(mut state) = self.shared.state_of(self.stream) {
            let Self { error, .. } = self;
            tracing::debug!(target: "palisade::plugin", %error, calls = state.sent, "a stream of calls ended");
            state.broken(error);
        }
    }
}

/// Opens the stream, sends what no caller can, and takes answers in. Returns why that ends.
async fn exchange(line: &Line, shared: &Shared, stream: u64) -> CallError {
    let (outgoing, incoming) = match line.stream(&CHECK_BATCHES, MAX_ANSWERS).await {
        Ok(opened) => opened,
        Err(error) => return error,
    };
    if let Some(mut state) = shared.state_of(stream) {
        state.outgoing = Some(outgoing);
    }
    let mut answers = pin!(answers(shared, incoming, stream));
    let ended = poll_fn(|cx| {
        if let Some(mut state) = shared.state_of(stream) {
            state.poll_send(shared, cx);
        }
        answers.as_mut().poll(cx)
    });
    match ended.await {
        Ok(()) => CallError::Lost("the plugin ended the stream".to_owned()),
        Err(error) => error,
    }
}

/// Takes answers in until the stream ends. The head of the response may come only with the first one.
async fn answers(shared: &Shared, incoming: Incoming, stream: u64) -> Result<(), CallError> {
    let mut messages = incoming.await?;
    while let Some(message) = messages.next().await? {
        let message: CheckBatchAnswer = codec::read(message).map_err(CallError::Invalid)?;
        let Some(mut state) = shared.state_of(stream) else { return Ok(()) };
        let untaken = state.untaken.checked_sub(message.taken);
        state.untaken = untaken.ok_or_else(|| CallError::Invalid("it takes batches that were not sent".to_owned()))?;
        let verdicts = message.answers.iter().any(|answer| !is_error(answer));
        if verdicts {
            shared.generation.check(&message.config_hash)?;
        }
        for answer in message.answers {
            state.answer(answer).map_err(CallError::Invalid)?;
        }
        let sender = state.send(shared);
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
mod tests;
