//! What comes of calls, whatever a plugin answers. For the fuzz target and its short form.

use futures_util::FutureExt;

use super::*;
use crate::plugin::grpc::{Messages, in_pieces, read_one};

/// Takes any bytes for answers that come in pieces of `size` bytes, to a call by itself and to four in a batch.
pub(crate) fn judge_answers(bytes: &Bytes, size: usize) {
    const MOST: usize = 1 << 16;
    if let Some(Ok(message)) = read_one(in_pieces(bytes, size), MOST, "test").now_or_never() {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        assert_eq!(bytes, &[&[0][..], &length, &message].concat());
    }

    let generation = Generation { hash: "hash".into(), may_be_silent: false };
    let shared = Shared { generation, bounds: Bounds::new(0, false), ends_late: true, state: Mutex::default() };
    let mut state = shared.state();
    state.open = true;
    let deadline = Instant::now();
    let asked = [Kind::Request, Kind::Response, Kind::Request, Kind::Response].map(|kind| {
        let (waiter, answer) = oneshot::channel();
        let id = state.place(kind, deadline, waiter).unwrap_or_default();
        state.pending.push_back(Pending { id, kind, deadline, message: Vec::new() });
        (kind, answer)
    });
    assert!(state.batch(&shared).is_some());
    let exchange = async {
        let mut messages = Messages::of(in_pieces(bytes, size), MOST, "test")?;
        while let Some(message) = messages.next().await? {
            let message = codec::read_answers(message, state.unanswered()).map_err(CallError::Unreadable)?;
            state.take_in(message, &shared)?;
            let waiting = state.slots.iter().filter(|slot| slot.waiter.is_some()).count();
            assert_eq!((state.sent, state.abandoned), (waiting, 0));
            assert!(state.untaken <= 1);
        }
        Ok::<_, CallError>(())
    };
    // Nothing of it has to be waited for.
    let ended = exchange.now_or_never().unwrap_or(Err(CallError::Timeout));
    assert_ne!(ended, Err(CallError::Timeout));
    state.broken(&CallError::Lost("the end".to_owned()), &shared.bounds);
    for (kind, mut answer) in asked {
        match answer.try_recv() {
            Ok(Ok(check_answer::Answer::Request(_))) => assert_eq!(kind, Kind::Request),
            Ok(Ok(check_answer::Answer::Response(_))) => assert_eq!(kind, Kind::Response),
            Ok(Ok(answer)) => unreachable!("{answer:?}"),
            Ok(Err(_)) => {}
            Err(error) => unreachable!("a call has no end: {error}"),
        }
    }
}
