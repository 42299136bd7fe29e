//! From a topic to a local server: a message is written to the topic's Unix socket, the answer becomes its
//! reply.
//!
//! A message is stored in the inbox first, under a lease, so that it can be acknowledged and survives a crash. An
//! answered message is removed; after a failure the lease ends and a consumer can take the message from the inbox. A
//! node with a durable inbox that crashes in between does not send the request a second time.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{Destination, Inbound, Outgoing, Refuse, ReplyFailure, Topic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::budget::{Budget, Share};
use super::framing::{Answers, Expects, FRAME_MAX, FrameError, Framing, Request, Requests};
use super::gate::{Gate, GateError};
use super::idle::{Idle, Place};
use super::stats::{Side, Stats};
use super::{BusClient, Settings};
use hyphae_store::inbox::{Inbox, Put, PutError};

/// Concurrent requests to one server.
const AT_ONCE_PER_TOPIC: usize = 64;
/// Concurrent requests to all servers.
const AT_ONCE: usize = 256;
/// Messages of one topic, queued or in progress; further ones are deferred.
const PER_TOPIC_MAX: usize = 512;
/// Bytes of these messages, all topics.
const BYTES_MAX: usize = 256 << 20;
const PIECE: usize = 64 << 10;
/// First read, which is mostly the only one: zeroing a large buffer costs more than a request.
const PIECE_FIRST: usize = 4 << 10;

/// Why a message has no answer and stays in the inbox.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The topic has no forward socket any more.
    #[error("the topic has no forward socket any more")]
    NotConfigured,
    /// The message is not a request in the topic's framing.
    #[error("the message is no request: {0}")]
    Request(FrameError),
    /// No server listens.
    #[error("connecting: {0}")]
    Connect(GateError),
    /// The setter of the path may not use it.
    #[error("connecting: {0}")]
    Denied(GateError),
    /// The connection broke.
    #[error("{0}")]
    Io(io::Error),
    /// The server closed without sending anything.
    #[error("the server closed without an answer")]
    Empty,
    /// The server's answer violates the topic's framing.
    #[error("the answer: {0}")]
    Answer(FrameError),
    /// Connect, write and read exceeded the timeout.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The bus refused the reply.
    #[error("the answer could not be sent")]
    NotSent,
}

impl ForwardError {
    /// Label in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotConfigured => "not_configured",
            Self::Request(_) => "malformed",
            Self::Connect(_) => "connect",
            Self::Denied(_) => "denied",
            Self::Io(_) => "io",
            Self::Empty => "empty",
            Self::Answer(_) => "bad_answer",
            Self::Timeout(_) => "timeout",
            Self::NotSent => "not_sent",
        }
    }

    /// Failure reported to the sender; `None` where it has an answer or cannot be notified.
    fn failure(&self) -> Option<ReplyFailure> {
        match self {
            Self::Timeout(_) => Some(ReplyFailure::Late),
            Self::Answer(FrameError::TooLarge | FrameError::HeadTooLarge) => {
                Some(ReplyFailure::TooLarge)
            }
            Self::NotConfigured
            | Self::Request(_)
            | Self::Connect(_)
            | Self::Denied(_)
            | Self::Io(_)
            | Self::Empty
            | Self::Answer(_) => Some(ReplyFailure::Unanswered),
            Self::NotSent => None,
        }
    }
}

/// The forward proxy.
pub struct Forward<C> {
    bus: C,
    settings: Settings,
    inbox: Inbox,
    stats: Stats,
    gate: Gate,
    at_once: Semaphore,
    budget: Budget,
    idle: Arc<Idle>,
    lanes: Mutex<BTreeMap<Topic, Arc<Lane>>>,
}

/// Concurrency limits of one topic.
struct Lane {
    at_once: Semaphore,
    /// Slots for messages queued or in progress.
    places: Arc<Semaphore>,
}

