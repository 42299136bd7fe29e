//! The engine: its state, its public calls, and where each input goes.
//!
//! Each mechanism is an `impl Overlay` in a file of its own: `initiate` and `respond` (handshakes), `install`
//! (lanes in the workers), `lifecycle` (confirmation, renewal, up and down), `target` and `paths` (configured peers
//! and their addresses), `remote` (end-to-end sessions on demand), `probes` (probes and control messages),
//! `adoption` (attach and resynchronisation), `mtu` and `trace`, `guard`, `policy`, `crowd`, `status`.

use std::collections::BTreeMap;

use hyphae_shm::record::{LANE_LINK, LANE_SESSION, Punt, PuntService};
use hyphae_time::Nanos;
use hyphae_wire::guard::{self, SessionCookie, SessionReset};
use hyphae_wire::handshake::Message;
use hyphae_wire::index::WORKERS_MAX;

use hyphae_wire::{AddressPair, Endpoint, FrameKind, OverlayAddress, PublicKey, Service, WorkerId};

use zeroize::Zeroizing;

use crate::association::Association;
use crate::attach_phase::AttachPhase;
use crate::cookie_secrets::CookieSecrets;
use crate::handshake::{Carrier, HalfOpens, Outgoing};
use crate::ids::LaneRef;
use crate::ids::Owner;
use crate::index::Indices;
use crate::keys::Kind;
use crate::program::Output;
use crate::target_state::Target;
use crate::trace::Trace;
use crate::{Config, ConfiguredPeer, Event, Handshakes, Live, OwnedProgram, PeerConfig};
use hyphae_random::Rng;
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
    pub(crate) phase: AttachPhase,
    pub(crate) link_indices: Indices,
    pub(crate) session_indices: Indices,
    /// Lanes by our index.
    pub(crate) lanes: BTreeMap<(Kind, u32), LaneRef>,
    pub(crate) targets: BTreeMap<ConfiguredPeer, Target>,
    pub(crate) associations: BTreeMap<Owner, Association>,
    pub(crate) peer_numbers: BTreeMap<PublicKey, u32>,
    pub(crate) peer_number_last: u32,
    /// Handshakes initiated by this node, by number.
    pub(crate) outgoing: BTreeMap<u32, Outgoing>,
    pub(crate) half_opens: HalfOpens,
    /// Finished handshakes initiated by others, by our number, while their sessions last.
    pub(crate) finished: BTreeMap<u32, (Owner, u32)>,
    pub(crate) probe_last: u64,
    /// Secret of reset tokens and handshake numbers ([`hyphae_wire::guard`]).
    pub(crate) node_secret: Zeroizing<[u8; 32]>,
    pub(crate) cookies: CookieSecrets,
    /// Pending traces, by the nonce that the report quotes.
    pub(crate) traces: BTreeMap<u64, Trace>,
    pub(crate) handshakes: Handshakes,
    /// Instance number of the dataplane.
    pub(crate) instance: u64,
    /// Time of the last check for duplicate keys, which ages what status reports.
    pub(crate) clock: Nanos,
}

/// Deadlines.
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
    /// An engine without peers, idle until [`Self::begin_attach`]. `seed` must be random.
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
            phase: AttachPhase::Idle,
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
            // Differs from the previous control plane's, whose answers may still arrive.
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

    /// Applies settings that may change while the engine runs.
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

    /// Counters of handshakes.
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

    /// Adds a configured peer, which the engine connects to until it is removed. A known handle replaces the
    /// entry.
    pub fn add_peer(&mut self, now: Nanos, peer: PeerConfig) {
        self.add_target(now, peer);
    }

    /// Replaces the addresses of a configured peer, after its name resolved differently.
    pub fn set_addresses(&mut self, now: Nanos, id: ConfiguredPeer, addresses: Vec<Endpoint>) {
        self.set_target_addresses(now, id, addresses);
    }

    /// Entries that lead to a key.
    pub fn entries_of(&self, key: PublicKey) -> Vec<ConfiguredPeer> {
        self.targets_of(key).collect()
    }

    /// Removes a configured peer; its link ends when no other entry leads to it. False when unknown.
    pub fn remove_peer(&mut self, now: Nanos, id: ConfiguredPeer) -> bool {
        self.remove_target(now, id)
    }

    /// Ends the link with a peer, configured or inbound, and removes the entries that lead to it. It may
    /// connect again. False when unknown.
    pub fn remove_peer_by_key(&mut self, now: Nanos, key: &PublicKey) -> bool {
        self.remove_key(now, key)
    }

    /// Handles a record of a worker. Snapshot records count only while attaching, others only afterwards.
    /// Messages of the bus and packets of the routing protocol are ignored.
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
            Punt::Handshake(meta, frame) => self.handle_frame(now, worker, meta.addresses, frame),
            Punt::LinkLocal(meta, bytes) => {
                let received = Nanos(meta.received.get()).min(now);
                self.handle_control(now, Kind::Link, meta.receive_index.get(), received, bytes);
            }
            Punt::Service(meta, bytes) => self.handle_service(now, worker, meta, bytes),
            Punt::LargeFrames(event) => self.large_frames(now, event.peer.get(), false),
            Punt::LinkTooBig(event) => self.large_frames(now, event.peer.get(), true),
            Punt::PathTooBig(limit) => self.path_too_big(now, limit.address, limit.mtu.get()),
            Punt::SnapshotPeer(_)
            | Punt::SnapshotLink(_)
            | Punt::SnapshotSession(_)
            | Punt::SnapshotEnd(_) => {}
        }
    }

    /// Handles a handshake frame of a neighbour.
    fn handle_frame(&mut self, now: Nanos, worker: WorkerId, addresses: AddressPair, frame: &[u8]) {
        let kind = frame.first().copied().and_then(FrameKind::from_code);
        let carrier = Carrier::back(worker, addresses);
        if kind != Some(FrameKind::CookieReply) {
            self.handle_handshake(now, carrier, Message::parse_frame(frame));
        } else if let Some((number, cookie)) = guard::parse(frame) {
            self.on_cookie(carrier, number, cookie);
        }
    }

    /// Handles a routed message for a service of this engine.
    fn handle_service(&mut self, now: Nanos, worker: WorkerId, meta: &PuntService, bytes: &[u8]) {
        let received = Nanos(meta.received.get()).min(now);
        match Service::from_code(meta.service) {
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
                let index = meta.receive_index.get();
                self.handle_control(now, Kind::EndToEnd, index, received, bytes);
            }
            Some(Service::Report) => self.trace_reported(meta.source, received, bytes),
            Some(Service::Ipv6 | Service::Message | Service::Trace) | None => {}
        }
    }

    /// Handles expired timers.
    pub fn handle_timeout(&mut self, now: Nanos) {
        self.clock = now;
        for timer in self.timers.take_due(now) {
            // No action without a dataplane; adoption sets every deadline again.
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

    /// When to call [`Self::handle_timeout`] next.
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

    /// Closes every session: the dataplane is about to stop. Drain the programs afterwards. A control plane
    /// that ends alone must not call it, because its successor adopts the sessions.
    pub fn shutdown(&mut self, _now: Nanos) {
        // Sessions first: their messages travel over the links.
        let owners: Vec<_> = self.associations.keys().rev().copied().collect();
        for owner in owners {
            self.close_current(owner);
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
