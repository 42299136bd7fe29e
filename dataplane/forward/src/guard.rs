//! What strangers may cost: rates overall and per source, cookies, stateless resets.
//!
//! Everything here has a fixed size and is decided before any Diffie-Hellman and before the punt
//! ring. No rate counts against a name that anybody can write into a frame, where that would take
//! from its true owner: a source (an IPv4 address, an IPv6 /64, an overlay /64) counts only against
//! what has no cookie on a link, where a cookie is the way out, and against what has proved it.
//! Without proof, routed first messages count against the neighbour that they come from; answers
//! against the handshake that they name; resets against source and index, which others do not know.
//! One place may have many names, so each place has a share of what all have together: an IPv4
//! address or an IPv6 /48 of the underlay, or the neighbour that a routed frame came from.

use std::hash::Hash;

use hyphae_shm::record::{CookieSecret, NodeSecret};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::{
    HOP_LIMIT_DEFAULT, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT, SealedHeaders,
    TAG_LEN, handshake_trailer,
};
use hyphae_wire::guard::{
    self, REPLY_LEN, SESSION_RESET_LEN, SessionCookie, SessionReset, TOKEN_LEN, Token, link_token,
    number_is_ours,
};
use hyphae_wire::handshake::{HandshakeError, HandshakeStep, Message};

use hyphae_wire::{Endpoint, FrameKind, OverlayAddress, Service, SessionIndex};
use zerocopy::{FromZeros, IntoBytes};
use zeroize::Zeroize;

use crate::engine::Engine;
use crate::event::EngineEvent;
use crate::rate::{Buckets, Rate};
use crate::receive::transmit_part;
use crate::verdict::Verdict;

/// First messages without a cookie, per second and at once, until the control plane says otherwise.
const INITS: (u32, u32) = (200, 100);
/// One place may have this part of what all have together.
const SHARE: u32 = 4;
/// How often an accepted reset of one lane is told.
const RESET_AGAIN_NS: u64 = 1_000_000_000;
/// Sets of sources that are remembered.
const SETS: usize = 2048;
/// Sets of places that are remembered.
const SHARE_SETS: usize = 512;

/// What a rate is for.
#[derive(Clone, Copy, Hash)]
enum Purpose {
    /// First messages of links without a cookie.
    Init,
    /// First messages of links with one.
    Proven,
    /// Second messages of links, and cookies for handshakes begun here.
    Answer,
    /// Third messages of links.
    Finish,
    /// Cookies given out on links.
    Cookie,
    /// Link resets given out.
    Reset,
    /// First end-to-end messages without a cookie.
    RoutedInit,
    /// First end-to-end messages with one.
    RoutedProven,
    /// Second end-to-end messages, and cookies for handshakes begun here.
    RoutedAnswer,
    /// Third end-to-end messages.
    RoutedFinish,
    /// End-to-end resets that come.
    RoutedReset,
    /// Cookies given out end to end.
    RoutedCookie,
    /// End-to-end resets given out.
    SessionReset,
}

const PURPOSES: usize = 13;

impl Purpose {
    /// Overall, per place and per name. Cookies and resets cost about a send each and are shorter than what
    /// came, so there are many: whoever is really there needs one. A source may be a NAT with many
    /// nodes behind it.
    const fn rates(self) -> (Rate, Option<Rate>, Rate) {
        // First messages without a cookie have another way in; those end to end count against the
        // neighbour already, like the cookies for them.
        let (overall, shared, name) = match self {
            Self::Init => (INITS, false, (20, 40)),
            Self::Proven => ((1000, 500), true, (100, 100)),
            Self::Cookie => ((100_000, 10_000), true, (20_000, 2000)),
            Self::RoutedCookie => ((100_000, 10_000), false, (20_000, 2000)),
            Self::Reset | Self::SessionReset => ((50_000, 5000), true, (5, 5)),
            Self::RoutedInit => (INITS, false, (50, 100)),
            Self::RoutedProven => ((1000, 500), true, (50, 100)),
            // A handshake repeats its messages seven times in its life.
            Self::Answer | Self::Finish | Self::RoutedAnswer | Self::RoutedFinish => {
                ((10_000, 5000), true, (4, 40))
            }
            Self::RoutedReset => ((5000, 500), true, (5, 5)),
        };
        let share = if shared {
            Some(Rate::new(overall.0 / SHARE, overall.1 / SHARE))
        } else {
            None
        };
        (
            Rate::new(overall.0, overall.1),
            share,
            Rate::new(name.0, name.1),
        )
    }
}

