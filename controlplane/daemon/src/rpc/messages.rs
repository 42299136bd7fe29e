//! Messages: sending, taking out of the inbox, and calls of other nodes' methods by message.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyphae_bus::topics::ADMIN_TOPIC;
use hyphae_bus::{
    AbortReason, Destination, Inbound, MessageId, MessageInfo, MessageState, Outgoing,
    ReplyFailure, Room, Topic,
};
use hyphae_rpc::Base64;
use hyphae_rpc::message::{Error, Request, Response, code};
use hyphae_rpc::method::{
    self, BusCallParams, ExtendMessagesParams, InboxList, IncomingMessage, LeaseResult,
    ListMessagesParams, ListedMessage, MessageIdParams, OutgoingMessage, PopMessageParams,
    PopMessagesParams, PushMessageParams, PushMessageReplyParams, PushMessageResult,
    PushMessagesParams, TokensParams,
};
use hyphae_time::Nanos;

use hyphae_wire::PublicKey;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::dispatch::{Dispatcher, public_key, seconds, yes};
use super::envelope::Attached;
use super::methods::{Outcome, overlay_address, value};
use super::topics::{any_topic, destination, reserved};
use crate::node::services::bus::{BusError, Delivery, Handed, Note, ReplyOutcome, Token};
use hyphae_store::inbox::{MessageNumber, ONE};

/// Messages that one `popMessages` returns at most, and their bytes unless the first has more.
const POP_MAX: usize = 1000;
const POP_BYTES: usize = 1 << 20;
/// Messages that one `pushMessages` takes at most.
const PUSH_MAX: usize = 1000;

/// Tokens that one call names at most.
const TOKENS_MAX: usize = 1000;
/// Messages that one `listMessages` shows at most, and if nothing is said.
const LIST_MAX: u32 = 1000;
const LIST_DEFAULT: u32 = 100;
/// Longest lease.
const LEASE_MAX: u64 = 3600;

/// A result that hands out messages.
pub(crate) struct Popped {
    pub(crate) result: Box<RawValue>,
    /// Bytes that follow it.
    pub(crate) attached: Vec<Bytes>,
    /// What it hands out.
    pub(crate) delivery: Option<Delivery>,
}

