//! Attach: adoption of the workers' sessions, and the resynchronisation that follows.
//!
//! ```text
//! begin_attach ──▶ Collecting: SnapshotRequest to all, Snapshot… from all (or the deadline, once more)
//!              ──▶ Resync: begin, own address, peers, Retain of every lane that stays, event ResyncFib
//! finish_resync ─▶ Attached: end; what was not named is swept
//! ```
//!
//! The snapshot replaces the engine's earlier state: a lane that no worker names has ended. Session epochs
//! continue from the highest one seen, so that new sessions are newer everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyphae_shm::record::{
    FLAG_INITIATOR, Generation, LinkInstall, LocalInstall, Program, Punt, RETAIN_LINK,
    RETAIN_SESSION, ROLE_ACTIVE, ROLE_RECEIVE_ONLY, Retain, SessionInstall,
};
use hyphae_time::Nanos;
use hyphae_wire::guard::Token;

use hyphae_wire::{AddressPair, PublicKey, SessionIndex, Suite, WorkerId};
use zerocopy::little_endian::{U16, U32, U64};

use crate::association::Association;
use crate::attach_phase::{Adopted, AttachPhase, Collected};
use crate::engine::Timer;
use crate::event::Direction;
use crate::handshake::HalfOpens;
use crate::ids::{LaneRef, Owner};
use crate::index::Indices;
use crate::keys::Kind;
use crate::session::{LaneState, Session};
use crate::{DownReason, Event, Overlay};

/// Time to wait for the snapshots of all workers. Missing ones are requested once more, because the punt ring
/// may lose records.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_millis(250);
const SNAPSHOT_ATTEMPTS: u32 = 2;
/// Slots with an unknown past rest this much longer than the age limit.
const UNKNOWN_REST: Duration = Duration::from_secs(20);

impl Overlay {
    /// Adopts the sessions of a dataplane: requests snapshots, retains what they name, and resynchronises. Call
    /// it once per attach, before any other input.
    pub fn begin_attach(&mut self, now: Nanos, generation: u64) {
        let missing: BTreeSet<_> = (0..self.workers).map(WorkerId).collect();
        self.phase = AttachPhase::Collecting(Box::new(Collected {
            generation,
            attempts: 1,
            missing: missing.clone(),
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            remotes: BTreeMap::new(),
        }));
        // Handshakes in flight belong to the previous attach.
        let outgoing: Vec<_> = self.outgoing.keys().copied().collect();
        for id in outgoing {
            self.abandon(id);
        }
        self.half_opens = HalfOpens::new(
            self.config.half_open_max,
            self.config.half_open_per_source_max,
        );
        self.timers.set(Timer::HalfOpens, Nanos::NEVER);
        self.request_snapshots(now, generation, missing);
    }

    /// Ends the resynchronisation: call it when every FIB entry is pushed after [`Event::ResyncFib`].
    pub fn finish_resync(&mut self, _now: Nanos) {
        if let AttachPhase::Resync(generation) = self.phase {
            self.phase = AttachPhase::Attached;
            let generation = Generation {
                generation: U64::new(generation),
            };
            self.output
                .program_all(self.workers, &Program::ResyncEnd(&generation));
        }
    }

    /// Whether the workers' state is adopted and the resynchronisation has ended.
    pub fn is_attached(&self) -> bool {
        matches!(self.phase, AttachPhase::Attached)
    }

