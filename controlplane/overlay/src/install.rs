//! Sessions in the workers: installation, removal, injected messages.

use hyphae_shm::record::{
    FLAG_INITIATOR, InjectLinkLocal, InjectRaw, InjectRouted, LinkInstall, PeerInstall, PeerRemove,
    PendingDrop, Program, ROLE_ACTIVE, ROLE_RECEIVE_ONLY, ROLE_STANDBY, SessionInstall,
    SessionRemove,
};
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind};
use hyphae_wire::frame::LINK_HEADER_LEN;
use hyphae_wire::guard::Token;
use hyphae_wire::handshake::{self, HandshakeStep, encode_frame_in, encode_session_in};

use hyphae_wire::{
    AddressPair, Endpoint, Lane, LocalAddress, Network, NetworkId, OverlayAddress, PublicKey,
    Service, SessionIndex, Suite,
};
use std::time::Duration;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};
use zeroize::Zeroize;

use crate::Overlay;
use crate::association::SESSIONS_MAX;
use crate::event::Direction;
use crate::handshake::Carrier;
use crate::ids::{LaneRef, Owner};
use crate::index::{self, Class};
use crate::keys::{Kind, Secrets};
use crate::session::{LaneState, Session};

/// Time beyond the age limit for which the other end may still send: it finished the handshake later, and
/// frames take time.
const INDEX_REST: Duration = Duration::from_secs(20);

/// A finished handshake, about to become a session.
pub(crate) struct NewSession<'a> {
    pub(crate) owner: Owner,
    pub(crate) key: PublicKey,
    pub(crate) direction: Direction,
    pub(crate) receive_only: bool,
    pub(crate) suite: Suite,
    pub(crate) secrets: Secrets,
    /// Receiver index of each lane.
    pub(crate) ours: &'a [SessionIndex],
    pub(crate) theirs: &'a [SessionIndex],
    /// Reset tokens of the other end, for the first lanes.
    pub(crate) resets: &'a [Token],
    pub(crate) endpoints: &'a [Endpoint],
    /// Local address of all lanes until a frame of the other end names another.
    pub(crate) local: LocalAddress,
    /// Largest inner packet of the other end.
    pub(crate) mtu: u16,
    pub(crate) handshake: Option<u32>,
}

impl NewSession<'_> {
    fn role(&self, lane: Lane) -> u8 {
        match (self.receive_only, self.direction, lane) {
            (true, _, _) => ROLE_RECEIVE_ONLY,
            (false, Direction::Inbound, Lane(0)) => ROLE_ACTIVE,
            (false, _, _) => ROLE_STANDBY,
        }
    }
}

/// Fields of the record of one lane.
struct LaneRecord<'a> {
    new: &'a NewSession<'a>,
    state: &'a LaneState,
    lane: U16,
    role: u8,
    epoch: U32,
    flags: u8,
    created: U64,
    rekey_after_ms: U32,
    reject_after_ms: U32,
}

impl LaneRecord<'_> {
    /// The record of a link, without keys.
    fn link(&self, peer: u32) -> LinkInstall {
        LinkInstall {
            peer: U32::new(peer),
            receive_index: U32::new(self.state.receive.0),
            send_index: U32::new(self.state.send.0),
            lane: self.lane,
            suite: self.new.suite.code(),
            role: self.role,
            epoch: self.epoch,
            flags: self.flags,
            endpoint: self.state.endpoint,
            local: self.new.local,
            created: self.created,
            rekey_after_ms: self.rekey_after_ms,
            reject_after_ms: self.reject_after_ms,
            reset: self.state.reset,
            ..LinkInstall::new_zeroed()
        }
    }

    /// The record of an end-to-end session, without keys.
    fn session(&self) -> SessionInstall {
        SessionInstall {
            address: self.new.key.address(),
            key: self.new.key,
            receive_index: U32::new(self.state.receive.0),
            send_index: U32::new(self.state.send.0),
            lane: self.lane,
            suite: self.new.suite.code(),
            role: self.role,
            epoch: self.epoch,
            flags: self.flags,
            mtu: U16::new(self.new.mtu),
            created: self.created,
            rekey_after_ms: self.rekey_after_ms,
            reject_after_ms: self.reject_after_ms,
            reset: self.state.reset,
            ..SessionInstall::new_zeroed()
        }
    }
}

