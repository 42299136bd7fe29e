//! The message bus, the inbox and the socket proxies.

use super::Source;
use crate::family::{Family, counter, gauge};

pub(super) const FAMILIES: &[Family<Source>] = &[
    counter(
        "hyphae_messages_sent_total",
        &["outcome"],
        "Outgoing messages by outcome; \"read\" counts some of those received",
        |from, it| {
            let stats = &from.node.bus.stats;
            it.set(&["received"], stats.received);
            it.set(&["read"], stats.read);
            for (reason, total) in &stats.aborted {
                it.set(&[&format!("aborted_{reason}")], total);
            }
        },
    ),
    counter(
        "hyphae_messages_taken_total",
        &[],
        "Incoming messages that were acknowledged",
        |from, it| it.set(&[], from.node.bus.stats.accepted),
    ),
    counter(
        "hyphae_messages_rejected_total",
        &["reason", "topic"],
        "Incoming messages refused, by reason and class of the topic",
        |from, it| {
            for ((reason, class), total) in &from.node.bus.stats.rejected {
                it.set(&[reason.name(), class.name()], total);
            }
        },
    ),
    counter(
        "hyphae_messages_pushed_back_total",
        &[],
        "Messages deferred for lack of room",
        |from, it| it.set(&[], from.node.bus.stats.deferred),
    ),
    counter(
        "hyphae_messages_duplicate_total",
        &[],
        "Copies of messages that were acknowledged before",
        |from, it| it.set(&[], from.node.bus.stats.duplicates),
    ),
    counter(
        "hyphae_messages_expired_total",
        &[],
        "Incomplete messages dropped after a time without packets",
        |from, it| it.set(&[], from.node.bus.stats.expired),
    ),
    counter(
        "hyphae_messages_displaced_total",
        &[],
        "Incomplete messages evicted for other senders, because the table was full and their \
         own sender had most of it",
        |from, it| it.set(&[], from.node.bus.stats.displaced),
    ),
    gauge(
        "hyphae_messages_room_waiting",
        &[],
        "Calls that wait for room to send their messages",
        |from, it| it.set(&[], from.node.bus.room_waiting),
    ),
    counter(
        "hyphae_message_packets_total",
        &["direction"],
        "Packets of the bus by direction",
        |from, it| {
            let stats = &from.node.bus.stats;
            it.directions(stats.packets_sent, stats.packets_received);
        },
    ),
    counter(
        "hyphae_message_packets_dropped_total",
        &["reason"],
        "Packets of the bus dropped, by reason",
        |from, it| {
            let bus = &from.node.bus;
            it.set(&["malformed"], bus.stats.malformed);
            it.set(&["answers_full"], bus.stats.control_dropped);
            it.set(&["session_unknown"], bus.unknown_sources);
        },
    ),
    counter(
        "hyphae_message_retransmissions_total",
        &[],
        "Retransmitted chunks",
        |from, it| it.set(&[], from.node.bus.stats.retransmissions),
    ),
    gauge(
        "hyphae_messages_outgoing",
        &[],
        "Outgoing messages that are not finished",
        |from, it| it.set(&[], from.node.bus.stats.outgoing),
    ),
    gauge(
        "hyphae_messages_outgoing_bytes",
        &[],
        "Bytes of outgoing messages that are not finished",
        |from, it| it.set(&[], from.node.bus.stats.outgoing_bytes),
    ),
    gauge(
        "hyphae_messages_incoming",
        &[],
        "Incoming messages that are not complete or not decided",
        |from, it| it.set(&[], from.node.bus.stats.incoming),
    ),
    gauge(
        "hyphae_inbox_messages",
        &[],
        "Messages in the inbox",
        |from, it| it.set(&[], from.node.bus.inbox_messages),
    ),
    gauge(
        "hyphae_inbox_bytes",
        &[],
        "Bytes of outgoing messages that are not finished",
        |from, it| it.set(&[], from.node.bus.inbox_bytes),
    ),
    gauge(
        "hyphae_inbox_messages_limit",
        &[],
        "Largest number of messages in the inbox; at the limit messages are deferred",
        |from, it| it.set(&[], from.node.bus.inbox_messages_max),
    ),
    gauge(
        "hyphae_inbox_bytes_limit",
        &[],
        "Largest number of bytes in the inbox; at the limit messages are deferred",
        |from, it| it.set(&[], from.node.bus.inbox_bytes_max),
    ),
    gauge(
        "hyphae_inbox_waiting",
        &[],
        "Calls that wait for a message",
        |from, it| it.set(&[], from.node.bus.waiting),
    ),
    gauge(
        "hyphae_inbox_leased",
        &[],
        "Messages in the inbox that are leased to a consumer",
        |from, it| it.set(&[], from.node.bus.leased),
    ),
    counter(
        "hyphae_inbox_failures_total",
        &[],
        "Messages that the inbox could not store; their senders retransmit",
        |from, it| it.set(&[], from.node.bus.inbox_failures),
    ),
    counter(
        "hyphae_inbox_commits_total",
        &[],
        "Transactions of the inbox; many messages share one",
        |from, it| it.set(&[], from.node.bus.inbox_commits),
    ),
    counter(
        "hyphae_proxy_requests_total",
        &["side", "outcome"],
        "Requests of socket proxies by side and outcome",
        |from, it| {
            for ((side, outcome), total) in &from.proxies {
                it.set(&[side.name(), outcome], total);
            }
        },
    ),
];
