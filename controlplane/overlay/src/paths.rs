//! Several underlay addresses of one peer: which are known to work, and when to use another.
//!
//! Candidates are the addresses of all entries that lead to a key. While the link is healthy each
//! one that is not in use gets a first handshake message now and then: the answer proves who is
//! there and gives a round-trip time; the handshake goes no further. A candidate that is clearly and
//! repeatedly better is switched to by a handshake through it, during which the old session stays.
//! A link on a stream moves to the first datagram address that answers, however fast it is; the other
//! way round only silence leads (see [`crate::transport`]).
//! When the link goes silent nobody waits for measurements: a handshake goes to all of them at once
//! (`Overlay::renew`), and the first that answers carries the link.

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, PublicKey};

use crate::handshake::{Carrier, Goal, Pace};
use crate::session::{Association, Owner, Rtt};
use crate::{Event, Overlay};

/// Candidates of one peer that are measured.
const PATHS_MAX: usize = 16;
/// Time between two measurements of a candidate.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// Time to the first one.
const PROBE_FIRST: Duration = Duration::from_secs(2);
/// Time to the next one where another node has answered.
const FOREIGN_AGAIN: Duration = Duration::from_secs(600);
/// Answers in a row before a candidate may replace what is in use.
const SAMPLES_MIN: u32 = 2;
/// How much better it must be, beside a fifth: answers to handshakes are slower than those to
/// probes, and a difference within the noise is not worth a handshake.
const MARGIN: Duration = Duration::from_millis(2);

/// An address of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) endpoint: Endpoint,
    rtt: Rtt,
    samples: u32,
    pub(crate) probe_at: Nanos,
}

impl Association {
    /// When a candidate that is not in use is to be measured.
    pub(crate) fn path_deadline(&self) -> Nanos {
        let idle = self.paths.iter().filter(|p| p.endpoint != self.endpoint);
        let at = idle.map(|path| path.probe_at).min();
        at.filter(|_| self.up).unwrap_or(Nanos::NEVER)
    }

    /// Whether there is another address to go to.
    pub(crate) fn has_alternate(&self) -> bool {
        self.paths.iter().any(|p| p.endpoint != self.endpoint)
    }

    fn path(&mut self, endpoint: Endpoint) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.endpoint == endpoint)
    }
}

impl Overlay {
    /// Takes the candidates of a key from the entries that lead to it.
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

    /// Measures what is due.
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
                // No connection only to measure it.
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
            self.begin(now, Goal::Probe { owner }, carriers, Pace::ONCE);
        }
    }

    /// A candidate has answered, and it is the peer.
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

    /// At a candidate lives somebody else: a name may stand for several nodes.
    pub(crate) fn path_foreign(&mut self, now: Nanos, owner: Owner, endpoint: Endpoint) {
        self.path_failed(owner, endpoint);
        let association = self.associations.get_mut(&owner);
        if let Some(path) = association.and_then(|a| a.path(endpoint)) {
            path.probe_at = now + FOREIGN_AGAIN;
        }
        self.schedule(owner);
    }

    /// A peer's link goes to this address from now on.
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
