//! Life cycle of the sessions with a node: confirmation, renewal, retirement, up and down.

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{AddressPair, Endpoint};

use crate::engine::Timer;
use crate::handshake::{Carrier, Goal, RetransmitSchedule};
use crate::ids::FIRST_WORKER;
use crate::ids::Owner;
use crate::keys::Kind;
use crate::{DownReason, Event, Overlay};

/// Pause after a failed attempt at an end-to-end session.
const HOLD: Duration = Duration::from_secs(2);
impl Overlay {
    /// Handles an authentic frame on a lane: the other end uses the session.
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
            // Ends the handshake that this confirms, and no other with the same node.
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

    /// Session `epoch` works in both directions. `fresh` when it does not renew one that worked.
    pub(crate) fn confirmed(&mut self, now: Nanos, owner: Owner, epoch: u32, fresh: bool) {
        let association = self.associations.get_mut(&owner);
        let Some((outbound, created)) =
            association.and_then(|a| a.confirm(now, epoch, &self.config))
        else {
            self.schedule(owner);
            return;
        };
        self.handshakes.finished += 1;
        match owner.kind() {
            Kind::Link => self.handshakes.links_renewed += u64::from(!fresh),
            Kind::EndToEnd => self.handshakes.sessions_renewed += u64::from(!fresh),
        }
        let rekey_at = match owner.kind() {
            Kind::Link => self.rekey_time(created, outbound),
            // End to end, only a session that carries traffic is renewed; the workers report it.
            Kind::EndToEnd => Nanos::NEVER,
        };
        let probe_at = now + self.rng.jitter(self.probe_interval(owner.kind()), 50, 100);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        association.rekey_at = rekey_at;
        association.liveness.restart(now, probe_at);
        let down = !association.up;
        let lane = association.current().and_then(|s| s.lanes.first());
        let through = lane.map(|lane| lane.endpoint);
        if let (Owner::Peer(_), true, Some(endpoint)) = (owner, outbound, through) {
            self.use_endpoint(owner, endpoint);
        }
        self.rise(now, owner);
        if down {
            self.begin_search(now, owner);
        }
        self.search_due(now, owner);
        self.activate_lanes(now, owner);
        self.notify_duplicate(now, owner, epoch);
        if fresh {
            self.renew_beyond(now, owner);
        }
        self.send_pings(now, owner);
        self.schedule(owner);
    }

    /// Reports a node as up, unless it was.
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

    /// Renews the end-to-end session with a peer that lost its link sessions, and so that one too.
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

    /// Renewal time: for the initiator shortly before the age at which lanes become due, for the responder
    /// later, in case the initiator does not.
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

    /// A worker reports that a lane with traffic is due for renewal.
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
                // A silent address is tried last.
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

    /// The same, through these addresses of a peer only.
    pub(crate) fn renew_through(
        &mut self,
        now: Nanos,
        owner: Owner,
        endpoints: Vec<Endpoint>,
        fresh: bool,
    ) {
        self.renew_over(now, owner, endpoints, fresh, false);
    }

    /// The same. `sealed`: inside the session that is renewed first, where no flood of unauthenticated sources
    /// interferes.
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
        // A peer that connected to a local address may be reachable only from there.
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
            Owner::Peer(_) => (
                endpoints.into_iter().map(carrier).collect(),
                RetransmitSchedule::NEIGHBOUR,
            ),
            Owner::Remote(_) => {
                let carrier = Carrier::Overlay {
                    worker: FIRST_WORKER,
                    address: association.address,
                    through: None,
                };
                (vec![carrier], RetransmitSchedule::ROUTED)
            }
        };
        let carriers = inside.into_iter().chain(outside).collect();
        let outgoing = self.begin(now, Goal::Node { owner, fresh }, carriers, pace);
        if let Some(association) = self.associations.get_mut(&owner) {
            association.outgoing = outgoing;
        }
    }

    /// A renewal failed.
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

    /// Updates state after a session or handshake has ended.
    pub(crate) fn settle(&mut self, now: Nanos, owner: Owner, reason: DownReason) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let key = association.key;
        if association.up && association.current().is_none() {
            association.down(now);
            self.clear_limit(owner);
            // They came inside of the ended session.
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

    /// Removes the association with a node.
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

    /// Handles the expired timer of a node.
    pub(crate) fn association_due(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let ended = association.expire(now, &self.config);
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

    /// Sends a first frame on every standby lane, which activates it at both ends (and opens NAT mappings). The
    /// other end's worker answers.
    pub(crate) fn activate_lanes(&mut self, now: Nanos, owner: Owner) {
        let association = self.associations.get_mut(&owner);
        let lanes = association.map(|a| a.activate(now, &mut self.rng));
        for receive in lanes.unwrap_or_default() {
            self.send_probe(now, owner, receive);
        }
    }

    /// A lane's frames come from a new address.
    pub(crate) fn endpoint_moved(&mut self, peer: u32, lane: u16, endpoint: Endpoint) {
        let owner = Owner::Peer(peer);
        if let Some(association) = self.associations.get_mut(&owner) {
            association.move_lane(lane, endpoint);
            if lane == 0 {
                self.use_endpoint(owner, endpoint);
            }
        }
    }
}
