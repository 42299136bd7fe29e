//! Requests to the kernel about the TUN device: reads of its state, and changes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use futures_util::TryStreamExt;
use hyphae_wire::Prefix;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol,
};
use rtnetlink::packet_route::{AddressFamily, address::AddressAttribute};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder, new_connection_with_strict_check};

use crate::error::HostError;

/// Bits of 400::/7, so that the kernel routes all of it to the device.
const RANGE_LEN: u8 = 7;
/// Number of the main routing table.
pub(crate) const TABLE_MAIN: u32 = 254;
/// Identifies our routes (`rt_protos` of iproute2 does not assign this number).
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(96);
/// Largest super-packet the host should build: with its frames' overhead it fits one train.
const GSO_BYTES_MAX: u32 = 57_000;
/// Packets of the host queued while a worker does not run. The kernel's default of 500 is 2 ms of 250,000 small packets
/// per second, less than the scheduler may run other threads.
const TX_QUEUE_PACKETS: u32 = 2000;

const EEXIST: i32 = -17;
const ENOENT: i32 = -2;
const ENODEV: i32 = -19;
const ESRCH: i32 = -3;

/// A connection to the kernel, for one device.
pub(crate) struct Kernel {
    pub(crate) handle: Handle,
    device: String,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The state of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) is_tun: bool,
}

/// Routes on the device, by table and destination.
pub(crate) type Routes = BTreeMap<(u32, Prefix), Route>;

/// The other attributes of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Path MTU.
    pub(crate) mtu: Option<u32>,
    /// Set by this module.
    pub(crate) ours: bool,
}

impl Kernel {
    pub(crate) fn connect(device: &str) -> Result<Self, HostError> {
        let (connection, handle, _) = new_connection_with_strict_check()?;
        Ok(Self {
            handle,
            device: device.to_owned(),
            connection: tokio::spawn(connection),
        })
    }

    pub(crate) fn refused(
        &self,
        what: &'static str,
    ) -> impl Fn(rtnetlink::Error) -> HostError + use<> {
        let device = self.device.clone();
        move |source| HostError::Refused {
            device: device.clone(),
            what,
            source,
        }
    }

    /// The device, by index if known, because it may have been renamed.
    pub(crate) async fn link(&self, index: Option<u32>) -> Result<Option<Link>, HostError> {
        if let Some(index) = index
            && let Some(link) = self
                .one_link(self.handle.link().get().match_index(index))
                .await?
        {
            return Ok(Some(link));
        }
        let by_name = self.handle.link().get().match_name(self.device.clone());
        self.one_link(by_name).await
    }

    /// Whether a link has this index.
    pub(crate) async fn link_exists(&self, index: u32) -> Result<bool, HostError> {
        let request = self.handle.link().get().match_index(index);
        Ok(self.one_link(request).await?.is_some())
    }

    async fn one_link(
        &self,
        request: rtnetlink::LinkGetRequest,
    ) -> Result<Option<Link>, HostError> {
        let mut links = std::pin::pin!(request.execute());
        match links.try_next().await {
            Ok(found) => Ok(found.as_ref().map(parse_link)),
            Err(error) if is(&error, ENODEV) => Ok(None),
            Err(error) => Err(self.refused("lookup of the device")(error)),
        }
    }

    pub(crate) async fn has_address(
        &self,
        index: u32,
        address: Ipv6Addr,
    ) -> Result<bool, HostError> {
        let mut request = self.handle.address().get();
        // Linux 4.19 and older ignore the filter.
        request.message_mut().header.family = AddressFamily::Inet6;
        request.message_mut().header.index = index;
        let wanted = AddressAttribute::Address(IpAddr::V6(address));
        let mut found = std::pin::pin!(request.execute());
        let mut has = false;
        while let Some(message) = found
            .try_next()
            .await
            .map_err(self.refused("list of addresses"))?
        {
            has |= message.header.index == index && message.attributes.contains(&wanted);
        }
        Ok(has)
    }

