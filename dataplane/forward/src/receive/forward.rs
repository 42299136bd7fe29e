//! Third pass: seal the headers for the next hop. The payload is not touched.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::report::ReportCode;
use hyphae_wire::{LinkHeader, SessionIndex};

use super::{Progress, transmit};
use crate::engine::Engine;
use crate::session::LinkLane;
use crate::verdict::Verdict;

/// So many lanes with their keys stay in a core's own cache, more or less.
const CACHED_LANES: usize = 1024;

impl Engine {
    pub(super) fn forward_routed(
        &mut self,
        now: Nanos,
        part: &mut [u8],
        segment: usize,
        steps: &[Progress],
        verdicts: &mut [Verdict],
    ) {
        let (mut packets, mut bytes) = (0, 0);
        let count = part.len().div_ceil(segment);
        self.warm_lanes(&steps[..count]);
        let mut next = 0;
        while next < count {
            let first = next;
            next += 1;
            let Progress::Forward { egress } = steps[first] else {
                continue;
            };
            let slot = egress as usize;
            let most = self.links.get(slot).map_or(0, LinkLane::frame_max);
            let fits = |n: usize| {
                let len = segment.min(part.len() - n * segment);
                len <= most || most == 0
            };
            if !fits(first) {
                let frame = part.chunks_mut(segment).nth(first).unwrap_or_default();
                let too_big = (ReportCode::TooBig, most - OVERHEAD);
                let peer = self.ingress_peer(frame);
                self.tell_sender(now, peer, too_big, frame);
                verdicts[first] = Verdict::Drop(DropReason::LinkTooBig);
                continue;
            }
            // Neighbours that leave on one lane are sealed at once.
            let same =
                |step| matches!(step, Progress::Forward { egress: other } if other == egress);
            while next < count && same(steps[next]) && fits(next) {
                next += 1;
            }
            let end = part.len().min(next * segment);
            let run = &mut part[first * segment..end];
            verdicts[first..next].fill(match self.seal_train(now, slot, run, segment) {
                Ok(()) => {
                    packets += (next - first) as u64;
                    bytes += run.len() as u64;
                    transmit(slot)
                }
                Err(reason) => Verdict::Drop(reason),
            });
        }
        self.counters.add(Counter::TransitPackets, packets);
        self.counters.add(Counter::TransitBytes, bytes);
    }

    /// The neighbour that a frame came from, whose link header is not replaced yet.
    #[cold]
    fn ingress_peer(&self, frame: &[u8]) -> u32 {
        let header = LinkHeader::split(frame);
        let slot = header.and_then(|(h, _)| self.links.find(SessionIndex(h.receiver.get())));
        slot.and_then(|slot| self.links.get(slot))
            .map_or(0, |link| link.peer)
    }

    /// Reads something of every lane that frames of a train leave on, and of its key. The loads do not depend on each
    /// other and overlap, where sealing would wait for one after the other.
    fn warm_lanes(&self, steps: &[Progress]) {
        if self.links.slots() <= CACHED_LANES {
            return;
        }
        let egress = steps.iter().filter_map(|step| match step {
            Progress::Forward { egress } => Some(*egress as usize),
            Progress::Final
            | Progress::Sealed { .. }
            | Progress::Opened { .. }
            | Progress::Local { .. } => None,
        });
        let (mut last, mut sum) = (None, 0);
        for slot in egress {
            if last.replace(slot).is_some_and(|last| last != slot)
                && let Some(link) = self.links.get(slot)
            {
                sum ^= link.lane.sent() ^ u64::from(link.mtu) ^ u64::from(link.lane.seal.warm());
            }
        }
        std::hint::black_box(sum);
    }
}
