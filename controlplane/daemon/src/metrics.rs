//! `GET /metrics`: what the workers count and what the engines know, gathered when asked.
//!
//! Workers are not disturbed: their counters are read from the segment. [`FAMILIES`] declares what
//! does not come from there.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyphae_shm::stats::{Counter, DropReason, counter_at, drop_at};
use metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::{mpsc, oneshot};

use crate::bus::BusScrape;
use crate::node::{Command, Scrape};
use crate::rpc::Dispatcher;

enum Kind {
    Counter,
    Gauge,
}

/// Families of the control plane: name, kind, help.
const FAMILIES: &[(&str, Kind, &str)] = &[
    (
        "hyphae_build_info",
        Kind::Gauge,
        "Always 1; the version is in the label",
    ),
    (
        "hyphae_attach_generation",
        Kind::Gauge,
        "Control planes that this dataplane has seen; 0 while not attached",
    ),
    (
        "hyphae_program_backlog",
        Kind::Gauge,
        "Records that wait for room in the program rings",
    ),
    ("hyphae_peers", Kind::Gauge, "Peers by state"),
    (
        "hyphae_stream_connections",
        Kind::Gauge,
        "Open stream (TCP) connections",
    ),
    ("hyphae_sessions", Kind::Gauge, "End-to-end sessions"),
    ("hyphae_routes", Kind::Gauge, "Routes in use"),
    (
        "hyphae_peer_up_total",
        Kind::Counter,
        "Times a peer came up",
    ),
    (
        "hyphae_peer_down_total",
        Kind::Counter,
        "Times a peer went down",
    ),
    (
        "hyphae_peer_moves_total",
        Kind::Counter,
        "Times a peer came from a new underlay address",
    ),
    (
        "hyphae_session_up_total",
        Kind::Counter,
        "End-to-end sessions made",
    ),
    (
        "hyphae_session_down_total",
        Kind::Counter,
        "End-to-end sessions ended",
    ),
    (
        "hyphae_session_failed_total",
        Kind::Counter,
        "Addresses for which no session could be made",
    ),
    (
        "hyphae_handshakes_refused_total",
        Kind::Counter,
        "Handshakes refused, by reason",
    ),
];

/// Families of the message bus.
const BUS_FAMILIES: &[(&str, Kind, &str)] = &[
    (
        "hyphae_messages_sent_total",
        Kind::Counter,
        "Outgoing messages by outcome; \"read\" counts some of those received",
    ),
    (
        "hyphae_messages_taken_total",
        Kind::Counter,
        "Incoming messages that were kept",
    ),
    (
        "hyphae_messages_rejected_total",
        Kind::Counter,
        "Incoming messages refused, by reason and class of the topic",
    ),
    (
        "hyphae_messages_pushed_back_total",
        Kind::Counter,
        "Times that a sender was told to wait, for want of room",
    ),
    (
        "hyphae_messages_duplicate_total",
        Kind::Counter,
        "Late copies of messages that had been taken already",
    ),
    (
        "hyphae_messages_expired_total",
        Kind::Counter,
        "Unfinished incoming messages dropped, because nothing more of them came",
    ),
    (
        "hyphae_message_packets_total",
        Kind::Counter,
        "Packets of the bus by direction",
    ),
    (
        "hyphae_message_packets_dropped_total",
        Kind::Counter,
        "Packets of the bus dropped, by reason",
    ),
    (
        "hyphae_message_retransmissions_total",
        Kind::Counter,
        "Chunks sent again",
    ),
    (
        "hyphae_messages_outgoing",
        Kind::Gauge,
        "Outgoing messages that are not finished",
    ),
    ("hyphae_messages_outgoing_bytes", Kind::Gauge, "Their bytes"),
    (
        "hyphae_messages_incoming",
        Kind::Gauge,
        "Incoming messages that are not complete or not decided",
    ),
    (
        "hyphae_inbox_messages",
        Kind::Gauge,
        "Messages that wait to be read",
    ),
    ("hyphae_inbox_bytes", Kind::Gauge, "Their bytes"),
    (
        "hyphae_inbox_waiting",
        Kind::Gauge,
        "Calls that wait for a message",
    ),
    (
        "hyphae_inbox_failures_total",
        Kind::Counter,
        "Messages that the inbox could not store; their senders try again",
    ),
    (
        "hyphae_inbox_commits_total",
        Kind::Counter,
        "Transactions of the inbox; many messages share one",
    ),
    (
        "hyphae_proxy_requests_total",
        Kind::Counter,
        "Requests of socket proxies by side and outcome",
    ),
];

