//! Events of the overlay as log lines and totals. A refusal, or an address without a node, is logged once per minute
//! for each key, address and reason, with a limit per reason: senders with many addresses fill neither log nor memory.
//! Every event is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyphae_overlay::{Duplicate, Event, Refusal};
use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, PublicKey};

/// Shortest interval between log lines about the same refusal.
const REFUSAL_AGAIN: Duration = Duration::from_secs(60);
/// Log lines about one reason within that interval.
const REFUSALS_MAX: u64 = 16;

/// Totals since start.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Peers that came up.
    pub peers_up: u64,
    /// Peers that went down.
    pub peers_down: u64,
    /// Sessions established.
    pub sessions_up: u64,
    /// Sessions ended.
    pub sessions_down: u64,
    /// Sessions that no node answered.
    pub sessions_failed: u64,
    /// Endpoint changes of peers.
    pub peer_moves: u64,
    /// Restarts of this control plane by its supervisor.
    pub controlplane_restarts: u64,
    /// Dataplanes attached to after the first.
    pub dataplane_restarts: u64,
    /// Process of the last dataplane.
    dataplane: Option<u32>,
    /// Reports of two hosts with one key.
    pub duplicate_keys: u64,
    /// Refused handshakes by reason.
    pub refusals: BTreeMap<&'static str, u64>,
    logged: BTreeMap<&'static str, Logged>,
}

/// Log lines of one reason in the current interval.
#[derive(Clone, Debug)]
struct Logged {
    since: Nanos,
    lines: BTreeSet<String>,
    suppressed: u64,
}

impl Logged {
    fn new(since: Nanos) -> Self {
        Self {
            since,
            lines: BTreeSet::new(),
            suppressed: 0,
        }
    }
}

impl Totals {
    /// Counts an attach to the dataplane with this process number.
    pub(crate) fn note_dataplane(&mut self, pid: u32) {
        let before = self.dataplane.replace(pid);
        if before.is_some_and(|before| before != pid) {
            self.dataplane_restarts += 1;
        }
    }

    /// Counts and logs an event. `names`: configured names of keys.
    pub(crate) fn note(&mut self, now: Nanos, event: &Event, names: &BTreeMap<PublicKey, String>) {
        let name = |key: &PublicKey| names.get(key).map(String::as_str);
        match event {
            Event::PeerUp { key, endpoint, .. } => {
                self.peers_up += 1;
                tracing::info!(%key, name = name(key), %endpoint, "peer is up");
            }
            Event::PeerDown { key, reason, .. } => {
                self.peers_down += 1;
                tracing::warn!(%key, name = name(key), %reason, "peer is down");
            }
            Event::PeerMoved { key, endpoint, .. } => {
                self.peer_moves += 1;
                tracing::info!(%key, name = name(key), %endpoint, "peer has moved");
            }
            Event::Duplicate { key, duplicate } => self.note_duplicate(now, key, duplicate),
            Event::SessionUp { address, key } => {
                self.sessions_up += 1;
                tracing::info!(%address, %key, name = name(key), "session is up");
            }
            Event::SessionDown {
                address, reason, ..
            } => {
                self.sessions_down += 1;
                tracing::info!(%address, %reason, "session has ended");
            }
            Event::SessionFailed { address } => {
                self.sessions_failed += 1;
                // A program of this host that scans addresses causes one each.
                if self.is_news(now, "no_session", address.to_string()) {
                    tracing::warn!(%address, "no session: nobody answers at this address");
                }
            }
            Event::Refused { key, from, reason } => {
                *self.refusals.entry(refusal_name(reason)).or_default() += 1;
                let name = key.as_ref().and_then(name);
                let key = key.map_or_else(|| "unknown".to_owned(), |key| key.to_string());
                let line = format!("{key} {from} {reason}");
                if self.is_news(now, refusal_name(reason), line) {
                    tracing::warn!(key, name, %from, %reason, "handshake refused");
                }
            }
            Event::PathMtu { address, mtu } => match mtu {
                Some(mtu) => tracing::info!(%address, mtu, "path carries less than the device"),
                None => tracing::info!(%address, "path carries all again"),
            },
            Event::EchoReply { .. } | Event::TraceReply { .. } | Event::ResyncFib { .. } => {}
        }
    }
}

