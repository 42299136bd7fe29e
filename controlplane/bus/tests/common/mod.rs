//! Engines on a simulated network with a virtual clock, deterministic by seed.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(unreachable_pub, reason = "a module of test files")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::topics::Topics;
use hyphae_bus::{
    Bus, Config, DeliveryKey, Destination, Event, Inbound, MessageId, MessageState, Outgoing,
    Refuse, Room, Topic,
};
use hyphae_time::Nanos;
use hyphae_wire::message::{Body, packets, parse};

use hyphae_wire::{OverlayAddress, PublicKey};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Properties of the link between any two nodes.
#[derive(Clone, Copy)]
pub struct Link {
    pub delay: Duration,
    /// Maximum random delay, which reorders packets.
    pub jitter: Duration,
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    /// Bytes per second, with a queue of this many bytes before it.
    pub rate: Option<(u64, u64)>,
}

pub const CLEAN: Link = Link {
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    loss_percent: 0,
    duplicate_percent: 0,
    rate: None,
};

pub const ROUGH: Link = Link {
    delay: Duration::from_millis(5),
    jitter: Duration::from_millis(10),
    loss_percent: 15,
    duplicate_percent: 15,
    rate: None,
};

pub struct Node {
    pub bus: Bus,
    pub key: PublicKey,
    /// Stored messages, as in a durable inbox.
    pub inbox: Vec<Inbound>,
    pub keys: BTreeSet<DeliveryKey>,
    pub capacity: usize,
    /// Duplicate deliveries: must stay 0.
    pub duplicates: usize,
    pub finished: BTreeMap<(MessageId, bool), MessageState>,
    pub timeouts: Vec<MessageId>,
    /// Messages are accepted for a reply.
    pub answers: bool,
    /// Maximum time to store a message.
    pub slow: Duration,
    /// Number of the last packet of a message it sent.
    pub last_packet: u64,
    /// Drops all its packets.
    pub partitioned: bool,
    config: Config,
    topics: Topics,
    starts: u64,
}

pub struct Net {
    pub now: Nanos,
    pub nodes: Vec<Node>,
    pub link: Link,
    /// Path MTU, bytes; the sender of a larger payload gets a report.
    pub path_mtu: usize,
    pub random: Random,
    pub packets: u64,
    pub dropped: u64,
    queue: BTreeMap<(Nanos, u64), Item>,
    count: u64,
    busy_until: BTreeMap<(usize, usize), Nanos>,
}

enum Item {
    Packet {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    Session {
        at: usize,
        to: usize,
    },
    Stored {
        at: usize,
        key: DeliveryKey,
    },
    TooBig {
        at: usize,
        to: usize,
    },
}

pub fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

pub fn message(to: PublicKey, topic: &str, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        destination: Destination::Key(to),
        topic: topic.parse::<Topic>().unwrap(),
        payload: payload.into(),
        digest: None,
        try_for: None,
        reply_within: None,
        failure: None,
    }
}

