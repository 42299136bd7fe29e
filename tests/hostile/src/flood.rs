//! Forged first messages for floods.

use hyphae_wire::SecretKey;
use hyphae_wire::frame::LINK_HEADER_LEN;
use hyphae_wire::handshake::HandshakeHeader;

use crate::{Claims, Hostile, Session};

/// Offset of the handshake number in a message.
const NUMBER_AT: usize = 4;

/// First messages with the same claims, each with another handshake number and ephemeral key.
pub struct FirstMessages {
    bytes: Vec<u8>,
    /// Start of the handshake header.
    at: usize,
    random: u64,
}

impl FirstMessages {
    /// Frames of link handshakes.
    ///
    /// # Errors
    /// When the claims fit no message.
    pub fn link(from: &Hostile, claims: &Claims) -> anyhow::Result<Self> {
        let (_, bytes) = from.first_message(claims, 1)?;
        Ok(Self::of(bytes, LINK_HEADER_LEN))
    }

    /// Payloads of end-to-end handshakes, for [`crate::Link::unsealed`].
    ///
    /// # Errors
    /// When the claims fit no message.
    pub fn end_to_end(identity: &SecretKey, claims: &Claims) -> anyhow::Result<Self> {
        let (_, bytes) = Session::first_message(identity, claims, 1)?;
        Ok(Self::of(bytes, 0))
    }

    fn of(bytes: Vec<u8>, at: usize) -> Self {
        let random = 0x9e37_79b9_7f4a_7c15;
        Self { bytes, at, random }
    }

    /// The next message.
    pub fn forge(&mut self) -> &[u8] {
        let key = self.random().to_le_bytes();
        let (number, ephemeral) = (self.at + NUMBER_AT, self.at + size_of::<HandshakeHeader>());
        self.bytes[number..number + 4].copy_from_slice(&key[..4]);
        self.bytes[ephemeral..ephemeral + 8].copy_from_slice(&key);
        &self.bytes
    }

    /// xorshift64: forged values must differ, not be unpredictable.
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
