//! JSON-RPC over HTTP, on the Unix socket and on TCP: transport here, methods in [`methods`].

mod methods;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use hyphae_rpc::message::{Error, Request as Call, Response, code};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use crate::node::Command;

pub(crate) use methods::{ping_params, state_name, trace_hop, trace_params};

/// File name of the Unix socket.
pub(crate) const SOCKET_NAME: &str = "rpc.sock";
/// Largest request taken.
const REQUEST_MAX: usize = 8 << 20;
/// Calls of one batch.
const BATCH_MAX: usize = 1000;

type Commands = mpsc::Sender<Command>;

pub(crate) fn router(commands: Commands) -> Router {
    Router::new()
        .route("/rpc", post(handle))
        .route("/", post(handle))
        .route("/health", get(|| async { "ok\n" }))
        .layer(DefaultBodyLimit::max(REQUEST_MAX))
        .with_state(commands)
}

/// The same over TCP, where a page in a browser of this host could call too: only JSON, which a page
/// of another origin may not send unasked, and only to an address or localhost, so that a name that
/// was pointed here (DNS rebinding) does not help.
pub(crate) fn tcp_router(commands: Commands) -> Router {
    router(commands).layer(axum::middleware::from_fn(only_programs))
}

async fn only_programs(request: Request<Body>, next: Next) -> HttpResponse {
    match refusal(&request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

fn refusal(request: &Request<Body>) -> Option<(StatusCode, &'static str)> {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare != "localhost" && bare.parse::<std::net::IpAddr>().is_err() {
        return Some((
            StatusCode::FORBIDDEN,
            "call this node by address or as localhost\n",
        ));
    }
    let json = text(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    let say = "Content-Type must be application/json\n";
    (request.method() == Method::POST && !json).then_some((StatusCode::UNSUPPORTED_MEDIA_TYPE, say))
}

async fn handle(State(commands): State<Commands>, body: Bytes) -> HttpResponse {
    let answer = match serde_json::from_slice::<Value>(&body) {
        Err(error) => {
            let error = Error::new(code::PARSE, format!("not JSON: {error}"));
            Some(serde_json::to_value(Response::new(Value::Null, Err(error))))
        }
        Ok(Value::Array(calls)) if calls.is_empty() || calls.len() > BATCH_MAX => {
            let message = format!("a batch holds 1 to {BATCH_MAX} calls");
            let error = Error::new(code::INVALID_REQUEST, message);
            Some(serde_json::to_value(Response::new(Value::Null, Err(error))))
        }
        Ok(Value::Array(calls)) => {
            let mut responses = Vec::new();
            for call in calls {
                responses.extend(answer(&commands, call).await);
            }
            (!responses.is_empty()).then(|| serde_json::to_value(responses))
        }
        Ok(call) => answer(&commands, call).await.map(serde_json::to_value),
    };
    match answer {
        // Notifications only.
        None => StatusCode::NO_CONTENT.into_response(),
        Some(Ok(value)) => (
            [(header::CONTENT_TYPE, "application/json")],
            value.to_string(),
        )
            .into_response(),
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Answers one call; `None` for a notification.
async fn answer(commands: &Commands, call: Value) -> Option<Response> {
    let request = match serde_json::from_value::<Call>(call) {
        Ok(request) if request.jsonrpc == "2.0" => request,
        Ok(_) | Err(_) => {
            let error = Error::new(code::INVALID_REQUEST, "not a JSON-RPC 2.0 request");
            return Some(Response::new(Value::Null, Err(error)));
        }
    };
    let (reply, result) = oneshot::channel();
    let command = Command::Call {
        method: request.method,
        params: request.params,
        reply,
    };
    let ending = || Error::new(code::INTERNAL, "the node is shutting down");
    let result = match commands.send(command).await {
        Ok(()) => result.await.unwrap_or_else(|_| Err(ending())),
        Err(_) => Err(ending()),
    };
    request.id.map(|id| Response::new(id, result))
}

/// A listening socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Unix socket.
    #[error("{path}: {source}")]
    Unix {
        /// Which.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// Another node.
    #[error("{0}: another node answers there; stop it or use another --socket-dir")]
    InUse(PathBuf),
    /// TCP socket.
    #[error("cannot listen on {address}: {source}; choose another address with {flag}, or 'off'")]
    Tcp {
        /// Which.
        address: std::net::SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// How.
        source: io::Error,
    },
}

/// Takes over `rpc.sock`; a socket file that nobody listens on is replaced.
pub(crate) fn listen_unix(directory: &Path) -> Result<UnixListener, ListenError> {
    let path = directory.join(SOCKET_NAME);
    let fail = |source| ListenError::Unix {
        path: path.clone(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(ListenError::InUse(path));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(fail)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).map_err(fail)?;
    Ok(listener)
}

pub(crate) async fn listen_tcp(
    address: std::net::SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let fail = |source| ListenError::Tcp {
        address,
        flag,
        source,
    };
    TcpListener::bind(address).await.map_err(fail)
}
