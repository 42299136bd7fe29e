//! A worker from the engine's point of view: it executes program records, stores lanes, decides which one
//! sends, answers probes and punts the rest.

use std::collections::BTreeMap;

use hyphae_shm::record::*;
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind, PROBE_LEN, Probe};
use hyphae_wire::frame::{LINK_LOCAL_OVERHEAD, OVERHEAD};
use hyphae_wire::guard::{self, SessionCookie, SessionReset};
use hyphae_wire::handshake::{HandshakeStep, Message};
use hyphae_wire::report::FRAME_MIN_MAX;

use hyphae_wire::{
    Endpoint, FrameKind, OverlayAddress, PublicKey, Service, SessionIndex, WorkerId,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::OwnedProgram;

/// A frame on the wire. What is sealed carries the key instead: only who has it can read on.
#[derive(Clone, Debug)]
pub(super) enum Frame {
    Raw(Vec<u8>),
    Link {
        receive: u32,
        key: [u8; 32],
        counter: u64,
        body: Body,
    },
}

impl Frame {
    /// Bytes of its largest datagram: frames that every link carries may leave in two.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Raw(bytes) => bytes.len(),
            Self::Link { body, .. } => match body {
                Body::Control(bytes) => bytes.len() + LINK_LOCAL_OVERHEAD,
                Body::Routed(routed) => match Self::routed_len(routed) {
                    len if len <= usize::from(FRAME_MIN_MAX) => len / 2,
                    len => len,
                },
            },
        }
    }

    pub(super) fn routed_len(routed: &Routed) -> usize {
        routed.bytes.len() + OVERHEAD
    }
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Control(Vec<u8>),
    Routed(Routed),
}

#[derive(Clone, Debug)]
pub(super) struct Routed {
    pub(super) source: OverlayAddress,
    pub(super) destination: OverlayAddress,
    pub(super) service: u8,
    /// Index and key of the session, unless it is a handshake.
    pub(super) sealed: Option<(u32, [u8; 32])>,
    pub(super) bytes: Vec<u8>,
}

/// A punt record that owns its bytes.
pub(super) struct OwnedPunt(u16, Vec<u8>);

impl OwnedPunt {
    pub(super) fn new(punt: &Punt<'_>) -> Self {
        let (code, body, tail) = punt.parts();
        Self(code, [body, tail].concat())
    }

    pub(super) fn punt(&self) -> Punt<'_> {
        Punt::parse(self.0, &self.1).unwrap()
    }
}

pub(super) struct Lane<I> {
    pub(super) install: I,
    pub(super) endpoint: Endpoint,
    pub(super) named: bool,
    heard: bool,
    due_told: bool,
    counter: u64,
    newest: u64,
}

impl<I> Lane<I> {
    fn new(install: I, endpoint: Endpoint) -> Self {
        let named = true;
        Self {
            install,
            endpoint,
            named,
            heard: false,
            due_told: false,
            counter: 0,
            newest: 0,
        }
    }
}

#[derive(Default)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) own: OverlayAddress,
    pub(super) peers: BTreeMap<u32, (PublicKey, bool)>,
    pub(super) links: BTreeMap<u32, Lane<LinkInstall>>,
    pub(super) sessions: BTreeMap<u32, Lane<SessionInstall>>,
    /// Lane that sends, by peer or subnet and lane number.
    pub(super) link_sending: BTreeMap<(u32, u16), u32>,
    pub(super) session_sending: BTreeMap<(u64, u16), u32>,
    /// When an index was removed: it must not be issued again while the other end may send to it.
    removed: BTreeMap<(bool, u32), Nanos>,
    resync: bool,
    pub(super) punts: Vec<OwnedPunt>,
    pub(super) out: Vec<(Endpoint, Frame)>,
    /// Frames without a next hop: the node looks up their route.
    pub(super) routed: Vec<Routed>,
    pub(super) pending_dropped: Vec<OverlayAddress>,
    pub(super) delivered: u64,
    pub(super) stale: u64,
    /// By peer: frames sent, and arrival of the last one.
    pub(super) traffic: BTreeMap<u32, (u64, Nanos)>,
    pub(super) node_secret: Option<[u8; 32]>,
    pub(super) cookies: Option<CookieSecret>,
    /// Takes no first message without a cookie.
    pub(super) overloaded: bool,
    pub(super) cookies_sent: u64,
    pub(super) resets_sent: u64,
    pub(super) link_mtus: BTreeMap<u32, u16>,
    pub(super) path_mtus: BTreeMap<u64, u16>,
    pub(super) mtu_probes: u64,
    pub(super) path_probes: u64,
    pub(super) traces: Vec<InjectTrace>,
}

