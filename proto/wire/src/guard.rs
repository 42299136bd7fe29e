//! Stateless defence against unauthenticated sources: cookies, stateless resets, handshake numbers.
//!
//! All values are computed from a secret and the frame, so they cost no memory, work before any Diffie-Hellman,
//! and survive the loss of state.
//!
//! ```text
//! cookie reply, stateless reset            32 bytes, shorter than anything that earns one
//! +------------------------------------+-------------------+
//! | link header 16                     | cookie or token   |
//! | receiver: echoed from the frame    | 16                |
//! +------------------------------------+-------------------+
//!
//! handshake number of this node            session reset (payload of a routed handshake frame)
//!  31           12 11         0            +---------+------+------------+-----------+----------+
//! +---------------+------------+           | version | step | reserved   | index u32 | token 16 |
//! | random        | check      |           |         | = 4  | u16        |           |          |
//! +---------------+------------+           +---------+------+------------+-----------+----------+
//!
//! session cookie: the same with step 5, the number of the handshake, and a cookie
//! ```

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{FrameKind, LINK_HEADER_LEN, LinkHeader};
use crate::handshake::VERSION;
use crate::{Endpoint, OverlayAddress, SecretKey, SessionIndex, on_wiped_stack};

/// Bytes of a cookie or a reset token.
pub const TOKEN_LEN: usize = 16;
/// Bytes of a cookie reply and of a stateless reset.
pub const REPLY_LEN: usize = LINK_HEADER_LEN + TOKEN_LEN;
/// Bytes of a [`SessionReset`].
pub const SESSION_RESET_LEN: usize = size_of::<SessionReset>();

/// A cookie or a reset token; all zero for none.
pub type Token = [u8; TOKEN_LEN];

const CONTEXT: &str = "hyphae v1 guard";
/// Check bits of a handshake number.
const CHECK_BITS: u32 = 12;
/// Step codes of a [`SessionReset`] and a [`SessionCookie`]; 1 to 3 are the handshake's.
const SESSION_RESET_STEP: u8 = 4;
const SESSION_COOKIE_STEP: u8 = 5;

/// Secret of reset tokens. It is derived from the node's key, so a restarted node computes the same tokens.
pub fn node_secret(identity: &SecretKey) -> [u8; 32] {
    on_wiped_stack(|| blake3::derive_key(CONTEXT, identity.as_bytes()))
}

fn keyed(secret: &[u8; 32], what: u8, bytes: &[u8]) -> Token {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    let hash = *hasher.update(&[what]).update(bytes).finalize().as_bytes();
    let mut token = [0; TOKEN_LEN];
    token.copy_from_slice(&hash[..TOKEN_LEN]);
    token
}

/// Token that proves that the sender of a reset issued the index of a link lane.
pub fn link_token(node_secret: &[u8; 32], index: SessionIndex) -> Token {
    keyed(node_secret, 1, &index.0.to_le_bytes())
}

/// The same for an end-to-end lane.
pub fn session_token(node_secret: &[u8; 32], index: SessionIndex) -> Token {
    keyed(node_secret, 2, &index.0.to_le_bytes())
}

/// Makes a handshake number of 20 random bits and 12 check bits, by which a worker recognises answers to
/// handshakes of this node. The secret is that of cookies: collected numbers stay usable until it has been
/// rotated twice.
pub fn number(secret: &[u8; 32], random: u32) -> u32 {
    let high = random >> CHECK_BITS << CHECK_BITS;
    let check = keyed(secret, 3, &high.to_le_bytes());
    let check = u32::from_le_bytes([check[0], check[1], check[2], check[3]]);
    high | check >> (u32::BITS - CHECK_BITS)
}

/// Whether a handshake number was made with a secret; one in 4096 others passes.
pub fn number_is_ours(secret: &[u8; 32], candidate: u32) -> bool {
    candidate != 0 && number(secret, candidate) == candidate
}

/// Cookie: proof that a node receives at an underlay address.
pub fn cookie(secret: &[u8; 32], address: &Endpoint) -> Token {
    keyed(secret, 4, address.as_bytes())
}

/// Cookie: proof that a node receives at an overlay /64.
pub fn session_cookie(secret: &[u8; 32], source: OverlayAddress) -> Token {
    keyed(secret, 5, &source.0[..8])
}

/// Encodes a [`FrameKind::CookieReply`] or [`FrameKind::StatelessReset`].
pub fn encode(kind: FrameKind, receiver: u32, token: &Token) -> [u8; REPLY_LEN] {
    let mut frame = [0; REPLY_LEN];
    frame[..LINK_HEADER_LEN].copy_from_slice(LinkHeader::new(kind, receiver, 0).as_bytes());
    frame[LINK_HEADER_LEN..].copy_from_slice(token);
    frame
}

/// Parses one: the echoed number, and the cookie or token. `None` when length or counter differ from those of
/// [`encode`].
pub fn parse(frame: &[u8]) -> Option<(u32, Token)> {
    let (header, token) = LinkHeader::split(frame)?;
    let token: Token = token.try_into().ok()?;
    (header.counter.get() == 0).then_some((header.receiver.get(), token))
}

/// Stateless reset of an end-to-end session, sent in place of a handshake message to answer a frame of an
/// unknown session.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SessionReset {
    /// [`VERSION`].
    pub version: u8,
    /// 4.
    pub step: u8,
    /// Zero.
    pub reserved: U16,
    /// Receiver index of the frame.
    pub index: U32,
    /// [`session_token`] of it.
    pub token: Token,
}

