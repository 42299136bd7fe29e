//! Framing and payloads of handshakes.
//!
//! The same three Noise XX messages serve a link (in frames of their own) and an end-to-end session (in transit
//! frames of [`crate::Service::Handshake`]), each behind a [`HandshakeHeader`]. The first message is padded
//! with zeros, to [`INIT_LEN`] on a link and [`SESSION_INIT_LEN`] end to end, so that no answer is longer than
//! its request. A shorter one, for paths with a small MTU, needs a valid cookie.
//!
//! ```text
//! link:        | link header 16 | handshake header 32 | Noise message | padding (first only) |
//! end to end:                   | handshake header 32 | Noise message | padding (first only) |
//! ```
//!
//! Payload of each Noise message ([`Offer`]), the first in the clear but covered by the transcript:
//!
//! ```text
//! | version | suites | workers | lanes | mtu u16 | ports | resets |
//! | ports x u16 | lanes x u32 | resets x 16 | instance u64, or nothing |
//! ```
//!
//! Message 1 offers suites and the worker count. Message 2 selects one suite and lists the responder's receiver
//! index for each lane ([`Lane::count`](crate::Lane::count)); message 3 lists the initiator's. Both add the
//! reset tokens of their first lanes ([`crate::guard`]), and optionally the instance number.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

use crate::frame::{FrameKind, LINK_HEADER_LEN, LinkHeader};
use crate::guard::{TOKEN_LEN, Token};
use crate::index::{LANES_MAX, WORKERS_MAX};
use crate::{NetworkId, SessionIndex, SuiteSet};

/// Protocol version of handshakes and frames; all others are refused.
pub const VERSION: u8 = 1;
/// Bytes of a first link message, padding included.
pub const INIT_LEN: usize = 1200;
/// Largest Noise message of a handshake.
pub const NOISE_MAX: usize = INIT_LEN - LINK_HEADER_LEN - size_of::<HandshakeHeader>();
/// Reset tokens of a session, limited so that the second message is shorter than the first, whatever else it
/// contains. Lane 0, which is always probed, has one.
pub const RESETS_MAX: usize = 32;
/// Bytes of a first end-to-end message, padding included: the length of the longest second message (a key, a
/// sealed key and a sealed payload).
pub const SESSION_INIT_LEN: usize = size_of::<HandshakeHeader>()
    + (32 + 48 + 16)
    + OFFER_FIXED_LEN
    + LANES_MAX as usize * 4
    + RESETS_MAX * TOKEN_LEN;
/// The Noise protocol of both handshakes.
pub const NOISE_PATTERN: &str = "Noise_XX_25519_ChaChaPoly_BLAKE2s";
/// The same within a private network, whose key enters the third message.
pub const NOISE_PATTERN_PRIVATE: &str = "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s";

/// Message of the handshake, with its Noise pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandshakeStep {
    /// `-> e`
    Init,
    /// `<- e, ee, s, es`
    Response,
    /// `-> s, se`
    Finish,
}

impl HandshakeStep {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Init => 1,
            Self::Response => 2,
            Self::Finish => 3,
        }
    }

    /// The step of a code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Init,
            2 => Self::Response,
            3 => Self::Finish,
            _ => return None,
        })
    }

    /// Kind of the link frame that carries it.
    pub const fn frame_kind(self) -> FrameKind {
        match self {
            Self::Init => FrameKind::HandshakeInit,
            Self::Response => FrameKind::HandshakeResponse,
            Self::Finish => FrameKind::HandshakeFinish,
        }
    }
}

/// Header before every Noise message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HandshakeHeader {
    /// [`VERSION`].
    pub version: u8,
    /// [`HandshakeStep`] code.
    pub step: u8,
    /// Bytes of the Noise message.
    pub noise_len: U16,
    /// Sender's random number of the handshake.
    pub sender: U32,
    /// The other side's `sender`; 0 in the first message.
    pub receiver: U32,
    /// Number of the sender's network ([`NetworkId`]). It only explains refusals; non-members are excluded by
    /// the network's key in the transcript.
    pub network: U32,
    /// Cookie, else zero.
    pub cookie: [u8; 16],
}

const _: () = assert!(size_of::<HandshakeHeader>() == 32);

/// A parsed handshake message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Which of the three messages.
    pub step: HandshakeStep,
    /// Its header.
    pub header: &'a HandshakeHeader,
    /// The Noise message.
    pub noise: &'a [u8],
    /// Bytes from the handshake header to the end, padding included.
    pub len: usize,
}

/// Why a handshake message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Shorter than its headers or its stated length.
    #[error("handshake message is cut short")]
    Short,
    /// Another version of the protocol.
    #[error("handshake of protocol version {0}; this node speaks {VERSION}")]
    Version(u8),
    /// An unknown step, or one that differs from the frame kind.
    #[error("handshake step {0} is not valid here")]
    Step(u8),
    /// A payload that is inconsistent or exceeds the protocol's limits.
    #[error("handshake payload is not valid")]
    Offer,
}

