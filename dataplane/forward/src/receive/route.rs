//! Second pass: for this node, or towards which lane.

use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::frame::{
    FLAG_PARTIAL_CHECKSUM, LINK_TAG_AT, OVERHEAD, SEALED_HEADERS_AT, SealedHeaders,
};
use hyphae_wire::report::ReportCode;

use hyphae_wire::{OverlayAddress, Service, SessionIndex};
use zerocopy::FromBytes;

use super::Progress;
use crate::engine::Engine;
use crate::verdict::{LinkSlot, Verdict};

/// The last decision: segments of a train mostly go the same way.
#[derive(Clone, Copy)]
struct Recent {
    destination: OverlayAddress,
    flow_hash: u16,
    session: u32,
    egress: Result<usize, DropReason>,
}

impl Engine {
    pub(super) fn route_opened(
        &mut self,
        now: Nanos,
        part: &mut [u8],
        segment: usize,
        steps: &mut [Progress],
        verdicts: &mut [Verdict],
    ) {
        let mut recent = None;
        for (n, frame) in part.chunks_mut(segment).enumerate() {
            let Progress::Opened { ingress } = steps[n] else {
                continue;
            };
            match self.route_frame(frame, ingress, &mut recent) {
                Ok(step) => steps[n] = step,
                Err(reason) => {
                    steps[n] = Progress::Final;
                    verdicts[n] = self.refuse_routed(now, ingress, reason, frame);
                }
            }
        }
    }

    /// A frame without an egress here: handed off where another worker may have a lane, else dropped
    /// and reported to its sender.
    #[cold]
    fn refuse_routed(
        &mut self,
        now: Nanos,
        ingress: u32,
        reason: DropReason,
        frame: &[u8],
    ) -> Verdict {
        let peer = self.peer(LinkSlot(ingress)).unwrap_or(0);
        if let Some(worker) = self.handoff_for(reason) {
            // A datagram is at most 64 KiB.
            let len = frame.len() as u32;
            return Verdict::HandoffEgress { worker, peer, len };
        }
        if let Some(code) = reported_as(reason) {
            self.tell_sender(now, peer, (code, 0), frame);
        }
        Verdict::Drop(reason)
    }

    fn route_frame(
        &mut self,
        frame: &mut [u8],
        ingress: u32,
        recent: &mut Option<Recent>,
    ) -> Result<Progress, DropReason> {
        let len = frame.len();
        let headers = SealedHeaders::mut_from_bytes(&mut frame[SEALED_HEADERS_AT..LINK_TAG_AT])
            .map_err(|_| DropReason::FrameTooShort)?;
        let routing = &mut headers.routing;
        if usize::from(routing.payload_len.get()) != len - OVERHEAD {
            return Err(DropReason::LengthMismatch);
        }
        if routing.flags.get() & !FLAG_PARTIAL_CHECKSUM != 0 {
            return Err(DropReason::FrameReservedBits);
        }
        Service::from_code(routing.service).ok_or(DropReason::ServiceUnknown)?;
        let destination = routing.destination;
        if self.is_local(destination) {
            let link = self
                .links
                .get(ingress as usize)
                .ok_or(DropReason::LinkUnknown)?;
            return Ok(Progress::Local { peer: link.peer });
        }
        if routing.hop_limit <= 1 {
            return Err(DropReason::HopLimit);
        }
        routing.hop_limit -= 1;
        let (flow_hash, session) = (routing.flow_hash.get(), headers.session.receiver.get());
        let egress = match recent {
            Some(last)
                if last.destination == destination
                    && last.flow_hash == flow_hash
                    && last.session == session =>
            {
                last.egress
            }
            _ => {
                let egress = self.egress(destination, flow_hash, SessionIndex(session));
                *recent = Some(Recent {
                    destination,
                    flow_hash,
                    session,
                    egress,
                });
                egress
            }
        };
        // Slots have 16 bits.
        egress.map(|slot| Progress::Forward {
            egress: slot as u32,
        })
    }
}

/// The report that the sender of a frame dropped for this reason gets.
pub(crate) fn reported_as(reason: DropReason) -> Option<ReportCode> {
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "all others say that the frame is malformed"
    )]
    match reason {
        DropReason::HopLimit => Some(ReportCode::HopLimit),
        DropReason::NoRoute | DropReason::RouteBlackhole | DropReason::AdjacencyDown => {
            Some(ReportCode::NoRoute)
        }
        _ => None,
    }
}
