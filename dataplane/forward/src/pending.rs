//! Packets of the host that wait for an end-to-end session.
//!
//! Bounded per destination and overall, in packets and bytes. When there is no room, the destination
//! with the most bytes gives way to one with fewer, and of too many destinations the one that is
//! waited for longest: a program that tries many dead addresses costs the others nothing. What does
//! not fit, and what waited too long, is dropped and counted. Copies are made here, off the fast
//! path: a destination waits once per session, not once per packet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::OverlayAddress;

use crate::host::TunHeader;

/// Packets that wait for one destination.
const PACKETS_MAX: usize = 64;
/// Bytes that wait for all destinations together.
const BYTES_MAX: usize = 4 << 20;
/// Destinations that are waited for.
const DESTINATIONS_MAX: usize = 1024;
/// How long a packet waits.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the control plane is told about one destination.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// A packet that can go now.
#[derive(Clone, Debug)]
pub struct PendingPacket {
    /// As it came from the TUN device.
    pub header: TunHeader,
    /// As it came from the TUN device.
    pub packet: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<(Nanos, PendingPacket)>,
    bytes: usize,
    /// Since when it is waited for.
    since: Nanos,
    told: Nanos,
}

pub(crate) struct Pending {
    queues: BTreeMap<u64, Queue>,
    /// Destinations by bytes that wait, and by how long they are waited for.
    by_bytes: BTreeSet<(usize, u64)>,
    by_age: BTreeSet<(Nanos, u64)>,
    ready: VecDeque<PendingPacket>,
    bytes: usize,
    /// Packets that gave way to others since [`Pending::take_displaced`].
    displaced: u64,
}

