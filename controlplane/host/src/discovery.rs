//! Discovery of nodes on local networks by multicast beacons.
//!
//! A task owns the socket. On every interface that the settings allow and that has an IPv6 link-local address it joins
//! the group, sends a beacon, and another one every 30 s on average. Beacons of others become events for the engine
//! task, which decides (`Neighbours`) whether to dial. A beacon proves nothing; the handshake does. Interfaces are read
//! at the start and after the kernel has notified a change ([`Interfaces`]).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as StdSocket};
use std::time::Duration;

use hyphae_config::DiscoveryMode;
use hyphae_wire::beacon::{BEACON_LEN, Beacon};
use hyphae_wire::{Endpoint, Network, PublicKey};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use zerocopy::IntoBytes;

use crate::interfaces::{Interface, Interfaces};
use crate::watch::Change;

/// The group: link-local, "HYPH" in its last bytes.
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x4859, 0x5048);
/// Time between beacons.
const BEACON_EVERY: Duration = Duration::from_secs(30);
/// Shortest time between two beacons on one interface.
const BEACON_PAUSE: Duration = Duration::from_secs(1);
/// Datagrams read per [`BUDGET_PERIOD`]; more wait in the socket or are lost there.
const BUDGET: u32 = 256;
const BUDGET_PERIOD: Duration = Duration::from_secs(1);
/// Parameters of discovery.
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
    /// The overlay's own device, which is not used.
    pub tun: Option<String>,
}

/// Events for the engine task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryEvent {
    /// A node on a local network.
    Node {
        /// Its key, unproved.
        key: PublicKey,
        /// Address of its worker 0.
        endpoint: Endpoint,
    },
    /// An interface was added or removed, or has another address.
    InterfacesChanged,
}

/// The running task.
pub struct Discovery {
    events: mpsc::Receiver<DiscoveryEvent>,
    requests: mpsc::Sender<u32>,
}

