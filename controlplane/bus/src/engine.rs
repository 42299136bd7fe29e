//! The engine: its state, its public calls, and where each input goes. Sending is in `sending`,
//! receiving in `receiving`, each an `impl Bus`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use hyphae_time::Nanos;
use hyphae_time::Timers;
use hyphae_wire::message::{self, Body, MESSAGE_HEADER_LEN, Packet, READS_MAX, Status};
use hyphae_wire::report::INNER_MTU_MIN;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::completed::Completed;
use crate::held::Held;
use crate::incoming::Incoming;
use crate::kept::Kept;
use crate::oldest::Oldest;
use crate::outgoing::SendKey;
use crate::path::Path;
use crate::receipts::{Reader, Receipts};
use crate::rng::Rng;
use crate::sends::{SendRef, Sends};
use crate::shares::Shares;
use crate::topics::Topics;
use crate::{
    Config, DeliveryKey, Event, MessageId, MessageInfo, MessageState, Pool, Room, Stats, Topic,
    Transmit,
};

/// How long a receipt waits for others to the same sender.
const READ_DELAY: Duration = Duration::from_millis(5);

/// Messages of one node.
pub struct Bus {
    pub(crate) config: Config,
    pub(crate) topics: Topics,
    pub(crate) rng: Rng,
    pub(crate) stats: Stats,
    pub(crate) timers: Timers<Timer>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) answers: VecDeque<Answer>,
    // Sending.
    pub(crate) sends: Sends,
    pub(crate) outgoing_bytes: usize,
    /// The way to each /64 that something is sent to.
    pub(crate) paths: HashMap<u64, Path, RandomState>,
    /// Paths with something to send and room for it.
    pub(crate) active: VecDeque<u64>,
    pub(crate) waiting: HashMap<MessageId, Waiting, RandomState>,
    // Receiving.
    pub(crate) incoming: HashMap<DeliveryKey, Box<Incoming>, RandomState>,
    pub(crate) incoming_bytes: usize,
    /// Of those: of several packets, by when the last of them came.
    pub(crate) partial: Oldest,
    /// Messages and bytes of each peer in `incoming`.
    pub(crate) shares: Shares,
    pub(crate) completed: Completed,
    /// Of the last message that came: most have the same.
    pub(crate) last_topic: Topic,
    pub(crate) room: Room,
    /// Senders that were told to wait.
    pub(crate) held: Held,
    /// What peers are told of their messages of one packet each.
    pub(crate) kept: BTreeMap<PublicKey, Kept>,
    /// Peers that `kept` may be asked for in vain before it is swept again.
    pub(crate) kept_sweep_in: usize,
    receipts: Receipts,
    /// A packet that did not fit the last payload.
    pub(crate) next: Option<Transmit>,
    /// Room for the next packet.
    pub(crate) spare: Vec<u8>,
    /// This node's address, and that of the peer last spoken of: they are hashes of keys.
    pub(crate) address: OverlayAddress,
    looked_up: (PublicKey, OverlayAddress),
}

/// What has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    Need(u64),
    Path(u64),
    Incoming(DeliveryKey),
    Waiting(MessageId),
    Read(Reader),
    Receipt(u64),
    Late(PublicKey),
}

/// A reply that is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// Whom the message went to; nobody yet before its first packet.
    pub(crate) key: Option<PublicKey>,
    pub(crate) deadline: Nanos,
    pub(crate) over: bool,
}

