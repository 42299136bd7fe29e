//! Program records for an engine. All lanes are active and live for an hour.

use std::net::{Ipv4Addr, SocketAddr};

use hyphae_shm::record::{
    ACTION_FORWARD, FibReplace, LaneKeys, LinkInstall, LocalInstall, NextHop, PeerInstall,
    ROLE_ACTIVE, SessionInstall,
};
use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SessionIndex, Suite, WorkerId};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

/// Largest packet of a host.
pub const MTU: u16 = 1340;
const HOUR_MS: u32 = 3_600_000;

/// The key of the `n`th node, without a known secret key.
pub fn key(n: u32) -> PublicKey {
    let mut key = [0x5a; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    PublicKey(key)
}

/// An underlay address of the `n`th node.
pub fn endpoint(n: u32) -> Endpoint {
    let [_, b, c, d] = n.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, b, c, d), 9670)).into()
}

/// The index in a slot of the first worker.
pub fn index(slot: u16) -> SessionIndex {
    index_at(WorkerId(0), slot)
}

/// The index in a slot of a worker.
pub fn index_at(worker: WorkerId, slot: u16) -> SessionIndex {
    SessionIndex::new(worker, 0x155, slot)
}

/// The `n`th of many /64, distributed as if derived from keys.
pub fn network(n: u64) -> OverlayAddress {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&crate::Spread(n).next_number().to_be_bytes());
    bytes[0] = 4 | bytes[0] & 1;
    OverlayAddress(bytes)
}

/// Record of the engine's own node.
pub fn local(key: PublicKey) -> LocalInstall {
    LocalInstall {
        address: key.address(),
        mtu: U16::new(MTU),
        reserved: [0; 6],
        key,
    }
}

/// A peer of this number.
pub fn peer(number: u32, key: PublicKey) -> PeerInstall {
    PeerInstall {
        peer: U32::new(number),
        reserved: U32::ZERO,
        key,
    }
}

/// One side of a lane.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// Index at this side.
    pub receive: SessionIndex,
    /// Index at the other side.
    pub send: SessionIndex,
    /// Suite.
    pub suite: Suite,
    /// Key for received frames.
    pub opens: [u8; 32],
    /// Key for sent frames.
    pub seals: [u8; 32],
    /// Start of the session.
    pub created: Nanos,
}

impl Lane {
    /// The link with a peer.
    pub fn link(&self, peer: u32, endpoint: Endpoint) -> LinkInstall {
        let mut link = LinkInstall::new_zeroed();
        link.peer = U32::new(peer);
        link.receive_index = U32::new(self.receive.0);
        link.send_index = U32::new(self.send.0);
        link.suite = self.suite.code();
        link.role = ROLE_ACTIVE;
        link.epoch = U32::new(1);
        link.endpoint = endpoint;
        link.created = U64::new(self.created.0);
        link.rekey_after_ms = U32::new(HOUR_MS);
        link.reject_after_ms = U32::new(HOUR_MS);
        link.keys = self.keys();
        link
    }

    /// The session with a node.
    pub fn session(&self, other: PublicKey) -> SessionInstall {
        let mut session = SessionInstall::new_zeroed();
        session.address = other.address();
        session.key = other;
        session.receive_index = U32::new(self.receive.0);
        session.send_index = U32::new(self.send.0);
        session.suite = self.suite.code();
        session.role = ROLE_ACTIVE;
        session.epoch = U32::new(1);
        session.mtu = U16::new(MTU);
        session.created = U64::new(self.created.0);
        session.rekey_after_ms = U32::new(HOUR_MS);
        session.reject_after_ms = U32::new(HOUR_MS);
        session.keys = self.keys();
        session
    }

    fn keys(&self) -> LaneKeys {
        LaneKeys {
            receive: self.opens,
            send: self.seals,
        }
    }
}

/// The route to the /64 of an address via a peer.
pub fn route(to: OverlayAddress, peer: u32) -> FibReplace {
    let mut route = FibReplace::new_zeroed();
    route.prefix = to.subnet().address();
    route.prefix_len = 64;
    route.action = ACTION_FORWARD;
    route.next_hop_count = 1;
    route.next_hops[0] = NextHop {
        peer: U32::new(peer),
        weight: U16::new(1),
        reserved: U16::ZERO,
    };
    route
}
