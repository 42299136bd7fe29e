//! Messages: sending, taking out of the inbox, and calls of other nodes' methods by message.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyphae_bus::topics::ADMIN_TOPIC;
use hyphae_bus::{
    AbortReason, Destination, Inbound, MessageId, MessageInfo, MessageState, Outgoing, Room, Topic,
};
use hyphae_rpc::Base64;
use hyphae_rpc::message::{Error, Request, Response, code};
use hyphae_rpc::method::{
    self, BusCallParams, IncomingMessage, MessageIdParams, OutgoingMessage, PopMessageParams,
    PopMessagesParams, PushMessageParams, PushMessageReplyParams, PushMessageResult,
    PushMessagesParams,
};
use hyphae_wire::{Nanos, PublicKey};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::dispatch::{Dispatcher, public_key, seconds, yes};
use super::envelope::Attached;
use super::methods::{Outcome, overlay_address, value};
use super::topics::{any_topic, destination, reserved};
use crate::bus::{BusError, ReplyOutcome};
use crate::pump;

/// Messages that one `popMessages` returns at most, and their bytes unless the first has more.
const POP_MAX: usize = 1000;
const POP_BYTES: usize = 1 << 20;
/// Messages that one `pushMessages` takes at most.
const PUSH_MAX: usize = 1000;

/// A result, and bytes that follow it.
pub(crate) type Popped = (Box<RawValue>, Vec<Bytes>);

impl Dispatcher {
    pub(super) async fn push_message(&self, params: PushMessageParams) -> Outcome {
        let wait = params.reply_timeout.map(seconds);
        let message = outgoing(params.message, wait)?;
        if message.topic.is_admin() {
            return Err(reserved(code::PUSH_REFUSED));
        }
        let Some(wait) = wait else {
            let id = self.bus.push(message).await.map_err(refused)?;
            return value(PushMessageResult::Id { id: id.to_string() });
        };
        let _room = self.wait()?;
        match self.bus.request(message, wait).await.map_err(refused)? {
            (_, ReplyOutcome::Reply(reply)) => {
                let reply = self.incoming(*reply);
                value(PushMessageResult::Reply(Box::new(reply)))
            }
            (id, ReplyOutcome::TimedOut) => value(PushMessageResult::Id { id: id.to_string() }),
            (id, ReplyOutcome::Aborted(reason)) => Err(undelivered(id, reason)),
        }
    }

    /// Sends several, of which no reply is waited for; an answer for each.
    pub(super) async fn push_messages(&self, calls: Vec<PushMessageParams>) -> Vec<Outcome> {
        let (mut results, mut messages): (Vec<Option<Outcome>>, Vec<_>) = Default::default();
        for params in calls {
            let refusal = match outgoing(params.message, None) {
                Ok(message) if message.topic.is_admin() => Some(reserved(code::PUSH_REFUSED)),
                Ok(message) => {
                    messages.push(message);
                    None
                }
                Err(error) => Some(error),
            };
            results.push(refusal.map(Err));
        }
        let mut pushed = match self.bus.push_all(messages).await {
            Ok(pushed) => pushed.into_iter(),
            Err(error) => {
                let error = refused(error);
                let failed = |result: Option<Outcome>| result.unwrap_or(Err(error.clone()));
                return results.into_iter().map(failed).collect();
            }
        };
        let mut next = || match pushed.next() {
            Some(Ok(id)) => value(PushMessageResult::Id { id: id.to_string() }),
            Some(Err(error)) => Err(refused(error.into())),
            None => Err(refused(BusError::Stopping)),
        };
        let filled = results
            .into_iter()
            .map(|result| result.unwrap_or_else(&mut next));
        filled.collect()
    }

