//! The world: nodes, links, faults and time.
//!
//! One event at a time: it is delivered to a node, the engine is drained, packets go to the links, routes to
//! the FIBs of all nodes, and the invariants are checked. Sessions behave as the overlay's: silence ends them
//! at both ends, at different times; a restart ends them at once at that node and later at the neighbours; a
//! new session is known at one end before the other.

mod events;
mod quiet;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{Prefix, PublicKey, SecretKey};

use crate::clock::{Clock, EventQueue};
use crate::engine::{Effects, Engine};
use crate::forwarding::Forwarding;
use crate::link::{Link, Quality};
use crate::random::Random;
use crate::topology::NodeId;
use crate::violation::Violation;

/// Silence after which a session ends.
const DEAD_AFTER: Duration = Duration::from_secs(15);
/// Longest time to establish a session once it is possible.
const DIAL_MAX: Duration = Duration::from_secs(3);
/// Timer events of one node at one time beyond which a timer spins.
const TIMER_MAX: u32 = 1000;

/// Parameters of a world.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Seed of everything that is not given here.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: NodeId,
    /// The links, by their ends.
    pub links: Vec<(NodeId, NodeId)>,
    /// Quality of links; `None` for random and faultless.
    pub quality: Option<Quality>,
    /// Largest clock skew, millionths.
    pub skew_ppm: u32,
    /// Period in which nodes start.
    pub boot_within: Duration,
    /// Nodes that announce themselves, evenly spread; the others are relays.
    pub announcing: NodeId,
}

impl Setup {
    /// Whether a node announces itself.
    pub fn announces(&self, node: NodeId) -> bool {
        let before = |node: u32| node * u32::from(self.announcing) / u32::from(self.nodes.max(1));
        before(u32::from(node)) != before(u32::from(node) + 1)
    }
}

/// A fault or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Cuts directions of a link (forth, back); sessions end when it lasts.
    Cut(usize, [bool; 2]),
    /// Ends a cut.
    Repair(usize),
    /// Changes the quality of a link.
    Change(usize, Quality),
    /// Restarts a node without its state after a time.
    Restart(NodeId, Duration),
}

#[derive(Debug)]
enum Event {
    Boot(NodeId),
    Wake(NodeId),
    Arrive {
        link: usize,
        end: usize,
        session: u32,
        packet: Rc<[u8]>,
    },
    /// Both ends of a link try to begin a session.
    Dial {
        link: usize,
        faults: u32,
    },
    /// An end learns of a session that the other has begun.
    Begin {
        link: usize,
        end: usize,
        session: u32,
        faults: u32,
    },
    /// An end closes a session.
    End {
        link: usize,
        end: usize,
        session: u32,
        faults: u32,
    },
    Fault(Fault),
}

/// A node and its state.
#[derive(Debug)]
pub struct Node<E> {
    /// Its engine; none while it is down.
    pub engine: Option<E>,
    /// Its key.
    pub key: PublicKey,
    /// Packets sent since it began.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Its restarts.
    pub restarts: u32,
    /// It is hostile: no packets for others may be sent to it, and packets that reach it are captured for it to
    /// use.
    pub hostile: bool,
    clock: Clock,
    wake: Nanos,
    fired: (Nanos, u32),
    links: BTreeMap<NodeId, usize>,
}

/// Creates the engine of a node from its number, key, restarts and local time.
pub type Factory<E> = Box<dyn FnMut(NodeId, &SecretKey, u32, Nanos) -> E>;

/// A mesh.
pub struct World<E> {
    now: Nanos,
    queue: EventQueue<Event>,
    random: Random,
    nodes: Vec<Node<E>>,
    secrets: Vec<SecretKey>,
    links: Vec<Link>,
    owners: BTreeMap<Prefix, NodeId>,
    /// Prefixes that the caller announces legitimately for no node.
    foreign: BTreeSet<Prefix>,
    forwarding: Forwarding,
    factory: Factory<E>,
    effects: Effects,
    changed: Vec<NodeId>,
    captured: Vec<Rc<[u8]>>,
    last_change: Nanos,
    last_session: Nanos,
    complete_at: Option<Nanos>,
    trace: bool,
}

/// Captured packets for hostile nodes.
const CAPTURED_MAX: usize = 4096;

