//! Discovery beacon of nodes on one local network.
//!
//! A UDP datagram to a link-local multicast group. It names the sender's key, network, and the port of its
//! worker 0; its address is the source of the datagram. The tag is keyed by the private network, so that nodes
//! connect only to members; in the public network its key is public and it is a checksum. A beacon proves
//! nothing: the handshake that follows accepts only the key that it names.
//!
//! ```text
//! | "HYPH" | version | reserved | port u16 | network u32 | reserved u32 | nonce u64 | key 32 | tag 16 |
//! ```

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PublicKey;
use crate::network::{Network, NetworkId};

/// First bytes of a beacon.
pub const MAGIC: [u8; 4] = *b"HYPH";
/// Version of the beacon.
pub const VERSION: u8 = 1;
/// Bytes of a beacon.
pub const BEACON_LEN: usize = size_of::<Beacon>();

const TAG_LEN: usize = 16;

/// A beacon, 72 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Beacon {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// [`VERSION`].
    pub version: u8,
    /// Zero.
    pub reserved: u8,
    /// UDP port of the sender's worker 0.
    pub port: U16,
    /// Number of the sender's network.
    pub network: U32,
    /// Zero.
    pub reserved2: U32,
    /// Random in every beacon.
    pub nonce: U64,
    /// The sender's key; its overlay address follows from it.
    pub key: PublicKey,
    /// Truncated keyed BLAKE3 over all fields above.
    pub tag: [u8; TAG_LEN],
}

const _: () = assert!(BEACON_LEN == 72);

/// Why a datagram is not a beacon for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// Not a beacon.
    #[error("it is not a beacon")]
    Malformed,
    /// Another version.
    #[error("it is a beacon of version {0}; this node speaks {VERSION}")]
    Version(u8),
    /// A member of another network.
    #[error("it belongs to {0}")]
    Network(NetworkId),
    /// Corrupted, or made without the network's key.
    #[error("its tag is wrong")]
    Tag,
}

impl Beacon {
    /// The beacon of a node. `nonce` must be random.
    pub fn new(key: PublicKey, port: u16, network: Option<&Network>, nonce: u64) -> Self {
        let mut beacon = Self {
            magic: MAGIC,
            version: VERSION,
            reserved: 0,
            port: U16::new(port),
            network: U32::new(id(network).0),
            reserved2: U32::ZERO,
            nonce: U64::new(nonce),
            key,
            tag: [0; TAG_LEN],
        };
        beacon.tag = beacon.authenticate(network);
        beacon
    }

    /// Parses a datagram: exactly one beacon, of this version and network, with a valid tag.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(datagram: &[u8], network: Option<&Network>) -> Result<Self, BeaconError> {
        let beacon = Self::read_from_bytes(datagram).map_err(|_| BeaconError::Malformed)?;
        if beacon.magic != MAGIC || beacon.port.get() == 0 {
            return Err(BeaconError::Malformed);
        }
        if beacon.version != VERSION {
            return Err(BeaconError::Version(beacon.version));
        }
        let theirs = NetworkId(beacon.network.get());
        if theirs != id(network) {
            return Err(BeaconError::Network(theirs));
        }
        // blake3 compares `Hash`es in constant time.
        let (ours, given) = (beacon.authenticate(network), beacon.tag);
        if pad(ours) != pad(given) {
            return Err(BeaconError::Tag);
        }
        Ok(beacon)
    }

    fn authenticate(&self, network: Option<&Network>) -> [u8; TAG_LEN] {
        let public = || blake3::derive_key("hyphae v1 public beacon", &[]);
        let key = network.map_or_else(public, |network| *network.beacon_key());
        let covered = &self.as_bytes()[..BEACON_LEN - TAG_LEN];
        let hash = blake3::keyed_hash(&key, covered);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hash.as_bytes()[..TAG_LEN]);
        tag
    }
}

fn id(network: Option<&Network>) -> NetworkId {
    network.map_or(NetworkId::PUBLIC, Network::id)
}

fn pad(tag: [u8; TAG_LEN]) -> blake3::Hash {
    let mut bytes = [0; 32];
    bytes[..TAG_LEN].copy_from_slice(&tag);
    blake3::Hash::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::NetworkKey;

    const KEY: PublicKey = PublicKey([7; 32]);

    #[test]
    fn members_parse_only_beacons_of_members() {
        let key = NetworkKey::parse(&"17".repeat(32)).unwrap();
        let (garden, public) = (Network::new("garden", &key), None);
        let beacon = Beacon::new(KEY, 9670, Some(&garden), 5);
        assert_eq!(Beacon::parse(beacon.as_bytes(), Some(&garden)), Ok(beacon));
        let theirs = BeaconError::Network(garden.id());
        assert_eq!(Beacon::parse(beacon.as_bytes(), public), Err(theirs));
        // A non-member can copy the number but not the tag.
        let forged = Beacon {
            network: U32::new(garden.id().0),
            ..Beacon::new(KEY, 9670, public, 5)
        };
        assert_eq!(
            Beacon::parse(forged.as_bytes(), Some(&garden)),
            Err(BeaconError::Tag)
        );
    }

    #[test]
    fn every_changed_byte_and_every_other_length_is_refused() {
        let good = Beacon::new(KEY, 9670, None, 1);
        let bytes = good.as_bytes();
        assert_eq!(Beacon::parse(bytes, None), Ok(good));
        for at in 0..BEACON_LEN {
            let mut bent = bytes.to_vec();
            bent[at] ^= 1;
            assert!(Beacon::parse(&bent, None).is_err(), "byte {at}");
        }
        for len in 0..BEACON_LEN {
            assert_eq!(
                Beacon::parse(&bytes[..len], None),
                Err(BeaconError::Malformed)
            );
        }
        let longer = [bytes, &[0]].concat();
        assert_eq!(Beacon::parse(&longer, None), Err(BeaconError::Malformed));
        assert_eq!(
            Beacon::parse(Beacon::new(KEY, 0, None, 1).as_bytes(), None),
            Err(BeaconError::Malformed)
        );
    }
}
