//! The desired state of the device, and changes of it that the node requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use hyphae_wire::Prefix;

/// The device as it is to be.
#[derive(Clone, Debug)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Overlay address of this host.
    pub address: Ipv6Addr,
    /// MTU, bytes.
    pub mtu: u16,
    /// Mark of the dataplane's packets; 0 when it does not mark them.
    pub mark: u32,
}

/// What a route of ours is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// There, with a limit of the size of packets, bytes.
    There(Option<u16>),
    /// Gone.
    Gone,
}

#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) changed: BTreeMap<Prefix, Wish>,
    /// All that is to be left of the routes outside of the overlay.
    pub(super) only: Option<BTreeSet<Prefix>>,
    /// Underlay addresses of peers.
    pub(super) links: Option<BTreeSet<Ipv6Addr>>,
}
