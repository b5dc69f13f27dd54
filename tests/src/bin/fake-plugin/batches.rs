//! Answers batches by hand, and wrongly where `x-fake` asks for it. What it says of itself stands in `x-stream`: which
//! of its streams a call came on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use palisade_plugin_proto::serve::Config;
use palisade_plugin_proto::v1::{
    CheckAnswer, CheckBatch, CheckBatchAnswer, CheckCall, CheckError, CheckRequestResponse, CheckResponseResponse,
    HeaderMutation, check_answer, check_call,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub(crate) type Answers = ReceiverStream<Result<CheckBatchAnswer, Status>>;

/// Serves one stream. `streams` counts them.
pub(crate) fn serve(mut batches: Streaming<CheckBatch>, streams: &AtomicU32, hash: Arc<Mutex<String>>) -> Answers {
    let stream = streams.fetch_add(1, Ordering::Relaxed) + 1;
    let (answers, outgoing) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok(Some(batch)) = batches.message().await {
            answers.send(Ok(CheckBatchAnswer { taken: 1, ..CheckBatchAnswer::default() })).await.unwrap();
            for call in batch.calls {
                let (answers, hash) = (answers.clone(), Arc::clone(&hash));
                tokio::spawn(async move { answer(call, stream, &answers, &hash).await });
            }
        }
    });
    ReceiverStream::new(outgoing)
}

/// Which configuration an answer comes of, as `x-fake` says.
pub(crate) fn said(what: &str, hash: &str) -> String {
    match what {
        "other-config" => "another".to_owned(),
        "no-config" => String::new(),
        _ => hash.to_owned(),
    }
}

async fn answer(
    call: CheckCall,
    stream: u32,
    answers: &mpsc::Sender<Result<CheckBatchAnswer, Status>>,
    hash: &Mutex<String>,
) {
    let id = call.id;
    let Some(check_call::Call::Request(asked)) = call.call else { return };
    let request = asked.request.unwrap();
    let what = request.header("x-fake").map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    let allow = || CheckRequestResponse::allow().mutate_response(HeaderMutation::set("x-stream", stream.to_string()));
    let allowed = |id| CheckAnswer { id, answer: Some(check_answer::Answer::Request(allow())) };
    let none = CheckAnswer { id, answer: None };
    let error = |code| check_answer::Answer::Error(CheckError { code, message: "asked to fail".to_owned() });
    let (said, taken) = match what.as_str() {
        "unknown" => (vec![allowed(id + (1 << 20))], 0),
        "zero" => (vec![allowed(0)], 0),
        "twice" => (vec![allowed(id), allowed(id)], 0),
        "taken" => (vec![allowed(id)], 7),
        "no-answer" => (vec![none], 0),
        "other-kind" => {
            let pass = check_answer::Answer::Response(CheckResponseResponse::pass(Vec::new()));
            (vec![CheckAnswer { id, answer: Some(pass) }], 0)
        }
        "code-0" => (vec![CheckAnswer { id, answer: Some(error(0)) }], 0),
        "code-8" => (vec![CheckAnswer { id, answer: Some(error(8)) }], 0),
        "end" if stream == 1 => {
            answers.send(Err(Status::unavailable("asked to end"))).await.unwrap();
            return;
        }
        "hang" => return,
        "late" => {
            crate::filter::await_file("go").await.unwrap();
            (vec![allowed(id)], 0)
        }
        _ => {
            let judged = crate::filter::judge(&request, &Config::default()).await.unwrap();
            let verdict = judged.mutate_response(HeaderMutation::set("x-stream", stream.to_string()));
            (vec![CheckAnswer { id, answer: Some(check_answer::Answer::Request(verdict)) }], 0)
        }
    };
    let config_hash = self::said(&what, &hash.lock().unwrap());
    // The host may have left the stream.
    let _left = answers.send(Ok(CheckBatchAnswer { answers: said, taken, config_hash })).await;
}
