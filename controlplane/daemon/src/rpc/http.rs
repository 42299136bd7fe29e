//! JSON-RPC over HTTP/1.1: `POST /rpc`, `GET /openrpc.json`, `GET /health`. The same on the Unix
//! socket and on TCP, behind the checks of `gate.rs`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::BytesMut;
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::authorizer::{Caller, Listener};
use super::dispatch::Dispatcher;
use super::dispatch::document;
use super::envelope::{LARGE_MAX, Parsed, SMALL_MAX, over_limit, refusal};

/// How long a body may take to be received.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(120);
/// How long it may pause meanwhile.
const PAUSE_MAX: Duration = Duration::from_secs(10);

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().get().to_owned().into());

pub(super) const JSON: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "application/json")];

/// JSON-RPC, for every listener that speaks HTTP.
pub(crate) fn router(dispatcher: Arc<Dispatcher>) -> Router {
    Router::new()
        .route("/rpc", post(handle))
        .route("/", post(handle))
        .route("/health", get(|| async { "ok\n" }))
        .route("/openrpc.json", get(|| async { (JSON, DOCUMENT.clone()) }))
        .with_state(dispatcher)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn handle(
    State(dispatcher): State<Arc<Dispatcher>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let parsed = match read_body(&dispatcher, caller.listener, request).await {
        // The bytes go, and with them the permit for a long request, before anything waits.
        Ok((body, _permit)) => Parsed::new(&body),
        Err(refused) => return refused.into_response(),
    };
    match parsed.answer(&dispatcher, &caller).await {
        Some(answer) => (JSON, answer.json).into_response(),
        // Notifications only.
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

/// A body that is not taken.
pub(crate) enum BodyRefused {
    /// Longer than [`LARGE_MAX`].
    TooLong,
    /// It did not come whole.
    Broken(String),
    /// Not in time.
    Late(String),
}

impl IntoResponse for BodyRefused {
    fn into_response(self) -> Response {
        match self {
            Self::TooLong => {
                let close = [(header::CONNECTION, "close")];
                let body = refusal(over_limit());
                (StatusCode::PAYLOAD_TOO_LARGE, JSON, close, body).into_response()
            }
            Self::Broken(what) => (StatusCode::BAD_REQUEST, what).into_response(),
            Self::Late(what) => {
                let close = [(header::CONNECTION, "close")];
                (StatusCode::REQUEST_TIMEOUT, close, what).into_response()
            }
        }
    }
}

/// Reads a body within limits; a long one only while few others of the listener are being read.
pub(crate) async fn read_body(
    dispatcher: &Dispatcher,
    listener: Listener,
    request: Request<Body>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), BodyRefused> {
    let length = text(request.headers(), "content-length").and_then(|n| n.parse::<usize>().ok());
    if length.is_some_and(|length| length > LARGE_MAX) {
        return Err(BodyRefused::TooLong);
    }
    let reading = read_frames(dispatcher, listener, request.into_body());
    match tokio::time::timeout(BODY_WITHIN, reading).await {
        Ok(read) => read,
        Err(_) => Err(late()),
    }
}

async fn read_frames(
    dispatcher: &Dispatcher,
    listener: Listener,
    body: Body,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), BodyRefused> {
    let mut chunks = body.into_data_stream();
    let (mut read, mut permit) = (BytesMut::new(), None);
    loop {
        let next = tokio::time::timeout(PAUSE_MAX, chunks.next());
        let chunk = match next.await.map_err(|_| late())? {
            None => return Ok((read.freeze(), permit)),
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Err(BodyRefused::Broken(format!("{error}\n"))),
        };
        if read.len() + chunk.len() > LARGE_MAX {
            return Err(BodyRefused::TooLong);
        }
        // Whatever its head says: only what has come is long.
        if permit.is_none() && read.len() + chunk.len() > SMALL_MAX {
            permit = dispatcher.room_for_large(listener).await;
        }
        read.extend_from_slice(&chunk);
    }
}

fn late() -> BodyRefused {
    let (all, pause) = (BODY_WITHIN.as_secs(), PAUSE_MAX.as_secs());
    BodyRefused::Late(format!(
        "a body is received within {all} s, without a pause of {pause} s\n"
    ))
}
