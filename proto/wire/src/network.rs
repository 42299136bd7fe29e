//! Private networks: a name and a key shared by all members.
//!
//! Both are inputs of BLAKE3 key derivations: the pre-shared key of handshakes, the key of discovery beacons,
//! and a 32-bit number in the clear in handshake headers and beacons. The number distinguishes networks before
//! a decryption fails; it reveals neither name nor key. Nodes without a private network are in the public one,
//! number 0.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::identity::KEY_LEN;

/// Longest name of a network, bytes.
pub const NAME_MAX: usize = 64;

/// Number of a network in headers; 0 is the public network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u32);

impl NetworkId {
    /// The network of nodes without a private one.
    pub const PUBLIC: Self = Self(0);
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("the public network"),
            id => write!(f, "private network {id:08x}"),
        }
    }
}

/// The shared key of a private network: the content of its key file. Wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NetworkKey([u8; KEY_LEN]);

/// Error of parsing the key of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetworkKey {
    /// Neither 64 hex digits nor 44 characters of base64.
    #[error("it is not 32 bytes as 64 hex digits or as base64")]
    Form,
    /// All-zero bytes were never made by a random source.
    #[error("it holds only zero bytes; it was never written")]
    Zero,
}

impl NetworkKey {
    /// A new key from the operating system's random source.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; KEY_LEN];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Parses the text of a key file: 64 hex digits or base64, surrounded by optional white space.
    ///
    /// # Errors
    /// When it is anything else, or all zero.
    pub fn parse(text: &str) -> Result<Self, InvalidNetworkKey> {
        let text = text.trim();
        let key = Self(
            from_hex(text)
                .or_else(|| from_base64(text))
                .ok_or(InvalidNetworkKey::Form)?,
        );
        if key.0 == [0; KEY_LEN] {
            return Err(InvalidNetworkKey::Zero);
        }
        Ok(key)
    }

    /// The key as 64 hex digits, the format of a key file.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkKey(..)")
    }
}

fn from_hex(text: &str) -> Option<[u8; KEY_LEN]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16)?.try_into().ok();
    let mut key = [0u8; KEY_LEN];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low): (u8, u8) = (digit(pair[0])?, digit(pair[1])?);
        *byte = high << 4 | low;
    }
    Some(key)
}

/// RFC 4648 base64 with its padding, for exactly 32 bytes.
fn from_base64(text: &str) -> Option<[u8; KEY_LEN]> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.strip_suffix('=').filter(|rest| rest.len() == 43)?;
    let (mut key, mut at) = ([0; KEY_LEN], 0);
    let (mut bits, mut held) = (0u32, 0);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            *key.get_mut(at)? = u8::try_from(bits >> held & 0xff).ok()?;
            at += 1;
        }
    }
    // The last digit has two unused bits; only zero is canonical.
    (at == KEY_LEN && bits & 0b11 == 0).then_some(key)
}

/// A private network with its derived keys, which are wiped on drop.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Network {
    #[zeroize(skip)]
    id: NetworkId,
    psk: [u8; KEY_LEN],
    beacon: [u8; KEY_LEN],
}

impl Network {
    /// The network of a name and a key.
    pub fn new(name: &str, key: &NetworkKey) -> Self {
        let derive = |context| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&key.0);
            *hasher.finalize().as_bytes()
        };
        let id = derive("hyphae v1 network id");
        let id = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
        Self {
            // 0 is the public network's.
            id: NetworkId(id.max(1)),
            psk: derive("hyphae v1 network psk"),
            beacon: derive("hyphae v1 network beacon"),
        }
    }

    /// Its number.
    pub fn id(&self) -> NetworkId {
        self.id
    }

    /// Pre-shared key of its handshakes.
    pub fn psk(&self) -> &[u8; KEY_LEN] {
        &self.psk
    }

    /// Key of its beacons.
    pub fn beacon_key(&self) -> &[u8; KEY_LEN] {
        &self.beacon
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Network {
    /// Compares number and key, not in constant time: for configurations only.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.psk == other.psk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_key_is_read_from_hex_and_base64_and_nothing_else() {
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let key = NetworkKey::parse(&format!(" {HEX}\n")).unwrap();
        assert_eq!(NetworkKey::parse(base64).unwrap().0, key.0);
        assert_eq!(key.to_hex(), HEX);
        assert_eq!(NetworkKey::parse(&HEX.to_uppercase()).unwrap().0, key.0);
        let not_canonical = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=";
        for bad in [
            "",
            "00",
            &HEX[1..],
            &HEX.replace('0', "g"),
            not_canonical,
            &base64[..43],
        ] {
            assert_eq!(
                NetworkKey::parse(bad).unwrap_err(),
                InvalidNetworkKey::Form,
                "{bad}"
            );
        }
        assert_eq!(
            NetworkKey::parse(&"0".repeat(64)).unwrap_err(),
            InvalidNetworkKey::Zero
        );
        assert!(!format!("{key:?}").contains("01"));
    }

    #[test]
    fn name_and_key_both_make_the_network() {
        let (one, two) = (NetworkKey([1; 32]), NetworkKey([2; 32]));
        let network = Network::new("garden", &one);
        assert_eq!(network, Network::new("garden", &one));
        for other in [Network::new("garden", &two), Network::new("gardens", &one)] {
            assert_ne!(network.id(), other.id());
            assert_ne!(network.psk(), other.psk());
            assert_ne!(network.beacon_key(), other.beacon_key());
        }
        assert_ne!(network.psk(), network.beacon_key());
        assert_ne!(network.id(), NetworkId::PUBLIC);
    }
}
