//! What the kernel says about links, addresses, routes and rules, as it changes.
//!
//! One socket for the control plane; every change goes to all who subscribed. A subscriber that falls behind, and a
//! socket that does (`ENOBUFS`), lose changes and learn that they did: both then read everything again, so nothing
//! depends on having seen a change.

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
/// Changes that a subscriber may be behind.
const BEHIND_MAX: usize = 128;
/// An address takes a moment to be usable after it has come.
const UNDERLAY_SETTLE: Duration = Duration::from_millis(500);
/// Links that flap are looked at this often.
const UNDERLAY_PAUSE: Duration = Duration::from_secs(2);
/// Whatever is wrong with the socket, it is not worth a core.
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// The kernel's messages to a group are at most this long.
const MESSAGE_MAX: usize = 32 << 10;

/// Something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link came, or one of its attributes changed.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// A link was deleted, or moved to another network namespace.
    LinkGone {
        /// Its index.
        index: u32,
        /// It lives on, elsewhere.
        moved: bool,
    },
    /// An address of a link came or went.
    Address {
        /// The link's index.
        index: u32,
    },
    /// An IPv6 route came or went.
    Route {
        /// Index of the link that it leads to, if it is one.
        index: Option<u32>,
        /// Its destination.
        destination: Option<Prefix>,
    },
    /// An IPv6 rule came or went.
    Rule,
    /// Changes were lost: anything may be different.
    Lost,
}

/// Subscribes to the kernel's notifications and passes them on for as long as the process lives. Where it
/// may not, as in a sandbox without AF_NETLINK, nothing ever changes: a relay works without.
pub fn start() -> broadcast::Sender<Change> {
    let (sender, _) = broadcast::channel(BEHIND_MAX);
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
    tokio::spawn(pass_on(socket, changes));
    sender
}

async fn pass_on(socket: TokioSocket, changes: broadcast::Sender<Change>) {
    let mut buffer = Vec::with_capacity(MESSAGE_MAX);
    let mut seen = BTreeSet::new();
    loop {
        buffer.clear();
        match socket.recv(&mut buffer).await {
            Ok(()) => parse(&buffer, |change| {
                // Nobody may have subscribed.
                let _ = changes.send(change);
            }),
            // ENOBUFS, and whatever else there is: the socket goes on.
            Err(error) => {
                if seen.insert(error.raw_os_error()) {
                    tracing::warn!(%error, "notifications of the kernel were lost; all is read again, each time");
                }
                let _ = changes.send(Change::Lost);
                tokio::time::sleep(AFTER_ERROR).await;
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

/// Changes of links and addresses other than the TUN device's, for whoever has paths over them.
pub struct Underlay {
    changes: broadcast::Receiver<Change>,
    tun: Option<String>,
    tun_index: Option<u32>,
    /// When to tell of what has changed.
    due: Option<Instant>,
    told: Option<Instant>,
}

impl Underlay {
    /// `tun` names the device whose changes are ignored.
    pub fn new(changes: broadcast::Receiver<Change>, tun: Option<String>) -> Self {
        Self {
            changes,
            tun,
            tun_index: None,
            due: None,
            told: None,
        }
    }

    /// Waits until something has changed and `UNDERLAY_SETTLE` has passed; at most once in `UNDERLAY_PAUSE`.
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
                    // The node ends.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                () = wait => {
                    (self.due, self.told) = (None, Some(Instant::now()));
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
            | Change::LinkGone { index, .. }
            | Change::Address { index } => Some(*index) != self.tun_index,
            Change::Route { .. } | Change::Rule => false,
            Change::Lost => true,
        };
        if concerns && self.due.is_none() {
            let settled = Instant::now() + UNDERLAY_SETTLE;
            let told = self.told.map_or(settled, |told| told + UNDERLAY_PAUSE);
            self.due = Some(settled.max(told));
        }
    }
}

/// Hands each change in a datagram to `take`.
fn parse(mut datagram: &[u8], mut take: impl FnMut(Change)) {
    while datagram.len() >= 16 {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            // One that this version of the decoder does not know; it may be about anything.
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
        RouteNetlinkMessage::DelLink(link) => gone(link)?,
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

fn gone(link: &LinkMessage) -> Option<Change> {
    // A bridge says the same of a port that leaves it.
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
    Some(Change::LinkGone { index, moved })
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
    fn a_link_that_is_deleted_is_told_from_one_that_is_moved() {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        let gone = |moved| Change::LinkGone { index: 7, moved };
        let deleted = datagram(RouteNetlinkMessage::DelLink(link.clone()));
        assert_eq!(parsed(&deleted), [gone(false)]);
        link.attributes.push(LinkAttribute::NewNetnsId(1));
        let moved = datagram(RouteNetlinkMessage::DelLink(link));
        assert_eq!(parsed(&moved), [gone(true)]);
        assert_eq!(
            parsed(&[deleted, moved].concat()),
            [gone(false), gone(true)]
        );
    }

    #[test]
    fn what_cannot_be_decoded_may_have_been_about_anything() {
        assert_eq!(parsed(&[255; 32]), [Change::Lost]);
        assert_eq!(parsed(&[]), []);
    }

    #[test]
    fn changes_of_the_underlay_are_told_together_and_those_of_the_device_not_at_all() {
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
        let told = Instant::now();
        (underlay.due, underlay.told) = (None, Some(told));
        underlay.note(&Change::Lost);
        assert_eq!(underlay.due, Some(told + UNDERLAY_PAUSE));
    }

    fn ip(arguments: &str) {
        let mut ip = std::process::Command::new("ip");
        assert!(ip.args(arguments.split(' ')).status().unwrap().success());
    }

    async fn overflow() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut socket = subscribe().unwrap();
        // The kernel's minimum; and nobody reads yet.
        socket.socket_mut().set_rx_buf_sz(1_u32).unwrap();
        for n in 1..=30 {
            ip(&format!("address add 192.0.2.{n}/32 dev lo"));
        }
        let (changes, mut seen) = broadcast::channel(BEHIND_MAX);
        tokio::spawn(pass_on(socket, changes));
        assert_eq!(seen.recv().await, Ok(Change::Lost));
        // What comes while old ones are still there is lost as well, and said to be.
        for mtu in 1400.. {
            ip(&format!("link set lo mtu {mtu}"));
            let link = async { while !matches!(seen.recv().await, Ok(Change::Link { .. })) {} };
            if tokio::time::timeout(2 * AFTER_ERROR, link).await.is_ok() {
                break;
            }
            assert!(mtu < 1450, "the socket goes on");
        }
    }

    #[test]
    fn changes_that_overflow_the_socket_are_told_as_lost_and_it_goes_on() {
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
