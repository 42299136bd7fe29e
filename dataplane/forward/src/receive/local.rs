//! Frames for this node: open the payload, check that the sender may say what it says, dispatch.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind, PROBE_LEN};
use hyphae_wire::frame::{
    FLAG_PARTIAL_CHECKSUM, HOP_LIMIT_DEFAULT, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT,
    SealedHeaders, TAG_LEN, handshake_trailer,
};
use hyphae_wire::report::{Report, ReportCode};

use hyphae_wire::{OverlayAddress, Service, SessionIndex};
use zerocopy::FromBytes;

use super::transmit_part;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::host;
use crate::session::Role;
use crate::verdict::Verdict;

impl Engine {
    /// A frame whose link part is open and whose destination is this node's /64; its lengths were
    /// checked by the route pass.
    pub(super) fn receive_local(
        &mut self,
        now: Nanos,
        peer: u32,
        frame: &mut [u8],
        handed: bool,
    ) -> Verdict {
        let headers = SealedHeaders::read_from_bytes(&frame[SEALED_HEADERS_AT..LINK_TAG_AT]);
        let Ok(headers) = headers else {
            return Verdict::Drop(DropReason::FrameTooShort);
        };
        let Some(service) = Service::from_code(headers.routing.service) else {
            return Verdict::Drop(DropReason::ServiceUnknown);
        };
        let end = frame.len() - TAG_LEN;
        let punt = |receive_index| Verdict::PuntService {
            destination: headers.routing.destination,
            source: headers.routing.source,
            receive_index,
            peer,
            service,
            hop_limit: headers.routing.hop_limit,
            offset: PAYLOAD_AT as u32,
            // A datagram is at most 64 KiB.
            len: (end - PAYLOAD_AT) as u32,
        };
        let (payload, trailer) = frame[PAYLOAD_AT..].split_at(end - PAYLOAD_AT);
        let whole = || handshake_trailer(payload) == *trailer;
        match service {
            Service::Handshake => {
                return if !whole() {
                    Verdict::Drop(DropReason::HandshakeMalformed)
                } else {
                    self.guard_routed(now, peer, headers.routing.source, frame, punt(0))
                };
            }
            Service::Report if whole() => {
                let report = Report::parse(payload).copied();
                return self.take_report(now, peer, report, handed, punt(0));
            }
            Service::Trace if whole() && payload.is_empty() => {
                self.tell_sender(now, peer, (ReportCode::Reached, 0), frame);
                return Verdict::Done;
            }
            Service::Report | Service::Trace => {
                return Verdict::Drop(DropReason::ReportMalformed);
            }
            Service::Ipv6 | Service::Control | Service::Message => {}
        }
        let index = SessionIndex(headers.session.receiver.get());
        let owner = index.worker();
        if owner != self.config.worker && owner.0 < self.config.workers {
            return Verdict::HandoffOpened {
                worker: owner,
                peer,
            };
        }
        let slot = match self.open_payload(now, &headers, index, frame) {
            Ok(slot) => slot,
            Err(DropReason::SessionUnknown) => {
                return self.reset_session(now, peer, &headers, frame);
            }
            Err(reason) => return Verdict::Drop(reason),
        };
        match service {
            Service::Ipv6 => self.deliver(&headers, &mut frame[PAYLOAD_AT..end]),
            Service::Control => match control::parse(&frame[PAYLOAD_AT..end]) {
                None => Verdict::Drop(DropReason::ControlMalformed),
                Some((ControlKind::Keepalive, _)) => Verdict::Done,
                Some((ControlKind::Probe, _)) => self.answer_probe(now, slot, headers, frame),
                Some((
                    ControlKind::ProbeReply
                    | ControlKind::Routing
                    | ControlKind::Close
                    | ControlKind::Handshake
                    | ControlKind::Duplicate,
                    _,
                )) => punt(index.0),
            },
            Service::Message => punt(index.0),
            Service::Handshake | Service::Report | Service::Trace => {
                Verdict::Drop(DropReason::ServiceUnknown)
            }
        }
    }