    /// Sends several to one node; `attached` is what followed the request.
    pub(super) async fn push_list(
        &self,
        params: PushMessagesParams,
        attached: Attached,
    ) -> Outcome {
        let payloads = payloads(params.payloads, &params.attached, &attached.bytes)?;
        let digest = attached
            .digest
            .filter(|_| payloads.len() == 1)
            .map(|it| *it);
        let destination = destination(&params.dst)?;
        let topic = topic(params.topic)?;
        if topic.is_admin() {
            return Err(reserved(code::PUSH_REFUSED));
        }
        let message = |payload| Outgoing {
            destination,
            topic: topic.clone(),
            payload,
            digest,
            try_for: None,
            reply_within: None,
        };
        let messages = payloads.into_iter().map(message).collect();
        let pushed = self.bus.push_all(messages).await.map_err(refused)?;
        let mut result = Pushed::default();
        for pushed in pushed {
            match pushed {
                Ok(id) => result.ids.push(id),
                Err(error) if result.ids.is_empty() => return Err(refused(error.into())),
                Err(error) => {
                    result.refused = Some(error.to_string());
                    break;
                }
            }
        }
        value(result)
    }

    pub(super) async fn push_reply(&self, params: PushMessageReplyParams) -> Outcome {
        let id = message_id(&params.id, code::BAD_ID)?;
        let message = outgoing(params.message, None)?;
        self.bus.reply(id, message).await.map_err(refused)?;
        yes()
    }

    pub(super) async fn pop_message(&self, params: PopMessageParams) -> Outcome {
        let topic = params.topic.as_deref();
        let topic = topic
            .map(|text| any_topic(text, code::BAD_TOPIC_FILTER))
            .transpose()?;
        if topic.as_ref().is_some_and(Topic::is_admin) {
            return Err(reserved(code::BAD_TOPIC_FILTER));
        }
        let wait = params.timeout.filter(|wait| *wait > 0).map(seconds);
        let _room = wait.map(|_| self.wait()).transpose()?;
        let found = if params.peek == Some(true) {
            self.bus.peek(topic, wait).await
        } else {
            self.bus.pop(topic, wait).await
        };
        let found = found.map_err(refused)?;
        value(found.map(|inbound| self.incoming(inbound)))
    }

    pub(super) async fn pop_messages(&self, params: PopMessagesParams) -> Outcome {
        if params.attach == Some(true) {
            let message = "attach needs a newline-delimited connection, and no batch";
            return Err(Error::new(code::INVALID_PARAMS, message));
        }
        let found = self.pop_list(params).await?;
        let mut names = Names::default();
        let shown = found.into_iter().map(|inbound| {
            let source = names.of(inbound.source_key);
            self.shown(inbound, &source)
        });
        value(shown.collect::<Vec<_>>())
    }

    /// The same, with payloads apart.
    pub(super) async fn pop_attached(&self, params: PopMessagesParams) -> Result<Popped, Error> {
        let found = self.pop_list(params).await?;
        let mut names = Names::default();
        let sources = found.iter().map(|inbound| names.of(inbound.source_key));
        let sources: Vec<_> = sources.collect();
        let shown = found
            .iter()
            .zip(&sources)
            .map(|(inbound, source)| Attachment {
                id: inbound.id,
                src_ip: &source.0,
                src_pk: &source.1,
                topic: shown_topic(&inbound.topic),
                attached: inbound.payload.len(),
            });
        let shown = value(shown.collect::<Vec<_>>())?;
        Ok((
            shown,
            found.into_iter().map(|inbound| inbound.payload).collect(),
        ))
    }

    async fn pop_list(&self, params: PopMessagesParams) -> Result<Vec<Inbound>, Error> {
        let topic = params.topic.as_deref();
        let topic = topic
            .map(|text| any_topic(text, code::BAD_TOPIC_FILTER))
            .transpose()?;
        if topic.as_ref().is_some_and(Topic::is_admin) {
            return Err(reserved(code::BAD_TOPIC_FILTER));
        }
        let most = Room {
            messages: usize::try_from(params.count).map_or(POP_MAX, |count| count.min(POP_MAX)),
            bytes: POP_BYTES,
        };
        if most.messages == 0 {
            let message = "count is 1 or more";
            return Err(Error::new(code::INVALID_PARAMS, message));
        }
        let wait = params.timeout.filter(|wait| *wait > 0).map(seconds);
        let _room = wait.map(|_| self.wait()).transpose()?;
        self.bus.pop_many(topic, most, wait).await.map_err(refused)
    }