/// Name of the family of a worker's counter.
fn counter_family(counter: Counter) -> String {
    format!("hyphae_dataplane_{}_total", counter.name())
}

const DROPS: &str = "hyphae_dataplane_drops_total";

type Sources = (mpsc::Sender<Command>, Arc<Dispatcher>);

pub(crate) fn router(commands: mpsc::Sender<Command>, dispatcher: Arc<Dispatcher>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state((commands, dispatcher))
}

async fn scrape(State((commands, dispatcher)): State<Sources>) -> Response {
    let (reply, answer) = oneshot::channel();
    let asked = commands.send(Command::Scrape(reply)).await;
    let Ok(scrape) = answer
        .await
        .map_err(|_| ())
        .and_then(|s| asked.map(|()| s).map_err(|_| ()))
    else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the node is shutting down\n",
        )
            .into_response();
    };
    // A recorder of its own for every scrape: a kept one would hide that a dataplane's counters
    // have started over, because it only ever raises them.
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        describe();
        record(&scrape);
    });
    let text = recorder.handle().render() + &dispatcher.metrics();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn describe() {
    for (name, kind, help) in FAMILIES.iter().chain(BUS_FAMILIES) {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
        }
    }
    for counter in Counter::ALL {
        describe_counter!(counter_family(*counter), counter.gloss());
    }
    describe_counter!(DROPS, "Packets dropped, by reason");
}

fn record(scrape: &Scrape) {
    gauge!("hyphae_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("hyphae_attach_generation").set(scrape.generation as f64);
    gauge!("hyphae_program_backlog").set(scrape.backlog as f64);
    gauge!("hyphae_sessions").set(scrape.sessions as f64);
    gauge!("hyphae_routes").set(scrape.routes as f64);
    for (state, count) in &scrape.peers_by_state {
        gauge!("hyphae_peers", "state" => *state).set(*count as f64);
    }
    let totals = &scrape.totals;
    for (name, total) in [
        ("hyphae_peer_up_total", totals.peers_up),
        ("hyphae_peer_down_total", totals.peers_down),
        ("hyphae_peer_moves_total", totals.peer_moves),
        ("hyphae_session_up_total", totals.sessions_up),
        ("hyphae_session_down_total", totals.sessions_down),
        ("hyphae_session_failed_total", totals.sessions_failed),
    ] {
        counter!(name).absolute(total);
    }
    for (reason, total) in &totals.refusals {
        counter!("hyphae_handshakes_refused_total", "reason" => *reason).absolute(*total);
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
        let (worker, n) = (worker.counters(), n.to_string());
        for counter in Counter::ALL {
            let total = worker[counter_at(*counter)];
            counter!(counter_family(*counter), "worker" => n.clone()).absolute(total);
        }
        for reason in DropReason::ALL {
            let total = worker[drop_at(*reason)];
            counter!(DROPS, "worker" => n.clone(), "reason" => reason.name()).absolute(total);
        }
    }
}

fn record_bus(bus: &BusScrape) {
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
        ("answers_full", stats.answers_dropped),
        ("session_unknown", bus.unknown_sources),
    ] {
        counter!(DROPPED, "reason" => reason).absolute(total);
    }
    for (name, total) in [
        ("hyphae_messages_taken_total", stats.accepted),
        ("hyphae_messages_pushed_back_total", stats.pushed_back),
        ("hyphae_messages_duplicate_total", stats.duplicates),
        ("hyphae_messages_expired_total", stats.expired),
        (
            "hyphae_message_retransmissions_total",
            stats.retransmissions,
        ),
        ("hyphae_inbox_failures_total", bus.inbox_failures),
        ("hyphae_inbox_commits_total", bus.inbox_commits),
    ] {
        counter!(name).absolute(total);
    }
    for ((side, outcome), total) in &bus.proxies {
        let side = side.name();
        counter!("hyphae_proxy_requests_total", "side" => side, "outcome" => *outcome)
            .absolute(*total);
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
        ("hyphae_inbox_waiting", bus.waiting),
    ] {
        gauge!(name).set(held as f64);
    }
}