fn age_ok(now: Nanos, created: U64, reject_after_ms: U32) -> bool {
    now.since(Nanos(created.get())).as_millis() < u128::from(reject_after_ms.get())
}

impl Worker {
    pub(super) fn new(id: u16) -> Self {
        Self {
            id: WorkerId(id),
            ..Self::default()
        }
    }

    pub(super) fn punt(&mut self, punt: &Punt<'_>) {
        self.punts.push(OwnedPunt::new(punt));
    }

    pub(super) fn execute(&mut self, now: Nanos, program: &OwnedProgram) {
        match program.program() {
            Program::PeerInstall(peer) => {
                self.peers.insert(peer.peer.get(), (peer.key, true));
            }
            Program::PeerRemove(peer) => {
                self.peers.remove(&peer.peer.get());
                let left = self
                    .links
                    .values()
                    .filter(|l| l.install.peer == peer.peer)
                    .count();
                assert_eq!(left, 0, "lanes are removed before their peer");
            }
            Program::LinkInstall(install) => {
                let index = install.receive_index.get();
                assert!(
                    self.peers.contains_key(&install.peer.get()),
                    "peer before lane"
                );
                self.check_new(now, true, index, install.reject_after_ms);
                let lane = Lane::new(*install, install.endpoint);
                self.links.insert(index, lane);
                if install.role == ROLE_ACTIVE {
                    self.use_link(index);
                }
            }
            Program::LinkRemove(remove) => {
                assert!(self.links.remove(&remove.receive_index.get()).is_some());
                self.removed.insert((true, remove.receive_index.get()), now);
                self.link_sending
                    .retain(|_, index| *index != remove.receive_index.get());
            }
            Program::SessionInstall(install) => {
                let index = install.receive_index.get();
                assert_eq!(install.key.address(), install.address);
                self.check_new(now, false, index, install.reject_after_ms);
                self.sessions
                    .insert(index, Lane::new(*install, Endpoint::default()));
                if install.role == ROLE_ACTIVE {
                    self.use_session(index);
                }
            }
            Program::SessionRemove(remove) => {
                assert!(self.sessions.remove(&remove.receive_index.get()).is_some());
                self.removed
                    .insert((false, remove.receive_index.get()), now);
                self.session_sending
                    .retain(|_, index| *index != remove.receive_index.get());
            }
            Program::FibReplace(_) | Program::FibRemove(_) => unreachable!("not the overlay's"),
            Program::LocalInstall(local) => self.own = local.address,
            Program::ResyncBegin(_) => {
                self.resync = true;
                self.peers.values_mut().for_each(|peer| peer.1 = false);
                self.links.values_mut().for_each(|lane| lane.named = false);
                self.sessions
                    .values_mut()
                    .for_each(|lane| lane.named = false);
            }
            Program::ResyncEnd(_) => {
                assert!(std::mem::take(&mut self.resync));
                self.peers.retain(|_, peer| peer.1);
                self.links.retain(|_, lane| lane.named);
                self.sessions.retain(|_, lane| lane.named);
                let Self {
                    links,
                    sessions,
                    link_sending,
                    session_sending,
                    ..
                } = self;
                link_sending.retain(|_, index| links.contains_key(index));
                session_sending.retain(|_, index| sessions.contains_key(index));
            }
            Program::Retain(retain) => {
                let id = retain.id.get();
                match retain.kind.get() {
                    RETAIN_PEER => self.peers.get_mut(&id).unwrap().1 = true,
                    RETAIN_LINK => self.links.get_mut(&id).unwrap().named = true,
                    RETAIN_SESSION => self.sessions.get_mut(&id).unwrap().named = true,
                    other => panic!("retain kind {other}"),
                }
            }
            Program::CookieSecret(secret) => self.cookies = Some(*secret),
            Program::NodeSecret(node) => self.node_secret = Some(node.secret.0),
            Program::SnapshotRequest(generation) => self.snapshot(*generation),
            Program::PendingDrop(drop) => self.pending_dropped.push(drop.address),
            Program::LinkMtu(limit) => {
                assert!(
                    self.peers.contains_key(&limit.peer.get()),
                    "peer before MTU"
                );
                self.link_mtus.insert(limit.peer.get(), limit.mtu.get());
            }
            Program::PathMtu(limit) => {
                self.path_mtus
                    .insert(limit.address.subnet_id(), limit.mtu.get());
            }
            Program::InjectMtuProbe(inject) => {
                let mut bytes = probe_of(inject.id, inject.sent);
                bytes.resize(usize::from(inject.len.get()) - LINK_LOCAL_OVERHEAD, 0);
                self.mtu_probes += 1;
                self.send_link(now, inject.receive_index.get(), Body::Control(bytes));
            }
            Program::InjectPathProbe(inject) => {
                let mut bytes = probe_of(inject.id, inject.sent);
                bytes.resize(usize::from(inject.len.get()), 0);
                let service = Service::Control.code();
                let index = inject.receive_index.get();
                self.path_probes += 1;
                self.originate(now, inject.destination, service, index, bytes);
            }
            Program::InjectTrace(inject) => self.traces.push(*inject),
            Program::InjectRaw(inject, bytes) => {
                self.out
                    .push((inject.addresses.remote, Frame::Raw(bytes.to_vec())));
            }
            Program::InjectLinkLocal(inject, bytes) => {
                let index = inject.receive_index.get();
                self.send_link(now, index, Body::Control(bytes.to_vec()));
            }
            Program::InjectRouted(inject, bytes) => {
                self.originate(
                    now,
                    inject.destination,
                    inject.service,
                    inject.receive_index.get(),
                    bytes.to_vec(),
                );
            }
        }
    }

