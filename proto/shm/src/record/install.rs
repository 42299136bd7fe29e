//! Records of state: peers, lanes, routes, limits and secrets. The control plane installs them; workers report
//! peers and lanes back in a snapshot.

use hyphae_wire::guard::Token;
use hyphae_wire::{Endpoint, LocalAddress, OverlayAddress, PublicKey};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroize;

use super::NEXT_HOPS_MAX;

record! {
    /// A peer: a directly reachable node.
    PeerInstall[40] {
        /// Its number, below [`PEERS_MAX`](crate::record::PEERS_MAX); the same on every worker.
        peer: U32,
        /// Zero.
        reserved: U32,
        /// Its key.
        key: PublicKey,
    }
}

record! {
    /// Remove a peer.
    PeerRemove[8] {
        /// Its number.
        peer: U32,
        /// Zero.
        reserved: U32,
    }
}

/// [`LinkInstall::role`], [`SessionInstall::role`]: use the lane for sending from now on.
pub const ROLE_ACTIVE: u8 = 0;
/// Use the lane for sending after the first authentic frame on it.
pub const ROLE_STANDBY: u8 = 1;
/// Only ever receive on the lane (it lost to a handshake in the other direction).
pub const ROLE_RECEIVE_ONLY: u8 = 2;

/// [`LinkInstall::flags`], [`SessionInstall::flags`]: this node began the handshake and renews it.
pub const FLAG_INITIATOR: u8 = 1;

/// Keys of one lane. Every copy is wiped.
#[derive(
    Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Zeroize,
)]
#[repr(C)]
pub struct LaneKeys {
    /// Opens received frames.
    pub receive: [u8; 32],
    /// Seals sent frames.
    pub send: [u8; 32],
}

impl std::fmt::Debug for LaneKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneKeys(..)")
    }
}

/// A secret of the guard. Every copy is wiped.
#[derive(
    Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Zeroize,
)]
#[repr(transparent)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

record! {
    /// Secrets of cookies and handshake numbers, and the rate above which cookies are required.
    CookieSecret[72] {
        /// Generates and verifies them.
        current: Secret,
        /// Verifies them only: the previous `current`.
        previous: Secret,
        /// First handshake messages per second that need no cookie.
        inits_per_second: U32,
        /// Burst of them.
        inits_burst: U32,
    }
}

record! {
    /// See [`hyphae_wire::guard::node_secret`].
    NodeSecret[32] {
        /// The secret.
        secret: Secret,
    }
}

record! {
    /// A lane of a link session.
    LinkInstall[168] {
        /// The peer at its other end.
        peer: U32,
        /// Index in frames to this node; its worker field must be the worker that gets the record.
        receive_index: U32,
        /// Index in frames to the peer.
        send_index: U32,
        /// Lane number.
        lane: U16,
        /// Suite code.
        suite: u8,
        /// `ROLE_…`.
        role: u8,
        /// Number of the session among those with this peer; a higher one is newer.
        epoch: U32,
        /// `FLAG_…`.
        flags: u8,
        /// Zero.
        reserved: [u8; 3],
        /// Where to send until the peer's own frames say otherwise.
        endpoint: Endpoint,
        /// Where to send from until then; unset: the kernel chooses.
        local: LocalAddress,
        /// Monotonic time of the handshake, nanoseconds.
        created: U64,
        /// Age in milliseconds after which a lane in use reports [`Punt::RekeyDue`](crate::record::Punt::RekeyDue).
        rekey_after_ms: U32,
        /// Age in milliseconds after which the lane neither sends nor receives.
        reject_after_ms: U32,
        /// Token of a reset of the lane by the peer; zero for none.
        reset: Token,
        /// Keys; blank in snapshots.
        keys: LaneKeys,
    }
}

