//! Finding nodes on local networks: multicast beacons, heard and sent.
//!
//! A task of its own owns the socket. On every interface that the settings allow and that has an
//! IPv6 link-local address it joins the group, sends a beacon, and another one every half minute.
//! What it hears from others it passes to the engine task, which decides (`Neighbours`) whether to
//! dial. A beacon proves nothing; the handshake does. Interfaces are read from the kernel's list of
//! IPv6 addresses, often while something has changed lately, else every ten seconds.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as StdSocket};
use std::time::Duration;

use hyphae_wire::beacon::{BEACON_LEN, Beacon};

use hyphae_wire::{Endpoint, Network, PublicKey};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zerocopy::IntoBytes;

use hyphae_config::DiscoveryMode;

/// The group: link-local, "HYPH" in its last bytes.
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x4859, 0x5048);
/// Time between beacons.
const BEACON_EVERY: Duration = Duration::from_secs(30);
/// Least time between two beacons on one interface, whoever asks.
const BEACON_PAUSE: Duration = Duration::from_secs(1);
/// How often interfaces are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The same for a while after a start or change: an address takes a second or two to be usable.
const LOOK_SOON: Duration = Duration::from_secs(1);
const CHANGING: Duration = Duration::from_secs(15);
/// Datagrams read per second; more wait in the socket or are lost there.
const BUDGET: u32 = 256;
/// Where the kernel lists IPv6 addresses.
const ADDRESSES: &str = "/proc/self/net/if_inet6";
/// Scope of a link-local address there, and flags of one that is not usable yet.
const SCOPE_LINK: u32 = 0x20;
const NOT_USABLE: u32 = 0x40 | 0x08;

/// What discovery is started with.
#[derive(Clone, Debug)]
pub struct DiscoverySettings {
    /// Interfaces to use.
    pub mode: DiscoveryMode,
    /// UDP port of beacons.
    pub port: u16,
    /// Port of worker 0.
    pub node_port: u16,
    /// Key of this node.
    pub key: PublicKey,
    /// Private network; `None` for the public one.
    pub network: Option<Network>,
    /// The overlay's own device, where no beacon belongs.
    pub tun: Option<String>,
}

/// What discovery tells the engine task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryEvent {
    /// A node on a local network.
    Node {
        /// Its key, as it says.
        key: PublicKey,
        /// Worker 0 there.
        endpoint: Endpoint,
    },
    /// An interface came, went, or has another address.
    InterfacesChanged,
}

/// The running task.
pub struct Discovery {
    found: mpsc::Receiver<DiscoveryEvent>,
    ask: mpsc::Sender<u32>,
}

impl Discovery {
    /// Starts the task; one that does nothing when discovery is off or cannot work.
    pub fn start(settings: DiscoverySettings) -> Self {
        let (sender, found) = mpsc::channel(64);
        let (ask, asked) = mpsc::channel(8);
        if settings.mode != DiscoveryMode::Off {
            tokio::spawn(async move {
                let port = settings.port;
                if let Err(error) = serve(settings, sender, asked).await {
                    let hint = "; another program may use the port ([discovery] port)";
                    let hint = if error.kind() == io::ErrorKind::AddrInUse {
                        hint
                    } else {
                        ""
                    };
                    tracing::warn!(port, "discovery is off: {error}{hint}");
                }
            });
        }
        Self { found, ask }
    }

    /// What was found next.
    pub async fn next(&mut self) -> DiscoveryEvent {
        match self.found.recv().await {
            Some(found) => found,
            // Discovery is off.
            None => std::future::pending().await,
        }
    }

    /// Asks for a beacon on an interface, so that a node heard there learns of this one.
    pub fn answer(&self, interface: u32) {
        // A full queue or an ended task: the next regular beacon does it.
        let _ = self.ask.try_send(interface);
    }
}

/// An interface with its link-local address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    address: Ipv6Addr,
}

struct Joined {
    interface: Interface,
    beacon_at: Instant,
    sent_at: Option<Instant>,
}

