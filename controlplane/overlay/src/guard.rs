//! Control-plane part of the guard: secrets for the workers, cookies for handshakes initiated by this node, and the
//! handling of stateless resets.
//!
//! A reset proves that the other end issued the index of a lane and no longer knows it. It costs only a
//! handshake: the session stays until a new one is confirmed. It names a session, and only the one in use
//! counts, so a recorded and replayed reset has no effect.

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
use crate::ids::Owner;
use crate::keys::Kind;

/// Period for which a secret makes cookies and handshake numbers; they are accepted for one more.
const ROTATE: Duration = Duration::from_secs(60);
// A handshake ends before its number is no longer accepted.
const _: () = assert!(
    ROTATE.as_secs() > LINK_TIMEOUT.as_secs() + CONFIRM_TIMEOUT.as_secs()
        && ROTATE.as_secs() > HALF_OPEN_LIFE.as_secs()
);
/// Rate limit of resets of one node: one per this time in the long run,
const RESET_EVERY: Duration = Duration::from_secs(2);
/// and a burst of this many more, because a node may restart several times in a row.
const RESETS_EXTRA: u32 = 3;
/// Age from which a handshake that waits for confirmation is considered to be based on state that the other end
/// has lost.
const CONFIRM_STALE: Duration = Duration::from_secs(1);
/// Fewest first messages per second that a worker takes without a cookie.
const INITS_MIN: u32 = 10;

impl Overlay {
    /// Programs the secrets into the workers, at every attach.
    pub(crate) fn arm_guard(&mut self, now: Nanos) {
        let node = NodeSecret {
            secret: Secret(*self.node_secret),
        };
        self.output
            .program_all(self.workers, &Program::NodeSecret(&node));
        // Not regenerated each time: after two restarts of the dataplane in a row the answers to handshakes in
        // flight would be refused.
        if self.cookies.due <= now {
            self.rotate_cookies(now);
        } else {
            self.program_cookies();
        }
    }

    /// Regenerates the cookie secret; the previous one stays valid.
    pub(crate) fn rotate_cookies(&mut self, now: Nanos) {
        let fresh = self.rng.array();
        let current = std::mem::replace(&mut self.cookies.current, fresh);
        // Before the first rotation no number was issued: no handshake begins before adoption.
        self.cookies.previous = if current == [0; 32] { fresh } else { current };
        self.cookies.due = now + ROTATE;
        self.program_cookies();
    }

    fn program_cookies(&mut self) {
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

    /// A node requests the first message again, with proof of our address. Answered once for each message that
    /// was sent: a forger who saw the message gains at most one repetition.
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
        // The previous attempt is what was answered.
        let message = outgoing.message_to(carrier, outgoing.attempts.wrapping_sub(1));
        self.send_handshake(carrier, &message);
    }

    /// Whether a first message may be answered: an unpadded one only when its cookie proves the source,
    /// although the workers have checked that already.
    pub(crate) fn may_answer(&self, carrier: Carrier, message: &Message<'_>) -> bool {
        let short = match carrier {
            Carrier::Underlay { .. } => message.is_short_link(),
            Carrier::Overlay { .. } => message.is_short_session(),
            // The session authenticates the sender.
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

    /// A worker received proof that the neighbour has lost the session of a lane.
    pub(crate) fn on_lane_reset(&mut self, now: Nanos, index: u32) {
        if let Some(lane) = self.lanes.get(&(Kind::Link, index)).copied() {
            self.on_reset(now, lane.owner, lane.epoch);
        }
    }

    /// Handles a session reset of the other end.
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
        // A handshake that has just begun is what the reset asks for.
        if let Some((_, outgoing)) = &flying
            && now.since(outgoing.began) < RETRANSMIT_MIN
        {
            return;
        }
        association.resets_paid = association.resets_paid.max(now) + RESET_EVERY;
        match flying {
            // Repeat at once: the next repetition may be far, and the other end answers now.
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
    /// The message for a carrier at an attempt: with the cookie that came from there. A first message omits its
    /// padding in every other round over all carriers, for paths that drop large datagrams silently.
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

/// Constant-time comparison, by digest.
fn same(a: &Token, b: &Token) -> bool {
    blake3::hash(a) == blake3::hash(b)
}
