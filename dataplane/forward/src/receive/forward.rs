//! Third pass: seal the headers for the next hop. The payload is not touched.

use hyphae_shm::stats::Counter;
use hyphae_wire::Nanos;

use super::{Step, transmit};
use crate::engine::Engine;
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
