//! Key pair of a node, and its file.
//!
//! A node is an X25519 key pair. The key file holds the 32 secret bytes and nothing else.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x25519_dalek::StaticSecret;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use crate::OverlayAddress;
use crate::stack::on_wiped_stack;

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
    /// The first 8 bytes; a key that shares those of another costs about 2^64 attempts.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl PublicKey {
    /// Overlay address of this key.
    ///
    /// ```
    /// use hyphae_wire::PublicKey;
    ///
    /// let key = "ab96f4d4dbad020e6c56cfccf090209fb036e5c486829945a26d6db30ca86064";
    /// let address = key.parse::<PublicKey>()?.address();
    /// assert_eq!(address.to_string(), "495:e1:9152:4961:9596:d283:b2da:1090");
    /// assert_eq!(address.subnet().to_string(), "495:e1:9152:4961::/64");
    /// # Ok::<(), hyphae_wire::identity::InvalidPublicKey>(())
    /// ```
    pub fn address(&self) -> OverlayAddress {
        OverlayAddress::from_key(self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every message read over RPC prints two keys, so this is one write, not 32.
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

/// Error of parsing a public key.
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

/// Storage of the bytes of a secret key: their only copy, wiped on drop.
pub trait KeyPlace: Send + Sync {
    /// The bytes.
    fn bytes(&self) -> &[u8; KEY_LEN];
}

impl KeyPlace for Zeroizing<[u8; KEY_LEN]> {
    fn bytes(&self) -> &[u8; KEY_LEN] {
        self
    }
}

/// An X25519 secret key: the content of a key file. Clones share one copy in memory. `Debug` never shows it.
#[derive(Clone)]
pub struct SecretKey {
    place: Arc<dyn KeyPlace>,
    public: PublicKey,
}

/// Why the bytes of a key file are not a key.
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
        Self::filled(|bytes| getrandom::fill(bytes))
    }

    /// Generates a key with random bytes of `fill`.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn filled<E>(fill: impl FnOnce(&mut [u8; KEY_LEN]) -> Result<(), E>) -> Result<Self, E> {
        let mut place = Arc::new(Zeroizing::new([0; KEY_LEN]));
        if let Some(bytes) = Arc::get_mut(&mut place) {
            fill(bytes)?;
        }
        Ok(Self::of(place))
    }

    /// Parses the content of a key file.
    ///
    /// # Errors
    /// When it is not 32 bytes, or all zero.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSecretKey> {
        let key: &[u8; KEY_LEN] = bytes
            .try_into()
            .map_err(|_| InvalidSecretKey::Length(bytes.len()))?;
        on_wiped_stack(|| Self::in_place(Arc::new(Zeroizing::new(*key))))
    }

    /// Makes a key of bytes in their final storage.
    ///
    /// # Errors
    /// When they are all zero.
    pub fn in_place(place: Arc<dyn KeyPlace>) -> Result<Self, InvalidSecretKey> {
        if *place.bytes() == [0; KEY_LEN] {
            return Err(InvalidSecretKey::Zero);
        }
        Ok(Self::of(place))
    }

    fn of(place: Arc<dyn KeyPlace>) -> Self {
        let public = on_wiped_stack(|| {
            let secret = StaticSecret::from(*place.bytes());
            PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
        });
        Self { place, public }
    }

    /// The bytes of the key file.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        self.place.bytes()
    }

    /// Public key (RFC 7748).
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Bytes of the public key.
    pub fn public_bytes(&self) -> &[u8; KEY_LEN] {
        &self.public.0
    }

    /// X25519 (RFC 7748): writes the shared secret into `out`. All zero when `theirs` is a point of small
    /// order.
    pub fn agree(&self, theirs: &PublicKey, out: &mut [u8; KEY_LEN]) {
        on_wiped_stack(|| *out = x25519_dalek::x25519(*self.as_bytes(), theirs.0));
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}
