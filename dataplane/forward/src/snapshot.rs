//! What a new control plane is told: peers and lanes, without their keys.

use hyphae_shm::record::{LaneKeys, LinkInstall, PeerInstall, Punt, SessionInstall};
use zerocopy::little_endian::{U16, U32, U64};

use crate::engine::Engine;
use crate::session::Lane;

/// Where a snapshot has got to: it goes on when there is room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCursor {
    stage: u8,
    at: usize,
}

impl Engine {
    /// Hands the next record to `push` and moves on when it is taken. False when nothing is left.
    pub fn snapshot(
        &self,
        cursor: &mut SnapshotCursor,
        push: impl FnOnce(&Punt<'_>) -> bool,
    ) -> bool {
        loop {
            let next = match cursor.stage {
                0 => self
                    .peers
                    .iter()
                    .enumerate()
                    .skip(cursor.at)
                    .find(|(_, p)| p.is_some()),
                _ => None,
            };
            if let Some((number, Some(peer))) = next {
                // Peer numbers are below PEERS_MAX.
                let record = PeerInstall {
                    peer: U32::new(number as u32),
                    reserved: U32::ZERO,
                    key: peer.key,
                };
                return step(cursor, number, push(&Punt::SnapshotPeer(&record)));
            }
            if cursor.stage == 1
                && let Some((slot, link)) = self.links.held(cursor.at).next()
            {
                let record = LinkInstall {
                    peer: U32::new(link.peer),
                    endpoint: link.addresses.remote,
                    local: link.addresses.local,
                    ..link_record(&link.lane)
                };
                return step(cursor, slot, push(&Punt::SnapshotLink(&record)));
            }
            if cursor.stage == 2
                && let Some((slot, session)) = self.sessions.held(cursor.at).next()
            {
                let lane = link_record(&session.lane);
                let record = SessionInstall {
                    address: session.address,
                    key: session.key,
                    receive_index: lane.receive_index,
                    send_index: lane.send_index,
                    lane: lane.lane,
                    suite: lane.suite,
                    role: lane.role,
                    epoch: lane.epoch,
                    flags: lane.flags,
                    reserved: 0,
                    mtu: U16::new(session.mtu),
                    reserved2: U32::ZERO,
                    created: lane.created,
                    rekey_after_ms: lane.rekey_after_ms,
                    reject_after_ms: lane.reject_after_ms,
                    reserved3: U64::ZERO,
                    reset: lane.reset,
                    keys: LaneKeys::default(),
                };
                return step(cursor, slot, push(&Punt::SnapshotSession(&record)));
            }
            if cursor.stage >= 2 {
                return false;
            }
            *cursor = SnapshotCursor {
                stage: cursor.stage + 1,
                at: 0,
            };
        }
    }
}

fn step(cursor: &mut SnapshotCursor, at: usize, taken: bool) -> bool {
    cursor.at = at + usize::from(taken);
    true
}

fn link_record<K>(lane: &Lane<K>) -> LinkInstall {
    LinkInstall {
        peer: U32::ZERO,
        receive_index: U32::new(lane.receive_index.0),
        send_index: U32::new(lane.send_index.0),
        lane: U16::new(lane.number),
        suite: lane.suite.code(),
        role: lane.role.code(),
        epoch: U32::new(lane.epoch),
        flags: lane.flags,
        reserved: [0; 3],
        endpoint: hyphae_wire::Endpoint::default(),
        local: hyphae_wire::LocalAddress::UNSET,
        created: U64::new(lane.created.0),
        rekey_after_ms: U32::new(lane.rekey_after_ms),
        reject_after_ms: U32::new(lane.reject_after_ms),
        reset: lane.reset,
        keys: LaneKeys::default(),
    }
}
