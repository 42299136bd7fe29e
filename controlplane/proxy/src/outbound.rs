//! From a local program to a topic of another node: every request on a connection becomes a message, and
//! its reply is written to that connection.
//!
//! Requests of one connection are sent one after the other, so answers have the order of the requests, also when the
//! client pipelines. Connections are independent of each other.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::topics::{Authority, OutboundSocket};
use hyphae_bus::{Outgoing, Topic};
use hyphae_files::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::budget::{Budget, Share};
use super::framing::{
    Answers, CONTINUE, Expects, FRAME_MAX, Failure, FrameError, Framing, Request, Requests, Step,
};
use super::gate::{Gate, GateError};
use super::hangup::Hangup;
use super::stats::{Side, Stats};
use super::{BusClient, REPLY_WAIT, Settings};

/// Concurrent connections of one socket.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of requests in progress, all connections.
const BYTES_MAX: usize = 256 << 20;
/// Idle timeout in the middle of a request or of an answer.
const STALL: Duration = Duration::from_secs(60);
/// Time for which the rest of a refused request is read, so that the client receives the error.
const LINGER: Duration = Duration::from_secs(2);
const PIECE: usize = 64 << 10;
/// First read, which is mostly the only one: zeroing a large buffer costs more than a request.
const PIECE_FIRST: usize = 4 << 10;

/// All outbound sockets of a node.
pub struct Outbound<C> {
    shared: Arc<Shared<C>>,
    sockets: Mutex<BTreeMap<PathBuf, Serving>>,
    gate: Gate,
}

struct Shared<C> {
    bus: C,
    settings: Settings,
    stats: Stats,
    budget: Budget,
    reply_wait: Duration,
}

struct Serving {
    accepting: JoinHandle<()>,
    /// Dropping it ends the connections.
    _alive: watch::Sender<()>,
    /// Dropping it removes the file.
    _bound: Socket,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl<C: BusClient> Outbound<C> {
    /// Without sockets.
    pub fn new(bus: C, settings: Settings, stats: Stats, gate: Gate) -> Self {
        Self::with_wait(bus, settings, stats, gate, REPLY_WAIT)
    }

    pub(super) fn with_wait(
        bus: C,
        settings: Settings,
        stats: Stats,
        gate: Gate,
        reply_wait: Duration,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                bus,
                settings,
                stats,
                budget: Budget::new(BYTES_MAX),
                reply_wait,
            }),
            sockets: Mutex::default(),
            gate,
        }
    }

    /// Binds a socket on the authority of `set_by` and serves it for a topic. Destination and framing are those of the
    /// settings when a connection is accepted.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn bind(&self, topic: &Topic, path: &Path, set_by: Authority) -> Result<(), GateError> {
        let system = |source| GateError::System {
            path: path.to_owned(),
            source,
        };
        let (bound, listener) = self.gate.bind(path, set_by)?;
        let listener = UnixListener::from_std(listener).map_err(system)?;
        let (alive, ended) = watch::channel(());
        let accepting = tokio::spawn(accept(
            listener,
            topic.clone(),
            path.to_owned(),
            Arc::clone(&self.shared),
            ended,
        ));
        let serving = Serving {
            accepting,
            _alive: alive,
            _bound: bound,
        };
        tracing::info!(%topic, path = %path.display(), "outbound socket is served");
        self.lock().insert(path.to_owned(), serving);
        Ok(())
    }

    /// Stops serving a socket, ends its connections and removes it; false when it was not served.
    pub fn unbind(&self, path: &Path) -> bool {
        self.lock().remove(path).is_some()
    }

    /// Whether a socket is served.
    pub fn serves(&self, path: &Path) -> bool {
        self.lock().contains_key(path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Serving>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn bytes_left(&self) -> usize {
        self.shared.budget.left()
    }
}

async fn accept<C: BusClient>(
    listener: UnixListener,
    topic: Topic,
    path: PathBuf,
    shared: Arc<Shared<C>>,
    ended: watch::Receiver<()>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Further ones wait in the backlog of the socket.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot accept; retrying");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (topic, shared, mut ended) = (topic.clone(), Arc::clone(&shared), ended.clone());
        let path = path.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let served = async {
                if let Err(cause) = serve(stream, &topic, &shared).await {
                    shared.stats.note(Side::Outbound, cause.kind());
                    tracing::info!(%topic, path = %path.display(), %cause, "connection ended");
                }
            };
            tokio::select! {
                () = served => {}
                // The socket was removed.
                _ = ended.changed() => {}
            }
        });
    }
}

/// Why a connection was closed before its client closed it.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{}", .0.message())]
    Failed(Failure),
    #[error("the topic has no outbound socket any more")]
    NotConfigured,
    #[error("the client disconnected while it waited")]
    Disconnected,
    #[error("the client stalled in the middle of a request or answer")]
    Stalled,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl End {
    fn kind(&self) -> &'static str {
        match self {
            Self::Failed(failure) => failure.kind(),
            Self::NotConfigured => "not_configured",
            Self::Disconnected => "client_gone",
            Self::Stalled => "client_stalled",
            Self::Io(_) => "io",
        }
    }
}