    fn check_new(&self, now: Nanos, link: bool, index: u32, reject_after_ms: U32) {
        assert_eq!(SessionIndex(index).worker(), self.id, "lane at its worker");
        let installed = if link {
            self.links.contains_key(&index)
        } else {
            self.sessions.contains_key(&index)
        };
        assert!(!installed, "index {index:08x} is installed twice");
        let removed = self.removed.get(&(link, index));
        assert!(
            removed.is_none_or(|at| now.since(*at).as_millis() > u128::from(reject_after_ms.get())),
            "index {index:08x} is used again too soon"
        );
    }

    fn use_link(&mut self, index: u32) -> bool {
        let new = &self.links[&index].install;
        let slot = (new.peer.get(), new.lane.get());
        let before = self
            .link_sending
            .get(&slot)
            .and_then(|index| self.links.get(index));
        let newer = before.is_none_or(|b| b.install.epoch.get() < new.epoch.get());
        if newer {
            self.link_sending.insert(slot, index);
        }
        newer
    }

    fn use_session(&mut self, index: u32) -> bool {
        let new = &self.sessions[&index].install;
        let slot = (new.address.subnet_id(), new.lane.get());
        let before = self
            .session_sending
            .get(&slot)
            .and_then(|index| self.sessions.get(index));
        let newer = before.is_none_or(|b| b.install.epoch.get() < new.epoch.get());
        if newer {
            self.session_sending.insert(slot, index);
        }
        newer
    }

