//! Events and punt verdicts of the engine as records for the control plane. A worker pushes them into its
//! punt ring; a program that drives an engine without a ring passes them to the control plane's engine directly.

use hyphae_forward::{EngineEvent, Verdict};
use hyphae_shm::record::{
    EndpointMoved, LANE_LINK, LaneEvent, NeedSession, PathMtu, PeerEvent, Punt, PuntHandshake,
    PuntLinkLocal, PuntService,
};
use hyphae_time::Nanos;

use hyphae_wire::AddressPair;
use zerocopy::little_endian::{U16, U32, U64};

/// Calls `give` with the record of an event.
pub fn of_event<T>(event: &EngineEvent, give: impl FnOnce(&Punt<'_>) -> T) -> T {
    let lane = |kind, index| LaneEvent {
        kind: U32::new(kind),
        receive_index: U32::new(index),
    };
    match *event {
        EngineEvent::NeedSession(address) => give(&Punt::NeedSession(&NeedSession { address })),
        EngineEvent::EndpointMoved {
            peer,
            lane,
            endpoint,
        } => give(&Punt::EndpointMoved(&EndpointMoved {
            peer: U32::new(peer),
            lane: U16::new(lane),
            reserved: U16::ZERO,
            endpoint,
        })),
        EngineEvent::LaneActive {
            kind,
            receive_index,
        } => give(&Punt::LaneActive(&lane(kind, receive_index))),
        EngineEvent::LaneReset { receive_index } => {
            give(&Punt::LaneReset(&lane(LANE_LINK, receive_index)))
        }
        EngineEvent::RekeyDue {
            kind,
            receive_index,
        } => give(&Punt::RekeyDue(&lane(kind, receive_index))),
        EngineEvent::LargeFrames { peer } => give(&Punt::LargeFrames(&peer_event(peer))),
        EngineEvent::LinkTooBig { peer } => give(&Punt::LinkTooBig(&peer_event(peer))),
        EngineEvent::PathTooBig { address, mtu } => give(&Punt::PathTooBig(&PathMtu {
            address,
            mtu: U16::new(mtu),
            reserved: [0; 6],
        })),
    }
}

/// Calls `give` with the record of what a punt verdict refers to in `frame`; `None` when the verdict is no punt.
pub fn of_verdict<T>(
    now: Nanos,
    from: impl Into<AddressPair>,
    verdict: &Verdict,
    frame: &[u8],
    give: impl FnOnce(&Punt<'_>) -> T,
) -> Option<T> {
    let part = |offset: u32, len: u32| {
        frame
            .get(offset as usize..(offset + len) as usize)
            .unwrap_or_default()
    };
    match *verdict {
        Verdict::PuntHandshake => Some(give(&Punt::Handshake(
            &PuntHandshake {
                addresses: from.into(),
            },
            frame,
        ))),
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
            Some(give(&Punt::LinkLocal(&fixed, part(offset, len))))
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
            Some(give(&Punt::Service(&fixed, part(offset, len))))
        }
        Verdict::Drop(_)
        | Verdict::Done
        | Verdict::Transmit(_)
        | Verdict::TransmitPart(..)
        | Verdict::Reply { .. }
        | Verdict::HandoffAll { .. }
        | Verdict::Deliver { .. }
        | Verdict::Handoff(_)
        | Verdict::HandoffOpened { .. }
        | Verdict::HandoffEgress { .. } => None,
    }
}

fn peer_event(peer: u32) -> PeerEvent {
    PeerEvent {
        peer: U32::new(peer),
        reserved: U32::ZERO,
    }
}
