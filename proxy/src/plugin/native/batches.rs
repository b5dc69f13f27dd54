//! Calls to one instance, gathered into batches on one stream that stays open (`Filter.CheckBatches`).
//!
//! A call is sent at once while few batches wait for the plugin, see [`Bounds`]; those that come meanwhile make the
//! next batch. So a single call never waits for company, and batches grow with the load by themselves.
//!
//! Everything that the plugin says is checked against what it was asked. An answer to a call that is not open is no
//! mistake of one call: the stream is given up with all calls on it, none of which is then taken for judged, and any of
//! which may have been refused. A call that nobody waits for any more keeps its place until it is answered, so a late
//! answer is none of those.
//!
//! A plugin may cease to answer, on this stream or some of its calls, and do well in all else: see [`PATIENCE`].

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use palisade_plugin_proto::v1::{CheckAnswer, CheckBatchAnswer, check_answer};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::PollSemaphore;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::super::CallError;
use super::super::grpc::{Line, Outgoing, Rpc};
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

/// How long a plugin that lets calls run out of time may yet come back to them. A call whose time was over that long ago
/// is taken for forgotten, and is none of those any more that the plugin works on. A stream that keeps a call from being
/// sent, on which no call has time left, and of which nothing was heard for so long, is given up: what serves its
/// connection may stand still for ever, and health is asked over another one. So the next is over a new connection.
const PATIENCE: Duration = Duration::from_secs(5);

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
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// As many permits as the plugin takes calls at a time, in batches or by themselves; `None`: no limit.
    places: Option<Arc<Semaphore>>,
    /// Batches on their way that the plugin has not taken on. With more than two, they would stay small, and cost a slow
    /// plugin more than they save.
    batches: u32,
}

impl Bounds {
    /// `calls`: how many the plugin works on at a time; 0: as many as there are. `on_one_core`: whether a message costs it
    /// so much that it is better off waiting for a larger one than with one that is there when it has done its work.
    pub(super) fn new(calls: u32, on_one_core: bool) -> Self {
        let places = match calls {
            0 => None,
            calls => Some(Arc::new(Semaphore::new((calls as usize).min(Semaphore::MAX_PERMITS)))),
        };
        Self { places, batches: if on_one_core { 1 } else { 2 } }
    }

    /// What calls by themselves take of them.
    pub(super) fn places(&self) -> Option<Arc<Semaphore>> {
        self.places.clone()
    }

    fn is_full(&self) -> bool {
        self.places.as_ref().is_some_and(|places| places.available_permits() == 0)
    }

    /// Takes a place, if there is one at this moment; it is given back by [`Bounds::give_back`].
    fn take_place(&self) -> bool {
        self.places.as_ref().is_none_or(|places| places.try_acquire().map(SemaphorePermit::forget).is_ok())
    }

    /// As [`Bounds::take_place`], in its turn. Who does not want one any more drops `turn`.
    fn poll_place(&self, turn: &mut Option<PollSemaphore>, cx: &mut Context<'_>) -> Poll<()> {
        if turn.is_none() && self.take_place() {
            return Poll::Ready(());
        }
        let Some(places) = &self.places else { return Poll::Ready(()) };
        let waits = turn.get_or_insert_with(|| PollSemaphore::new(Arc::clone(places)));
        // They are never closed.
        let Some(place) = ready!(waits.poll_acquire(cx)) else { return Poll::Pending };
        place.forget();
        Poll::Ready(())
    }