    /// Whether peers and sessions are handled: from the resynchronisation on.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.phase, AttachPhase::Resync(_) | AttachPhase::Attached)
    }

    fn request_snapshots(&mut self, now: Nanos, generation: u64, from: BTreeSet<WorkerId>) {
        let generation = Generation {
            generation: U64::new(generation),
        };
        for worker in from {
            self.output
                .program(worker, &Program::SnapshotRequest(&generation));
        }
        self.timers.set(Timer::Attach, now + SNAPSHOT_TIMEOUT);
    }

    /// Handles a snapshot record; false for any other.
    pub(crate) fn handle_snapshot(
        &mut self,
        now: Nanos,
        worker: WorkerId,
        punt: &Punt<'_>,
    ) -> bool {
        let AttachPhase::Collecting(collected) = &mut self.phase else {
            return false;
        };
        match punt {
            Punt::SnapshotPeer(peer) => {
                collected.peers.insert(peer.peer.get(), peer.key);
            }
            Punt::SnapshotLink(link) => collected.link(link),
            Punt::SnapshotSession(session) => collected.session(session),
            Punt::SnapshotEnd(end) => {
                if end.generation.get() == collected.generation {
                    collected.missing.remove(&worker);
                    if collected.missing.is_empty() {
                        self.adopt(now);
                    }
                }
            }
            Punt::NeedSession(_)
            | Punt::EndpointMoved(_)
            | Punt::LaneActive(_)
            | Punt::RekeyDue(_)
            | Punt::LaneReset(_)
            | Punt::Handshake(..)
            | Punt::LinkLocal(..)
            | Punt::Service(..)
            | Punt::LargeFrames(_)
            | Punt::LinkTooBig(_)
            | Punt::PathTooBig(_) => return false,
        }
        true
    }

    /// Handles the deadline of the snapshots.
    pub(crate) fn attach_deadline(&mut self, now: Nanos) {
        let AttachPhase::Collecting(collected) = &mut self.phase else {
            return;
        };
        if collected.attempts < SNAPSHOT_ATTEMPTS {
            collected.attempts += 1;
            let (generation, missing) = (collected.generation, collected.missing.clone());
            self.request_snapshots(now, generation, missing);
        } else {
            self.adopt(now);
        }
    }

    /// Replaces the engine's state by the snapshot, and begins the resynchronisation.
    fn adopt(&mut self, now: Nanos) {
        let generation = match &self.phase {
            AttachPhase::Collecting(collected) => collected.generation,
            AttachPhase::Idle | AttachPhase::Resync(_) | AttachPhase::Attached => return,
        };
        let phase = std::mem::replace(&mut self.phase, AttachPhase::Resync(generation));
        let AttachPhase::Collecting(collected) = phase else {
            return;
        };
        self.timers.set(Timer::Attach, Nanos::NEVER);
        let before = std::mem::take(&mut self.associations);
        for owner in before.keys() {
            self.timers.set(Timer::Association(*owner), Nanos::NEVER);
        }
        self.lanes.clear();
        self.finished.clear();
        self.peer_numbers.clear();
        self.link_indices = Indices::new(self.workers, self.config.link_slots());
        self.session_indices = Indices::new(self.workers, self.config.session_slots);

        let Collected {
            peers,
            sessions,
            remotes,
            ..
        } = *collected;
        for ((owner, epoch), lanes) in sessions {
            let key = match owner {
                Owner::Peer(peer) => peers.get(&peer),
                Owner::Remote(_) => remotes.get(&owner).map(|(key, _)| key),
            };
            if let Some(key) = key {
                self.adopt_session(now, owner, *key, epoch, &lanes);
            }
        }
        for (owner, (_, mtu)) in remotes {
            if let Some(association) = self.associations.get_mut(&owner) {
                association.mtu = mtu;
            }
        }
        self.begin_resync(now, generation);
        let owners: Vec<_> = self.associations.keys().copied().collect();
        for owner in &owners {
            self.retain(*owner);
        }
        self.report_lost(&before);
        for owner in owners {
            self.resume(now, owner, before.get(&owner));
        }
        self.enforce_policy(now);
        let targets: Vec<_> = self.targets.keys().copied().collect();
        for id in targets {
            self.find_target(id);
            self.refresh_paths_of(now, id, None);
            self.connect_target(now, id);
        }
        self.output.event(Event::ResyncFib { generation });
    }

    fn adopt_session(
        &mut self,
        now: Nanos,
        owner: Owner,
        key: PublicKey,
        epoch: u32,
        lanes: &BTreeMap<u16, Adopted>,
    ) {
        let Some(first) = lanes.get(&0) else { return };
        let expires = first.created + self.config.reject_after;
        let complete = (0u16..)
            .zip(lanes.keys())
            .all(|(expected, lane)| expected == *lane);
        if !complete || expires <= now {
            return;
        }
        let rested = now + self.config.reject_after + UNKNOWN_REST;
        let (kind, receive_only) = (owner.kind(), first.role == ROLE_RECEIVE_ONLY);
        let taken = lanes
            .values()
            .filter(|lane| self.indices(kind).adopt(lane.receive, rested))
            .count();
        if taken != lanes.len() {
            return;
        }
        for (number, lane) in lanes {
            let lane_ref = LaneRef {
                owner,
                epoch,
                lane: *number,
            };
            self.lanes.insert((kind, lane.receive.0), lane_ref);
        }
        let state = |lane: &Adopted| LaneState {
            receive: lane.receive,
            send: lane.send,
            reset: lane.reset,
            endpoint: lane.addresses.remote,
            active: lane.role == ROLE_ACTIVE,
            heard: now,
        };
        let session = Session {
            epoch,
            direction: first.direction,
            suite: first.suite,
            created: first.created,
            confirmed: None,
            receive_only,
            remove_at: expires,
            retiring: receive_only,
            lanes: lanes.values().map(state).collect(),
            local: first.addresses.local,
            handshake: None,
        };
        let fresh = || Association::new(Some(key), key.address(), first.addresses.remote);
        self.associations
            .entry(owner)
            .or_insert_with(fresh)
            .adopt(session);
        if let Owner::Peer(peer) = owner {
            self.peer_numbers.insert(key, peer);
        }
    }

    fn begin_resync(&mut self, now: Nanos, generation: u64) {
        let generation = Generation {
            generation: U64::new(generation),
        };
        self.output
            .program_all(self.workers, &Program::ResyncBegin(&generation));
        let local = LocalInstall {
            address: self.address,
            mtu: U16::new(self.config.mtu),
            reserved: [0; 6],
            key: self.key,
        };
        self.output
            .program_all(self.workers, &Program::LocalInstall(&local));
        self.arm_guard(now);
    }

    /// Retains a node's entries in the resynchronisation.
    fn retain(&mut self, owner: Owner) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let key = association.key;
        let lanes: Vec<_> = association
            .sessions
            .iter()
            .flat_map(|session| session.lanes.iter().map(|lane| lane.receive))
            .collect();
        if let (Owner::Peer(peer), Some(key)) = (owner, key) {
            self.install_peer(peer, key);
        }
        let retain_kind = match owner.kind() {
            Kind::Link => RETAIN_LINK,
            Kind::EndToEnd => RETAIN_SESSION,
        };
        for receive in lanes {
            let retain = Retain {
                kind: U32::new(retain_kind),
                id: U32::new(receive.0),
            };
            self.output
                .program(receive.worker(), &Program::Retain(&retain));
        }
    }

    /// Resumes an adopted association. The session in use is the newest one whose first lane sends, else the
    /// newest that may send; probes soon show whether it works.
    fn resume(&mut self, now: Nanos, owner: Owner, before: Option<&Association>) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let usable = || {
            association
                .sessions
                .iter()
                .rev()
                .filter(|s| !s.receive_only)
        };
        let sending = usable().find(|s| s.lanes.first().is_some_and(|lane| lane.active));
        let Some((epoch, created, outbound, lanes_idle)) =
            sending.or_else(|| usable().next()).map(|s| {
                (
                    s.epoch,
                    s.created,
                    s.outbound(),
                    s.lanes_active() < s.lane_count(),
                )
            })
        else {
            self.settle(now, owner, DownReason::Lost);
            return;
        };
        let rekey_at = self.rekey_time(created, outbound);
        let probe_at = now + self.rng.jitter(self.config.keepalive / 5, 0, 100);
        let grace = now + self.config.grace;
        let overdue = now.since(created) >= self.config.rekey_after;
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        for session in &mut association.sessions {
            if session.epoch == epoch {
                session.confirmed = Some(created);
                association.endpoint = session
                    .lanes
                    .first()
                    .map(|lane| lane.endpoint)
                    .unwrap_or_default();
            } else {
                session.remove_at = session.remove_at.min(grace);
                session.retiring |= session.epoch < epoch;
            }
        }
        association.rekey_at = match owner.kind() {
            Kind::Link => rekey_at,
            // The worker has reported it to the previous control plane.
            Kind::EndToEnd if overdue => rekey_at,
            Kind::EndToEnd => Nanos::NEVER,
        };
        association.liveness.heard = now;
        association.liveness.probe_at = probe_at;
        if outbound && lanes_idle {
            association.activate_at = probe_at;
        }
        if let Some(before) = before.filter(|before| before.key == association.key) {
            association.up = before.up;
            association.since = before.since;
            association.liveness.rtt = before.liveness.rtt;
            association.handshakes = before.handshakes;
            association.starts = before.starts.clone();
        }
        self.rise(now, owner);
        self.begin_search(now, owner);
        self.schedule(owner);
    }

    /// Reports nodes that were up before this attach and were not adopted.
    fn report_lost(&mut self, before: &BTreeMap<Owner, Association>) {
        for (owner, association) in before.iter().filter(|(_, a)| a.up) {
            let Some(key) = association.key else { continue };
            let reason = DownReason::Lost;
            if self
                .associations
                .get(owner)
                .is_some_and(|now| now.key == Some(key))
            {
                continue;
            }
            self.output.event(match owner {
                Owner::Peer(peer) => Event::PeerDown {
                    peer: *peer,
                    key,
                    reason,
                },
                Owner::Remote(_) => Event::SessionDown {
                    address: key.address(),
                    key,
                    reason,
                },
            });
        }
    }
}

