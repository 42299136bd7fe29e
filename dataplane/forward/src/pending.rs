//! Packets of the host that wait for an end-to-end session.
//!
//! Bounded per destination and overall, in packets and bytes; what does not fit, and what waited
//! too long, is dropped and counted. Copies are made here, off the fast path: a destination waits
//! once per session, not once per packet.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hyphae_wire::{Nanos, OverlayAddress};

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
    told: Nanos,
}

pub(crate) struct Pending {
    queues: BTreeMap<u64, Queue>,
    ready: VecDeque<PendingPacket>,
    bytes: usize,
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
        if self.bytes + packet.len() > BYTES_MAX
            || (!known && self.queues.len() == DESTINATIONS_MAX)
        {
            return Queued::Full { tell: false };
        }
        let queue = self.queues.entry(id).or_default();
        let tell = !known || now.since(queue.told) >= TELL_AGAIN;
        if tell {
            queue.told = now;
        }
        if queue.packets.len() == PACKETS_MAX {
            return Queued::Full { tell };
        }
        self.bytes += packet.len();
        let pending = PendingPacket {
            header: *header,
            packet: packet.to_vec(),
        };
        queue.packets.push_back((now, pending));
        if tell { Queued::Tell } else { Queued::Quiet }
    }

    /// A session to `to` is there: its packets can go.
    pub(crate) fn release(&mut self, to: OverlayAddress) {
        if let Some(queue) = self.queues.remove(&to.subnet_id()) {
            self.ready
                .extend(queue.packets.into_iter().map(|(_, packet)| packet));
        }
    }

    /// A session to `to` will not come. Returns how many packets are lost.
    pub(crate) fn abandon(&mut self, to: OverlayAddress) -> u64 {
        let Some(queue) = self.queues.remove(&to.subnet_id()) else {
            return 0;
        };
        self.bytes -= queue
            .packets
            .iter()
            .map(|(_, p)| p.packet.len())
            .sum::<usize>();
        queue.packets.len() as u64
    }

    pub(crate) fn next_ready(&mut self) -> Option<PendingPacket> {
        let packet = self.ready.pop_front()?;
        self.bytes -= packet.packet.len();
        Some(packet)
    }

    /// Drops what waited too long. Returns how many packets are lost.
    pub(crate) fn expire(&mut self, now: Nanos) -> u64 {
        let (mut lost, mut bytes) = (0, 0);
        self.queues.retain(|_, queue| {
            while let Some((since, packet)) = queue.packets.front()
                && now.since(*since) >= WAIT_MAX
            {
                lost += 1;
                bytes += packet.packet.len();
                queue.packets.pop_front();
            }
            !queue.packets.is_empty() || now.since(queue.told) < TELL_AGAIN
        });
        self.bytes -= bytes;
        lost
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}
