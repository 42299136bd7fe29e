//! A node's key pair and the file it is kept in.
//!
//! A node is an X25519 key pair. The key file holds the 32 secret bytes and nothing else.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x25519_dalek::StaticSecret;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::OverlayAddress;

/// Bytes of a public or secret key.
pub const KEY_LEN: usize = 32;

/// An X25519 public key. Written as 64 lower-case hex digits.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct PublicKey(pub [u8; KEY_LEN]);

impl Hash for PublicKey {
    /// By its first bytes: nobody finds keys that share these.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl PublicKey {
    /// The overlay address that belongs to this key.
    pub fn address(&self) -> OverlayAddress {
        OverlayAddress::from_key(self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every message that is taken out shows two keys: one write, not 32.
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 2 * KEY_LEN];
        for (digits, byte) in text.chunks_exact_mut(2).zip(self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a public key: expected 64 hex digits")]
pub struct InvalidPublicKey(pub String);

impl FromStr for PublicKey {
    type Err = InvalidPublicKey;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || InvalidPublicKey(s.to_owned());
        if s.len() != 2 * KEY_LEN {
            return Err(error());
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            b'A'..=b'F' => Ok(digit - b'A' + 10),
            _ => Err(error()),
        };
        let mut key = [0; KEY_LEN];
        for (byte, digits) in key.iter_mut().zip(s.as_bytes().chunks_exact(2)) {
            *byte = value(digits[0])? << 4 | value(digits[1])?;
        }
        Ok(Self(key))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// An X25519 secret key: the content of a key file. Wiped on drop, never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; KEY_LEN]);

/// The bytes of a key file are not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecretKey {
    /// A key file holds exactly 32 bytes.
    #[error("holds {0} bytes; a key file holds exactly 32")]
    Length(usize),
    /// All-zero bytes are a file that was never written, not a key.
    #[error("holds only zero bytes; it was never written")]
    Zero,
}

impl SecretKey {
    /// A new key from the operating system's random source.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; KEY_LEN];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Reads the content of a key file.
    ///
    /// # Errors
    /// When it is not 32 bytes, or all zero.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSecretKey> {
        let key: [u8; KEY_LEN] = bytes
            .try_into()
            .map_err(|_| InvalidSecretKey::Length(bytes.len()))?;
        if key == [0; KEY_LEN] {
            return Err(InvalidSecretKey::Zero);
        }
        Ok(Self(key))
    }

    /// The bytes of the key file.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public half (RFC 7748).
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}
