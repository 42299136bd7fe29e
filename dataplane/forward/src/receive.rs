//! What arrives from the underlay, a train at a time.

mod forward;
mod local;
mod open;
mod route;

pub(crate) use route::reported_as;

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::OVERHEAD;

use hyphae_wire::AddressPair;

use crate::TRAIN_MAX;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::verdict::{LinkSlot, Verdict};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Progress of one segment through the passes. Whatever a pass does for few frames only is not inlined into
/// [`Engine::receive`]: the compiler would compute its inputs for every train.
#[derive(Clone, Copy)]
pub(crate) enum Progress {
    /// Its verdict is final.
    Final,
    /// A transit frame that came on this lane.
    Sealed { ingress: u32 },
    /// A transit frame, link part open, that came on this lane.
    Opened { ingress: u32 },
    /// To be sealed for this lane.
    Forward { egress: u32 },
    /// For this node.
    Local { peer: u32 },
}

impl Engine {
    /// Works through a train of `segment`-byte frames (the last may be shorter) from `from`, in
    /// place. Appends one verdict per segment to `verdicts`.
    #[inline]
    pub fn receive(
        &mut self,
        now: Nanos,
        from: impl Into<AddressPair>,
        train: &mut [u8],
        segment: usize,
        verdicts: &mut Vec<Verdict>,
    ) {
        self.receive_train(now, &from.into(), train, segment, verdicts);
    }

    fn receive_train(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        train: &mut [u8],
        segment: usize,
        verdicts: &mut Vec<Verdict>,
    ) {
        self.counters.add(Counter::UnderlayRxTrains, 1);
        self.counters
            .add(Counter::UnderlayRxBytes, train.len() as u64);
        let segment = segment.max(1);
        let frames = train.len().div_ceil(segment) as u64;
        self.counters.add(Counter::UnderlayRxPackets, frames);
        self.counters.observe(Counter::RxTrains1, frames);
        for part in train.chunks_mut(segment.saturating_mul(TRAIN_MAX)) {
            self.receive_part(now, from, part, segment, verdicts);
        }
    }

    fn receive_part(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        part: &mut [u8],
        segment: usize,
        verdicts: &mut Vec<Verdict>,
    ) {
        warm(part, segment);
        let count = part.len().div_ceil(segment);
        // A member, because a local array is initialized for the longest train.
        let mut steps = std::mem::take(&mut self.steps);
        steps.clear();
        steps.resize(count, Progress::Final);
        let first = verdicts.len();
        verdicts.resize(first + count, Verdict::Done);
        let verdicts = &mut verdicts[first..];
        self.open_train(now, from, part, segment, &mut steps, verdicts);
        self.route_opened(now, part, segment, &mut steps, verdicts);
        self.forward_routed(now, part, segment, &steps, verdicts);
        for (n, frame) in part.chunks_mut(segment).enumerate() {
            if let Progress::Local { peer } = steps[n] {
                verdicts[n] = self.receive_local(now, peer, frame, false);
            }
        }
        self.steps = steps;
        verdicts.iter().for_each(|verdict| self.count(verdict));
    }

    /// A frame whose link part another worker has opened; its end-to-end session is ours.
    pub fn receive_opened(&mut self, now: Nanos, peer: u32, frame: &mut [u8]) -> Verdict {
        let verdict = if frame.len() < OVERHEAD {
            Verdict::Drop(DropReason::FrameTooShort)
        } else {
            self.receive_local(now, peer, frame, true)
        };
        self.count(&verdict);
        verdict
    }

    fn count(&mut self, verdict: &Verdict) {
        if let Verdict::Drop(reason) | Verdict::Reply { reason, .. } = verdict {
            self.counters.drop(*reason);
        }
    }
}

/// Reads a byte of every cache line that opening will need, headers and end-to-end tag: loads that do
/// not depend on each other overlap, where the AEAD would wait for one after the other.
fn warm(part: &[u8], segment: usize) {
    let mut sum = 0u8;
    for frame in part.chunks(segment) {
        let ends = frame.first().copied().unwrap_or(0) ^ frame.last().copied().unwrap_or(0);
        sum ^= ends ^ frame.get(LINE).copied().unwrap_or(0);
    }
    std::hint::black_box(sum);
}

/// The verdict on the first `len` bytes of a frame that was built in place.
pub(crate) fn transmit_part(egress: Egress, len: usize) -> Verdict {
    // A datagram is at most 64 KiB.
    let len = len as u32;
    match egress {
        Egress::Lane(slot) => Verdict::TransmitPart(slot, len),
        Egress::Handoff(worker) => Verdict::HandoffEgress {
            worker,
            peer: 0,
            len,
        },
    }
}

/// A lane as a verdict.
fn transmit(slot: usize) -> Verdict {
    // Slots have 16 bits.
    Verdict::Transmit(LinkSlot(slot as u32))
}
