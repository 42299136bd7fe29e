//! Records of the program and punt rings.
//!
//! Explicit widths, little-endian, no pointers, no enum with an invalid bit pattern: any bytes are a
//! value of each struct, and what a value means is checked where it is used. A record is one fixed
//! struct, for some kinds followed by bytes of a packet.

use hyphae_wire::guard::Token;
use hyphae_wire::{AddressPair, Endpoint, LocalAddress, OverlayAddress, PublicKey};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};
use zeroize::Zeroize;

/// Peers that one node can have: their numbers are below this.
pub const PEERS_MAX: u32 = 16_384;
/// Next hops of one FIB entry.
pub const NEXT_HOPS_MAX: usize = 8;

/// Names records for the ring (`u16` codes) and writes or reads them as an enum.
macro_rules! records {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident($body:ty) = $code:literal;)* }
     tailed { $($(#[$tdoc:meta])* $tvariant:ident($tbody:ty) = $tcode:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name<'a> {
            $($(#[$vdoc])* $variant(&'a $body),)*
            $($(#[$tdoc])* $tvariant(&'a $tbody, &'a [u8]),)*
        }

        impl<'a> $name<'a> {
            /// Code, fixed part and tail, as they go into a ring.
            pub fn parts(&self) -> (u16, &[u8], &[u8]) {
                match self {
                    $(Self::$variant(body) => ($code, body.as_bytes(), &[]),)*
                    $(Self::$tvariant(body, tail) => ($tcode, body.as_bytes(), tail),)*
                }
            }

            /// Reads a record; `None` for an unknown code or a wrong length.
            pub fn parse(code: u16, bytes: &'a [u8]) -> Option<Self> {
                match code {
                    $($code => Ref::<_, $body>::from_bytes(bytes).ok().map(|r| Self::$variant(Ref::into_ref(r))),)*
                    $($tcode => Ref::<_, $tbody>::from_prefix(bytes)
                        .ok()
                        .map(|(r, tail)| Self::$tvariant(Ref::into_ref(r), tail)),)*
                    _ => None,
                }
            }
        }
    };
}

records! {
    /// Control plane to worker. Reliable: a full ring is back-pressure.
    Program {
        /// Create a peer, or change its key or name; idempotent.
        PeerInstall(PeerInstall) = 1;
        /// Forget a peer with all its link lanes.
        PeerRemove(PeerRemove) = 2;
        /// Add a lane to a peer. Installing the same receiver index again is refused, so counters never restart.
        LinkInstall(LinkInstall) = 3;
        /// Remove a link lane.
        LinkRemove(SessionRemove) = 4;
        /// Add a lane of an end-to-end session; refused like `LinkInstall`.
        SessionInstall(SessionInstall) = 5;
        /// Remove an end-to-end lane.
        SessionRemove(SessionRemove) = 6;
        /// Add or replace a FIB entry.
        FibReplace(FibReplace) = 7;
        /// Remove a FIB entry.
        FibRemove(FibRemove) = 8;
        /// This node's own address; frames to its /64 are delivered here.
        LocalInstall(LocalInstall) = 9;
        /// Start of a full resync: entries not named again before its end are swept.
        ResyncBegin(Generation) = 10;
        /// End of a full resync.
        ResyncEnd(Generation) = 11;
        /// Please send a snapshot of peers and sessions through the punt ring.
        SnapshotRequest(Generation) = 12;
        /// Drop what waits for a session to this address: it will not come.
        PendingDrop(PendingDrop) = 13;
        /// Keep an entry through the current resync without installing it again.
        Retain(Retain) = 14;
        /// Secrets of the cookies that prove an underlay address; replaces the previous record.
        CookieSecret(CookieSecret) = 20;
        /// Secret of reset tokens.
        NodeSecret(NodeSecret) = 21;
        /// What a datagram to a peer may hold.
        LinkMtu(LinkMtu) = 24;
        /// Largest packet of the host to a node beyond this one's own links.
        PathMtu(PathMtu) = 25;
        /// Send a padded probe to a neighbour, whole.
        InjectMtuProbe(InjectMtuProbe) = 26;
        /// Send a padded probe to the other end of a session.
        InjectPathProbe(InjectPathProbe) = 27;
        /// Send a frame that asks whoever it ends at for a report.
        InjectTrace(InjectTrace) = 28;
    }
    tailed {
        /// Send the tail as it is to an underlay address (handshakes).
        InjectRaw(InjectRaw) = 32;
        /// Seal the tail for a neighbour and send it.
        InjectLinkLocal(InjectLinkLocal) = 33;
        /// Route the tail to an overlay address.
        InjectRouted(InjectRouted) = 34;
    }
}

records! {
    /// Worker to control plane. Lossy: a full ring is a counted drop.
    Punt {
        /// Packets wait for an end-to-end session to this address.
        NeedSession(NeedSession) = 1;
        /// A peer's frames come from a new underlay address.
        EndpointMoved(EndpointMoved) = 2;
        /// First authentic frame on a lane that was standing by: it is now used for sending.
        LaneActive(LaneEvent) = 3;
        /// A lane that carries traffic is due for renewal.
        RekeyDue(LaneEvent) = 4;
        /// Part of a snapshot: a peer.
        SnapshotPeer(PeerInstall) = 5;
        /// Part of a snapshot: a link lane, keys blank.
        SnapshotLink(LinkInstall) = 6;
        /// Part of a snapshot: an end-to-end lane, keys blank.
        SnapshotSession(SessionInstall) = 7;
        /// End of the snapshot of this worker.
        SnapshotEnd(Generation) = 8;
        /// The neighbour proved that it does not know the session of this link lane.
        LaneReset(LaneEvent) = 20;
        /// Frames that only a link of more than the least MTU carries were sent to a peer lately.
        LargeFrames(PeerEvent) = 24;
        /// The kernel refused a datagram to a peer as too large for the interface.
        LinkTooBig(PeerEvent) = 25;
        /// Packets of the host to an address are limited to this size, by a link or by a report.
        PathTooBig(PathMtu) = 26;
    }
    tailed {
        /// A link handshake frame, as received.
        Handshake(PuntHandshake) = 32;
        /// A control message of a neighbour; tail is header and body in the clear.
        LinkLocal(PuntLinkLocal) = 33;
        /// A frame for a local service (end-to-end handshake, control, message); tail is the
        /// payload, opened where its service is sealed.
        Service(PuntService) = 34;
    }
}

/// A record struct: any bytes are a value of it.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident[$size:literal] { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

record! {
    /// A peer: a directly reachable node.
    PeerInstall[40] {
        /// Its number, below [`PEERS_MAX`]; the same on every worker.
        peer: U32,
        /// Zero.
        reserved: U32,
        /// Its key.
        key: PublicKey,
    }
}

record! {
    /// Forget a peer.
    PeerRemove[8] {
        /// Its number.
        peer: U32,
        /// Zero.
        reserved: U32,
    }
}

/// [`LinkInstall::role`], [`SessionInstall::role`]: use the lane for sending from now on.
pub const ROLE_ACTIVE: u8 = 0;
/// Use the lane for sending once an authentic frame has come on it.
pub const ROLE_STANDBY: u8 = 1;
/// Only ever receive on the lane (it lost to a handshake in the other direction).
pub const ROLE_RECEIVE_ONLY: u8 = 2;

/// [`LinkInstall::flags`], [`SessionInstall::flags`]: this node began the handshake and renews it.
pub const FLAG_INITIATOR: u8 = 1;

/// Keys of one lane. Wiped wherever a copy ends.
#[derive(
    Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Zeroize,
)]
#[repr(C)]
pub struct LaneKeys {
    /// Key that opens what arrives.
    pub receive: [u8; 32],
    /// Key that seals what leaves.
    pub send: [u8; 32],
}

impl std::fmt::Debug for LaneKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneKeys(..)")
    }
}

