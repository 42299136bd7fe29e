//! The node as a whole.

use hyphae_shm::StatsReader;
use hyphae_shm::stats::{Counter, counter_at};

use super::Source;
use crate::family::{Family, counter, gauge};
use hyphae_store::files;

pub(super) const FAMILIES: &[Family<Source>] = &[
    gauge(
        "hyphae_build_info",
        &["version"],
        "Always 1; the version is in the label",
        |_, it| it.set(&[env!("CARGO_PKG_VERSION")], 1),
    ),
    gauge(
        "hyphae_attach_generation",
        &[],
        "Control planes that have attached to this dataplane; 0 while not attached",
        |from, it| it.set(&[], from.node.generation),
    ),
    counter(
        "hyphae_plane_restarts_total",
        &["plane"],
        "Restarts of a plane: of the control plane by its supervisor, of the dataplane as this control plane has seen \
         them",
        |from, it| {
            it.set(&["controlplane"], from.node.totals.controlplane_restarts);
            it.set(&["dataplane"], from.node.totals.dataplane_restarts);
        },
    ),
    gauge(
        "hyphae_program_backlog",
        &[],
        "Records that wait for room in the program rings",
        |from, it| it.set(&[], from.node.backlog),
    ),
    gauge("hyphae_peers", &["state"], "Peers by state", |from, it| {
        for (state, count) in &from.node.peers_by_state {
            it.set(&[state], count);
        }
    }),
    gauge(
        "hyphae_stream_connections",
        &[],
        "Open stream (TCP) connections",
        |from, it| it.set(&[], open_streams(&from.node.workers)),
    ),
    gauge("hyphae_sessions", &[], "End-to-end sessions", |from, it| {
        it.set(&[], from.node.sessions)
    }),
    gauge("hyphae_routes", &[], "Routes in use", |from, it| {
        it.set(&[], from.node.routes)
    }),
    counter(
        "hyphae_peer_up_total",
        &[],
        "Times a peer came up",
        |from, it| it.set(&[], from.node.totals.peers_up),
    ),
    counter(
        "hyphae_peer_down_total",
        &[],
        "Times a peer went down",
        |from, it| it.set(&[], from.node.totals.peers_down),
    ),
    counter(
        "hyphae_peer_moves_total",
        &[],
        "Changes of a peer's underlay address",
        |from, it| it.set(&[], from.node.totals.peer_moves),
    ),
    counter(
        "hyphae_duplicate_keys_total",
        &[],
        "Detections of two hosts with one key; reports by other nodes about this node's key count once in ten minutes",
        |from, it| it.set(&[], from.node.totals.duplicate_keys),
    ),
    counter(
        "hyphae_session_up_total",
        &[],
        "End-to-end sessions established",
        |from, it| it.set(&[], from.node.totals.sessions_up),
    ),
    counter(
        "hyphae_session_down_total",
        &[],
        "End-to-end sessions ended",
        |from, it| it.set(&[], from.node.totals.sessions_down),
    ),
    counter(
        "hyphae_session_failed_total",
        &[],
        "Addresses for which no session could be established",
        |from, it| it.set(&[], from.node.totals.sessions_failed),
    ),
    counter(
        "hyphae_handshakes_total",
        &["result"],
        "Handshakes by result: finished, refused, unanswered by the responder, abandoned by the initiator, crowded out \
         by others",
        |from, it| {
            let handshakes = &from.node.handshakes;
            it.set(&["finished"], handshakes.finished);
            it.set(&["refused"], handshakes.refused);
            it.set(&["unanswered"], handshakes.unanswered);
            it.set(&["abandoned"], handshakes.abandoned);
            it.set(&["crowded"], handshakes.crowded);
        },
    ),
    counter(
        "hyphae_rekeys_total",
        &["kind"],
        "Finished handshakes that renewed an established session, of a link or end to end",
        |from, it| {
            it.set(&["link"], from.node.handshakes.links_renewed);
            it.set(&["end_to_end"], from.node.handshakes.sessions_renewed);
        },
    ),
    counter(
        "hyphae_handshakes_refused_total",
        &["reason"],
        "Handshakes refused, by reason",
        |from, it| {
            for (reason, total) in &from.node.totals.refusals {
                it.set(&[reason], total);
            }
        },
    ),
    gauge(
        "hyphae_peers_rtt_seconds",
        &["quantile"],
        "Smoothed round-trip times of the peers that are up: median, p90, largest",
        |from, it| it.quantiles(&from.node.rtt),
    ),
    gauge(
        "hyphae_host_up",
        &[],
        "1 while this host's traffic passes the TUN device, 0 while it does not (`hyphae status` shows the cause); \
         absent without a device",
        |from, it| {
            if let Some(up) = from.node.host {
                it.set(&[], u8::from(up));
            }
        },
    ),
    counter(
        "hyphae_host_repairs_total",
        &["part"],
        "Repairs of the TUN device, its addresses and routes after changes by other programs",
        |from, it| {
            for (part, total) in &from.node.host_repairs {
                it.set(&[part], total);
            }
        },
    ),
    gauge(
        "hyphae_drained",
        &[],
        "1 while the node is drained: neighbours use other paths if they have any",
        |from, it| it.set(&[], u8::from(from.node.drained)),
    ),
    gauge(
        "hyphae_routes_held",
        &[],
        "1 while the workers use the routes of an earlier control plane, until this one has learnt them",
        |from, it| it.set(&[], u8::from(from.node.routes_held)),
    ),
    counter(
        "hyphae_config_reloads_total",
        &["result"],
        "Reloads of the configuration by result; a refused one changes nothing",
        |from, it| {
            it.set(&["done"], from.reloads.0);
            it.set(&["refused"], from.reloads.1);
        },
    ),
    gauge(
        "hyphae_config_last_reload_success_timestamp_seconds",
        &[],
        "When the configuration in force was read, seconds since 1970",
        |from, it| it.set(&[], from.reloads.2),
    ),
    counter(
        "hyphae_state_write_failures_total",
        &[],
        "Failed writes of state files; the changes were not made",
        |_, it| it.set(&[], files::write_failures()),
    ),
    gauge(
        "hyphae_process_resident_memory_bytes",
        &["process"],
        "Resident memory of each plane; both include shared pages of the segment",
        |from, it| {
            let planes = [
                ("controlplane", Some(std::process::id())),
                ("dataplane", from.node.dataplane),
            ];
            for (process, pid) in planes {
                // None for a dataplane that has just ended.
                if let Some(bytes) = pid.and_then(resident_bytes) {
                    it.set(&[process], bytes);
                }
            }
        },
    ),
];

/// Stream connections that are open: those opened and not ended.
fn open_streams(workers: &[StatsReader]) -> u64 {
    let all = |counter| -> u64 {
        let totals = workers.iter().map(StatsReader::counters);
        totals.map(|totals| totals[counter_at(counter)]).sum()
    };
    let opened = all(Counter::StreamAccepted) + all(Counter::StreamConnected);
    opened.saturating_sub(all(Counter::StreamEnded))
}

/// Resident memory of a process, from proc(5) `statm`: sizes in pages, the resident one is second.
fn resident_bytes(pid: u32) -> Option<u64> {
    let sizes = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}
