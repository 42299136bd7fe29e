//! End-to-end sessions on demand: for packets that wait, and for pings.

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::keys::Kind;
use crate::session::{Association, Owner, Ping};
use crate::{Event, Overlay};

/// Pings of one node that wait for their answer; an older one gives way.
const PINGS_MAX: usize = 64;
/// A session younger than this may not have reached the worker that asks for one.
const SETTLING: Duration = Duration::from_secs(1);

impl Overlay {
    /// A worker holds packets for an address without a session.
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

    /// Makes an end-to-end session with the node of an address, if there is none. What comes of it
    /// is [`Event::SessionUp`] or [`Event::SessionFailed`], or nothing while one has just failed:
    /// ask again then.
    pub fn want_session(&mut self, now: Nanos, address: OverlayAddress) {
        if self.is_active() && self.session_key(address).is_none() {
            self.need_session(now, address);
        }
    }

    /// Key of the node that there is an end-to-end session with, by an address of its /64.
    pub fn session_key(&self, address: OverlayAddress) -> Option<PublicKey> {
        let owner = Owner::Remote(address.subnet_id());
        self.associations.get(&owner).filter(|a| a.up)?.key
    }

    /// Bytes of the largest payload that reaches the node of this address, as far as known: what it and this node are
    /// set up for, and what links and relays on the way have refused.
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

    /// Sends an end-to-end probe, making a session first if there is none. The answer is
    /// [`Event::EchoReply`] with `id`. There may be none, so the caller keeps a deadline.
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
