//! Packets of the host: which session and lane, then split, sealed end to end, sealed for the first
//! hop, one frame next to the other, so that a super-packet leaves as one train.

use hyphae_shm::record::MTU_UNKNOWN;
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::{
    FLAG_PARTIAL_CHECKSUM, OVERHEAD, PAYLOAD_AT, RoutingHeader, SealedHeaders, SessionHeader,
    TAG_LEN,
};

use hyphae_wire::{OverlayAddress, Service, WorkerId};
use zerocopy::FromZeros;
use zerocopy::little_endian::U16;

use crate::egress::Egress;
use crate::engine::Engine;
use crate::event::EngineEvent;
use crate::host::{self, Splitter, TunHeader};
use crate::icmp::HostError;
use crate::pending::Queued;
use crate::reports::Heads;
use crate::verdict::LinkSlot;

/// Segments and bytes that one send takes.
const SEGMENTS_MAX: usize = 64;
const TRAIN_BYTES_MAX: usize = 65_507;

/// Where a packet of the host goes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    session: u32,
    egress: Egress,
    destination: OverlayAddress,
    source: OverlayAddress,
    hop_limit: u8,
    flow_hash: u16,
    mtu: u16,
}

impl Departure {
    /// Largest packet of this path, bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}

/// What becomes of a packet of the host.
#[derive(Clone, Copy, Debug)]
pub enum HostVerdict {
    /// It can go.
    Depart(Departure),
    /// It was copied and waits for a session.
    Wait,
    /// For [`Engine::route_host`] of another worker, which may have a lane of the session.
    Handoff(WorkerId),
    /// It is dropped; counted.
    Drop(DropReason),
}

/// Frames that were built next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// How they leave.
    pub egress: Egress,
    /// Bytes of all.
    pub len: usize,
    /// Bytes of each but the last.
    pub segment: usize,
}

impl Engine {
    /// Decides about a packet or super-packet of the host.
    pub fn route_host(&mut self, now: Nanos, header: &TunHeader, packet: &[u8]) -> HostVerdict {
        match self.depart(now, header, packet) {
            Ok(verdict) => verdict,
            Err(reason) => {
                self.counters.drop(reason);
                if let Some(error) = HostError::of(reason) {
                    self.answer_host(now, error, None, packet);
                }
                HostVerdict::Drop(reason)
            }
        }
    }

    fn depart(
        &mut self,
        now: Nanos,
        header: &TunHeader,
        packet: &[u8],
    ) -> Result<HostVerdict, DropReason> {
        let inner = host::inspect(packet).map_err(|error| error.host_reason())?;
        let local = self.local.ok_or(DropReason::TunSourceForeign)?;
        if !self
            .node_of(inner.source)
            .is_some_and(|node| self.is_local(node))
        {
            return Err(DropReason::TunSourceForeign);
        }
        let destination = self
            .node_of(inner.destination)
            .filter(|node| !self.is_local(*node))
            .ok_or(DropReason::TunDestinationForeign)?;
        let known = self.destinations.get_mut(&destination.subnet_id());
        let (mut path_mtu, mut reported) = (MTU_UNKNOWN, None);
        let slot = known.and_then(|known| {
            path_mtu = known.path_mtu(now);
            reported = known.reported.take();
            known.lanes.pick(inner.flow_hash)
        });
        if let Some(found) = reported
            && now < found.until
        {
            self.answer_host(now, found.error, Some(found.reporter), packet);
        }
        let Some(slot) = slot else {
            // No session is looked for where no frame could go.
            if self.fib.lookup(destination).is_none() {
                return Err(DropReason::NoRoute);
            }
            if let Some(worker) = self.substitute() {
                return Ok(HostVerdict::Handoff(worker));
            }
            let queued = self.pending.push(now, destination, header, packet);
            for _ in 0..self.pending.take_displaced() {
                self.counters.drop(DropReason::SessionPending);
            }
            match queued {
                Queued::Tell => self.report(EngineEvent::NeedSession(destination)),
                Queued::Quiet => {}
                Queued::Full { tell } => {
                    if tell {
                        self.report(EngineEvent::NeedSession(destination));
                    }
                    return Err(DropReason::SessionPending);
                }
            }
            return Ok(HostVerdict::Wait);
        };
        let session = self
            .sessions
            .get(slot as usize)
            .ok_or(DropReason::SessionUnknown)?;
        let (mtu, remote) = (session.mtu, session.lane.send_index);
        // Handed off unsealed: the other worker has a lane of the session too, knows the MTU of its link lane and
        // answers the host when the link is down.
        let egress = match self.egress(destination, inner.flow_hash, remote) {
            // Slots have 16 bits.
            Ok(lane) => Egress::Lane(LinkSlot(lane as u32)),
            Err(reason) => {
                let worker = self.handoff_for(reason).ok_or(reason)?;
                return Ok(HostVerdict::Handoff(worker));
            }
        };
        let link_mtu = self.egress_inner_max(egress, destination, inner.flow_hash);
        Ok(HostVerdict::Depart(Departure {
            session: slot,
            egress,
            destination,
            source: if self.is_local(inner.source) {
                inner.source
            } else {
                local.address
            },
            hop_limit: inner.hop_limit,
            flow_hash: inner.flow_hash,
            mtu: mtu.min(local.mtu).min(link_mtu).min(path_mtu),
        }))
    }

