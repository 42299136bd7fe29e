//! Decoding of requests and encoding of answers: single calls, batches, notifications.
//!
//! A request is decoded without a tree of values. One longer than [`SMALL_MAX`] must be a single message to send, which
//! bounds the memory of others.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::{Call, MethodId};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::task::{JoinError, JoinSet};

use super::authorizer::Caller;
use super::context::Dispatcher;
use super::disconnect::Disconnect;
use super::params::{Attached, Incoming};
use super::reply::Reply;
use hyphae_node::Delivery;

/// Longest request other than a single message, bytes.
pub(crate) const SMALL_MAX: usize = 1 << 20;
/// Longest request, bytes: a message of 64 MiB in base64, and its envelope.
pub(crate) const LARGE_MAX: usize = 96 << 20;
/// Most calls of a batch.
const BATCH_MAX: usize = 1000;
/// Bytes of answers after which the remaining calls of a batch are refused.
const BATCH_ANSWER_BYTES: usize = 4 << 20;
/// Concurrent waiting calls of a batch.
const BATCH_WAITS: usize = 64;

#[derive(Deserialize)]
struct RawCall<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "present")]
    id: Option<Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The answer to a call: [`hyphae_rpc::Response`] with an encoded result.
#[derive(Serialize)]
struct Response {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
    id: Value,
    #[serde(skip)]
    attached: Vec<Bytes>,
    /// Messages in the result.
    #[serde(skip)]
    delivery: Option<Delivery>,
}

impl Response {
    fn new(id: Value, reply: Result<Reply, Error>) -> Self {
        let (reply, error) = match reply {
            Ok(reply) => (Some(reply), None),
            Err(error) => (None, Some(error)),
        };
        let (result, attached, delivery) = match reply {
            Some(reply) => (Some(reply.result), reply.attached, reply.delivery),
            None => (None, Vec::new(), None),
        };
        Self {
            jsonrpc: "2.0",
            result,
            error,
            id,
            attached,
            delivery,
        }
    }

    fn bytes(&self) -> usize {
        self.result.as_ref().map_or(0, |result| result.get().len())
    }
}

/// Whether the caller of a request may call a method.
type Authorize<'a> = &'a dyn Fn(&str) -> Result<(), Error>;

/// One call of a request.
struct Item {
    call: Incoming,
    id: Option<Value>,
}

impl Item {
    fn may_wait(&self) -> bool {
        self.call.may_wait()
    }

    /// A short message to send, without a wait.
    fn is_push(&self) -> bool {
        matches!(&self.call.call, Ok(Call::PushMessage(params)) if !params.may_wait())
    }
}

/// A decoded request, which owns its content.
pub(crate) struct Parsed {
    shape: Shape,
    /// Whether the caller accepts bytes attached to an answer.
    attaches: bool,
}

/// The answer to a request.
pub(crate) struct Answer {
    pub(crate) json: Vec<u8>,
    /// Bytes that follow the JSON.
    pub(crate) attached: Vec<Bytes>,
    /// Messages that it delivers. They return to the inbox unless [`delivered`] is called.
    pub(crate) deliveries: Vec<Delivery>,
}

/// Completes deliveries after their answer was written.
pub(crate) async fn delivered(deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        delivery.written().await;
    }
}

impl From<Vec<u8>> for Answer {
    fn from(json: Vec<u8>) -> Self {
        Self {
            json,
            attached: Vec::new(),
            deliveries: Vec::new(),
        }
    }
}

enum Shape {
    One(Box<Result<Item, Error>>),
    Batch(Vec<Result<Item, Error>>),
}

impl Parsed {
    /// Reads a request.
    pub(crate) fn new(body: &[u8], authorize: Authorize<'_>) -> Self {
        Self {
            shape: Shape::new(body, Attached::default(), authorize),
            attaches: false,
        }
    }

    /// Reads a request with attached bytes; its answer may have some too.
    pub(crate) fn with(body: &[u8], attached: Attached, authorize: Authorize<'_>) -> Self {
        Self {
            shape: Shape::new(body, attached, authorize),
            attaches: true,
        }
    }

    /// Makes the calls. `None` if all are notifications, or the caller has disconnected, which cancels waits; other
    /// calls complete.
    pub(crate) async fn answer(
        self,
        to: &Arc<Dispatcher>,
        caller: &Caller,
        disconnect: &Disconnect,
    ) -> Option<Answer> {
        self.shape
            .answer(to, caller, disconnect, self.attaches)
            .await
    }
}