impl<E: Engine> World<E> {
    /// A world at time 0; nodes start later.
    pub fn new(setup: &Setup, factory: Factory<E>) -> Self {
        let mut random = Random::new(setup.seed).fork(1);
        let mut keys = Random::new(setup.seed).fork(2);
        let mut queue = EventQueue::default();
        let mut links = Vec::new();
        let mut neighbours = vec![BTreeMap::new(); usize::from(setup.nodes)];
        for (index, (a, b)) in setup.links.iter().enumerate() {
            let quality = setup
                .quality
                .unwrap_or_else(|| Quality::random(&mut random).faultless());
            links.push(Link::new([*a, *b], quality));
            neighbours[usize::from(*a)].insert(*b, index);
            neighbours[usize::from(*b)].insert(*a, index);
        }
        let mut nodes = Vec::new();
        let mut secrets = Vec::new();
        let mut owners = BTreeMap::new();
        for (id, links) in (0..setup.nodes).zip(neighbours) {
            let mut bytes = keys.bytes::<32>();
            bytes[0] |= 1;
            let Ok(secret) = SecretKey::from_bytes(&bytes) else {
                unreachable!("not zero");
            };
            let key = secret.public_key();
            if setup.announces(id) {
                owners.insert(key.address().subnet(), id);
            }
            let skew = i32::try_from(random.below(u64::from(2 * setup.skew_ppm + 1))).unwrap_or(0);
            let clock = Clock {
                offset: random.duration(Duration::from_secs(1_000_000)),
                skew_ppm: skew - i32::try_from(setup.skew_ppm).unwrap_or(0),
            };
            nodes.push(Node {
                engine: None,
                key,
                packets: 0,
                bytes: 0,
                restarts: 0,
                hostile: false,
                clock,
                wake: Nanos::NEVER,
                fired: (Nanos(0), 0),
                links,
            });
            secrets.push(secret);
            queue.add(
                Nanos(0) + random.duration(setup.boot_within),
                Event::Boot(id),
            );
        }
        Self {
            now: Nanos(0),
            queue,
            random,
            nodes,
            secrets,
            links,
            owners,
            foreign: BTreeSet::new(),
            forwarding: Forwarding::new(setup.nodes, |node| setup.announces(node)),
            factory,
            effects: Effects::default(),
            changed: Vec::new(),
            captured: Vec::new(),
            last_change: Nanos(0),
            last_session: Nanos(0),
            complete_at: None,
            trace: std::env::var_os("HYPHAE_SIM_TRACE").is_some(),
        }
    }

    /// The time of the world.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node<E>] {
        &self.nodes
    }

    /// The links.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The secret key of a node, for forgeries.
    pub fn secret(&self, node: NodeId) -> &SecretKey {
        &self.secrets[usize::from(node)]
    }

    /// When a FIB changed last.
    pub fn last_change(&self) -> Nanos {
        self.last_change
    }

    /// When an end of a session began last.
    pub fn last_session(&self) -> Nanos {
        self.last_session
    }

    /// FIB entries with a next hop, and their number at full reachability.
    pub fn routes(&self) -> (usize, usize) {
        let pairs = self.owners.len() * self.nodes.len().saturating_sub(1);
        (self.forwarding.entries(), pairs)
    }

    /// First time at which every node had a route to every other.
    pub fn complete_at(&self) -> Option<Nanos> {
        self.complete_at
    }

    /// Packets and bytes that all nodes sent.
    pub fn sent(&self) -> (u64, u64) {
        let packets = self.nodes.iter().map(|node| node.packets).sum();
        (packets, self.nodes.iter().map(|node| node.bytes).sum())
    }

    /// Declares a node hostile: it has one link and is on no path to others.
    pub fn distrust(&mut self, node: NodeId) {
        self.nodes[usize::from(node)].hostile = true;
    }

    /// Declares a prefix that the caller announces with a valid signature. Routes to it are legitimate; frames
    /// to it are not checked.
    pub fn expect(&mut self, prefix: Prefix) {
        self.foreign.insert(prefix);
    }

    /// Packets that hostile nodes have received, the oldest first.
    pub fn captured(&self) -> &[Rc<[u8]>] {
        &self.captured
    }

    /// Plans a fault.
    pub fn plan(&mut self, at: Nanos, fault: Fault) {
        self.queue.add(at, Event::Fault(fault));
    }

    /// Injects a packet into a link as if the node's engine had sent it.
    pub fn inject(&mut self, from: NodeId, to: NodeId, packet: &[u8]) {
        self.transmit(from, to, packet.into());
    }

    /// Runs until a time.
    ///
    /// # Errors
    /// When an invariant is violated.
    pub fn run_until(&mut self, until: Nanos) -> Result<(), Violation> {
        while let Some((at, event)) = self.queue.next(until) {
            self.now = at;
            self.happen(event)?;
        }
        self.now = until;
        Ok(())
    }

    /// As [`Self::run_until`], for a time from now.
    ///
    /// # Errors
    /// When an invariant is violated.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Violation> {
        self.run_until(self.now + time)
    }
}
