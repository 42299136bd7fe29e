//! Finding nodes on local networks: multicast beacons, heard and sent.
//!
//! A task of its own owns the socket. On every interface that the settings allow and that has an
//! IPv6 link-local address it joins the group, sends a beacon, and another one every half minute.
//! What it hears from others it passes to the engine task, which decides ([`Neighbours`]) whether to
//! dial. A beacon proves nothing; the handshake does. Interfaces are read from the kernel's list of
//! IPv6 addresses, often while something has changed lately, else every ten seconds.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as StdSocket};
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::beacon::{BEACON_LEN, Beacon};

use hyphae_wire::{Endpoint, Network, PublicKey};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zerocopy::IntoBytes;

use hyphae_config::DiscoveryMode;

/// The group: link-local, "HYPH" in its last bytes.
pub(crate) const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x4859, 0x5048);
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
pub(crate) struct Settings {
    pub(crate) mode: DiscoveryMode,
    pub(crate) port: u16,
    /// Port of worker 0.
    pub(crate) node_port: u16,
    pub(crate) key: PublicKey,
    pub(crate) network: Option<Network>,
    /// The overlay's own device, where no beacon belongs.
    pub(crate) tun: Option<String>,
}

/// What discovery tells the engine task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
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
pub(crate) struct Discovery {
    found: mpsc::Receiver<Found>,
    ask: mpsc::Sender<u32>,
}

