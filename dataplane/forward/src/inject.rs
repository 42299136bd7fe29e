//! Packets of the control plane: sealed like any other, sent where it says.

use hyphae_shm::record::{
    InjectLinkLocal, InjectMtuProbe, InjectPathProbe, InjectRouted, InjectTrace,
};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind, PROBE_LEN, Probe};
use hyphae_wire::frame::{
    HOP_LIMIT_DEFAULT, LINK_HEADER_LEN, LINK_LOCAL_OVERHEAD, PAYLOAD_MAX, SealedHeaders, TAG_LEN,
};

use hyphae_wire::{FrameKind, LinkHeader, OverlayAddress, Service, SessionIndex};
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

use crate::egress::Egress;
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
        let slot = self.link_slot(record.peer.get(), record.receive_index.get())?;
        let len = payload.len() + LINK_LOCAL_OVERHEAD;
        let frame = space.get_mut(..len).ok_or(DropReason::NoBuffer)?;
        frame[LINK_HEADER_LEN..len - TAG_LEN].copy_from_slice(payload);
        if self
            .links
            .get(slot)
            .is_some_and(|link| len > link.frame_max())
        {
            return Err(DropReason::LinkTooBig);
        }
        self.seal_link_local(now, slot, frame)?;
        // Slots have 16 bits.
        Ok(Train {
            egress: Egress::Lane(LinkSlot(slot as u32)),
            len,
            segment: len,
        })
    }

    /// Builds a padded probe for a neighbour; it is to leave whole, whatever the link's MTU.
    ///
    /// # Errors
    /// Why it cannot be sent; not counted yet.
    pub fn inject_mtu_probe(
        &mut self,
        now: Nanos,
        record: &InjectMtuProbe,
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let slot = self.link_slot(record.peer.get(), record.receive_index.get())?;
        let len = usize::from(record.len.get()).max(PROBE_LEN + LINK_LOCAL_OVERHEAD);
        let frame = space.get_mut(..len).ok_or(DropReason::NoBuffer)?;
        fill_probe(
            &mut frame[LINK_HEADER_LEN..len - TAG_LEN],
            record.id,
            record.sent,
        );
        self.seal_link_local(now, slot, frame)?;
        // Slots have 16 bits.
        Ok(Train {
            egress: Egress::Lane(LinkSlot(slot as u32)),
            len,
            segment: len,
        })
    }

    /// Builds a padded probe for the other end of a session.
    ///
    /// # Errors
    /// Why it cannot be sent; not counted yet.
    pub fn inject_path_probe(
        &mut self,
        now: Nanos,
        record: &InjectPathProbe,
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let slot = self.session_slot(record.destination, record.receive_index.get())?;
        let departure = self.departure_on(now, slot, record.destination, HOP_LIMIT_DEFAULT)?;
        let mut payload = vec![0; usize::from(record.len.get()).max(PROBE_LEN)];
        fill_probe(&mut payload, record.id, record.sent);
        self.originate_service(now, &departure, Service::Control, &payload, space)
    }

    /// Builds a frame that asks whoever it ends at for a report.
    ///
    /// # Errors
    /// Why it cannot be sent; not counted yet.
    pub fn inject_trace(
        &mut self,
        now: Nanos,
        record: &InjectTrace,
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.destination = record.destination;
        headers.routing.hop_limit = record.hop_limit;
        headers.routing.service = Service::Trace.code();
        headers.session.counter = record.nonce;
        self.build_unsealed(now, headers, &[], space)
    }

    fn link_slot(&mut self, peer: u32, index: u32) -> Result<usize, DropReason> {
        if index != 0 {
            let found = self.links.find(SessionIndex(index));
            return found.ok_or(DropReason::LinkUnknown);
        }
        let peer = self.peer_mut(peer).ok_or(DropReason::AdjacencyDown)?;
        let slot = peer.lanes.pick(0).ok_or(DropReason::AdjacencyDown)?;
        Ok(slot as usize)
    }

    fn session_slot(&self, destination: OverlayAddress, index: u32) -> Result<usize, DropReason> {
        if index != 0 {
            let found = self.sessions.find(SessionIndex(index));
            return found.ok_or(DropReason::SessionUnknown);
        }
        let found = self.destinations.get(&destination.subnet_id());
        let slot = found.and_then(|found| found.lanes.pick(0));
        Ok(slot.ok_or(DropReason::SessionUnknown)? as usize)
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
        let (index, suite) = (link.lane.receive_index.0, link.lane.suite);
        let header = LinkHeader::new(FrameKind::LinkLocal, link.lane.send_index.0, counter.value);
        frame[..LINK_HEADER_LEN].copy_from_slice(header.as_bytes());
        let end = frame.len() - TAG_LEN;
        let sealed = &mut frame[LINK_HEADER_LEN..end];
        let tag = link
            .lane
            .seal
            .single()
            .seal(counter.value, header.as_bytes(), sealed);
        frame[end..].copy_from_slice(&tag);
        self.counters.sealed(suite, 1);
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
        let slot = self.session_slot(record.destination, record.receive_index.get())?;
        let departure = self.departure_on(now, slot, record.destination, HOP_LIMIT_DEFAULT)?;
        let mtu = departure.mtu();
        if payload.len() > mtu.into() {
            let address = record.destination;
            self.report(EngineEvent::PathTooBig { address, mtu });
            return Err(DropReason::LinkTooBig);
        }
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
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.destination = record.destination;
        headers.routing.hop_limit = HOP_LIMIT_DEFAULT;
        headers.routing.service = Service::Handshake.code();
        self.build_unsealed(now, headers, payload, space)
    }
}

/// Writes a probe that fills `payload`, with zeros behind.
fn fill_probe(payload: &mut [u8], id: U64, sent: U64) {
    payload.fill(0);
    let probe = control::probe(ControlKind::Probe, Probe { id, sent });
    payload[..PROBE_LEN].copy_from_slice(&probe);
}
