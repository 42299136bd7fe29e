//! First pass: what is it, is it from a neighbour, is it new.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind, PROBE_LEN};
use hyphae_wire::frame::{LINK_HEADER_LEN, LINK_LOCAL_OVERHEAD, OVERHEAD};

use hyphae_wire::{AddressPair, FrameKind, LinkHeader, SessionIndex};
use zerocopy::IntoBytes;

use super::{Progress, transmit};
use crate::TRAIN_MAX;
use crate::engine::Engine;
use crate::event::EngineEvent;
use crate::session::Role;
use crate::verdict::{LinkSlot, Verdict};

impl Engine {
    /// Opens the link parts of a train. What passes becomes [`Progress::Opened`]; for anything else there
    /// is a verdict.
    pub(super) fn open_train(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        part: &mut [u8],
        segment: usize,
        steps: &mut [Progress],
        verdicts: &mut [Verdict],
    ) {
        for (n, frame) in part.chunks_mut(segment).enumerate() {
            match self.classify(now, from, frame) {
                Ok(ingress) => steps[n] = Progress::Sealed { ingress },
                Err(verdict) => verdicts[n] = verdict,
            }
        }
        let count = part.len().div_ceil(segment);
        let mut next = 0;
        while next < count {
            let first = next;
            next += 1;
            let Progress::Sealed { ingress } = steps[first] else {
                continue;
            };
            // Neighbours that came on one lane are opened at once.
            let same =
                |step| matches!(step, Progress::Sealed { ingress: other } if other == ingress);
            while next < count && same(steps[next]) {
                next += 1;
            }
            let end = part.len().min(next * segment);
            let run = &mut part[first * segment..end];
            let (steps, verdicts) = (&mut steps[first..next], &mut verdicts[first..next]);
            self.open_run(from, ingress, run, segment, steps, verdicts);
        }
    }

