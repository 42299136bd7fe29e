//! What strangers may cost: rates overall and per source, cookies, stateless resets.
//!
//! Everything here has a fixed size and is decided before any Diffie-Hellman and before the punt
//! ring. Rates are kept as one time each (when the bucket would be empty of debt), so a bucket needs
//! neither a timer nor a refill. Sources are an IPv4 address, an IPv6 /64, or an overlay /64;
//! their table is set-associative and what owes least gives way, so a flood of forged sources pushes
//! out others of its kind first and never grows anything.

use ahash::RandomState;
use hyphae_shm::record::{CookieSecret, NodeSecret};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::frame::{
    HOP_LIMIT_DEFAULT, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT, SealedHeaders,
    TAG_LEN, handshake_trailer,
};
use hyphae_wire::guard::{
    self, REPLY_LEN, SESSION_RESET_LEN, SessionReset, TOKEN_LEN, Token, link_token, number_is_ours,
};
use hyphae_wire::handshake::{Message, Step};
use hyphae_wire::{Endpoint, FrameKind, Nanos, OverlayAddress, Service, SessionIndex};
use zerocopy::{FromZeros, IntoBytes};
use zeroize::Zeroize;

use crate::engine::Engine;
use crate::event::EngineEvent;
use crate::verdict::{LinkSlot, Verdict};

/// First messages without a cookie, per second and at once, until the control plane says otherwise.
const INITS: (u32, u32) = (200, 100);
/// How often an accepted reset of one lane is told.
const RESET_AGAIN_NS: u64 = 1_000_000_000;
/// Sources remembered; sets of [`WAYS`].
const SETS: usize = 2048;
const WAYS: usize = 4;

/// Events per second in the long run, and how many at once.
#[derive(Clone, Copy)]
struct Rate {
    interval_ns: u64,
    tolerance_ns: u64,
}

impl Rate {
    const fn new(per_second: u32, burst: u32) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second };
        let interval_ns = 1_000_000_000 / per_second as u64;
        let extra = burst.saturating_sub(1) as u64;
        Self {
            interval_ns,
            tolerance_ns: interval_ns * extra,
        }
    }

    /// Takes one from a bucket whose debt is paid at `paid`; false when there is none.
    fn take(self, paid: &mut u64, now: Nanos) -> bool {
        if *paid > now.0.saturating_add(self.tolerance_ns) {
            return false;
        }
        *paid = (*paid).max(now.0).saturating_add(self.interval_ns);
        true
    }
}

/// What a rate is for.
#[derive(Clone, Copy)]
enum Purpose {
    /// First messages without a cookie.
    Init,
    /// First messages with one.
    Proven,
    /// Answers to handshakes begun here.
    Answer,
    /// Cookies given out.
    Cookie,
    /// Link resets given out.
    Reset,
    /// End-to-end handshake messages that were routed here.
    Routed,
    /// End-to-end resets given out.
    SessionReset,
}

const PURPOSES: usize = 7;