    pub(crate) async fn routes(&self, index: u32) -> Result<Routes, HostError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = AddressFamily::Inet6;
        filter.attributes.push(RouteAttribute::Oif(index));
        let mut found = std::pin::pin!(self.handle.route().get(filter).execute());
        let mut routes = Routes::new();
        while let Some(message) = found
            .try_next()
            .await
            .map_err(self.refused("list of routes"))?
        {
            let on_device = message.attributes.contains(&RouteAttribute::Oif(index));
            if let (true, Some(prefix)) = (on_device, destination(&message)) {
                let route = Route {
                    mtu: mtu(&message),
                    ours: message.header.protocol == PROTOCOL,
                };
                let known = routes.entry((table(&message), prefix)).or_insert(route);
                // Of two with one destination, ours counts.
                if route.ours {
                    *known = route;
                }
            }
        }
        Ok(routes)
    }

    pub(crate) async fn set_route(
        &self,
        index: u32,
        table: u32,
        prefix: Prefix,
        mtu: Option<u16>,
    ) -> Result<(), HostError> {
        let route = route(index, table, prefix, mtu);
        let set = self.handle.route().add(route).replace().execute().await;
        set.map_err(self.refused("route"))
    }

    pub(crate) async fn delete_route(
        &self,
        index: u32,
        table: u32,
        prefix: Prefix,
    ) -> Result<(), HostError> {
        let route = route(index, table, prefix, None);
        match self.handle.route().del(route).execute().await {
            // It does not exist, or was removed with the device.
            Err(error) if is(&error, ESRCH) => Ok(()),
            other => other.map_err(self.refused("route")),
        }
    }

    /// Configures queue and offloads of a new device, and sets it up.
    pub(crate) async fn prepare(&self, index: u32) -> Result<(), HostError> {
        let link = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(GSO_BYTES_MAX))
            .append_extra_attribute(LinkAttribute::TxQueueLen(TX_QUEUE_PACKETS))
            .up()
            .build();
        let set = self.handle.link().set(link).execute().await;
        set.map_err(self.refused("queue and up"))
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u16) -> Result<(), HostError> {
        let link = LinkUnspec::new_with_index(index).mtu(u32::from(mtu));
        let set = self.handle.link().set(link.build()).execute().await;
        set.map_err(self.refused("MTU"))
    }

    pub(crate) async fn add_address(&self, index: u32, address: Ipv6Addr) -> Result<(), HostError> {
        let added = self
            .handle
            .address()
            .add(index, IpAddr::V6(address), RANGE_LEN)
            .execute()
            .await;
        match added {
            Err(error) if is(&error, EEXIST) => Ok(()),
            other => other.map_err(self.refused("address")),
        }
    }
}

fn is(error: &rtnetlink::Error, number: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == number)
}

/// A request failed because its object exists.
pub(crate) fn exists_already(error: &rtnetlink::Error) -> bool {
    is(error, EEXIST)
}

/// A request failed because its object does not exist.
pub(crate) fn does_not_exist(error: &rtnetlink::Error) -> bool {
    is(error, ENOENT) || is(error, ESRCH)
}

/// Directory of the IPv6 sysctls.
const IPV6: &str = "/proc/sys/net/ipv6";

fn disable_ipv6(device: &str) -> String {
    format!("{IPV6}/conf/{device}/disable_ipv6")
}

/// Whether IPv6 is disabled for a device. A device whose MTU is too small for IPv6 has no sysctl.
///
/// # Errors
/// Where the kernel has no IPv6.
pub(crate) fn ipv6_is_off(device: &str) -> Result<bool, HostError> {
    if Path::new("/proc/sys/net").exists() && !Path::new(IPV6).exists() {
        return Err(HostError::NoIpv6);
    }
    let value = std::fs::read_to_string(disable_ipv6(device));
    Ok(value.is_ok_and(|value| value.trim() != "0"))
}

/// Enables IPv6 for a device, which has no other use.
pub(crate) fn enable_ipv6(device: &str) -> std::io::Result<()> {
    std::fs::write(disable_ipv6(device), "0")
}

/// A route of ours.
fn route(index: u32, table: u32, prefix: Prefix, mtu: Option<u16>) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.address().ip(), prefix.len())
        .output_interface(index)
        .table_id(table)
        .protocol(PROTOCOL);
    if let Some(mtu) = mtu {
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu.into())]);
        builder.get_mut().attributes.push(metrics);
    }
    builder.build()
}

/// A link's name.
pub(crate) fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            Some(name.clone())
        } else {
            None
        }
    })
}

fn parse_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: name(message).unwrap_or_default(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        is_tun: false,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        }
        if let LinkAttribute::LinkInfo(info) = attribute {
            link.is_tun |= info.contains(&LinkInfo::Kind(InfoKind::Tun));
        }
    }
    link
}

pub(crate) fn destination(route: &RouteMessage) -> Option<Prefix> {
    let address = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet6(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    });
    let len = route.header.destination_prefix_length;
    // The default route has none.
    let address = address.or((len == 0).then_some(Ipv6Addr::UNSPECIFIED));
    Some(Prefix::new(address?.into(), len))
}

fn mtu(route: &RouteMessage) -> Option<u32> {
    let metrics = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Metrics(metrics) = attribute {
            Some(metrics)
        } else {
            None
        }
    });
    metrics?.iter().find_map(|metric| {
        if let RouteMetric::Mtu(mtu) = metric {
            Some(*mtu)
        } else {
            None
        }
    })
}

fn table(route: &RouteMessage) -> u32 {
    let given = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Table(table) = attribute {
            Some(*table)
        } else {
            None
        }
    });
    given.unwrap_or_else(|| u32::from(route.header.table))
}
