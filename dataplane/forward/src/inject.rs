//! Packets of the control plane: sealed like any other, sent where it says.

use hyphae_shm::record::{InjectLinkLocal, InjectRouted};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::frame::{
    HOP_LIMIT_DEFAULT, LINK_HEADER_LEN, LINK_LOCAL_OVERHEAD, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT,
    PAYLOAD_MAX, SEALED_HEADERS_AT, SealedHeaders, TAG_LEN, handshake_trailer,
};
use hyphae_wire::{FrameKind, LinkHeader, Nanos, Service, SessionIndex};
use zerocopy::{FromZeros, IntoBytes};

use crate::engine::Engine;
use crate::event::EngineEvent;
use crate::originate::Train;
use crate::verdict::LinkSlot;

impl Engine {
    /// Builds a control message for a neighbour in `space`.
    ///
    /// # Errors
    /// Why it cannot be sent; not counted yet.
    pub fn inject_link_local(
        &mut self,
        now: Nanos,
        record: &InjectLinkLocal,
        payload: &[u8],
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let index = SessionIndex(record.receive_index.get());
        let slot = if index.0 == 0 {
            let peer = self
                .peer_mut(record.peer.get())
                .ok_or(DropReason::AdjacencyDown)?;
            peer.lanes.pick(0).ok_or(DropReason::AdjacencyDown)? as usize
        } else {
            self.links.find(index).ok_or(DropReason::LinkUnknown)?
        };
        let len = payload.len() + LINK_LOCAL_OVERHEAD;
        let frame = space.get_mut(..len).ok_or(DropReason::NoBuffer)?;
        frame[LINK_HEADER_LEN..len - TAG_LEN].copy_from_slice(payload);
        self.seal_link_local(now, slot, frame)?;
        // Slots have 16 bits.
        Ok(Train {
            lane: LinkSlot(slot as u32),
            len,
            segment: len,
        })
    }

    /// Seals a link-local frame whose payload is in place.
    pub(crate) fn seal_link_local(
        &mut self,
        now: Nanos,
        slot: usize,
        frame: &mut [u8],
    ) -> Result<(), DropReason> {
        let link = self.links.get_mut(slot).ok_or(DropReason::LinkUnknown)?;
        let counter = link.lane.next_counter(now).ok_or(DropReason::LinkExpired)?;
        let index = link.lane.receive_index.0;
        let header = LinkHeader::new(FrameKind::LinkLocal, link.lane.send_index.0, counter.value);
        frame[..LINK_HEADER_LEN].copy_from_slice(header.as_bytes());
        let end = frame.len() - TAG_LEN;
        let sealed = &mut frame[LINK_HEADER_LEN..end];
        let tag = link
            .lane
            .seal
            .seal(counter.value, header.as_bytes(), sealed);
        frame[end..].copy_from_slice(&tag);
        self.counters.add(Counter::Sealed, 1);
        self.counters.add(Counter::LinkLocalTx, 1);
        if counter.rekey_due {
            let kind = hyphae_shm::record::LANE_LINK;
            self.report(EngineEvent::RekeyDue {
                kind,
                receive_index: index,
            });
        }
        Ok(())
    }

    /// Builds a packet of a service of this node for an overlay address in `space`.
    ///
    /// # Errors
    /// Why it cannot be sent; not counted yet.
    pub fn inject_routed(
        &mut self,
        now: Nanos,
        record: &InjectRouted,
        payload: &[u8],
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let service = Service::from_code(record.service).ok_or(DropReason::ServiceUnknown)?;
        if payload.len() > PAYLOAD_MAX {
            return Err(DropReason::TunTooBig);
        }
        if service == Service::Handshake {
            return self.inject_handshake(now, record, payload, space);
        }
        let index = SessionIndex(record.receive_index.get());
        let slot = if index.0 == 0 {
            let id = record.destination.subnet_id();
            let found = self
                .destinations
                .get(&id)
                .and_then(|found| found.lanes.pick(0));
            found.ok_or(DropReason::SessionUnknown)? as usize
        } else {
            self.sessions
                .find(index)
                .ok_or(DropReason::SessionUnknown)?
        };
        let departure = self.departure_on(slot, record.destination, HOP_LIMIT_DEFAULT)?;
        self.originate_service(now, &departure, service, payload, space)
    }

    /// Handshakes travel before there is a session: no end-to-end seal, a digest in its place.
    fn inject_handshake(
        &mut self,
        now: Nanos,
        record: &InjectRouted,
        payload: &[u8],
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let source = self.local.ok_or(DropReason::SourceSpoofed)?.address;
        let len = payload.len() + OVERHEAD;
        let frame = space.get_mut(..len).ok_or(DropReason::NoBuffer)?;
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.destination = record.destination;
        headers.routing.source = source;
        headers.routing.hop_limit = HOP_LIMIT_DEFAULT;
        headers.routing.service = Service::Handshake.code();
        // Bounded by PAYLOAD_MAX.
        headers.routing.payload_len.set(payload.len() as u16);
        frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(headers.as_bytes());
        frame[PAYLOAD_AT..len - TAG_LEN].copy_from_slice(payload);
        frame[len - TAG_LEN..].copy_from_slice(&handshake_trailer(payload));
        let egress = self.egress(record.destination, 0, SessionIndex(0))?;
        self.seal_transit(now, egress, frame)?;
        // Slots have 16 bits.
        Ok(Train {
            lane: LinkSlot(egress as u32),
            len,
            segment: len,
        })
    }
}
