//! `GET /metrics`: what the workers count and what the engines know, gathered when asked.
//!
//! Workers are not disturbed: their counters are read from the segment.

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
use tokio::sync::{mpsc, oneshot};

use crate::node::{Command, Scrape};
use crate::rpc::Dispatcher;
use families::{Family, Kind};

pub(crate) use families::RPC;

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
    let text = text(&scrape) + &dispatcher.metrics();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn text(scrape: &Scrape) -> String {
    // A recorder of its own for every scrape: a kept one would hide that a dataplane's counters
    // have started over, because it only ever raises them.
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        describe();
        record::record(scrape);
    });
    let mut text = recorder.handle().render();
    text.push_str(&record::render_rest(&scrape.workers));
    if let Some(peers) = &scrape.each_peer {
        text.push_str(&record::render_peers(peers));
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