impl<C: BusClient> Forward<C> {
    /// A proxy that leaves undelivered messages in `inbox`.
    pub fn new(bus: C, settings: Settings, inbox: Inbox, stats: Stats, gate: Gate) -> Arc<Self> {
        Arc::new(Self {
            bus,
            settings,
            inbox,
            stats,
            gate,
            at_once: Semaphore::new(AT_ONCE),
            budget: Budget::new(BYTES_MAX),
            idle: Arc::default(),
            lanes: Mutex::default(),
        })
    }

    /// Forwards messages until the channel closes.
    pub async fn run(self: Arc<Self>, mut messages: mpsc::Receiver<Inbound>) {
        while let Some(message) = messages.recv().await {
            let mut share = self.budget.share();
            let lane = self.lane(&message.topic);
            let place = Arc::clone(&lane.places).try_acquire_owned().ok();
            let Some(place) = place.filter(|_| share.grow(message.payload.len())) else {
                self.stats.note(Side::Forward, "pushed_back");
                self.bus.settle(message.key(), Err(Refuse::Full)).await;
                continue;
            };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                this.deal_with(message, &lane, share).await;
                drop(place);
            });
        }
    }

    fn lane(&self, topic: &Topic) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        // Topics without messages in progress need no lane.
        lanes.retain(|other, lane| other == topic || Arc::strong_count(lane) > 1);
        let lane = lanes.entry(topic.clone()).or_insert_with(|| {
            Arc::new(Lane {
                at_once: Semaphore::new(AT_ONCE_PER_TOPIC),
                places: Arc::new(Semaphore::new(PER_TOPIC_MAX)),
            })
        });
        Arc::clone(lane)
    }

    async fn deal_with(&self, message: Inbound, lane: &Lane, _share: Share) {
        let key = message.key();
        let number = match self.inbox.put(message.clone(), true).await {
            Ok(Put::Stored(number)) => number,
            Ok(Put::Duplicate) => {
                self.stats.note(Side::Forward, "duplicate");
                return self.bus.settle(key, Ok(())).await;
            }
            Err(PutError::Full | PutError::Failed(_)) => {
                self.stats.note(Side::Forward, "pushed_back");
                return self.bus.settle(key, Err(Refuse::Full)).await;
            }
        };
        // Every return before the lease is confirmed leaves the message in the inbox.
        let lease = self.inbox.lease(number);
        self.bus.settle(key, Ok(())).await;
        match self.deliver(&message, lane).await {
            Ok(answered) => {
                self.stats.note(Side::Forward, "answered");
                if let Err(error) = lease.confirm().await {
                    tracing::warn!(%error, "an answered message stays in the inbox");
                }
                if !answered {
                    self.bus.read(key).await;
                }
            }
            Err(error) => {
                self.stats.note(Side::Forward, error.kind());
                let (topic, id) = (&message.topic, message.id);
                tracing::info!(%topic, %id, %error, "not forwarded; the message is in the inbox");
                if let Some(failure) = error.failure() {
                    self.bus.fail(key, failure).await;
                }
            }
        }
    }

    /// True when the reply was sent; false when none was expected.
    async fn deliver(&self, message: &Inbound, lane: &Lane) -> Result<bool, ForwardError> {
        // The semaphores are never closed.
        let _turn = lane.at_once.acquire().await;
        let _room = self.at_once.acquire().await;
        let config = (self.settings)(&message.topic).ok_or(ForwardError::NotConfigured)?;
        let within = config.socket_timeout();
        let keeps = config.keeps_connections();
        let path = config.forward_socket.ok_or(ForwardError::NotConfigured)?;
        let place = Place {
            path,
            set_by: config.forward_set_by,
            sender: message.source_key,
        };
        let asked = self.ask(&place, config.framing, keeps, &message.payload);
        let answer = timeout(within, asked)
            .await
            .map_err(|_| ForwardError::Timeout(within))??;
        let Some(payload) = answer else {
            return Ok(false);
        };
        let reply = Outgoing {
            destination: Destination::Key(message.source_key),
            topic: message.topic.clone(),
            payload,
            digest: None,
            try_for: None,
            reply_within: None,
            failure: None,
        };
        if self.bus.answer(message.key(), reply).await {
            Ok(true)
        } else {
            Err(ForwardError::NotSent)
        }
    }

    /// Sends the request to the server; `None` when it expects no answer.
    async fn ask(
        &self,
        place: &Place,
        framing: Framing,
        keeps: bool,
        payload: &[u8],
    ) -> Result<Option<Bytes>, ForwardError> {
        let request = match Requests::only(framing, payload) {
            Ok(request) => request,
            // With framing `eof` an empty request is valid.
            Err(FrameError::Truncated) if framing == Framing::Eof && payload.is_empty() => {
                Request {
                    bytes: Bytes::new(),
                    expects: Expects::UntilEof,
                    last: true,
                }
            }
            Err(error) => return Err(ForwardError::Request(error)),
        };
        loop {
            let waiting = if keeps { self.idle.take(place) } else { None };
            let reused = waiting.is_some();
            let mut stream = match waiting {
                Some(stream) => stream,
                None => {
                    self.gate.connect(&place.path, place.set_by).await.map_err(
                        |error| match error {
                            GateError::System { .. } => ForwardError::Connect(error),
                            error @ (GateError::Node(_)
                            | GateError::Server { .. }
                            | GateError::Unseen { .. }
                            | GateError::Directory { .. }
                            | GateError::Outside(_)
                            | GateError::Bind(_)) => ForwardError::Denied(error),
                        },
                    )?
                }
            };
            // `None`: the server has closed the connection before reading anything of the request.
            if let Some((answer, goes_on)) =
                exchange(&mut stream, reused, framing, &request).await?
            {
                if keeps && goes_on && !request.last {
                    self.idle.rest(place, stream);
                }
                return Ok(answer);
            }
        }
    }
}