impl<'a> Message<'a> {
    /// Parses handshake header and Noise message; bytes after them are padding.
    ///
    /// # Errors
    /// When it is cut short, of an unknown step or, if nothing else is wrong so far, of another version.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HandshakeError> {
        let (header, rest) =
            Ref::<_, HandshakeHeader>::from_prefix(bytes).map_err(|_| HandshakeError::Short)?;
        let header = Ref::into_ref(header);
        let step =
            HandshakeStep::from_code(header.step).ok_or(HandshakeError::Step(header.step))?;
        if header.version != VERSION {
            return Err(HandshakeError::Version(header.version));
        }
        let noise = rest
            .get(..usize::from(header.noise_len.get()))
            .ok_or(HandshakeError::Short)?;
        Ok(Self {
            step,
            header,
            noise,
            len: bytes.len(),
        })
    }

    /// Parses a whole link frame.
    ///
    /// # Errors
    /// As [`Self::parse`]; also when frame kind and step differ.
    pub fn parse_frame(datagram: &'a [u8]) -> Result<Self, HandshakeError> {
        let (link, rest) = LinkHeader::split(datagram).ok_or(HandshakeError::Short)?;
        let parsed = Ref::<_, HandshakeHeader>::from_prefix(rest);
        let (header, _) = parsed.map_err(|_| HandshakeError::Short)?;
        let kind = HandshakeStep::from_code(header.step).map(|step| step.frame_kind().code());
        if kind != Some(link.kind) {
            return Err(HandshakeError::Step(header.step));
        }
        Self::parse(rest)
    }

    /// Whether it is an unpadded first message of a link, which needs a valid cookie under any load.
    pub fn is_short_link(&self) -> bool {
        self.step == HandshakeStep::Init && self.len + LINK_HEADER_LEN < INIT_LEN
    }

    /// The same end to end.
    pub fn is_short_session(&self) -> bool {
        self.step == HandshakeStep::Init && self.len < SESSION_INIT_LEN
    }
}

/// Length of handshake header and Noise message without padding; `None` when malformed.
pub fn len(bytes: &[u8]) -> Option<usize> {
    let message = Message::parse(bytes).ok()?;
    Some(size_of::<HandshakeHeader>() + message.noise.len())
}

/// Encodes handshake header and Noise message, in the public network.
///
/// # Panics
/// When `noise` is longer than [`NOISE_MAX`].
pub fn encode(step: HandshakeStep, sender: u32, receiver: u32, noise: &[u8]) -> Vec<u8> {
    encode_in(NetworkId::PUBLIC, step, sender, receiver, noise)
}

/// Encodes handshake header and Noise message.
///
/// # Panics
/// When `noise` is longer than [`NOISE_MAX`].
pub fn encode_in(
    network: NetworkId,
    step: HandshakeStep,
    sender: u32,
    receiver: u32,
    noise: &[u8],
) -> Vec<u8> {
    assert!(
        noise.len() <= NOISE_MAX,
        "a Noise message of this protocol fits the first frame"
    );
    let header = HandshakeHeader {
        version: VERSION,
        step: step.code(),
        noise_len: U16::new(u16::try_from(noise.len()).unwrap_or(u16::MAX)),
        sender: U32::new(sender),
        receiver: U32::new(receiver),
        network: U32::new(network.0),
        cookie: [0; 16],
    };
    [header.as_bytes(), noise].concat()
}

/// Encodes an end-to-end message, the first one padded.
///
/// # Panics
/// As [`encode`].
pub fn encode_session_in(
    network: NetworkId,
    step: HandshakeStep,
    sender: u32,
    receiver: u32,
    noise: &[u8],
) -> Vec<u8> {
    let mut message = encode_in(network, step, sender, receiver, noise);
    if step == HandshakeStep::Init {
        message.resize(message.len().max(SESSION_INIT_LEN), 0);
    }
    message
}

/// Encodes a link frame, the first message padded, in the public network.
///
/// # Panics
/// As [`encode`].
pub fn encode_frame(step: HandshakeStep, sender: u32, receiver: u32, noise: &[u8]) -> Vec<u8> {
    encode_frame_in(NetworkId::PUBLIC, step, sender, receiver, noise)
}

/// Encodes a link frame, the first message padded.
///
/// # Panics
/// As [`encode`].
pub fn encode_frame_in(
    network: NetworkId,
    step: HandshakeStep,
    sender: u32,
    receiver: u32,
    noise: &[u8],
) -> Vec<u8> {
    let link = LinkHeader::new(step.frame_kind(), 0, 0);
    let message = encode_in(network, step, sender, receiver, noise);
    let mut frame = [link.as_bytes(), &message].concat();
    if step == HandshakeStep::Init {
        frame.resize(INIT_LEN, 0);
    }
    frame
}

