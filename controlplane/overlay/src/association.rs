//! What becomes of the sessions with a node: confirmation, renewal, retirement, going up and down.

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{AddressPair, Endpoint};

use crate::engine::Timer;
use crate::handshake::{CONFIRM_TIMEOUT, Carrier, Goal, Pace};
use crate::install::FIRST_WORKER;
use crate::keys::Kind;
use crate::pmtu::Search;
use crate::session::Owner;
use crate::{DownReason, Event, Overlay};

/// No new attempt at an end-to-end session for this long after one that failed.
const HOLD: Duration = Duration::from_secs(2);
/// First interval between attempts to activate the lanes beyond the first.
const ACTIVATE_MIN: Duration = Duration::from_millis(250);
/// Attempts before only the regular probes are left.
const ACTIVATIONS_MAX: u32 = 5;

impl Overlay {
    /// Something authentic came on a lane, so the other end uses it.
    pub(crate) fn heard(&mut self, now: Nanos, kind: Kind, index: u32, received: Nanos) {
        let Some(lane) = self.lanes.get(&(kind, index)).copied() else {
            return;
        };
        let Some(association) = self.associations.get_mut(&lane.owner) else {
            return;
        };
        association.liveness.alive(received);
        let outgoing = association.outgoing;
        let Some(session) = association.session(lane.epoch) else {
            return;
        };
        if let Some(state) = session.lanes.get_mut(usize::from(lane.lane)) {
            state.active = !session.receive_only;
            state.heard = state.heard.max(received);
        }
        if session.confirmed.is_none() && !session.receive_only {
            // A handshake that this confirms ends; another one with the same node goes on.
            let confirms = outgoing.filter(|id| self.outgoing.get(id).is_some_and(|o| {
                matches!(o.stage, crate::handshake::Stage::Confirm { epoch, .. } if epoch == lane.epoch)
            }));
            let ended = confirms.and_then(|id| self.abandon(id));
            let fresh = ended.is_none_or(|o| match o.goal {
                Goal::Target(_) | Goal::Probe { .. } => true,
                Goal::Node { fresh, .. } => fresh,
            });
            self.confirmed(now, lane.owner, lane.epoch, fresh);
        }
    }

