//! The routing protocol; absent while it is disabled.

use hyphae_routing::babel::RefusalReason;

use crate::family::{Family, counter, gauge};
use hyphae_node::snapshot::RoutingSnapshot;

pub(super) const FAMILIES: &[Family<RoutingSnapshot>] = &[
    gauge(
        "hyphae_routing_links",
        &["state"],
        "Links of the routing protocol, by whether both ends receive from each other",
        |from, it| {
            it.set(&["heard"], from.heard);
            it.set(&["not_heard"], from.not_heard);
        },
    ),
    gauge(
        "hyphae_routing_rtt_seconds",
        &["quantile"],
        "Round-trip times that the protocol measures on its links: median, p90, largest",
        |from, it| it.quantiles(&from.rtt),
    ),
    counter(
        "hyphae_routing_packets_total",
        &["direction"],
        "Packets of the routing protocol",
        |from, it| it.directions(from.counters.packets_sent, from.counters.packets_received),
    ),
    counter(
        "hyphae_routing_bytes_total",
        &["direction"],
        "Bytes of packets of the routing protocol",
        |from, it| it.directions(from.counters.bytes_sent, from.counters.bytes_received),
    ),
    counter(
        "hyphae_routing_updates_total",
        &["direction"],
        "Routes and retractions advertised",
        |from, it| it.directions(from.counters.updates_sent, from.counters.updates_received),
    ),
    counter(
        "hyphae_routing_malformed_total",
        &[],
        "Malformed packets and TLVs",
        |from, it| it.set(&[], from.counters.malformed),
    ),
    counter(
        "hyphae_routing_ignored_total",
        &[],
        "TLVs of types that are not used",
        |from, it| it.set(&[], from.counters.ignored),
    ),
    counter(
        "hyphae_routing_put_off_total",
        &[],
        "Packets deferred because signatures wait to be verified; their senders retransmit them",
        |from, it| it.set(&[], from.counters.deferred),
    ),
    counter(
        "hyphae_routing_repeated_total",
        &[],
        "Packets retransmitted without an acknowledgement",
        |from, it| it.set(&[], from.counters.retransmitted),
    ),
    counter(
        "hyphae_routing_seqno_requests_total",
        &[],
        "Requests to an origin for a new sequence number",
        |from, it| it.set(&[], from.counters.seqno_requests_sent),
    ),
    counter(
        "hyphae_routing_signatures_checked_total",
        &[],
        "Verified signatures of announcements",
        |from, it| it.set(&[], from.counters.verified),
    ),
    counter(
        "hyphae_routing_changes_total",
        &[],
        "Changes of the next hops of a destination",
        |from, it| it.set(&[], from.counters.route_changes),
    ),
    counter(
        "hyphae_routing_displaced_total",
        &[],
        "Routes evicted from a full table for a neighbour with fewer",
        |from, it| it.set(&[], from.counters.displaced),
    ),
    counter(
        "hyphae_routing_refused_total",
        &["reason"],
        "Announcements refused, by reason",
        |from, it| {
            for (reason, total) in RefusalReason::ALL.iter().zip(from.counters.refused) {
                it.set(&[reason.name()], total);
            }
        },
    ),
];