    fn open_payload(
        &mut self,
        now: Nanos,
        headers: &SealedHeaders,
        index: SessionIndex,
        frame: &mut [u8],
    ) -> Result<usize, DropReason> {
        let slot = self
            .sessions
            .find(index)
            .ok_or(DropReason::SessionUnknown)?;
        let session = self
            .sessions
            .get_mut(slot)
            .ok_or(DropReason::SessionUnknown)?;
        if session.lane.expired(now) {
            return Err(DropReason::SessionExpired);
        }
        if headers.routing.source.subnet_id() != session.address.subnet_id() {
            return Err(DropReason::SourceSpoofed);
        }
        let counter = headers.session.counter.get();
        if !session.lane.replay.is_fresh(counter) {
            return Err(DropReason::SessionReplay);
        }
        self.counters.opened(session.lane.suite, 1);
        let aad = headers.associated_data();
        let opened = session
            .lane
            .open
            .open(counter, &aad, &mut frame[PAYLOAD_AT..]);
        opened.map_err(|_| DropReason::SessionAuth)?;
        session.lane.replay.note(counter);
        if session.lane.role == Role::Standby {
            self.activate_session(slot);
        }
        Ok(slot)
    }

    /// An IPv6 packet for the host.
    fn deliver(&mut self, headers: &SealedHeaders, packet: &mut [u8]) -> Verdict {
        let inner = match host::inspect(packet) {
            Ok(inner) => inner,
            Err(error) => return Verdict::Drop(error.overlay_reason()),
        };
        let routing = &headers.routing;
        // The routing source was held against the session's key.
        let sender = self.node_of(inner.source).map(OverlayAddress::subnet_id);
        if sender != Some(routing.source.subnet_id()) {
            return Verdict::Drop(DropReason::SourceSpoofed);
        }
        if inner.destination != routing.destination && !self.is_behind(inner.destination) {
            return Verdict::Drop(DropReason::DestinationMismatch);
        }
        if !self.config.has_tun {
            return Verdict::Drop(DropReason::NoTun);
        }
        packet[7] = routing.hop_limit;
        self.counters.add(Counter::TunTxPackets, 1);
        Verdict::Deliver {
            offset: PAYLOAD_AT as u32,
            // A datagram is at most 64 KiB.
            len: packet.len() as u32,
            partial_checksum: routing.flags.get() & FLAG_PARTIAL_CHECKSUM != 0,
        }
    }

    /// Whether this node is the gateway of an address outside of the overlay.
    fn is_behind(&self, address: OverlayAddress) -> bool {
        !address.is_overlay()
            && self
                .node_of(address)
                .is_some_and(|node| self.is_local(node))
    }

    /// Sends a probe back to the end of the session that asked, in the frame it came in.
    #[inline(never)]
    fn answer_probe(
        &mut self,
        now: Nanos,
        slot: usize,
        mut headers: SealedHeaders,
        frame: &mut [u8],
    ) -> Verdict {
        self.counters.add(Counter::ProbesAnswered, 1);
        frame[PAYLOAD_AT] = ControlKind::ProbeReply.code();
        // A padded probe asks about this direction only: the answer is short.
        let len = frame.len().min(PAYLOAD_AT + PROBE_LEN + TAG_LEN);
        let (frame, rest) = frame.split_at_mut(len);
        let padded = !rest.is_empty();
        // Not longer than a frame.
        headers.routing.payload_len.set((len - OVERHEAD) as u16);
        let routing = &mut headers.routing;
        std::mem::swap(&mut routing.destination, &mut routing.source);
        routing.hop_limit = HOP_LIMIT_DEFAULT;
        let (destination, flow_hash) = (routing.destination, routing.flow_hash.get());
        let sent = self
            .seal_payload(now, slot, &mut headers, frame)
            .and_then(|()| {
                let session = SessionIndex(headers.session.receiver.get());
                let egress = self.egress_or_handoff(destination, flow_hash, session)?;
                self.seal_egress(now, egress, frame, len)?;
                Ok(egress)
            });
        match sent {
            Ok(Egress::Lane(lane)) if !padded => Verdict::Transmit(lane),
            Ok(egress) => transmit_part(egress, len),
            Err(reason) => Verdict::Drop(reason),
        }
    }
}
