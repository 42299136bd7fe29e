//! Records of the control plane, applied between packets.
//!
//! Nothing in a record is trusted: numbers are bounded, codes are checked, and a receiver index
//! that is in use is refused, so that no key ever meets its counter again.

use hyphae_shm::record::{
    FibRemove, FibReplace, LinkInstall, LocalInstall, MTU_UNKNOWN, PEERS_MAX, PeerInstall, Program,
    RETAIN_LINK, RETAIN_PEER, RETAIN_SESSION, Retain, SessionInstall,
};
use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::report::{DATAGRAM_BASE, INNER_MTU_MIN};

use hyphae_wire::SessionIndex;

use crate::engine::{Engine, Local};
use crate::peer::{Peer, Traffic};
use crate::session::{LaneSet, LinkLane, Role, SessionLane};

/// A record that was refused. The state is as before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Values that no record can have.
    #[error("malformed record")]
    Malformed,
    /// Something it refers to does not exist.
    #[error("record names a peer or lane that does not exist")]
    Unknown,
    /// The receiver index is held by another lane.
    #[error("receiver index is in use")]
    InUse,
    /// A record that the worker, not the engine, carries out.
    #[error("not a record for the engine")]
    NotHere,
}

impl Engine {
    /// Applies one record.
    ///
    /// # Errors
    /// When it is refused; nothing has changed then.
    pub fn apply(&mut self, now: Nanos, program: &Program<'_>) -> Result<(), ApplyError> {
        match program {
            Program::PeerInstall(record) => self.install_peer(record),
            Program::PeerRemove(record) => self.remove_peer(record.peer.get()),
            Program::LinkInstall(record) => self.install_link(now, record),
            Program::LinkRemove(record) => {
                let index = SessionIndex(record.receive_index.get());
                let slot = self.links.find(index).ok_or(ApplyError::Unknown)?;
                self.remove_link(slot);
                Ok(())
            }
            Program::SessionInstall(record) => self.install_session(now, record),
            Program::SessionRemove(record) => {
                let index = SessionIndex(record.receive_index.get());
                let slot = self.sessions.find(index).ok_or(ApplyError::Unknown)?;
                self.remove_session(slot);
                Ok(())
            }
            Program::FibReplace(record) => self.replace_route(record),
            Program::FibRemove(FibRemove {
                prefix, prefix_len, ..
            }) => self
                .fib
                .remove(*prefix, *prefix_len)
                .map_err(|_| ApplyError::Malformed),
            Program::LocalInstall(LocalInstall {
                address, mtu, key, ..
            }) => {
                if !address.is_overlay() || mtu.get() < 1280 {
                    return Err(ApplyError::Malformed);
                }
                self.local = Some(Local {
                    address: *address,
                    mtu: mtu.get(),
                    key: *key,
                });
                Ok(())
            }
            Program::LinkMtu(record) => self.set_link_mtu(record.peer.get(), record.mtu.get()),
            Program::PathMtu(record) => {
                let Some(known) = self.destinations.get_mut(&record.address.subnet_id()) else {
                    // A worker without a lane of the session hands off its packets unsplit.
                    return self.substitute().map(drop).ok_or(ApplyError::Unknown);
                };
                known.path = (record.mtu.get().max(INNER_MTU_MIN), Nanos::NEVER);
                Ok(())
            }
            Program::ResyncBegin(record) => {
                self.generation = record.generation.get();
                Ok(())
            }
            Program::ResyncEnd(record) => self.sweep(record.generation.get()),
            Program::Retain(record) => self.retain(record),
            Program::PendingDrop(record) => {
                for _ in 0..self.pending.abandon(record.address) {
                    self.counters.drop(DropReason::SessionPending);
                }
                Ok(())
            }
            Program::CookieSecret(record) => {
                self.guard.set_cookie_secret(record);
                Ok(())
            }
            Program::NodeSecret(record) => {
                self.guard.set_node_secret(record);
                Ok(())
            }
            Program::SnapshotRequest(_)
            | Program::InjectRaw(..)
            | Program::InjectLinkLocal(..)
            | Program::InjectRouted(..)
            | Program::InjectMtuProbe(_)
            | Program::InjectPathProbe(_)
            | Program::InjectTrace(_) => Err(ApplyError::NotHere),
        }
    }

    fn install_peer(&mut self, record: &PeerInstall) -> Result<(), ApplyError> {
        let number = record.peer.get();
        if number >= PEERS_MAX {
            return Err(ApplyError::Malformed);
        }
        let at = number as usize;
        if self.peers.len() <= at {
            self.peers.resize_with(at + 1, || None);
        }
        let mark = self.generation;
        match &mut self.peers[at] {
            Some(peer) if peer.key == record.key => peer.mark = mark,
            place => {
                // Another key under this number is another peer: its lanes are not this one's.
                *place = Some(Box::new(Peer {
                    key: record.key,
                    subnet: record.key.address().subnet_id(),
                    lanes: LaneSet::default(),
                    mtu: MTU_UNKNOWN,
                    large: false,
                    traffic: Traffic::default(),
                    dirty: false,
                    mark,
                }));
                self.remove_links_of(number);
            }
        }
        Ok(())
    }

    fn set_link_mtu(&mut self, number: u32, mtu: u16) -> Result<(), ApplyError> {
        // Below that, not even the two parts of a cut frame would fit.
        if mtu < DATAGRAM_BASE {
            return Err(ApplyError::Malformed);
        }
        self.peer_mut(number).ok_or(ApplyError::Unknown)?.mtu = mtu;
        let held = self.links.held(0).filter(|(_, link)| link.peer == number);
        let slots: Vec<_> = held.map(|(slot, _)| slot).collect();
        for slot in slots {
            if let Some(link) = self.links.get_mut(slot) {
                link.mtu = mtu;
            }
        }
        Ok(())
    }

