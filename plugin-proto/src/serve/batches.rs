//! Many calls in one message, over a stream that stays open.
//!
//! The calls of a batch are begun one after the other. Those that are answered at once, as those of most filters are,
//! go back together in one message; those that wait for something become tasks of their own, and so does the rest of a
//! batch that takes long. So no batch waits for a call of the one before it. What was not begun before it became a task
//! may block as those before it did, so it is begun beside the runtime (`aside`).
//!
//! A message costs both sides more than a verdict does, and a task costs about as much as one. So a thread that others
//! took the core from is not taken for a filter that blocks, after which calls would go by themselves for a while.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::services::{Shared, internal};
use super::spent::Spent;
use super::{Config, Filter};
use crate::v1::check_answer::Answer;
use crate::v1::check_request_response::Verdict::Deny;
use crate::v1::check_response_response::Verdict::Replace;
use crate::v1::{
    CheckAnswer, CheckBatch, CheckBatchAnswer, CheckCall, CheckError, CheckRequestResponse, CheckResponseResponse,
    Reply, check_call,
};

/// With this many calls that wait, no batch is taken: as many as the host has of its own accord.
pub(super) const MOST_WAITING: usize = 1 << 14;

/// How long calls of one batch are worked on one after the other, before the rest become tasks.
const TURN: Duration = Duration::from_micros(200);

/// What it costs to make a call a task and begin it on another thread. Those that cost less go on where they are.
const HAND_OVER: Duration = Duration::from_micros(10);

/// A filter that blocks for longer than this makes others wait.
pub(super) const SLOW: Duration = Duration::from_millis(1);

/// How many calls become tasks at once after a slow one.
const CAREFUL: u32 = 1_000;

/// Largest answer: a reply of 1 MiB and its headers. One that is larger would cost the whole stream.
const MAX_ANSWER: usize = (1 << 20) + (128 << 10);

/// A message is sent when its answers have this many bytes together; with the largest one it stays below 2 MiB.
const FULL: usize = 256 << 10;

/// Answers batches until the host ends the stream, or until the plugin is asked to end and has answered.
pub(super) fn serve<F: Filter>(
    filter: Arc<F>,
    shared: Arc<Shared>,
    batches: impl Stream<Item = Result<CheckBatch, Status>> + Send + Unpin,
) -> impl Stream<Item = Result<CheckBatchAnswer, Status>> + Send {
    let served = Served {
        filter,
        ended: shared.watch_end(),
        shared,
        batches,
        waiting: JoinSet::new(),
        ready: VecDeque::new(),
        careful: 0,
        closing: false,
    };
    stream::unfold(served, |mut served| async move { Some((served.next().await?, served)) })
}

struct Served<F, B> {
    filter: Arc<F>,
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
    batches: B,
    /// Calls that were not answered at once. They end with the stream.
    waiting: JoinSet<Judged>,
    /// Messages to be sent.
    ready: VecDeque<CheckBatchAnswer>,
    /// Calls that are still made tasks at once.
    careful: u32,
    /// No more batches are taken.
    closing: bool,
}

/// An answer, and the configuration that it comes of, if it is a verdict at all.
type Judged = (CheckAnswer, Option<Arc<Config>>);

enum Event {
    /// A call that waited for something.
    Answered(Judged),
    Batch(CheckBatch),
    Broken(Status),
    /// No more batches are to be taken.
    End,
}

