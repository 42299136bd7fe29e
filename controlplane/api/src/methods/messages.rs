//! Messages: sending, replies, and their state.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyphae_bus::{MessageId, MessageInfo, MessageState, Outgoing, Topic};
use hyphae_rpc::Base64;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    self, MessageIdParams, OutgoingMessage, PushMessageParams, PushMessageReplyParams,
    PushMessageResult, PushMessagesParams,
};
use hyphae_time::Nanos;
use serde::Serialize;

use super::mailbox::token;
use crate::context::Dispatcher;
use crate::error::{self, invalid, reserved, unanswered, undelivered};
use crate::params::{Attached, destination, seconds};
use crate::reply::{Outcome, ok_true, value};
use hyphae_node::{BusError, ReplyOutcome};

/// Most messages of one `pushMessages`.
const PUSH_MAX: usize = 1000;

impl Dispatcher {
    pub(crate) async fn push_message(&self, params: PushMessageParams) -> Outcome {
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
                None => self.bus.push(message).await.map_err(error::bus)?,
                Some(room) => {
                    let pushed = self.bus.push_waiting(vec![message], room).await;
                    let pushed = pushed.map_err(error::bus)?.pop();
                    let pushed = pushed.ok_or_else(|| error::bus(BusError::Stopping))?;
                    pushed.map_err(|error| error::bus(error.into()))?
                }
            };
            return value(PushMessageResult::Id { id: id.to_string() });
        };
        let outcome = match room_wait {
            None => self.bus.request(message, wait).await,
            Some(room) => self.bus.request_waiting(message, wait, room).await,
        };
        match outcome.map_err(error::bus)? {
            (_, ReplyOutcome::Reply(reply)) => {
                let reply = self.incoming(*reply);
                value(PushMessageResult::Reply(Box::new(reply)))
            }
            (id, ReplyOutcome::TimedOut) => value(PushMessageResult::Id { id: id.to_string() }),
            (id, ReplyOutcome::Failed(failure)) => Err(unanswered(id, failure)),
            (id, ReplyOutcome::Aborted(reason)) => Err(undelivered(id, reason)),
        }
    }

    /// Sends several messages without a wait for replies; a result for each.
    pub(crate) async fn push_messages(&self, calls: Vec<PushMessageParams>) -> Vec<Outcome> {
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
                let error = error::bus(error);
                let failed = |result: Option<Outcome>| result.unwrap_or(Err(error.clone()));
                return results.into_iter().map(failed).collect();
            }
        };
        let mut next = || match pushed.next() {
            Some(Ok(id)) => value(PushMessageResult::Id { id: id.to_string() }),
            Some(Err(error)) => Err(error::bus(error.into())),
            None => Err(error::bus(BusError::Stopping)),
        };
        let filled = results
            .into_iter()
            .map(|result| result.unwrap_or_else(&mut next));
        filled.collect()
    }

    /// Sends several messages to one node.
    pub(crate) async fn push_list(
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
        let pushed = pushed.map_err(error::bus)?;
        let mut result = Pushed::default();
        for pushed in pushed {
            match pushed {
                Ok(id) => result.ids.push(id),
                Err(error) if result.ids.is_empty() => return Err(error::bus(error.into())),
                Err(error) => {
                    result.refused = Some(error.to_string());
                    break;
                }
            }
        }
        value(result)
    }

    pub(crate) async fn push_reply(&self, params: PushMessageReplyParams) -> Outcome {
        let id = message_id(&params.id, code::BAD_ID)?;
        let message = outgoing(params.message, None)?;
        let replied = match params.ack.as_deref().map(token).transpose()? {
            None => self.bus.reply(id, message).await,
            Some(token) => self.bus.reply_leased(id, message, token).await,
        };
        replied.map_err(error::bus)?;
        ok_true()
    }

    pub(crate) async fn message_info(&self, params: MessageIdParams) -> Outcome {
        let id = message_id(&params.id, code::BAD_INFO_ID)?;
        let info = self
            .bus
            .info(id)
            .await
            .map_err(error::bus)?
            .ok_or_else(|| {
                Error::new(
                    code::NO_MESSAGE,
                    format!("no message {id} was sent, or long ago"),
                )
            })?;
        value(shown(&info))
    }
}

/// [`method::PushMessagesResult`] of binary ids.
#[derive(Default, Serialize)]
struct Pushed {
    ids: Vec<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

/// The payloads of `pushMessages`: parameters or attached bytes.
fn payloads(inline: Vec<Base64>, lengths: &[u64], attached: &Bytes) -> Result<Vec<Bytes>, Error> {
    let wrong = |message: String| Err(invalid(message));
    let payloads: Vec<Bytes> = match (inline.is_empty(), lengths) {
        (false, []) if attached.is_empty() => inline.into_iter().map(|p| p.0.into()).collect(),
        (true, [_]) if lengths == [attached.len() as u64] => vec![attached.clone()],
        (true, [_, ..]) => {
            let mut rest = &attached[..];
            let mut take = |len: &u64| {
                let at = usize::try_from(*len).ok().filter(|at| *at <= rest.len())?;
                let (payload, behind) = rest.split_at(at);
                rest = behind;
                // Copied: a waiting message must not hold the buffer of all.
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