    pub(super) async fn message_info(&self, params: MessageIdParams) -> Outcome {
        let id = message_id(&params.id, code::BAD_INFO_ID)?;
        let info = self.bus.info(id).await.map_err(refused)?.ok_or_else(|| {
            Error::new(
                code::NO_MESSAGE,
                format!("no message {id} was sent, or long ago"),
            )
        })?;
        value(shown(&info))
    }

    pub(super) async fn bus_call(&self, params: BusCallParams) -> Outcome {
        if !self.bus_call {
            let message = "admin.busCall is switched off (admin.bus_call of the configuration)";
            return Err(Error::new(code::DENIED, message).with_kind("bus_call_off"));
        }
        let destination = match (&params.dst_pubkey, &params.dst_ip) {
            (Some(key), None) => Destination::Key(public_key(key)?),
            (None, Some(ip)) => Destination::Address(overlay_address(ip)?),
            (Some(key), Some(ip)) => {
                let key = public_key(key)?;
                if key.address().subnet() != overlay_address(ip)?.subnet() {
                    let message = "dst_pubkey and dst_ip are not of the same node";
                    return Err(Error::new(code::INVALID_PARAMS, message));
                }
                Destination::Key(key)
            }
            (None, None) => {
                let message = "dst_pubkey or dst_ip is needed";
                return Err(Error::new(code::INVALID_PARAMS, message));
            }
        };
        let wait = params.timeout();
        let request = Request {
            jsonrpc: "2.0".to_owned(),
            method: params.method,
            params: params.params,
            id: Some(params.id.unwrap_or(Value::from(1))),
        };
        let internal = |error: serde_json::Error| Error::new(code::INTERNAL, error.to_string());
        let payload = serde_json::to_vec(&request).map_err(internal)?;
        let _room = self.wait()?;
        let message = Outgoing {
            destination,
            topic: Topic::new(ADMIN_TOPIC.as_bytes())
                .map_err(|error| Error::new(code::INTERNAL, error.to_string()))?,
            payload: payload.into(),
            digest: None,
            try_for: Some(wait),
            reply_within: Some(wait),
        };
        let (id, outcome) = self.bus.request(message, wait).await.map_err(refused)?;
        let reply = match outcome {
            ReplyOutcome::Reply(reply) => reply,
            ReplyOutcome::TimedOut => {
                let message = format!("no answer to message {id} within {} s", wait.as_secs());
                return Err(Error::new(code::REPLY_EMPTY, message));
            }
            ReplyOutcome::Aborted(reason) => return Err(undelivered(id, reason)),
        };
        let response: Response = serde_json::from_slice(&reply.payload).map_err(|error| {
            let message = format!("the answer is not a JSON-RPC response: {error}");
            Error::new(code::REPLY_EMPTY, message)
        })?;
        value(response)
    }

    fn incoming(&self, inbound: Inbound) -> IncomingMessage {
        let source = Names::default().of(inbound.source_key);
        self.shown(inbound, &source)
    }

    fn shown(&self, inbound: Inbound, source: &(String, String)) -> IncomingMessage {
        IncomingMessage {
            id: inbound.id.to_string(),
            src_ip: source.0.clone(),
            src_pk: source.1.clone(),
            dst_ip: self.shown.0.clone(),
            dst_pk: self.shown.1.clone(),
            topic: shown_topic(&inbound.topic),
            payload: Base64(inbound.payload.into()),
        }
    }
}

/// [`method::PushMessagesResult`], of ids that are not text yet.
#[derive(Default, Serialize)]
struct Pushed {
    ids: Vec<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

/// [`method::AttachedMessage`], of parts that live elsewhere.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attachment<'a> {
    id: MessageId,
    src_ip: &'a str,
    src_pk: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<Base64>,
    attached: usize,
}

/// Address and key of the last sender as text: messages that are taken out together mostly have one.
#[derive(Default)]
struct Names(Option<(PublicKey, Arc<(String, String)>)>);

impl Names {
    fn of(&mut self, key: PublicKey) -> Arc<(String, String)> {
        let known = self.0.take().filter(|(known, _)| *known == key);
        let make = || Arc::new((key.address().to_string(), key.to_string()));
        let (_, names) = known.unwrap_or_else(|| (key, make()));
        self.0 = Some((key, Arc::clone(&names)));
        names
    }
}

