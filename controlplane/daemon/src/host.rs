//! The host's side of the TUN device: address, MTU, up. Routes follow from the address, whose
//! prefix is the overlay's range; all of it goes when the dataplane closes the device.

use std::net::{IpAddr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol};
use rtnetlink::{LinkUnspec, RouteMessageBuilder, new_connection};
use tokio::sync::mpsc;

/// Bits of 400::/7, so that the kernel routes all of it to the device.
const RANGE_LEN: u8 = 7;
/// Names our routes among those of others (`rt_protos` of iproute2 gives this number to nobody).
const PROTOCOL: u8 = 96;
/// Changes of routes that may wait.
const CHANGES_MAX: usize = 256;
/// Largest super-packet the host should build: with its frames' overhead it fits one train.
const GSO_BYTES_MAX: u32 = 57_000;

/// The device could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// No netlink.
    #[error("netlink: {0}")]
    Netlink(#[from] std::io::Error),
    /// A request was refused.
    #[error(
        "setting up TUN device '{device}' ({what}): {source}; the control plane needs CAP_NET_ADMIN"
    )]
    Refused {
        /// Device.
        device: String,
        /// Request.
        what: &'static str,
        /// How.
        source: rtnetlink::Error,
    },
    /// IPv6 is off.
    #[error(
        "IPv6 is switched off on this host (net.ipv6.conf.all.disable_ipv6); the overlay needs it"
    )]
    NoIpv6,
}

/// The host's routes to nodes whose path carries less than the device: a task holds them, in order.
/// They are a help for new connections, which then never send what does not fit; without them the
/// ICMPv6 errors of the dataplane still say so.
#[derive(Debug)]
pub(crate) struct HostRoutes {
    changes: mpsc::Sender<(Ipv6Addr, Option<u16>)>,
}

impl HostRoutes {
    /// Limits packets to a /64, or ends the limit.
    pub(crate) fn limit(&self, subnet: Ipv6Addr, mtu: Option<u16>) {
        if self.changes.try_send((subnet, mtu)).is_err() {
            tracing::debug!(%subnet, "too many changes of host routes at once; one was left out");
        }
    }
}

/// Sets the device up, then keeps routes on it until the handle is dropped.
pub(crate) fn start(device: String, address: Ipv6Addr, mtu: u16) -> HostRoutes {
    let (changes, mut wanted) = mpsc::channel(CHANGES_MAX);
    tokio::spawn(async move {
        match configure(&device, address, mtu).await {
            Ok(()) => tracing::info!(device, %address, mtu, "TUN device is up"),
            Err(error) => tracing::error!(%error, "TUN device is not usable"),
        }
        // What an earlier control plane left here is found out anew.
        let cleared = clear_routes(&device).await;
        if let Err(error) = cleared {
            tracing::warn!(%error, "routes of an earlier control plane are still there");
        }
        while let Some((subnet, mtu)) = wanted.recv().await {
            if let Err(error) = set_route(&device, subnet, mtu).await {
                tracing::warn!(%error, %subnet, "the host's route was not changed");
            }
        }
    });
    HostRoutes { changes }
}

/// A route of ours to a /64.
fn route(index: u32, subnet: Ipv6Addr, mtu: Option<u16>) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(subnet, 64)
        .output_interface(index)
        .protocol(RouteProtocol::Other(PROTOCOL));
    if let Some(mtu) = mtu {
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu.into())]);
        builder.get_mut().attributes.push(metrics);
    }
    builder.build()
}

async fn set_route(device: &str, subnet: Ipv6Addr, mtu: Option<u16>) -> Result<(), HostError> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let message = route(device_index(device)?, subnet, mtu);
    let done = match mtu {
        Some(_) => handle.route().add(message).replace().execute().await,
        None => match handle.route().del(message).execute().await {
            // It was never there, or went with the device.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -3 => Ok(()),
            other => other,
        },
    };
    connection.abort();
    done.map_err(|source| HostError::Refused {
        device: device.to_owned(),
        what: "route with MTU",
        source,
    })
}

/// Removes our routes on a device.
async fn clear_routes(device: &str) -> Result<(), HostError> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let index = device_index(device)?;
    let refused = |source| HostError::Refused {
        device: device.to_owned(),
        what: "list of routes",
        source,
    };
    let filter = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut routes = handle.route().get(filter).execute();
    while let Some(found) = routes.try_next().await.map_err(refused)? {
        let ours = found.header.protocol == RouteProtocol::Other(PROTOCOL)
            && found.attributes.contains(&RouteAttribute::Oif(index));
        if ours {
            handle.route().del(found).execute().await.map_err(refused)?;
        }
    }
    connection.abort();
    Ok(())
}

/// Gives the device its address and MTU and brings it up. Doing it again changes nothing.
async fn configure(device: &str, address: Ipv6Addr, mtu: u16) -> Result<(), HostError> {
    let switched_off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    if switched_off.is_ok_and(|value| value.trim() == "1") {
        return Err(HostError::NoIpv6);
    }
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let refused = |what| {
        move |source| HostError::Refused {
            device: device.to_owned(),
            what,
            source,
        }
    };
    let index = device_index(device)?;
    let link = LinkUnspec::new_with_index(index)
        .mtu(u32::from(mtu))
        .append_extra_attribute(LinkAttribute::GsoMaxSize(GSO_BYTES_MAX))
        .up()
        .build();
    handle
        .link()
        .set(link)
        .execute()
        .await
        .map_err(refused("MTU and up"))?;
    let added = handle
        .address()
        .add(index, IpAddr::V6(address), RANGE_LEN)
        .execute()
        .await;
    match added {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -17 => {}
        other => other.map_err(refused("address"))?,
    }
    connection.abort();
    Ok(())
}

/// Index of a network device by its name.
fn device_index(name: &str) -> std::io::Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None)?;
    Ok(netdevice::name_to_index(&any, name)?)
}