async fn serve(
    settings: DiscoverySettings,
    sender: mpsc::Sender<DiscoveryEvent>,
    mut asked: mpsc::Receiver<u32>,
) -> io::Result<()> {
    let socket = open(settings.port)?;
    let mut joined: BTreeMap<u32, Joined> = BTreeMap::new();
    let (mut look_at, mut changed_at) = (Instant::now(), Instant::now());
    let (mut second, mut taken) = (Instant::now(), 0);
    let mut first = true;
    // One byte more, so that a longer datagram is not taken for a beacon.
    let mut buffer = [0; BEACON_LEN + 1];
    loop {
        let now = Instant::now();
        if now >= look_at {
            if look(&settings, &socket, &mut joined, now)? {
                changed_at = now;
                if !std::mem::take(&mut first)
                    && sender
                        .send(DiscoveryEvent::InterfacesChanged)
                        .await
                        .is_err()
                {
                    return Ok(());
                }
            }
            let soon = now - changed_at < CHANGING;
            look_at = now + if soon { LOOK_SOON } else { LOOK_EVERY };
        }
        for (index, on) in joined.iter_mut().filter(|(_, on)| on.beacon_at <= now) {
            on.beacon_at = now + jitter(BEACON_EVERY);
            on.sent_at = Some(now);
            beacon(&settings, &socket, *index, &on.interface).await;
        }
        if now - second >= Duration::from_secs(1) {
            (second, taken) = (now, 0);
        }
        let full = taken >= BUDGET;
        let wake = joined
            .values()
            .map(|on| on.beacon_at)
            .chain([look_at])
            .min();
        let wake = if full {
            second + Duration::from_secs(1)
        } else {
            wake.unwrap_or(look_at)
        };
        tokio::select! {
            received = socket.recv_from(&mut buffer), if !full => {
                taken += 1;
                // An error here is one of an earlier send.
                let Ok((len, from)) = received else { continue };
                let Some(found) = judge(&settings, &joined, &buffer[..len], from) else { continue };
                if sender.send(found).await.is_err() {
                    return Ok(());
                }
            }
            index = asked.recv() => {
                let Some(index) = index else { return Ok(()) };
                if let Some(on) = joined.get_mut(&index) {
                    let at = on.sent_at.map_or(now, |sent| (sent + BEACON_PAUSE).max(now));
                    on.beacon_at = on.beacon_at.min(at);
                }
            }
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

fn open(port: u16) -> io::Result<UdpSocket> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)?;
    sockopt::set_ipv6_v6only(&socket, true)?;
    // Several nodes on one host hear every beacon.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_ipv6_multicast_hops(&socket, 1)?;
    net::bind(
        &socket,
        &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0),
    )?;
    UdpSocket::from_std(StdSocket::from(socket))
}

/// Joins on new interfaces and forgets those that are gone. True when something has changed.
fn look(
    settings: &DiscoverySettings,
    socket: &UdpSocket,
    joined: &mut BTreeMap<u32, Joined>,
    now: Instant,
) -> io::Result<bool> {
    let found = interfaces(&std::fs::read_to_string(ADDRESSES)?, settings);
    let before = joined.len();
    joined.retain(|index, on| found.get(index) == Some(&on.interface));
    let mut changed = joined.len() != before;
    for (index, interface) in found {
        if joined.contains_key(&index) {
            continue;
        }
        match sockopt::set_ipv6_add_membership(socket, &GROUP, index) {
            // It was joined before its address changed.
            Ok(()) | Err(rustix::io::Errno::ADDRINUSE) => {}
            Err(error) => {
                tracing::debug!(interface = interface.name, %error, "no discovery there");
                continue;
            }
        }
        changed = true;
        let on = Joined {
            interface,
            beacon_at: now,
            sent_at: None,
        };
        joined.insert(index, on);
    }
    Ok(changed)
}

/// Reads the kernel's list: address, index, prefix length, scope, flags, name.
fn interfaces(list: &str, settings: &DiscoverySettings) -> BTreeMap<u32, Interface> {
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
        let wanted = match &settings.mode {
            DiscoveryMode::All => settings.tun.as_deref() != Some(name) && name != "lo",
            DiscoveryMode::Off => false,
            DiscoveryMode::Interfaces(names) => names.contains(name),
        };
        let usable = scope & u128::from(SCOPE_LINK) != 0 && flags & u128::from(NOT_USABLE) == 0;
        if let (true, true, Ok(index)) = (wanted, usable, u32::try_from(index)) {
            found.entry(index).or_insert(Interface {
                name: name.to_owned(),
                address: Ipv6Addr::from(address),
            });
        }
    }
    found
}