impl Dispatcher {
    pub(super) async fn push_message(&self, params: PushMessageParams) -> Outcome {
        let wait = params.reply_timeout.map(seconds);
        let message = outgoing(params.message, wait)?;
        if message.topic.is_admin() {
            return Err(reserved(code::PUSH_REFUSED));
        }
        let room_wait = params.wait.map(seconds);
        let _room = (wait.is_some() || room_wait.is_some()).then(|| self.wait());
        let _room = _room.transpose()?;
        let Some(wait) = wait else {
            let id = match room_wait {
                None => self.bus.push(message).await.map_err(refused)?,
                Some(room) => {
                    let pushed = self.bus.push_waiting(vec![message], room).await;
                    let pushed = pushed.map_err(refused)?.pop();
                    let pushed = pushed.ok_or_else(|| refused(BusError::Stopping))?;
                    pushed.map_err(|error| refused(error.into()))?
                }
            };
            return value(PushMessageResult::Id { id: id.to_string() });
        };
        let outcome = match room_wait {
            None => self.bus.request(message, wait).await,
            Some(room) => self.bus.request_waiting(message, wait, room).await,
        };
        match outcome.map_err(refused)? {
            (_, ReplyOutcome::Reply(reply)) => {
                let reply = self.incoming(*reply);
                value(PushMessageResult::Reply(Box::new(reply)))
            }
            (id, ReplyOutcome::TimedOut) => value(PushMessageResult::Id { id: id.to_string() }),
            (id, ReplyOutcome::Failed(failure)) => Err(unanswered(id, failure)),
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
        let mut pushed = match self.bus.push_all(messages, false).await {
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
            failure: None,
        };
        let messages = payloads.into_iter().map(message).collect();
        let pushed = match params.wait.map(seconds) {
            None => self.bus.push_all(messages, true).await,
            Some(wait) => {
                let _room = self.wait()?;
                self.bus.push_waiting(messages, wait).await
            }
        };
        let pushed = pushed.map_err(refused)?;
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
        let replied = match params.ack.as_deref().map(token).transpose()? {
            None => self.bus.reply(id, message).await,
            Some(token) => self.bus.reply_leased(id, message, token).await,
        };
        replied.map_err(refused)?;
        yes()
    }

    pub(super) async fn pop_message(&self, params: PopMessageParams) -> Result<Popped, Error> {
        let topic = topic_filter(params.topic.as_deref())?;
        let wait = params.timeout.filter(|wait| *wait > 0).map(seconds);
        let _room = wait.map(|_| self.wait()).transpose()?;
        let (message, delivery) = if params.peek == Some(true) {
            let found = self.bus.peek(topic, wait).await.map_err(refused)?;
            (found.map(|inbound| self.incoming(inbound)), None)
        } else {
            let handed = self.bus.pop(topic, ONE, wait, None).await;
            let Handed { messages, delivery } = match handed.map_err(refused)? {
                Some(handed) => handed,
                None => return Popped::nothing(value(None::<IncomingMessage>)?),
            };
            let shown = messages.into_iter().next().map(|(inbound, note)| {
                let source = Names::default().of(inbound.source_key);
                self.shown(inbound, &source, Some(note))
            });
            (shown, Some(delivery))
        };
        Ok(Popped {
            result: value(message)?,
            attached: Vec::new(),
            delivery,
        })
    }

    /// `attach`: payloads may follow the result.
    pub(super) async fn pop_messages(
        &self,
        params: PopMessagesParams,
        attach: bool,
    ) -> Result<Popped, Error> {
        let apart = params.attach == Some(true);
        if apart && !attach {
            let message = "attach needs a newline-delimited connection, and no batch";
            return Err(Error::new(code::INVALID_PARAMS, message));
        }
        let Some(Handed { messages, delivery }) = self.pop_list(params).await? else {
            return Popped::nothing(value([(); 0])?);
        };
        let (result, attached) = if apart {
            shown_apart(messages)?
        } else {
            let mut names = Names::default();
            let shown = messages.into_iter().map(|(inbound, note)| {
                let source = names.of(inbound.source_key);
                self.shown(inbound, &source, Some(note))
            });
            (value(shown.collect::<Vec<_>>())?, Vec::new())
        };
        Ok(Popped {
            result,
            attached,
            delivery: Some(delivery),
        })
    }

    async fn pop_list(&self, params: PopMessagesParams) -> Result<Option<Handed>, Error> {
        let topic = topic_filter(params.topic.as_deref())?;
        let most = Room {
            messages: usize::try_from(params.count).map_or(POP_MAX, |count| count.min(POP_MAX)),
            bytes: POP_BYTES,
        };
        if most.messages == 0 {
            let message = "count is 1 or more";
            return Err(Error::new(code::INVALID_PARAMS, message));
        }
        let lease = params.lease.map(lease).transpose()?;
        let wait = params.timeout.filter(|wait| *wait > 0).map(seconds);
        let _room = wait.map(|_| self.wait()).transpose()?;
        let handed = self.bus.pop(topic, most, wait, lease).await;
        handed.map_err(refused)
    }

    pub(super) async fn ack_messages(&self, params: TokensParams) -> Outcome {
        let tokens = tokens(&params.tokens)?;
        let ended = self.bus.acknowledge(&tokens).await;
        lease_result(&tokens, ended.map_err(|error| refused(error.into()))?)
    }

    pub(super) fn extend_messages(&self, params: ExtendMessagesParams) -> Outcome {
        let (tokens, time) = (tokens(&params.tokens)?, lease(params.lease)?);
        lease_result(&tokens, self.bus.extend(&tokens, time))
    }

    pub(super) fn return_messages(&self, params: TokensParams) -> Outcome {
        let tokens = tokens(&params.tokens)?;
        lease_result(&tokens, self.bus.give_back(&tokens))
    }

    pub(super) async fn list_messages(&self, params: ListMessagesParams) -> Outcome {
        let topic = topic_filter(params.topic.as_deref())?;
        let count = params.count.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
        let after = MessageNumber(params.after.unwrap_or_default());
        let count = usize::try_from(count).unwrap_or_default();
        let listing = self.bus.list(topic, after, count).await.map_err(refused)?;
        let shown = |listed: hyphae_store::inbox::Listed| ListedMessage {
            number: listed.number.0,
            id: listed.key.id.to_string(),
            src_ip: listed.source_address.to_string(),
            src_pk: listed.key.peer.to_string(),
            topic: shown_topic(&listed.topic),
            msg_len: listed.len,
            deliveries: listed.deliveries,
            handed_out: listed.handed_out,
        };
        value(InboxList {
            total: listing.messages,
            bytes: listing.bytes,
            handed_out: listing.handed_out,
            messages: listing.entries.into_iter().map(shown).collect(),
        })
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
            failure: None,
        };
        let (id, outcome) = self.bus.request(message, wait).await.map_err(refused)?;
        let reply = match outcome {
            ReplyOutcome::Reply(reply) => reply,
            ReplyOutcome::TimedOut => {
                let message = format!("no answer to message {id} within {} s", wait.as_secs());
                return Err(Error::new(code::REPLY_EMPTY, message));
            }
            ReplyOutcome::Failed(failure) => return Err(unanswered(id, failure)),
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
        self.shown(inbound, &source, None)
    }

    fn shown(
        &self,
        inbound: Inbound,
        source: &(String, String),
        note: Option<Note>,
    ) -> IncomingMessage {
        IncomingMessage {
            id: inbound.id.to_string(),
            src_ip: source.0.clone(),
            src_pk: source.1.clone(),
            dst_ip: self.shown.0.clone(),
            dst_pk: self.shown.1.clone(),
            topic: shown_topic(&inbound.topic),
            payload: Base64(inbound.payload.into()),
            deliveries: note.and_then(shown_deliveries),
            lease: note
                .and_then(|note| note.token)
                .map(|token| token.to_string()),
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
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
}

impl Popped {
    fn nothing(result: Box<RawValue>) -> Result<Self, Error> {
        Ok(Self {
            result,
            attached: Vec::new(),
            delivery: None,
        })
    }
}

/// A list of messages, and their payloads.
fn shown_apart(messages: Vec<(Inbound, Note)>) -> Result<(Box<RawValue>, Vec<Bytes>), Error> {
    let mut names = Names::default();
    let sources = messages
        .iter()
        .map(|(inbound, _)| names.of(inbound.source_key));
    let sources: Vec<_> = sources.collect();
    let shown = messages
        .iter()
        .zip(&sources)
        .map(|((inbound, note), source)| Attachment {
            id: inbound.id,
            src_ip: &source.0,
            src_pk: &source.1,
            topic: shown_topic(&inbound.topic),
            attached: inbound.payload.len(),
            deliveries: shown_deliveries(*note),
            lease: note.token.map(|token| token.to_string()),
        });
    let shown = value(shown.collect::<Vec<_>>())?;
    Ok((
        shown,
        messages
            .into_iter()
            .map(|(inbound, _)| inbound.payload)
            .collect(),
    ))
}

/// What everybody expects is not said: once, and for good.
fn shown_deliveries(note: Note) -> Option<u32> {
    (note.token.is_some() || note.deliveries > 1).then_some(note.deliveries)
}

fn topic_filter(text: Option<&str>) -> Result<Option<Topic>, Error> {
    let topic = text
        .map(|text| any_topic(text, code::BAD_TOPIC_FILTER))
        .transpose()?;
    if topic.as_ref().is_some_and(Topic::is_admin) {
        return Err(reserved(code::BAD_TOPIC_FILTER));
    }
    Ok(topic)
}

fn lease(seconds: u64) -> Result<Duration, Error> {
    if (1..=LEASE_MAX).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let message = format!("a lease is 1 to {LEASE_MAX} seconds, not {seconds}");
    Err(Error::new(code::INVALID_PARAMS, message))
}

fn token(text: &str) -> Result<Token, Error> {
    let read = text.parse::<Token>();
    read.map_err(|error| Error::new(code::INVALID_PARAMS, error.to_string()))
}

fn tokens(texts: &[String]) -> Result<Vec<Token>, Error> {
    if texts.is_empty() || texts.len() > TOKENS_MAX {
        let message = format!("tokens names 1 to {TOKENS_MAX} leases");
        return Err(Error::new(code::INVALID_PARAMS, message));
    }
    texts.iter().map(|text| token(text)).collect()
}

/// What was done for some of the leases; an error when all had ended.
fn lease_result(tokens: &[Token], ended: Vec<Token>) -> Outcome {
    if let [first, ..] = ended[..]
        && ended.len() == tokens.len()
    {
        return Err(refused(BusError::LeaseEnded(first)));
    }
    let text = |token: &Token| token.to_string();
    let all: BTreeSet<_> = ended.iter().collect();
    let done = tokens.iter().filter(|token| !all.contains(token));
    value(LeaseResult {
        done: done.map(text).collect(),
        ended: ended.iter().map(text).collect(),
    })
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
        failure: None,
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
        BusError::LeaseEnded(_) => code::LEASE_ENDED,
        BusError::OtherMessage(_) => code::INVALID_PARAMS,
        BusError::Stopping => code::REPLY_CLOSED,
    };
    Error::new(code, error.to_string())
}

/// The message arrived, and the server that its topic leads to gave no answer.
fn unanswered(id: MessageId, failure: ReplyFailure) -> Error {
    let (kind, what) = match failure {
        ReplyFailure::Unanswered => ("unanswered", "no server of the other node answered it"),
        ReplyFailure::Late => (
            "timeout",
            "the server of the other node did not answer in time",
        ),
        ReplyFailure::TooLarge => ("answer_too_large", "the answer is longer than a message"),
    };
    Error::new(code::REPLY_EMPTY, format!("message {id}: {what}")).with_kind(kind)
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
    let now = hyphae_time::monotonic();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let then = (wall + at.since(now)).saturating_sub(now.since(at));
    i64::try_from(then.as_secs()).unwrap_or(i64::MAX)
}
