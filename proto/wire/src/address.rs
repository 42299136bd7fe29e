//! Overlay addresses and prefixes.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PublicKey;

/// The range of overlay addresses, 400::/7.
pub const OVERLAY_RANGE: Prefix = Prefix {
    address: OverlayAddress([4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    len: 7,
};

/// An IPv6 address of the overlay, network byte order.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct OverlayAddress(pub [u8; 16]);

impl OverlayAddress {
    /// Derives the address of a key: the first 16 bytes of BLAKE3's output over the public key, with the first
    /// byte replaced by 4 plus the parity of its number of one bits. The Mycelium network derives addresses in
    /// the same way, so an existing key file keeps its address.
    pub fn from_key(key: &PublicKey) -> Self {
        let mut address = [0; 16];
        blake3::Hasher::new()
            .update(&key.0)
            .finalize_xof()
            .fill(&mut address);
        address[0] = 4 | u8::from(address[0].count_ones() % 2 == 1);
        Self(address)
    }

    /// The /64 around the address, which its node owns.
    pub fn subnet(self) -> Prefix {
        Prefix::new(self, 64)
    }

    /// The first 8 bytes, big-endian: the key of exact-match lookups.
    pub fn subnet_id(self) -> u64 {
        let mut id = [0; 8];
        id.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(id)
    }

    /// Whether the address lies in 400::/7.
    pub fn is_overlay(self) -> bool {
        self.0[0] & 0xfe == 4
    }

    /// The address as [`Ipv6Addr`].
    pub fn ip(self) -> Ipv6Addr {
        Ipv6Addr::from(self.0)
    }
}

impl From<Ipv6Addr> for OverlayAddress {
    fn from(ip: Ipv6Addr) -> Self {
        Self(ip.octets())
    }
}

impl fmt::Display for OverlayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for OverlayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// An address prefix; bits after `len` are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: OverlayAddress,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits (at most 128) that contains `address`.
    pub fn new(address: OverlayAddress, len: u8) -> Self {
        let len = len.min(128);
        let bits = u128::from_be_bytes(address.0) & Self::mask(len);
        Self {
            address: OverlayAddress(bits.to_be_bytes()),
            len,
        }
    }

    /// The lowest address.
    pub fn address(self) -> OverlayAddress {
        self.address
    }

    /// Prefix length, bits.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a prefix length, not a container"
    )]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether it contains `address`.
    pub fn contains(self, address: OverlayAddress) -> bool {
        u128::from_be_bytes(address.0) & Self::mask(self.len) == u128::from_be_bytes(self.address.0)
    }

    /// Whether it contains all of `other`.
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    fn mask(len: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Error of parsing a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    /// Not of the form address/length.
    #[error("'{0}' is not an IPv6 prefix: expected ADDRESS/LENGTH, such as 400:1234::/64")]
    Form(String),
    /// The address has bits set after the length.
    #[error("'{0}' has bits set after its length: did you mean {1}?")]
    HostBits(String, Prefix),
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let form = || InvalidPrefix::Form(s.to_owned());
        let (address, len) = s.split_once('/').ok_or_else(form)?;
        let address: Ipv6Addr = address.parse().map_err(|_| form())?;
        // The integer parser accepts a plus sign.
        let digits = !len.starts_with('+');
        let len: u8 = len
            .parse()
            .ok()
            .filter(|len| digits && *len <= 128)
            .ok_or_else(form)?;
        let prefix = Self::new(address.into(), len);
        if prefix.address.ip() != address {
            return Err(InvalidPrefix::HostBits(s.to_owned(), prefix));
        }
        Ok(prefix)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for OverlayAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OverlayAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ip: Ipv6Addr = String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)?;
        Ok(ip.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_parse_and_refuse() {
        let prefix: Prefix = "400:1::/64".parse().unwrap();
        assert_eq!(prefix.to_string(), "400:1::/64");
        assert!(matches!(
            "400:1::1/64".parse::<Prefix>(),
            Err(InvalidPrefix::HostBits(..))
        ));
        for bad in [
            "",
            "400::",
            "400::/129",
            "1.2.3.4/8",
            "400::/-1",
            "400::/+7",
            "400::/",
            "/7",
        ] {
            assert!(
                matches!(bad.parse::<Prefix>(), Err(InvalidPrefix::Form(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn containment_at_the_edges() {
        let all = Prefix::new(OverlayAddress::default(), 0);
        let host = Prefix::new(OverlayAddress([0xff; 16]), 128);
        assert!(all.covers(host) && !host.covers(all));
        assert!(host.contains(OverlayAddress([0xff; 16])));
        assert!(OVERLAY_RANGE.contains("5ff::1".parse::<Ipv6Addr>().unwrap().into()));
        assert!(!OVERLAY_RANGE.contains("600::1".parse::<Ipv6Addr>().unwrap().into()));
    }
}
