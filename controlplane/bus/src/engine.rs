//! The engine: its state, and the dispatch of its inputs. The files of `engine/` implement [`Bus`] by task.

mod acked;
mod acknowledge;
mod admission;
mod control;
mod decide;
mod finish;
mod paths;
mod read_receipts;
mod receive;
mod submit;
mod transmit;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use hyphae_time::Nanos;
use hyphae_time::Timers;
use hyphae_wire::message::{self, Body, Status};

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::age_queue::AgeQueue;
use crate::batch_ack::AckBatcher;
use crate::completed::Completed;
use crate::deferred::DeferredSenders;
use crate::incoming::Incoming;
use crate::path::Path;
use crate::receipts::{ReceiptKey, Receipts};
use crate::topics::Topics;
use crate::transfer::TransferKey;
use crate::transfers::Transfers;
use crate::usage::PeerUsage;
use crate::{
    Config, DeliveryKey, Event, MessageId, MessageInfo, MessageState, Pool, Room, Stats, Topic,
    Transmit,
};
use control::ControlPacket;
use hyphae_random::Rng;

/// Message engine of one node.
pub struct Bus {
    config: Config,
    topics: Topics,
    rng: Rng,
    stats: Stats,
    timers: Timers<Timer>,
    events: VecDeque<Event>,
    /// Control packets to send, at most [`Config::control_max`].
    control: VecDeque<ControlPacket>,
    // Sending.
    transfers: Transfers,
    outgoing_bytes: usize,
    /// Paths by the /64 of their destination.
    paths: HashMap<u64, Path, RandomState>,
    /// Paths with data to send and window to send it, in round-robin order.
    active: VecDeque<u64>,
    pending_replies: HashMap<MessageId, PendingReply, RandomState>,
    // Receiving.
    incoming: HashMap<DeliveryKey, Box<Incoming>, RandomState>,
    incoming_bytes: usize,
    /// Partial messages of several packets in `incoming`, by the time of their last packet.
    partial: AgeQueue,
    /// Messages and bytes of each peer in `incoming`.
    usage: PeerUsage,
    completed: Completed,
    /// Topic of the last message: most messages share it, which saves an allocation.
    last_topic: Topic,
    room: Room,
    /// Senders to resume when there is room.
    deferred: DeferredSenders,
    /// Acknowledgements of messages of one packet, by peer.
    batchers: BTreeMap<PublicKey, AckBatcher>,
    /// Failed insertions into `batchers` before the next sweep.
    batcher_sweep_in: usize,
    receipts: Receipts,
    /// Packet that did not fit the last payload.
    next: Option<Transmit>,
    /// Recycled buffer for the next packet.
    spare: Vec<u8>,
    /// This node's address. Addresses are hashes of keys, so they are cached.
    address: OverlayAddress,
    /// Last peer looked up by [`Self::address_of`].
    address_cache: (PublicKey, OverlayAddress),
}

/// Timer of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    /// Next request for a session with a /64.
    Session(u64),
    /// Loss detection or probe timeout of a path.
    Path(u64),
    /// Idle timeout of an incoming message.
    Incoming(DeliveryKey),
    /// Deadline of a pending reply.
    Reply(MessageId),
    /// Transmission of new read receipts.
    ReadReceipt(ReceiptKey),
    /// Retransmission of a read receipt.
    ReceiptRetry(u64),
    /// Delayed acknowledgement of short messages.
    BatchAck(PublicKey),
}

/// Reply that a message of this node expects.
#[derive(Clone, Copy, Debug)]
struct PendingReply {
    /// Key that the message was sent to; `None` before its first packet.
    key: Option<PublicKey>,
    deadline: Nanos,
    /// The deadline has passed; a late reply is rejected as such.
    expired: bool,
}

/// A random, non-zero base for sequence numbers, below half of [`message::SEQUENCE_MAX`].
fn sequence_base(rng: &mut Rng) -> u64 {
    u64::from_le_bytes(rng.array()) >> 2 | 1
}

impl Bus {
    /// An engine without messages. `seed` must be random.
    ///
    /// # Panics
    /// When the MTU leaves no space for a chunk.
    pub fn new(config: Config, topics: Topics, seed: [u8; 32]) -> Self {
        let least = message::OPEN_HEADER_LEN + message::TOPIC_MAX + message::CHUNK_MIN;
        assert!(config.mtu >= least, "a packet holds a topic and a chunk");
        let address = config.key.address();
        let mut rng = Rng::new(seed);
        Self {
            completed: Completed::new(config.completed_max),
            address,
            address_cache: (config.key, address),
            usage: PeerUsage::new(&config),
            config,
            topics,
            receipts: Receipts::new(sequence_base(&mut rng)),
            batchers: BTreeMap::new(),
            batcher_sweep_in: 0,
            rng,
            stats: Stats::default(),
            timers: Timers::new(),
            events: VecDeque::new(),
            control: VecDeque::new(),
            transfers: Transfers::default(),
            outgoing_bytes: 0,
            paths: HashMap::default(),
            active: VecDeque::new(),
            pending_replies: HashMap::default(),
            incoming: HashMap::default(),
            incoming_bytes: 0,
            partial: AgeQueue::default(),
            last_topic: Topic::default(),
            room: Room::UNLIMITED,
            deferred: DeferredSenders::default(),
            next: None,
            spare: Vec::new(),
        }
    }