impl Shape {
    fn new(body: &[u8], attached: Attached, authorize: Authorize<'_>) -> Self {
        let body = body.trim_ascii();
        let large = body.len() > SMALL_MAX;
        if body.first() != Some(&b'[') {
            return Self::One(Box::new(read_call(body, large, attached, authorize)));
        }
        let refuse = |error| Self::One(Box::new(Err(error)));
        if !attached.bytes.is_empty() {
            return refuse(nothing_attached());
        }
        if large {
            return refuse(too_long());
        }
        match serde_json::from_slice::<Vec<&RawValue>>(body) {
            Err(error) => refuse(not_json(&error)),
            Ok(calls) if calls.is_empty() || calls.len() > BATCH_MAX => {
                let message = format!("a batch holds 1 to {BATCH_MAX} calls");
                refuse(Error::new(code::INVALID_REQUEST, message))
            }
            Ok(calls) => {
                let read = |call: &&RawValue| {
                    read_call(call.get().as_bytes(), false, Attached::default(), authorize)
                };
                Self::Batch(calls.iter().map(read).collect())
            }
        }
    }

    async fn answer(
        self,
        to: &Arc<Dispatcher>,
        caller: &Caller,
        disconnect: &Disconnect,
        attaches: bool,
    ) -> Option<Answer> {
        match self {
            Self::One(call) => {
                let response = answer_call(to, caller, disconnect, attaches, *call).await?;
                let json = text(serde_json::to_vec(&response));
                Some(Answer {
                    json,
                    attached: response.attached,
                    deliveries: response.delivery.into_iter().collect(),
                })
            }
            Self::Batch(calls) => {
                let responses = answer_batch(to, caller, disconnect, calls).await;
                (!responses.is_empty()).then(|| Answer {
                    json: text(serde_json::to_vec(&responses)),
                    attached: Vec::new(),
                    deliveries: responses.into_iter().filter_map(|it| it.delivery).collect(),
                })
            }
        }
    }
}

/// Makes the calls of a batch in order; one that may wait runs beside the others. Other tasks run between them.
async fn answer_batch(
    to: &Arc<Dispatcher>,
    caller: &Caller,
    disconnect: &Disconnect,
    calls: Vec<Result<Item, Error>>,
) -> Vec<Response> {
    let mut answers = Answers::default();
    let mut waiting = JoinSet::new();
    let mut calls = calls.into_iter().peekable();
    while let Some(call) = calls.next() {
        if answers.bytes > BATCH_ANSWER_BYTES {
            // Refused without an effect.
            answers.add(match call {
                Ok(call) => call.id.map(|id| Response::new(id, Err(over_answer()))),
                Err(error) => Some(Response::new(Value::Null, Err(error))),
            });
            continue;
        }
        let call = match call {
            Ok(call) if call.is_push() => {
                let mut run = vec![call];
                let push = |call: &Result<Item, Error>| call.as_ref().is_ok_and(Item::is_push);
                run.extend(std::iter::from_fn(|| calls.next_if(push)).flatten());
                for response in push_all(to, caller, run).await {
                    answers.add(response);
                }
                continue;
            }
            other => other,
        };
        if call.as_ref().is_ok_and(Item::may_wait) {
            if waiting.len() >= BATCH_WAITS {
                answers.fill(waiting.join_next().await);
            }
            let (to, caller, disconnect) = (Arc::clone(to), caller.clone(), disconnect.clone());
            let n = answers.reserve();
            waiting.spawn(
                async move { (n, answer_call(&to, &caller, &disconnect, false, call).await) },
            );
        } else {
            answers.add(answer_call(to, caller, disconnect, false, call).await);
            tokio::task::yield_now().await;
        }
    }
    while !waiting.is_empty() {
        answers.fill(waiting.join_next().await);
    }
    answers.responses.into_iter().flatten().collect()
}

/// Answers of a batch in the order of its calls.
#[derive(Default)]
struct Answers {
    responses: Vec<Option<Response>>,
    /// Total length of their results.
    bytes: usize,
}

impl Answers {
    fn add(&mut self, response: Option<Response>) {
        self.bytes += response.as_ref().map_or(0, Response::bytes);
        self.responses.push(response);
    }

    /// Reserves the place of a later answer.
    fn reserve(&mut self) -> usize {
        self.responses.push(None);
        self.responses.len() - 1
    }

    fn fill(&mut self, done: Option<Result<(usize, Option<Response>), JoinError>>) {
        if let Some(Ok((n, response))) = done {
            self.bytes += response.as_ref().map_or(0, Response::bytes);
            self.responses[n] = response;
        }
    }
}

fn over_answer() -> Error {
    let message = format!(
        "not called: the answers of this batch have {} MiB already; send it in another one",
        BATCH_ANSWER_BYTES >> 20
    );
    Error::new(code::BUSY, message).with_kind("batch_answer_limit")
}

/// The answer to a request that was not decoded.
pub(crate) fn refusal(error: Error) -> Vec<u8> {
    text(serde_json::to_vec(&Response::new(Value::Null, Err(error))))
}

/// Error for a request over [`LARGE_MAX`].
pub(crate) fn over_limit() -> Error {
    let message = format!(
        "the request is longer than {} MiB; a message has at most 64 MiB",
        LARGE_MAX >> 20
    );
    Error::new(code::INVALID_REQUEST, message)
}