/// What became of a packet that had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It waits; tell the control plane.
    Tell,
    /// It waits; the control plane knows.
    Quiet,
    /// There was no room.
    Full {
        /// The control plane is to be told again all the same.
        tell: bool,
    },
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            by_bytes: BTreeSet::new(),
            by_age: BTreeSet::new(),
            displaced: 0,
            ready: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(crate) fn push(
        &mut self,
        now: Nanos,
        to: OverlayAddress,
        header: &TunHeader,
        packet: &[u8],
    ) -> Queued {
        let id = to.subnet_id();
        let known = self.queues.contains_key(&id);
        if !known
            && self.queues.len() == DESTINATIONS_MAX
            && let Some((_, oldest)) = self.by_age.first().copied()
        {
            self.displaced += self.forget(oldest);
        }
        let queue = self.queues.entry(id).or_default();
        if !known {
            queue.since = now;
            self.by_age.insert((now, id));
            self.by_bytes.insert((0, id));
        }
        let tell = !known || now.since(queue.told) >= TELL_AGAIN;
        if tell {
            queue.told = now;
        }
        let (waiting, own) = (queue.packets.len(), queue.bytes);
        if waiting == PACKETS_MAX || !self.make_room(own, packet.len()) {
            return Queued::Full { tell };
        }
        let pending = PendingPacket {
            header: *header,
            packet: packet.to_vec(),
        };
        self.change(id, |queue| {
            queue.bytes += packet.len();
            queue.packets.push_back((now, pending));
        });
        if tell { Queued::Tell } else { Queued::Quiet }
    }

    /// Makes room for bytes of a destination that has `own`; false when none has clearly more.
    fn make_room(&mut self, own: usize, bytes: usize) -> bool {
        while self.bytes + bytes > BYTES_MAX {
            let Some((most, id)) = self.by_bytes.last().copied() else {
                return false;
            };
            if most <= own + bytes {
                return false;
            }
            self.change(id, |queue| {
                if let Some((_, packet)) = queue.packets.pop_back() {
                    queue.bytes -= packet.packet.len();
                }
            });
            self.displaced += 1;
        }
        true
    }

    /// Packets that gave way to others since the last call.
    pub(crate) fn take_displaced(&mut self) -> u64 {
        std::mem::take(&mut self.displaced)
    }

    /// Changes what waits for a destination.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.queues.get_mut(&id) {
            self.by_bytes.remove(&(queue.bytes, id));
            self.bytes -= queue.bytes;
            change(queue);
            self.bytes += queue.bytes;
            self.by_bytes.insert((queue.bytes, id));
        }
    }

    fn remove(&mut self, id: u64) -> Option<Queue> {
        let queue = self.queues.remove(&id)?;
        self.by_bytes.remove(&(queue.bytes, id));
        self.by_age.remove(&(queue.since, id));
        Some(queue)
    }

    /// Forgets what waits for a destination. Returns how many packets are lost.
    fn forget(&mut self, id: u64) -> u64 {
        self.remove(id).map_or(0, |queue| {
            self.bytes -= queue.bytes;
            queue.packets.len() as u64
        })
    }

    /// A session to `to` is there: its packets can go.
    pub(crate) fn release(&mut self, to: OverlayAddress) {
        // Its bytes count until the packets are taken.
        if let Some(queue) = self.remove(to.subnet_id()) {
            self.ready
                .extend(queue.packets.into_iter().map(|(_, packet)| packet));
        }
    }

    /// A session to `to` will not come. Returns how many packets are lost.
    pub(crate) fn abandon(&mut self, to: OverlayAddress) -> u64 {
        self.forget(to.subnet_id())
    }

    pub(crate) fn next_ready(&mut self) -> Option<PendingPacket> {
        let packet = self.ready.pop_front()?;
        self.bytes -= packet.packet.len();
        Some(packet)
    }

    /// Drops what waited too long. Returns how many packets are lost.
    pub(crate) fn expire(&mut self, now: Nanos) -> u64 {
        let mut lost = 0;
        for id in self.queues.keys().copied().collect::<Vec<_>>() {
            self.change(id, |queue| {
                while let Some((since, packet)) = queue.packets.front()
                    && now.since(*since) >= WAIT_MAX
                {
                    lost += 1;
                    queue.bytes -= packet.packet.len();
                    queue.packets.pop_front();
                }
            });
            let queue = self.queues.get(&id);
            let over = |q: &Queue| q.packets.is_empty() && now.since(q.told) >= TELL_AGAIN;
            if queue.is_some_and(over) {
                self.forget(id);
            }
        }
        lost
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000);

    fn to(n: u16) -> OverlayAddress {
        let mut address = [4; 16];
        address[6..8].copy_from_slice(&n.to_be_bytes());
        OverlayAddress(address)
    }

    fn push(pending: &mut Pending, now: Nanos, n: u16, len: usize) -> Queued {
        pending.push(now, to(n), &TunHeader::default(), &vec![1; len])
    }

    #[test]
    fn many_dead_destinations_keep_none_from_waiting() {
        let mut pending = Pending::new();
        for n in 0..5000u16 {
            let now = START + Duration::from_millis(n.into());
            assert_eq!(push(&mut pending, now, n, 100), Queued::Tell);
        }
        assert_eq!(pending.queues.len(), DESTINATIONS_MAX);
        assert_eq!(pending.take_displaced(), 5000 - DESTINATIONS_MAX as u64);
        pending.release(to(4999));
        assert!(pending.next_ready().is_some());
        assert_eq!(pending.bytes, (DESTINATIONS_MAX - 1) * 100);
    }

    #[test]
    fn destinations_with_most_bytes_give_way() {
        let mut pending = Pending::new();
        for n in (0..60).flat_map(|n| [n; PACKETS_MAX]) {
            push(&mut pending, START, n, 1300);
        }
        assert!(pending.bytes <= BYTES_MAX);
        assert_eq!(push(&mut pending, START, 999, 1300), Queued::Tell);
        assert!(pending.bytes <= BYTES_MAX && pending.take_displaced() > 0);
        let most = pending.by_bytes.last().unwrap().0;
        assert!(most >= 40 * 1300, "no more than needed: {most}");
        let waiting: usize = pending.queues.values().map(|q| q.packets.len()).sum();
        let lost = pending.expire(START + WAIT_MAX);
        assert_eq!(lost, waiting as u64);
        assert_eq!((pending.bytes, pending.is_empty()), (0, true));
        assert!(pending.by_age.is_empty() && pending.by_bytes.is_empty());
    }
}
