//! First pass: what is it, is it from a neighbour, is it new.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::control::{self, ControlKind, PROBE_LEN};
use hyphae_wire::frame::{
    LINK_HEADER_LEN, LINK_LOCAL_OVERHEAD, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT,
};
use hyphae_wire::{Endpoint, FrameKind, LinkHeader, Nanos, SessionIndex};
use zerocopy::IntoBytes;

use super::transmit;
use crate::engine::{Engine, link_aad};
use crate::event::EngineEvent;
use crate::session::Role;
use crate::verdict::{LinkSlot, Verdict};

impl Engine {
    /// Opens the link part of a frame. Returns the slot of its lane for a transit frame, or what
    /// is to become of anything else.
    pub(super) fn open_frame(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        frame: &mut [u8],
    ) -> Result<u32, Verdict> {
        let (header, _) = LinkHeader::split(frame).ok_or(drop(DropReason::FrameTooShort))?;
        let header = *header;
        let kind = FrameKind::from_code(header.kind).ok_or(drop(DropReason::FrameKindUnknown))?;
        if header.flags != 0 || header.reserved.get() != 0 {
            return Err(drop(DropReason::FrameReservedBits));
        }
        match kind {
            FrameKind::Transit => {
                if frame.len() < OVERHEAD {
                    return Err(drop(DropReason::FrameTooShort));
                }
                let aad = link_aad(header.as_bytes(), frame);
                let sealed = &mut frame[SEALED_HEADERS_AT..PAYLOAD_AT];
                let opened = self.open_link(now, from, &header, &aad, sealed);
                let slot = opened.map_err(|v| self.answer_unknown(now, from, v, frame))?;
                self.note_received(slot, frame.len());
                // Slots have 16 bits.
                Ok(slot as u32)
            }
            FrameKind::LinkLocal => {
                if frame.len() < LINK_LOCAL_OVERHEAD + control::CONTROL_HEADER_LEN {
                    return Err(drop(DropReason::FrameTooShort));
                }
                let sealed = &mut frame[LINK_HEADER_LEN..];
                let opened = self.open_link(now, from, &header, header.as_bytes(), sealed);
                let slot = opened.map_err(|v| self.answer_unknown(now, from, v, frame))?;
                self.note_received(slot, frame.len());
                self.counters.add(Counter::LinkLocalRx, 1);
                Err(self.receive_link_local(now, slot, frame))
            }
            FrameKind::Fragment => Err(self.receive_fragment(from, &header, frame)),
            FrameKind::HandshakeInit
            | FrameKind::HandshakeResponse
            | FrameKind::HandshakeFinish => Err(self.guard_handshake(now, from, frame)),
            FrameKind::CookieReply => Err(self.guard_cookie(now, from, frame)),
            FrameKind::StatelessReset => Err(self.take_reset(now, from, frame)),
        }
    }

    /// Finds the lane, refuses what is stale or forged, learns where the peer is.
    fn open_link(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        header: &LinkHeader,
        aad: &[u8],
        sealed: &mut [u8],
    ) -> Result<usize, Verdict> {
        let index = SessionIndex(header.receiver.get());
        let counter = header.counter.get();
        let owner = index.worker();
        if owner != self.config.worker {
            return Err(if owner.0 < self.config.workers {
                Verdict::Handover(owner)
            } else {
                drop(DropReason::LinkUnknown)
            });
        }
        let slot = self
            .links
            .find(index)
            .ok_or(drop(DropReason::LinkUnknown))?;
        let link = self
            .links
            .get_mut(slot)
            .ok_or(drop(DropReason::LinkUnknown))?;
        if link.lane.expired(now) {
            return Err(drop(DropReason::LinkExpired));
        }
        if !link.lane.replay.is_fresh(counter) {
            return Err(drop(DropReason::LinkReplay));
        }
        self.counters.opened(link.lane.suite);
        link.lane
            .open
            .open(counter, aad, sealed)
            .map_err(|_| drop(DropReason::LinkAuth))?;
        let newest = link.lane.replay.note(counter);
        let standby = link.lane.role == Role::Standby;
        // Only the newest frame says where the peer is: a late one may come from where it was.
        if newest && link.endpoint != *from {
            let before = std::mem::replace(&mut link.endpoint, *from);
            let (peer, lane) = (link.peer, link.lane.number);
            let sends_to = link.lane.send_index.0;
            if self
                .by_send
                .get(&(sends_to, before))
                .is_some_and(|held| *held as usize == slot)
            {
                self.by_send.remove(&(sends_to, before));
            }
            // Slots have 16 bits.
            self.by_send.insert((sends_to, *from), slot as u32);
            self.counters.add(Counter::EndpointMoves, 1);
            self.report(EngineEvent::EndpointMoved {
                peer,
                lane,
                endpoint: *from,
            });
        }
        if standby {
            self.activate_link(slot);
        }
        Ok(slot)
    }

    /// A frame whose link lane is not known at the worker that would own it may earn a reset.
    fn answer_unknown(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        verdict: Verdict,
        frame: &mut [u8],
    ) -> Verdict {
        let receiver = LinkHeader::split(frame).map_or(0, |(header, _)| header.receiver.get());
        if receiver != 0 && verdict == drop(DropReason::LinkUnknown) {
            self.reset_link(now, from, SessionIndex(receiver), frame)
        } else {
            verdict
        }
    }

    fn note_received(&mut self, slot: usize, len: usize) {
        let Some(peer) = self.links.get(slot).map(|link| link.peer) else {
            return;
        };
        self.note_traffic(peer, |traffic| {
            traffic.rx_packets += 1;
            traffic.rx_bytes += len as u64;
        });
    }

    /// A neighbour's control message: probes are answered here, keepalives have done their work.
    fn receive_link_local(&mut self, now: Nanos, slot: usize, frame: &mut [u8]) -> Verdict {
        let end = frame.len() - hyphae_wire::frame::TAG_LEN;
        let Some((kind, _)) = control::parse(&frame[LINK_HEADER_LEN..end]) else {
            return drop(DropReason::ControlMalformed);
        };
        match kind {
            ControlKind::Keepalive => Verdict::Done,
            ControlKind::Probe => {
                frame[LINK_HEADER_LEN] = ControlKind::ProbeReply.code();
                self.counters.add(Counter::ProbesAnswered, 1);
                // A padded probe asks about this direction only: the answer is short.
                let len = frame.len().min(PROBE_LEN + LINK_LOCAL_OVERHEAD);
                let padded = len < frame.len();
                match self.seal_link_local(now, slot, &mut frame[..len]) {
                    // Slots have 16 bits.
                    Ok(()) if padded => Verdict::TransmitPart(LinkSlot(slot as u32), len as u32),
                    Ok(()) => transmit(slot),
                    Err(reason) => drop(reason),
                }
            }
            ControlKind::ProbeReply | ControlKind::Routing | ControlKind::Close => {
                let Some(link) = self.links.get(slot) else {
                    return drop(DropReason::LinkUnknown);
                };
                Verdict::PuntLinkLocal {
                    peer: link.peer,
                    receive_index: link.lane.receive_index.0,
                    offset: LINK_HEADER_LEN as u32,
                    // A datagram is at most 64 KiB.
                    len: (end - LINK_HEADER_LEN) as u32,
                }
            }
        }
    }
}

fn drop(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}
