//! Types of the interface between callers and the engine.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use hyphae_time::Nanos;
use hyphae_wire::message::{ReplyFailure, TOPIC_MAX};

use hyphae_wire::{OverlayAddress, PublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Id of a message: random, chosen by its sender; a reply has the id of the message that it answers. Text form: 16
/// hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId(pub [u8; 8]);

impl Hash for MessageId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from_ne_bytes(self.0));
    }
}

/// Invalid text form of a message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a message id: expected 16 hex digits")]
pub struct InvalidMessageId(pub String);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl MessageId {
    /// Calls `then` with its text form, without an allocation.
    fn with_text<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (digits, byte) in text.chunks_exact_mut(2).zip(self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
        then(str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = InvalidMessageId;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digits = s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u64::from_str_radix(s, 16).ok().filter(|_| digits);
        let number = number.ok_or_else(|| InvalidMessageId(s.to_owned()))?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Name of a topic: 0 to 255 bytes, any bytes.
///
/// Text form (also the key in topics.toml): the name itself if it is UTF-8 without control characters and does not
/// begin with `hex:`, else `hex:` and its bytes as hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Topic(Bytes);

/// Invalid bytes or text form of a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopic {
    /// Longer than 255 bytes.
    #[error("a topic has at most 255 bytes, this one has {0}")]
    TooLong(usize),
    /// Invalid hex digits after `hex:`.
    #[error("'{0}' is not a topic: expected pairs of hex digits after 'hex:'")]
    Hex(String),
}

/// Prefix of the text form of names that are not plain text.
const HEX: &str = "hex:";

impl Topic {
    /// A topic of these bytes.
    ///
    /// # Errors
    /// With more than 255 bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, InvalidTopic> {
        let bytes = bytes.into();
        if bytes.len() > TOPIC_MAX {
            return Err(InvalidTopic::TooLong(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is [`crate::topics::ADMIN_TOPIC`].
    pub fn is_admin(&self) -> bool {
        self.as_bytes() == crate::topics::ADMIN_TOPIC.as_bytes()
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with(HEX) && !text.chars().any(char::is_control) => {
                f.write_str(text)
            }
            Ok(_) | Err(_) => {
                f.write_str(HEX)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Topic {
    type Err = InvalidTopic;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let Some(digits) = s.strip_prefix(HEX) else {
            return Self::new(Bytes::copy_from_slice(s.as_bytes()));
        };
        let bad = || InvalidTopic::Hex(s.to_owned());
        if digits.len() % 2 != 0 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let pairs = digits.as_bytes().chunks_exact(2);
        let bytes = pairs.map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            u8::from_str_radix(pair, 16).map_err(|_| bad())
        });
        Self::new(bytes.collect::<Result<Vec<_>, _>>()?)
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Topic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Destination of a message. On disk and in RPC `{ pk = "…" }` or `{ ip = "…" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Destination {
    /// The node with this key.
    #[serde(rename = "pk")]
    Key(PublicKey),
    /// The node that owns this address.
    #[serde(rename = "ip")]
    Address(OverlayAddress),
}

impl Destination {
    /// Destination address of its packets.
    pub fn address(&self) -> OverlayAddress {
        match self {
            Self::Key(key) => key.address(),
            Self::Address(address) => *address,
        }
    }
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its destination.
    pub destination: Destination,
    /// Its topic; empty for none.
    pub topic: Topic,
    /// Its bytes.
    pub payload: Bytes,
    /// BLAKE3 of the payload, computed if `None`. Pass it for long payloads, to keep the hash off the engine's thread.
    pub digest: Option<[u8; 32]>,
    /// Time to its deadline; `None` for [`crate::config::TRY_DURATION_DEFAULT`].
    pub try_for: Option<Duration>,
    /// Accept a reply within this time.
    pub reply_within: Option<Duration>,
    /// For a reply without content: the reason.
    pub failure: Option<ReplyFailure>,
}

/// State of an outgoing message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageState {
    /// No packet has been sent: there is no session with its receiver.
    Pending,
    /// Packets are sent, or the receiver exerts back-pressure.
    Sending,
    /// The receiver has stored it.
    Received,
    /// A consumer has taken it from the receiver's inbox.
    Read,
    /// Aborted for [`MessageInfo::reason`].
    Aborted,
}

/// Why a message was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum AbortReason {
    /// Its deadline has passed.
    #[error("not delivered within its time")]
    Deadline,
    /// The receiver rejected it.
    #[error("refused by the receiver: {0}")]
    Rejected(Rejection),
    /// The caller withdrew it.
    #[error("withdrawn")]
    Cancelled,
    /// The session at the destination's address has another key.
    #[error("another node has the address of the destination")]
    OtherKey,
}

impl AbortReason {
    /// Name in metrics and RPC.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Rejected(_) => "rejected",
            Self::Cancelled => "cancelled",
            Self::OtherKey => "other_key",
        }
    }
}

/// Why a receiver rejects a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// The topic is closed to the sender.
    #[error("its topic is closed to the sender")]
    Forbidden,
    /// An unsolicited reply.
    #[error("a reply that nobody asked for")]
    Unasked,
    /// A reply after its deadline.
    #[error("a reply after its deadline")]
    Late,
    /// Protocol violation or digest mismatch.
    #[error("it is malformed")]
    Malformed,
}

impl Rejection {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Forbidden, Self::Unasked, Self::Late, Self::Malformed];

    /// Name in metrics and RPC.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Unasked => "unasked",
            Self::Late => "late",
            Self::Malformed => "malformed",
        }
    }
}

/// Progress of an outgoing message, in chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Unsent or lost.
    pub pending: u32,
    /// In flight.
    pub sent: u32,
    /// Acknowledged.
    pub acknowledged: u32,
}

/// State of an outgoing message in detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// Its state.
    pub state: MessageState,
    /// Its destination.
    pub destination: Destination,
    /// When it was submitted.
    pub created: Nanos,
    /// When it is aborted.
    pub deadline: Nanos,
    /// Its bytes.
    pub len: usize,
    /// Why it was aborted.
    pub reason: Option<AbortReason>,
    /// Its progress.
    pub progress: Progress,
}

/// Why a message cannot be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Longer than 64 MiB.
    #[error("a message has at most 67108864 bytes, this one has {0}")]
    TooLong(usize),
    /// Not an address of the overlay.
    #[error("{0} is not an address of the overlay (400::/7)")]
    NotOverlay(OverlayAddress),
    /// The send queue is full.
    #[error(
        "{messages} messages with {bytes} bytes wait to be sent; try again when some have left"
    )]
    QueueFull {
        /// Queued messages.
        messages: usize,
        /// Queued bytes.
        bytes: usize,
    },
    /// A reply to this message exists.
    #[error("message {0} has been answered")]
    Answered(MessageId),
}

/// Name of an incoming message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeliveryKey {
    /// Its sender.
    pub peer: PublicKey,
    /// Its id.
    pub id: MessageId,
    /// It is a reply.
    pub reply: bool,
}

impl Ord for DeliveryKey {
    /// Compares ids first: most keys of a table have the same peer.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = |key: &Self| (key.id, key.reply, key.peer);
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for DeliveryKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A complete incoming message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Its id; its reply has the same.
    pub id: MessageId,
    /// It is the reply to the message of this node with the same id.
    pub reply: bool,
    /// Key of its sender, authenticated.
    pub source_key: PublicKey,
    /// Overlay address of its sender, authenticated.
    pub source_address: OverlayAddress,
    /// Its topic.
    pub topic: Topic,
    /// Its bytes.
    pub payload: Bytes,
    /// Their BLAKE3, verified; as given by the caller if the message is from this node.
    pub digest: [u8; 32],
    /// For a reply without content: the reason.
    pub failure: Option<ReplyFailure>,
}

impl Inbound {
    /// Its name.
    pub fn key(&self) -> DeliveryKey {
        DeliveryKey {
            peer: self.source_key,
            id: self.id,
            reply: self.reply,
        }
    }
}

/// Why a delivered message is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// Back-pressure: its sender retries later.
    Full,
    /// Rejected: its sender aborts.
    Rejected,
}

/// Event of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A complete message of an authorized sender. Answer with [`crate::Bus::accepted`] once it is stored (durably,
    /// where that was promised), or with [`crate::Bus::refused`].
    Deliver(Inbound),
    /// A session with the node of this address is required; answer with [`crate::Bus::session_up`].
    NeedSession(OverlayAddress),
    /// An outgoing message is finished. A read receipt may follow.
    Finished {
        /// The message.
        id: MessageId,
        /// It is a reply.
        reply: bool,
        /// `Received` or `Aborted`.
        state: MessageState,
        /// Why it was aborted.
        reason: Option<AbortReason>,
    },
    /// The deadline of the reply to a message has passed.
    ReplyTimeout(MessageId),
}

/// A packet to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Address of the destination node.
    pub address: OverlayAddress,
    /// Payload of a frame of service `Message`.
    pub payload: Vec<u8>,
}

/// Messages and bytes: room that is left, or use of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Room {
    /// Zero.
    pub const NONE: Self = Self {
        messages: 0,
        bytes: 0,
    };
    /// No limit.
    pub const UNLIMITED: Self = Self {
        messages: usize::MAX,
        bytes: usize::MAX,
    };
}

/// A key of tests.
#[cfg(test)]
pub(crate) fn key_of_test(peer: u8, id: u64) -> DeliveryKey {
    DeliveryKey {
        peer: PublicKey([peer; 32]),
        id: MessageId(id.to_be_bytes()),
        reply: false,
    }
}
