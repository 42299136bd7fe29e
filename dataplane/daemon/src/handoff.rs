//! Handoff between workers: frames received by a worker that does not own their session, and packets to send of a
//! worker without a lane to the next hop or of the session.
//!
//! Every pair of workers has a ring in ordinary memory; a frame is copied into it, and the other worker's
//! doorbell is rung if it sleeps. Workers share nothing else, and no flow between nodes
//! of equal worker counts uses it.

use std::sync::Arc;

use hyphae_forward::Counters;
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_shm::{Consumer, Doorbell, Producer};
use hyphae_wire::{AddressPair, WorkerId};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

/// Bytes of a ring for received frames; pages that are never used are never resident.
const RING_BYTES: usize = 256 * 1024;
/// Bytes of a ring to the worker that sends in place of another: some thirty packets of the host of 64 KiB.
const EGRESS_RING_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of a record from which on it is published at once, so that the other worker starts before this turn ends.
const LARGE: usize = 16 * 1024;

/// Workers below this number have a lane of every session.
const LANES: usize = hyphae_wire::index::LANES_PER_WORKER_MAX as usize;

/// A datagram as received: link index of another worker.
pub(crate) const RAW: u16 = 1;
/// A frame whose link part is open: end-to-end index of another worker.
const OPENED: u16 = 2;
/// What the stream thread has counted.
pub(crate) const COUNTS: u16 = 3;
/// Frames for a next hop to which only the other worker has a lane.
const EGRESS: u16 = 4;
/// A packet of the host, with its TUN header, for a session of which only the other worker has a lane.
const HOST: u16 = 5;

/// What precedes the frame in a record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    from: AddressPair,
    peer: U32,
    segment: U32,
}

impl Header {
    /// Header of a frame received from, or to be sent to, an underlay address.
    pub(crate) fn raw(addresses: impl Into<AddressPair>) -> Self {
        Self {
            from: addresses.into(),
            peer: U32::ZERO,
            segment: U32::ZERO,
        }
    }

    /// That address, and the local one.
    pub(crate) fn from(&self) -> AddressPair {
        self.from
    }
}

/// A record of another worker or of the stream thread.
pub(crate) enum Handed<'a> {
    /// As received, with these addresses.
    Raw {
        from: AddressPair,
        frame: &'a mut [u8],
    },
    /// Link part opened by the other worker, from this peer.
    Opened { peer: u32, frame: &'a mut [u8] },
    /// What the stream thread has counted.
    Counts(&'a [u8]),
    /// Frames of this many bytes (the last may be shorter) to seal for their next hop, from this peer (0 for frames
    /// of this node).
    Egress {
        peer: u32,
        segment: u32,
        frames: &'a [u8],
    },
    /// A TUN header and a packet of the host.
    Host(&'a [u8]),
}

/// One worker's ends of all rings.
#[derive(Default)]
pub(crate) struct Handoff {
    outlets: Vec<Option<Outlet>>,
    pub(crate) inlets: Inlets,
}

/// The consuming ends. Apart, because executing a record may push others.
#[derive(Default)]
pub(crate) struct Inlets(Vec<Consumer>);

/// One ring's producing end.
pub(crate) struct Outlet {
    ring: Producer,
    bell: Arc<Doorbell>,
    dirty: bool,
}

impl Outlet {
    /// A ring whose consumer `bell` wakes.
    pub(crate) fn connect(ring_bytes: usize, bell: &Arc<Doorbell>) -> (Self, Consumer) {
        let (ring, consumer) = hyphae_shm::heap(ring_bytes);
        let outlet = Self {
            ring,
            bell: Arc::clone(bell),
            dirty: false,
        };
        (outlet, consumer)
    }

    /// Pushes a record; false when the ring is full.
    pub(crate) fn push(&mut self, code: u16, header: &Header, frame: &[u8]) -> bool {
        let pushed = self.ring.push(code, &[header.as_bytes(), frame]).is_ok();
        self.dirty |= pushed;
        if pushed && frame.len() >= LARGE {
            self.publish();
        }
        pushed
    }

    /// Publishes what was pushed, and rings the doorbell if the consumer sleeps.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) && self.ring.publish() {
            self.bell.ring();
        }
    }
}