impl Purpose {
    /// Overall and per source. Cookies cost about a send each and answer with a 37th of what came,
    /// so there are many: whoever is really there needs one. A source may be a NAT with many nodes behind it.
    const fn rates(self) -> (Rate, Rate) {
        match self {
            Self::Init => (Rate::new(INITS.0, INITS.1), Rate::new(20, 40)),
            Self::Proven => (Rate::new(1000, 500), Rate::new(100, 200)),
            Self::Answer => (Rate::new(2000, 1000), Rate::new(100, 200)),
            Self::Cookie => (Rate::new(100_000, 10_000), Rate::new(500, 100)),
            Self::Reset => (Rate::new(5000, 500), Rate::new(10, 10)),
            Self::Routed => (Rate::new(2000, 1000), Rate::new(50, 100)),
            Self::SessionReset => (Rate::new(1000, 200), Rate::new(5, 5)),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Source {
    name: u64,
    paid: u64,
}

/// Debts of sources.
struct Sources {
    sets: Box<[[Source; WAYS]]>,
    hasher: RandomState,
}

impl Sources {
    fn new() -> Self {
        Self {
            sets: vec![[Source::default(); WAYS]; SETS].into_boxed_slice(),
            // Seeded per process: nobody can aim for one set.
            hasher: RandomState::new(),
        }
    }

    fn take(&mut self, now: Nanos, purpose: Purpose, rate: Rate, source: [u8; 16]) -> bool {
        // 0 names nobody.
        let name = self.hasher.hash_one((purpose as u8, source)).max(1);
        let set = &mut self.sets[name as usize % SETS];
        if let Some(known) = set.iter_mut().find(|known| known.name == name) {
            return rate.take(&mut known.paid, now);
        }
        let Some(least) = set.iter_mut().min_by_key(|known| known.paid) else {
            return false;
        };
        *least = Source { name, paid: 0 };
        rate.take(&mut least.paid, now)
    }
}

/// Secrets and rates of one worker.
pub(crate) struct Guard {
    node: Option<[u8; 32]>,
    cookies: Option<CookieSecret>,
    inits: Rate,
    overall: [u64; PURPOSES],
    sources: Sources,
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
            sources: Sources::new(),
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

    fn take(&mut self, now: Nanos, purpose: Purpose, source: [u8; 16]) -> bool {
        let (overall, per_source) = purpose.rates();
        let overall = match purpose {
            Purpose::Init => self.inits,
            Purpose::Proven
            | Purpose::Answer
            | Purpose::Cookie
            | Purpose::Reset
            | Purpose::Routed
            | Purpose::SessionReset => overall,
        };
        // The source first: what one source has too much must not cost the others.
        self.sources.take(now, purpose, per_source, source)
            && overall.take(&mut self.overall[purpose as usize], now)
    }

    /// Whether a cookie is one that this node gave to the address; `None` without a cookie.
    fn proves(&self, from: &Endpoint, cookie: &Token) -> Option<bool> {
        let secrets = self.cookies.as_ref()?;
        if *cookie == [0; TOKEN_LEN] {
            return None;
        }
        let valid = |secret: &[u8; 32]| same(&guard::cookie(secret, from), cookie);
        Some(valid(&secrets.current.0) || valid(&secrets.previous.0))
    }
}

/// Compares without telling by its time where the difference is.
fn same(a: &Token, b: &Token) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// What an underlay address is held to: IPv4 the address, IPv6 its /64.
fn source_of(from: &Endpoint) -> [u8; 16] {
    let mut ip = from.ip;
    if !from.to_socket_addr().is_ipv4() {
        ip[8..].fill(0);
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
    pub(crate) fn guard_handshake(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        frame: &mut [u8],
    ) -> Verdict {
        let Ok(message) = Message::parse_frame(frame) else {
            return Verdict::Drop(DropReason::HandshakeMalformed);
        };
        let (step, sender) = (message.step, message.header.sender.get());
        let (receiver, cookie) = (message.header.receiver.get(), message.header.cookie);
        if step != Step::Init {
            return self.guard_answer(now, from, receiver);
        }
        let source = source_of(from);
        let proven = self.guard.proves(from, &cookie);
        if proven == Some(true) {
            return if self.guard.take(now, Purpose::Proven, source) {
                Verdict::PuntHandshake
            } else {
                Verdict::Drop(DropReason::HandshakeLimited)
            };
        }
        let bad = proven == Some(false);
        self.counters.add(Counter::CookiesRefused, u64::from(bad));
        if self.guard.take(now, Purpose::Init, source) {
            return Verdict::PuntHandshake;
        }
        let answer = self.guard.cookies.as_ref().map(|secrets| {
            let cookie = guard::cookie(&secrets.current.0, from);
            guard::encode(FrameKind::CookieReply, sender, &cookie)
        });
        match answer {
            Some(answer) if self.guard.take(now, Purpose::Cookie, source) => {
                self.counters.add(Counter::CookiesSent, 1);
                reply(frame, &answer, DropReason::CookieWanted)
            }
            Some(_) | None => Verdict::Drop(DropReason::HandshakeLimited),
        }
    }

    /// A cookie reply for a handshake begun here.
    pub(crate) fn guard_cookie(&mut self, now: Nanos, from: &Endpoint, frame: &[u8]) -> Verdict {
        match guard::parse(frame) {
            Some((receiver, _)) => self.guard_answer(now, from, receiver),
            None => Verdict::Drop(DropReason::HandshakeMalformed),
        }
    }

    /// What answers a handshake with this number.
    fn guard_answer(&mut self, now: Nanos, from: &Endpoint, number: u32) -> Verdict {
        let ours = self.guard.node.as_ref();
        if number == 0 || !ours.is_none_or(|secret| number_is_ours(secret, number)) {
            return Verdict::Drop(DropReason::HandshakeStray);
        }
        if self.guard.take(now, Purpose::Answer, source_of(from)) {
            Verdict::PuntHandshake
        } else {
            Verdict::Drop(DropReason::HandshakeLimited)
        }
    }

    /// Whether an end-to-end handshake message that was routed here reaches the control plane.
    pub(crate) fn guard_routed(&mut self, now: Nanos, source: OverlayAddress) -> bool {
        self.guard
            .take(now, Purpose::Routed, overlay_source(source))
    }

    /// A frame of a link session that no worker of this node knows: its sender may not know yet
    /// that we were restarted.
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
        if !answerable || !self.guard.take(now, Purpose::Reset, source_of(from)) {
            return Verdict::Drop(unknown);
        }
        self.counters.add(Counter::ResetsSent, 1);
        let answer = guard::encode(FrameKind::StatelessReset, index.0, &token);
        reply(frame, &answer, unknown)
    }

    /// A neighbour says that it does not know our session. The token is checked before anything is
    /// counted against anybody, so forged ones cannot use up the right of the true one.
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
    pub(crate) fn reset_session(
        &mut self,
        now: Nanos,
        headers: &SealedHeaders,
        frame: &mut [u8],
    ) -> Verdict {
        let unknown = Verdict::Drop(DropReason::SessionUnknown);
        let index = SessionIndex(headers.session.receiver.get());
        let (Some(secret), Some(local)) = (self.guard.node.as_ref(), self.local) else {
            return unknown;
        };
        let source = headers.routing.source;
        let len = OVERHEAD + SESSION_RESET_LEN;
        if index.0 == 0 || frame.len() < len || self.is_local(source) {
            return unknown;
        }
        let reset = SessionReset::new(secret, index);
        if !self
            .guard
            .take(now, Purpose::SessionReset, overlay_source(source))
        {
            return unknown;
        }
        let frame = &mut frame[..len];
        let mut answer = SealedHeaders::new_zeroed();
        answer.routing.destination = source;
        answer.routing.source = local.address;
        answer.routing.hop_limit = HOP_LIMIT_DEFAULT;
        answer.routing.service = Service::Handshake.code();
        // 24.
        answer.routing.payload_len.set(SESSION_RESET_LEN as u16);
        frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(answer.as_bytes());
        frame[PAYLOAD_AT..len - TAG_LEN].copy_from_slice(reset.as_bytes());
        frame[len - TAG_LEN..].copy_from_slice(&handshake_trailer(reset.as_bytes()));
        let sent = self.egress(source, 0, SessionIndex(0)).and_then(|egress| {
            self.seal_transit(now, egress, frame)?;
            Ok(egress)
        });
        let Ok(egress) = sent else {
            return unknown;
        };
        self.counters.add(Counter::ResetsSent, 1);
        self.counters.drop(DropReason::SessionUnknown);
        // Slots have 16 bits; the length is that of a header and a little.
        Verdict::TransmitPart(LinkSlot(egress as u32), len as u32)
    }
}

fn overlay_source(address: OverlayAddress) -> [u8; 16] {
    let mut subnet = address.0;
    subnet[8..].fill(0);
    subnet
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_for_ever() {
        let rate = Rate::new(10, 5);
        let mut paid = 0;
        let at_once = (0..100)
            .filter(|_| rate.take(&mut paid, Nanos(SECOND)))
            .count();
        assert_eq!(at_once, 5);
        let later = (1..=10_000u64)
            .filter(|ms| rate.take(&mut paid, Nanos(SECOND + ms * 1_000_000)))
            .count();
        assert_eq!(later, 100);
    }

    #[test]
    fn one_source_never_takes_from_another() {
        let mut guard = Guard::new();
        let (loud, quiet) = ([1; 16], [2; 16]);
        let now = Nanos(SECOND);
        let loud_taken = (0..1000)
            .filter(|_| guard.take(now, Purpose::Init, loud))
            .count();
        assert_eq!(loud_taken, 40);
        assert!(guard.take(now, Purpose::Init, quiet));
    }

    #[test]
    fn forged_sources_do_not_wash_a_debtor_out() {
        let mut guard = Guard::new();
        let rate = Purpose::Proven.rates().1;
        let now = Nanos(SECOND);
        let debtor = [9; 16];
        let take =
            |guard: &mut Guard, source| guard.sources.take(now, Purpose::Proven, rate, source);
        while take(&mut guard, debtor) {}
        for n in 0..200_000u128 {
            take(&mut guard, (n << 1).to_be_bytes());
        }
        assert!(
            !take(&mut guard, debtor),
            "its debt is the greatest of its set"
        );
    }
}
