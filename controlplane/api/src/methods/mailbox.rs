//! The inbox: delivery, leases, lists.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{Inbound, MessageId, Room, Topic};
use hyphae_rpc::Base64;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    ExtendMessagesParams, InboxList, IncomingMessage, LeaseResult, ListMessagesParams,
    ListedMessage, PopMessageParams, PopMessagesParams, TokensParams,
};
use hyphae_wire::PublicKey;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::context::Dispatcher;
use crate::error::{self, invalid, reserved};
use crate::params::{any_topic, seconds};
use crate::reply::{Outcome, Reply, value};
use hyphae_node::{BusError, Delivered, DeliveryNote, LeaseToken};
use hyphae_store::inbox::{Listed, MessageNumber, ONE};

/// Most messages of one `popMessages`, and their most bytes, unless the first is longer.
const POP_MAX: usize = 1000;
const POP_BYTES: usize = 1 << 20;
/// Most tokens of one call.
const TOKENS_MAX: usize = 1000;
/// Most messages of one `listMessages`, and the default.
const LIST_MAX: u32 = 1000;
const LIST_DEFAULT: u32 = 100;
/// Longest lease.
const LEASE_MAX: u64 = 3600;

impl Dispatcher {
    pub(crate) async fn pop_message(&self, params: PopMessageParams) -> Result<Reply, Error> {
        let topic = topic_filter(params.topic.as_deref())?;
        let wait = params.timeout.filter(|wait| *wait > 0).map(seconds);
        let _room = wait.map(|_| self.wait()).transpose()?;
        let (message, delivery) = if params.peek == Some(true) {
            let found = self.bus.peek(topic, wait).await.map_err(error::bus)?;
            (found.map(|inbound| self.incoming(inbound)), None)
        } else {
            let handed = self.bus.pop(topic, ONE, wait, None).await;
            let Delivered { messages, delivery } = match handed.map_err(error::bus)? {
                Some(handed) => handed,
                None => return Ok(value(None::<IncomingMessage>)?.into()),
            };
            let shown = messages.into_iter().next().map(|(inbound, note)| {
                let source = Names::default().of(inbound.source_key);
                self.shown(inbound, &source, Some(note))
            });
            (shown, Some(delivery))
        };
        Ok(Reply {
            result: value(message)?,
            attached: Vec::new(),
            delivery,
        })
    }

    /// `attach`: payloads may follow the result.
    pub(crate) async fn pop_messages(
        &self,
        params: PopMessagesParams,
        attach: bool,
    ) -> Result<Reply, Error> {
        let apart = params.attach == Some(true);
        if apart && !attach {
            return Err(invalid(
                "attach needs a newline-delimited connection, and no batch",
            ));
        }
        let Some(Delivered { messages, delivery }) = self.pop_list(params).await? else {
            return Ok(value([(); 0])?.into());
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
        Ok(Reply {
            result,
            attached,
            delivery: Some(delivery),
        })
    }

    async fn pop_list(&self, params: PopMessagesParams) -> Result<Option<Delivered>, Error> {
        let topic = topic_filter(params.topic.as_deref())?;
        let most = Room {
            messages: usize::try_from(params.count).map_or(POP_MAX, |count| count.min(POP_MAX)),
            bytes: POP_BYTES,
        };
        if most.messages == 0 {
            return Err(invalid("count is 1 or more"));
        }
        let lease = params.lease.map(lease).transpose()?;
        let wait = params.timeout.filter(|wait| *wait > 0).map(seconds);
        let _room = wait.map(|_| self.wait()).transpose()?;
        let handed = self.bus.pop(topic, most, wait, lease).await;
        handed.map_err(error::bus)
    }

    pub(crate) async fn ack_messages(&self, params: TokensParams) -> Outcome {
        let tokens = tokens(&params.tokens)?;
        let ended = self.bus.acknowledge(&tokens).await;
        lease_result(&tokens, ended.map_err(|error| error::bus(error.into()))?)
    }

    pub(crate) fn extend_messages(&self, params: ExtendMessagesParams) -> Outcome {
        let (tokens, time) = (tokens(&params.tokens)?, lease(params.lease)?);
        lease_result(&tokens, self.bus.extend(&tokens, time))
    }

    pub(crate) fn return_messages(&self, params: TokensParams) -> Outcome {
        let tokens = tokens(&params.tokens)?;
        lease_result(&tokens, self.bus.release(&tokens))
    }

    pub(crate) async fn list_messages(&self, params: ListMessagesParams) -> Outcome {
        let topic = topic_filter(params.topic.as_deref())?;
        let count = params.count.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
        let after = MessageNumber(params.after.unwrap_or_default());
        let count = usize::try_from(count).unwrap_or_default();
        let listing = self
            .bus
            .list(topic, after, count)
            .await
            .map_err(error::bus)?;
        let shown = |listed: Listed| ListedMessage {
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

    /// A message that stays in the inbox, or is a reply.
    pub(super) fn incoming(&self, inbound: Inbound) -> IncomingMessage {
        let source = Names::default().of(inbound.source_key);
        self.shown(inbound, &source, None)
    }

    fn shown(
        &self,
        inbound: Inbound,
        source: &(String, String),
        note: Option<DeliveryNote>,
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

/// [`method::AttachedMessage`] of borrowed parts.
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

/// A list of messages, and their payloads.
fn shown_apart(
    messages: Vec<(Inbound, DeliveryNote)>,
) -> Result<(Box<RawValue>, Vec<Bytes>), Error> {
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

/// Delivery count, omitted for a first delivery without a lease.
fn shown_deliveries(note: DeliveryNote) -> Option<u32> {
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
    Err(invalid(message))
}

pub(super) fn token(text: &str) -> Result<LeaseToken, Error> {
    let read = text.parse::<LeaseToken>();
    read.map_err(invalid)
}

fn tokens(texts: &[String]) -> Result<Vec<LeaseToken>, Error> {
    if texts.is_empty() || texts.len() > TOKENS_MAX {
        let message = format!("tokens names 1 to {TOKENS_MAX} leases");
        return Err(invalid(message));
    }
    texts.iter().map(|text| token(text)).collect()
}

/// Result of a call about leases; an error when all of them had ended.
fn lease_result(tokens: &[LeaseToken], ended: Vec<LeaseToken>) -> Outcome {
    if let [first, ..] = ended[..]
        && ended.len() == tokens.len()
    {
        return Err(error::bus(BusError::LeaseEnded(first)));
    }
    let text = |token: &LeaseToken| token.to_string();
    let all: BTreeSet<_> = ended.iter().collect();
    let done = tokens.iter().filter(|token| !all.contains(token));
    value(LeaseResult {
        done: done.map(text).collect(),
        ended: ended.iter().map(text).collect(),
    })
}

/// Address and key of the last sender as text: messages of one delivery usually share it.
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
