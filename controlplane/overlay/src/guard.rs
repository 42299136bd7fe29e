//! The control plane's part of the guard: secrets for the workers, cookies for handshakes begun
//! here, and what a neighbour's or an end's stateless reset leads to.
//!
//! A reset proves that the other end gave out the index of a lane and does not know it any more. It
//! costs nothing but a handshake: the session stays as it is until a new one is confirmed. It names
//! a session, and only the one in use counts, so one that somebody recorded and plays again does no
//! harm.

use std::time::Duration;

use hyphae_shm::record::{CookieSecret, NodeSecret, Program, Secret};
use hyphae_wire::guard::{SessionReset, Token};
use hyphae_wire::handshake::set_cookie;
use hyphae_wire::{Endpoint, Nanos};
use zerocopy::little_endian::U32;
use zeroize::Zeroize;

use crate::Overlay;
use crate::engine::Timer;
use crate::handshake::{Carrier, Outgoing, RETRANSMIT_MIN, Stage};
use crate::keys::Kind;
use crate::session::Owner;

/// How long a cookie secret is given out; it is checked for as long again.
const ROTATE: Duration = Duration::from_secs(120);
/// Resets of one node are heeded this often in the long run,
const RESET_EVERY: Duration = Duration::from_secs(2);
/// and this many more at once: a node may be restarted several times in a row.
const RESETS_EXTRA: u32 = 3;
/// A handshake that has waited this long for its confirmation when a reset comes was begun with
/// what the other end has forgotten.
const CONFIRM_STALE: Duration = Duration::from_secs(1);
/// Fewest first messages per second that a worker takes without a cookie.
const INITS_MIN: u32 = 10;

/// Secrets that cookies are made with.
#[derive(Default)]
pub(crate) struct CookieSecrets {
    current: [u8; 32],
    previous: [u8; 32],
}

impl Drop for CookieSecrets {
    fn drop(&mut self) {
        self.current.zeroize();
        self.previous.zeroize();
    }
}

impl Overlay {
    /// Gives the workers what they need, at every attach.
    pub(crate) fn arm_guard(&mut self, now: Nanos) {
        let node = NodeSecret {
            secret: Secret(*self.node_secret),
        };
        self.output
            .program_all(self.workers, &Program::NodeSecret(&node));
        self.rotate_cookies(now);
    }

    /// A new cookie secret; the one before goes on being checked.
    pub(crate) fn rotate_cookies(&mut self, now: Nanos) {
        let fresh = self.rng.array();
        let current = std::mem::replace(&mut self.cookies.current, fresh);
        // Before the first rotation nothing was given out.
        self.cookies.previous = if current == [0; 32] { fresh } else { current };
        let per_worker = self.config.inits_per_second / u32::from(self.workers);
        let inits_per_second = per_worker.max(INITS_MIN);
        let mut record = CookieSecret {
            current: Secret(self.cookies.current),
            previous: Secret(self.cookies.previous),
            inits_per_second: U32::new(inits_per_second),
            inits_burst: U32::new(inits_per_second.div_ceil(2)),
        };
        self.output
            .program_all(self.workers, &Program::CookieSecret(&record));
        record.current.zeroize();
        record.previous.zeroize();
        self.timers.set(Timer::Cookies, now + ROTATE);
    }

    /// A node under load wants its first message again, with proof of our address. Once for each
    /// message that was sent: a forger who saw the message gains no more than one repetition of it.
    pub(crate) fn on_cookie(&mut self, from: Endpoint, number: u32, cookie: Token) {
        let Some(outgoing) = self.outgoing.get_mut(&number) else {
            return;
        };
        let all = outgoing.carriers.iter().chain(&outgoing.fallback.carriers);
        let asked = all.copied().find(
            |carrier| matches!(carrier, Carrier::Underlay { endpoint, .. } if *endpoint == from),
        );
        let waiting = matches!(outgoing.stage, Stage::Response(_));
        let sent = outgoing.attempts.wrapping_add(outgoing.fallback.sent);
        let Some(carrier) = asked.filter(|_| waiting && outgoing.cookie_for != sent) else {
            return;
        };
        outgoing.cookie_for = sent;
        outgoing.cookie = Some((from, cookie));
        let message = outgoing.message_to(carrier);
        self.send_handshake(carrier, &message);
    }

    /// A worker holds proof that the neighbour lost the session of a lane.
    pub(crate) fn on_lane_reset(&mut self, now: Nanos, index: u32) {
        if let Some(lane) = self.lanes.get(&(Kind::Link, index)).copied() {
            self.on_reset(now, lane.owner, lane.epoch);
        }
    }

    /// The other end of a session says that it lost it.
    pub(crate) fn on_session_reset(&mut self, now: Nanos, carrier: Carrier, reset: &SessionReset) {
        let Carrier::Overlay { address, .. } = carrier else {
            return;
        };
        let owner = Owner::Remote(address.subnet_id());
        let Some(session) = self.associations.get(&owner).and_then(|a| a.current()) else {
            return;
        };
        let lanes = session.lanes.iter();
        let proven = lanes
            .filter(|lane| lane.send.0 == reset.index.get())
            .any(|lane| lane.reset != Token::default() && same(&lane.reset, &reset.token));
        if proven {
            let epoch = session.epoch;
            self.on_reset(now, owner, epoch);
        }
    }

    fn on_reset(&mut self, now: Nanos, owner: Owner, epoch: u32) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let in_use = association.current().is_some_and(|s| s.epoch == epoch);
        if !in_use || now + RESET_EVERY * RESETS_EXTRA < association.resets_paid {
            return;
        }
        let flying = association
            .outgoing
            .and_then(|id| Some((id, self.outgoing.get_mut(&id)?)));
        // One that has just begun is what the reset asks for.
        if let Some((_, outgoing)) = &flying
            && now.since(outgoing.began) < RETRANSMIT_MIN
        {
            return;
        }
        association.resets_paid = association.resets_paid.max(now) + RESET_EVERY;
        match flying {
            // It may be waiting long for its next repetition, and somebody answers now.
            Some((id, outgoing)) if matches!(outgoing.stage, Stage::Response(_)) => {
                outgoing.next_at = now;
                outgoing.interval = RETRANSMIT_MIN;
                self.outgoing_due(now, id);
            }
            Some((id, outgoing)) if now.since(outgoing.began) >= CONFIRM_STALE => {
                self.fail(now, id, None);
                self.renew(now, owner, true);
            }
            Some(_) => {}
            None => self.renew(now, owner, true),
        }
        self.schedule(owner);
    }
}

impl Outgoing {
    /// The message as it goes one way: with the cookie that came from there.
    pub(crate) fn message_to(&self, carrier: Carrier) -> Vec<u8> {
        let mut message = self.message.clone();
        if let (Stage::Response(_), Some((from, cookie)), Carrier::Underlay { endpoint, .. }) =
            (&self.stage, &self.cookie, carrier)
            && endpoint == *from
        {
            set_cookie(&mut message, cookie);
        }
        message
    }
}

/// Compares by digest, whose comparison takes the same time wherever a difference is.
fn same(a: &Token, b: &Token) -> bool {
    blake3::hash(a) == blake3::hash(b)
}