/// Sets the cookie of a first link message. The cookie is not part of the Noise transcript.
pub fn set_cookie(frame: &mut [u8], cookie: &Token) {
    if let Some(message) = frame.get_mut(LINK_HEADER_LEN..) {
        set_session_cookie(message, cookie);
    }
}

/// Sets the cookie of a first end-to-end message.
pub fn set_session_cookie(message: &mut [u8], cookie: &Token) {
    let end = size_of::<HandshakeHeader>();
    if let Some(place) = message.get_mut(end - TOKEN_LEN..end) {
        place.copy_from_slice(cookie);
    }
}

/// Removes the padding of a link frame or, with `skip` 0 instead of [`LINK_HEADER_LEN`], of an end-to-end
/// message.
pub fn unpad(message: &mut Vec<u8>, skip: usize) {
    if let Some(Ok(parsed)) = message.get(skip..).map(Message::parse) {
        let len = skip + size_of::<HandshakeHeader>() + parsed.noise.len();
        message.truncate(len);
    }
}

/// Payload of a handshake message: offered or selected parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Offered suites (message 1) or the selected one (messages 2 and 3).
    pub suites: SuiteSet,
    /// Workers of the sender, 1 to 64.
    pub workers: u16,
    /// Largest inner packet of the sender, bytes.
    pub mtu: u16,
    /// UDP port of each worker, as bound; empty end to end.
    pub ports: Vec<u16>,
    /// Receiver index of each lane; empty in message 1.
    pub lanes: Vec<SessionIndex>,
    /// Reset tokens of the first lanes, at most [`RESETS_MAX`].
    pub resets: Vec<Token>,
    /// Instance number of the sender's dataplane, which detects two hosts with one key; 0 for none, as in
    /// message 1, which is in the clear.
    pub instance: u64,
}

const OFFER_FIXED_LEN: usize = 8;

impl Offer {
    /// Encodes the payload.
    pub fn encode(&self) -> Vec<u8> {
        // All fields are at most 64 here.
        let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let mut out = vec![
            VERSION,
            self.suites.0,
            byte(usize::from(self.workers)),
            byte(self.lanes.len()),
        ];
        out.extend(self.mtu.to_le_bytes());
        out.extend([byte(self.ports.len()), byte(self.resets.len())]);
        self.ports
            .iter()
            .for_each(|port| out.extend(port.to_le_bytes()));
        self.lanes
            .iter()
            .for_each(|index| out.extend(index.0.to_le_bytes()));
        out.extend(self.resets.iter().flatten());
        if self.instance != 0 {
            out.extend(self.instance.to_le_bytes());
        }
        out
    }

    /// Parses a payload, whose length must match exactly.
    ///
    /// # Errors
    /// [`HandshakeError::Version`] for another version, [`HandshakeError::Offer`] for anything
    /// else.
    pub fn parse(bytes: &[u8]) -> Result<Self, HandshakeError> {
        let (fixed, rest) = bytes
            .split_at_checked(OFFER_FIXED_LEN)
            .ok_or(HandshakeError::Offer)?;
        if fixed[0] != VERSION {
            return Err(HandshakeError::Version(fixed[0]));
        }
        let (workers, lanes, ports) = (u16::from(fixed[2]), fixed[3], fixed[6]);
        let resets = usize::from(fixed[7]);
        let in_range = (1..=WORKERS_MAX).contains(&workers)
            && u16::from(lanes) <= LANES_MAX
            && u16::from(ports) <= WORKERS_MAX
            && resets <= RESETS_MAX.min(lanes.into());
        let (ports_len, lanes_len) = (usize::from(ports) * 2, usize::from(lanes) * 4);
        if !in_range {
            return Err(HandshakeError::Offer);
        }
        let len = ports_len + lanes_len + resets * TOKEN_LEN;
        let (rest, instance) = rest.split_at_checked(len).ok_or(HandshakeError::Offer)?;
        let instance = match <[u8; 8]>::try_from(instance) {
            _ if instance.is_empty() => 0,
            Ok(bytes) if bytes != [0; 8] => u64::from_le_bytes(bytes),
            Ok(_) | Err(_) => return Err(HandshakeError::Offer),
        };
        let (ports, rest) = rest.split_at(ports_len);
        let (lanes, resets) = rest.split_at(lanes_len);
        Ok(Self {
            suites: SuiteSet(fixed[1]),
            workers,
            mtu: u16::from_le_bytes([fixed[4], fixed[5]]),
            ports: ports
                .chunks_exact(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
                .collect(),
            lanes: lanes
                .chunks_exact(4)
                .map(|b| SessionIndex(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            resets: resets.as_chunks::<TOKEN_LEN>().0.to_vec(),
            instance,
        })
    }
}
