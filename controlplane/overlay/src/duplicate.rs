//! Detection of two hosts with one key.
//!
//! A dataplane has an instance number (of boot, start and process) as long as it runs, under every control
//! plane; both ends of a handshake exchange theirs, sealed. A node that moves, or has several addresses, keeps
//! its number; a restart assigns a new one, never an old one. The sequence A, B, A under one key therefore
//! shows two hosts, and both are notified.

use std::collections::VecDeque;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind};

use hyphae_wire::Endpoint;
use zerocopy::{FromBytes, IntoBytes};

use crate::ids::Owner;
use crate::{Duplicate, Event, Overlay};

/// Earlier instance numbers of a node that are remembered.
const STARTS_MAX: usize = 4;
/// Time after the last evidence for which two hosts are reported.
const KEPT: Duration = Duration::from_secs(600);

/// Instance numbers of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Starts {
    current: u64,
    /// Address that frames of the current instance came from.
    place: Endpoint,
    before: VecDeque<u64>,
    /// Last evidence of two hosts.
    found: Option<(Nanos, Duplicate)>,
    /// The node's claim that this node's key is duplicated; unproved.
    claim: Option<(Nanos, Duplicate)>,
}

impl Starts {
    /// Records the number of a finished handshake. True when it shows two hosts.
    fn note(&mut self, now: Nanos, instance: u64, place: Endpoint) -> bool {
        if instance == 0 || instance == self.current {
            self.place = place;
            return false;
        }
        let known = self.before.contains(&instance);
        let (before, other) = (self.current, self.place);
        self.before.retain(|earlier| *earlier != instance);
        if before != 0 {
            self.before.push_back(before);
        }
        if self.before.len() > STARTS_MAX {
            self.before.pop_front();
        }
        (self.current, self.place) = (instance, place);
        if known {
            let endpoints = [place, other];
            let duplicate = Duplicate {
                own: false,
                endpoints,
            };
            self.found = Some((now, duplicate));
        }
        known
    }

    /// Records a claim about this node's key, at most one per [`KEPT`]: repetitions and other addresses are
    /// ignored meanwhile.
    fn claim(&mut self, now: Nanos, endpoints: [Endpoint; 2]) -> Option<Duplicate> {
        if fresh(self.claim, now).is_some() {
            return None;
        }
        let own = true;
        let duplicate = Duplicate { own, endpoints };
        self.claim = Some((now, duplicate));
        Some(duplicate)
    }

    /// Evidence that two hosts have the key.
    fn seen(&self, now: Nanos) -> Option<Duplicate> {
        fresh(self.found, now)
    }

    /// Own evidence, else the node's claim about this node's key.
    pub(crate) fn duplicate(&self, now: Nanos) -> Option<Duplicate> {
        self.seen(now).or(fresh(self.claim, now))
    }
}

fn fresh(sign: Option<(Nanos, Duplicate)>, now: Nanos) -> Option<Duplicate> {
    let (at, duplicate) = sign?;
    (now.since(at) < KEPT).then_some(duplicate)
}

impl Overlay {
    /// Sets the instance number of the dataplane. Call it before [`Self::begin_attach`], with the same number
    /// as long as the dataplane runs.
    pub fn set_instance(&mut self, instance: u64) {
        self.instance = instance;
    }

    /// Records the instance number of a finished handshake.
    pub(crate) fn record_instance(
        &mut self,
        now: Nanos,
        owner: Owner,
        instance: u64,
        place: Endpoint,
    ) {
        self.clock = now;
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if !association.starts.note(now, instance, place) {
            return;
        }
        let (key, found) = (association.key, association.starts.seen(now));
        if let (Some(key), Some(duplicate)) = (key, found) {
            self.output.event(Event::Duplicate { key, duplicate });
        }
    }

    /// Notifies both hosts, each over its own session.
    pub(crate) fn notify_duplicate(&mut self, now: Nanos, owner: Owner, epoch: u32) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let Some(duplicate) = association.starts.seen(now) else {
            return;
        };
        let [here, other] = duplicate.endpoints;
        let mut told = Vec::new();
        for session in &association.sessions {
            let Some(lane) = session.lanes.first().filter(|_| !session.receive_only) else {
                continue;
            };
            if session.epoch == epoch {
                told.push((lane.receive, [here, other]));
            } else if lane.endpoint == other {
                told.push((lane.receive, [other, here]));
            }
        }
        for (receive, endpoints) in told {
            let header = control::message(ControlKind::Duplicate);
            let message = [&header, endpoints.as_bytes()].concat();
            self.send_control(owner, receive, &message);
        }
    }

    /// Handles a node's claim that another host has this node's key.
    pub(crate) fn own_duplicate(&mut self, now: Nanos, owner: Owner, body: &[u8]) {
        self.clock = now;
        let Ok((endpoints, _)) = <[Endpoint; 2]>::read_from_prefix(body) else {
            return;
        };
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let claim = association.starts.claim(now, endpoints);
        if let (Some(key), Some(duplicate)) = (association.key, claim) {
            self.output.event(Event::Duplicate { key, duplicate });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn at(host: u8) -> Endpoint {
        SocketAddr::from(([192, 0, 2, host], 9670)).into()
    }

    fn judged(starts: &[(u64, u8)]) -> Vec<bool> {
        let mut known = Starts::default();
        let starts = starts.iter();
        starts
            .map(|(n, host)| known.note(Nanos(1), *n, at(*host)))
            .collect()
    }

    #[test]
    fn only_a_start_that_comes_back_is_another_host() {
        assert_eq!(judged(&[(1, 1), (2, 2), (1, 1)]), [false, false, true]);
        let both = judged(&[(1, 1), (2, 1), (1, 1), (2, 1)]);
        assert_eq!(
            both,
            [false, false, true, true],
            "behind one address as well"
        );
        for alone in [
            // Roaming, several addresses, restarts, and an offer without an instance number.
            vec![(1, 1), (1, 2), (1, 3), (1, 1)],
            vec![(1, 1), (1, 2), (1, 1), (1, 2)],
            (1..20).map(|n| (n, 1)).collect(),
            vec![(1, 1), (0, 1), (1, 1), (0, 2), (1, 1)],
        ] {
            assert!(judged(&alone).iter().all(|two| !two), "{alone:?}");
        }
    }

    #[test]
    fn a_duplicate_names_both_endpoints_and_expires() {
        let mut known = Starts::default();
        for (n, host) in [(1, 1), (2, 2), (1, 1)] {
            known.note(Nanos(5), n, at(host));
        }
        let found = known.duplicate(Nanos(6)).unwrap();
        assert_eq!((found.own, found.endpoints), (false, [at(1), at(2)]));
        assert_eq!(known.duplicate(Nanos(5) + KEPT), None);
    }

    #[test]
    fn a_peers_report_of_this_key_is_limited_and_hides_no_observation() {
        let mut known = Starts::default();
        assert!(known.claim(Nanos(5), [at(1), at(2)]).is_some());
        for host in 3..20 {
            assert_eq!(known.claim(Nanos(6), [at(1), at(host)]), None);
        }
        let said = known.duplicate(Nanos(6)).unwrap();
        assert_eq!((said.own, said.endpoints), (true, [at(1), at(2)]));
        assert_eq!(known.seen(Nanos(6)), None, "and is not forwarded");
        for (n, host) in [(1, 1), (2, 2), (1, 1)] {
            known.note(Nanos(7), n, at(host));
        }
        assert!(!known.duplicate(Nanos(8)).unwrap().own);
        assert!(known.claim(Nanos(5) + KEPT, [at(1), at(2)]).is_some());
    }
}