impl<F: Filter, B: Stream<Item = Result<CheckBatch, Status>> + Unpin> Served<F, B> {
    /// The next message to the host; `None`: it was the last one.
    async fn next(&mut self) -> Option<Result<CheckBatchAnswer, Status>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(Ok(message));
            }
            if self.closing && self.waiting.is_empty() {
                return None;
            }
            match self.event().await {
                Event::Answered(answer) => {
                    let mut message = Outgoing::default();
                    message.push(answer);
                    while let Some(Ok(more)) = self.waiting.try_join_next() {
                        message.push(more);
                    }
                    message.finish(0, &mut self.ready);
                }
                Event::Batch(batch) => self.take(batch),
                Event::Broken(status) => return Some(Err(status)),
                Event::End => self.closing = true,
            }
        }
    }

    /// Waits for what happens next. Cancel safe.
    async fn event(&mut self) -> Event {
        let ended = async {
            // The sender is in `shared`, so waiting can't fail.
            self.ended.wait_for(|ended| *ended).await.ok();
        };
        tokio::select! {
            biased;
            // A panic was caught, and nobody aborts a task while the stream is there.
            Some(Ok(answer)) = self.waiting.join_next() => Event::Answered(answer),
            batch = self.batches.next(), if !self.closing && self.waiting.len() < MOST_WAITING => match batch {
                Some(Ok(batch)) => Event::Batch(batch),
                None => Event::End,
                Some(Err(status)) => Event::Broken(status),
            },
            () = ended, if !self.closing => Event::End,
            else => Event::End,
        }
    }

    /// Begins every call of a batch.
    fn take(&mut self, batch: CheckBatch) {
        let mut message = Outgoing::default();
        let config = self.shared.config_by_hash(&batch.config_hash);
        let came = Instant::now();
        let mut last = came;
        let mut spent = Spent::by_this_thread();
        let mut turn = Turn { began: came, most: TURN, spent };
        for call in batch.calls {
            let id = call.id;
            let config = match &config {
                Ok(config) => Arc::clone(config),
                Err(status) => {
                    message.push((failed(id, status), None));
                    continue;
                }
            };
            let deadline = came + Duration::from_micros(call.timeout_micros);
            if last >= deadline {
                message.push(late(id));
                continue;
            }
            let mut work = judge(Arc::clone(&self.filter), config, call).boxed();
            self.careful = self.careful.saturating_sub(1);
            let here = self.careful == 0 && turn.goes_on(last, Spent::by_this_thread);
            if here {
                let answer = work.as_mut().now_or_never();
                let now = Instant::now();
                if now.duration_since(last) > SLOW {
                    let before = std::mem::replace(&mut spent, Spent::by_this_thread());
                    if spent.held_its_thread(before, SLOW) {
                        self.careful = CAREFUL;
                    }
                }
                last = now;
                if let Some(answer) = answer {
                    message.push(answer);
                    turn.most += HAND_OVER;
                    continue;
                }
            }
            let shared = Arc::clone(&self.shared);
            self.waiting.spawn(async move {
                let work = async { if here { Some(work.await) } else { shared.aside.begin(work).await } };
                match tokio::time::timeout_at(deadline.into(), work).await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => (failed(id, &Status::unavailable("the plugin ends")), None),
                    Err(_) => late(id),
                }
            });
        }
        message.finish(1, &mut self.ready);
    }
}

/// In which calls are worked on one after the other.
struct Turn {
    began: Instant,
    most: Duration,
    /// By its thread, when it began.
    spent: Spent,
}

impl Turn {
    /// Whether there is time for one more call. It begins anew where others have had the core for most of it.
    fn goes_on(&mut self, now: Instant, spent: impl FnOnce() -> Spent) -> bool {
        if now.duration_since(self.began) < self.most {
            return true;
        }
        let spent = spent();
        if spent.held_its_thread(self.spent, self.most) {
            return false;
        }
        *self = Self { began: now, most: TURN, spent };
        true
    }
}

/// Answers on their way into messages.
#[derive(Default)]
struct Outgoing {
    full: VecDeque<CheckBatchAnswer>,
    message: CheckBatchAnswer,
    size: usize,
}

impl Outgoing {
    fn push(&mut self, (answer, config): Judged) {
        // A message has one configuration only.
        if let Some(config) = config.filter(|config| config.hash() != self.message.config_hash) {
            if !self.message.config_hash.is_empty() {
                self.full.push_back(std::mem::take(&mut self.message));
                self.size = 0;
            }
            config.hash().clone_into(&mut self.message.config_hash);
        }
        let size = answer.encoded_len();
        let answer = if size > MAX_ANSWER { too_large(answer, size) } else { answer };
        self.size += size.min(MAX_ANSWER);
        self.message.answers.push(answer);
        if self.size >= FULL {
            self.full.push_back(std::mem::take(&mut self.message));
            self.size = 0;
        }
    }

    fn finish(mut self, taken: u32, ready: &mut VecDeque<CheckBatchAnswer>) {
        ready.append(&mut self.full);
        self.message.taken = taken;
        if taken > 0 || !self.message.answers.is_empty() {
            ready.push_back(self.message);
        }
    }
}