/// Counts a record: handed off, or lost to a full ring with its packets.
pub(crate) fn count(counters: &mut Counters, pushed: bool, packets: u64) {
    if pushed {
        counters.add(Counter::Handoffs, 1);
    } else {
        counters.add(Counter::HandoffOverruns, 1);
        counters.drop_many(DropReason::HandoffFull, packets);
    }
}

/// Makes the rings between all pairs of workers.
pub(crate) fn connect(bells: &[Arc<Doorbell>]) -> Vec<Handoff> {
    let mut ends: Vec<_> = bells.iter().map(|_| Handoff::default()).collect();
    for from in 0..bells.len() {
        for (to, bell) in bells.iter().enumerate() {
            let outlet = (from != to).then(|| {
                let substitutes = from >= LANES && to == from % LANES;
                let bytes = if substitutes {
                    EGRESS_RING_BYTES
                } else {
                    RING_BYTES
                };
                let (outlet, consumer) = Outlet::connect(bytes, bell);
                ends[to].inlets.0.push(consumer);
                outlet
            });
            ends[from].outlets.push(outlet);
        }
    }
    ends
}

impl Handoff {
    /// Hands off a datagram as received; false when the ring is full.
    pub(crate) fn raw(&mut self, to: WorkerId, from: &AddressPair, frame: &[u8]) -> bool {
        self.push(to, RAW, &Header::raw(from), frame)
    }

    /// Hands off a frame whose link part is open; false likewise.
    pub(crate) fn opened(&mut self, to: WorkerId, peer: u32, frame: &[u8]) -> bool {
        let header = Header {
            from: AddressPair::default(),
            peer: U32::new(peer),
            segment: U32::ZERO,
        };
        self.push(to, OPENED, &header, frame)
    }

    /// Hands off frames of `segment` bytes, received from `peer`, to be sealed for their next hop; false likewise.
    pub(crate) fn egress(&mut self, to: WorkerId, peer: u32, segment: u32, frames: &[u8]) -> bool {
        let header = Header {
            from: AddressPair::default(),
            peer: U32::new(peer),
            segment: U32::new(segment),
        };
        self.push(to, EGRESS, &header, frames)
    }

    /// Hands off a packet of the host with its TUN header; false likewise.
    pub(crate) fn host(&mut self, to: WorkerId, packet: &[u8]) -> bool {
        self.push(to, HOST, &Header::raw(AddressPair::default()), packet)
    }

    /// The other workers.
    pub(crate) fn others(&self) -> Vec<WorkerId> {
        let outlets = (0u16..).zip(&self.outlets);
        outlets
            .filter(|(_, outlet)| outlet.is_some())
            .map(|(worker, _)| WorkerId(worker))
            .collect()
    }

    /// Adds a ring to take frames from.
    pub(crate) fn also_from(&mut self, ring: Consumer) {
        self.inlets.0.push(ring);
    }

    fn push(&mut self, to: WorkerId, code: u16, header: &Header, frame: &[u8]) -> bool {
        let outlet = self.outlets.get_mut(to.as_usize()).and_then(Option::as_mut);
        outlet.is_some_and(|outlet| outlet.push(code, header, frame))
    }

    /// Publishes what was pushed, and rings the doorbells of consumers that sleep.
    pub(crate) fn publish(&mut self) {
        self.outlets.iter_mut().flatten().for_each(Outlet::publish);
    }
}

