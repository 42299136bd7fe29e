//! Records of the program and punt rings.
//!
//! Explicit widths, little-endian, no pointers, no enum with an invalid bit pattern: any bytes are a
//! value of each struct, and what a value means is checked where it is used. A record is one fixed
//! struct, for some kinds followed by bytes of a packet.

use zerocopy::{IntoBytes, Ref};

/// Peers that one node can have: their numbers are below this.
pub const PEERS_MAX: u32 = 16_384;
/// Next hops of one FIB entry.
pub const NEXT_HOPS_MAX: usize = 8;

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

mod inject;
mod install;
mod punt;

pub use inject::*;
pub use install::*;
pub use punt::*;

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
        /// Remove a peer with all its link lanes.
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
        /// Send a frame that requests a report from the node at which it ends.
        InjectTrace(InjectTrace) = 28;
    }
    tailed {
        /// Send the tail unchanged to an underlay address (handshakes).
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
        /// A peer's underlay address has changed.
        EndpointMoved(EndpointMoved) = 2;
        /// First authentic frame on a standby lane: it is now used for sending.
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
        /// The neighbour proved that it has no session of this link lane.
        LaneReset(LaneEvent) = 20;
        /// Frames above the minimum link MTU were sent to a peer lately.
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
