//! Every family that `/metrics` shows, declared once: name, kind, labels, help. The reference page
//! is made of this, and a test holds a scrape against it.

use hyphae_shm::stats::Counter;

/// What Prometheus calls the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A family of time series.
#[derive(Clone, Debug)]
pub(crate) struct Family<Name = &'static str> {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    #[cfg_attr(not(test), allow(dead_code, reason = "for the reference page"))]
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    let kind = Kind::Counter;
    Family {
        name,
        kind,
        labels,
        help,
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    let kind = Kind::Gauge;
    Family {
        name,
        kind,
        labels,
        help,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    let kind = Kind::Histogram;
    Family {
        name,
        kind,
        labels,
        help,
    }
}

/// The node as a whole.
pub(crate) const NODE: &[Family] = &[
    gauge(
        "hyphae_build_info",
        &["version"],
        "Always 1; the version is in the label",
    ),
    gauge(
        "hyphae_attach_generation",
        &[],
        "Control planes that this dataplane has seen; 0 while not attached",
    ),
    counter(
        "hyphae_plane_restarts_total",
        &["plane"],
        "Restarts of a plane: of the control plane by its supervisor, of the dataplane as this control plane has seen \
         them",
    ),
    gauge(
        "hyphae_program_backlog",
        &[],
        "Records that wait for room in the program rings",
    ),
    gauge("hyphae_peers", &["state"], "Peers by state"),
    gauge(
        "hyphae_stream_connections",
        &[],
        "Open stream (TCP) connections",
    ),
    gauge("hyphae_sessions", &[], "End-to-end sessions"),
    gauge("hyphae_routes", &[], "Routes in use"),
    counter("hyphae_peer_up_total", &[], "Times a peer came up"),
    counter("hyphae_peer_down_total", &[], "Times a peer went down"),
    counter(
        "hyphae_peer_moves_total",
        &[],
        "Times a peer came from a new underlay address",
    ),
    counter(
        "hyphae_duplicate_keys_total",
        &[],
        "Times two hosts were seen to have one key, or another node said so of this node's, which counts once in ten minutes",
    ),
    counter("hyphae_session_up_total", &[], "End-to-end sessions made"),
    counter(
        "hyphae_session_down_total",
        &[],
        "End-to-end sessions ended",
    ),
    counter(
        "hyphae_session_failed_total",
        &[],
        "Addresses for which no session could be made",
    ),
    counter(
        "hyphae_handshakes_total",
        &["result"],
        "Handshakes by what became of them: finished, refused, unanswered by whoever was dialled, abandoned by \
         whoever began them, crowded out by others",
    ),
    counter(
        "hyphae_rekeys_total",
        &["kind"],
        "Finished handshakes that renewed a session that worked, of a link or end to end",
    ),
    counter(
        "hyphae_handshakes_refused_total",
        &["reason"],
        "Handshakes refused, by reason",
    ),
    gauge(
        "hyphae_peers_rtt_seconds",
        &["quantile"],
        "Smoothed round-trip times of the peers that are up: median, nine tenths, largest",
    ),
    gauge(
        "hyphae_host_up",
        &[],
        "1 while this host's traffic passes the TUN device, 0 while it does not (`hyphae status` says why); absent \
         without a device",
    ),
    counter(
        "hyphae_host_repairs_total",
        &["part"],
        "Repairs of the TUN device, its addresses and routes after something else had changed them",
    ),
    gauge(
        "hyphae_drained",
        &[],
        "1 while the node is drained: neighbours take other ways where they have them",
    ),
    gauge(
        "hyphae_routes_held",
        &[],
        "1 while the workers keep the routes of an earlier control plane, until this one has learnt them",
    ),
    counter(
        "hyphae_config_reloads_total",
        &["result"],
        "Reloads of the configuration: \"done\", or \"refused\", which changes nothing",
    ),
    gauge(
        "hyphae_config_last_reload_success_timestamp_seconds",
        &[],
        "When the configuration in force was read, seconds since 1970",
    ),
    counter(
        "hyphae_state_write_failures_total",
        &[],
        "State files that could not be written; what they should hold lives in memory only",
    ),
    gauge(
        "hyphae_process_resident_memory_bytes",
        &["process"],
        "Resident memory of each plane; what they share of the segment is in both",
    ),
];

/// The routing protocol; absent where it is switched off.
pub(crate) const ROUTING: &[Family] = &[
    gauge(
        "hyphae_routing_links",
        &["state"],
        "Links that the routing protocol speaks on, by whether both sides hear each other",
    ),
    gauge(
        "hyphae_routing_rtt_seconds",
        &["quantile"],
        "Round-trip times that the protocol measures on its links: median, nine tenths, largest",
    ),
    counter(
        "hyphae_routing_packets_total",
        &["direction"],
        "Packets of the routing protocol",
    ),
    counter(
        "hyphae_routing_bytes_total",
        &["direction"],
        "Bytes in them",
    ),
    counter(
        "hyphae_routing_updates_total",
        &["direction"],
        "Routes and ends of routes told",
    ),
    counter(
        "hyphae_routing_malformed_total",
        &[],
        "Packets that were none, and parts of packets that were malformed",
    ),
    counter(
        "hyphae_routing_ignored_total",
        &[],
        "Parts of packets of kinds that are not used here",
    ),
    counter(
        "hyphae_routing_put_off_total",
        &[],
        "Packets put off because signatures wait to be checked; their senders repeat them",
    ),
    counter(
        "hyphae_routing_repeated_total",
        &[],
        "Packets sent again because no acknowledgement came",
    ),
    counter(
        "hyphae_routing_seqno_requests_total",
        &[],
        "Times that an origin was asked for a new sequence number",
    ),
    counter(
        "hyphae_routing_signatures_checked_total",
        &[],
        "Signatures of announcements that were checked",
    ),
    counter(
        "hyphae_routing_changes_total",
        &[],
        "Times that the next hops of a destination changed",
    ),
    counter(
        "hyphae_routing_displaced_total",
        &[],
        "Routes displaced from a full table by those of a neighbour with fewer",
    ),
    counter(
        "hyphae_routing_refused_total",
        &["reason"],
        "Announcements refused, by reason",
    ),
];

/// Each peer by itself, where `metrics_peers_max` allows it.
pub(crate) const PEERS: &[Family] = &[
    gauge(
        "hyphae_peer_info",
        &["peer", "key", "name", "endpoint", "type"],
        "Always 1; joins the short name `peer` of the other families to what is known of it",
    ),
    gauge("hyphae_peer_alive", &["peer"], "1 while the peer is up"),
    gauge(
        "hyphae_peer_rtt_seconds",
        &["peer"],
        "Smoothed round-trip time",
    ),
    gauge(
        "hyphae_peer_loss_ratio",
        &["peer"],
        "Share of probes that stayed unanswered lately",
    ),
    counter(
        "hyphae_peer_receive_bytes_total",
        &["peer"],
        "Bytes of frames received from it",
    ),
    counter(
        "hyphae_peer_transmit_bytes_total",
        &["peer"],
        "Bytes of frames sent to it",
    ),
    gauge(
        "hyphae_peers_left_out",
        &[],
        "Peers that have no families of their own because metrics_peers_max is reached",
    ),
];

/// The message bus.
pub(crate) const BUS: &[Family] = &[
    counter(
        "hyphae_messages_sent_total",
        &["outcome"],
        "Outgoing messages by outcome; \"read\" counts some of those received",
    ),
    counter(
        "hyphae_messages_taken_total",
        &[],
        "Incoming messages that were kept",
    ),
    counter(
        "hyphae_messages_rejected_total",
        &["reason", "topic"],
        "Incoming messages refused, by reason and class of the topic",
    ),
    counter(
        "hyphae_messages_pushed_back_total",
        &[],
        "Times that a sender was told to wait, for want of room",
    ),
    counter(
        "hyphae_messages_duplicate_total",
        &[],
        "Late copies of messages that had been taken already",
    ),
    counter(
        "hyphae_messages_expired_total",
        &[],
        "Unfinished incoming messages dropped, because nothing more of them came",
    ),
    counter(
        "hyphae_messages_displaced_total",
        &[],
        "Unfinished incoming messages dropped in favour of other senders, because the table was full and their \
         own sender had most of it",
    ),
    gauge(
        "hyphae_messages_room_waiting",
        &[],
        "Calls that wait for room to send their messages",
    ),
    counter(
        "hyphae_message_packets_total",
        &["direction"],
        "Packets of the bus by direction",
    ),
    counter(
        "hyphae_message_packets_dropped_total",
        &["reason"],
        "Packets of the bus dropped, by reason",
    ),
    counter(
        "hyphae_message_retransmissions_total",
        &[],
        "Chunks sent again",
    ),
    gauge(
        "hyphae_messages_outgoing",
        &[],
        "Outgoing messages that are not finished",
    ),
    gauge("hyphae_messages_outgoing_bytes", &[], "Their bytes"),
    gauge(
        "hyphae_messages_incoming",
        &[],
        "Incoming messages that are not complete or not decided",
    ),
    gauge(
        "hyphae_inbox_messages",
        &[],
        "Messages that wait to be read",
    ),
    gauge("hyphae_inbox_bytes", &[], "Their bytes"),
    gauge(
        "hyphae_inbox_messages_limit",
        &[],
        "Messages that may wait, from which on senders are told to try again later",
    ),
    gauge(
        "hyphae_inbox_bytes_limit",
        &[],
        "Bytes that they may have, likewise",
    ),
    gauge("hyphae_inbox_waiting", &[], "Calls that wait for a message"),
    gauge(
        "hyphae_inbox_leased",
        &[],
        "Messages in the inbox that are leased to a consumer",
    ),
    counter(
        "hyphae_inbox_failures_total",
        &[],
        "Messages that the inbox could not store; their senders try again",
    ),
    counter(
        "hyphae_inbox_commits_total",
        &[],
        "Transactions of the inbox; many messages share one",
    ),
    counter(
        "hyphae_proxy_requests_total",
        &["side", "outcome"],
        "Requests of socket proxies by side and outcome",
    ),
];

/// Calls.
pub(crate) const RPC: &[Family] = &[histogram(
    "hyphae_rpc_duration_seconds",
    &["method", "code"],
    "Time that RPC calls took, by method and error code",
)];

pub(crate) const DROPS: Family = counter(
    "hyphae_dataplane_drops_total",
    &["worker", "reason"],
    "Packets dropped, by reason; each dropped packet has one",
);
pub(crate) const AEAD: Family = counter(
    "hyphae_dataplane_aead_operations_total",
    &["worker", "operation", "suite"],
    "Seal and open operations",
);
pub(crate) const BUSY: Family = counter(
    "hyphae_dataplane_busy_seconds_total",
    &["worker"],
    "Time in which the worker did not sleep; its rate is the share of a core",
);
pub(crate) const BUFFERS: Family = gauge(
    "hyphae_dataplane_buffers",
    &["worker"],
    "Packet buffers, 68 KiB each",
);
pub(crate) const BUFFERS_USED: Family = gauge(
    "hyphae_dataplane_buffers_used",
    &["worker"],
    "Packet buffers in use at the end of the last turn",
);
pub(crate) const RX_TRAINS: Family = histogram(
    "hyphae_dataplane_rx_train_frames",
    &["worker"],
    "Frames per train received from the underlay",
);
pub(crate) const TX_TRAINS: Family = histogram(
    "hyphae_dataplane_tx_train_frames",
    &["worker"],
    "Frames per train sent to the underlay",
);
pub(crate) const TURNS: Family = histogram(
    "hyphae_dataplane_turn_frames",
    &["worker"],
    "Frames received per turn of a worker that found work",
);

/// Families of the workers that are more than one counter's total.
pub(crate) const SPECIAL: &[Family] = &[
    DROPS,
    AEAD,
    BUSY,
    BUFFERS,
    BUFFERS_USED,
    RX_TRAINS,
    TX_TRAINS,
    TURNS,
];

/// The family that is one counter's total; `None` where it is part of one in [`SPECIAL`].
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "all the others are a family each"
)]
pub(crate) fn total(counter: Counter) -> Option<Family<String>> {
    match counter {
        Counter::SealedAes
        | Counter::SealedChaCha
        | Counter::OpenedAes
        | Counter::OpenedChaCha
        | Counter::BusyNanoseconds
        | Counter::Buffers
        | Counter::BuffersUsed
        | Counter::RxTrains1
        | Counter::RxTrains4
        | Counter::RxTrains16
        | Counter::RxTrains64
        | Counter::TxTrains1
        | Counter::TxTrains4
        | Counter::TxTrains16
        | Counter::TxTrains64
        | Counter::Turns1
        | Counter::Turns4
        | Counter::Turns16
        | Counter::Turns64 => None,
        counter => Some(Family {
            name: format!("hyphae_dataplane_{}_total", counter.name()),
            kind: Kind::Counter,
            labels: &["worker"],
            help: counter.gloss(),
        }),
    }
}

#[cfg(test)]
pub(crate) fn all() -> Vec<(&'static str, Vec<Family<String>>)> {
    let owned = |families: &[Family]| -> Vec<Family<String>> {
        let owned = |family: &Family| Family {
            name: family.name.to_owned(),
            kind: family.kind,
            labels: family.labels,
            help: family.help,
        };
        families.iter().map(owned).collect()
    };
    let mut workers = owned(SPECIAL);
    workers.extend(Counter::ALL.iter().filter_map(|counter| total(*counter)));
    vec![
        ("Node", owned(NODE)),
        ("Routing protocol", owned(ROUTING)),
        ("Single peers", owned(PEERS)),
        ("Workers of the dataplane", workers),
        ("Message bus", owned(BUS)),
        ("Calls", owned(RPC)),
    ]
}