impl Inlets {
    /// Takes at most `budget` records per ring; true when there were any.
    pub(crate) fn take(
        &mut self,
        budget: usize,
        scratch: &mut [u8],
        mut each: impl FnMut(Handed<'_>),
    ) -> bool {
        let mut any = false;
        for ring in &mut self.0 {
            for _ in 0..budget {
                // These rings live in this process: a corrupt one is a bug, not an input.
                let Ok(Some((code, len))) = ring.pop(scratch) else {
                    break;
                };
                any = true;
                let Ok((header, frame)) = Ref::<_, Header>::from_prefix(&mut scratch[..len]) else {
                    continue;
                };
                each(match code {
                    RAW => Handed::Raw {
                        from: header.from,
                        frame,
                    },
                    COUNTS => Handed::Counts(frame),
                    EGRESS => Handed::Egress {
                        peer: header.peer.get(),
                        segment: header.segment.get(),
                        frames: frame,
                    },
                    HOST => Handed::Host(frame),
                    _ => Handed::Opened {
                        peer: header.peer.get(),
                        frame,
                    },
                });
            }
            ring.release();
        }
        any
    }

    /// Announces sleep on every ring; false when one of them has frames.
    pub(crate) fn sleep(&mut self) -> bool {
        self.0.iter_mut().all(Consumer::sleep)
    }

    /// Revokes the announcement.
    pub(crate) fn wake(&mut self) {
        self.0.iter_mut().for_each(Consumer::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rings of nine workers, the ninth of which sends through the first.
    fn workers() -> Vec<Handoff> {
        let bells: Vec<_> = (0..9).map(|_| Arc::new(Doorbell::new().unwrap())).collect();
        connect(&bells)
    }

    #[test]
    fn packets_for_a_full_ring_are_dropped_with_one_reason_each_and_room_is_used_again() {
        const SEGMENT: u32 = 1400;
        const FRAMES: u32 = 46;
        let mut workers = workers();
        let mut counters = Counters::default();
        let train = vec![7; (SEGMENT * FRAMES) as usize];
        let push = |from: &mut Handoff, counters: &mut Counters| {
            let pushed = from.egress(WorkerId(0), 3, SEGMENT, &train);
            count(counters, pushed, FRAMES.into());
            pushed
        };
        let mut fit = 0;
        while push(&mut workers[8], &mut counters) {
            fit += 1;
        }
        assert!(fit >= 30, "{fit} trains of 64 KiB");
        push(&mut workers[8], &mut counters);
        assert_eq!(counters.total(Counter::Handoffs), fit);
        assert_eq!(counters.total(Counter::HandoffOverruns), 2);
        let dropped = counters.dropped(DropReason::HandoffFull);
        assert_eq!(dropped, 2 * u64::from(FRAMES));
        let mut scratch = vec![0; hyphae_shm::RECORD_MAX];
        let mut taken = 0;
        workers[0].inlets.take(usize::MAX, &mut scratch, |handed| {
            let Handed::Egress {
                peer,
                segment,
                frames,
            } = handed
            else {
                panic!("another record")
            };
            assert_eq!((peer, segment, frames.len()), (3, SEGMENT, train.len()));
            taken += 1;
        });
        assert_eq!(taken, fit);
        assert!(push(&mut workers[8], &mut counters));
        assert_eq!(counters.dropped(DropReason::HandoffFull), dropped);
    }

    #[test]
    fn a_full_ring_of_received_frames_loses_only_what_it_has_no_room_for() {
        let mut workers = workers();
        let mut counters = Counters::default();
        let frame = [1; 1400];
        for _ in 0..1000 {
            let pushed = workers[1].opened(WorkerId(2), 5, &frame);
            count(&mut counters, pushed, 1);
        }
        let (handed, lost) = (
            counters.total(Counter::Handoffs),
            counters.dropped(DropReason::HandoffFull),
        );
        assert!(handed > 0 && lost > 0);
        assert_eq!(handed + lost, 1000);
        assert_eq!(counters.total(Counter::HandoffOverruns), lost);
    }
}