    fn snapshot(&mut self, generation: Generation) {
        for (peer, (key, _)) in self.peers.clone() {
            self.punt(&Punt::SnapshotPeer(&PeerInstall {
                peer: U32::new(peer),
                reserved: U32::ZERO,
                key,
            }));
        }
        let role = |role: u8, sending: bool| match role {
            ROLE_RECEIVE_ONLY => ROLE_RECEIVE_ONLY,
            _ if sending => ROLE_ACTIVE,
            _ => ROLE_STANDBY,
        };
        let links: Vec<_> = self
            .links
            .iter()
            .map(|(index, l)| (*index, l.install, l.endpoint))
            .collect();
        for (index, mut install, endpoint) in links {
            let sending = self.link_sending.values().any(|i| *i == index);
            install.role = role(install.role, sending);
            install.endpoint = endpoint;
            install.keys = LaneKeys::new_zeroed();
            self.punt(&Punt::SnapshotLink(&install));
        }
        let sessions: Vec<_> = self
            .sessions
            .iter()
            .map(|(index, s)| (*index, s.install))
            .collect();
        for (index, mut install) in sessions {
            let sending = self.session_sending.values().any(|i| *i == index);
            install.role = role(install.role, sending);
            install.keys = LaneKeys::new_zeroed();
            self.punt(&Punt::SnapshotSession(&install));
        }
        self.punt(&Punt::SnapshotEnd(&generation));
    }

    /// Seals a body for a neighbour.
    pub(super) fn send_link(&mut self, now: Nanos, index: u32, body: Body) {
        let Some(lane) = self.links.get_mut(&index) else {
            return;
        };
        let install = &lane.install;
        if install.role == ROLE_RECEIVE_ONLY
            || !age_ok(now, install.created, install.reject_after_ms)
        {
            self.stale += 1;
            return;
        }
        lane.counter += 1;
        self.traffic.entry(install.peer.get()).or_default().0 += 1;
        let frame = Frame::Link {
            receive: install.send_index.get(),
            key: install.keys.send,
            counter: lane.counter,
            body,
        };
        let endpoint = lane.endpoint;
        let due = now.since(Nanos(install.created.get())).as_millis()
            >= u128::from(install.rekey_after_ms.get());
        if due && !std::mem::replace(&mut lane.due_told, true) {
            self.lane_event(false, true, index);
        }
        self.out.push((endpoint, frame));
    }

    fn lane_event(&mut self, active: bool, link: bool, index: u32) {
        let kind = U32::new(if link { LANE_LINK } else { LANE_SESSION });
        let event = LaneEvent {
            kind,
            receive_index: U32::new(index),
        };
        if active {
            self.punt(&Punt::LaneActive(&event));
        } else {
            self.punt(&Punt::RekeyDue(&event));
        }
    }

    /// Seals a payload end to end and hands it to routing.
    fn originate(
        &mut self,
        now: Nanos,
        destination: OverlayAddress,
        service: u8,
        index: u32,
        bytes: Vec<u8>,
    ) {
        let sealed = if service == 1 {
            None
        } else {
            let Some(lane) = self.sessions.get_mut(&index) else {
                return;
            };
            let install = &lane.install;
            if install.role == ROLE_RECEIVE_ONLY
                || !age_ok(now, install.created, install.reject_after_ms)
            {
                self.stale += 1;
                return;
            }
            let due = now.since(Nanos(install.created.get())).as_millis()
                >= u128::from(install.rekey_after_ms.get());
            let sealed = Some((install.send_index.get(), install.keys.send));
            if due && !std::mem::replace(&mut lane.due_told, true) {
                self.lane_event(false, false, index);
            }
            sealed
        };
        let source = self.own;
        self.routed.push(Routed {
            source,
            destination,
            service,
            sealed,
            bytes,
        });
    }