    fn give_back(&self, count: usize) {
        if let Some(places) = self.places.as_ref().filter(|_| count > 0) {
            places.add_permits(count);
        }
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
    /// Whether the stream's task ends calls whose time is over: one timer for all. Where it is of another runtime than who
    /// waits, that may stand still while this one does not, and each call has a timer.
    ends_late: bool,
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
    /// Calls that the plugin works on, with those that nobody waits for any more, but for those that it has forgotten. Each
    /// has a place.
    sent: usize,
    /// Of those that were sent, how many nobody waits for.
    abandoned: usize,
    forgotten: usize,
    /// When to look for calls that it has forgotten: not after the first time that there is one.
    forgets: Option<Instant>,
    untaken: u32,
    /// Since when nothing was heard on the stream, where a call has run out of time since: when the last one did that was
    /// sent.
    silent: Option<Instant>,
    /// Whether the next stream is to have another connection than the last one.
    renew: bool,
    /// The stream's sending half, once it is open.
    outgoing: Option<Outgoing>,
    /// When the stream's task looks for calls whose time is over: not after the first deadline.
    alarm: Option<Instant>,
    task: Option<Waker>,
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
    deadline: Instant,
    sent: bool,
    forgotten: bool,
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
            shared: Arc::new(Shared { generation, bounds, ends_late: runtime.is_none(), state: Mutex::default() }),
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
        let ends_itself = !self.shared.ends_late;
        async move {
            let Some(mut open) = open else { return Err(CallError::Overloaded) };
            let answer = match ends_itself {
                false => answer.await,
                true => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return Err(open.late()),
                },
            };
            open.answered = true;
            answer.unwrap_or_else(|_| Err(CallError::Lost("the stream ended".to_owned())))
        }
    }

    /// Puts a call among those to be sent and returns its id; `None`: too many are open.
    fn begin(&self, kind: Kind, message: Vec<u8>, deadline: Instant, waiter: oneshot::Sender<Answer>) -> Option<u64> {
        let mut state = self.shared.state();
        let id = state.place(kind, deadline, waiter)?;
        state.pending.push_back(Pending { id, kind, deadline, message });
        if !state.open {
            state.open = true;
            state.stream += 1;
            if std::mem::take(&mut state.renew) {
                self.line.renew();
            }
            let work = work(self.line.clone(), Arc::clone(&self.shared), state.stream);
            let task = match &self.runtime {
                Some(runtime) => runtime.spawn(work),
                None => tokio::spawn(work),
            };
            *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(task));
        }
        if self.shared.ends_late && state.alarm.is_none_or(|alarm| deadline < alarm) {
            state.alarm = Some(deadline);
            state.wake();
        }
        if self.shared.bounds.is_full() {
            state.forget(&self.shared.bounds);
        }
        // Not sent here: what comes in the same turn goes in one batch.
        if state.wants_to_send(&self.shared.bounds) {
            state.wake();
        }
        Some(id)
    }
}