impl Discovery {
    /// Starts the task; without effect when discovery is off or cannot work. `changes` are those of the kernel.
    pub fn start(settings: DiscoverySettings, changes: broadcast::Receiver<Change>) -> Self {
        let (sender, events) = mpsc::channel(64);
        let (requests, received) = mpsc::channel(8);
        if settings.mode != DiscoveryMode::Off {
            tokio::spawn(async move {
                let port = settings.port;
                let interfaces = Interfaces::open(changes, settings.tun.clone());
                if let Err(error) = serve(settings, interfaces, sender, received).await {
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
        Self { events, requests }
    }

    /// The next event; none ever while discovery is off.
    pub async fn next(&mut self) -> DiscoveryEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Requests a beacon on an interface, so that a node which was discovered there discovers this one.
    pub fn answer(&self, interface: u32) {
        // When the queue is full or the task has ended, the next regular beacon does it.
        let _ = self.requests.try_send(interface);
    }
}

struct Joined {
    interface: Interface,
    beacon_at: Instant,
    sent_at: Option<Instant>,
}

async fn serve(
    settings: DiscoverySettings,
    mut interfaces: Interfaces,
    sender: mpsc::Sender<DiscoveryEvent>,
    mut requests: mpsc::Receiver<u32>,
) -> io::Result<()> {
    let socket = open(settings.port)?;
    let mut joined: BTreeMap<u32, Joined> = BTreeMap::new();
    if let Some(found) = interfaces.read().await {
        join(&settings, &socket, &mut joined, found);
    }
    let (mut second, mut received) = (Instant::now(), 0);
    // One byte more, so that a longer datagram is not taken for a beacon.
    let mut buffer = [0; BEACON_LEN + 1];
    loop {
        let now = Instant::now();
        for (index, on) in joined.iter_mut().filter(|(_, on)| on.beacon_at <= now) {
            on.beacon_at = now + jitter(BEACON_EVERY);
            on.sent_at = Some(now);
            beacon(&settings, &socket, *index, &on.interface).await;
        }
        if now - second >= BUDGET_PERIOD {
            (second, received) = (now, 0);
        }
        let full = received >= BUDGET;
        let due = joined.values().map(|on| on.beacon_at);
        let due = due.chain(full.then_some(second + BUDGET_PERIOD)).min();
        let wake = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            datagram = socket.recv_from(&mut buffer), if !full => {
                received += 1;
                // An error here is one of an earlier send.
                let Ok((len, from)) = datagram else { continue };
                parse(&settings, &joined, &buffer[..len], from)
            }
            index = requests.recv() => {
                let Some(index) = index else { return Ok(()) };
                if let Some(on) = joined.get_mut(&index) {
                    let at = on.sent_at.map_or(now, |sent| (sent + BEACON_PAUSE).max(now));
                    on.beacon_at = on.beacon_at.min(at);
                }
                None
            }
            () = interfaces.changed() => {
                let found = interfaces.read().await;
                let changed = found
                    .is_some_and(|found| join(&settings, &socket, &mut joined, found));
                changed.then_some(DiscoveryEvent::InterfacesChanged)
            }
            () = wake => None,
        };
        if let Some(event) = event
            && sender.send(event).await.is_err()
        {
            return Ok(());
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

/// Joins the group on new interfaces and leaves those that were removed. True when something has changed.
fn join(
    settings: &DiscoverySettings,
    socket: &UdpSocket,
    joined: &mut BTreeMap<u32, Joined>,
    found: BTreeMap<u32, Interface>,
) -> bool {
    let used = |interface: &Interface| match &settings.mode {
        DiscoveryMode::All => {
            settings.tun.as_ref() != Some(&interface.name) && interface.name != "lo"
        }
        DiscoveryMode::Off => false,
        DiscoveryMode::Interfaces(names) => names.contains(&interface.name),
    };
    let before = joined.len();
    joined.retain(|index, on| found.get(index) == Some(&on.interface));
    let mut changed = joined.len() != before;
    for (index, interface) in found {
        if joined.contains_key(&index) || !used(&interface) {
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
            beacon_at: Instant::now(),
            sent_at: None,
        };
        joined.insert(index, on);
    }
    changed
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

/// The event of a datagram, if it is a beacon of another node of this network on an allowed interface.
fn parse(
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
            let address = SocketAddrV6::new(*from.ip(), beacon.port.get(), 0, from.scope_id());
            Some(DiscoveryEvent::Node {
                key: beacon.key,
                endpoint: Endpoint::from(SocketAddr::V6(address)),
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
    // Without randomness the beacons of nodes that started together coincide, which is tolerable.
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
        let parsed = |beacon: Beacon, from: &str| {
            parse(&settings, &joined, beacon.as_bytes(), from.parse().unwrap())
        };
        let found = DiscoveryEvent::Node {
            key: PublicKey([9; 32]),
            endpoint: place(3, 1234),
        };
        assert_eq!(parsed(beacon(9), "[fe80::1%3]:9651"), Some(found));
        assert_eq!(parsed(beacon(5), "[fe80::1%3]:9651"), None, "its own");
        assert_eq!(
            parsed(beacon(9), "[fe80::1%4]:9651"),
            None,
            "not joined there"
        );
        assert_eq!(parsed(beacon(9), "[2001:db8::1]:9651"), None, "from afar");
        assert_eq!(parsed(beacon(9), "192.0.2.1:9651"), None);
    }

    fn ip(arguments: &str) {
        let mut ip = std::process::Command::new("ip");
        assert!(ip.args(arguments.split(' ')).status().unwrap().success());
    }

    async fn interfaces_change() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let changes = crate::watch::start();
        let mut discovery = Discovery::start(settings("all"), changes.subscribe());
        let mut changed = async || {
            let event = discovery.next();
            let event = tokio::time::timeout(Duration::from_secs(10), event).await;
            assert_eq!(event, Ok(DiscoveryEvent::InterfacesChanged));
        };
        // With duplicate address detection, after which the address is usable.
        ip("link add one type veth peer name two");
        ip("link set one up");
        ip("link set two up");
        changed().await;
        ip("link del one");
        changed().await;
    }

    #[test]
    fn interfaces_that_come_and_go_are_noticed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: it makes a network namespace");
            return;
        }
        // The namespace is the thread's.
        let test = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(interfaces_change());
        };
        std::thread::spawn(test).join().unwrap();
    }
}
