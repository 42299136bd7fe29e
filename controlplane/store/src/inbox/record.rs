//! Encoding of messages and ids on disk.
//!
//! ```text
//! shelf:  records in sequence
//! record: number 8 | length of the head 4 | length of the payload 8 | head | payload
//! head:   flags 1 | id 8 | source key 32 | source address 16 | digest 32 | length 8 | topic …
//! id:     flags 1 | id 8 | source key 32
//! ```
//!
//! Integers are little-endian; flag bit 0: a reply. The digest is BLAKE3 of the payload and is checked at each read:
//! a disk error does not become a message.

use bytes::Bytes;
use hyphae_bus::{DeliveryKey, Inbound, MessageId, Topic};
use hyphae_wire::{OverlayAddress, PublicKey};

const REPLY: u8 = 1;
/// Length of an id.
pub(super) const KEY_LEN: usize = 41;

/// Place of a payload: its shelf, and its offset there or [`IN_PIECES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) shelf: u64,
    pub(super) at: usize,
}

/// Offset of a payload that is stored in pieces beside the shelf.
pub(super) const IN_PIECES: usize = usize::MAX;

/// Length of the lengths before the head of a record.
const RECORD_HEAD: usize = 20;

/// Appends a message to a shelf; returns the offset of its payload.
pub(super) fn append(shelf: &mut Vec<u8>, number: u64, head: &[u8], payload: &[u8]) -> usize {
    let len = u32::try_from(head.len()).unwrap_or(u32::MAX);
    shelf.extend_from_slice(&number.to_le_bytes());
    shelf.extend_from_slice(&len.to_le_bytes());
    shelf.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    shelf.extend_from_slice(head);
    let at = shelf.len();
    shelf.extend_from_slice(payload);
    at
}

/// A record of a shelf.
pub(super) struct Record<'a> {
    pub(super) number: u64,
    pub(super) head: &'a [u8],
    /// Offset of its payload.
    pub(super) at: usize,
    pub(super) payload: &'a [u8],
}

/// The records of a shelf; ends with `None` where one is malformed.
pub(super) fn records(shelf: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    let mut rest = shelf;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let begins = shelf.len() - rest.len();
        let read = || {
            let (number, after) = rest.split_first_chunk::<8>()?;
            let (head_len, after) = after.split_first_chunk::<4>()?;
            let (len, after) = after.split_first_chunk::<8>()?;
            let head_len = usize::try_from(u32::from_le_bytes(*head_len)).ok()?;
            let (head, after) = after.split_at_checked(head_len)?;
            let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
            let (payload, after) = after.split_at_checked(len)?;
            let record = Record {
                number: u64::from_le_bytes(*number),
                head,
                at: begins + RECORD_HEAD + head_len,
                payload,
            };
            Some((record, after))
        };
        let found = read();
        rest = found.as_ref().map_or(&[], |(_, after)| after);
        Some(found.map(|(record, _)| record))
    })
}

/// A message without its payload.
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
    /// Of a message.
    pub(super) fn of(message: &Inbound) -> Self {
        Self {
            key: message.key(),
            source_address: message.source_address,
            digest: message.digest,
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

    /// Whether the digest of a payload matches.
    pub(super) fn is_of(&self, payload: &[u8]) -> bool {
        *blake3::hash(payload).as_bytes() == self.digest
    }

    /// The message.
    pub(super) fn message(&self, payload: Bytes) -> Inbound {
        Inbound {
            id: self.key.id,
            reply: self.key.reply,
            source_key: self.key.peer,
            source_address: self.source_address,
            topic: self.topic.clone(),
            payload,
            digest: self.digest,
            // Replies are not stored.
            failure: None,
        }
    }
}