impl Overlay {
    /// Installs every lane and returns the epoch. Lanes of an outbound session stand by; of an
    /// inbound one the first is active at once, because the other end has proved its keys.
    pub(crate) fn install(&mut self, now: Nanos, new: NewSession<'_>) -> Option<u32> {
        let (owner, receive_only) = (new.owner, new.receive_only);
        // A node that begins one handshake after the other gets no more sessions than others.
        while let Some(association) = self.associations.get(&owner)
            && association.sessions.len() >= SESSIONS_MAX
            && let Some(spare) = association.spare()
        {
            self.remove_session(now, owner, spare, false);
        }
        let association = self.associations.get_mut(&owner)?;
        association.mtu = new.mtu;
        let epoch = association.epoch_next();
        let rekey_after_ms = millis(self.rng.jitter(self.config.rekey_after, 90, 100));
        let count = new
            .ours
            .len()
            .min(new.theirs.len())
            .min(new.endpoints.len());
        let mut lanes = Vec::with_capacity(count);
        for lane in (0..).map(Lane).take(count) {
            lanes.push(self.install_lane(now, &new, epoch, rekey_after_ms, lane));
        }
        if let Some(id) = new.handshake {
            self.finished.insert(id, (owner, epoch));
        }
        let life = if receive_only {
            self.config.grace
        } else {
            self.config.reject_after
        };
        let session = Session {
            epoch,
            direction: new.direction,
            suite: new.suite,
            created: now,
            confirmed: None,
            receive_only,
            remove_at: now + life,
            retiring: receive_only,
            lanes,
            local: new.local,
            handshake: new.handshake,
        };
        self.associations.get_mut(&owner)?.adopt(session);
        Some(epoch)
    }

    /// Installs one lane at the worker that owns our index.
    fn install_lane(
        &mut self,
        now: Nanos,
        new: &NewSession<'_>,
        epoch: u32,
        rekey_after_ms: U32,
        lane: Lane,
    ) -> LaneState {
        let (owner, at) = (new.owner, usize::from(lane.0));
        let outbound = new.direction == Direction::Outbound;
        let flags = if outbound { FLAG_INITIATOR } else { 0 };
        let role = new.role(lane);
        let state = LaneState {
            receive: new.ours[at],
            send: new.theirs[at],
            reset: new.resets.get(at).copied().unwrap_or_default(),
            endpoint: new.endpoints[at],
            active: role == ROLE_ACTIVE,
            heard: now,
        };
        let worker = state.receive.worker();
        let record = LaneRecord {
            new,
            state: &state,
            lane: U16::new(lane.0),
            role,
            epoch: U32::new(epoch),
            flags,
            created: U64::new(now.0),
            rekey_after_ms,
            reject_after_ms: millis(self.config.reject_after),
        };
        let mut keys = new.secrets.lane(owner.kind(), lane, outbound);
        match owner {
            Owner::Peer(peer) => {
                let mut install = record.link(peer);
                install.keys = keys;
                self.output.program(worker, &Program::LinkInstall(&install));
                install.keys.zeroize();
            }
            Owner::Remote(_) => {
                let mut install = record.session();
                install.keys = keys;
                self.output
                    .program(worker, &Program::SessionInstall(&install));
                install.keys.zeroize();
            }
        }
        keys.zeroize();
        let lane_ref = LaneRef {
            owner,
            epoch,
            lane: lane.0,
        };
        self.lanes.insert((owner.kind(), state.receive.0), lane_ref);
        state
    }