impl Collected {
    fn link(&mut self, link: &LinkInstall) {
        let owner = Owner::Peer(link.peer.get());
        let adopted = Adopted::new(
            (link.receive_index.get(), link.send_index.get()),
            link.reset,
            (link.suite, link.role, link.flags),
            AddressPair {
                remote: link.endpoint,
                local: link.local,
            },
            link.created.get(),
        );
        self.add(owner, link.epoch.get(), link.lane.get(), adopted);
    }

    fn session(&mut self, session: &SessionInstall) {
        let owner = Owner::Remote(session.address.subnet_id());
        self.remotes.insert(owner, (session.key, session.mtu.get()));
        let adopted = Adopted::new(
            (session.receive_index.get(), session.send_index.get()),
            session.reset,
            (session.suite, session.role, session.flags),
            AddressPair::default(),
            session.created.get(),
        );
        self.add(owner, session.epoch.get(), session.lane.get(), adopted);
    }

    fn add(&mut self, owner: Owner, epoch: u32, lane: u16, adopted: Option<Adopted>) {
        if let Some(adopted) = adopted {
            self.sessions
                .entry((owner, epoch))
                .or_default()
                .insert(lane, adopted);
        }
    }
}

impl Adopted {
    fn new(
        (receive, send): (u32, u32),
        reset: Token,
        (suite, role, flags): (u8, u8, u8),
        addresses: AddressPair,
        created: u64,
    ) -> Option<Self> {
        let outbound = flags & FLAG_INITIATOR != 0;
        Some(Self {
            receive: SessionIndex(receive),
            send: SessionIndex(send),
            reset,
            suite: Suite::from_code(suite)?,
            role,
            direction: if outbound {
                Direction::Outbound
            } else {
                Direction::Inbound
            },
            addresses,
            created: Nanos(created),
        })
    }
}
