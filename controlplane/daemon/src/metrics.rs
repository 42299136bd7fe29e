//! `GET /metrics`: what the workers count and what the engines know, gathered when asked.
//!
//! Workers are not disturbed: their counters are read from the segment.

mod calls;
mod families;
mod family;
mod per_peer;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::reload::ReloadCounts;
use crate::rpc::Dispatcher;
use families::Source;
use hyphae_node::request::Command;
use hyphae_node::snapshot::Snapshot;
use hyphae_proxy as proxy;

pub(crate) use calls::CallLatency;

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
    // One at a time: each holds the text of thousands of peers.
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
        let mut text = text(scrape, &proxies, dispatcher.reloads());
        text.extend_from_slice(dispatcher.metrics().as_bytes());
        drop(turn);
        text
    });
    let Ok(text) = written.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn text(mut node: Snapshot, proxies: &proxy::Stats, reloads: ReloadCounts) -> Vec<u8> {
    let per_peer = node.per_peer.take();
    let source = Source {
        node,
        proxies: proxies.all(),
        reloads,
    };
    let mut text = families::render(&source).into_bytes();
    if let Some((mut peers, peers_max)) = per_peer {
        let traffic = |peer| {
            let workers = source.node.workers.iter();
            let workers = workers.map(|worker| worker.peer(peer));
            workers.fold([0; 2], |[received, sent], peer| {
                [received + peer.rx_bytes, sent + peer.tx_bytes]
            })
        };
        per_peer::render(&mut peers, peers_max, traffic, &mut text);
    }
    text
}