record! {
    /// A lane of an end-to-end session.
    SessionInstall[176] {
        /// Overlay address of the other end; the session covers its /64.
        address: OverlayAddress,
        /// Key of the other end.
        key: PublicKey,
        /// Index in frames to this node; its worker field must be the worker that gets the record.
        receive_index: U32,
        /// Index that frames to the other end carry.
        send_index: U32,
        /// Lane number.
        lane: U16,
        /// Suite code.
        suite: u8,
        /// `ROLE_…`.
        role: u8,
        /// Number of the session among those with this end; a higher one is newer.
        epoch: U32,
        /// `FLAG_…`.
        flags: u8,
        /// Zero.
        reserved: u8,
        /// Largest inner packet the other end takes, bytes.
        mtu: U16,
        /// Zero.
        reserved2: U32,
        /// Monotonic time of the handshake, nanoseconds.
        created: U64,
        /// As in [`LinkInstall`].
        rekey_after_ms: U32,
        /// As in [`LinkInstall`].
        reject_after_ms: U32,
        /// Zero.
        reserved3: U64,
        /// Token of a reset of the lane by the other end; zero for none.
        reset: Token,
        /// Keys; blank in snapshots.
        keys: LaneKeys,
    }
}

record! {
    /// Remove a lane by its receiver index.
    SessionRemove[8] {
        /// Index that frames to us carry.
        receive_index: U32,
        /// Zero.
        reserved: U32,
    }
}

record! {
    /// One next hop of a FIB entry.
    NextHop[8] {
        /// Peer number.
        peer: U32,
        /// Share of the flows, at least 1.
        weight: U16,
        /// Zero.
        reserved: U16,
    }
}

/// [`FibReplace::action`]: forward to the next hops.
pub const ACTION_FORWARD: u8 = 0;
/// Discard and count as `route_blackhole`.
pub const ACTION_BLACKHOLE: u8 = 1;
/// [`FibReplace::action`]: a prefix outside of the overlay, behind the node
/// [`FibReplace::gateway`].
pub const ACTION_GATEWAY: u8 = 2;

record! {
    /// A FIB entry.
    FibReplace[104] {
        /// Lowest address of the prefix; bits after `prefix_len` must be zero.
        prefix: OverlayAddress,
        /// Bits of the prefix, at most 128.
        prefix_len: u8,
        /// `ACTION_…`.
        action: u8,
        /// Next hops in use, 1 to 8 when forwarding.
        next_hop_count: u8,
        /// Zero.
        reserved: [u8; 5],
        /// Next hops; those beyond the count are ignored.
        next_hops: [NextHop; NEXT_HOPS_MAX],
        /// The node that the host's packets to the prefix are sent to, and that may send packets
        /// from it; this node's own address where it is the gateway itself.
        gateway: OverlayAddress,
    }
}

record! {
    /// Remove a FIB entry.
    FibRemove[24] {
        /// Lowest address of the prefix.
        prefix: OverlayAddress,
        /// Bits of the prefix.
        prefix_len: u8,
        /// Zero.
        reserved: [u8; 7],
    }
}

record! {
    /// This node's own address.
    LocalInstall[56] {
        /// The address derived from the node's key.
        address: OverlayAddress,
        /// Largest inner packet, bytes.
        mtu: U16,
        /// Zero.
        reserved: [u8; 6],
        /// The node's key, for reports about frames of others.
        key: PublicKey,
    }
}

/// [`LinkMtu::mtu`], [`PathMtu::mtu`]: nothing is known; no limit.
pub const MTU_UNKNOWN: u16 = u16::MAX;

record! {
    /// What a link carries.
    LinkMtu[8] {
        /// Peer number.
        peer: U32,
        /// Largest datagram (UDP payload), bytes; [`MTU_UNKNOWN`] for no limit.
        mtu: U16,
        /// Zero.
        reserved: U16,
    }
}

record! {
    /// What a path carries.
    PathMtu[24] {
        /// An address in the /64 at its other end.
        address: OverlayAddress,
        /// Largest packet of the host, bytes, at least 1280; [`MTU_UNKNOWN`] for no limit.
        mtu: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

record! {
    /// Generation of an attach.
    Generation[8] {
        /// Counts attaches.
        generation: U64,
    }
}

record! {
    /// Drop the packets that wait for a session.
    PendingDrop[16] {
        /// An address in the /64 of the session.
        address: OverlayAddress,
    }
}

/// [`Retain::kind`]: a peer by number.
pub const RETAIN_PEER: u32 = 1;
/// A link lane by receiver index.
pub const RETAIN_LINK: u32 = 2;
/// An end-to-end lane by receiver index.
pub const RETAIN_SESSION: u32 = 3;

record! {
    /// Keep an entry through a resync.
    Retain[8] {
        /// `RETAIN_…`.
        kind: U32,
        /// Peer number or receiver index.
        id: U32,
    }
}