/// Secrets and rates of one worker.
pub(crate) struct Guard {
    node: Option<[u8; 32]>,
    cookies: Option<CookieSecret>,
    inits: Rate,
    overall: [u64; PURPOSES],
    buckets: Buckets,
    /// Apart from those of names, which owe for longer and would push them out.
    shares: Buckets,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.node.zeroize();
        self.forget_cookies();
    }
}

impl Guard {
    pub(crate) fn new() -> Self {
        Self {
            node: None,
            cookies: None,
            inits: Purpose::Init.rates().0,
            overall: [0; PURPOSES],
            buckets: Buckets::new(SETS),
            shares: Buckets::new(SHARE_SETS),
        }
    }

    pub(crate) fn set_node_secret(&mut self, record: &NodeSecret) {
        self.node.zeroize();
        self.node = Some(record.secret.0);
    }

    pub(crate) fn set_cookie_secret(&mut self, record: &CookieSecret) {
        self.forget_cookies();
        self.inits = Rate::new(record.inits_per_second.get(), record.inits_burst.get());
        self.cookies = Some(*record);
    }

    fn forget_cookies(&mut self) {
        if let Some(cookies) = &mut self.cookies {
            cookies.current.zeroize();
            cookies.previous.zeroize();
        }
    }

    /// Takes one of what a purpose may, in the name of one who is at a place.
    fn take(&mut self, now: Nanos, purpose: Purpose, place: impl Hash, name: impl Hash) -> bool {
        let (overall, share, per_name) = purpose.rates();
        let overall = match purpose {
            Purpose::Init | Purpose::RoutedInit => self.inits,
            Purpose::Proven
            | Purpose::Answer
            | Purpose::Finish
            | Purpose::Cookie
            | Purpose::Reset
            | Purpose::RoutedProven
            | Purpose::RoutedAnswer
            | Purpose::RoutedFinish
            | Purpose::RoutedReset
            | Purpose::RoutedCookie
            | Purpose::SessionReset => overall,
        };
        // The name first, then the place: what one has too much must not cost the others.
        self.buckets.take(now, per_name, (purpose, name))
            && share.is_none_or(|share| self.shares.take(now, share, (purpose, place)))
            && overall.take(&mut self.overall[purpose as usize], now)
    }

    /// Whether a cookie is one that this node gave to the address; `None` without a cookie.
    fn proves(&self, from: &Endpoint, cookie: &Token) -> Option<bool> {
        self.valid(cookie, |secret| guard::cookie(secret, from))
    }

    /// The same of an overlay /64.
    fn proves_subnet(&self, source: OverlayAddress, cookie: &Token) -> Option<bool> {
        self.valid(cookie, |secret| guard::session_cookie(secret, source))
    }

    fn valid(&self, cookie: &Token, made: impl Fn(&[u8; 32]) -> Token) -> Option<bool> {
        let secrets = self.cookies.as_ref()?;
        if *cookie == [0; TOKEN_LEN] {
            return None;
        }
        let valid = |secret: &[u8; 32]| same(&made(secret), cookie);
        Some(valid(&secrets.current.0) || valid(&secrets.previous.0))
    }

    /// Whether this node may have given out a handshake number lately.
    fn knows_number(&self, number: u32) -> bool {
        let secrets = self.cookies.as_ref();
        let ours = |secrets: &CookieSecret| {
            let mut both = [&secrets.current.0, &secrets.previous.0].into_iter();
            both.any(|secret| number_is_ours(secret, number))
        };
        number != 0 && secrets.is_none_or(ours)
    }
}

/// Compares without telling by its time where the difference is.
fn same(a: &Token, b: &Token) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// What an underlay address is held to: IPv4 the address, IPv6 its /64.
fn source_of(from: &Endpoint) -> [u8; 16] {
    prefix_of(from, 8)
}

/// Where it is: IPv4 the address, IPv6 its /48, which one customer has.
fn place_of(from: &Endpoint) -> [u8; 16] {
    prefix_of(from, 6)
}

