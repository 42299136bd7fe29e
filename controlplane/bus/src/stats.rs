//! What the engine counts.

use std::collections::BTreeMap;

use crate::Rejection;
use crate::topics::TopicClass;

/// Counters since the start, and what is held now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages and replies taken for sending.
    pub pushed: u64,
    /// Of those: acknowledged as kept by their receivers.
    pub received: u64,
    /// Of those: read.
    pub read: u64,
    /// Outgoing messages given up, by the name of the reason.
    pub aborted: BTreeMap<&'static str, u64>,
    /// Incoming messages that were kept here.
    pub accepted: u64,
    /// Incoming messages refused, by reason and class of the topic.
    pub rejected: BTreeMap<(Rejection, TopicClass), u64>,
    /// Times that a sender was told that there is no room.
    pub pushed_back: u64,
    /// Openings of messages that had been taken already.
    pub duplicates: u64,
    /// Incoming messages dropped because nothing more of them came.
    pub expired: u64,
    /// Of a peer that had most under way: dropped in favour of another's, because there was no room.
    pub displaced: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets that came in.
    pub packets_received: u64,
    /// Chunks sent again.
    pub retransmissions: u64,
    /// Packets that contradict the format.
    pub malformed: u64,
    /// Answers dropped because too many waited to be sent.
    pub answers_dropped: u64,
    /// Outgoing messages that are not finished.
    pub outgoing: usize,
    /// Their bytes.
    pub outgoing_bytes: usize,
    /// Incoming messages that are not complete or not decided.
    pub incoming: usize,
    /// Their bytes, as announced.
    pub incoming_bytes: usize,
    /// Ids of finished incoming messages that are remembered.
    pub completed: usize,
}
