//! Notifications of the kernel about changed links, addresses, routes and rules (rtnetlink).
//!
//! The control plane has one socket; every change is broadcast to all subscribers. A subscriber that lags, and a socket
//! that overflows (`ENOBUFS`), lose changes and report the loss. Subscribers then read the whole state, so none depends
//! on a single notification.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use hyphae_wire::Prefix;

use crate::kernel;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];
/// Largest lag of a subscriber, changes.
const LAG_MAX: usize = 128;
/// Time from a new address to its use.
const UNDERLAY_SETTLE: Duration = Duration::from_millis(500);
/// Shortest time between two reports, for links that flap.
const UNDERLAY_INTERVAL: Duration = Duration::from_secs(2);
/// Delay after an error of the socket, so that a persistent one does not occupy a core.
const ERROR_DELAY: Duration = Duration::from_millis(100);
/// Longest message of the kernel to a group, bytes.
const MESSAGE_MAX: usize = 32 << 10;

/// A change of the host's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link was added, or one of its attributes changed.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// A link was deleted, or moved to another network namespace.
    LinkRemoved {
        /// Its index.
        index: u32,
        /// Moved, not deleted.
        moved: bool,
    },
    /// An address of a link was added or removed.
    Address {
        /// The link's index.
        index: u32,
    },
    /// An IPv6 route was added or removed.
    Route {
        /// Index of its output link.
        index: Option<u32>,
        /// Its destination.
        destination: Option<Prefix>,
    },
    /// An IPv6 rule was added or removed.
    Rule,
    /// Notifications were lost: everything has to be read again.
    Lost,
}

/// Subscribes to the kernel's notifications and broadcasts them until the process ends. Where netlink is refused, as in
/// a sandbox without AF_NETLINK, no change is ever reported, which a relay tolerates.
pub fn start() -> broadcast::Sender<Change> {
    let (sender, _) = broadcast::channel(LAG_MAX);
    let changes = sender.clone();
    let socket = match subscribe() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(
                %error,
                "changes of this host's links and addresses are not noticed: netlink (AF_NETLINK) is refused"
            );
            return sender;
        }
    };
    tokio::spawn(broadcast_changes(socket, changes));
    sender
}

async fn broadcast_changes(socket: TokioSocket, changes: broadcast::Sender<Change>) {
    let mut buffer = Vec::with_capacity(MESSAGE_MAX);
    let mut seen = BTreeSet::new();
    loop {
        buffer.clear();
        match socket.recv(&mut buffer).await {
            Ok(()) => parse(&buffer, |change| {
                // There may be no subscriber.
                let _ = changes.send(change);
            }),
            // ENOBUFS, and others; the socket stays usable.
            Err(error) => {
                if seen.insert(error.raw_os_error()) {
                    tracing::warn!(%error, "notifications of the kernel were lost; the whole state is read again");
                }
                let _ = changes.send(Change::Lost);
                tokio::time::sleep(ERROR_DELAY).await;
            }
        }
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS.iter().map(|group| 1 << (*group as u32 - 1));
    let address = SocketAddr::new(0, groups.sum());
    socket.socket_mut().bind(&address)?;
    Ok(socket)
}

/// Changes of links and addresses other than those of the TUN device.
pub struct Underlay {
    changes: broadcast::Receiver<Change>,
    tun: Option<String>,
    tun_index: Option<u32>,
    /// Time of the next report.
    due: Option<Instant>,
    /// Time of the last report.
    reported: Option<Instant>,
}

impl Underlay {
    /// `tun` names the device whose changes are ignored.
    pub fn new(changes: broadcast::Receiver<Change>, tun: Option<String>) -> Self {
        Self {
            changes,
            tun,
            tun_index: None,
            due: None,
            reported: None,
        }
    }

    /// Waits for a change and then for `UNDERLAY_SETTLE`; returns at most once per `UNDERLAY_INTERVAL`. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let due = self.due;
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(change) => self.note(&change),
                    Err(RecvError::Lagged(_)) => self.note(&Change::Lost),
                    // The node is stopping.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                () = wait => {
                    (self.due, self.reported) = (None, Some(Instant::now()));
                    return;
                }
            }
        }
    }

    fn note(&mut self, change: &Change) {
        let concerns = match change {
            Change::Link { index, name } if Some(name) == self.tun.as_ref() => {
                self.tun_index = Some(*index);
                false
            }
            Change::Link { index, .. }
            | Change::LinkRemoved { index, .. }
            | Change::Address { index } => Some(*index) != self.tun_index,
            Change::Route { .. } | Change::Rule => false,
            Change::Lost => true,
        };
        if concerns && self.due.is_none() {
            let settled = Instant::now() + UNDERLAY_SETTLE;
            let next = self.reported.map_or(settled, |at| at + UNDERLAY_INTERVAL);
            self.due = Some(settled.max(next));
        }
    }
}