fn prefix_of(from: &Endpoint, bytes: usize) -> [u8; 16] {
    let mut ip = from.ip;
    if !from.to_socket_addr().is_ipv4() {
        ip[bytes..].fill(0);
    }
    ip
}

/// A frame of an underlay source that goes back to it, rewritten in place.
fn reply(frame: &mut [u8], reply: &[u8; REPLY_LEN], reason: DropReason) -> Verdict {
    frame[..REPLY_LEN].copy_from_slice(reply);
    Verdict::Reply {
        // 32.
        len: REPLY_LEN as u32,
        reason,
    }
}

impl Engine {
    /// A link handshake frame: whether it reaches the control plane.
    #[inline(never)]
    pub(crate) fn guard_handshake(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        frame: &mut [u8],
    ) -> Verdict {
        let (place, source) = (place_of(from), source_of(from));
        let message = match Message::parse_frame(frame) {
            Ok(message) => message,
            // The control plane reports the version, at the rate of unproven sources.
            Err(HandshakeError::Version(_)) => {
                let taken = self.guard.take(now, Purpose::Init, place, source);
                return if taken {
                    Verdict::PuntHandshake
                } else {
                    Verdict::Drop(DropReason::HandshakeLimited)
                };
            }
            Err(HandshakeError::Short | HandshakeError::Step(_) | HandshakeError::Offer) => {
                return Verdict::Drop(DropReason::HandshakeMalformed);
            }
        };
        let (step, sender) = (message.step, message.header.sender.get());
        let (receiver, cookie) = (message.header.receiver.get(), message.header.cookie);
        let short = message.is_short_link();
        match step {
            HandshakeStep::Init => {}
            HandshakeStep::Response => {
                return self.guard_answer(now, Purpose::Answer, from, receiver);
            }
            HandshakeStep::Finish => {
                return self.guard_answer(now, Purpose::Finish, from, receiver);
            }
        }
        let proven = self.guard.proves(from, &cookie);
        if proven == Some(true) {
            return if self.guard.take(now, Purpose::Proven, place, source) {
                Verdict::PuntHandshake
            } else {
                Verdict::Drop(DropReason::HandshakeLimited)
            };
        }
        let bad = proven == Some(false);
        self.counters.add(Counter::CookiesRefused, u64::from(bad));
        // The answer to a short one would be longer than it.
        if !short && self.guard.take(now, Purpose::Init, place, source) {
            return Verdict::PuntHandshake;
        }
        let answer = self.guard.cookies.as_ref().map(|secrets| {
            let cookie = guard::cookie(&secrets.current.0, from);
            guard::encode(FrameKind::CookieReply, sender, &cookie)
        });
        match answer {
            Some(answer) if self.guard.take(now, Purpose::Cookie, place, source) => {
                self.counters.add(Counter::CookiesSent, 1);
                reply(frame, &answer, DropReason::CookieWanted)
            }
            Some(_) | None => Verdict::Drop(DropReason::HandshakeLimited),
        }
    }

    /// A cookie reply for a handshake begun here.
    #[inline(never)]
    pub(crate) fn guard_cookie(&mut self, now: Nanos, from: &Endpoint, frame: &[u8]) -> Verdict {
        match guard::parse(frame) {
            Some((receiver, _)) => self.guard_answer(now, Purpose::Answer, from, receiver),
            None => Verdict::Drop(DropReason::HandshakeMalformed),
        }
    }

    /// What answers a handshake with this number.
    fn guard_answer(
        &mut self,
        now: Nanos,
        purpose: Purpose,
        from: &Endpoint,
        number: u32,
    ) -> Verdict {
        self.guard_numbered(now, purpose, place_of(from), number, Verdict::PuntHandshake)
    }

