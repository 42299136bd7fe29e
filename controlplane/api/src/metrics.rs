//! `GET /metrics`: a snapshot of the node, rendered when it is requested.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyphae_node::request::Command;
use hyphae_proxy::Stats;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::context::Dispatcher;

type Sources = (
    mpsc::Sender<Command>,
    Arc<Dispatcher>,
    Stats,
    Arc<Semaphore>,
);

/// Metrics, for a listener of their own.
pub fn router(
    commands: mpsc::Sender<Command>,
    dispatcher: Arc<Dispatcher>,
    proxies: Stats,
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
        let mut text = hyphae_metrics::render(scrape, &proxies, dispatcher.reloads());
        text.extend_from_slice(dispatcher.metrics().as_bytes());
        drop(turn);
        text
    });
    let Ok(text) = written.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
