//! `GET /metrics`: a snapshot of the node, rendered when it is requested.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyphae_proxy::Stats;
use tokio::sync::Semaphore;

use crate::context::Dispatcher;

/// The dispatcher, requests of the socket proxies, and the permit of a scrape.
type Sources = (Arc<Dispatcher>, Stats, Arc<Semaphore>);

/// Metrics, for a listener of their own.
pub(super) fn router(dispatcher: Arc<Dispatcher>, proxies: Stats) -> Router {
    let sources = (dispatcher, proxies, Arc::new(Semaphore::new(1)));
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(sources)
}

async fn scrape(State((dispatcher, proxies, turn)): State<Sources>) -> Response {
    // One at a time: the text of thousands of peers takes memory.
    let turn = turn.acquire_owned().await;
    let scrape = match dispatcher.node().snapshot().await {
        Ok(scrape) => scrape,
        Err(stopped) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{stopped}\n")).into_response();
        }
    };
    // Rendering on the engine thread would delay hellos.
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