    /// A frame of the handshake service that was routed here, from a neighbour: `punt` when it reaches the
    /// control plane.
    #[inline(never)]
    pub(crate) fn guard_routed(
        &mut self,
        now: Nanos,
        peer: u32,
        source: OverlayAddress,
        frame: &mut [u8],
        punt: Verdict,
    ) -> Verdict {
        let payload = &frame[PAYLOAD_AT..frame.len() - TAG_LEN];
        let limited = Verdict::Drop(DropReason::HandshakeLimited);
        let stray = Verdict::Drop(DropReason::HandshakeStray);
        let subnet = source.subnet_id();
        if let Some(reset) = SessionReset::parse(payload) {
            // Without a session there is nothing to reset.
            let name = (subnet, reset.index.get());
            return if !self.destinations.contains_key(&subnet) {
                stray
            } else if self.guard.take(now, Purpose::RoutedReset, peer, name) {
                punt
            } else {
                limited
            };
        }
        if let Some(cookie) = SessionCookie::parse(payload) {
            let number = cookie.number.get();
            return self.guard_numbered(now, Purpose::RoutedAnswer, peer, number, punt);
        }
        let message = match Message::parse(payload) {
            Ok(message) => message,
            // The same, at the rate of the neighbour.
            Err(HandshakeError::Version(_)) => {
                let taken = self.guard.take(now, Purpose::RoutedInit, peer, peer);
                return if taken { punt } else { limited };
            }
            Err(HandshakeError::Short | HandshakeError::Step(_) | HandshakeError::Offer) => {
                return Verdict::Drop(DropReason::HandshakeMalformed);
            }
        };
        let receiver = message.header.receiver.get();
        match message.step {
            HandshakeStep::Init => {
                let short = message.is_short_session();
                let (sender, cookie) = (message.header.sender.get(), message.header.cookie);
                self.guard_routed_init(now, (peer, source), (sender, short, cookie), frame, punt)
            }
            HandshakeStep::Response => {
                self.guard_numbered(now, Purpose::RoutedAnswer, peer, receiver, punt)
            }
            HandshakeStep::Finish => {
                self.guard_numbered(now, Purpose::RoutedFinish, peer, receiver, punt)
            }
        }
    }

    /// A first end-to-end message: its number, whether it is short, and its cookie.
    fn guard_routed_init(
        &mut self,
        now: Nanos,
        (peer, source): (u32, OverlayAddress),
        (sender, short, cookie): (u32, bool, Token),
        frame: &mut [u8],
        punt: Verdict,
    ) -> Verdict {
        let limited = Verdict::Drop(DropReason::HandshakeLimited);
        let subnet = source.subnet_id();
        let proven = self.guard.proves_subnet(source, &cookie);
        if proven == Some(true) {
            let taken = self.guard.take(now, Purpose::RoutedProven, peer, subnet);
            return if taken { punt } else { limited };
        }
        let bad = proven == Some(false);
        self.counters.add(Counter::CookiesRefused, u64::from(bad));
        // The answer to a short one would be longer than it.
        if !short && self.guard.take(now, Purpose::RoutedInit, peer, peer) {
            return punt;
        }
        let answer = self.guard.cookies.as_ref();
        let answer = answer.map(|secrets| SessionCookie::new(&secrets.current.0, sender, source));
        match answer {
            Some(answer) if self.guard.take(now, Purpose::RoutedCookie, peer, peer) => {
                match self.answer_routed(now, source, answer.as_bytes(), frame) {
                    Some(verdict) => {
                        self.counters.add(Counter::CookiesSent, 1);
                        self.counters.drop(DropReason::CookieWanted);
                        verdict
                    }
                    None => limited,
                }
            }
            Some(_) | None => limited,
        }
    }

    fn guard_numbered(
        &mut self,
        now: Nanos,
        purpose: Purpose,
        place: impl Hash,
        number: u32,
        punt: Verdict,
    ) -> Verdict {
        if !self.guard.knows_number(number) {
            Verdict::Drop(DropReason::HandshakeStray)
        } else if self.guard.take(now, purpose, place, number) {
            punt
        } else {
            Verdict::Drop(DropReason::HandshakeLimited)
        }
    }

    /// A frame of a link session that no worker of this node knows: its sender may not know yet
    /// that we were restarted.
    #[inline(never)]
    pub(crate) fn reset_link(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        index: SessionIndex,
        frame: &mut [u8],
    ) -> Verdict {
        let unknown = DropReason::LinkUnknown;
        let Some(token) = self.guard.node.as_ref().map(|s| link_token(s, index)) else {
            return Verdict::Drop(unknown);
        };
        // What a handed-over frame lost its source of cannot be answered.
        let answerable = frame.len() > REPLY_LEN && !from.is_unset();
        let name = (source_of(from), index.0);
        if !answerable || !self.guard.take(now, Purpose::Reset, place_of(from), name) {
            return Verdict::Drop(unknown);
        }
        self.counters.add(Counter::ResetsSent, 1);
        let answer = guard::encode(FrameKind::StatelessReset, index.0, &token);
        reply(frame, &answer, unknown)
    }

