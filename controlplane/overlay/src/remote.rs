//! End-to-end sessions on demand: for packets that wait, and for pings.

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::association::Association;
use crate::ids::Owner;
use crate::keys::Kind;
use crate::liveness::Ping;
use crate::{Event, Overlay};

/// Pending pings of one node; the oldest is evicted.
const PINGS_MAX: usize = 64;
/// Age below which a session may not have reached the worker that requests one.
const SETTLING: Duration = Duration::from_secs(1);

impl Overlay {
    /// A worker queues packets for an address without a session.
    pub(crate) fn need_session(&mut self, now: Nanos, address: OverlayAddress) {
        if !address.is_overlay() || self.address.subnet().contains(address) {
            self.drop_pending(address);
            return;
        }
        let Some(owner) = self.ensure_remote(now, address, None) else {
            self.drop_pending(address);
            self.output.event(Event::SessionFailed { address });
            return;
        };
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if let Some(session) = association.current() {
            if now.since(session.created) >= SETTLING {
                self.renew(now, owner, true);
            }
        } else if now < association.hold_until {
            self.drop_pending(address);
        } else {
            association.address = address;
            self.renew(now, owner, true);
        }
        self.schedule(owner);
    }

    /// Begins an end-to-end session with the node of an address, unless one exists. The result is
    /// [`Event::SessionUp`] or [`Event::SessionFailed`], or none while an attempt has just failed: call again
    /// then.
    pub fn want_session(&mut self, now: Nanos, address: OverlayAddress) {
        if self.is_active() && self.session_key(address).is_none() {
            self.need_session(now, address);
        }
    }

    /// Key of the node with an end-to-end session, by an address of its /64.
    pub fn session_key(&self, address: OverlayAddress) -> Option<PublicKey> {
        let owner = Owner::Remote(address.subnet_id());
        self.associations.get(&owner).filter(|a| a.up)?.key
    }

    /// Largest payload, bytes, that reaches the node of this address, as far as known: the smaller of both
    /// ends' configuration and the path MTU.
    pub fn path_mtu(&self, address: OverlayAddress) -> u16 {
        let owner = Owner::Remote(address.subnet_id());
        let known = self.associations.get(&owner).filter(|a| a.up);
        let most = |association: &Association| association.mtu.min(association.limit.mtu());
        known.map_or(u16::MAX, most).min(self.config.mtu)
    }

    /// Key of the node at the other end of an end-to-end lane, by our index.
    pub fn lane_key(&self, receive: u32) -> Option<PublicKey> {
        let lane = self.lanes.get(&(Kind::EndToEnd, receive))?;
        self.associations.get(&lane.owner)?.key
    }

    /// Sends an end-to-end probe, over a new session if none exists. The answer is [`Event::EchoReply`] with
    /// `id`; it is not guaranteed, so the caller needs a deadline.
    pub fn ping(&mut self, now: Nanos, address: OverlayAddress, id: u64) {
        if self.address.subnet().contains(address) {
            self.output.event(Event::EchoReply {
                id,
                address,
                rtt: Duration::ZERO,
            });
            return;
        }
        if !self.is_active() || !address.is_overlay() {
            return;
        }
        let Some(owner) = self.ensure_remote(now, address, None) else {
            self.output.event(Event::SessionFailed { address });
            return;
        };
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if association.pings.len() >= PINGS_MAX {
            association.pings.pop_front();
        }
        association.pings.push_back(Ping {
            id,
            probe: None,
            asked: now,
            retry_at: Nanos::NEVER,
        });
        if association.up {
            self.send_pings(now, owner);
        } else {
            association.address = address;
            self.renew(now, owner, true);
        }
        self.schedule(owner);
    }
}
