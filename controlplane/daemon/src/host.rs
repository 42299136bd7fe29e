//! The host's side of the TUN device: address, MTU, up. Routes follow from the address, whose
//! prefix is the overlay's range; all of it goes when the dataplane closes the device.

use std::net::{IpAddr, Ipv6Addr};

use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{LinkUnspec, new_connection};

/// Bits of 400::/7, so that the kernel routes all of it to the device.
const RANGE_LEN: u8 = 7;
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

/// Gives the device its address and MTU and brings it up. Doing it again changes nothing.
pub(crate) async fn configure(device: &str, address: Ipv6Addr, mtu: u16) -> Result<(), HostError> {
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
