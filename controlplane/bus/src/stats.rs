//! Counters of the engine.

use std::collections::BTreeMap;

use crate::Rejection;
use crate::topics::TopicClass;

/// Counters since the start, and gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages and replies submitted.
    pub pushed: u64,
    /// Of those: acknowledged as stored by their receivers.
    pub received: u64,
    /// Of those: read.
    pub read: u64,
    /// Aborted outgoing messages, by name of the reason.
    pub aborted: BTreeMap<&'static str, u64>,
    /// Incoming messages stored.
    pub accepted: u64,
    /// Incoming messages rejected, by reason and class of the topic.
    pub rejected: BTreeMap<(Rejection, TopicClass), u64>,
    /// Incoming messages deferred by back-pressure.
    pub deferred: u64,
    /// Openings of messages whose final status was known.
    pub duplicates: u64,
    /// Partial incoming messages dropped after a time without progress.
    pub expired: u64,
    /// Partial incoming messages of the largest user, evicted in favour of another peer.
    pub displaced: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Retransmitted chunks.
    pub retransmissions: u64,
    /// Malformed packets received.
    pub malformed: u64,
    /// Control packets dropped because their queue was full.
    pub control_dropped: u64,
    /// Unfinished outgoing messages.
    pub outgoing: usize,
    /// Their bytes.
    pub outgoing_bytes: usize,
    /// Incomplete or undecided incoming messages.
    pub incoming: usize,
    /// Their announced bytes.
    pub incoming_bytes: usize,
    /// Remembered ids of finished incoming messages.
    pub completed: usize,
}