impl Totals {
    /// Two hosts use one key: `key`, or this node's as reported by `key`. One line per key and minute, whatever
    /// endpoints it names.
    fn note_duplicate(&mut self, now: Nanos, key: &PublicKey, duplicate: &Duplicate) {
        self.duplicate_keys += 1;
        let place = |place: Endpoint| match place.is_unset() {
            true => "not known".to_owned(),
            false => place.to_string(),
        };
        let [one, other] = duplicate.endpoints.map(place);
        // Claims of peers are limited separately: they displace no line about what this node observed.
        let reason = match duplicate.own {
            true => "duplicate_key_said",
            false => "duplicate_key",
        };
        if !self.is_news(now, reason, key.to_string()) {
            return;
        }
        if duplicate.own {
            let advice = "see whether a host was made from a copy of this one; this peer's word alone proves nothing";
            tracing::warn!(
                said_by = %key, here = one, other, advice,
                "a peer says that another host has this node's key"
            );
        } else {
            tracing::warn!(
                %key, one, other, advice = "stop one, remove its priv_key.bin and start it again",
                "two hosts have one key: what is sent to it reaches now the one, now the other"
            );
        }
    }

    /// Whether a refusal is to be logged.
    fn is_news(&mut self, now: Nanos, reason: &'static str, line: String) -> bool {
        let logged = self
            .logged
            .entry(reason)
            .or_insert_with(|| Logged::new(now));
        if now.since(logged.since) >= REFUSAL_AGAIN {
            if logged.suppressed > 0 {
                let count = logged.suppressed;
                tracing::warn!(
                    reason,
                    count,
                    "more for this reason were counted and not logged"
                );
            }
            *logged = Logged::new(now);
        }
        let known = logged.lines.contains(&line);
        let full = logged.lines.len() as u64 >= REFUSALS_MAX;
        if known || full {
            logged.suppressed += u64::from(!known);
            return false;
        }
        logged.lines.insert(line)
    }
}

fn refusal_name(reason: &Refusal) -> &'static str {
    match reason {
        Refusal::Pinned { .. } => "pinned",
        Refusal::OwnKey => "own_key",
        Refusal::Version(_) => "version",
        Refusal::Suite(_) => "suite",
        Refusal::Lanes { .. } => "lanes",
        Refusal::Offer => "offer",
        Refusal::Address => "address",
        Refusal::Network { .. } => "network",
        Refusal::NotAllowed => "not_allowed",
        Refusal::Denied => "denied",
        Refusal::InboundMax => "inbound_max",
        Refusal::SourceMax => "source_max",
        Refusal::PeersMax => "peers_max",
        Refusal::SessionsMax => "sessions_max",
        Refusal::Slots => "slots",
    }
}

#[cfg(test)]
mod tests {
    use hyphae_overlay::HandshakeSource;

    use super::*;

    fn refused(port: u16, reason: Refusal) -> Event {
        let from: std::net::SocketAddr = ([192, 0, 2, 1], port).into();
        Event::Refused {
            key: None,
            from: HandshakeSource::Underlay(from.into()),
            reason,
        }
    }

    #[test]
    fn every_refusal_is_counted_and_few_are_remembered() {
        let mut totals = Totals::default();
        for port in 1..=5000 {
            let names = BTreeMap::new();
            totals.note(Nanos(1), &refused(port, Refusal::NotAllowed), &names);
            totals.note(Nanos(1), &refused(1, Refusal::Denied), &names);
        }
        assert_eq!(totals.refusals["not_allowed"], 5000);
        assert_eq!(totals.refusals["denied"], 5000);
        let logged = |reason| {
            (
                totals.logged[reason].lines.len(),
                totals.logged[reason].suppressed,
            )
        };
        assert_eq!(logged("not_allowed"), (16, 4984));
        assert_eq!(logged("denied"), (1, 0));
        let names = BTreeMap::new();
        for n in 0..1000u32 {
            let address = hyphae_wire::OverlayAddress([n.to_le_bytes()[0]; 16]);
            totals.note(Nanos(1), &Event::SessionFailed { address }, &names);
        }
        assert_eq!(totals.sessions_failed, 1000);
        assert_eq!(totals.logged["no_session"].lines.len(), 16);
    }

    #[test]
    fn a_peer_that_reports_duplicate_keys_causes_one_line_whatever_endpoints_it_names() {
        let mut totals = Totals::default();
        let key = |n: u8| PublicKey([n; 32]);
        for port in 1..=100 {
            for (n, own) in [(1, true), (2, true), (3, false)] {
                let place = std::net::SocketAddr::from(([192, 0, 2, 1], port)).into();
                let endpoints = [place, Endpoint::default()];
                let duplicate = Duplicate { own, endpoints };
                let (key, names) = (key(n), BTreeMap::new());
                totals.note(Nanos(1), &Event::Duplicate { key, duplicate }, &names);
            }
        }
        assert_eq!(totals.logged["duplicate_key_said"].lines.len(), 2);
        assert_eq!(totals.logged["duplicate_key"].lines.len(), 1);
    }

    #[test]
    fn the_same_refusal_is_logged_again_after_a_minute() {
        let mut totals = Totals::default();
        let mut news = |at: u64| totals.is_news(Nanos(at * 1_000_000_000), "denied", "x".into());
        assert!(news(1));
        assert!(!news(30) && !news(60));
        assert!(news(61));
        assert!(!news(62));
    }
}
