//! From what the node knows to time series.

use std::fmt::Write;
use std::time::Duration;

use hyphae_routing::babel::RefusalReason;
use hyphae_shm::StatsReader;
use hyphae_shm::stats::{COUNTERS, Counter, DropReason, FRAME_BUCKETS, counter_at, drop_at};
use hyphae_wire::Suite;
use metrics::{counter, gauge};

use super::families::{self, Family};
use crate::node::snapshot::{BusSnapshot, RoutingSnapshot, Snapshot};
use crate::proxy;
use hyphae_host::Part;
use hyphae_store::files;

/// Sets every series of the recorder in force.
pub(crate) fn record(scrape: &Snapshot) {
    gauge!("hyphae_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("hyphae_attach_generation").set(scrape.generation as f64);
    gauge!("hyphae_program_backlog").set(scrape.backlog as f64);
    gauge!("hyphae_sessions").set(scrape.sessions as f64);
    gauge!("hyphae_routes").set(scrape.routes as f64);
    gauge!("hyphae_drained").set(f64::from(u8::from(scrape.drained)));
    gauge!("hyphae_routes_held").set(f64::from(u8::from(scrape.routes_held)));
    record_quantiles("hyphae_peers_rtt_seconds", &scrape.rtt);
    for (state, count) in &scrape.peers_by_state {
        gauge!("hyphae_peers", "state" => *state).set(*count as f64);
    }
    let totals = &scrape.totals;
    for (name, total) in [
        ("hyphae_peer_up_total", totals.peers_up),
        ("hyphae_peer_down_total", totals.peers_down),
        ("hyphae_peer_moves_total", totals.peer_moves),
        ("hyphae_duplicate_keys_total", totals.duplicate_keys),
        ("hyphae_session_up_total", totals.sessions_up),
        ("hyphae_session_down_total", totals.sessions_down),
        ("hyphae_session_failed_total", totals.sessions_failed),
        ("hyphae_state_write_failures_total", files::write_failures()),
    ] {
        counter!(name).absolute(total);
    }
    for (reason, total) in &totals.refusals {
        counter!("hyphae_handshakes_refused_total", "reason" => *reason).absolute(*total);
    }
    if let Some(up) = scrape.host {
        gauge!("hyphae_host_up").set(f64::from(u8::from(up)));
    }
    for part in Part::ALL {
        let total = scrape.host_repairs.get(&part).copied().unwrap_or(0);
        counter!("hyphae_host_repairs_total", "part" => part.name()).absolute(total);
    }
    for (plane, total) in [
        ("controlplane", totals.controlplane_restarts),
        ("dataplane", totals.dataplane_restarts),
    ] {
        counter!("hyphae_plane_restarts_total", "plane" => plane).absolute(total);
    }
    let handshakes = &scrape.handshakes;
    for (result, total) in [
        ("finished", handshakes.finished),
        ("refused", handshakes.refused),
        ("unanswered", handshakes.unanswered),
        ("abandoned", handshakes.abandoned),
        ("crowded", handshakes.crowded),
    ] {
        counter!("hyphae_handshakes_total", "result" => result).absolute(total);
    }
    for (kind, total) in [
        ("link", handshakes.links_renewed),
        ("end_to_end", handshakes.sessions_renewed),
    ] {
        counter!("hyphae_rekeys_total", "kind" => kind).absolute(total);
    }
    let (done, refused, last) = scrape.reloads;
    counter!("hyphae_config_reloads_total", "result" => "done").absolute(done);
    counter!("hyphae_config_reloads_total", "result" => "refused").absolute(refused);
    gauge!("hyphae_config_last_reload_success_timestamp_seconds").set(last as f64);
    let planes = [
        ("controlplane", Some(std::process::id())),
        ("dataplane", scrape.dataplane),
    ];
    for (process, pid) in planes {
        // Of a dataplane that has ended just now there is nothing to tell.
        if let Some(bytes) = pid.and_then(resident_bytes) {
            gauge!("hyphae_process_resident_memory_bytes", "process" => process).set(bytes as f64);
        }
    }
    record_bus(&scrape.bus);
    let all = |counter| -> u64 {
        let workers = scrape.workers.iter();
        workers
            .map(|worker| worker.counters()[counter_at(counter)])
            .sum()
    };
    let opened = all(Counter::StreamAccepted) + all(Counter::StreamConnected);
    let open = opened.saturating_sub(all(Counter::StreamEnded));
    gauge!("hyphae_stream_connections").set(open as f64);
    for (n, worker) in scrape.workers.iter().enumerate() {
        record_worker(&n.to_string(), &worker.counters());
    }
    if let Some(routing) = &scrape.routing {
        record_routing(routing);
    }
}

/// Resident memory of a process, from proc(5) `statm`: sizes in pages, the resident one is second.
fn resident_bytes(pid: u32) -> Option<u64> {
    let sizes = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

fn record_worker(worker: &str, totals: &[u64; COUNTERS]) {
    let of = |counter| totals[counter_at(counter)];
    for counter in Counter::ALL {
        if let Some(family) = families::total(*counter) {
            counter!(family.name, "worker" => worker.to_owned()).absolute(of(*counter));
        }
    }
    for reason in DropReason::ALL {
        let total = totals[drop_at(*reason)];
        counter!(families::DROPS.name, "worker" => worker.to_owned(), "reason" => reason.name())
            .absolute(total);
    }
    for (operation, suite, counter) in [
        ("seal", Suite::Aes256Gcm, Counter::SealedAes),
        ("seal", Suite::ChaCha20Poly1305, Counter::SealedChaCha),
        ("open", Suite::Aes256Gcm, Counter::OpenedAes),
        ("open", Suite::ChaCha20Poly1305, Counter::OpenedChaCha),
    ] {
        let (worker, suite) = (worker.to_owned(), suite.to_string());
        counter!(families::AEAD.name, "worker" => worker, "operation" => operation, "suite" => suite)
            .absolute(of(counter));
    }
    for (family, counter) in [
        (families::BUFFERS, Counter::Buffers),
        (families::BUFFERS_USED, Counter::BuffersUsed),
    ] {
        gauge!(family.name, "worker" => worker.to_owned()).set(of(counter) as f64);
    }
}

/// What the recorder cannot be told: a counter that is no whole number, and histograms whose
/// buckets were counted elsewhere.
pub(crate) fn render_rest(workers: &[StatsReader]) -> String {
    let totals: Vec<_> = workers.iter().map(StatsReader::counters).collect();
    let mut text = String::new();
    let mut head = |family: &Family| {
        let Family { name, help, .. } = family;
        let kind = family.kind.name();
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        let mut lines = String::new();
        for (worker, totals) in totals.iter().enumerate() {
            let of = |counter| totals[counter_at(counter)];
            let (first, sum, count) = match *name {
                name if name == families::RX_TRAINS.name => (
                    Counter::RxTrains1,
                    Counter::UnderlayRxPackets,
                    Counter::UnderlayRxTrains,
                ),
                name if name == families::TX_TRAINS.name => (
                    Counter::TxTrains1,
                    Counter::UnderlayTxPackets,
                    Counter::UnderlayTxTrains,
                ),
                name if name == families::TURNS.name => {
                    (Counter::Turns1, Counter::UnderlayRxPackets, Counter::Turns)
                }
                _ => {
                    let seconds = of(Counter::BusyNanoseconds) as f64 / 1e9;
                    let _ = writeln!(lines, "{name}{{worker=\"{worker}\"}} {seconds}");
                    continue;
                }
            };
            let (mut below, at) = (0, counter_at(first));
            for (bucket, bound) in FRAME_BUCKETS.iter().enumerate() {
                below += totals[at + bucket];
                let _ = writeln!(
                    lines,
                    "{name}_bucket{{worker=\"{worker}\",le=\"{bound}\"}} {below}"
                );
            }
            // Counters are read one after the other while the worker counts on.
            let (sum, count) = (of(sum), of(count).max(below));
            let _ = writeln!(
                lines,
                "{name}_bucket{{worker=\"{worker}\",le=\"+Inf\"}} {count}\n\
                 {name}_sum{{worker=\"{worker}\"}} {sum}\n\
                 {name}_count{{worker=\"{worker}\"}} {count}"
            );
        }
        text.push_str(&lines);
    };
    head(&families::BUSY);
    head(&families::RX_TRAINS);
    head(&families::TX_TRAINS);
    head(&families::TURNS);
    text
}

fn record_routing(routing: &RoutingSnapshot) {
    let counters = &routing.counters;
    for (state, links) in [("heard", routing.heard), ("not_heard", routing.not_heard)] {
        gauge!("hyphae_routing_links", "state" => state).set(links as f64);
    }
    record_quantiles("hyphae_routing_rtt_seconds", &routing.rtt);
    const PACKETS: &str = "hyphae_routing_packets_total";
    counter!(PACKETS, "direction" => "out").absolute(counters.packets_sent);
    counter!(PACKETS, "direction" => "in").absolute(counters.packets_received);
    const BYTES: &str = "hyphae_routing_bytes_total";
    counter!(BYTES, "direction" => "out").absolute(counters.bytes_sent);
    counter!(BYTES, "direction" => "in").absolute(counters.bytes_received);
    const UPDATES: &str = "hyphae_routing_updates_total";
    counter!(UPDATES, "direction" => "out").absolute(counters.updates_sent);
    counter!(UPDATES, "direction" => "in").absolute(counters.updates_received);
    for (name, total) in [
        ("hyphae_routing_malformed_total", counters.malformed),
        ("hyphae_routing_ignored_total", counters.ignored),
        ("hyphae_routing_put_off_total", counters.put_off),
        ("hyphae_routing_repeated_total", counters.repeated),
        (
            "hyphae_routing_seqno_requests_total",
            counters.seqno_requests_sent,
        ),
        ("hyphae_routing_signatures_checked_total", counters.verified),
        ("hyphae_routing_changes_total", counters.route_changes),
        ("hyphae_routing_displaced_total", counters.displaced),
    ] {
        counter!(name).absolute(total);
    }
    for (reason, total) in RefusalReason::ALL.iter().zip(counters.refused) {
        counter!("hyphae_routing_refused_total", "reason" => reason.name()).absolute(total);
    }
}

/// Median, nine tenths and largest of some times, in seconds.
fn record_quantiles(name: &'static str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let Some(last) = sorted.len().checked_sub(1) else {
        return;
    };
    for (quantile, at) in [("0.5", last / 2), ("0.9", last * 9 / 10), ("1", last)] {
        gauge!(name, "quantile" => quantile).set(sorted[at].as_secs_f64());
    }
}

fn record_bus(bus: &BusSnapshot) {
    let stats = &bus.stats;
    const SENT: &str = "hyphae_messages_sent_total";
    counter!(SENT, "outcome" => "received").absolute(stats.received);
    counter!(SENT, "outcome" => "read").absolute(stats.read);
    for (reason, total) in &stats.aborted {
        counter!(SENT, "outcome" => format!("aborted_{reason}")).absolute(*total);
    }
    for ((reason, class), total) in &stats.rejected {
        let (reason, class) = (reason.name(), class.name());
        counter!("hyphae_messages_rejected_total", "reason" => reason, "topic" => class)
            .absolute(*total);
    }
    const PACKETS: &str = "hyphae_message_packets_total";
    counter!(PACKETS, "direction" => "out").absolute(stats.packets_sent);
    counter!(PACKETS, "direction" => "in").absolute(stats.packets_received);
    const DROPPED: &str = "hyphae_message_packets_dropped_total";
    for (reason, total) in [
        ("malformed", stats.malformed),
        ("answers_full", stats.control_dropped),
        ("session_unknown", bus.unknown_sources),
    ] {
        counter!(DROPPED, "reason" => reason).absolute(total);
    }
    for (name, total) in [
        ("hyphae_messages_taken_total", stats.accepted),
        ("hyphae_messages_pushed_back_total", stats.deferred),
        ("hyphae_messages_duplicate_total", stats.duplicates),
        ("hyphae_messages_expired_total", stats.expired),
        ("hyphae_messages_displaced_total", stats.displaced),
        (
            "hyphae_message_retransmissions_total",
            stats.retransmissions,
        ),
        ("hyphae_inbox_failures_total", bus.inbox_failures),
        ("hyphae_inbox_commits_total", bus.inbox_commits),
    ] {
        counter!(name).absolute(total);
    }
    for (name, held) in [
        ("hyphae_messages_outgoing", stats.outgoing),
        ("hyphae_messages_outgoing_bytes", stats.outgoing_bytes),
        ("hyphae_messages_incoming", stats.incoming),
    ] {
        gauge!(name).set(held as f64);
    }
    for (name, held) in [
        ("hyphae_inbox_messages", bus.inbox_messages),
        ("hyphae_inbox_bytes", bus.inbox_bytes),
        ("hyphae_inbox_messages_limit", bus.inbox_messages_max),
        ("hyphae_inbox_bytes_limit", bus.inbox_bytes_max),
        ("hyphae_inbox_waiting", bus.waiting),
        ("hyphae_inbox_leased", bus.leased),
        ("hyphae_messages_room_waiting", bus.room_waiting),
    ] {
        gauge!(name).set(held as f64);
    }
}

pub(crate) fn record_proxies(proxies: &proxy::Stats) {
    for ((side, outcome), total) in proxies.all() {
        let side = side.name();
        counter!("hyphae_proxy_requests_total", "side" => side, "outcome" => outcome)
            .absolute(total);
    }
}