fn too_long() -> Error {
    let message = format!(
        "a request longer than {} MiB must be one pushMessage or pushMessageReply",
        SMALL_MAX >> 20
    );
    Error::new(code::INVALID_REQUEST, message)
}

fn not_json(error: &serde_json::Error) -> Error {
    Error::new(code::PARSE, format!("not JSON: {error}"))
}

fn nothing_attached() -> Error {
    let message = "only pushMessages, not in a batch, takes attached bytes";
    Error::new(code::INVALID_REQUEST, message)
}

fn read_call(
    body: &[u8],
    large: bool,
    attached: Attached,
    authorize: Authorize<'_>,
) -> Result<Item, Error> {
    let raw: RawCall<'_> = serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            let message = format!("not a JSON-RPC 2.0 request: {error}");
            Error::new(code::INVALID_REQUEST, message)
        } else {
            not_json(&error)
        }
    })?;
    let id_fits = match &raw.id {
        None | Some(Value::Null | Value::Number(_) | Value::String(_)) => true,
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => false,
    };
    if raw.jsonrpc != "2.0" || !id_fits {
        let message = "not a JSON-RPC 2.0 request: jsonrpc is \"2.0\", id a number or string";
        return Err(Error::new(code::INVALID_REQUEST, message));
    }
    let id = hyphae_rpc::find(&raw.method).map(|method| method.id);
    let may_be_large = matches!(id, Some(MethodId::PushMessage | MethodId::PushMessageReply));
    let takes_attached = id == Some(MethodId::PushMessages) && !large;
    if !attached.bytes.is_empty() && !takes_attached {
        return Err(nothing_attached());
    }
    if large && !may_be_large {
        return Err(too_long());
    }
    let params = raw.params.map_or("", RawValue::get);
    Ok(Item {
        call: Incoming {
            attached,
            ..Incoming::read(&raw.method, params, authorize)
        },
        id: raw.id,
    })
}

/// Sends consecutive messages of a batch with one request to the engine.
async fn push_all(
    to: &Arc<Dispatcher>,
    caller: &Caller,
    calls: Vec<Item>,
) -> Vec<Option<Response>> {
    let (mut ids, mut messages) = (Vec::new(), Vec::new());
    for call in calls {
        ids.push(call.id);
        if let Ok(Call::PushMessage(params)) = call.call.call {
            messages.push(params);
        }
    }
    let results = to.push_all(caller, messages).await;
    let responses = ids.into_iter().zip(results);
    responses
        .map(|(id, result)| id.map(|id| Response::new(id, result.map(Reply::from))))
        .collect()
}

/// `None` for a notification, and when the caller has disconnected during a wait.
async fn answer_call(
    to: &Arc<Dispatcher>,
    caller: &Caller,
    disconnect: &Disconnect,
    attaches: bool,
    call: Result<Item, Error>,
) -> Option<Response> {
    let call = match call {
        Err(error) => return Some(Response::new(Value::Null, Err(error))),
        Ok(call) => call,
    };
    let waits = call.may_wait();
    let made = make_call(to, caller, attaches, call);
    if !waits {
        return made.await;
    }
    tokio::select! {
        response = made => response,
        () = disconnect.happened() => None,
    }
}

async fn make_call(
    to: &Arc<Dispatcher>,
    caller: &Caller,
    attaches: bool,
    Item { call, id }: Item,
) -> Option<Response> {
    if id.is_none() && call.delivers() {
        // Without an answer the messages would be lost.
        return None;
    }
    let result = to.call(caller, call, attaches).await;
    id.map(|id| Response::new(id, result))
}

fn text(json: serde_json::Result<Vec<u8>>) -> Vec<u8> {
    // Encoding does not fail: responses have string keys and finite numbers.
    json.unwrap_or_else(|error| {
        tracing::error!(%error, "a response was not written");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_not_parsed_for_a_caller_that_is_not_authorized() {
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"addPeer","params":[[]]}"#;
        let batch = format!("[{call},{call}]");
        let codes = |body: &str, authorize: Authorize<'_>| -> Vec<_> {
            let calls = match Shape::new(body.as_bytes(), Attached::default(), authorize) {
                Shape::One(call) => vec![*call],
                Shape::Batch(calls) => calls,
            };
            let code = |item: Result<Item, Error>| item.unwrap().call.call.unwrap_err().code;
            calls.into_iter().map(code).collect()
        };
        let denied = |method: &str| {
            assert_eq!(method, "addPeer");
            Err(Error::new(code::DENIED, ""))
        };
        assert_eq!(codes(call, &denied), [code::DENIED]);
        assert_eq!(codes(&batch, &denied), [code::DENIED; 2]);
        assert_eq!(codes(&batch, &|_| Ok(())), [code::INVALID_PARAMS; 2]);
    }
}