    /// A neighbour says that it does not know our session. The token is checked before anything is
    /// counted against anybody, so forged ones cannot use up the right of the true one.
    #[inline(never)]
    pub(crate) fn take_reset(&mut self, now: Nanos, from: &Endpoint, frame: &[u8]) -> Verdict {
        let refused = Verdict::Drop(DropReason::ResetRefused);
        let Some((index, token)) = guard::parse(frame) else {
            return refused;
        };
        let Some(slot) = self.by_send.get(&(index, *from)).copied() else {
            return refused;
        };
        // Slots have 16 bits.
        let Some(link) = self.links.get_mut(slot as usize) else {
            return refused;
        };
        let lane = &mut link.lane;
        let genuine = lane.reset != [0; TOKEN_LEN] && same(&lane.reset, &token);
        if !genuine || lane.expired(now) {
            return refused;
        }
        self.counters.add(Counter::ResetsAccepted, 1);
        if now.0 >= lane.reset_told {
            lane.reset_told = now.0.saturating_add(RESET_AGAIN_NS);
            let receive_index = lane.receive_index.0;
            self.report(EngineEvent::LaneReset { receive_index });
        }
        Verdict::Done
    }

    /// A frame of an end-to-end session that this node does not know goes back to its source as a
    /// reset, in place and not longer than it came.
    #[inline(never)]
    pub(crate) fn reset_session(
        &mut self,
        now: Nanos,
        peer: u32,
        headers: &SealedHeaders,
        frame: &mut [u8],
    ) -> Verdict {
        let unknown = Verdict::Drop(DropReason::SessionUnknown);
        let index = SessionIndex(headers.session.receiver.get());
        let Some(secret) = self.guard.node.as_ref() else {
            return unknown;
        };
        let source = headers.routing.source;
        if index.0 == 0 || frame.len() < OVERHEAD + SESSION_RESET_LEN {
            return unknown;
        }
        let reset = SessionReset::new(secret, index);
        let name = (source.subnet_id(), index.0);
        if !self.guard.take(now, Purpose::SessionReset, peer, name) {
            return unknown;
        }
        let Some(verdict) = self.answer_routed(now, source, reset.as_bytes(), frame) else {
            return unknown;
        };
        self.counters.add(Counter::ResetsSent, 1);
        self.counters.drop(DropReason::SessionUnknown);
        verdict
    }

    /// A routed frame goes back to its source as another of the handshake service, in place and not
    /// longer than it came; `None` when it cannot.
    fn answer_routed(
        &mut self,
        now: Nanos,
        source: OverlayAddress,
        payload: &[u8],
        frame: &mut [u8],
    ) -> Option<Verdict> {
        let local = self.local.filter(|_| !self.is_local(source))?;
        let len = OVERHEAD + payload.len();
        let frame = frame.get_mut(..len)?;
        let mut answer = SealedHeaders::new_zeroed();
        answer.routing.destination = source;
        answer.routing.source = local.address;
        answer.routing.hop_limit = HOP_LIMIT_DEFAULT;
        answer.routing.service = Service::Handshake.code();
        // 24.
        answer.routing.payload_len.set(payload.len() as u16);
        frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(answer.as_bytes());
        frame[PAYLOAD_AT..len - TAG_LEN].copy_from_slice(payload);
        frame[len - TAG_LEN..].copy_from_slice(&handshake_trailer(payload));
        let egress = self.egress_or_handoff(source, 0, SessionIndex(0)).ok()?;
        self.seal_egress(now, egress, frame, len).ok()?;
        Some(transmit_part(egress, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn one_source_never_takes_from_another() {
        let mut guard = Guard::new();
        let (loud, quiet) = ([1; 16], [2; 16]);
        let now = Nanos(SECOND);
        let loud_taken = (0..1000)
            .filter(|_| guard.take(now, Purpose::Init, loud, loud))
            .count();
        assert_eq!(loud_taken, 40);
        assert!(guard.take(now, Purpose::Init, quiet, quiet));
    }
}
