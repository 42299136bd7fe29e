//! The engine: its state, its public calls, and where each input goes.
//!
//! The mechanisms are in sibling files, each an `impl Overlay`: `initiate` and `respond`
//! (handshakes),
//! `install` (lanes in the workers), `association` (up, down, renewal), `target` (configured
//! peers),
//! `remote` (end-to-end sessions on demand), `liveness` (probes and control messages), `adoption`
//! (attach and resync), `pmtu` and `path` (what links and paths carry, traces), `status`.

use std::collections::BTreeMap;

use hyphae_shm::record::{LANE_LINK, LANE_SESSION, Punt};
use hyphae_time::Nanos;
use hyphae_wire::guard::{self, SessionCookie, SessionReset};
use hyphae_wire::handshake::Message;
use hyphae_wire::index::WORKERS_MAX;

use hyphae_wire::{Endpoint, FrameKind, OverlayAddress, PublicKey, Service, WorkerId};

use zeroize::Zeroizing;

use crate::adoption::Phase;
use crate::guard::CookieSecrets;
use crate::handshake::{Carrier, HalfOpens, Outgoing};
use crate::index::Indices;
use crate::install::LaneRef;
use crate::keys::Kind;
use crate::limit::Trace;
use crate::program::Output;
use crate::rng::Rng;
use crate::session::{Association, Owner};
use crate::target::Target;
use crate::{Config, ConfiguredPeer, Event, Handshakes, Live, OwnedProgram, PeerConfig};
use hyphae_time::Timers;

/// Peering, handshakes and sessions of one node.
pub struct Overlay {
    pub(crate) config: Config,
    pub(crate) workers: u16,
    pub(crate) key: PublicKey,
    pub(crate) address: OverlayAddress,
    pub(crate) rng: Rng,
    pub(crate) output: Output,
    pub(crate) timers: Timers<Timer>,
    pub(crate) phase: Phase,
    pub(crate) link_indices: Indices,
    pub(crate) session_indices: Indices,
    /// Lanes by our index.
    pub(crate) lanes: BTreeMap<(Kind, u32), LaneRef>,
    pub(crate) targets: BTreeMap<ConfiguredPeer, Target>,
    pub(crate) associations: BTreeMap<Owner, Association>,
    pub(crate) peer_numbers: BTreeMap<PublicKey, u32>,
    pub(crate) peer_number_last: u32,
    /// Handshakes begun here, by our number.
    pub(crate) outgoing: BTreeMap<u32, Outgoing>,
    pub(crate) half_opens: HalfOpens,
    /// Finished handshakes begun by others, by our number, while their sessions last.
    pub(crate) finished: BTreeMap<u32, (Owner, u32)>,
    pub(crate) probe_last: u64,
    /// Behind reset tokens and handshake numbers ([`hyphae_wire::guard`]).
    pub(crate) node_secret: Zeroizing<[u8; 32]>,
    pub(crate) cookies: CookieSecrets,
    /// Traces that wait for a report, by the number that it will quote.
    pub(crate) traces: BTreeMap<u64, Trace>,
    pub(crate) handshakes: Handshakes,
    /// Number of the dataplane's start.
    pub(crate) instance: u64,
    /// When two hosts with one key were last thought of: what is shown of them ages by it.
    pub(crate) clock: Nanos,
}

/// What has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    Attach,
    HalfOpens,
    Cookies,
    Outgoing(u32),
    Target(ConfiguredPeer),
    Association(Owner),
}