    /// Removes a session from the workers. With `close` the other end is notified, so that ends that disagree
    /// about the session in use agree at once.
    pub(crate) fn remove_session(&mut self, now: Nanos, owner: Owner, epoch: u32, close: bool) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let Some(at) = association.sessions.iter().position(|s| s.epoch == epoch) else {
            return;
        };
        let session = association.sessions.remove(at);
        if close && session.confirmed.is_some() && !session.receive_only {
            self.close_session(owner, &session);
        }
        let rested = now + index::rest(self.config.reject_after + INDEX_REST);
        for lane in &session.lanes {
            let remove = SessionRemove {
                receive_index: U32::new(lane.receive.0),
                reserved: U32::ZERO,
            };
            let program = match owner.kind() {
                Kind::Link => Program::LinkRemove(&remove),
                Kind::EndToEnd => Program::SessionRemove(&remove),
            };
            self.output.program(lane.receive.worker(), &program);
            self.lanes.remove(&(owner.kind(), lane.receive.0));
            self.indices(owner.kind())
                .release(lane.receive, Class::Live, rested);
        }
        if let Some(id) = session.handshake {
            self.finished.remove(&id);
        }
    }

    /// Sends `Close` on the session in use.
    pub(crate) fn close_current(&mut self, owner: Owner) {
        let Some(session) = self.associations.get(&owner).and_then(|a| a.current()) else {
            return;
        };
        if let Some(receive) = session.lanes.first().map(|lane| lane.receive) {
            self.send_control(owner, receive, &control::message(ControlKind::Close));
        }
    }

    fn close_session(&mut self, owner: Owner, session: &Session) {
        if let Some(lane) = session.lanes.first() {
            self.send_control(owner, lane.receive, &control::message(ControlKind::Close));
        }
    }

    /// Sends a control message on one lane.
    pub(crate) fn send_control(&mut self, owner: Owner, receive: SessionIndex, message: &[u8]) {
        match owner {
            Owner::Peer(peer) => {
                if let Some(association) = self.associations.get_mut(&owner) {
                    association.liveness.own_sent += 1;
                }
                let inject = InjectLinkLocal {
                    peer: U32::new(peer),
                    receive_index: U32::new(receive.0),
                    reserved: U64::ZERO,
                };
                let program = Program::InjectLinkLocal(&inject, message);
                self.output.program(receive.worker(), &program);
            }
            Owner::Remote(_) => {
                let Some(association) = self.associations.get(&owner) else {
                    return;
                };
                let inject = InjectRouted {
                    destination: association.address,
                    service: Service::Control.code(),
                    reserved: [0; 3],
                    receive_index: U32::new(receive.0),
                };
                self.output
                    .program(receive.worker(), &Program::InjectRouted(&inject, message));
            }
        }
    }

    /// A handshake message with its header, as [`Self::send_handshake`] takes it.
    pub(crate) fn frame(
        &self,
        kind: Kind,
        step: HandshakeStep,
        sender: u32,
        receiver: u32,
        noise: &[u8],
    ) -> Vec<u8> {
        let network = self.network();
        match kind {
            Kind::Link => encode_frame_in(network, step, sender, receiver, noise),
            Kind::EndToEnd => encode_session_in(network, step, sender, receiver, noise),
        }
    }

    /// Number of this node's network.
    pub(crate) fn network(&self) -> NetworkId {
        self.config
            .network
            .as_ref()
            .map_or(NetworkId::PUBLIC, Network::id)
    }

    /// Sends a handshake message.
    pub(crate) fn send_handshake(&mut self, carrier: Carrier, message: &[u8]) {
        match carrier {
            Carrier::Underlay {
                worker,
                endpoint,
                local,
            } => {
                let inject = InjectRaw {
                    addresses: AddressPair {
                        remote: endpoint,
                        local,
                    },
                };
                self.output
                    .program(worker, &Program::InjectRaw(&inject, message));
            }
            Carrier::Sealed { owner, .. } => {
                let lane = self.associations.get(&owner).and_then(|a| a.current());
                let Some(lane) = lane.and_then(|session| session.lanes.first()) else {
                    return;
                };
                let receive = lane.receive;
                let message = match owner.kind() {
                    Kind::Link => message.get(LINK_HEADER_LEN..).unwrap_or_default(),
                    Kind::EndToEnd => message,
                };
                let len = handshake::len(message).unwrap_or(message.len());
                let header = control::message(ControlKind::Handshake);
                let sealed = [&header, &message[..len]].concat();
                self.send_control(owner, receive, &sealed);
            }
            Carrier::Overlay {
                worker, address, ..
            } => {
                let inject = InjectRouted {
                    destination: address,
                    service: Service::Handshake.code(),
                    reserved: [0; 3],
                    receive_index: U32::ZERO,
                };
                self.output
                    .program(worker, &Program::InjectRouted(&inject, message));
            }
        }
    }

    /// Names a peer to every worker.
    pub(crate) fn install_peer(&mut self, peer: u32, key: PublicKey) {
        let install = PeerInstall {
            peer: U32::new(peer),
            reserved: U32::ZERO,
            key,
        };
        self.output
            .program_all(self.workers, &Program::PeerInstall(&install));
    }

    /// Removes a peer from every worker.
    pub(crate) fn uninstall_peer(&mut self, peer: u32) {
        let remove = PeerRemove {
            peer: U32::new(peer),
            reserved: U32::ZERO,
        };
        self.output
            .program_all(self.workers, &Program::PeerRemove(&remove));
    }

    /// Drops packets that wait for a session, at every worker.
    pub(crate) fn drop_pending(&mut self, address: OverlayAddress) {
        let drop = PendingDrop { address };
        self.output
            .program_all(self.workers, &Program::PendingDrop(&drop));
    }

    pub(crate) fn indices(&mut self, kind: Kind) -> &mut crate::index::Indices {
        match kind {
            Kind::Link => &mut self.link_indices,
            Kind::EndToEnd => &mut self.session_indices,
        }
    }

    pub(crate) fn allocate(
        &mut self,
        now: Nanos,
        kind: Kind,
        lanes: u16,
        class: Class,
    ) -> Option<Vec<SessionIndex>> {
        let indices = match kind {
            Kind::Link => &mut self.link_indices,
            Kind::EndToEnd => &mut self.session_indices,
        };
        indices.allocate(now, lanes, class, &mut self.rng)
    }

    /// Releases indices that were never usable.
    pub(crate) fn release_unused(
        &mut self,
        now: Nanos,
        kind: Kind,
        class: Class,
        indices: &[SessionIndex],
    ) {
        for index in indices {
            self.indices(kind).release(*index, class, now);
        }
    }
}

fn millis(duration: Duration) -> U32 {
    U32::new(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
}