    /// What a frame is. Returns the slot of the lane on which a transit frame, still sealed, came, or
    /// what is to become of anything else.
    fn classify(
        &mut self,
        now: Nanos,
        from: &AddressPair,
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
                let slot = self.admit(now, &header);
                let slot = slot.map_err(|v| self.answer_unknown(now, from, v, frame))?;
                // Slots have 16 bits.
                Ok(slot as u32)
            }
            FrameKind::LinkLocal => {
                if frame.len() < LINK_LOCAL_OVERHEAD + control::CONTROL_HEADER_LEN {
                    return Err(drop(DropReason::FrameTooShort));
                }
                let opened = self.open_link_local(now, from, &header, frame);
                let slot = opened.map_err(|v| self.answer_unknown(now, from, v, frame))?;
                self.note_received(slot, 1, frame.len() as u64);
                self.counters.add(Counter::LinkLocalRx, 1);
                Err(self.receive_link_local(now, slot, frame))
            }
            FrameKind::Fragment => Err(self.receive_fragment(from, &header, frame)),
            FrameKind::HandshakeInit
            | FrameKind::HandshakeResponse
            | FrameKind::HandshakeFinish => Err(self.guard_handshake(now, &from.remote, frame)),
            FrameKind::CookieReply => Err(self.guard_cookie(now, &from.remote, frame)),
            FrameKind::StatelessReset => Err(self.take_reset(now, &from.remote, frame)),
        }
    }

    /// Finds the lane of a frame and refuses what is stale.
    fn admit(&mut self, now: Nanos, header: &LinkHeader) -> Result<usize, Verdict> {
        let index = SessionIndex(header.receiver.get());
        let owner = index.worker();
        if owner != self.config.worker {
            return Err(if owner.0 < self.config.workers {
                Verdict::Handoff(owner)
            } else {
                drop(DropReason::LinkUnknown)
            });
        }
        let slot = self
            .links
            .find(index)
            .ok_or(drop(DropReason::LinkUnknown))?;
        let link = self.links.get(slot).ok_or(drop(DropReason::LinkUnknown))?;
        if link.lane.expired(now) {
            return Err(drop(DropReason::LinkExpired));
        }
        if !link.lane.replay.is_fresh(header.counter.get()) {
            return Err(drop(DropReason::LinkReplay));
        }
        Ok(slot)
    }

    /// Opens transit frames that came on one lane.
    fn open_run(
        &mut self,
        from: &AddressPair,
        ingress: u32,
        run: &mut [u8],
        segment: usize,
        steps: &mut [Progress],
        verdicts: &mut [Verdict],
    ) {
        let slot = ingress as usize;
        let Some(link) = self.links.get(slot) else {
            return;
        };
        let moved = link.has_moved(from);
        let mut authentic = [false; TRAIN_MAX];
        link.lane.open.open(run, segment, &mut authentic);
        self.counters.opened(link.lane.suite, steps.len() as u64);
        let (mut packets, mut bytes) = (0, 0);
        for (n, frame) in run.chunks(segment).enumerate() {
            let counter = LinkHeader::split(frame).map_or(0, |(header, _)| header.counter.get());
            let accepted = if authentic[n] {
                self.accept(from, moved, slot, counter)
            } else {
                Err(DropReason::LinkAuth)
            };
            match accepted {
                Ok(()) => {
                    steps[n] = Progress::Opened { ingress };
                    packets += 1;
                    bytes += frame.len() as u64;
                }
                Err(reason) => {
                    steps[n] = Progress::Final;
                    verdicts[n] = drop(reason);
                }
            }
        }
        self.note_received(slot, packets, bytes);
    }

    #[inline(never)]
    fn open_link_local(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        header: &LinkHeader,
        frame: &mut [u8],
    ) -> Result<usize, Verdict> {
        let slot = self.admit(now, header)?;
        let link = self.links.get(slot).ok_or(drop(DropReason::LinkUnknown))?;
        self.counters.opened(link.lane.suite, 1);
        let (counter, sealed) = (header.counter.get(), &mut frame[LINK_HEADER_LEN..]);
        let opened = link
            .lane
            .open
            .single()
            .open(counter, header.as_bytes(), sealed);
        opened.map_err(|_| drop(DropReason::LinkAuth))?;
        let moved = link.has_moved(from);
        self.accept(from, moved, slot, counter).map_err(drop)?;
        Ok(slot)
    }

    /// Notes an authentic frame, and learns from it where the peer is if it `moved`, by what was
    /// known when its train came.
    #[inline]
    fn accept(
        &mut self,
        from: &AddressPair,
        moved: bool,
        slot: usize,
        counter: u64,
    ) -> Result<(), DropReason> {
        let link = self.links.get_mut(slot).ok_or(DropReason::LinkUnknown)?;
        // Once more: a train may have the same frame twice.
        if !link.lane.replay.is_fresh(counter) {
            return Err(DropReason::LinkReplay);
        }
        let newest = link.lane.replay.note(counter);
        let standby = link.lane.role == Role::Standby;
        // Only the newest frame says where the peer is: a late one may come from where it was.
        if newest && moved {
            self.learn_addresses(from, slot);
        }
        if standby {
            self.activate_link(slot);
        }
        Ok(())
    }

    /// Sends to where a peer's newest frame came from, and from where it was sent to.
    #[cold]
    fn learn_addresses(&mut self, from: &AddressPair, slot: usize) {
        let Some(link) = self.links.get_mut(slot) else {
            return;
        };
        if link.lane.answers() {
            link.addresses.local = from.local;
        }
        let before = std::mem::replace(&mut link.addresses.remote, from.remote);
        if before == from.remote {
            return;
        }
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
        self.by_send.insert((sends_to, from.remote), slot as u32);
        self.counters.add(Counter::EndpointMoves, 1);
        self.report(EngineEvent::EndpointMoved {
            peer,
            lane,
            endpoint: from.remote,
        });
    }

    /// A frame whose link lane is not known at the worker that would own it may earn a reset.
    #[inline(never)]
    fn answer_unknown(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        verdict: Verdict,
        frame: &mut [u8],
    ) -> Verdict {
        let receiver = LinkHeader::split(frame).map_or(0, |(header, _)| header.receiver.get());
        if receiver != 0 && verdict == drop(DropReason::LinkUnknown) {
            self.reset_link(now, &from.remote, SessionIndex(receiver), frame)
        } else {
            verdict
        }
    }

    fn note_received(&mut self, slot: usize, packets: u64, bytes: u64) {
        let Some(peer) = self.links.get(slot).map(|link| link.peer) else {
            return;
        };
        self.note_traffic(peer, |traffic| {
            traffic.rx_packets += packets;
            traffic.rx_bytes += bytes;
        });
    }

    /// A neighbour's control message: probes are answered here, keepalives have done their work.
    #[inline(never)]
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
            ControlKind::ProbeReply
            | ControlKind::Routing
            | ControlKind::Close
            | ControlKind::Handshake
            | ControlKind::Duplicate => {
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