/// One request on a connection: the answer, and whether the connection is reusable. `None` when a reused
/// connection fails before the first byte is written.
async fn exchange(
    stream: &mut UnixStream,
    reused: bool,
    framing: Framing,
    request: &Request,
) -> Result<Option<(Option<Bytes>, bool)>, ForwardError> {
    let (mut reading, mut writing) = stream.split();
    let half_close = framing == Framing::Eof;
    let (mut rest, mut written) = (&request.bytes[..], false);
    if reused {
        let Ok(sent) = writing.write(rest).await else {
            return Ok(None);
        };
        rest = rest.get(sent..).unwrap_or_default();
    }
    let write = async {
        writing.write_all(rest).await?;
        if half_close {
            writing.shutdown().await?;
        }
        written = true;
        Ok::<_, io::Error>(())
    };
    if request.expects == Expects::Nothing {
        write.await.map_err(ForwardError::Io)?;
        return Ok(Some((None, true)));
    }
    let read = async {
        let mut answers = Answers::new(request.expects.clone(), FRAME_MAX);
        let mut piece = vec![0; PIECE_FIRST];
        loop {
            match reading.read(&mut piece).await {
                Ok(0) => answers.end(),
                Ok(read) => {
                    answers.feed(&piece[..read]);
                    if read == piece.len() {
                        piece.resize(PIECE, 0);
                    }
                }
                Err(error) => return Err(ForwardError::Io(error)),
            }
            match answers.poll() {
                Ok(Some(answer)) => {
                    let persistent = answer.persistent && answers.is_empty();
                    return Ok((answer.bytes, persistent));
                }
                Ok(None) => {}
                Err(FrameError::Empty) => return Err(ForwardError::Empty),
                Err(error) => return Err(ForwardError::Answer(error)),
            }
        }
    };
    // A server may answer before it has read everything, with an error for example. The rest need not be written
    // then, and a failed write is not final while an answer can still arrive.
    tokio::pin!(read);
    let answer = tokio::select! {
        biased;
        outcome = write => {
            let answer = read.await;
            match (answer, outcome) {
                (Err(_), Err(error)) => Err(ForwardError::Io(error)),
                (answer, _) => answer,
            }
        }
        answer = &mut read => answer,
    };
    let (answer, persistent) = answer?;
    Ok(Some((Some(answer), persistent && written)))
}