impl State {
    fn place(&mut self, kind: Kind, deadline: Instant, waiter: oneshot::Sender<Answer>) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MOST_OPEN => {
                self.slots.push(Slot { id: 0, kind, deadline, sent: false, forgotten: false, waiter: None });
                self.slots.len() - 1
            }
            None => return None,
        };
        self.serial += 1;
        let id = self.serial << INDEX_BITS | index as u64;
        self.slots[index] = Slot { id, kind, deadline, sent: false, forgotten: false, waiter: Some(waiter) };
        Some(id)
    }

    /// The slot of an open call.
    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(index_of(id)).filter(|slot| slot.id == id && id != 0)
    }

    fn free(&mut self, id: u64) -> Option<Slot> {
        let slot = self.slot(id)?;
        let freed = std::mem::replace(slot, Slot { id: 0, waiter: None, ..*slot });
        self.free.push(index_of(id));
        Some(freed)
    }

    /// Gives up a call for which somebody waits, and returns who. One that was sent keeps its place until it is answered.
    fn give_up(&mut self, id: u64, now: Instant, bounds: &Bounds) -> Option<oneshot::Sender<Answer>> {
        let slot = self.slot(id)?;
        let waiter = slot.waiter.take()?;
        let mut stuck = false;
        if slot.sent {
            let forgets = slot.deadline + PATIENCE;
            self.forgets = Some(self.forgets.map_or(forgets, |first| first.min(forgets)));
            self.abandoned += 1;
            self.silent = Some(now);
        } else {
            let silent = *self.silent.get_or_insert(now);
            stuck = self.unanswered() == self.abandoned && now >= silent + PATIENCE;
            // A plugin that takes no batches must not make them pile up. Ids grow from one call to the next, so they are
            // in order.
            self.free(id);
            if let Ok(index) = self.pending.binary_search_by_key(&id, |pending| pending.id) {
                self.pending.remove(index);
            }
        }
        if stuck || self.abandoned > MOST_ABANDONED {
            self.renew = true;
            self.broken(&CallError::Lost("it does not answer".to_owned()), bounds);
        }
        Some(waiter)
    }

    /// Makes room for others in the place of calls that were never answered.
    fn forget(&mut self, bounds: &Bounds) {
        let Some(first) = self.forgets else { return };
        let now = Instant::now();
        if now < first {
            return;
        }
        self.forgets = None;
        for slot in &mut self.slots {
            if slot.id == 0 || slot.waiter.is_some() || !slot.sent || slot.forgotten {
                continue;
            }
            let forgets = slot.deadline + PATIENCE;
            if forgets <= now {
                slot.forgotten = true;
                self.sent -= 1;
                self.forgotten += 1;
                bounds.give_back(1);
            } else {
                self.forgets = Some(self.forgets.map_or(forgets, |first| first.min(forgets)));
            }
        }
    }

    /// What a call comes to whose time is over.
    fn late(&mut self, id: u64, bounds: &Bounds) -> CallError {
        let sent = self.slot(id).is_none_or(|slot| slot.sent);
        // What the limit held back was never the plugin's to answer.
        if !sent && bounds.is_full() { CallError::Overloaded } else { CallError::Timeout }
    }

    /// Ends the calls whose time is over, and sets the alarm for the others.
    fn end_late(&mut self, bounds: &Bounds) {
        let now = Instant::now();
        self.alarm = None;
        let mut index = 0;
        while let Some(&Slot { id, deadline, ref waiter, .. }) = self.slots.get(index) {
            index += 1;
            if waiter.is_none() {
                continue;
            }
            if deadline > now {
                self.alarm = Some(self.alarm.map_or(deadline, |alarm| alarm.min(deadline)));
                continue;
            }
            let error = self.late(id, bounds);
            if let Some(waiter) = self.give_up(id, now, bounds) {
                waiter.send(Err(error)).ok();
            }
        }
    }

    fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// Whether there is something to be sent, as soon as there is a place for it.
    fn wants_to_send(&self, bounds: &Bounds) -> bool {
        self.untaken < bounds.batches && !self.pending.is_empty()
    }

    /// Sends what may be sent. Where there is no room or no place for it, the stream's task waits for some.
    fn send(&mut self, shared: &Shared) {
        while self.wants_to_send(&shared.bounds) {
            if !self.outgoing.as_mut().is_some_and(Outgoing::has_room) || !shared.bounds.take_place() {
                return self.wake();
            }
            self.send_batch(shared);
        }
    }

    /// What the stream's task does whenever it is woken: it ends what is late, and sends what may be sent.
    fn attend(&mut self, shared: &Shared, waits: &mut Waits, cx: &mut Context<'_>) {
        let Waits { timer, turn } = waits;
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        while let Some(alarm) = self.alarm {
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(alarm)));
            if timer.deadline() != alarm {
                timer.as_mut().reset(alarm);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            self.end_late(&shared.bounds);
        }
        while self.wants_to_send(&shared.bounds) {
            let room = self.outgoing.as_mut().map(|outgoing| outgoing.poll_room(cx));
            if !room.is_some_and(|room| room.is_ready()) {
                break;
            }
            if shared.bounds.poll_place(turn, cx).is_pending() {
                return;
            }
            self.send_batch(shared);
        }
        // Whose turn it is keeps the place from others.
        *turn = None;
    }

    /// Sends a batch, for whose first call there is a place.
    ///
    /// What HTTP/2 has not sent yet is less than two batches: there was room when the last one was made, so nothing of the
    /// one before was left. A batch is at most [`MOST_BYTES`] and one call.
    fn send_batch(&mut self, shared: &Shared) {
        let batch = self.batch(shared);
        if let (Some(batch), Some(outgoing)) = (batch, &mut self.outgoing) {
            outgoing.send(batch);
        }
    }

    /// The next batch, for whose first call there is a place.
    fn batch(&mut self, shared: &Shared) -> Option<Bytes> {
        let mut batch = Message::with_capacity(1024);
        batch.bytes(1, shared.generation.hash.as_bytes());
        let now = Instant::now();
        let (mut calls, mut has_place) = (0, true);
        while calls < MOST_CALLS && batch.len() < MOST_BYTES {
            let Some(id) = self.pending.front().map(|pending| pending.id) else { break };
            has_place = has_place || shared.bounds.take_place();
            if !has_place {
                break;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            let Some(slot) = self.slot(id) else { continue };
            slot.sent = true;
            has_place = false;
            self.sent += 1;
            calls += 1;
            let timeout = pending.deadline.saturating_duration_since(now).as_micros();
            batch.nested(2, |call| {
                call.number(1, pending.id);
                call.number(2, u64::try_from(timeout).unwrap_or(u64::MAX));
                call.present(pending.kind as u64, &pending.message);
            });
        }
        shared.bounds.give_back(usize::from(has_place));
        if calls == 0 {
            return None;
        }
        self.untaken += 1;
        Some(batch.into_bytes().into())
    }

    /// How many calls the plugin may yet answer.
    fn unanswered(&self) -> usize {
        self.sent + self.forgotten
    }

    /// Takes a message of answers in.
    fn take_in(&mut self, message: CheckBatchAnswer, shared: &Shared) -> Result<(), CallError> {
        let before = self.sent;
        let taken_in = self.take_answers(message, &shared.generation);
        shared.bounds.give_back(before - self.sent);
        taken_in
    }

    fn take_answers(&mut self, message: CheckBatchAnswer, generation: &Generation) -> Result<(), CallError> {
        self.silent = None;
        let untaken = self.untaken.checked_sub(message.taken);
        self.untaken =
            untaken.ok_or_else(|| CallError::Unreadable("it takes batches that were not sent".to_owned()))?;
        let verdicts = message.answers.iter().any(|answer| !is_error(answer));
        if verdicts {
            generation.check(&message.config_hash)?;
        }
        for answer in message.answers {
            self.answer(answer).map_err(CallError::Unreadable)?;
        }
        Ok(())
    }

    /// Takes an answer in. The error is a breach of the contract.
    fn answer(&mut self, answer: CheckAnswer) -> Result<(), String> {
        let CheckAnswer { id, answer } = answer;
        if !self.slot(id).is_some_and(|slot| slot.sent) {
            return Err(format!("it answers call {id}, which is not open"));
        }
        let Some(slot) = self.free(id) else { return Ok(()) };
        *if slot.forgotten { &mut self.forgotten } else { &mut self.sent } -= 1;
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
    fn broken(&mut self, error: &CallError, bounds: &Bounds) {
        // Whatever the plugin has said, it was not said of those.
        let unsent = match error {
            CallError::Lost(why) | CallError::Unsent(why) => CallError::Unsent(why.clone()),
            error => CallError::Unsent(error.to_string()),
        };
        self.open = false;
        self.pending.clear();
        self.free.clear();
        for Slot { sent, waiter, .. } in self.slots.drain(..) {
            if let Some(waiter) = waiter {
                waiter.send(Err(if sent { error } else { &unsent }.clone())).ok();
            }
        }
        bounds.give_back(self.sent);
        self.sent = 0;
        self.abandoned = 0;
        self.forgotten = 0;
        self.forgets = None;
        self.silent = None;
        self.untaken = 0;
        self.outgoing = None;
        self.alarm = None;
        // It sees that its stream is over.
        self.wake();
        self.task = None;
    }
}

/// A call that somebody waits for.
struct Open {
    shared: Arc<Shared>,
    id: u64,
    answered: bool,
}

impl Open {
    fn late(&self) -> CallError {
        self.shared.state().late(self.id, &self.shared.bounds)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.answered {
            let waiter = self.shared.state().give_up(self.id, Instant::now(), &self.shared.bounds);
            drop(waiter);
        }
    }
}

/// What a stream's task waits for.
#[derive(Default)]
struct Waits {
    timer: Option<Pin<Box<Sleep>>>,
    /// For a place.
    turn: Option<PollSemaphore>,
}

/// Works for a stream until it ends, and then ends all calls on it.
async fn work(line: Line, shared: Arc<Shared>, stream: u64) {
    let mut end = End { shared, stream, error: CallError::Lost("the stream's task ended".to_owned()) };
    let shared = &end.shared;
    let mut exchange = pin!(exchange(&line, shared, stream));
    let mut waits = Waits::default();
    let ended = poll_fn(|cx| match shared.state_of(stream) {
        Some(mut state) => {
            state.attend(shared, &mut waits, cx);
            drop(state);
            exchange.as_mut().poll(cx)
        }
        None => Poll::Ready(Ok(())),
    });
    end.error = match ended.await {
        Ok(()) => CallError::Lost("the plugin ended the stream".to_owned()),
        Err(error) => error,
    };
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
            state.broken(error, &self.shared.bounds);
        }
    }
}

/// Opens the stream, and takes answers in until it ends. The head of the response may come only with the first one.
async fn exchange(line: &Line, shared: &Shared, stream: u64) -> Result<(), CallError> {
    let (outgoing, incoming) = line.stream(&CHECK_BATCHES, MAX_ANSWERS).await?;
    if let Some(mut state) = shared.state_of(stream) {
        state.outgoing = Some(outgoing);
        state.send(shared);
    }
    let mut messages = incoming.await?;
    while let Some(message) = messages.next().await? {
        let Some(open) = shared.state_of(stream).map(|state| state.unanswered()) else { return Ok(()) };
        // Not under the lock: it may be large, and others ask meanwhile.
        let message = codec::read_answers(message, open).map_err(CallError::Unreadable)?;
        let Some(mut state) = shared.state_of(stream) else { return Ok(()) };
        state.take_in(message, shared)?;
        state.send(shared);
    }
    Ok(())
}

/// Whether it is an answer that no configuration has a part in.
fn is_error(answer: &CheckAnswer) -> bool {
    matches!(answer.answer, Some(check_answer::Answer::Error(_)))
}

#[cfg(any(test, fuzzing))]
mod judge;
#[cfg(test)]
mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) use self::judge::judge_answers;
