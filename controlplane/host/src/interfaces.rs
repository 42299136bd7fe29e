//! Interfaces with a usable IPv6 link-local address.
//!
//! Read by a netlink dump, again after the kernel has notified a change of a link or an address. Where netlink is
//! refused (a sandbox without AF_NETLINK), `/proc/self/net/if_inet6` is polled.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::{Handle, new_connection};
use rustix::net::{SocketType, netdevice, socket};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::watch::{Change, Underlay};

/// Interval of reads without netlink, and after one that failed.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Where the kernel lists IPv6 addresses.
const ADDRESSES: &str = "/proc/self/net/if_inet6";
/// Scope of a link-local address there.
const SCOPE_LINK: u8 = 0x20;
/// Flags of an address that is not usable yet: duplicate address detection, RFC 4862.
const NOT_USABLE: AddressHeaderFlags =
    AddressHeaderFlags::Tentative.union(AddressHeaderFlags::Dadfailed);

/// An interface with its link-local address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) address: Ipv6Addr,
}

/// The interfaces of this host.
pub(crate) struct Interfaces {
    /// `None` without netlink.
    netlink: Option<Netlink>,
    underlay: Underlay,
    /// Without netlink, or after a failed read.
    poll_at: Option<Instant>,
}

struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Interfaces {
    /// `tun` names the device whose changes are ignored.
    pub(crate) fn open(changes: broadcast::Receiver<Change>, tun: Option<String>) -> Self {
        let netlink = new_connection()
            .ok()
            .map(|(connection, handle, _)| Netlink {
                handle,
                connection: tokio::spawn(connection),
            });
        Self {
            netlink,
            underlay: Underlay::new(changes, tun),
            poll_at: None,
        }
    }

    /// Waits until [`Interfaces::read`] may return something else.
    pub(crate) async fn changed(&mut self) {
        let poll_at = self.poll_at;
        let poll = async {
            match poll_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.underlay.changed() => {}
            () = poll => {}
        }
    }

    /// Interfaces by index; `None` if they cannot be read now.
    pub(crate) async fn read(&mut self) -> Option<BTreeMap<u32, Interface>> {
        let found = match &self.netlink {
            Some(netlink) => dump(&netlink.handle).await.map_err(io::Error::other),
            None => std::fs::read_to_string(ADDRESSES).map(|list| parse_list(&list)),
        };
        let again = self.netlink.is_none() || found.is_err();
        self.poll_at = again.then(|| Instant::now() + POLL_INTERVAL);
        let failed = |error: &_| tracing::debug!(%error, "interfaces cannot be read");
        found.inspect_err(failed).ok()
    }
}

async fn dump(handle: &Handle) -> Result<BTreeMap<u32, Interface>, rtnetlink::Error> {
    let mut request = handle.address().get();
    request.message_mut().header.family = AddressFamily::Inet6;
    let mut addresses = std::pin::pin!(request.execute());
    let mut found = BTreeMap::new();
    while let Some(message) = addresses.try_next().await? {
        let index = message.header.index;
        if let Some(address) = link_local(&message)
            && let Some(name) = name(index)
        {
            let interface = Interface { name, address };
            found.entry(index).or_insert(interface);
        }
    }
    Ok(found)
}

fn link_local(message: &AddressMessage) -> Option<Ipv6Addr> {
    let header = &message.header;
    if header.scope != AddressScope::Link || header.flags.intersects(NOT_USABLE) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Address(IpAddr::V6(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    })
}

/// Name of an interface; `None` if it has just been deleted.
fn name(index: u32) -> Option<String> {
    let any = socket(rustix::net::AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(any, index).ok()
}

/// Parses lines of address, index, prefix length, scope, flags (hexadecimal) and name.
fn parse_list(list: &str) -> BTreeMap<u32, Interface> {
    let mut found = BTreeMap::new();
    for line in list.lines() {
        let mut fields = line.split_whitespace();
        let mut hex = || u128::from_str_radix(fields.next()?, 16).ok();
        let (Some(address), Some(index), Some(_), Some(scope), Some(flags)) =
            (hex(), hex(), hex(), hex(), hex())
        else {
            continue;
        };
        let Some(name) = fields.next() else { continue };
        let usable =
            scope & u128::from(SCOPE_LINK) != 0 && flags & u128::from(NOT_USABLE.bits()) == 0;
        if let (true, Ok(index)) = (usable, u32::try_from(index)) {
            found.entry(index).or_insert(Interface {
                name: name.to_owned(),
                address: Ipv6Addr::from(address),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usable_link_local_addresses_are_listed() {
        let list = "\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000000000000000aaaa 02 40 20 80     eth0\n\
            20010db8000000000000000000000001 02 40 00 80     eth0\n\
            20010db8000000000000000000000002 03 40 00 80     eth1\n\
            fe80000000000000000000000000bbbb 04 40 20 c0     eth2\n\
            fe80000000000000000000000000cccc 05 40 20 88     eth3\n\
            fe80000000000000000000000000dddd 0a 40 20 80     eth4\n\
            not a line\n";
        let found = parse_list(list);
        let names: Vec<_> = found
            .iter()
            .map(|(index, it)| (*index, &*it.name))
            .collect();
        assert_eq!(names, [(2, "eth0"), (10, "eth4")]);
        assert_eq!(found[&2].address, "fe80::aaaa".parse::<Ipv6Addr>().unwrap());
    }

    #[tokio::test]
    async fn netlink_and_the_list_of_the_kernel_agree() {
        let (_sender, changes) = broadcast::channel(1);
        let mut interfaces = Interfaces::open(changes, None);
        let dumped = interfaces.read().await;
        assert!(dumped.is_some() && interfaces.poll_at.is_none());
        interfaces.netlink = None;
        assert_eq!(interfaces.read().await, dumped);
    }
}