    /// Session `epoch` works both ways. `fresh` when it does not renew one that worked.
    pub(crate) fn confirmed(&mut self, now: Nanos, owner: Owner, epoch: u32, fresh: bool) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let newest = association
            .current()
            .is_none_or(|current| current.epoch < epoch);
        let Some(session) = association.session(epoch) else {
            return;
        };
        session.confirmed = Some(now);
        if !newest {
            self.schedule(owner);
            return;
        }
        session.retiring = false;
        session.remove_at = session.created + self.config.reject_after;
        let (outbound, created) = (session.outbound(), session.created);
        let through = session.lanes.first().map(|lane| lane.endpoint);
        let lanes = session.lane_count();
        // The side that began it may learn only by a repetition that it works, and sends on the
        // previous one until then.
        let late = if outbound {
            Duration::ZERO
        } else {
            CONFIRM_TIMEOUT
        };
        association.retire_older(epoch, now + self.config.grace + late);
        association.handshakes += 1;
        self.handshakes.finished += 1;
        match owner.kind() {
            Kind::Link => self.handshakes.links_renewed += u64::from(!fresh),
            Kind::EndToEnd => self.handshakes.sessions_renewed += u64::from(!fresh),
        }
        let rekey_at = match owner.kind() {
            Kind::Link => self.rekey_time(created, outbound),
            // End to end, only a session that carries traffic is renewed: the workers say which.
            Kind::EndToEnd => Nanos::NEVER,
        };
        let probe_at = now + self.rng.jitter(self.probe_interval(owner.kind()), 50, 100);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        association.rekey_at = rekey_at;
        association.liveness.missed = 0;
        association.liveness.outstanding.clear();
        association.liveness.alive(now);
        association.liveness.probe_at = probe_at;
        association.hold_until = Nanos(0);
        association.activations = 0;
        association.activate_at = if outbound && lanes > 1 {
            now
        } else {
            Nanos::NEVER
        };
        if let (Owner::Peer(_), true, Some(endpoint)) = (owner, outbound, through) {
            self.use_endpoint(owner, endpoint);
        }
        let down = self.associations.get(&owner).is_some_and(|a| !a.up);
        self.rise(now, owner);
        if down {
            self.begin_search(now, owner);
        }
        self.search_due(now, owner);
        self.activate_lanes(now, owner);
        self.tell_duplicate(now, owner, epoch);
        if fresh {
            self.renew_beyond(now, owner);
        }
        self.send_pings(now, owner);
        self.schedule(owner);
    }

    /// Says that a node is up, unless it was.
    pub(crate) fn rise(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let Some(key) = association.key else { return };
        let endpoint = association.endpoint;
        if !std::mem::replace(&mut association.up, true) {
            association.since = Some(now);
            self.output.event(match owner {
                Owner::Peer(peer) => Event::PeerUp {
                    peer,
                    key,
                    endpoint,
                },
                Owner::Remote(_) => Event::SessionUp {
                    address: key.address(),
                    key,
                },
            });
        }
        if let Owner::Peer(_) = owner {
            self.satisfy_targets(now, key);
            self.refresh_paths(now, key);
        }
    }

    /// A peer came back without its link sessions: it will not know its end-to-end session either.
    fn renew_beyond(&mut self, now: Nanos, owner: Owner) {
        let Owner::Peer(_) = owner else { return };
        let Some(key) = self.associations.get(&owner).and_then(|a| a.key) else {
            return;
        };
        let remote = Owner::Remote(key.address().subnet_id());
        if self.associations.get(&remote).is_some_and(|a| a.up) {
            self.renew(now, remote, true);
        }
    }

    /// When a session is renewed: by the side that began it soon before the age at which lanes
    /// become due, by the other only if nothing came.
    pub(crate) fn rekey_time(&mut self, created: Nanos, outbound: bool) -> Nanos {
        if outbound {
            created + self.rng.jitter(self.config.rekey_after, 90, 100)
        } else {
            created + self.config.rekey_after + self.rng.jitter(self.rekey_margin() / 4, 100, 150)
        }
    }

    /// Time between due and dead.
    pub(crate) fn rekey_margin(&self) -> Duration {
        self.config.reject_after - self.config.rekey_after
    }

    /// A worker says that a lane which carries traffic is due.
    pub(crate) fn rekey_due(&mut self, now: Nanos, kind: Kind, index: u32) {
        let Some(lane) = self.lanes.get(&(kind, index)).copied() else {
            return;
        };
        let margin = self.rekey_margin();
        let Some(association) = self.associations.get_mut(&lane.owner) else {
            return;
        };
        let Some(session) = association.current().filter(|s| s.epoch == lane.epoch) else {
            return;
        };
        if session.outbound() {
            association.rekey_at = Nanos::NEVER;
            self.renew(now, lane.owner, false);
        } else {
            association.rekey_at = association.rekey_at.min(now + margin / 4);
        }
        self.schedule(lane.owner);
    }

    /// Begins a handshake with a known node, unless one is in flight.
    pub(crate) fn renew(&mut self, now: Nanos, owner: Owner, fresh: bool) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let endpoints = match owner {
            Owner::Peer(_) => {
                let configured = association.key.map(|key| {
                    let targets = self.targets_of(key).filter_map(|id| self.targets.get(&id));
                    targets
                        .flat_map(|target| target.addresses.iter().copied())
                        .collect::<Vec<_>>()
                });
                let used = association.endpoint;
                let mut endpoints = Vec::new();
                for endpoint in [used].into_iter().chain(configured.unwrap_or_default()) {
                    if !endpoint.is_unset() && !endpoints.contains(&endpoint) {
                        endpoints.push(endpoint);
                    }
                }
                // What has gone silent is asked last.
                if association.liveness.missed > 0 && endpoints.first() == Some(&used) {
                    endpoints.rotate_left(1);
                }
                endpoints
            }
            Owner::Remote(_) => Vec::new(),
        };
        let lively = self
            .associations
            .get(&owner)
            .is_some_and(|a| a.liveness.missed == 0);
        self.renew_over(now, owner, endpoints, fresh, !fresh && lively);
    }

    /// The same, for a peer through these addresses only.
    pub(crate) fn renew_through(
        &mut self,
        now: Nanos,
        owner: Owner,
        endpoints: Vec<Endpoint>,
        fresh: bool,
    ) {
        self.renew_over(now, owner, endpoints, fresh, false);
    }

    /// The same; `sealed` inside the session that is renewed before anywhere else, where no stranger's
    /// flood is in the way.
    fn renew_over(
        &mut self,
        now: Nanos,
        owner: Owner,
        endpoints: Vec<Endpoint>,
        fresh: bool,
        sealed: bool,
    ) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        if association.outgoing.is_some() {
            return;
        }
        // A peer that dialled here may be reachable only from the address that it dialled.
        let local = association.current().map(|session| session.local);
        let carrier = |endpoint| {
            let local = local.filter(|_| endpoint == association.endpoint);
            let addresses = AddressPair {
                remote: endpoint,
                local: local.unwrap_or_default(),
            };
            Carrier::back(FIRST_WORKER, addresses)
        };
        let inside = sealed.then(|| association.sealed(owner)).flatten();
        let (outside, pace): (Vec<_>, _) = match owner {
            Owner::Peer(_) => (endpoints.into_iter().map(carrier).collect(), Pace::BRISK),
            Owner::Remote(_) => {
                let carrier = Carrier::Overlay {
                    worker: FIRST_WORKER,
                    address: association.address,
                    through: None,
                };
                (vec![carrier], Pace::ROUTED)
            }
        };
        let carriers = inside.into_iter().chain(outside).collect();
        let outgoing = self.begin(now, Goal::Node { owner, fresh }, carriers, pace);
        if let Some(association) = self.associations.get_mut(&owner) {
            association.outgoing = outgoing;
        }
    }

    /// A handshake with a known node came to nothing.
    pub(crate) fn renewal_failed(&mut self, now: Nanos, owner: Owner) {
        let retry = now + self.rng.jitter(self.rekey_margin() / 8, 75, 125);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if association.up {
            association.rekey_at = retry;
        } else if let Owner::Remote(_) = owner {
            association.hold_until = now + HOLD;
            association.pings.clear();
            let address = association.address;
            self.drop_pending(address);
            self.output.event(Event::SessionFailed { address });
        }
        self.settle(now, owner, DownReason::Dead);
    }

    /// Removes all sessions with a node.
    pub(crate) fn end_sessions(
        &mut self,
        now: Nanos,
        owner: Owner,
        close: bool,
        reason: DownReason,
    ) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let epochs: Vec<_> = association.sessions.iter().map(|s| s.epoch).collect();
        for epoch in epochs {
            self.remove_session(now, owner, epoch, close);
        }
        self.settle(now, owner, reason);
    }

    /// Draws the consequences of a session or handshake that has ended.
    pub(crate) fn settle(&mut self, now: Nanos, owner: Owner, reason: DownReason) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let key = association.key;
        if association.up && association.current().is_none() {
            association.up = false;
            association.since = Some(now);
            association.rekey_at = Nanos::NEVER;
            association.activate_at = Nanos::NEVER;
            association.liveness.probe_at = Nanos::NEVER;
            association.search = Search::default();
            self.clear_limit(owner);
            // They came inside of a session that is gone.
            self.forget_renewals(now, owner);
            if let Some(key) = key {
                self.output.event(match owner {
                    Owner::Peer(peer) => Event::PeerDown { peer, key, reason },
                    Owner::Remote(_) => Event::SessionDown {
                        address: key.address(),
                        key,
                        reason,
                    },
                });
                if let Owner::Peer(_) = owner {
                    self.reconnect_targets(now, key);
                }
            }
        }
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let forget = association.is_idle()
            && match owner {
                Owner::Peer(_) => key.is_none_or(|key| self.targets_of(key).next().is_none()),
                Owner::Remote(_) => association.hold_until <= now,
            };
        if forget {
            self.forget(now, owner);
        } else {
            self.schedule(owner);
        }
    }

    /// Drops the memory of a node.
    fn forget(&mut self, now: Nanos, owner: Owner) {
        self.forget_renewals(now, owner);
        self.timers.set(Timer::Association(owner), Nanos::NEVER);
        let Some(association) = self.associations.remove(&owner) else {
            return;
        };
        if let (Owner::Peer(peer), Some(key)) = (owner, association.key) {
            self.peer_numbers.remove(&key);
            self.uninstall_peer(peer);
        }
    }

    pub(crate) fn schedule(&mut self, owner: Owner) {
        let at = self
            .associations
            .get(&owner)
            .map_or(Nanos::NEVER, |a| a.deadline());
        self.timers.set(Timer::Association(owner), at);
    }

    /// Does what is due for a node.
    pub(crate) fn association_due(&mut self, now: Nanos, owner: Owner) {
        let (grace, reject_after) = (self.config.grace, self.config.reject_after);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        // Some lane of the session in use may still stand by, while its predecessor carries
        // traffic.
        let partial = association
            .current()
            .is_some_and(|s| s.lanes_active() < s.lane_count());
        let mut ended = Vec::new();
        for session in association
            .sessions
            .iter_mut()
            .filter(|s| s.remove_at <= now)
        {
            let limit = session.created + reject_after;
            let replaced = session.retiring && session.confirmed.is_some() && !session.receive_only;
            if partial && replaced && now < limit {
                session.remove_at = limit.min(now + grace);
            } else {
                ended.push((session.epoch, session.retiring));
            }
        }
        for (epoch, retired) in ended {
            self.remove_session(now, owner, epoch, retired);
        }
        self.settle(now, owner, DownReason::Expired);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if association.rekey_at <= now {
            association.rekey_at = Nanos::NEVER;
            self.renew(now, owner, false);
        }
        self.activate_lanes(now, owner);
        self.probe_due(now, owner);
        self.search_due(now, owner);
        self.limit_due(now, owner);
        self.pings_due(now, owner);
        self.paths_due(now, owner);
        self.settle(now, owner, DownReason::Dead);
    }

    /// Sends a first frame on every lane that stands by, so that both ends use it (and a NAT lets
    /// the other end's frames pass). The other end's worker answers.
    pub(crate) fn activate_lanes(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self
            .associations
            .get(&owner)
            .filter(|a| a.activate_at <= now)
        else {
            return;
        };
        let idle: Vec<_> = association.current().map_or_else(Vec::new, |session| {
            session
                .lanes
                .iter()
                .skip(1)
                .filter(|l| !l.active)
                .map(|l| l.receive)
                .collect()
        });
        for receive in &idle {
            self.send_probe(now, owner, *receive);
        }
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        association.activations += 1;
        let done = idle.is_empty() || association.activations > ACTIVATIONS_MAX;
        association.activate_at = if done {
            Nanos::NEVER
        } else {
            let wait = ACTIVATE_MIN * (1 << association.activations.min(5)) / 2;
            now + self.rng.jitter(wait, 75, 125)
        };
    }

    /// A lane's frames come from a new address.
    pub(crate) fn endpoint_moved(&mut self, peer: u32, lane: u16, endpoint: Endpoint) {
        let Some(association) = self.associations.get_mut(&Owner::Peer(peer)) else {
            return;
        };
        for session in &mut association.sessions {
            if let Some(state) = session.lanes.get_mut(usize::from(lane)) {
                state.endpoint = endpoint;
            }
        }
        if lane == 0 {
            self.use_endpoint(Owner::Peer(peer), endpoint);
        }
    }
}
