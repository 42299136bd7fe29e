//! Links: what happens to a packet between two nodes.
//!
//! A link is two directions with faults of their own. On top of it is a session, as the overlay
//! keeps it: it ends when a node restarts, and a new one begins when both are there; packets of
//! an ended session are never delivered.

use std::time::Duration;

use hyphae_time::Nanos;

use crate::random::Random;
use crate::topology::NodeId;

/// How one direction of a link treats packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Time on the way, at least.
    pub delay: Duration,
    /// Time on top, at most. Packets stay in order, unless `reorder` says otherwise.
    pub jitter: Duration,
    /// Packets lost, per million.
    pub loss: u32,
    /// Packets that arrive twice, per million.
    pub duplicate: u32,
    /// Packets that are overtaken by later ones, per million.
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

    /// The same without any loss, copies or disorder, and with a steady delay: a jitter that
    /// changes costs is a fault as well.
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

    /// A link of the Internet, anything from good to bad.
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
    /// How it treats packets.
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

    /// When copies of a packet that is sent now arrive: none, one or two times.
    pub fn arrivals(&mut self, now: Nanos, random: &mut Random) -> [Option<Nanos>; 2] {
        let quality = self.quality;
        if self.cut || random.chance(quality.loss) {
            return [None, None];
        }
        let arrival = now + quality.delay + random.duration(quality.jitter);
        let first = if random.chance(quality.reorder) {
            // Late, and not holding up what comes after it.
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
    /// The session that each end has, as far as it knows. A packet belongs to the one in which it
    /// was sent, and is opened by that one only.
    pub session: [Option<u32>; 2],
    /// Changes whenever a fault hits the link, so that what was planned before is not done.
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

    /// Whether both ends have the same session: what one seals, the other opens.
    pub fn agrees(&self) -> bool {
        self.session[0].is_some() && self.session[0] == self.session[1]
    }

    /// Whether a direction is cut.
    pub fn is_cut(&self) -> bool {
        self.directions.iter().any(|direction| direction.cut)
    }
}