/// A secret of the guard. Wiped wherever a copy ends.
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
    /// What cookies and handshake numbers are made with, and when cookies are asked for.
    CookieSecret[72] {
        /// Makes and checks them.
        current: Secret,
        /// Still checks them: what `current` was before.
        previous: Secret,
        /// First handshake messages per second that need no cookie.
        inits_per_second: U32,
        /// How many of them at once.
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
        /// Index that frames to us carry; its worker field must be the worker that gets the record.
        receive_index: U32,
        /// Index that frames to the peer carry.
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
        /// Age in milliseconds after which a lane in use reports [`Punt::RekeyDue`].
        rekey_after_ms: U32,
        /// Age in milliseconds after which the lane neither sends nor receives.
        reject_after_ms: U32,
        /// What proves a reset of the lane by the peer; zero for none.
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
        /// Index that frames to us carry; its worker field must be the worker that gets the record.
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
        /// What proves a reset of the lane by the other end; zero for none.
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
    /// A padded probe for a neighbour.
    InjectMtuProbe[32] {
        /// Peer number.
        peer: U32,
        /// Receiver index (ours) of the lane to use; 0 for the one in use on this worker.
        receive_index: U32,
        /// Names the probe.
        id: U64,
        /// When it is sent, nanoseconds of the monotonic clock.
        sent: U64,
        /// Bytes of the whole datagram.
        len: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

record! {
    /// A padded probe for the other end of a session.
    InjectPathProbe[48] {
        /// Overlay address of the receiver.
        destination: OverlayAddress,
        /// Names the probe.
        id: U64,
        /// When it is sent, nanoseconds of the monotonic clock.
        sent: U64,
        /// Receiver index (ours) of the session lane to use; 0 for the one in use.
        receive_index: U32,
        /// Bytes of the inner packet that it stands for.
        len: U16,
        /// Zero.
        reserved: [u8; 10],
    }
}

record! {
    /// A frame that asks for a report.
    InjectTrace[32] {
        /// Overlay address to trace.
        destination: OverlayAddress,
        /// Random number that the report will quote.
        nonce: U64,
        /// Hops that it may take.
        hop_limit: u8,
        /// Zero.
        reserved: [u8; 7],
    }
}

record! {
    /// Something happened on the way to a peer.
    PeerEvent[8] {
        /// Peer number.
        peer: U32,
        /// Zero.
        reserved: U32,
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
    /// Drop what waits for a session.
    PendingDrop[16] {
        /// An address in the /64 that was waited for.
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

record! {
    /// Send bytes to an underlay address.
    InjectRaw[48] {
        /// Where to, and from which address of this host.
        addresses: AddressPair,
    }
}

record! {
    /// Send a control message to a neighbour.
    InjectLinkLocal[16] {
        /// Peer number.
        peer: U32,
        /// Receiver index (ours) of the lane to use; 0 for the one in use on this worker.
        receive_index: U32,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// Send a payload through the overlay.
    InjectRouted[24] {
        /// Overlay address of the receiver.
        destination: OverlayAddress,
        /// Service code; `Handshake` goes out unsealed, the others need a session.
        service: u8,
        /// Zero.
        reserved: [u8; 3],
        /// Receiver index (ours) of the session lane to use; 0 for the one in use.
        receive_index: U32,
    }
}

record! {
    /// A session is wanted.
    NeedSession[16] {
        /// Destination of the packet that waits.
        address: OverlayAddress,
    }
}

record! {
    /// A peer has moved.
    EndpointMoved[32] {
        /// Peer number.
        peer: U32,
        /// Lane number.
        lane: U16,
        /// Zero.
        reserved: U16,
        /// Where its frames come from now.
        endpoint: Endpoint,
    }
}

/// [`LaneEvent::kind`]: a link lane.
pub const LANE_LINK: u32 = 1;
/// An end-to-end lane.
pub const LANE_SESSION: u32 = 2;

record! {
    /// Something happened to a lane.
    LaneEvent[8] {
        /// `LANE_…`.
        kind: U32,
        /// Our receiver index of the lane.
        receive_index: U32,
    }
}

record! {
    /// A handshake frame came.
    PuntHandshake[48] {
        /// Where from, and which address of this host it was sent to.
        addresses: AddressPair,
    }
}

record! {
    /// A control message of a neighbour came.
    PuntLinkLocal[16] {
        /// Peer number.
        peer: U32,
        /// Our receiver index of the lane it came on.
        receive_index: U32,
        /// When it came, nanoseconds of the monotonic clock.
        received: U64,
    }
}

record! {
    /// A frame for a local service came.
    PuntService[56] {
        /// Overlay address it was sent to.
        destination: OverlayAddress,
        /// Overlay address of its sender; authentic unless the service is the handshake.
        source: OverlayAddress,
        /// Our receiver index of the session lane; 0 for the handshake.
        receive_index: U32,
        /// Number of the peer that handed it over.
        peer: U32,
        /// Service code.
        service: u8,
        /// Hop limit left.
        hop_limit: u8,
        /// Zero.
        reserved: [u8; 6],
        /// When it came, nanoseconds of the monotonic clock.
        received: U64,
    }
}