async fn serve<C: BusClient>(
    mut stream: UnixStream,
    topic: &Topic,
    shared: &Shared<C>,
) -> Result<(), End> {
    let Some(config) = (shared.settings)(topic) else {
        return Err(End::NotConfigured);
    };
    let Some(OutboundSocket { dst, .. }) = config.outbound_socket else {
        return Err(End::NotConfigured);
    };
    let framing = config.framing;
    let hangup = Hangup::watch(&stream)?;
    let mut requests = Requests::new(framing, FRAME_MAX);
    let mut share = shared.budget.share();
    loop {
        let request = match next_request(&mut stream, &mut requests, &mut share, framing).await? {
            Next::Request(request) => request,
            Next::End => return Ok(()),
            Next::Failed(failure) => {
                let goes_on = matches!(failure, Failure::Frame(FrameError::NotJson));
                refuse(&mut stream, failure, framing, None).await?;
                if goes_on {
                    shared.stats.note(Side::Outbound, failure.kind());
                    continue;
                }
                linger(&mut stream).await;
                return Err(End::Failed(failure));
            }
        };
        let message = Outgoing {
            destination: dst,
            topic: topic.clone(),
            payload: request.bytes.clone(),
            digest: None,
            // Shorter than the wait, to distinguish a node that is unreachable from one that does not reply.
            try_for: Some(shared.reply_wait - shared.reply_wait / 60),
            reply_within: None,
            failure: None,
        };
        let outcome = tokio::select! {
            outcome = exchange(shared, message, &request) => outcome,
            () = hangup.happened() => return Err(End::Disconnected),
        };
        let (answer, persistent) = match outcome {
            Ok(answer) => answer,
            Err(failure) => {
                refuse(&mut stream, failure, framing, Some(&request.expects)).await?;
                if framing != Framing::JsonLines {
                    linger(&mut stream).await;
                }
                return Err(End::Failed(failure));
            }
        };
        write_all(&mut stream, &answer).await?;
        shared.stats.note(Side::Outbound, "answered");
        share.shrink(requests.buffered());
        if request.last || !persistent {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

/// The answer to a request, and whether the connection persists.
async fn exchange<C: BusClient>(
    shared: &Shared<C>,
    message: Outgoing,
    request: &Request,
) -> Result<(Bytes, bool), Failure> {
    if request.expects == Expects::Nothing {
        shared.bus.send(message).await?;
        return Ok((Bytes::new(), true));
    }
    let reply = shared.bus.request(message, shared.reply_wait).await?;
    // Bytes after the end of an answer must not be taken for the next one.
    match Answers::only(request.expects.clone(), &reply) {
        Ok(answer) => Ok((answer.bytes, answer.persistent)),
        // With this framing an empty answer is valid.
        Err(FrameError::Empty) if request.expects == Expects::UntilEof => Ok((Bytes::new(), false)),
        Err(_) => Err(Failure::BadAnswer),
    }
}

enum Next {
    Request(Request),
    End,
    Failed(Failure),
}

async fn next_request(
    stream: &mut UnixStream,
    requests: &mut Requests,
    share: &mut Share,
    framing: Framing,
) -> Result<Next, End> {
    let mut piece = vec![0; PIECE_FIRST];
    loop {
        match requests.poll() {
            Ok(Step::Request(request)) => return Ok(Next::Request(request)),
            Ok(Step::End) => return Ok(Next::End),
            Ok(Step::Continue) => {
                write_all(stream, CONTINUE).await?;
                continue;
            }
            Ok(Step::More) => {}
            Err(error) => return Ok(Next::Failed(Failure::Frame(error))),
        }
        // No timeout between requests.
        let read = if requests.buffered() == 0 && framing != Framing::Eof {
            stream.read(&mut piece).await?
        } else {
            timeout(STALL, stream.read(&mut piece))
                .await
                .map_err(|_| End::Stalled)??
        };
        if read == 0 {
            requests.end();
        } else if share.grow(read) {
            requests.feed(&piece[..read]);
            if read == piece.len() {
                piece.resize(PIECE, 0);
            }
        } else {
            return Ok(Next::Failed(Failure::Busy));
        }
    }
}

async fn refuse(
    stream: &mut UnixStream,
    failure: Failure,
    framing: Framing,
    expects: Option<&Expects>,
) -> Result<(), End> {
    match failure.answer(framing, expects) {
        Some(answer) => write_all(stream, &answer).await,
        None => Ok(()),
    }
}

/// Writes in pieces, each with the idle timeout.
async fn write_all(stream: &mut UnixStream, bytes: &[u8]) -> Result<(), End> {
    for piece in bytes.chunks(PIECE) {
        timeout(STALL, stream.write_all(piece))
            .await
            .map_err(|_| End::Stalled)??;
    }
    Ok(())
}

/// Closes so that the client reads what was written, even while it still sends (lingering close).
async fn linger(stream: &mut UnixStream) {
    // An error ends the connection as well.
    let _ = stream.shutdown().await;
    let mut piece = vec![0; PIECE];
    let drained = async { while matches!(stream.read(&mut piece).await, Ok(read) if read > 0) {} };
    let _ = timeout(LINGER, drained).await;
}