    fn remove_peer(&mut self, number: u32) -> Result<(), ApplyError> {
        let place = self
            .peers
            .get_mut(number as usize)
            .ok_or(ApplyError::Unknown)?;
        place.take().ok_or(ApplyError::Unknown)?;
        self.remove_links_of(number);
        Ok(())
    }

    fn remove_links_of(&mut self, number: u32) {
        let held = self.links.held(0).filter(|(_, link)| link.peer == number);
        let slots: Vec<_> = held.map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.remove_link(slot));
    }

    fn install_link(&mut self, now: Nanos, record: &LinkInstall) -> Result<(), ApplyError> {
        let index = SessionIndex(record.receive_index.get());
        if index.0 == 0 || index.worker() != self.config.worker {
            return Err(ApplyError::Malformed);
        }
        let peer = record.peer.get();
        let mtu = self.peer_mut(peer).ok_or(ApplyError::Unknown)?.mtu;
        let mut lane = LinkLane::install(record, self.generation).ok_or(ApplyError::Malformed)?;
        lane.mtu = mtu;
        if self
            .links
            .get(index.slot())
            .is_some_and(|held| held.lane.expired(now))
        {
            self.remove_link(index.slot());
        }
        let active = lane.lane.role == Role::Active;
        let sends_to = (lane.lane.send_index.0, lane.addresses.remote);
        if !self.links.insert(lane) {
            return Err(ApplyError::InUse);
        }
        // Slots have 16 bits.
        self.by_send.insert(sends_to, index.slot() as u32);
        if active {
            self.activate_link(index.slot());
        }
        Ok(())
    }

    fn install_session(&mut self, now: Nanos, record: &SessionInstall) -> Result<(), ApplyError> {
        let index = SessionIndex(record.receive_index.get());
        let belongs = record.key.address().subnet() == record.address.subnet();
        if index.0 == 0 || index.worker() != self.config.worker || !belongs {
            return Err(ApplyError::Malformed);
        }
        let lane = SessionLane::install(record, self.generation).ok_or(ApplyError::Malformed)?;
        if self
            .sessions
            .get(index.slot())
            .is_some_and(|held| held.lane.expired(now))
        {
            self.remove_session(index.slot());
        }
        let active = lane.lane.role == Role::Active;
        if !self.sessions.insert(lane) {
            return Err(ApplyError::InUse);
        }
        if active {
            self.activate_session(index.slot());
        }
        Ok(())
    }

    pub(crate) fn remove_link(&mut self, slot: usize) {
        let Some(link) = self.links.remove(slot) else {
            return;
        };
        let sends_to = (link.lane.send_index.0, link.addresses.remote);
        if self
            .by_send
            .get(&sends_to)
            .is_some_and(|held| *held as usize == slot)
        {
            self.by_send.remove(&sends_to);
        }
        if let Some(peer) = self.peer_mut(link.peer) {
            // Slots have 16 bits.
            peer.lanes.withdraw(slot as u32);
        }
    }

    pub(crate) fn remove_session(&mut self, slot: usize) {
        let Some(session) = self.sessions.remove(slot) else {
            return;
        };
        let id = session.address.subnet_id();
        if let Some(destination) = self.destinations.get_mut(&id) {
            destination.lanes.withdraw(slot as u32);
            if destination.lanes.pick(0).is_none() {
                self.destinations.remove(&id);
            }
        }
    }

    fn replace_route(&mut self, record: &FibReplace) -> Result<(), ApplyError> {
        self.fib
            .replace(record, self.generation)
            .map_err(|_| ApplyError::Malformed)
    }

    fn retain(&mut self, record: &Retain) -> Result<(), ApplyError> {
        let (mark, id) = (self.generation, record.id.get());
        let index = SessionIndex(id);
        let place = match record.kind.get() {
            RETAIN_PEER => self.peer_mut(id).map(|peer| &mut peer.mark),
            RETAIN_LINK => {
                let slot = self.links.find(index).ok_or(ApplyError::Unknown)?;
                self.links.get_mut(slot).map(|link| &mut link.lane.mark)
            }
            RETAIN_SESSION => {
                let slot = self.sessions.find(index).ok_or(ApplyError::Unknown)?;
                self.sessions
                    .get_mut(slot)
                    .map(|session| &mut session.lane.mark)
            }
            _ => return Err(ApplyError::Malformed),
        };
        *place.ok_or(ApplyError::Unknown)? = mark;
        Ok(())
    }

    /// End of a resync: removes what it did not name. A second begin in between makes the first end
    /// mean nothing.
    fn sweep(&mut self, generation: u64) -> Result<(), ApplyError> {
        use crate::session::Indexed;
        if generation != self.generation {
            return Err(ApplyError::Malformed);
        }
        let stale = |mark: u64| mark != generation;
        let links: Vec<_> = self
            .links
            .held(0)
            .filter(|(_, l)| stale(l.mark()))
            .map(|(slot, _)| slot)
            .collect();
        links.into_iter().for_each(|slot| self.remove_link(slot));
        let sessions: Vec<_> = self
            .sessions
            .held(0)
            .filter(|(_, s)| stale(s.mark()))
            .map(|(slot, _)| slot)
            .collect();
        sessions
            .into_iter()
            .for_each(|slot| self.remove_session(slot));
        for number in 0..self.peers.len() {
            if self.peers[number]
                .as_ref()
                .is_some_and(|peer| stale(peer.mark))
            {
                // Peer numbers are below PEERS_MAX.
                self.remove_peer(number as u32)?;
            }
        }
        self.fib.sweep(generation);
        Ok(())
    }
}
