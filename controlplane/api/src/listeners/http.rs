//! JSON-RPC over HTTP/1.1: `POST /rpc`, `GET /openrpc.json`, `GET /health`. The same on the Unix
//! socket and on TCP, behind the checks of `gate.rs`.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::authorizer::{Caller, Listener};
use crate::context::Dispatcher;
use crate::disconnect::Connected;
use crate::envelope::{LARGE_MAX, Parsed, SMALL_MAX, delivered, over_limit, refusal};
use crate::methods::document;
use hyphae_node::Delivery;

/// Limit of the time to receive a body.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(120);
/// Limit of a pause within a body.
const PAUSE_MAX: Duration = Duration::from_secs(10);

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().get().to_owned().into());

pub(super) const JSON: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "application/json")];

/// JSON-RPC, for every listener that speaks HTTP.
pub(super) fn router(dispatcher: Arc<Dispatcher>) -> Router {
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
        // The bytes and the permit of a long request are dropped before a call waits.
        Ok((body, _permit)) => Parsed::new(&body, &|method| dispatcher.authorize(&caller, method)),
        Err(refused) => return refused.into_response(),
    };
    // This future is dropped when the client disconnects, which cancels the waits of its calls only.
    let (_connected, disconnect) = Connected::new();
    let answer =
        tokio::spawn(async move { parsed.answer(&dispatcher, &caller, &disconnect).await });
    match answer.await {
        Ok(Some(answer)) if answer.deliveries.is_empty() => (JSON, answer.json).into_response(),
        Ok(Some(answer)) => delivery(answer.json, answer.deliveries),
        // Notifications only.
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// An answer with messages, which leave the inbox once it was written: its last byte is passed to the connection when
/// all before it was written and freed.
pub(crate) fn delivery(mut json: Vec<u8>, deliveries: Vec<Delivery>) -> Response {
    struct Unwritten {
        bytes: Vec<u8>,
        _until: oneshot::Sender<()>,
    }
    impl AsRef<[u8]> for Unwritten {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let length = [(header::CONTENT_LENGTH, json.len().to_string())];
    let last: Vec<u8> = json.pop().into_iter().collect();
    let (until, written) = oneshot::channel();
    let bytes = Bytes::from_owner(Unwritten {
        bytes: json,
        _until: until,
    });
    let first = stream::once(async move { Ok::<_, Infallible>(bytes) });
    let last = stream::once(async move {
        // Ends with an error, because the sender is dropped.
        let _ = written.await;
        tokio::spawn(delivered(deliveries));
        Ok(Bytes::from(last))
    });
    (JSON, length, Body::from_stream(first.chain(last))).into_response()
}

/// A body that is refused.
pub(crate) enum BodyRefused {
    /// Longer than [`LARGE_MAX`].
    TooLong,
    /// It is incomplete or malformed.
    Broken(String),
    /// It exceeded a time limit.
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

/// Reads a body within limits; a long one with a permit of the listener.
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
        // By received bytes: a length in the head takes no permit.
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
