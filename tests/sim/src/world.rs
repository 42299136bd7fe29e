//! The world: nodes, links, faults and time.
//!
//! One event at a time: something happens to one node, its engine is drained, its packets are
//! given to the links, its routes to the common picture of all FIBs, and the checks are made.
//! Sessions behave as the overlay's: silence ends them at both ends, at different times; a restart
//! ends them at once at that node, and later at the neighbours; a new session is known at one end
//! before the other.

mod events;
mod quiet;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{Prefix, PublicKey, SecretKey};

use crate::clock::{Agenda, Clock};
use crate::engine::{Effects, Engine};
use crate::forwarding::Forwarding;
use crate::link::{Link, Quality};
use crate::random::Random;
use crate::topology::NodeId;
use crate::violation::Violation;

/// Silence after which the overlay gives a session up.
const DEAD_AFTER: Duration = Duration::from_secs(15);
/// Longest time until a session is there after it became possible.
const DIAL_MAX: Duration = Duration::from_secs(3);
/// Timer events of one node at one time that are still taken for work.
const TIMER_MAX: u32 = 1000;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Decides everything that is not given here.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: NodeId,
    /// The links, by their ends.
    pub links: Vec<(NodeId, NodeId)>,
    /// The links' quality; random and faultless when there is none.
    pub quality: Option<Quality>,
    /// How much clocks are fast or slow at most, in millionths.
    pub skew_ppm: u32,
    /// The nodes begin within this time.
    pub boot_within: Duration,
    /// Nodes that announce themselves; the others are only on the way. Evenly spread.
    pub announcing: NodeId,
}

impl Setup {
    /// Whether a node announces itself.
    pub fn announces(&self, node: NodeId) -> bool {
        let before = |node: u32| node * u32::from(self.announcing) / u32::from(self.nodes.max(1));
        before(u32::from(node)) != before(u32::from(node) + 1)
    }
}

/// Something that goes wrong, or well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Directions of a link (forth, back) carry nothing; the sessions end when it lasts.
    Cut(usize, [bool; 2]),
    /// A link carries packets again.
    Mend(usize),
    /// A link becomes better or worse.
    Change(usize, Quality),
    /// A node loses all state and is back after a time.
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
    /// An end learns of the session that the other has begun.
    Begin {
        link: usize,
        end: usize,
        session: u32,
        faults: u32,
    },
    /// An end gives a session up.
    End {
        link: usize,
        end: usize,
        session: u32,
        faults: u32,
    },
    Fault(Fault),
}

/// A node and what is known about it.
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
    /// It lies: nothing for others may be sent to it, and what reaches it is kept for it to use.
    pub hostile: bool,
    clock: Clock,
    wake: Nanos,
    fired: (Nanos, u32),
    links: BTreeMap<NodeId, usize>,
}

/// Makes the engine of a node: its number, its key, its restarts so far, its own time.
pub type Factory<E> = Box<dyn FnMut(NodeId, &SecretKey, u32, Nanos) -> E>;

/// A mesh.
pub struct World<E> {
    now: Nanos,
    agenda: Agenda<Event>,
    random: Random,
    nodes: Vec<Node<E>>,
    secrets: Vec<SecretKey>,
    links: Vec<Link>,
    owners: BTreeMap<Prefix, NodeId>,
    /// Prefixes of no node that are announced by right.
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

/// Packets for hostile nodes that are kept.
const CAPTURED_MAX: usize = 4096;

impl<E: Engine> World<E> {
    /// A world at time 0, with nothing running yet.
    pub fn new(setup: &Setup, factory: Factory<E>) -> Self {
        let mut random = Random::new(setup.seed).fork(1);
        let mut keys = Random::new(setup.seed).fork(2);
        let mut agenda = Agenda::default();
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
            agenda.add(
                Nanos(0) + random.duration(setup.boot_within),
                Event::Boot(id),
            );
        }
        Self {
            now: Nanos(0),
            agenda,
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

    /// The secret key of a node, for those who forge.
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

    /// Entries of all FIBs that have a next hop, and how many would if all reached all.
    pub fn routes(&self) -> (usize, usize) {
        let pairs = self.owners.len() * self.nodes.len().saturating_sub(1);
        (self.forwarding.entries(), pairs)
    }

    /// When every node had a route to every other for the first time.
    pub fn complete_at(&self) -> Option<Nanos> {
        self.complete_at
    }

    /// Packets and bytes that all nodes sent.
    pub fn sent(&self) -> (u64, u64) {
        let packets = self.nodes.iter().map(|node| node.packets).sum();
        (packets, self.nodes.iter().map(|node| node.bytes).sum())
    }

    /// Declares a node hostile: it has one link, and is no way to anybody else.
    pub fn distrust(&mut self, node: NodeId) {
        self.nodes[usize::from(node)].hostile = true;
    }

    /// A prefix of no node of this world is announced by its key, honestly signed. Whoever believes that
    /// is right, and frames for it are nobody's.
    pub fn expect(&mut self, prefix: Prefix) {
        self.foreign.insert(prefix);
    }

    /// What hostile nodes have received, the oldest first.
    pub fn captured(&self) -> &[Rc<[u8]>] {
        &self.captured
    }

    /// Plans a fault.
    pub fn plan(&mut self, at: Nanos, fault: Fault) {
        self.agenda.add(at, Event::Fault(fault));
    }

    /// Sends a packet of the caller's making over a link, as if the node's engine had sent it.
    pub fn inject(&mut self, from: NodeId, to: NodeId, packet: &[u8]) {
        self.transmit(from, to, packet.into());
    }

    /// Lets the world go on until a time.
    ///
    /// # Errors
    /// When a promise is broken.
    pub fn run_until(&mut self, until: Nanos) -> Result<(), Violation> {
        while let Some((at, event)) = self.agenda.next(until) {
            self.now = at;
            self.happen(event)?;
        }
        self.now = until;
        Ok(())
    }

    /// As [`Self::run_until`], for a time from now.
    ///
    /// # Errors
    /// When a promise is broken.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Violation> {
        self.run_until(self.now + time)
    }
}
