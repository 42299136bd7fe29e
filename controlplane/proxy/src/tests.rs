//! Both ends over a bus that is a channel. The bus itself is in process tests.

mod forward;
mod outbound;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyphae_bus::topics::{Authority, Framing, OutboundSocket, TopicConfig};
use hyphae_bus::{
    DeliveryKey, Destination, Inbound, MessageId, Outgoing, Refuse, ReplyFailure, Topic,
};
use hyphae_wire::{OverlayAddress, PublicKey};
use tokio::sync::mpsc;

use super::{BusClient, Failure, Settings};

type Answered = Pin<Box<dyn Future<Output = Result<Bytes, Failure>> + Send>>;

/// A call of a proxy to the bus.
#[derive(Debug, PartialEq)]
enum Sent {
    Message(Bytes),
    Answer(DeliveryKey, Bytes),
    Failed(DeliveryKey, ReplyFailure),
    Settled(DeliveryKey, Result<(), Refuse>),
    Read(DeliveryKey),
}

/// A bus that answers as a test says.
#[derive(Clone)]
struct Fake {
    answer: Arc<dyn Fn(Outgoing) -> Answered + Send + Sync>,
    sent: mpsc::UnboundedSender<Sent>,
}

impl Fake {
    fn new(
        answer: impl Fn(Outgoing) -> Answered + Send + Sync + 'static,
    ) -> (Self, mpsc::UnboundedReceiver<Sent>) {
        let (sent, received) = mpsc::unbounded_channel();
        let answer = Arc::new(answer);
        (Self { answer, sent }, received)
    }

    fn note(&self, sent: Sent) {
        // A test may have dropped the receiver.
        let _ = self.sent.send(sent);
    }
}

impl BusClient for Fake {
    async fn request(
        &self,
        message: Outgoing,
        _within: std::time::Duration,
    ) -> Result<Bytes, Failure> {
        (self.answer)(message).await
    }

    async fn send(&self, message: Outgoing) -> Result<(), Failure> {
        self.note(Sent::Message(message.payload));
        Ok(())
    }

    async fn answer(&self, key: DeliveryKey, message: Outgoing) -> bool {
        self.note(Sent::Answer(key, message.payload));
        true
    }

    async fn fail(&self, key: DeliveryKey, failure: ReplyFailure) {
        self.note(Sent::Failed(key, failure));
    }

    async fn settle(&self, key: DeliveryKey, verdict: Result<(), Refuse>) {
        self.note(Sent::Settled(key, verdict));
    }

    async fn read(&self, key: DeliveryKey) {
        self.note(Sent::Read(key));
    }
}

fn ready(answer: Result<Bytes, Failure>) -> Answered {
    Box::pin(std::future::ready(answer))
}

fn topic() -> Topic {
    "t".parse().unwrap()
}

/// Time limit of any step on a busy machine, seconds.
const TIMEOUT_S: u64 = 60;

fn settings(config: TopicConfig) -> Settings {
    Arc::new(move |name| (*name == topic()).then(|| config.clone()))
}

fn config(framing: Framing, forward: Option<PathBuf>, reply_timeout: u64) -> TopicConfig {
    TopicConfig {
        framing,
        forward_socket: forward,
        outbound_socket: Some(OutboundSocket {
            path: PathBuf::new(),
            dst: Destination::Key(PublicKey([1; 32])),
            set_by: Authority::Node,
        }),
        reply_timeout: Some(reply_timeout),
        ..TopicConfig::default()
    }
}

fn inbound(id: u64, payload: impl Into<Bytes>) -> Inbound {
    let payload = payload.into();
    Inbound {
        digest: *blake3::hash(&payload).as_bytes(),
        id: MessageId(id.to_le_bytes()),
        reply: false,
        failure: None,
        source_key: PublicKey([7; 32]),
        source_address: OverlayAddress([4; 16]),
        topic: topic(),
        payload,
    }
}

/// Waits for a condition that other tasks establish.
async fn until(what: &str, done: impl Fn() -> bool) {
    let waits = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    let within = std::time::Duration::from_secs(TIMEOUT_S);
    let waited = tokio::time::timeout(within, waits).await;
    waited.unwrap_or_else(|_| panic!("in time: {what}"));
}

fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).unwrap()
}