    /// Builds as many frames of a packet as fit `space` and one train. `None` when none fits or the
    /// lanes are past their limits; what remains of the packet is then dropped and counted.
    pub fn originate(
        &mut self,
        now: Nanos,
        departure: &Departure,
        splitter: &mut Splitter<'_>,
        space: &mut [u8],
    ) -> Option<Train> {
        let segment = splitter.segment_len() + OVERHEAD;
        let (mut at, mut frames) = (0, 0);
        while let Some(len) = splitter.next_len() {
            let end = at + len + OVERHEAD;
            if end > space.len().min(TRAIN_BYTES_MAX) || frames == SEGMENTS_MAX {
                break;
            }
            let frame = &mut space[at..end];
            if splitter
                .write_next(&mut frame[PAYLOAD_AT..PAYLOAD_AT + len])
                .is_none()
            {
                break;
            }
            let flags = if splitter.partial_checksum() {
                FLAG_PARTIAL_CHECKSUM
            } else {
                0
            };
            let mut headers = departure.headers(Service::Ipv6, len, flags);
            let head = Heads::copy(departure.hop_limit, &frame[PAYLOAD_AT..PAYLOAD_AT + len]);
            let session = departure.session as usize;
            if let Err(reason) = self.seal_payload(now, session, &mut headers, frame) {
                self.counters.drop(reason);
                break;
            }
            if let Some(head) = head {
                self.heads.note(&headers.session, head);
            }
            at = end;
            frames += 1;
        }
        if frames == 0 {
            return None;
        }
        if let Err(reason) = self.seal_egress(now, departure.egress, &mut space[..at], segment) {
            self.counters.drop_many(reason, frames as u64);
            return None;
        }
        self.counters.add(Counter::TunRxPackets, frames as u64);
        Some(Train {
            egress: departure.egress,
            len: at,
            segment,
        })
    }

    /// Builds one frame of a service of this node in `space`.
    pub(crate) fn originate_service(
        &mut self,
        now: Nanos,
        departure: &Departure,
        service: Service,
        payload: &[u8],
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        let len = payload.len() + OVERHEAD;
        let frame = space.get_mut(..len).ok_or(DropReason::NoBuffer)?;
        // After a handoff the other worker checks.
        if let Egress::Lane(slot) = departure.egress
            && let Some(link) = self.links.get(slot.0 as usize)
            && len > link.frame_max()
        {
            return Err(DropReason::LinkTooBig);
        }
        frame[PAYLOAD_AT..len - TAG_LEN].copy_from_slice(payload);
        let mut headers = departure.headers(service, payload.len(), 0);
        self.seal_payload(now, departure.session as usize, &mut headers, frame)?;
        self.seal_egress(now, departure.egress, frame, len)?;
        Ok(Train {
            egress: departure.egress,
            len,
            segment: len,
        })
    }

    /// A departure for a packet of this node itself on a session lane.
    pub(crate) fn departure_on(
        &mut self,
        now: Nanos,
        session: usize,
        destination: OverlayAddress,
        hop_limit: u8,
    ) -> Result<Departure, DropReason> {
        let source = self.local.ok_or(DropReason::SourceSpoofed)?.address;
        let held = self
            .sessions
            .get(session)
            .ok_or(DropReason::SessionUnknown)?;
        let (mtu, remote) = (held.mtu, held.lane.send_index);
        let egress = self.egress_or_handoff(destination, 0, remote)?;
        let link_mtu = self.egress_inner_max(egress, destination, 0);
        let known = self.destinations.get(&destination.subnet_id());
        let path_mtu = known.map_or(MTU_UNKNOWN, |known| known.path_mtu(now));
        Ok(Departure {
            // Slots have 16 bits.
            session: session as u32,
            egress,
            destination,
            source,
            hop_limit,
            flow_hash: 0,
            mtu: mtu.min(link_mtu).min(path_mtu),
        })
    }
}

impl Departure {
    pub(crate) fn headers(&self, service: Service, len: usize, flags: u16) -> SealedHeaders {
        SealedHeaders {
            routing: RoutingHeader {
                destination: self.destination,
                source: self.source,
                hop_limit: self.hop_limit,
                service: service.code(),
                flow_hash: U16::new(self.flow_hash),
                // A frame fits a datagram, so its payload fits 16 bits.
                payload_len: U16::new(len as u16),
                flags: U16::new(flags),
            },
            session: SessionHeader::new_zeroed(),
        }
    }
}