/// Calls `take` for each change in a datagram.
fn parse(mut datagram: &[u8], mut take: impl FnMut(Change)) {
    while datagram.len() >= 16 {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            // A message that the decoder does not know may concern anything.
            return take(Change::Lost);
        };
        if let NetlinkPayload::InnerMessage(inner) = &message.payload
            && let Some(change) = change(inner)
        {
            take(change);
        }
        // Messages are aligned to 4 bytes.
        let len = (message.header.length as usize).next_multiple_of(4).max(16);
        datagram = datagram.get(len..).unwrap_or_default();
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "messages of the kernel are many, and the enumeration grows"
)]
fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    Some(match message {
        RouteNetlinkMessage::NewLink(link) => Change::Link {
            index: link.header.index,
            name: kernel::name(link)?,
        },
        RouteNetlinkMessage::DelLink(link) => removed(link)?,
        RouteNetlinkMessage::NewAddress(AddressMessage { header, .. })
        | RouteNetlinkMessage::DelAddress(AddressMessage { header, .. }) => Change::Address {
            index: header.index,
        },
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            Change::Route {
                index: oif(route),
                destination: kernel::destination(route),
            }
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Change::Rule,
        _ => return None,
    })
}

fn removed(link: &LinkMessage) -> Option<Change> {
    // A bridge sends the same for a port that leaves it.
    if link.header.interface_family != rtnetlink::packet_route::AddressFamily::Unspec {
        return None;
    }
    let moved = link.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            LinkAttribute::NewNetnsId(_) | LinkAttribute::NewIfIndex(_)
        )
    });
    let index = link.header.index;
    Some(Change::LinkRemoved { index, moved })
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "attributes of routes are the kernel's and many"
)]
fn oif(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(datagram: &[u8]) -> Vec<Change> {
        let mut seen = Vec::new();
        parse(datagram, |change| seen.push(change));
        seen
    }

    fn datagram(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn deleted_and_moved_links_are_distinguished() {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        let removed = |moved| Change::LinkRemoved { index: 7, moved };
        let deleted = datagram(RouteNetlinkMessage::DelLink(link.clone()));
        assert_eq!(parsed(&deleted), [removed(false)]);
        link.attributes.push(LinkAttribute::NewNetnsId(1));
        let moved = datagram(RouteNetlinkMessage::DelLink(link));
        assert_eq!(parsed(&moved), [removed(true)]);
        assert_eq!(
            parsed(&[deleted, moved].concat()),
            [removed(false), removed(true)]
        );
    }

    #[test]
    fn an_undecodable_message_counts_as_lost() {
        assert_eq!(parsed(&[255; 32]), [Change::Lost]);
        assert_eq!(parsed(&[]), []);
    }

    #[test]
    fn changes_of_the_underlay_are_reported_together_and_those_of_the_device_ignored() {
        let (_sender, changes) = broadcast::channel(8);
        let mut underlay = Underlay::new(changes, Some("hyphae0".to_owned()));
        let link = |index, name: &str| {
            let name = name.to_owned();
            Change::Link { index, name }
        };
        for change in [
            link(5, "hyphae0"),
            Change::Address { index: 5 },
            Change::Rule,
        ] {
            underlay.note(&change);
            assert_eq!(underlay.due, None, "{change:?}");
        }
        underlay.note(&link(2, "eth0"));
        let due = underlay.due;
        assert!(due.is_some());
        underlay.note(&Change::Address { index: 2 });
        assert_eq!(underlay.due, due, "one for both");
        let reported = Instant::now();
        (underlay.due, underlay.reported) = (None, Some(reported));
        underlay.note(&Change::Lost);
        assert_eq!(underlay.due, Some(reported + UNDERLAY_INTERVAL));
    }

    fn ip(arguments: &str) {
        let mut ip = std::process::Command::new("ip");
        assert!(ip.args(arguments.split(' ')).status().unwrap().success());
    }

    async fn overflow() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut socket = subscribe().unwrap();
        // The kernel's minimum, and no reader yet.
        socket.socket_mut().set_rx_buf_sz(1_u32).unwrap();
        for n in 1..=30 {
            ip(&format!("address add 192.0.2.{n}/32 dev lo"));
        }
        let (changes, mut seen) = broadcast::channel(LAG_MAX);
        tokio::spawn(broadcast_changes(socket, changes));
        assert_eq!(seen.recv().await, Ok(Change::Lost));
        // Changes are lost, and reported as lost, while old ones fill the socket.
        for mtu in 1400.. {
            ip(&format!("link set lo mtu {mtu}"));
            let link = async { while !matches!(seen.recv().await, Ok(Change::Link { .. })) {} };
            if tokio::time::timeout(2 * ERROR_DELAY, link).await.is_ok() {
                break;
            }
            assert!(mtu < 1450, "the socket stays usable");
        }
    }

    #[test]
    fn an_overflow_of_the_socket_is_reported_and_survived() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: it makes a network namespace");
            return;
        }
        // The namespace is the thread's.
        let test = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(overflow());
        };
        std::thread::spawn(test).join().unwrap();
    }
}
