//! Links: delay, loss, duplication and reordering between two nodes.
//!
//! A link has two directions with independent faults. It carries a session as the overlay's: it ends when a
//! node restarts, a new one begins when both nodes are up, and packets of an ended session are never delivered.

use std::time::Duration;

use hyphae_time::Nanos;

use crate::random::Random;
use crate::topology::NodeId;

/// Properties of one direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Shortest delay.
    pub delay: Duration,
    /// Largest additional delay. Packets stay in order, except for `reorder`.
    pub jitter: Duration,
    /// Packets lost, per million.
    pub loss: u32,
    /// Packets duplicated, per million.
    pub duplicate: u32,
    /// Packets overtaken by later ones, per million.
    pub reorder: u32,
}

impl Quality {
    /// A good link.
    pub const GOOD: Self = Self {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(1),
        loss: 0,
        duplicate: 0,
        reorder: 0,
    };

    /// The same without loss, duplicates, reordering, and with a steady delay, because jitter that changes
    /// costs is a fault as well.
    #[must_use]
    pub fn faultless(self) -> Self {
        Self {
            delay: self.delay,
            jitter: Duration::from_micros(200),
            loss: 0,
            duplicate: 0,
            reorder: 0,
        }
    }

    /// A random link, from good to bad.
    pub fn random(random: &mut Random) -> Self {
        Self {
            delay: random.between(Duration::from_micros(100), Duration::from_millis(60)),
            jitter: random.duration(Duration::from_millis(20)),
            loss: u32::try_from(random.below(80_000)).unwrap_or(0),
            duplicate: u32::try_from(random.below(30_000)).unwrap_or(0),
            reorder: u32::try_from(random.below(50_000)).unwrap_or(0),
        }
    }
}

/// One direction of a link.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    /// Its properties.
    pub quality: Quality,
    /// Nothing passes.
    pub cut: bool,
    last_arrival: Nanos,
}

impl Direction {
    fn new(quality: Quality) -> Self {
        Self {
            quality,
            cut: false,
            last_arrival: Nanos(0),
        }
    }

    /// Arrival times of a packet that is sent now: none, one or two.
    pub fn arrivals(&mut self, now: Nanos, random: &mut Random) -> [Option<Nanos>; 2] {
        let quality = self.quality;
        if self.cut || random.chance(quality.loss) {
            return [None, None];
        }
        let arrival = now + quality.delay + random.duration(quality.jitter);
        let first = if random.chance(quality.reorder) {
            // Late, without delaying later packets.
            arrival + quality.delay + random.duration(quality.jitter * 4)
        } else {
            self.last_arrival = arrival.max(self.last_arrival);
            self.last_arrival
        };
        let twice = random.chance(quality.duplicate);
        let second = twice.then(|| first + random.duration(quality.jitter + quality.delay));
        [Some(first), second]
    }
}

/// A link and the session on it.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its ends, the lower number first.
    pub ends: [NodeId; 2],
    /// From the first end to the second, and back.
    pub directions: [Direction; 2],
    /// Sessions so far.
    pub sessions: u32,
    /// The session of each end, as far as it knows. A packet belongs to the session in which it was sent and is
    /// opened only by that one.
    pub session: [Option<u32>; 2],
    /// Incremented by every fault, which invalidates events planned before.
    pub faults: u32,
}

impl Link {
    /// A link without session.
    pub fn new(ends: [NodeId; 2], quality: Quality) -> Self {
        Self {
            ends,
            directions: [Direction::new(quality); 2],
            sessions: 0,
            session: [None; 2],
            faults: 0,
        }
    }

    /// Which end a node is: 0 or 1.
    pub fn end(&self, node: NodeId) -> usize {
        usize::from(self.ends[1] == node)
    }

    /// The node at the other end.
    pub fn other(&self, node: NodeId) -> NodeId {
        self.ends[1 - self.end(node)]
    }

    /// Whether both ends have the same session.
    pub fn agrees(&self) -> bool {
        self.session[0].is_some() && self.session[0] == self.session[1]
    }

    /// Whether a direction is cut.
    pub fn is_cut(&self) -> bool {
        self.directions.iter().any(|direction| direction.cut)
    }
}
