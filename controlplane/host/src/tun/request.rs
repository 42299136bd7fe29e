//! The desired state of the device, and changes of it that the node requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use hyphae_wire::Prefix;

/// The desired device.
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

/// Requested change of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteRequest {
    /// Add or replace it, with a path MTU in bytes.
    Set(Option<u16>),
    /// Delete it.
    Delete,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) changed: BTreeMap<Prefix, RouteRequest>,
    /// All prefixes outside of the overlay that have a route.
    pub(super) only: Option<BTreeSet<Prefix>>,
    /// Underlay addresses of peers.
    pub(super) links: Option<BTreeSet<Ipv6Addr>>,
}