impl Overlay {
    /// An engine that knows nobody yet and does nothing before [`Self::begin_attach`]. `seed` must
    /// be random.
    ///
    /// # Panics
    /// When `config` names no port or more than 64, or times that contradict each other.
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let workers = u16::try_from(config.ports.len()).unwrap_or(u16::MAX);
        assert!(
            (1..=WORKERS_MAX).contains(&workers),
            "one port per worker, 1 to 64"
        );
        config.assert_times();
        let key = config.identity.public_key();
        let mut rng = Rng::new(seed);
        Self {
            workers,
            key,
            address: key.address(),
            output: Output::default(),
            timers: Timers::new(),
            phase: Phase::Idle,
            link_indices: Indices::new(workers, config.link_slots()),
            session_indices: Indices::new(workers, config.session_slots),
            lanes: BTreeMap::new(),
            targets: BTreeMap::new(),
            associations: BTreeMap::new(),
            peer_numbers: BTreeMap::new(),
            peer_number_last: 0,
            outgoing: BTreeMap::new(),
            half_opens: HalfOpens::new(config.half_open_max, config.half_open_per_source_max),
            finished: BTreeMap::new(),
            // Unlike those of a control plane before this one, whose answers may still come.
            probe_last: u64::from_le_bytes(rng.array()),
            traces: BTreeMap::new(),
            handshakes: Handshakes::default(),
            instance: u64::from_le_bytes(rng.array()) | 1,
            clock: Nanos(0),
            cookies: CookieSecrets::default(),
            rng,
            node_secret: Zeroizing::new(guard::node_secret(&config.identity)),
            config,
        }
    }

    /// Changes what can change while the engine runs.
    ///
    /// # Panics
    /// When times contradict each other.
    pub fn set_live(&mut self, live: &Live) {
        self.config.set_live(live);
        self.config.assert_times();
        self.link_indices.set_max(self.config.link_slots());
        self.half_opens
            .set_per_source_max(live.half_open_per_source_max);
    }

    /// What became of handshakes.
    pub fn handshakes(&self) -> Handshakes {
        self.handshakes
    }

    /// This node's key.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// This node's overlay address.
    pub fn address(&self) -> OverlayAddress {
        self.address
    }

    /// Keeps connecting to a peer. A known handle replaces the entry.
    pub fn add_peer(&mut self, now: Nanos, peer: PeerConfig) {
        self.add_target(now, peer);
    }

    /// New addresses of a configured peer: its name resolves differently now.
    pub fn set_addresses(&mut self, now: Nanos, id: ConfiguredPeer, addresses: Vec<Endpoint>) {
        self.set_target_addresses(now, id, addresses);
    }

    /// Entries that lead to a key.
    pub fn entries_of(&self, key: PublicKey) -> Vec<ConfiguredPeer> {
        self.targets_of(key).collect()
    }

    /// Forgets a configured peer; its link ends when no other entry leads to it. False when
    /// unknown.
    pub fn remove_peer(&mut self, now: Nanos, id: ConfiguredPeer) -> bool {
        self.remove_target(now, id)
    }

    /// Ends the link with a peer, configured or inbound, and forgets the entries that lead to it.
    /// It may connect again. False when there is none.
    pub fn remove_peer_by_key(&mut self, now: Nanos, key: &PublicKey) -> bool {
        self.remove_key(now, key)
    }

    /// Takes a record of a worker. Snapshot records count only while attaching, others only
    /// afterwards. Messages of the bus and packets of the routing protocol are left to others.
    pub fn handle_punt(&mut self, now: Nanos, worker: WorkerId, punt: &Punt<'_>) {
        if self.handle_snapshot(now, worker, punt) || !self.is_active() {
            return;
        }
        match punt {
            Punt::NeedSession(need) => self.need_session(now, need.address),
            Punt::EndpointMoved(moved) => {
                self.endpoint_moved(moved.peer.get(), moved.lane.get(), moved.endpoint);
            }
            Punt::LaneActive(event) => {
                if let Some(kind) = lane_kind(event.kind.get()) {
                    self.heard(now, kind, event.receive_index.get(), now);
                }
            }
            Punt::RekeyDue(event) => {
                if let Some(kind) = lane_kind(event.kind.get()) {
                    self.rekey_due(now, kind, event.receive_index.get());
                }
            }
            Punt::LaneReset(event) => self.on_lane_reset(now, event.receive_index.get()),
            Punt::Handshake(meta, frame) => {
                let kind = frame.first().copied().and_then(FrameKind::from_code);
                let carrier = Carrier::back(worker, meta.addresses);
                if kind == Some(FrameKind::CookieReply) {
                    if let Some((number, cookie)) = guard::parse(frame) {
                        self.on_cookie(carrier, number, cookie);
                    }
                    return;
                }
                self.handle_handshake(now, carrier, Message::parse_frame(frame));
            }
            Punt::LinkLocal(meta, bytes) => {
                let received = Nanos(meta.received.get()).min(now);
                self.handle_control(now, Kind::Link, meta.receive_index.get(), received, bytes);
            }
            Punt::Service(meta, bytes) => match Service::from_code(meta.service) {
                Some(Service::Handshake) => {
                    let carrier = Carrier::Overlay {
                        worker,
                        address: meta.source,
                        through: Some(meta.peer.get()),
                    };
                    if let Some(reset) = SessionReset::parse(bytes) {
                        self.on_session_reset(now, carrier, &reset);
                    } else if let Some(cookie) = SessionCookie::parse(bytes) {
                        self.on_cookie(carrier, cookie.number.get(), cookie.token);
                    } else {
                        self.handle_handshake(now, carrier, Message::parse(bytes));
                    }
                }
                Some(Service::Control) => {
                    let received = Nanos(meta.received.get()).min(now);
                    let index = meta.receive_index.get();
                    self.handle_control(now, Kind::EndToEnd, index, received, bytes);
                }
                Some(Service::Report) => {
                    let received = Nanos(meta.received.get()).min(now);
                    self.trace_reported(meta.source, received, bytes);
                }
                Some(Service::Ipv6 | Service::Message | Service::Trace) | None => {}
            },
            Punt::LargeFrames(event) => self.large_frames(now, event.peer.get(), false),
            Punt::LinkTooBig(event) => self.large_frames(now, event.peer.get(), true),
            Punt::PathTooBig(limit) => self.path_too_big(now, limit.address, limit.mtu.get()),
            Punt::SnapshotPeer(_)
            | Punt::SnapshotLink(_)
            | Punt::SnapshotSession(_)
            | Punt::SnapshotEnd(_) => {}
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        self.clock = now;
        for timer in self.timers.take_due(now) {
            // Without a dataplane nothing can be done; adoption sets every deadline anew.
            if !self.is_active() && timer != Timer::Attach {
                continue;
            }
            match timer {
                Timer::Attach => self.attach_deadline(now),
                Timer::HalfOpens => self.expire_half_opens(now),
                Timer::Cookies => self.rotate_cookies(now),
                Timer::Outgoing(id) => self.outgoing_due(now, id),
                Timer::Target(id) => self.connect_target(now, id),
                Timer::Association(owner) => self.association_due(now, owner),
            }
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        self.timers.next()
    }

    /// The next record to push to the ring of a worker, in order.
    pub fn poll_program(&mut self) -> Option<(WorkerId, OwnedProgram)> {
        self.output.poll_program()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.output.poll_event()
    }

    /// Says good-bye to every node: the dataplane is about to stop. Drain the programs afterwards.
    /// A control plane that ends alone must not call it: its successor takes the sessions over.
    pub fn shutdown(&mut self, _now: Nanos) {
        // Sessions first: their messages travel over the links.
        let owners: Vec<_> = self.associations.keys().rev().copied().collect();
        for owner in owners {
            self.say_close(owner);
        }
    }
}

fn lane_kind(kind: u32) -> Option<Kind> {
    match kind {
        LANE_LINK => Some(Kind::Link),
        LANE_SESSION => Some(Kind::EndToEnd),
        _ => None,
    }
}