    /// A packet of the host. False when it has to wait for a session.
    pub(super) fn host_packet(&mut self, now: Nanos, destination: OverlayAddress) -> bool {
        let subnet = destination.subnet_id();
        let lane = self
            .session_sending
            .range((subnet, 0)..=(subnet, u16::MAX))
            .next();
        let usable = lane.map(|(_, index)| *index).filter(|index| {
            let install = &self.sessions[index].install;
            age_ok(now, install.created, install.reject_after_ms)
        });
        match usable {
            Some(index) => self.originate(now, destination, 0, index, vec![0; 100]),
            None => self.punt(&Punt::NeedSession(&NeedSession {
                address: destination,
            })),
        }
        usable.is_some()
    }

    /// Whether a handshake number is one that this node issued recently.
    fn knows_number(&self, number: u32) -> bool {
        self.cookies.as_ref().is_none_or(|secrets| {
            let mut both = [&secrets.current, &secrets.previous].into_iter();
            both.any(|secret| guard::number_is_ours(&secret.0, number))
        })
    }

    /// A frame that no lane has sealed: a handshake, a cookie or a reset.
    pub(super) fn receive_raw(&mut self, from: Endpoint, bytes: &[u8]) {
        let kind = bytes.first().copied().and_then(FrameKind::from_code);
        if kind == Some(FrameKind::StatelessReset) {
            let Some((index, token)) = guard::parse(bytes) else {
                return;
            };
            let named = self.links.iter().find(|(_, lane)| {
                (lane.install.send_index.get(), lane.endpoint) == (index, from)
                    && lane.install.reset == token
            });
            if let Some(receive) = named.map(|(receive, _)| *receive) {
                self.punt(&Punt::LaneReset(&LaneEvent {
                    kind: U32::new(LANE_LINK),
                    receive_index: U32::new(receive),
                }));
            }
            return;
        }
        let asked = match (kind, Message::parse_frame(bytes)) {
            (Some(FrameKind::CookieReply), _) => guard::parse(bytes).map(|(number, _)| number),
            (_, Ok(message)) => answered(&message),
            _ => None,
        };
        if asked.is_some_and(|number| !self.knows_number(number)) {
            return;
        }
        if let (Some(FrameKind::HandshakeInit), Some(secrets), Ok(message)) =
            (kind, &self.cookies, Message::parse_frame(bytes))
            && (self.overloaded || message.is_short_link())
        {
            let given = |secret: &Secret| guard::cookie(&secret.0, &from) == message.header.cookie;
            if !given(&secrets.current) && !given(&secrets.previous) {
                let cookie = guard::cookie(&secrets.current.0, &from);
                let number = message.header.sender.get();
                let reply = guard::encode(FrameKind::CookieReply, number, &cookie);
                self.cookies_sent += 1;
                self.out.push((from, Frame::Raw(reply.to_vec())));
                return;
            }
        }
        let meta = PuntHandshake {
            addresses: from.into(),
        };
        self.punt(&Punt::Handshake(&meta, bytes));
    }

    /// A frame of a neighbour, sealed. Returns what is to be routed on.
    pub(super) fn receive_link(
        &mut self,
        now: Nanos,
        from: Endpoint,
        (receive, key, counter): (u32, [u8; 32], u64),
        body: Body,
    ) -> Option<Routed> {
        let Some(lane) = self.links.get_mut(&receive) else {
            self.stale += 1;
            if let Some(secret) = &self.node_secret {
                let token = guard::link_token(secret, SessionIndex(receive));
                let reset = guard::encode(FrameKind::StatelessReset, receive, &token);
                self.resets_sent += 1;
                self.out.push((from, Frame::Raw(reset.to_vec())));
            }
            return None;
        };
        let install = lane.install;
        if key != install.keys.receive || !age_ok(now, install.created, install.reject_after_ms) {
            self.stale += 1;
            return None;
        }
        let peer = install.peer;
        self.traffic.entry(peer.get()).or_default().1 = now;
        let moved = counter > lane.newest && lane.endpoint != from;
        if counter > lane.newest {
            lane.newest = counter;
            lane.endpoint = from;
        }
        let first = !std::mem::replace(&mut lane.heard, true);
        if moved {
            let reserved = U16::ZERO;
            let record = EndpointMoved {
                peer,
                lane: install.lane,
                reserved,
                endpoint: from,
            };
            self.punt(&Punt::EndpointMoved(&record));
        }
        if first && install.role == ROLE_STANDBY {
            self.use_link(receive);
            self.lane_event(true, true, receive);
        }
        match body {
            Body::Control(bytes) => {
                if let Some(reply) = probe_reply(&bytes) {
                    self.send_link(now, receive, Body::Control(reply));
                } else {
                    let meta = PuntLinkLocal {
                        peer,
                        receive_index: U32::new(receive),
                        received: U64::new(now.0),
                    };
                    self.punt(&Punt::LinkLocal(&meta, &bytes));
                }
                None
            }
            Body::Routed(routed) => Some(routed),
        }
    }

