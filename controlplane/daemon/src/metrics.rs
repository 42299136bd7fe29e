//! `GET /metrics`: what the workers count and what the engines know, gathered when asked.
//!
//! Workers are not disturbed: their counters are read from the segment.

mod each_peer;
mod families;
mod record;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyphae_shm::stats::Counter;
use metrics::{describe_counter, describe_gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::node::request::Command;
use crate::node::snapshot::Snapshot;
use crate::proxy;
use crate::rpc::Dispatcher;
use families::{Family, Kind};

pub(crate) use families::RPC;

type Sources = (
    mpsc::Sender<Command>,
    Arc<Dispatcher>,
    proxy::Stats,
    Arc<Semaphore>,
);

pub(crate) fn router(
    commands: mpsc::Sender<Command>,
    dispatcher: Arc<Dispatcher>,
    proxies: proxy::Stats,
) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state((
        commands,
        dispatcher,
        proxies,
        Arc::new(Semaphore::new(1)),
    ))
}

async fn scrape(State((commands, dispatcher, proxies, turn)): State<Sources>) -> Response {
    // One after the other: each gathers anew, and holds the text of thousands of peers.
    let turn = turn.acquire_owned().await;
    let (reply, answer) = oneshot::channel();
    let asked = commands.send(Command::Snapshot(reply)).await;
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
    // Not on the thread of the engines: hellos would wait for the text of thousands of peers.
    let written = tokio::task::spawn_blocking(move || {
        let mut text = text(scrape, &proxies);
        text.extend_from_slice(dispatcher.metrics().as_bytes());
        drop(turn);
        text
    });
    let Ok(text) = written.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn text(mut scrape: Snapshot, proxies: &proxy::Stats) -> Vec<u8> {
    // A recorder of its own for every scrape: a kept one would hide that a dataplane's counters
    // have started over, because it only ever raises them.
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        describe();
        record::record(&scrape);
        record::record_proxies(proxies);
    });
    let mut text = recorder.handle().render().into_bytes();
    text.extend_from_slice(record::render_rest(&scrape.workers).as_bytes());
    if let Some((peers, peers_max)) = &mut scrape.per_peer {
        let traffic = |peer| {
            let workers = scrape.workers.iter().map(|worker| worker.peer(peer));
            workers.fold([0; 2], |[received, sent], peer| {
                [received + peer.rx_bytes, sent + peer.tx_bytes]
            })
        };
        each_peer::render(peers, *peers_max, traffic, &mut text);
    }
    text
}

fn describe() {
    let declared = [families::NODE, families::ROUTING, families::BUS];
    for family in declared.into_iter().flatten().chain(families::SPECIAL) {
        describe_family(family.name.to_owned(), family.kind, family.help);
    }
    for Family {
        name, kind, help, ..
    } in Counter::ALL.iter().filter_map(|c| families::total(*c))
    {
        describe_family(name, kind, help);
    }
}

fn describe_family(name: String, kind: Kind, help: &'static str) {
    match kind {
        Kind::Counter => describe_counter!(name, help),
        Kind::Gauge => describe_gauge!(name, help),
        // Written by `render_rest`, or kept by the calls.
        Kind::Histogram => {}
    }
}
