//! JSON-RPC over HTTP/1.1: `POST /rpc`, `GET /openrpc.json`, `GET /health`. The same on the Unix
//! socket and on TCP; on TCP a page in a browser could call too, and is kept out.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};

use super::authorizer::Caller;
use super::dispatch::Dispatcher;
use super::envelope::{LARGE_MAX, Parsed, SMALL_MAX, over_limit, refusal};

/// How long a body may take to come in.
const BODY_WITHIN: Duration = Duration::from_secs(120);

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(hyphae_rpc::openrpc().to_string()));

const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// What the Unix socket serves.
pub(crate) fn router(dispatcher: Arc<Dispatcher>) -> Router {
    Router::new()
        .route("/rpc", post(handle))
        .route("/", post(handle))
        .route("/health", get(|| async { "ok\n" }))
        .route("/openrpc.json", get(|| async { (JSON, DOCUMENT.clone()) }))
        .with_state(dispatcher)
}

/// The same over TCP.
pub(crate) fn tcp_router(dispatcher: Arc<Dispatcher>) -> Router {
    only_for_programs(router(dispatcher))
}

/// Keeps pages in a browser of this host out: only JSON, which a page of another origin may not send
/// unasked; only to an address or localhost, so that a name that was pointed here (DNS rebinding)
/// does not help; and nothing that a browser itself marks as asked for by another site.
pub(crate) fn only_for_programs(router: Router) -> Router {
    router.layer(axum::middleware::from_fn(
        |request: Request<Body>, next: Next| async move {
            match browser(&request) {
                Some(refusal) => refusal.into_response(),
                None => next.run(request).await,
            }
        },
    ))
}

fn browser(request: &Request<Body>) -> Option<(StatusCode, &'static str)> {
    let text = |name| text(request.headers(), name);
    let host = text("host").unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare != "localhost" && bare.parse::<std::net::IpAddr>().is_err() {
        let say = "call this node by address or as localhost\n";
        return Some((StatusCode::FORBIDDEN, say));
    }
    if text("sec-fetch-site").is_some_and(|site| site != "none" && site != "same-origin") {
        return Some((StatusCode::FORBIDDEN, "not for pages of other sites\n"));
    }
    let has_body = [Method::POST, Method::PUT].contains(request.method());
    let json = text("content-type").is_some_and(|kind| kind.starts_with("application/json"));
    let say = "Content-Type must be application/json\n";
    (has_body && !json).then_some((StatusCode::UNSUPPORTED_MEDIA_TYPE, say))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn handle(
    State(dispatcher): State<Arc<Dispatcher>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let parsed = match read_body(&dispatcher, request).await {
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
    /// It did not come whole, or not in time.
    Broken(String),
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
        }
    }
}

/// Reads a body within limits; a long one only while few others are being read.
pub(crate) async fn read_body(
    dispatcher: &Dispatcher,
    request: Request<Body>,
) -> Result<(Bytes, Option<tokio::sync::OwnedSemaphorePermit>), BodyRefused> {
    let length = text(request.headers(), "content-length").and_then(|n| n.parse::<usize>().ok());
    if length.is_some_and(|length| length > LARGE_MAX) {
        return Err(BodyRefused::TooLong);
    }
    // A body that does not say how long it is may be long.
    let permit = match length {
        Some(length) if length <= SMALL_MAX => None,
        Some(_) | None => dispatcher.room_for_large().await,
    };
    let reading = to_bytes(request.into_body(), LARGE_MAX);
    match tokio::time::timeout(BODY_WITHIN, reading).await {
        Ok(Ok(body)) => Ok((body, permit)),
        Ok(Err(error)) if error.to_string().contains("length limit") => Err(BodyRefused::TooLong),
        Ok(Err(error)) => Err(BodyRefused::Broken(format!("{error}\n"))),
        Err(_) => Err(BodyRefused::Broken(
            "the body did not come in time\n".to_owned(),
        )),
    }
}
