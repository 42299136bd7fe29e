//! The control plane's part of the guard: secrets for the workers, cookies for handshakes begun
//! here, and what a neighbour's or an end's stateless reset leads to.
//!
//! A reset proves that the other end gave out the index of a lane and does not know it any more. It
//! costs nothing but a handshake: the session stays as it is until a new one is confirmed. It names
//! a session, and only the one in use counts, so one that somebody recorded and plays again does no
//! harm.

use std::time::Duration;

use hyphae_shm::record::{CookieSecret, NodeSecret, Program, Secret};
use hyphae_time::Nanos;
use hyphae_wire::frame::LINK_HEADER_LEN;
use hyphae_wire::guard::{self, SessionReset, Token};
use hyphae_wire::handshake::{Message, set_session_cookie, unpad};
use zerocopy::little_endian::U32;
use zeroize::Zeroize;

use crate::Overlay;
use crate::engine::Timer;
use crate::handshake::{
    CONFIRM_TIMEOUT, Carrier, HALF_OPEN_LIFE, LINK_TIMEOUT, Outgoing, RETRANSMIT_MIN, Stage,
};
use crate::keys::Kind;
use crate::session::Owner;

/// How long cookies and handshake numbers are made with a secret; it is checked for as long again.
const ROTATE: Duration = Duration::from_secs(60);
// A handshake must be over before its number is no longer taken.
const _: () = assert!(
    ROTATE.as_secs() > LINK_TIMEOUT.as_secs() + CONFIRM_TIMEOUT.as_secs()
        && ROTATE.as_secs() > HALF_OPEN_LIFE.as_secs()
);
/// Resets of one node are heeded this often in the long run,
const RESET_EVERY: Duration = Duration::from_secs(2);
/// and this many more at once: a node may be restarted several times in a row.
const RESETS_EXTRA: u32 = 3;
/// A handshake that has waited this long for its confirmation when a reset comes was begun with
/// what the other end has forgotten.
const CONFIRM_STALE: Duration = Duration::from_secs(1);
/// Fewest first messages per second that a worker takes without a cookie.
const INITS_MIN: u32 = 10;

/// Secrets that cookies and handshake numbers are made with.
#[derive(Default)]
pub(crate) struct CookieSecrets {
    current: [u8; 32],
    previous: [u8; 32],
    /// When the next one is due; adoption does not put it off.
    due: Nanos,
}

impl CookieSecrets {
    /// A handshake number that the workers take answers to.
    pub(crate) fn number(&self, random: u32) -> u32 {
        guard::number(&self.current, random)
    }
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
        // Not anew each time: a dataplane that is restarted twice in a row would refuse the answers
        // to handshakes in flight.
        if self.cookies.due <= now {
            self.rotate_cookies(now);
        } else {
            self.tell_cookies();
        }
    }

    /// A new cookie secret; the one before goes on being checked.
    pub(crate) fn rotate_cookies(&mut self, now: Nanos) {
        let fresh = self.rng.array();
        let current = std::mem::replace(&mut self.cookies.current, fresh);
        // Before the first rotation nothing was given out: no handshake begins before adoption.
        self.cookies.previous = if current == [0; 32] { fresh } else { current };
        self.cookies.due = now + ROTATE;
        self.tell_cookies();
    }

    fn tell_cookies(&mut self) {
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
        self.timers.set(Timer::Cookies, self.cookies.due);
    }

    /// A node wants its first message again, with proof of our address. Once for each message that
    /// was sent: a forger who saw the message gains no more than one repetition of it.
    pub(crate) fn on_cookie(&mut self, from: Carrier, number: u32, cookie: Token) {
        let Some(outgoing) = self.outgoing.get_mut(&number) else {
            return;
        };
        let all = outgoing.carriers.iter().chain(&outgoing.fallback.carriers);
        let asked = all.copied().find(|carrier| carrier.leads_to(from));
        let waiting = matches!(outgoing.stage, Stage::Response(_));
        let sent = outgoing.attempts.wrapping_add(outgoing.fallback.sent);
        let Some(carrier) = asked.filter(|_| waiting && outgoing.cookie_for != sent) else {
            return;
        };
        outgoing.cookie_for = sent;
        outgoing.cookie = Some((from, cookie));
        // The one before this attempt: it is what was answered.
        let message = outgoing.message_to(carrier, outgoing.attempts.wrapping_sub(1));
        self.send_handshake(carrier, &message);
    }

    /// Whether a first message may be answered: one that is not padded, only when it proves its
    /// source, though the workers have looked at that already.
    pub(crate) fn may_answer(&self, carrier: Carrier, message: &Message<'_>) -> bool {
        let short = match carrier {
            Carrier::Underlay { .. } => message.is_short_link(),
            Carrier::Overlay { .. } => message.is_short_session(),
            // The session that it came in proves who sent it.
            Carrier::Sealed { .. } => return true,
        };
        let proves = |secret: &[u8; 32]| {
            let made = match carrier {
                Carrier::Underlay { endpoint, .. } => guard::cookie(secret, &endpoint),
                Carrier::Overlay { address, .. } => guard::session_cookie(secret, address),
                Carrier::Sealed { .. } => return false,
            };
            same(&made, &message.header.cookie)
        };
        !short || proves(&self.cookies.current) || proves(&self.cookies.previous)
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
    /// The message as it goes one way at an attempt: with the cookie that came from there, and a first
    /// message without its padding every other time that it has gone everywhere, for paths that
    /// carry no more and do not say so.
    pub(crate) fn message_to(&self, carrier: Carrier, attempt: u32) -> Vec<u8> {
        let mut message = self.message.clone();
        if !matches!(self.stage, Stage::Response(_)) {
            return message;
        }
        let header_at = match carrier.kind() {
            Kind::Link => LINK_HEADER_LEN,
            Kind::EndToEnd => 0,
        };
        if let Some((from, cookie)) = &self.cookie
            && carrier.leads_to(*from)
        {
            set_session_cookie(&mut message[header_at..], cookie);
        }
        let round = u32::try_from(self.carriers.len()).unwrap_or(1).max(1);
        let datagram = match carrier {
            Carrier::Underlay { endpoint, .. } => !endpoint.is_stream(),
            Carrier::Overlay { .. } => true,
            Carrier::Sealed { .. } => false,
        };
        if datagram && attempt / round % 2 == 1 {
            unpad(&mut message, header_at);
        }
        message
    }
}

/// Compares by digest, whose comparison takes the same time wherever a difference is.
fn same(a: &Token, b: &Token) -> bool {
    blake3::hash(a) == blake3::hash(b)
}