/// A packet that answers another one, or goes without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// What is there of an incoming message.
    Progress(DeliveryKey),
    /// Which messages of a peer are kept.
    Kept(PublicKey),
    /// Which messages of a peer have been read.
    Read(Reader),
    /// The same again.
    ReadAgain(u64),
    /// An ack that needs no state.
    Status {
        address: OverlayAddress,
        key: DeliveryKey,
        sequence: u64,
        status: Status,
    },
    /// A packet that is a header alone.
    Bare {
        address: OverlayAddress,
        id: MessageId,
        reply: bool,
        sequence: u64,
        body: Bare,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bare {
    Query,
    ReadAck,
    Abort,
}

impl Bus {
    /// An engine without messages. `seed` must be random.
    ///
    /// # Panics
    /// When the MTU leaves no room for a chunk.
    pub fn new(config: Config, topics: Topics, seed: [u8; 32]) -> Self {
        let least = message::OPEN_HEADER_LEN + message::TOPIC_MAX + message::CHUNK_MIN;
        assert!(config.mtu >= least, "a packet holds a topic and a chunk");
        let address = config.key.address();
        let mut rng = Rng::new(seed);
        Self {
            completed: Completed::new(config.completed_max),
            address,
            looked_up: (config.key, address),
            shares: Shares::new(&config),
            config,
            topics,
            receipts: Receipts::new(rng.number()),
            kept: BTreeMap::new(),
            kept_sweep_in: 0,
            rng,
            stats: Stats::default(),
            timers: Timers::new(),
            events: VecDeque::new(),
            answers: VecDeque::new(),
            sends: Sends::default(),
            outgoing_bytes: 0,
            paths: HashMap::default(),
            active: VecDeque::new(),
            waiting: HashMap::default(),
            incoming: HashMap::default(),
            incoming_bytes: 0,
            partial: Oldest::default(),
            last_topic: Topic::default(),
            room: Room::ENDLESS,
            held: Held::default(),
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

    /// Puts other topics in force, for messages that begin from now on.
    pub fn set_topics(&mut self, topics: Topics) {
        self.topics = topics;
    }

    /// What has been counted.
    pub fn stats(&self) -> Stats {
        Stats {
            outgoing: self.sends.len(),
            outgoing_bytes: self.outgoing_bytes,
            incoming: self.incoming.len(),
            incoming_bytes: self.incoming_bytes,
            completed: self.completed.len(),
            ..self.stats.clone()
        }
    }

    /// Where an outgoing message is; the message itself rather than a reply of this node with the
    /// same id. `None` when unknown, or finished too long ago.
    pub fn info(&self, id: MessageId) -> Option<MessageInfo> {
        [false, true].into_iter().find_map(|reply| {
            let live = self.sends.live_any(id, reply);
            let send = live.and_then(|of| self.sends.get(of)).map(|send| {
                let state = if send.begun {
                    MessageState::Sending
                } else {
                    MessageState::Pending
                };
                send.info(state)
            });
            send.or_else(|| self.sends.done_any(id, reply).map(|done| done.info))
        })
    }

    /// Messages that were decided before a restart: late copies of them are acknowledged and not
    /// delivered again.
    pub fn seed_completed(&mut self, now: Nanos, keys: impl IntoIterator<Item = DeliveryKey>) {
        for key in keys {
            self.completed.insert(now, key, Status::Received);
        }
    }

    /// Takes the payload of a frame of service `Message`. Key and address of its source are those
    /// of the session that it came on.
    pub fn handle_packet(
        &mut self,
        now: Nanos,
        source: PublicKey,
        address: OverlayAddress,
        bytes: &[u8],
    ) {
        for bytes in message::packets(bytes) {
            self.handle_one(now, source, address, bytes.unwrap_or_default());
        }
        self.judge_path(now, address.subnet_id());
    }

    /// The address of a peer.
    pub(crate) fn address_of(&mut self, key: PublicKey) -> OverlayAddress {
        if self.looked_up.0 != key {
            self.looked_up = (key, key.address());
        }
        self.looked_up.1
    }

    fn handle_one(&mut self, now: Nanos, source: PublicKey, address: OverlayAddress, bytes: &[u8]) {
        self.stats.packets_received += 1;
        let Some(packet) = message::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let id = MessageId(packet.id);
        let key = DeliveryKey {
            peer: source,
            id,
            reply: packet.reply,
        };
        match packet.body {
            Body::Open { .. } | Body::Data { .. } | Body::Query | Body::Abort => {
                self.receive(now, key, address, &packet);
            }
            Body::Ack {
                status,
                number,
                ranges,
            } => {
                let name = SendKey {
                    subnet: address.subnet_id(),
                    id,
                    reply: packet.reply,
                };
                if let Some(of) = self.find_sent(name, packet.sequence, source) {
                    self.handle_ack(now, of, packet.sequence, status, (number, ranges));
                }
            }
            Body::Kept {
                waited,
                kept,
                there,
            } => {
                let from = (source, address.subnet_id());
                let waited = Duration::from_micros(waited.into());
                self.handle_kept(now, from, packet.sequence, waited, (kept, there));
            }
            Body::Read { ids } => {
                for id in ids {
                    self.handle_read(now, Receipts::key((source, packet.reply), *id), address);
                }
                self.answer(Answer::Bare {
                    address,
                    id,
                    reply: packet.reply,
                    sequence: packet.sequence,
                    body: Bare::ReadAck,
                });
            }
            Body::ReadAck => {
                if self.receipts.answered(packet.sequence, source) {
                    self.timers
                        .set(Timer::Receipt(packet.sequence), Nanos::NEVER);
                }
            }
        }
    }

    /// The message that a packet of this number carried a chunk of, or else the one of this name, if it
    /// went to this node.
    fn find_sent(&self, name: SendKey, sequence: u64, to: PublicKey) -> Option<SendRef> {
        let flight = self.paths.get(&name.subnet)?.flight(sequence);
        let named = |of: &SendRef| self.sends.get(*of).is_some_and(|send| send.name == name);
        let of = flight.map(|flight| flight.send).filter(named);
        let of = of.or_else(|| self.sends.live(name))?;
        self.sends
            .get(of)
            .is_some_and(|send| send.key == Some(to))
            .then_some(of)
    }

    fn handle_read(&mut self, now: Nanos, from: DeliveryKey, address: OverlayAddress) {
        let name = SendKey {
            subnet: address.subnet_id(),
            id: from.id,
            reply: from.reply,
        };
        // The verdict may have been lost on the way.
        if let Some(of) = self.sends.live(name)
            && self.sends.get(of).is_some_and(|s| s.key == Some(from.peer))
        {
            self.finish(now, of, None);
        }
        if let Some(done) = self.sends.done_mut(name)
            && done.key == Some(from.peer)
            && done.info.state == MessageState::Received
        {
            done.info.state = MessageState::Read;
            self.stats.read += 1;
        }
    }

    /// A message that came in has been read: its sender is told.
    pub fn mark_read(&mut self, now: Nanos, key: DeliveryKey) {
        if key.peer == self.config.key {
            self.handle_read(now, key, self.address);
            return;
        }
        let of = (key.peer, key.reply);
        match self.receipts.add(key) {
            1 => self.timers.set(Timer::Read(of), now + READ_DELAY),
            READS_MAX => self.tell_read(of),
            _ => {}
        }
    }

    /// A sender is told of what has been read of its messages.
    fn tell_read(&mut self, of: Reader) {
        if !self.answer(Answer::Read(of)) {
            self.receipts.drop_fresh(of);
        }
    }

    fn receipt(&mut self, now: Nanos, of: Reader, number: u64, ids: &[[u8; 8]]) -> Transmit {
        let spare = std::mem::take(&mut self.spare);
        let again = self.receipts.again_at(now, number);
        self.timers.set(Timer::Receipt(number), again);
        let address = self.address_of(of.0);
        packet(spare, address, NOBODY, of.1, number, Body::Read { ids })
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        for timer in self.timers.take_due(now) {
            match timer {
                Timer::Need(subnet) => self.need_due(now, subnet),
                Timer::Path(subnet) => self.path_due(now, subnet),
                Timer::Incoming(key) => self.incoming_due(now, key),
                Timer::Waiting(id) => self.waiting_due(now, id),
                Timer::Receipt(number) => {
                    if !self.answer(Answer::ReadAgain(number)) {
                        let again = self.receipts.again_at(now, number);
                        self.timers.set(Timer::Receipt(number), again);
                    }
                }
                Timer::Read(of) => self.tell_read(of),
                Timer::Late(peer) => self.late_due(now, peer),
            }
        }
        for of in self.sends.take_due(now) {
            self.send_due(now, of);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        [self.timers.next(), self.sends.next_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next payload to send, with as many packets as fit it and are for the same node. The windows
    /// bound how many there are; a caller may still stop early and come back.
    pub fn poll_transmit(&mut self, now: Nanos) -> Option<Transmit> {
        let mut transmit = self.next.take().or_else(|| self.poll_packet(now))?;
        let path = self.paths.get(&transmit.address.subnet_id());
        // Nothing is known of the way to somebody to whom there are only answers.
        let most = path.map_or(INNER_MTU_MIN.into(), Path::packet);
        if let Some(peer) = path.and_then(|path| path.session) {
            self.add_late(peer);
        }
        let room = most - MESSAGE_HEADER_LEN - 2 * message::SEVERAL_EACH;
        while transmit.payload.len() < room
            && let Some(mut next) = self.poll_packet(now)
        {
            let left = most.saturating_sub(transmit.payload.len());
            transmit.payload.reserve(left);
            let fits = next.address == transmit.address
                && message::append(&mut transmit.payload, &next.payload, most);
            if !fits {
                self.next = Some(next);
                break;
            }
            next.payload.clear();
            self.spare = next.payload;
        }
        Some(transmit)
    }

    /// Memory for long payloads.
    pub fn pool(&self) -> &Pool {
        &self.config.pool
    }

    /// Takes back a payload that has been sent, for its memory.
    pub fn transmitted(&mut self, transmit: Transmit) {
        self.spare = transmit.payload;
        self.spare.clear();
    }

    /// What a node would be told late it is told now, as something goes there anyway.
    fn add_late(&mut self, peer: PublicKey) {
        if let Some(kept) = self.kept.get_mut(&peer)
            && kept.owes_verdict(|key| self.incoming.contains_key(key))
            && !std::mem::replace(&mut kept.queued, true)
        {
            self.answers.push_front(Answer::Kept(peer));
        }
    }

    fn poll_packet(&mut self, now: Nanos) -> Option<Transmit> {
        let transmit = self.poll_answer(now).or_else(|| self.poll_chunk(now))?;
        self.stats.packets_sent += 1;
        Some(transmit)
    }

    /// Whether [`Self::poll_transmit`] may have more.
    pub fn wants_transmit(&self) -> bool {
        self.next.is_some() || !self.answers.is_empty() || !self.active.is_empty()
    }

    /// Has a packet sent that answers another one; false when too many wait.
    pub(crate) fn answer(&mut self, answer: Answer) -> bool {
        let room = self.answers.len() < self.config.answers_max;
        if room {
            self.answers.push_back(answer);
        } else {
            self.stats.answers_dropped += 1;
        }
        room
    }

    /// Who has to be told of other messages before the next answer, which it would draw conclusions from.
    fn owed_first(&self) -> Option<PublicKey> {
        let (peer, sequence) = match self.answers.front()? {
            Answer::Progress(key) => (key.peer, self.incoming.get(key)?.sequence),
            Answer::Status { key, sequence, .. } => (key.peer, *sequence),
            Answer::Kept(_) | Answer::Read(_) | Answer::ReadAgain(_) | Answer::Bare { .. } => {
                return None;
            }
        };
        let kept = self.kept.get(&peer)?;
        kept.owes_before(sequence).then_some(peer)
    }

    /// What a peer is told of its messages; `None` when there is nothing to tell.
    fn word(&mut self, now: Nanos, peer: PublicKey) -> Option<Transmit> {
        let kept = self.kept.get_mut(&peer)?;
        let word = kept.word(now, |key| self.incoming.contains_key(key));
        if word.kept.is_empty() && word.there.is_empty() {
            return None;
        }
        let spare = std::mem::take(&mut self.spare);
        let body = Body::Kept {
            waited: word.waited,
            kept: &word.kept,
            there: &word.there,
        };
        Some(packet(spare, kept.address, NOBODY, false, word.first, body))
    }

    fn poll_answer(&mut self, now: Nanos) -> Option<Transmit> {
        loop {
            if let Some(peer) = self.owed_first()
                && let Some(word) = self.word(now, peer)
            {
                return Some(word);
            }
            match self.answers.pop_front()? {
                Answer::Kept(peer) => {
                    if let Some(kept) = self.kept.get_mut(&peer) {
                        kept.queued = false;
                    }
                    if let Some(word) = self.word(now, peer) {
                        return Some(word);
                    }
                }
                Answer::Read(of) => {
                    let Some((number, ids, more)) = self.receipts.tell(of) else {
                        continue;
                    };
                    if more {
                        self.tell_read(of);
                    }
                    return Some(self.receipt(now, of, number, &ids));
                }
                Answer::ReadAgain(number) => {
                    let receipt = self.receipts.again(number);
                    let Some((of, ids)) = receipt.map(|it| (it.of, it.ids.clone())) else {
                        continue;
                    };
                    return Some(self.receipt(now, of, number, &ids));
                }
                Answer::Progress(key) => {
                    let Some(incoming) = self.incoming.get_mut(&key) else {
                        continue;
                    };
                    incoming.answering = false;
                    let spare = std::mem::take(&mut self.spare);
                    let (number, ranges) = incoming.have();
                    let body = Body::Ack {
                        status: Status::Progress,
                        number,
                        ranges: &ranges,
                    };
                    let (address, sequence) = (incoming.address, incoming.sequence);
                    return Some(packet(spare, address, key.id, key.reply, sequence, body));
                }
                Answer::Status {
                    address,
                    key,
                    sequence,
                    status,
                } => {
                    let spare = std::mem::take(&mut self.spare);
                    let body = Body::Ack {
                        status,
                        number: 0,
                        ranges: &[],
                    };
                    return Some(packet(spare, address, key.id, key.reply, sequence, body));
                }
                Answer::Bare {
                    address,
                    id,
                    reply,
                    sequence,
                    body,
                } => {
                    let spare = std::mem::take(&mut self.spare);
                    let body = match body {
                        Bare::Query => Body::Query,
                        Bare::ReadAck => Body::ReadAck,
                        Bare::Abort => Body::Abort,
                    };
                    return Some(packet(spare, address, id, reply, sequence, body));
                }
            }
        }
    }
}

/// The id in packets that are not about one message.
const NOBODY: MessageId = MessageId([0; 8]);

pub(crate) fn packet(
    mut payload: Vec<u8>,
    address: OverlayAddress,
    id: MessageId,
    reply: bool,
    sequence: u64,
    body: Body<'_>,
) -> Transmit {
    let packet = Packet {
        id: id.0,
        reply,
        sequence,
        body,
    };
    packet.write(&mut payload);
    debug_assert!(payload.len() >= MESSAGE_HEADER_LEN);
    Transmit { address, payload }
}
