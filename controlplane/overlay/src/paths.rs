//! Several underlay addresses of one peer: measurement and selection.
//!
//! Candidates are the addresses of all entries that lead to a key. While the link is healthy, each unused one
//! regularly gets a first handshake message: the answer authenticates the peer and measures the round-trip
//! time; the handshake ends with it. A candidate that is clearly and repeatedly better is switched to by a
//! handshake over it, during which the old session stays. A link on a stream moves to the first datagram
//! address that answers, regardless of its speed; the reverse happens only on silence (see
//! [`crate::transport`]). When the link is silent, a handshake goes to all candidates at once
//! (`Overlay::renew`), and the first that answers carries the link.

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, PublicKey};

use crate::handshake::{Carrier, Goal, RetransmitSchedule};
use crate::ids::Owner;
use crate::liveness::Rtt;
use crate::path::Path;
use crate::{Event, Overlay};

/// Candidates of one peer.
const PATHS_MAX: usize = 16;
/// Time between two measurements of a candidate.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// Time to the first one.
const PROBE_FIRST: Duration = Duration::from_secs(2);
/// Time to the next measurement of an address where another node answered.
const FOREIGN_AGAIN: Duration = Duration::from_secs(600);
/// Answers in a row before a candidate may replace what is in use.
const SAMPLES_MIN: u32 = 2;
/// Hysteresis, in addition to a fifth: answers to handshakes are slower than those to probes, and differences
/// within the noise do not justify a handshake.
const MARGIN: Duration = Duration::from_millis(2);

impl Overlay {
    /// Updates the candidates of a peer from the entries that lead to it.
    pub(crate) fn refresh_paths(&mut self, now: Nanos, key: PublicKey) {
        let Some(owner) = self.peer_numbers.get(&key).map(|peer| Owner::Peer(*peer)) else {
            return;
        };
        let targets = self.targets_of(key).filter_map(|id| self.targets.get(&id));
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for endpoint in targets.flat_map(|target| &target.addresses) {
            let known = endpoints.contains(endpoint) || endpoint.is_unset();
            if !known && endpoints.len() < PATHS_MAX {
                endpoints.push(*endpoint);
            }
        }
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        association
            .paths
            .retain(|p| endpoints.contains(&p.endpoint));
        for endpoint in endpoints {
            if association.path(endpoint).is_none() {
                association.paths.push(Path {
                    endpoint,
                    rtt: Rtt::default(),
                    samples: 0,
                    probe_at: now + self.rng.jitter(PROBE_FIRST, 50, 150),
                });
            }
        }
        self.schedule(owner);
    }

    /// Measures candidates that are due.
    pub(crate) fn paths_due(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let (up, used) = (association.up, association.endpoint);
        let healthy = association.liveness.missed == 0 && association.outgoing.is_none();
        let mut due = Vec::new();
        for path in association.paths.iter_mut().filter(|p| p.probe_at <= now) {
            let every = match (used.is_stream(), path.endpoint.is_stream()) {
                (true, false) => self.config.stream_upgrade_every,
                (true, true) | (false, _) => PROBE_EVERY,
            };
            if path.endpoint.is_stream() && !used.is_stream() {
                // No connection is opened only to measure it.
                path.probe_at = now + self.rng.jitter(every, 100, 120);
            } else if up && healthy && path.endpoint != used {
                due.push(path.endpoint);
                path.probe_at = now + self.rng.jitter(every, 80, 120);
            } else {
                path.probe_at = now + self.rng.jitter(PROBE_FIRST, 50, 150);
            }
        }
        for endpoint in due {
            let carriers = vec![Carrier::to(endpoint)];
            self.begin(
                now,
                Goal::Probe { owner },
                carriers,
                RetransmitSchedule::ONCE,
            );
        }
    }

    /// The peer has answered at a candidate.
    pub(crate) fn path_answered(
        &mut self,
        now: Nanos,
        owner: Owner,
        endpoint: Endpoint,
        rtt: Duration,
    ) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let Some(path) = association.path(endpoint) else {
            return;
        };
        path.rtt.sample(rtt);
        path.samples += 1;
        let (samples, theirs) = (path.samples, path.rtt.smoothed());
        let faster = match (theirs, association.liveness.rtt.smoothed()) {
            (Some(theirs), Some(ours)) => theirs * 5 / 4 + MARGIN < ours,
            (None, _) | (_, None) => false,
        };
        let better = match (association.endpoint.is_stream(), endpoint.is_stream()) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => faster && samples >= SAMPLES_MIN,
        };
        if better && association.endpoint != endpoint {
            self.renew_through(now, owner, vec![endpoint], false);
            self.schedule(owner);
        }
    }

    /// A candidate has not answered.
    pub(crate) fn path_failed(&mut self, owner: Owner, endpoint: Endpoint) {
        let association = self.associations.get_mut(&owner);
        if let Some(path) = association.and_then(|a| a.path(endpoint)) {
            path.samples = 0;
            path.rtt = Rtt::default();
        }
    }

    /// Another node has answered at a candidate: a name may stand for several nodes.
    pub(crate) fn path_foreign(&mut self, now: Nanos, owner: Owner, endpoint: Endpoint) {
        self.path_failed(owner, endpoint);
        let association = self.associations.get_mut(&owner);
        if let Some(path) = association.and_then(|a| a.path(endpoint)) {
            path.probe_at = now + FOREIGN_AGAIN;
        }
        self.schedule(owner);
    }

    /// Changes the address of a peer's link.
    pub(crate) fn use_endpoint(&mut self, owner: Owner, endpoint: Endpoint) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let before = std::mem::replace(&mut association.endpoint, endpoint);
        if before == endpoint || !association.up {
            return;
        }
        let rtt = association.liveness.rtt;
        if let Some(path) = association.path(before) {
            path.rtt = rtt;
            path.samples = 0;
        }
        let there = association.path(endpoint).map(|path| path.rtt);
        association.liveness.rtt = there.unwrap_or_default();
        if let (Owner::Peer(peer), Some(key)) = (owner, association.key) {
            self.output.event(Event::PeerMoved {
                peer,
                key,
                endpoint,
            });
        }
    }
}