    /// A frame for this node, at the worker that owns its session.
    pub(super) fn deliver(&mut self, now: Nanos, routed: Routed) {
        let Routed {
            source,
            destination,
            service,
            sealed,
            bytes,
        } = routed;
        let mut receive_index = U32::ZERO;
        if let Some((receive, key)) = sealed {
            let Some(lane) = self.sessions.get_mut(&receive) else {
                self.stale += 1;
                if let Some(secret) = &self.node_secret {
                    let reset = SessionReset::new(secret, SessionIndex(receive));
                    self.resets_sent += 1;
                    self.originate(now, source, 1, 0, reset.as_bytes().to_vec());
                }
                return;
            };
            let install = lane.install;
            let authentic = key == install.keys.receive
                && source.subnet_id() == install.address.subnet_id()
                && age_ok(now, install.created, install.reject_after_ms);
            if !authentic {
                self.stale += 1;
                return;
            }
            receive_index = U32::new(receive);
            let first = !std::mem::replace(&mut lane.heard, true);
            if first && install.role == ROLE_STANDBY {
                self.use_session(receive);
                self.lane_event(true, false, receive);
            }
            if service == 0 {
                self.delivered += 1;
                return;
            }
            if let Some(reply) = probe_reply(&bytes) {
                self.originate(now, source, service, receive, reply);
                return;
            }
        }
        let asked = match (service, Message::parse(&bytes)) {
            (1, Ok(message)) => answered(&message),
            _ => None,
        };
        if asked.is_some_and(|number| !self.knows_number(number)) {
            return;
        }
        if let (1, Some(secrets), Ok(message)) = (service, &self.cookies, Message::parse(&bytes))
            && message.step == HandshakeStep::Init
            && (self.overloaded || message.is_short_session())
        {
            let given =
                |secret: &Secret| guard::session_cookie(&secret.0, source) == message.header.cookie;
            if !given(&secrets.current) && !given(&secrets.previous) {
                let number = message.header.sender.get();
                let cookie = SessionCookie::new(&secrets.current.0, number, source);
                self.cookies_sent += 1;
                self.originate(now, source, 1, 0, cookie.as_bytes().to_vec());
                return;
            }
        }
        let mut meta = PuntService::new_zeroed();
        meta.destination = destination;
        meta.source = source;
        meta.receive_index = receive_index;
        meta.service = service;
        meta.received = U64::new(now.0);
        self.punt(&Punt::Service(&meta, &bytes));
    }
}

/// The number of the handshake that a message answers.
fn answered(message: &Message<'_>) -> Option<u32> {
    (message.step != HandshakeStep::Init).then(|| message.header.receiver.get())
}

fn probe_reply(message: &[u8]) -> Option<Vec<u8>> {
    let (kind, _) = control::parse(message)?;
    (kind == ControlKind::Probe).then(|| {
        let mut reply = message.to_vec();
        reply[0] = ControlKind::ProbeReply.code();
        reply.truncate(PROBE_LEN);
        reply
    })
}

fn probe_of(id: U64, sent: U64) -> Vec<u8> {
    control::probe(ControlKind::Probe, Probe { id, sent }).to_vec()
}