    /// This node's key.
    pub fn key(&self) -> PublicKey {
        self.config.key
    }

    /// The topics in force.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Replaces the topics, for messages that are opened from now on.
    pub fn set_topics(&mut self, topics: Topics) {
        self.topics = topics;
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        Stats {
            outgoing: self.transfers.len(),
            outgoing_bytes: self.outgoing_bytes,
            incoming: self.incoming.len(),
            incoming_bytes: self.incoming_bytes,
            completed: self.completed.len(),
            ..self.stats.clone()
        }
    }

    /// Buffers for long payloads.
    pub fn pool(&self) -> &Pool {
        &self.config.pool
    }

    /// State of an outgoing message; of the message rather than of a reply of this node with the same id.
    /// `None` when unknown, or finished longer ago than [`Config::finished_hold`].
    pub fn info(&self, id: MessageId) -> Option<MessageInfo> {
        [false, true].into_iter().find_map(|reply| {
            let live = self.transfers.live_any(id, reply);
            let live = live.and_then(|of| self.transfers.get(of)).map(|transfer| {
                transfer.info(if transfer.started {
                    MessageState::Sending
                } else {
                    MessageState::Pending
                })
            });
            live.or_else(|| self.transfers.done_any(id, reply).map(|done| done.info))
        })
    }

    /// Registers messages that were stored before a restart: duplicates of them are acknowledged, not delivered.
    pub fn seed_completed(&mut self, now: Nanos, keys: impl IntoIterator<Item = DeliveryKey>) {
        for key in keys {
            self.completed.insert(now, key, Status::Received);
        }
    }

    /// Handles the payload of a frame of service `Message`. `source` and `address` are those of the session that
    /// the frame was received on.
    pub fn handle_packet(
        &mut self,
        now: Nanos,
        source: PublicKey,
        address: OverlayAddress,
        bytes: &[u8],
    ) {
        for bytes in message::packets(bytes) {
            self.dispatch(now, source, address, bytes.unwrap_or_default());
        }
        self.detect_losses(now, address.subnet_id());
    }

    /// The address of a peer.
    fn address_of(&mut self, key: PublicKey) -> OverlayAddress {
        if self.address_cache.0 != key {
            self.address_cache = (key, key.address());
        }
        self.address_cache.1
    }

    fn dispatch(&mut self, now: Nanos, source: PublicKey, address: OverlayAddress, bytes: &[u8]) {
        self.stats.packets_received += 1;
        let Some(packet) = message::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let (id, reply) = (MessageId(packet.id), packet.reply);
        let subnet = address.subnet_id();
        match packet.body {
            Body::Open { .. } | Body::Data { .. } | Body::Query | Body::Abort => {
                let peer = source;
                self.receive(now, DeliveryKey { peer, id, reply }, address, &packet);
            }
            Body::Ack {
                status,
                number,
                ranges,
            } => {
                let name = TransferKey { id, reply, subnet };
                if let Some(of) = self.find_transfer(name, packet.sequence, source) {
                    self.handle_ack(now, of, packet.sequence, status, (number, ranges));
                }
            }
            Body::BatchAck {
                delay_us,
                stored,
                received,
            } => {
                let delay = Duration::from_micros(delay_us.into());
                let from = (source, subnet);
                self.handle_batch_ack(now, from, packet.sequence, delay, (stored, received));
            }
            Body::Read { ids } => {
                self.handle_read(now, (source, reply), address, packet.sequence, ids);
            }
            Body::ReadAck => self.handle_read_ack(packet.sequence, source),
        }
    }

    /// Executes the timers that are due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        for timer in self.timers.take_due(now) {
            match timer {
                Timer::Session(subnet) => self.session_due(now, subnet),
                Timer::Path(subnet) => self.path_due(now, subnet),
                Timer::Incoming(key) => self.incoming_due(now, key),
                Timer::Reply(id) => self.reply_due(now, id),
                Timer::ReceiptRetry(number) => self.receipt_retry_due(now, number),
                Timer::ReadReceipt(of) => self.queue_receipt(of),
                Timer::BatchAck(peer) => self.batch_ack_due(now, peer),
            }
        }
        for of in self.transfers.take_due(now) {
            self.transfer_due(now, of);
        }
    }

    /// Deadline for the next call of [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Nanos> {
        [self.timers.next(), self.transfers.next_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}
