//! Messages.

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Base64;

/// Destination of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// Overlay address.
    Ip(String),
    /// Public key, hex.
    Pk(String),
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Given {
            ip: Option<String>,
            pk: Option<String>,
        }
        match Given::deserialize(deserializer)? {
            Given {
                ip: Some(ip),
                pk: None,
            } => Ok(Self::Ip(ip)),
            Given {
                ip: None,
                pk: Some(pk),
            } => Ok(Self::Pk(pk)),
            Given {
                ip: Some(_),
                pk: Some(_),
            } => Err(D::Error::custom(
                "a destination has `ip` or `pk`, and both are given",
            )),
            Given { ip: None, pk: None } => Err(D::Error::custom(
                "a destination needs `ip` (overlay address) or `pk` (public key, hex)",
            )),
        }
    }
}

impl std::str::FromStr for Destination {
    type Err = std::convert::Infallible;

    /// A text with a colon is an address, anything else a key.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let make = if text.contains(':') {
            Self::Ip
        } else {
            Self::Pk
        };
        Ok(make(text.to_owned()))
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(text) | Self::Pk(text) => out.write_str(text),
        }
    }
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutgoingMessage {
    /// Its destination.
    pub dst: Destination,
    /// Topic, 0 to 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Base64>,
    /// Content, 0 bytes to 64 MiB.
    pub payload: Base64,
}

/// Parameters of `pushMessage`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PushMessageParams {
    /// The message.
    pub message: OutgoingMessage,
    /// Wait this many seconds for a reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_timeout: Option<u64>,
    /// Wait this many seconds for room in the send queue. Messages to one node are sent in the order of their calls. A
    /// disconnect of the caller withdraws the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}

impl PushMessageParams {
    /// Whether the call waits: for a reply, or for room.
    pub fn may_wait(&self) -> bool {
        self.reply_timeout.is_some() || self.wait.is_some()
    }
}

/// Parameters of `pushMessages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PushMessagesParams {
    /// Their destination.
    pub dst: Destination,
    /// Topic of all of them, 0 to 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Base64>,
    /// Content of each, at most 1000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub payloads: Vec<Base64>,
    /// Instead of `payloads`: the length in bytes of each; they follow the request in sequence. Only
    /// on a newline-delimited connection, in a line that begins with `+`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<u64>,
    /// As in `pushMessage`: wait this many seconds for room. Messages sent by then are not withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}

impl PushMessagesParams {
    /// Whether the call waits for room.
    pub fn may_wait(&self) -> bool {
        self.wait.is_some()
    }
}

/// Result of `pushMessages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PushMessagesResult {
    /// Ids of the messages that were queued: all, or a number of the first.
    pub ids: Vec<String>,
    /// Error of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Result of `pushMessage`: the reply if one was requested and received, otherwise the id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PushMessageResult {
    /// The reply.
    Reply(Box<IncomingMessage>),
    /// The message was queued.
    Id {
        /// Of the message, 16 hexadecimal digits.
        id: String,
    },
}

/// Parameters of `popMessage`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PopMessageParams {
    /// Leave the message in the inbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peek: Option<bool>,
    /// Wait this many seconds for a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Only messages on exactly this topic, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// Parameters of `popMessages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PopMessagesParams {
    /// Most messages, at most 1000.
    pub count: u32,
    /// Wait this many seconds for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Only messages on exactly this topic, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Content as bytes after the answer, with their number as `attached` in place of each `payload`. Only on a
    /// newline-delimited connection, and not in a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<bool>,
    /// Lease the messages for this many seconds, 1 to 3600: they stay in the inbox, hidden, until `ackMessages`, and
    /// are visible again after that time, after `returnMessages` and after a restart of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
}

/// Parameters of `ackMessages` and `returnMessages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokensParams {
    /// Tokens of leases from `popMessages`, 1 to 1000.
    pub tokens: Vec<String>,
}

/// Parameters of `extendMessages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExtendMessagesParams {
    /// Tokens of leases from `popMessages`, 1 to 1000.
    pub tokens: Vec<String>,
    /// Seconds from now, 1 to 3600.
    pub lease: u64,
}

/// Result of a call about leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseResult {
    /// Leases that it applied to.
    pub done: Vec<String>,
    /// Leases that had ended: their messages were acknowledged or are in the inbox again.
    pub ended: Vec<String>,
}

/// Parameters of `listMessages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListMessagesParams {
    /// Only messages on exactly this topic, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Number of listed messages, 100 by default, at most 1000; 0 counts only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// List messages after this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// Result of `listMessages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InboxList {
    /// Messages in the inbox, on the topic if one was named.
    pub total: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// Messages that are hidden, because they are being delivered or leased.
    pub handed_out: u64,
    /// The oldest messages.
    pub messages: Vec<ListedMessage>,
}

/// A message of the inbox, without its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedMessage {
    /// Its number in the inbox, ascending.
    pub number: u64,
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// Overlay address of the sender.
    pub src_ip: String,
    /// Key of the sender, hex.
    pub src_pk: String,
    /// Topic, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Base64>,
    /// Bytes of its content.
    pub msg_len: u64,
    /// Its deliveries.
    pub deliveries: u32,
    /// It is being delivered or leased.
    pub handed_out: bool,
}

/// A received message, whose content is attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttachedMessage {
    /// Its id, 16 hexadecimal digits; its reply carries the same.
    pub id: String,
    /// Overlay address of the sender.
    pub src_ip: String,
    /// Key of the sender, hex; proven, not claimed.
    pub src_pk: String,
    /// Topic, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Base64>,
    /// Bytes of its content.
    pub attached: u64,
    /// Its deliveries, this one included; omitted for the first one without a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<u32>,
    /// Token of its lease, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// A received message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncomingMessage {
    /// Its id, 16 hexadecimal digits; a reply carries the id of the message that it answers.
    pub id: String,
    /// Overlay address of the sender.
    pub src_ip: String,
    /// Key of the sender, hex; proven, not claimed.
    pub src_pk: String,
    /// Overlay address of this node.
    pub dst_ip: String,
    /// Key of this node, hex.
    pub dst_pk: String,
    /// Topic, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Base64>,
    /// Content.
    pub payload: Base64,
    /// Its deliveries, this one included; omitted for the first one without a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<u32>,
    /// Token of its lease, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// Parameters of `pushMessageReply`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PushMessageReplyParams {
    /// Id of the message that is answered.
    pub id: String,
    /// The reply; its topic is not sent.
    pub message: OutgoingMessage,
    /// Token of the lease of the answered message, which is acknowledged too. Nothing is sent if the lease has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<String>,
}

/// Parameters of `getMessageInfo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MessageIdParams {
    /// Id that `pushMessage` returned.
    pub id: String,
}

/// State of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MessageState {
    /// Nothing was sent yet.
    Pending,
    /// Chunks are being sent.
    Sending {
        /// Chunks not sent yet.
        pending: u64,
        /// Chunks sent, not acknowledged yet.
        sent: u64,
        /// Chunks acknowledged.
        acked: u64,
    },
    /// The receiver has acknowledged it.
    Received,
    /// It was delivered from the inbox of the receiver.
    Read,
    /// It was aborted: not delivered in time, or rejected.
    Aborted,
}

/// Result of `getMessageInfo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageInfo {
    /// Overlay address of the receiver.
    pub dst: String,
    /// Its state.
    pub state: MessageState,
    /// When it was pushed, seconds since 1970.
    pub created: i64,
    /// Its deadline, seconds since 1970.
    pub deadline: i64,
    /// Bytes of its content.
    pub msg_len: u64,
    /// Cause of the abort, if known: "timeout" or "rejected".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
