//! The host's side of the TUN device: address, MTU, up. The route to the overlay follows from the
//! address, whose prefix is the overlay's range; others lead to prefixes behind gateways, or limit
//! the size of packets to a node. All of it goes when the dataplane closes the device.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use hyphae_wire::Prefix;
use hyphae_wire::address::OVERLAY_RANGE;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol,
};
use rtnetlink::{LinkUnspec, RouteMessageBuilder, new_connection};
use tokio::sync::mpsc;

/// Bits of 400::/7, so that the kernel routes all of it to the device.
const RANGE_LEN: u8 = 7;
/// Names our routes among those of others (`rt_protos` of iproute2 gives this number to nobody).
const PROTOCOL: u8 = 96;
/// Largest super-packet the host should build: with its frames' overhead it fits one train.
const GSO_BYTES_MAX: u32 = 57_000;
/// Packets of the host that wait while a worker does not run. The kernel's 500 are 2 ms of 250,000 small packets per
/// second, and the scheduler may let others run for longer than that.
const TX_QUEUE_PACKETS: u32 = 2000;

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

/// What a route of ours is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// There, with a limit of the size of packets, bytes.
    There(Option<u16>),
    /// Gone.
    Gone,
}

#[derive(Debug, Default)]
struct Wishes {
    changed: BTreeMap<Prefix, Wish>,
    /// All that is to be left of the routes outside of the overlay.
    only: Option<BTreeSet<Prefix>>,
}

/// The host's routes on the device; a task sets them.
///
/// Those to nodes whose path carries less than the device are a help for new connections, which
/// then never send what does not fit; without them the ICMPv6 errors of the dataplane still say so.
#[derive(Debug)]
pub(crate) struct HostRoutes {
    wishes: Arc<Mutex<Wishes>>,
    wake: mpsc::Sender<()>,
}

impl HostRoutes {
    /// Limits packets to a /64 of the overlay, or ends the limit.
    pub(crate) fn limit(&self, subnet: Prefix, mtu: Option<u16>) {
        let wish = mtu.map_or(Wish::Gone, |mtu| Wish::There(Some(mtu)));
        self.wish(|wishes| {
            wishes.changed.insert(subnet, wish);
        });
    }

    /// A prefix outside of the overlay is, or is no longer, reached through the device.
    pub(crate) fn reach(&self, prefix: Prefix, there: bool) {
        let wish = if there { Wish::There(None) } else { Wish::Gone };
        self.wish(|wishes| {
            wishes.changed.insert(prefix, wish);
        });
    }

    /// These are all that are reached through the device.
    pub(crate) fn reach_only(&self, prefixes: BTreeSet<Prefix>) {
        self.wish(|wishes| {
            for prefix in &prefixes {
                wishes.changed.insert(*prefix, Wish::There(None));
            }
            wishes.only = Some(prefixes);
        });
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner));
        // One that waits is as good as two.
        let _ = self.wake.try_send(());
    }
}

/// Sets the device up, then keeps routes on it until the handle is dropped.
pub(crate) fn start(device: String, address: Ipv6Addr, mtu: u16) -> HostRoutes {
    let (wake, mut woken) = mpsc::channel(1);
    let wishes = Arc::new(Mutex::new(Wishes::default()));
    let taken = Arc::clone(&wishes);
    tokio::spawn(async move {
        match configure(&device, address, mtu).await {
            Ok(()) => tracing::info!(device, %address, mtu, "TUN device is up"),
            Err(error) => tracing::error!(%error, "TUN device is not usable"),
        }
        // Limits that an earlier control plane left here are found out anew. The other routes stay
        // while this one learns what is behind which gateway.
        let cleared = clear_routes(&device, |prefix| prefix.overlaps(OVERLAY_RANGE)).await;
        if let Err(error) = cleared {
            tracing::warn!(%error, "routes of an earlier control plane are still there");
        }
        while woken.recv().await.is_some() {
            let Wishes { changed, only } =
                std::mem::take(&mut *taken.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(only) = only {
                let stale =
                    |prefix: Prefix| !prefix.overlaps(OVERLAY_RANGE) && !only.contains(&prefix);
                if let Err(error) = clear_routes(&device, stale).await {
                    tracing::warn!(%error, "routes to gateways that have gone are still there");
                }
            }
            for (prefix, wish) in changed {
                if let Err(error) = set_route(&device, prefix, wish).await {
                    tracing::warn!(%error, %prefix, "the host's route was not changed");
                }
            }
        }
    });
    HostRoutes { wishes, wake }
}

/// A route of ours.
fn route(index: u32, prefix: Prefix, mtu: Option<u16>) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.address().ip(), prefix.len())
        .output_interface(index)
        .protocol(RouteProtocol::Other(PROTOCOL));
    if let Some(mtu) = mtu {
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu.into())]);
        builder.get_mut().attributes.push(metrics);
    }
    builder.build()
}

async fn set_route(device: &str, prefix: Prefix, wish: Wish) -> Result<(), HostError> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let index = device_index(device)?;
    let done = match wish {
        Wish::There(mtu) => {
            let message = route(index, prefix, mtu);
            handle.route().add(message).replace().execute().await
        }
        Wish::Gone => match handle
            .route()
            .del(route(index, prefix, None))
            .execute()
            .await
        {
            // It was never there, or went with the device.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -3 => Ok(()),
            other => other,
        },
    };
    connection.abort();
    done.map_err(|source| HostError::Refused {
        device: device.to_owned(),
        what: "route",
        source,
    })
}

/// Removes those of our routes on a device that `stale` says.
async fn clear_routes(device: &str, stale: impl Fn(Prefix) -> bool) -> Result<(), HostError> {
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
        if ours && destination(&found).is_some_and(&stale) {
            handle.route().del(found).execute().await.map_err(refused)?;
        }
    }
    connection.abort();
    Ok(())
}

fn destination(route: &RouteMessage) -> Option<Prefix> {
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "attributes of routes are the kernel's and many"
    )]
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
            _ => None,
        });
    let len = route.header.destination_prefix_length;
    Some(Prefix::new(address?.into(), len))
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
        .append_extra_attribute(LinkAttribute::TxQueueLen(TX_QUEUE_PACKETS))
        .up()
        .build();
    handle
        .link()
        .set(link)
        .execute()
        .await
        .map_err(refused("MTU, queue and up"))?;
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
