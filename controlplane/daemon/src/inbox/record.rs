//! Messages and ids as they are on disk.
//!
//! ```text
//! head:   flags 1 | id 8 | source key 32 | source address 16 | digest 32 | length 8 | topic …
//! id:     flags 1 | id 8 | source key 32
//! ```
//!
//! Integers are little-endian; flag bit 0: a reply. The payload has a table of its own. Its digest is
//! BLAKE3 and is checked whenever it is read: a disk that lies does not become a message.

use bytes::Bytes;
use hyphae_bus::{DeliveryKey, Inbound, MessageId, Topic};
use hyphae_wire::{OverlayAddress, PublicKey};

const REPLY: u8 = 1;
/// Length of an id.
pub(super) const KEY_LEN: usize = 41;

/// What is known of a message without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) key: DeliveryKey,
    pub(super) source_address: OverlayAddress,
    pub(super) digest: [u8; 32],
    pub(super) len: u64,
    pub(super) topic: Topic,
}

pub(super) fn encode_key(key: &DeliveryKey) -> [u8; KEY_LEN] {
    let mut bytes = [0; KEY_LEN];
    bytes[0] = if key.reply { REPLY } else { 0 };
    bytes[1..9].copy_from_slice(&key.id.0);
    bytes[9..].copy_from_slice(&key.peer.0);
    bytes
}

pub(super) fn decode_key(bytes: &[u8; KEY_LEN]) -> DeliveryKey {
    let (mut id, mut peer) = ([0; 8], [0; 32]);
    id.copy_from_slice(&bytes[1..9]);
    peer.copy_from_slice(&bytes[9..]);
    DeliveryKey {
        peer: PublicKey(peer),
        id: MessageId(id),
        reply: bytes[0] & REPLY != 0,
    }
}

impl Head {
    pub(super) fn of(message: &Inbound) -> Self {
        Self {
            key: message.key(),
            source_address: message.source_address,
            digest: *blake3::hash(&message.payload).as_bytes(),
            len: message.payload.len() as u64,
            topic: message.topic.clone(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(KEY_LEN + 56 + self.topic.as_bytes().len());
        bytes.extend_from_slice(&encode_key(&self.key));
        bytes.extend_from_slice(&self.source_address.0);
        bytes.extend_from_slice(&self.digest);
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.extend_from_slice(self.topic.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk::<KEY_LEN>()?;
        let (address, rest) = rest.split_first_chunk::<16>()?;
        let (digest, rest) = rest.split_first_chunk::<32>()?;
        let (len, topic) = rest.split_first_chunk::<8>()?;
        Some(Self {
            key: decode_key(key),
            source_address: OverlayAddress(*address),
            digest: *digest,
            len: u64::from_le_bytes(*len),
            topic: Topic::new(Bytes::copy_from_slice(topic)).ok()?,
        })
    }

    /// The message, if the payload is the one that came.
    pub(super) fn message(&self, payload: Bytes) -> Option<Inbound> {
        let same = *blake3::hash(&payload).as_bytes() == self.digest;
        same.then(|| Inbound {
            id: self.key.id,
            reply: self.key.reply,
            source_key: self.key.peer,
            source_address: self.source_address,
            topic: self.topic.clone(),
            payload,
        })
    }
}
