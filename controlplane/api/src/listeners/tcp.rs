//! TCP listeners: accepts connections, identifies their callers, serves HTTP/1.1 within time limits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::connections::{Holder, REFUSED_AT_ONCE, Slots, Unaccepted, within_descriptors};
use super::error::ListenError;
use super::gate::Admission;
use super::peer_uid::PeerUids;
use crate::authorizer::{Authority, Caller, Listener};
use hyphae_proxy::Hangup;
use hyphae_store::files::retry_while_busy;
use hyphae_store::token::BearerToken;

/// Limit of the time to receive a head, and of the idle time between requests.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Longest head, bytes.
const HEAD_MAX: usize = 32 << 10;
/// Time for a refused caller to read the answer.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Connections of a listener for RPC, and their share of the process's descriptors.
const CONNECTIONS: (usize, usize) = (512, 8);
/// The same for metrics.
const METRICS_CONNECTIONS: (usize, usize) = (64, 32);

/// Who may call through a TCP listener.
pub(super) enum CallerPolicy {
    /// All callers; read-only.
    Open,
    /// Local users on loopback, holders of the token everywhere.
    Callers {
        /// Listener that calls come through.
        listener: Listener,
        /// Users beside root and the node's own.
        uids: Vec<u32>,
        /// Bearer token.
        token: Option<BearerToken>,
    },
}

/// Listens on an address; retries on the blocking pool while a killed process still holds it.
///
/// # Errors
/// When it cannot be bound.
pub(super) async fn listen_tcp(
    address: SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let fail = move |source| ListenError::Tcp {
        address,
        flag,
        source,
    };
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let bind =
        move || retry_while_busy(in_use, || std::net::TcpListener::bind(address)).map_err(fail);
    let bound = tokio::task::spawn_blocking(bind).await;
    let listener = bound.map_err(|error| fail(error.into()))??;
    listener.set_nonblocking(true).map_err(fail)?;
    TcpListener::from_std(listener).map_err(fail)
}

/// Serves a TCP listener. Does not return.
pub(super) async fn serve_tcp(
    listener: TcpListener,
    router: Router,
    access: CallerPolicy,
    what: &'static str,
) {
    let slots = match &access {
        CallerPolicy::Open => Slots::open(within_descriptors(
            METRICS_CONNECTIONS.0,
            METRICS_CONNECTIONS.1,
        )),
        CallerPolicy::Callers { .. } => {
            Slots::new(within_descriptors(CONNECTIONS.0, CONNECTIONS.1))
        }
    };
    let gate = CallerCheck {
        uids: match listener.local_addr() {
            Ok(at) if matches!(access, CallerPolicy::Callers { .. }) => Some(PeerUids::probe(at)),
            Ok(_) | Err(_) => None,
        },
        access,
    };
    let refused = Arc::new(Semaphore::new(REFUSED_AT_ONCE));
    let mut unaccepted = Unaccepted::new(what);
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                unaccepted.failed(&error).await;
                continue;
            }
        };
        let (mut admission, holder) = gate.admit(&stream, client).await;
        let Some(holder) = holder else {
            if let Some(Err(cause)) = admission.as_ref().map(|it| &it.caller) {
                unaccepted.note(cause);
            }
            // A refusal occupies a descriptor for a short time; beyond the limit, connections are closed without an
            // answer.
            let Ok(permit) = Arc::clone(&refused).try_acquire_owned() else {
                unaccepted.note(&"too many callers are being refused");
                continue;
            };
            let router = router.clone();
            tokio::spawn(async move {
                let answered = serve_connection(stream, router, admission, None);
                // The caller may not read the answer.
                let _ = tokio::time::timeout(REFUSED_WITHIN, answered).await;
                drop(permit);
            });
            continue;
        };
        let Some(slot) = slots.take(holder).map(Arc::new) else {
            unaccepted.note(&"too many connections");
            continue;
        };
        if let Some(admission) = &mut admission {
            admission.slot = Some(Arc::clone(&slot));
        }
        // Answers are written in one piece.
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = serve_connection(stream, router, admission, None) => {}
                () = slot.evicted() => {}
            }
        });
    }
}

struct CallerCheck {
    access: CallerPolicy,
    uids: Option<PeerUids>,
}

impl CallerCheck {
    /// Identifies the caller before a byte is read. Returns the holder of its slot; `None` for a caller that can only
    /// be refused.
    async fn admit(
        &self,
        stream: &TcpStream,
        client: SocketAddr,
    ) -> (Option<Admission>, Option<Holder>) {
        let CallerPolicy::Callers {
            listener,
            uids,
            token,
        } = &self.access
        else {
            return (None, Some(Holder::at(client.ip())));
        };
        let mut uid = None;
        let caller = self
            .caller(stream, client, (*listener, uids), &mut uid)
            .await;
        let holder = match (&caller, uid) {
            (Ok(caller), _) => Some(Holder::of(caller.authority())),
            (Err(_), _) if token.is_none() => None,
            (Err(_), Some(uid)) => Some(Holder::UnprovenUser(uid)),
            (Err(_), None) => Some(Holder::at(client.ip())),
        };
        let admission = Admission {
            listener: *listener,
            caller,
            token: token.clone(),
            slot: None,
        };
        (Some(admission), holder)
    }

    /// Sets `known` to the user, admitted or not.
    async fn caller(
        &self,
        stream: &TcpStream,
        client: SocketAddr,
        (listener, allowed): (Listener, &[u32]),
        known: &mut Option<u32>,
    ) -> Result<Caller, String> {
        let server = stream.local_addr().map_err(|error| error.to_string())?;
        let local = |ip: IpAddr| ip.to_canonical().is_loopback();
        let (Some(uids), true, true) = (self.uids, local(client.ip()), local(server.ip())) else {
            return Err("the caller is not on this host's loopback interface".to_owned());
        };
        let found = uids.of(server, client).await;
        let uid = found.map_err(|error| format!("the caller's user is not known: {error}"))?;
        *known = Some(uid);
        let caller = Caller::local(listener, uid);
        if caller.authority() == Authority::Node || allowed.contains(&uid) {
            return Ok(caller);
        }
        Err(format!(
            "user {uid} may not use this node; root, the node's own user and rpc.allow_uids of the \
             configuration may"
        ))
    }
}

/// Serves the requests of one connection. With `hangup`, a caller that has half-closed gets its answers. Over TCP a
/// half-close cannot be distinguished from a close, and counts as one.
pub(super) async fn serve_connection<S>(
    stream: S,
    router: Router,
    admission: Option<Admission>,
    hangup: Option<Hangup>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(admission) = &admission {
            request.extensions_mut().insert(admission.clone());
        }
        router.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_header_size(HEAD_MAX)
        .half_close(hangup.is_some());
    let hung_up = async {
        match &hangup {
            Some(hangup) => hangup.happened().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // The caller notices a broken connection.
        _ = http.serve_connection(TokioIo::new(stream), service) => {}
        () = hung_up => {}
    }
}
