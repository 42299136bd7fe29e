//! Origins of a flood. An IPv6 site of many networks, and its target, are in a network namespace of this process.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::anyhow;
use clap::ValueEnum;
use hyphae::lab::Namespace;
use hyphae_test_hostile::Hostile;
use hyphae_wire::SecretKey;

use crate::command::ip;

/// Origin of the flood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Sources {
    /// Each first message from another IPv4 address.
    #[default]
    Forged,
    /// 16 networks of one IPv6 site (/48); needs root.
    Site,
    /// End to end from behind the relay, to a node that newcomers reach through it.
    Relayed,
}

/// Networks of the site, /64 of one /48.
pub(super) const NETWORKS: u16 = 16;
/// Address of the target in another site.
const TARGET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1);

fn address(network: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 7, network % NETWORKS, 0, 0, 0, 1)
}

/// A namespace whose loopback device has all addresses.
pub(super) fn namespace() -> anyhow::Result<Namespace> {
    let inside = Namespace::new()?;
    for address in (0..NETWORKS).map(address).chain([TARGET]) {
        ip(&inside, &format!("-6 addr add {address}/64 dev lo"))?;
    }
    Ok(inside)
}

/// A host in the `n`th network.
pub(super) fn host(n: u16) -> anyhow::Result<Hostile> {
    Hostile::new((address(n), 0).into())
}

/// The target's address for the site.
pub(super) fn target(port: u16) -> SocketAddr {
    (TARGET, port).into()
}

/// A new key.
pub(super) fn new_key() -> anyhow::Result<SecretKey> {
    SecretKey::generate().map_err(|error| anyhow!("no randomness: {error}"))
}