fn shown_topic(topic: &Topic) -> Option<Base64> {
    let bytes = topic.as_bytes();
    (!bytes.is_empty()).then(|| Base64::from(bytes))
}

/// The payloads of `pushMessages`, wherever they are.
fn payloads(inline: Vec<Base64>, lengths: &[u64], attached: &Bytes) -> Result<Vec<Bytes>, Error> {
    let wrong = |message: String| Err(Error::new(code::INVALID_PARAMS, message));
    let payloads: Vec<Bytes> = match (inline.is_empty(), lengths) {
        (false, []) if attached.is_empty() => inline.into_iter().map(|p| p.0.into()).collect(),
        (true, [_]) if lengths == [attached.len() as u64] => vec![attached.clone()],
        (true, [_, ..]) => {
            let mut rest = &attached[..];
            let mut take = |len: &u64| {
                let at = usize::try_from(*len).ok().filter(|at| *at <= rest.len())?;
                let (payload, behind) = rest.split_at(at);
                rest = behind;
                // Each on its own: one that waits must not keep all of them in memory.
                Some(Bytes::copy_from_slice(payload))
            };
            let all: Option<Vec<_>> = lengths.iter().map(&mut take).collect();
            match all {
                Some(all) if rest.is_empty() => all,
                Some(_) | None => {
                    let come = attached.len();
                    return wrong(format!(
                        "{come} bytes are attached, which 'attached' contradicts"
                    ));
                }
            }
        }
        _ => return wrong("either 'payloads' or 'attached' names one message or more".to_owned()),
    };
    if payloads.len() > PUSH_MAX {
        return wrong(format!("at most {PUSH_MAX} messages are taken at once"));
    }
    Ok(payloads)
}

fn topic(given: Option<Base64>) -> Result<Topic, Error> {
    let topic = Topic::new(given.map(|topic| topic.0).unwrap_or_default());
    topic.map_err(|error| Error::new(code::PUSH_REFUSED, error.to_string()))
}

fn outgoing(message: OutgoingMessage, reply_within: Option<Duration>) -> Result<Outgoing, Error> {
    Ok(Outgoing {
        destination: destination(&message.dst)?,
        topic: topic(message.topic)?,
        payload: message.payload.0.into(),
        digest: None,
        try_for: None,
        reply_within,
    })
}

fn message_id(text: &str, code: i64) -> Result<MessageId, Error> {
    text.parse()
        .map_err(|e: hyphae_bus::InvalidMessageId| Error::new(code, e.to_string()))
}

fn refused(error: BusError) -> Error {
    let code = match &error {
        BusError::Push(_) => code::PUSH_REFUSED,
        BusError::Busy => code::BUSY,
        BusError::Inbox(_) => code::PERSIST_FAILED,
        BusError::Stopping => code::REPLY_CLOSED,
    };
    Error::new(code, error.to_string())
}

fn undelivered(id: MessageId, reason: AbortReason) -> Error {
    let message = format!("message {id} was not delivered: {reason}");
    Error::new(code::PUSH_REFUSED, message).with_kind(reason.name())
}

fn shown(info: &MessageInfo) -> method::MessageInfo {
    let state = match info.state {
        MessageState::Pending => method::MessageState::Pending,
        MessageState::Sending => method::MessageState::Sending {
            pending: info.progress.pending.into(),
            sent: info.progress.sent.into(),
            acked: info.progress.acknowledged.into(),
        },
        MessageState::Received => method::MessageState::Received,
        MessageState::Read => method::MessageState::Read,
        MessageState::Aborted => method::MessageState::Aborted,
    };
    method::MessageInfo {
        dst: info.destination.address().to_string(),
        state,
        created: unix(info.created),
        deadline: unix(info.deadline),
        msg_len: u64::try_from(info.len).unwrap_or(u64::MAX),
        reason: info.reason.map(|reason| reason.name().to_owned()),
    }
}

/// A time of the monotonic clock, as seconds since 1970.
fn unix(at: Nanos) -> i64 {
    let now = pump::now();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let then = (wall + at.since(now)).saturating_sub(now.since(at));
    i64::try_from(then.as_secs()).unwrap_or(i64::MAX)
}