async fn beacon(
    settings: &DiscoverySettings,
    socket: &UdpSocket,
    index: u32,
    interface: &Interface,
) {
    let mut nonce = [0; 8];
    if getrandom::fill(&mut nonce).is_err() {
        return;
    }
    let (network, nonce) = (settings.network.as_ref(), u64::from_le_bytes(nonce));
    let beacon = Beacon::new(settings.key, settings.node_port, network, nonce);
    let to = SocketAddrV6::new(GROUP, settings.port, 0, index);
    if let Err(error) = socket.send_to(beacon.as_bytes(), SocketAddr::V6(to)).await {
        tracing::debug!(interface = interface.name, %error, "beacon was not sent");
    }
}

/// What a datagram says, if it is a beacon of another node of this network on an allowed interface.
fn judge(
    settings: &DiscoverySettings,
    joined: &BTreeMap<u32, Joined>,
    datagram: &[u8],
    from: SocketAddr,
) -> Option<DiscoveryEvent> {
    let SocketAddr::V6(from) = from else {
        return None;
    };
    if !from.ip().is_unicast_link_local() || !joined.contains_key(&from.scope_id()) {
        return None;
    }
    match Beacon::parse(datagram, settings.network.as_ref()) {
        Ok(beacon) if beacon.key == settings.key => None,
        Ok(beacon) => {
            let place = SocketAddrV6::new(*from.ip(), beacon.port.get(), 0, from.scope_id());
            Some(DiscoveryEvent::Node {
                key: beacon.key,
                endpoint: Endpoint::from(SocketAddr::V6(place)),
            })
        }
        Err(error) => {
            tracing::debug!(%from, %error, "beacon ignored");
            None
        }
    }
}

fn jitter(around: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness all nodes would beat in step, which is a pity and no more.
    let _ = getrandom::fill(&mut random);
    around * 3 / 4 + around / 2 * u32::from(u16::from_le_bytes(random)) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: &str) -> DiscoverySettings {
        DiscoverySettings {
            mode: mode.parse().unwrap(),
            port: 9651,
            node_port: 9670,
            key: PublicKey([5; 32]),
            network: None,
            tun: Some("hyphae0".to_owned()),
        }
    }

    fn place(scope: u32, port: u16) -> Endpoint {
        let ip = "fe80::1".parse().unwrap();
        Endpoint::from(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
    }

    #[test]
    fn beacons_go_to_interfaces_with_a_usable_link_local_address_only() {
        let list = "\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000000000000000aaaa 02 40 20 80     eth0\n\
            20010db8000000000000000000000001 02 40 00 80     eth0\n\
            20010db8000000000000000000000002 03 40 00 80     eth1\n\
            fe80000000000000000000000000bbbb 04 40 20 c0     eth2\n\
            fe80000000000000000000000000cccc 05 40 20 80  hyphae0\n\
            fe80000000000000000000000000dddd 0a 40 20 80     eth3\n\
            not a line\n";
        let on = |mode| {
            let found = interfaces(list, &settings(mode));
            found
                .into_iter()
                .map(|(index, i)| (index, i.name))
                .collect::<Vec<_>>()
        };
        assert_eq!(on("all"), [(2, "eth0".to_owned()), (10, "eth3".to_owned())]);
        assert_eq!(on("eth3,eth9"), [(10, "eth3".to_owned())]);
        assert_eq!(on("none"), []);
        let all = interfaces(list, &settings("all"));
        assert_eq!(all[&2].address, "fe80::aaaa".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn only_link_local_beacons_of_others_on_joined_interfaces_count() {
        let settings = settings("all");
        let interface = Interface {
            name: "eth0".to_owned(),
            address: "fe80::1".parse().unwrap(),
        };
        let on = Joined {
            interface,
            beacon_at: Instant::now(),
            sent_at: None,
        };
        let joined = BTreeMap::from([(3, on)]);
        let beacon = |key| Beacon::new(PublicKey([key; 32]), 1234, None, 1);
        let judge = |beacon: Beacon, from: &str| {
            judge(&settings, &joined, beacon.as_bytes(), from.parse().unwrap())
        };
        let found = DiscoveryEvent::Node {
            key: PublicKey([9; 32]),
            endpoint: place(3, 1234),
        };
        assert_eq!(judge(beacon(9), "[fe80::1%3]:9651"), Some(found));
        assert_eq!(judge(beacon(5), "[fe80::1%3]:9651"), None, "its own");
        assert_eq!(
            judge(beacon(9), "[fe80::1%4]:9651"),
            None,
            "not joined there"
        );
        assert_eq!(judge(beacon(9), "[2001:db8::1]:9651"), None, "from afar");
        assert_eq!(judge(beacon(9), "192.0.2.1:9651"), None);
    }
}