/// One call, from the message to its answer.
async fn judge<F: Filter>(filter: Arc<F>, config: Arc<Config>, call: CheckCall) -> Judged {
    let id = call.id;
    let judged = guarded(async {
        match call.call {
            None => Err(Status::unimplemented("a call that this plugin does not know")),
            Some(check_call::Call::Request(call)) => {
                let request = call.request.ok_or_else(|| Status::invalid_argument("no request"))?;
                let verdict = filter.check_request(&request, &config).await.map_err(internal)?;
                Ok(Answer::Request(verdict))
            }
            Some(check_call::Call::Response(response)) => {
                let verdict = filter.check_response(&response, &config).await.map_err(internal)?;
                Ok(Answer::Response(verdict))
            }
        }
    });
    match judged.await {
        Ok(answer) => (CheckAnswer { id, answer: Some(answer) }, Some(config)),
        Err(status) => (failed(id, &status), None),
    }
}

/// What a filter says; a panic of its is an error. The panic itself is on stderr.
pub(super) async fn guarded<T>(judged: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let panicked = |_| Err(Status::internal("the filter panicked"));
    AssertUnwindSafe(judged).catch_unwind().await.unwrap_or_else(panicked)
}

fn late(id: u64) -> Judged {
    (failed(id, &Status::deadline_exceeded("the host waits no longer")), None)
}

/// What is sent in place of an answer that is too large: an error, but for a denial one without a reply, since an error
/// may let the request pass. It can't be sent to a client, as the large one can't, so the host refuses the request by
/// itself, whatever `on_failure` says.
fn too_large(mut answer: CheckAnswer, size: usize) -> CheckAnswer {
    let error = internal(format!("an answer of {size} bytes, at most {MAX_ANSWER}").into());
    let Some(
        Answer::Request(CheckRequestResponse { verdict: Some(Deny(reply)), .. })
        | Answer::Response(CheckResponseResponse { verdict: Some(Replace(reply)), .. }),
    ) = &mut answer.answer
    else {
        return failed(answer.id, &error);
    };
    *reply = Reply::default();
    answer
}

fn failed(id: u64, status: &Status) -> CheckAnswer {
    let code = match status.code() {
        Code::Ok => Code::Unknown,
        code => code,
    };
    let error = CheckError { code: code as u32, message: status.message().to_owned() };
    CheckAnswer { id, answer: Some(Answer::Error(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::HeaderMutation;

    #[test]
    fn of_answers_that_are_too_large_a_denial_stays_one_and_others_are_errors() {
        let sent = |answer| {
            let (mut message, mut ready) = (Outgoing::default(), VecDeque::new());
            message.push((CheckAnswer { id: 1, answer: Some(answer) }, None));
            message.finish(1, &mut ready);
            ready.pop_front().and_then(|mut message| message.answers.pop()).and_then(|sent| sent.answer)
        };
        let large = "x".repeat(MAX_ANSWER);
        let mutation = HeaderMutation::set("x-large", large.clone());
        let denied = CheckRequestResponse { verdict: Some(Deny(Reply::default())), ..CheckRequestResponse::default() };
        let denial = Answer::Request(CheckRequestResponse::deny(403, large.clone()));
        assert_eq!(sent(denial), Some(Answer::Request(denied)));
        let replacement = |reply| Answer::Response(CheckResponseResponse::replace(reply));
        assert_eq!(sent(replacement(Reply::text(403, large))), Some(replacement(Reply::default())));
        for changed in [
            Answer::Request(CheckRequestResponse::allow().mutate(mutation.clone())),
            Answer::Response(CheckResponseResponse::pass(vec![mutation])),
        ] {
            let Some(Answer::Error(error)) = sent(changed) else { panic!("it is no error") };
            assert_eq!(error.code, Code::Internal as u32);
        }
    }

    #[test]
    fn a_turn_is_over_when_its_thread_has_had_it() {
        let began = Instant::now();
        let at = |micros| began + Duration::from_micros(micros);
        let mut turn = Turn { began, most: TURN, spent: Spent::of(1_000, 1) };
        assert!(turn.goes_on(at(199), || Spent::of(9_000, 9)), "the clock says so");
        // The core was others'.
        assert!(turn.goes_on(at(5_000), || Spent::of(1_050, 1)));
        assert!(turn.goes_on(at(5_199), || Spent::of(9_000, 9)), "it has begun anew");
        assert!(!turn.goes_on(at(5_200), || Spent::of(1_251, 1)), "it has computed");
        assert!(!turn.goes_on(at(5_200), || Spent::of(1_051, 2)), "it has waited");
    }
}
