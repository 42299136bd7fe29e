//! A worker's side of the control plane: takes program records, hands over punts and events.

use std::sync::Arc;

use hyphae_forward::{EngineEvent, SnapshotCursor, Verdict};
use hyphae_shm::record::{
    EndpointMoved, Generation, LaneEvent, NeedSession, PathMtu, PeerEvent, Punt, PuntHandshake,
    PuntLinkLocal, PuntService,
};
use hyphae_shm::{Consumer, Doorbell, Producer, RECORD_MAX};
use hyphae_wire::{Endpoint, Nanos};
use zerocopy::little_endian::{U16, U32, U64};

/// A worker's ends of the segment's rings.
pub(crate) struct Control {
    program: Consumer,
    punt: Producer,
    /// Rings in the control plane.
    bell: Arc<Doorbell>,
    /// Something was pushed since the last publish.
    dirty: bool,
    pub(crate) scratch: Box<[u8]>,
    /// A snapshot that is being sent, and for which generation.
    pub(crate) snapshot: Option<(SnapshotCursor, Generation)>,
}

/// What the program ring has.
pub(crate) enum Taken {
    /// A record of this code and length is in the scratch memory.
    Record(u16, usize),
    Nothing,
    /// The ring is corrupt, found now.
    Corrupt,
}

impl Control {
    pub(crate) fn new(program: Consumer, punt: Producer, bell: Arc<Doorbell>) -> Self {
        let scratch = vec![0; RECORD_MAX].into_boxed_slice();
        Self {
            program,
            punt,
            bell,
            dirty: false,
            scratch,
            snapshot: None,
        }
    }

    pub(crate) fn take(&mut self) -> Taken {
        if self.program.is_corrupt() {
            return Taken::Nothing;
        }
        match self.program.pop(&mut self.scratch) {
            Ok(Some((code, len))) => Taken::Record(code, len),
            Ok(None) => Taken::Nothing,
            Err(_) => Taken::Corrupt,
        }
    }

    /// Gives the room of taken records back.
    pub(crate) fn release(&mut self) {
        self.program.release();
    }

    pub(crate) fn sleep(&mut self) -> bool {
        self.program.sleep()
    }

    pub(crate) fn wake(&mut self) {
        self.program.wake();
    }

    /// Hands a record over; false when the ring is full.
    pub(crate) fn push(&mut self, punt: &Punt<'_>) -> bool {
        let (code, fixed, tail) = punt.parts();
        let pushed = self.punt.push(code, &[fixed, tail]).is_ok();
        self.dirty |= pushed;
        pushed
    }

    /// Makes what was pushed visible.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) && self.punt.publish() {
            self.bell.ring();
        }
    }

    pub(crate) fn push_event(&mut self, event: &EngineEvent) -> bool {
        let lane = |kind, index| LaneEvent {
            kind: U32::new(kind),
            receive_index: U32::new(index),
        };
        match *event {
            EngineEvent::NeedSession(address) => {
                self.push(&Punt::NeedSession(&NeedSession { address }))
            }
            EngineEvent::EndpointMoved {
                peer,
                lane,
                endpoint,
            } => self.push(&Punt::EndpointMoved(&EndpointMoved {
                peer: U32::new(peer),
                lane: U16::new(lane),
                reserved: U16::ZERO,
                endpoint,
            })),
            EngineEvent::LaneActive {
                kind,
                receive_index,
            } => self.push(&Punt::LaneActive(&lane(kind, receive_index))),
            EngineEvent::LaneReset { receive_index } => {
                let kind = hyphae_shm::record::LANE_LINK;
                self.push(&Punt::LaneReset(&lane(kind, receive_index)))
            }
            EngineEvent::RekeyDue {
                kind,
                receive_index,
            } => self.push(&Punt::RekeyDue(&lane(kind, receive_index))),
            EngineEvent::LargeFrames { peer } => self.push(&Punt::LargeFrames(&peer_event(peer))),
            EngineEvent::LinkTooBig { peer } => self.push(&Punt::LinkTooBig(&peer_event(peer))),
            EngineEvent::PathTooBig { address, mtu } => {
                let limit = PathMtu {
                    address,
                    mtu: U16::new(mtu),
                    reserved: [0; 6],
                };
                self.push(&Punt::PathTooBig(&limit))
            }
        }
    }

    /// Hands over what a punt verdict names in `frame`; false when the ring is full or the verdict
    /// is another.
    pub(crate) fn push_verdict(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        verdict: &Verdict,
        frame: &[u8],
    ) -> bool {
        let part = |offset: u32, len: u32| {
            frame
                .get(offset as usize..(offset + len) as usize)
                .unwrap_or_default()
        };
        match *verdict {
            Verdict::PuntHandshake => {
                self.push(&Punt::Handshake(&PuntHandshake { endpoint: *from }, frame))
            }
            Verdict::PuntLinkLocal {
                peer,
                receive_index,
                offset,
                len,
            } => {
                let fixed = PuntLinkLocal {
                    peer: U32::new(peer),
                    receive_index: U32::new(receive_index),
                    received: U64::new(now.0),
                };
                self.push(&Punt::LinkLocal(&fixed, part(offset, len)))
            }
            Verdict::PuntService {
                destination,
                source,
                receive_index,
                peer,
                service,
                hop_limit,
                offset,
                len,
            } => {
                let fixed = PuntService {
                    destination,
                    source,
                    receive_index: U32::new(receive_index),
                    peer: U32::new(peer),
                    service: service.code(),
                    hop_limit,
                    reserved: [0; 6],
                    received: U64::new(now.0),
                };
                self.push(&Punt::Service(&fixed, part(offset, len)))
            }
            Verdict::Drop(_)
            | Verdict::Done
            | Verdict::Transmit(_)
            | Verdict::TransmitPart(..)
            | Verdict::Reply { .. }
            | Verdict::HandoverAll { .. }
            | Verdict::Deliver { .. }
            | Verdict::Handover(_)
            | Verdict::HandoverOpened { .. } => false,
        }
    }
}

fn peer_event(peer: u32) -> PeerEvent {
    PeerEvent {
        peer: U32::new(peer),
        reserved: U32::ZERO,
    }
}