impl Discovery {
    /// Starts the task; one that does nothing when discovery is off or cannot work.
    pub(crate) fn start(settings: Settings) -> Self {
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
    pub(crate) async fn next(&mut self) -> Found {
        match self.found.recv().await {
            Some(found) => found,
            // Discovery is off.
            None => std::future::pending().await,
        }
    }

    /// Asks for a beacon on an interface, so that a node heard there learns of this one.
    pub(crate) fn answer(&self, interface: u32) {
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
    settings: Settings,
    sender: mpsc::Sender<Found>,
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
                    && sender.send(Found::InterfacesChanged).await.is_err()
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
    settings: &Settings,
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
fn interfaces(list: &str, settings: &Settings) -> BTreeMap<u32, Interface> {
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

async fn beacon(settings: &Settings, socket: &UdpSocket, index: u32, interface: &Interface) {
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
    settings: &Settings,
    joined: &BTreeMap<u32, Joined>,
    datagram: &[u8],
    from: SocketAddr,
) -> Option<Found> {
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
            Some(Found::Node {
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

/// Most nodes remembered, and most of them at one address that are not connected.
const NEIGHBOURS_MAX: usize = 64;
const PER_ADDRESS_MAX: usize = 4;
/// Addresses of one node: the first one, and the latest others.
const ADDRESSES_MAX: usize = 3;
/// Least time between two changes of a node's addresses: each one begins its handshake again.
const ADDRESSES_PAUSE: Duration = Duration::from_secs(1);
/// Silence after which one that is not connected is forgotten: three beacons.
const SILENT: Duration = Duration::from_secs(100);
/// The side with the smaller key waits this long for the other one to dial.
const DIAL_ANYWAY: Duration = Duration::from_secs(15);

/// A node heard on an interface.
#[derive(Clone, Debug)]
struct Neighbour {
    /// Where its beacons came from. Anybody can repeat a beacon from elsewhere, so none takes the place
    /// of another: all are tried, and the handshake tells which is right.
    endpoints: Vec<Endpoint>,
    changed: Nanos,
    first: Nanos,
    heard: Nanos,
    /// Handle of the entry that dials it.
    dialled: Option<u32>,
}

/// What to do about a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    None,
    /// Send a beacon back: the other one is to dial.
    Answer,
    /// Dial it.
    Dial,
    /// It was heard at another address, too: tell the entry.
    Readdress(u32),
}

/// Nodes heard lately, by key and interface. A beacon proves nothing, so those that are not connected
/// give way to new ones: one address has but a few, and the one heard first goes first. A node
/// that is there is connected before its turn comes.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    heard: BTreeMap<(PublicKey, u32), Neighbour>,
}

impl Neighbours {
    /// Takes a beacon of a node other than this one. `up` tells who is connected. Returns also the
    /// entry of a node that had to give way.
    pub(crate) fn note(
        &mut self,
        now: Nanos,
        own: PublicKey,
        (key, endpoint): (PublicKey, Endpoint),
        up: impl Fn(PublicKey) -> bool,
    ) -> (Step, Option<u32>) {
        let at = (key, endpoint.scope.get());
        let dials = own > key;
        let Some(known) = self.heard.get_mut(&at) else {
            let Ok(gone) = self.make_room(endpoint, &up) else {
                return (Step::None, None);
            };
            let new = Neighbour {
                endpoints: vec![endpoint],
                changed: now,
                first: now,
                heard: now,
                dialled: None,
            };
            self.heard.insert(at, new);
            let step = if dials { Step::Dial } else { Step::Answer };
            return (step, gone);
        };
        known.heard = now;
        let up = up(key);
        let another = !known.endpoints.contains(&endpoint)
            && !up
            && now.since(known.changed) >= ADDRESSES_PAUSE;
        if another {
            known.changed = now;
            known.endpoints.push(endpoint);
            if known.endpoints.len() > ADDRESSES_MAX {
                known.endpoints.remove(1);
            }
        }
        let step = match known.dialled {
            Some(id) if another => Step::Readdress(id),
            Some(_) => Step::None,
            None if dials || (!up && now.since(known.first) >= DIAL_ANYWAY) => Step::Dial,
            None => Step::None,
        };
        (step, None)
    }

    /// Forgets a node so that one at `endpoint` can be remembered, when that is necessary: one of the same
    /// address that has too many, else any, the one known longest. `Err` when all are connected.
    fn make_room(
        &mut self,
        endpoint: Endpoint,
        up: &impl Fn(PublicKey) -> bool,
    ) -> Result<Option<u32>, ()> {
        let here = |known: &Neighbour| {
            let mut of_known = known.endpoints.iter();
            of_known.any(|e| e.with_port(0) == endpoint.with_port(0))
        };
        let (mut same, mut oldest) = (0, [None; 2]);
        for (at, known) in self.heard.iter().filter(|((key, _), _)| !up(*key)) {
            let here = here(known);
            same += usize::from(here);
            let oldest = &mut oldest[usize::from(here)];
            if oldest.is_none_or(|(first, _)| known.first < first) {
                *oldest = Some((known.first, *at));
            }
        }
        let [others, own] = oldest;
        let victim = if same >= PER_ADDRESS_MAX {
            own
        } else if self.heard.len() >= NEIGHBOURS_MAX {
            Some(others.or(own).ok_or(())?)
        } else {
            None
        };
        let gone = victim.and_then(|(_, at)| self.heard.remove(&at));
        Ok(gone.and_then(|known| known.dialled))
    }

    /// Addresses of a node.
    pub(crate) fn endpoints(&self, key: PublicKey, interface: u32) -> Vec<Endpoint> {
        let known = self.heard.get(&(key, interface));
        known
            .map(|known| known.endpoints.clone())
            .unwrap_or_default()
    }

    /// An entry dials it now.
    pub(crate) fn dialled(&mut self, key: PublicKey, interface: u32, id: u32) {
        if let Some(known) = self.heard.get_mut(&(key, interface)) {
            known.dialled = Some(id);
        }
    }

    /// Whether a node was heard.
    pub(crate) fn knows(&self, key: &PublicKey) -> bool {
        let mut known = self.heard.range((*key, 0)..=(*key, u32::MAX));
        known.next().is_some()
    }

    /// Forgets those that are silent and not connected; returns the entries that dialled them.
    pub(crate) fn expire(&mut self, now: Nanos, up: impl Fn(PublicKey) -> bool) -> Vec<u32> {
        let mut entries = Vec::new();
        self.heard.retain(|(key, _), known| {
            let keep = now.since(known.heard) < SILENT || up(*key);
            if !keep {
                entries.extend(known.dialled);
            }
            keep
        });
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings(mode: &str) -> Settings {
        Settings {
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
        let found = Found::Node {
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

    fn at(n: u16, port: u16) -> Endpoint {
        let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n);
        Endpoint::from(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, 3)))
    }

    const START: Nanos = Nanos(1_000_000_000);

    #[test]
    fn the_larger_key_dials_and_the_smaller_one_waits_a_while() {
        let (small, large) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let mut at_large = Neighbours::default();
        let mut note = || {
            at_large
                .note(START, large, (small, place(3, 1)), |_| false)
                .0
        };
        assert_eq!(note(), Step::Dial);
        at_large.dialled(small, 3, 7);
        let mut note = || {
            at_large
                .note(START, large, (small, place(3, 1)), |_| false)
                .0
        };
        assert_eq!(note(), Step::None);
        let mut at_small = Neighbours::default();
        let mut note = |after, up| {
            let now = START + SECOND * after;
            at_small.note(now, small, (large, place(3, 1)), |_| up).0
        };
        assert_eq!(note(0, false), Step::Answer);
        assert_eq!(note(5, false), Step::None);
        assert_eq!(note(30, true), Step::None, "it is connected");
        assert_eq!(note(60, false), Step::Dial, "the other one does not hear");
    }

    #[test]
    fn a_beacon_from_elsewhere_moves_nothing() {
        let (own, key) = (PublicKey([0xff; 32]), PublicKey([1; 32]));
        let mut neighbours = Neighbours::default();
        let mut note = |seconds, from, up| {
            let now = START + SECOND * seconds;
            let step = neighbours.note(now, own, (key, at(from, 9)), |_| up).0;
            if step == Step::Dial {
                neighbours.dialled(key, 3, 7);
            }
            (step, neighbours.endpoints(key, 3))
        };
        assert_eq!(note(0, 1, false), (Step::Dial, vec![at(1, 9)]));
        assert_eq!(note(2, 66, true), (Step::None, vec![at(1, 9)]), "connected");
        let both = vec![at(1, 9), at(66, 9)];
        assert_eq!(note(3, 66, false), (Step::Readdress(7), both.clone()));
        assert_eq!(note(3, 67, false), (Step::None, both), "one at a time");
        for n in 4..50 {
            let (step, endpoints) = note(n, 100 + u16::try_from(n).unwrap(), false);
            assert_eq!(step, Step::Readdress(7));
            assert_eq!((endpoints[0], endpoints.len()), (at(1, 9), 3));
        }
    }

    #[test]
    fn forged_beacons_keep_no_node_out_and_disturb_none_that_is_connected() {
        let own = PublicKey([0xff; 32]);
        let connected = |key: PublicKey| key.0[0] == 1;
        let mut neighbours = Neighbours::default();
        let key = |kind: u8, n: u16| {
            let mut key = [kind; 32];
            key[1..3].copy_from_slice(&n.to_be_bytes());
            PublicKey(key)
        };
        for n in 0..10 {
            neighbours.note(START, own, (key(1, n), at(n, 1)), connected);
            neighbours.dialled(key(1, n), 3, n.into());
        }
        // Of one address, and of as many as there are.
        for n in 0..1000 {
            let now = START + SECOND + Duration::from_millis(n.into());
            let from = if n < 500 { at(500, n) } else { at(n, 1) };
            let (step, gone) = neighbours.note(now, own, (key(2, n), from), connected);
            assert_eq!(step, Step::Dial);
            neighbours.dialled(key(2, n), 3, 1000 + u32::from(n));
            assert!(gone.is_none_or(|id| id >= 1000), "of the forged ones");
            let here = neighbours.heard.len();
            assert!(here <= if n < 500 { 14 } else { NEIGHBOURS_MAX });
        }
        let newcomer = (key(3, 0), at(900, 1));
        let (step, gone) = neighbours.note(START + SECOND * 3, own, newcomer, connected);
        assert!(step == Step::Dial && gone.is_some());
        assert!((0..10).all(|n| neighbours.knows(&key(1, n))));
        // And nobody gives way when all are connected.
        let (step, _) = neighbours.note(START, own, (key(4, 0), at(7, 7)), |_| true);
        assert_eq!(step, Step::None);
    }

    #[test]
    fn what_is_silent_and_down_is_forgotten() {
        let own = PublicKey([0xff; 32]);
        let mut neighbours = Neighbours::default();
        for n in 0..64u8 {
            let heard = (PublicKey([n; 32]), at(n.into(), 1));
            let step = neighbours.note(START, own, heard, |_| false);
            assert_eq!(step, (Step::Dial, None));
            neighbours.dialled(PublicKey([n; 32]), 3, u32::from(n));
        }
        let heard = (PublicKey([1; 32]), at(1, 1));
        neighbours.note(START + SECOND * 50, own, heard, |_| false);
        let gone = neighbours.expire(START + SECOND * 120, |key| key == PublicKey([2; 32]));
        assert_eq!(gone.len(), 62);
        assert!(!gone.contains(&1) && !gone.contains(&2));
        assert!(neighbours.knows(&PublicKey([1; 32])) && !neighbours.knows(&PublicKey([3; 32])));
    }
}
