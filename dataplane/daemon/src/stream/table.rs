//! Which connections there are, who may open one, and what is dialled.
//!
//! A connection is named by its remote address, as in [`Endpoint`](hyphae_wire::Endpoint). No I/O,
//! no clock: both come from outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::outbox::Outbox;

/// After a dialled connection has ended, or could not be opened, its address rests this long.
pub(crate) const REST: Duration = Duration::from_secs(1);
/// How long an address that was dialled is remembered, so that a sealed frame opens the connection
/// again: the sessions on it outlive it.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Addresses remembered.
const REMEMBERED_MAX: usize = 1024;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) inbound: usize,
    /// Of one IPv4 address or IPv6 /64.
    pub(crate) inbound_per_source: usize,
    pub(crate) outbound: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inbound: 1024,
            inbound_per_source: 32,
            outbound: 1024,
        }
    }
}

/// Why a connection from outside is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Source,
}

/// Where a frame goes.
pub(crate) enum Way {
    Open(Rc<Outbox>),
    /// The connection is to be opened now.
    Dial(Rc<Outbox>),
    None,
}

struct Connection {
    outbox: Rc<Outbox>,
    inbound: bool,
}

/// Connections by remote address.
#[derive(Default)]
pub(crate) struct Table {
    limits: Limits,
    open: BTreeMap<SocketAddr, Connection>,
    /// Dialled addresses without a connection, and when the last one ended.
    resting: BTreeMap<SocketAddr, Instant>,
    sources: BTreeMap<IpAddr, usize>,
    inbound: usize,
}

impl Table {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes in a connection that `from` has opened.
    pub(crate) fn admit(&mut self, from: SocketAddr) -> Result<Rc<Outbox>, Refused> {
        // One with the same address is gone, and nobody has noticed yet.
        if let Some(outbox) = self.open.get(&from).map(|c| Rc::clone(&c.outbox)) {
            outbox.close();
            self.remove(from, &outbox);
        }
        if self.inbound >= self.limits.inbound {
            return Err(Refused::Full);
        }
        let count = self.sources.entry(source(from)).or_default();
        if *count >= self.limits.inbound_per_source {
            return Err(Refused::Source);
        }
        *count += 1;
        self.inbound += 1;
        Ok(self.insert(from, true))
    }

    /// Where a frame for `to` goes. A first message of a handshake opens a connection; any other
    /// frame only opens one again.
    pub(crate) fn way(&mut self, to: SocketAddr, first_message: bool, now: Instant) -> Way {
        if let Some(connection) = self.open.get(&to) {
            return Way::Open(Rc::clone(&connection.outbox));
        }
        let ended = self.resting.get(&to);
        let rests = ended.is_some_and(|at| now < *at + REST);
        if rests
            || !(first_message || ended.is_some())
            || self.open.len() - self.inbound >= self.limits.outbound
        {
            return Way::None;
        }
        self.resting.remove(&to);
        Way::Dial(self.insert(to, false))
    }

    /// A connection has ended, or was never there. Nothing happens when another one has taken its
    /// place.
    pub(crate) fn ended(&mut self, address: SocketAddr, outbox: &Rc<Outbox>, now: Instant) {
        if self.remove(address, outbox) == Some(false) {
            self.resting.retain(|_, at| now < *at + REMEMBERED);
            if self.resting.len() < REMEMBERED_MAX {
                self.resting.insert(address, now);
            }
        }
    }

    /// Everything that may have something to write.
    pub(crate) fn outboxes(&self) -> Vec<Rc<Outbox>> {
        let all = self.open.values();
        all.map(|connection| Rc::clone(&connection.outbox))
            .collect()
    }

    fn insert(&mut self, address: SocketAddr, inbound: bool) -> Rc<Outbox> {
        let outbox = Rc::new(Outbox::default());
        let connection = Connection {
            outbox: Rc::clone(&outbox),
            inbound,
        };
        self.open.insert(address, connection);
        outbox
    }

    /// Takes a connection out; tells whether it was opened by the other end.
    fn remove(&mut self, address: SocketAddr, outbox: &Rc<Outbox>) -> Option<bool> {
        let held = self.open.get(&address)?;
        if !Rc::ptr_eq(&held.outbox, outbox) {
            return None;
        }
        let inbound = held.inbound;
        self.open.remove(&address);
        if inbound {
            self.inbound -= 1;
            let source = source(address);
            if let Some(count) = self.sources.get_mut(&source) {
                *count -= 1;
                if *count == 0 {
                    self.sources.remove(&source);
                }
            }
        }
        Some(inbound)
    }
}

/// What connections are counted by.
fn source(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn table(inbound: usize, inbound_per_source: usize, outbound: usize) -> Table {
        Table::new(Limits {
            inbound,
            inbound_per_source,
            outbound,
        })
    }

    #[test]
    fn one_source_cannot_take_the_places_of_all() {
        let (mut table, now) = (table(4, 2, 0), Instant::now());
        let first = table.admit(address("[2001:db8::1]:1")).unwrap();
        table.admit(address("[2001:db8::2]:1")).unwrap();
        let refused = table.admit(address("[2001:db8::3]:1")).err();
        assert_eq!(refused, Some(Refused::Source));
        table.admit(address("192.0.2.1:1")).unwrap();
        table.admit(address("192.0.2.2:1")).unwrap();
        let refused = table.admit(address("192.0.2.3:1")).err();
        assert_eq!(refused, Some(Refused::Full));
        table.ended(address("[2001:db8::1]:1"), &first, now);
        table.admit(address("[2001:db8::3]:1")).unwrap();
    }

    #[test]
    fn a_first_message_dials_and_nothing_else_does() {
        let (mut table, now) = (table(1, 1, 1), Instant::now());
        let to = address("192.0.2.1:9670");
        assert!(matches!(table.way(to, false, now), Way::None));
        let Way::Dial(outbox) = table.way(to, true, now) else {
            panic!("nothing is dialled");
        };
        assert!(matches!(table.way(to, false, now), Way::Open(_)));
        assert!(matches!(
            table.way(address("192.0.2.2:9670"), true, now),
            Way::None
        ));
        table.ended(to, &outbox, now);
        assert!(matches!(table.way(to, true, now), Way::None));
        assert!(matches!(table.way(to, false, now + REST), Way::Dial(_)));
    }

    #[test]
    fn an_ended_inbound_connection_is_not_dialled() {
        let (mut table, now) = (table(1, 1, 1), Instant::now());
        let from = address("192.0.2.1:40000");
        let outbox = table.admit(from).unwrap();
        table.ended(from, &outbox, now);
        assert!(matches!(table.way(from, false, now + REST), Way::None));
    }

    #[test]
    fn a_connection_in_the_place_of_another_outlives_its_end() {
        let (mut table, now) = (table(1, 1, 1), Instant::now());
        let from = address("192.0.2.1:40000");
        let old = table.admit(from).unwrap();
        let new = table.admit(from).unwrap();
        table.ended(from, &old, now);
        assert!(matches!(table.way(from, false, now), Way::Open(open) if Rc::ptr_eq(&open, &new)));
        assert_eq!(
            table.admit(address("192.0.2.1:2")).err(),
            Some(Refused::Full)
        );
    }
}