pub fn payload(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Net {
    pub fn new(count: u8, seed: u64, link: Link) -> Self {
        Self::with(count, seed, link, |_| {})
    }

    pub fn with(count: u8, seed: u64, link: Link, change: impl Fn(&mut Config)) -> Self {
        let nodes = (1..=count).map(|n| {
            let mut config = Config::new(key(n));
            change(&mut config);
            Node {
                bus: Bus::new(config.clone(), Topics::default(), [n; 32]),
                key: key(n),
                inbox: Vec::new(),
                keys: BTreeSet::new(),
                capacity: usize::MAX,
                duplicates: 0,
                finished: BTreeMap::new(),
                timeouts: Vec::new(),
                answers: false,
                slow: Duration::ZERO,
                last_packet: 0,
                partitioned: false,
                config,
                topics: Topics::default(),
                starts: 0,
            }
        });
        Self {
            now: Nanos(1_000_000_000),
            nodes: nodes.collect(),
            link,
            path_mtu: usize::from(u16::MAX),
            random: Random(seed),
            packets: 0,
            dropped: 0,
            queue: BTreeMap::new(),
            count: 0,
            busy_until: BTreeMap::new(),
        }
    }

    pub fn set_topics(&mut self, node: usize, topics: Topics) {
        self.nodes[node].topics = topics.clone();
        self.nodes[node].bus.set_topics(topics);
    }

    pub fn push(&mut self, node: usize, message: Outgoing) -> MessageId {
        let id = self.nodes[node].bus.push(self.now, message).unwrap();
        self.drain(node);
        id
    }

    pub fn state(&self, node: usize, id: MessageId) -> MessageState {
        self.nodes[node].bus.info(id).unwrap().state
    }

    /// Kills and restarts a node, which keeps only its store.
    pub fn restart(&mut self, node: usize) {
        let (now, topics) = (self.now, self.nodes[node].topics.clone());
        let n = &mut self.nodes[node];
        n.starts += 1;
        let mut seed = n.key.0;
        seed[0] ^= u8::try_from(n.starts % 255).unwrap() + 1;
        n.bus = Bus::new(n.config.clone(), topics, seed);
        n.bus.seed_completed(now, n.keys.iter().copied());
        self.drain(node);
    }

    fn node_of(&self, address: OverlayAddress) -> Option<usize> {
        let of = |node: &Node| node.key.address().subnet_id() == address.subnet_id();
        self.nodes.iter().position(of)
    }

    fn at(&mut self, at: Nanos, item: Item) {
        self.count += 1;
        self.queue.insert((at, self.count), item);
    }

    /// Injects a packet with a forged source.
    pub fn inject(&mut self, from: PublicKey, to: usize, bytes: &[u8]) {
        let now = self.now;
        let bus = &mut self.nodes[to].bus;
        bus.handle_packet(now, from, from.address(), bytes);
        self.drain(to);
    }

    fn transmit(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.packets += 1;
        for packet in packets(&bytes).flatten().filter_map(parse) {
            if matches!(packet.body, Body::Open { .. } | Body::Data { .. }) {
                self.nodes[from].last_packet = packet.sequence;
            }
        }
        let link = self.link;
        if self.nodes[from].partitioned
            || self.nodes[to].partitioned
            || self.random.chance(link.loss_percent)
        {
            self.dropped += 1;
            return;
        }
        let mut at = self.now + link.delay;
        if let Some((rate, queue)) = link.rate {
            let busy = self.busy_until.entry((from, to)).or_default();
            let start = (*busy).max(self.now);
            let waiting = start.since(self.now).as_nanos() * u128::from(rate) / 1_000_000_000;
            if waiting > u128::from(queue) {
                self.dropped += 1;
                return;
            }
            let len = u64::try_from(bytes.len()).unwrap() + 152;
            *busy = start + Duration::from_nanos(len * 1_000_000_000 / rate);
            at = *busy + link.delay;
        }
        let copies = 1 + usize::from(self.random.chance(link.duplicate_percent));
        for _ in 0..copies {
            let jitter = u64::try_from(link.jitter.as_nanos()).unwrap();
            let jitter = self.random.below(jitter + 1);
            let bytes = bytes.clone();
            self.at(
                at + Duration::from_nanos(jitter),
                Item::Packet { from, to, bytes },
            );
        }
    }

    pub fn drain(&mut self, node: usize) {
        let now = self.now;
        loop {
            while let Some(event) = self.nodes[node].bus.poll_event() {
                self.handle(node, event);
            }
            let Some(transmit) = self.nodes[node].bus.poll_transmit(now) else {
                break;
            };
            let Some(to) = self.node_of(transmit.address) else {
                continue;
            };
            if transmit.payload.len() > self.path_mtu {
                self.dropped += 1;
                self.at(now + self.link.delay, Item::TooBig { at: node, to });
            } else {
                self.transmit(node, to, transmit.payload);
            }
        }
    }

    fn handle(&mut self, node: usize, event: Event) {
        let now = self.now;
        match event {
            Event::NeedSession(address) => {
                if let Some(to) = self.node_of(address) {
                    let at = now + self.link.delay * 2;
                    self.at(at, Item::Session { at: node, to });
                }
            }
            Event::Deliver(inbound) => {
                let n = &mut self.nodes[node];
                let key = inbound.key();
                if n.inbox.len() >= n.capacity {
                    n.bus.refused(now, key, Refuse::Full);
                    return;
                }
                if !n.keys.insert(key) {
                    n.duplicates += 1;
                }
                n.inbox.push(inbound);
                let slow = u64::try_from(n.slow.as_nanos()).unwrap();
                if slow == 0 {
                    if n.answers {
                        n.bus.accepted_for_reply(now, key);
                    } else {
                        n.bus.accepted(now, key);
                    }
                    self.update_room(node);
                } else {
                    let took = Duration::from_nanos(self.random.below(slow));
                    self.at(now + took, Item::Stored { at: node, key });
                }
            }
            Event::Finished {
                id, reply, state, ..
            } => {
                let before = self.nodes[node].finished.insert((id, reply), state);
                // A reply that was not taken may be given again.
                let again = reply && before == Some(MessageState::Aborted);
                assert!(before.is_none() || again, "a message is finished once");
            }
            Event::ReplyTimeout(id) => self.nodes[node].timeouts.push(id),
        }
    }

    fn update_room(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if n.capacity != usize::MAX {
            n.bus.set_room(Room {
                messages: n.capacity - n.inbox.len().min(n.capacity),
                bytes: usize::MAX,
            });
        }
    }

    /// Removes the oldest message from an inbox.
    pub fn pop(&mut self, node: usize) -> Option<Inbound> {
        if self.nodes[node].inbox.is_empty() {
            return None;
        }
        let inbound = self.nodes[node].inbox.remove(0);
        let now = self.now;
        self.nodes[node].bus.mark_read(now, inbound.key());
        self.update_room(node);
        self.drain(node);
        Some(inbound)
    }

    /// Time of the next event.
    pub fn next(&self) -> Option<Nanos> {
        let timers = self.nodes.iter().filter_map(|node| node.bus.poll_timeout());
        let packet = self.queue.first_key_value().map(|((at, _), _)| *at);
        timers.chain(packet).min()
    }

    /// Runs all events until `until`.
    pub fn run_until(&mut self, until: Nanos) {
        while let Some(at) = self.next().filter(|at| *at <= until) {
            self.step(at);
        }
        self.now = self.now.max(until);
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs while `busy`, for at most `limit`; returns the elapsed time.
    pub fn run_while(&mut self, limit: Duration, busy: impl Fn(&Self) -> bool) -> Duration {
        let (start, end) = (self.now, self.now + limit);
        while busy(self) {
            match self.next().filter(|at| *at <= end) {
                Some(at) => self.step(at),
                None => panic!("not done after {limit:?} of virtual time"),
            }
        }
        self.now.since(start)
    }

    fn step(&mut self, at: Nanos) {
        self.now = self.now.max(at);
        let now = self.now;
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= now) {
            match entry.remove() {
                Item::Packet { from, to, bytes } => {
                    let key = self.nodes[from].key;
                    let address = key.address();
                    self.nodes[to].bus.handle_packet(now, key, address, &bytes);
                    self.drain(to);
                }
                Item::Session { at, to } => {
                    if !self.nodes[at].partitioned && !self.nodes[to].partitioned {
                        let key = self.nodes[to].key;
                        self.nodes[at].bus.session_up(
                            now,
                            key.address(),
                            key,
                            usize::from(u16::MAX),
                        );
                        self.drain(at);
                    }
                }
                Item::TooBig { at, to } => {
                    let address = self.nodes[to].key.address();
                    self.nodes[at].bus.path_mtu(address, self.path_mtu);
                    self.drain(at);
                }
                Item::Stored { at, key } => {
                    self.nodes[at].bus.accepted(now, key);
                    self.drain(at);
                }
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node]
                .bus
                .poll_timeout()
                .is_some_and(|at| at <= now)
            {
                self.nodes[node].bus.handle_timeout(now);
                self.drain(node);
            }
        }
    }

    /// Checks that no message was delivered twice.
    pub fn check_once(&self) {
        for node in &self.nodes {
            assert_eq!(node.duplicates, 0, "delivered twice to {}", node.key);
        }
    }
}
