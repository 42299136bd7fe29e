//! Third pass: seal the headers for the next hop. The payload is not touched.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::Nanos;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::report::ReportCode;

use super::{Step, transmit};
use crate::engine::Engine;
use crate::session::LinkLane;
use crate::verdict::Verdict;

impl Engine {
    pub(super) fn forward_routed(
        &mut self,
        now: Nanos,
        part: &mut [u8],
        segment: usize,
        steps: &[Step],
        verdicts: &mut [Verdict],
    ) {
        let (mut packets, mut bytes) = (0, 0);
        for (n, frame) in part.chunks_mut(segment).enumerate() {
            let Step::Forward { egress } = steps[n] else {
                continue;
            };
            let slot = egress as usize;
            let most = self.links.get(slot).map_or(0, LinkLane::frame_max);
            if frame.len() > most && most > 0 {
                self.tell_sender(now, ReportCode::TooBig, most - OVERHEAD, frame);
                verdicts[n] = Verdict::Drop(DropReason::LinkTooBig);
                continue;
            }
            verdicts[n] = match self.seal_transit(now, slot, frame) {
                Ok(()) => {
                    packets += 1;
                    bytes += frame.len() as u64;
                    transmit(slot)
                }
                Err(reason) => Verdict::Drop(reason),
            };
        }
        self.counters.add(Counter::TransitPackets, packets);
        self.counters.add(Counter::TransitBytes, bytes);
    }
}