const _: () = assert!(size_of::<SessionReset>() == 24);

impl SessionReset {
    /// Reset of the lane that the frame named.
    pub fn new(node_secret: &[u8; 32], index: SessionIndex) -> Self {
        Self {
            version: VERSION,
            step: SESSION_RESET_STEP,
            reserved: U16::ZERO,
            index: U32::new(index.0),
            token: session_token(node_secret, index),
        }
    }

    /// Parses one; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let reset = Self::read_from_bytes(bytes).ok()?;
        let valid = reset.version == VERSION
            && reset.step == SESSION_RESET_STEP
            && reset.reserved.get() == 0;
        valid.then_some(reset)
    }
}

/// Cookie for a first end-to-end handshake message without proof of its source.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SessionCookie {
    /// [`VERSION`].
    pub version: u8,
    /// 5.
    pub step: u8,
    /// Zero.
    pub reserved: U16,
    /// Sender's number of the handshake.
    pub number: U32,
    /// [`session_cookie`] of the /64 that the message came from.
    pub token: Token,
}

const _: () = assert!(size_of::<SessionCookie>() == SESSION_RESET_LEN);

impl SessionCookie {
    /// A cookie for the source of a first message.
    pub fn new(secret: &[u8; 32], number: u32, source: OverlayAddress) -> Self {
        Self {
            version: VERSION,
            step: SESSION_COOKIE_STEP,
            reserved: U16::ZERO,
            number: U32::new(number),
            token: session_cookie(secret, source),
        }
    }

    /// Parses one; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let cookie = Self::read_from_bytes(bytes).ok()?;
        let valid = cookie.version == VERSION
            && cookie.step == SESSION_COOKIE_STEP
            && cookie.reserved.get() == 0;
        valid.then_some(cookie)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::from(text.parse::<SocketAddr>().unwrap())
    }

    #[test]
    fn a_cookie_is_bound_to_address_and_port_and_secret() {
        let here = cookie(&[1; 32], &endpoint("192.0.2.1:9670"));
        for (secret, other) in [
            (1, "192.0.2.1:9671"),
            (1, "192.0.2.2:9670"),
            (1, "[2001:db8::1]:9670"),
            (2, "192.0.2.1:9670"),
        ] {
            assert_ne!(here, cookie(&[secret; 32], &endpoint(other)), "{other}");
        }
    }

    #[test]
    fn tokens_differ_by_index_and_kind_and_node() {
        let index = SessionIndex(0x0102_0304);
        let tokens = [
            link_token(&[1; 32], index),
            session_token(&[1; 32], index),
            link_token(&[1; 32], SessionIndex(0x0102_0305)),
            link_token(&[2; 32], index),
        ];
        let distinct: std::collections::BTreeSet<_> = tokens.into_iter().collect();
        assert_eq!(distinct.len(), tokens.len());
    }

    #[test]
    fn few_numbers_of_others_pass_for_ours() {
        let secret = [7; 32];
        assert!((0..1000u32).all(|n| number_is_ours(&secret, number(&secret, n << 13 | 1 << 12))));
        let strangers = (0..100_000u32).map(|n| n.wrapping_mul(0x9e37_79b9));
        let passed = strangers.filter(|n| number_is_ours(&secret, *n)).count();
        assert!(
            (5..60).contains(&passed),
            "about 24 of 100,000 pass: {passed}"
        );
        assert!(!number_is_ours(&secret, 0));
    }

    #[test]
    fn replies_survive_a_round_trip_and_nothing_else_is_one() {
        let frame = encode(FrameKind::StatelessReset, 7, &[9; 16]);
        assert_eq!(parse(&frame), Some((7, [9; 16])));
        assert_eq!(parse(&frame[..31]), None);
        assert_eq!(parse(&[&frame[..], &[0]].concat()), None);
        let mut counted = frame;
        counted[8] = 1;
        assert_eq!(parse(&counted), None);
    }

    #[test]
    fn a_session_cookie_is_bound_to_a_subnet_and_is_nothing_else() {
        let (mut here, mut there) = (OverlayAddress([4; 16]), OverlayAddress([4; 16]));
        let cookie = SessionCookie::new(&[1; 32], 9, here);
        here.0[15] = 7;
        there.0[7] = 7;
        assert_eq!(cookie.token, session_cookie(&[1; 32], here), "same /64");
        assert_ne!(cookie.token, session_cookie(&[1; 32], there));
        assert_ne!(cookie.token, session_cookie(&[2; 32], here));
        let bytes = cookie.as_bytes();
        assert!(crate::handshake::Message::parse(bytes).is_err());
        assert!(SessionReset::parse(bytes).is_none());
        let read = SessionCookie::parse(bytes).unwrap();
        assert_eq!((read.number.get(), read.token), (9, cookie.token));
        assert!(SessionCookie::parse(&bytes[1..]).is_none());
    }

    #[test]
    fn a_session_reset_is_not_a_handshake_message() {
        let reset = SessionReset::new(&[1; 32], SessionIndex(5));
        assert!(crate::handshake::Message::parse(reset.as_bytes()).is_err());
        let read = SessionReset::parse(reset.as_bytes()).unwrap();
        assert_eq!((read.index.get(), read.token), (5, reset.token));
        for at in 0..4 {
            let mut other = reset;
            other.as_mut_bytes()[at] ^= 0x40;
            assert!(SessionReset::parse(other.as_bytes()).is_none(), "byte {at}");
        }
    }
}
