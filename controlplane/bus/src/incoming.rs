//! Reassembly of an incoming message from chunks in any order, with an incremental digest.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use bytes::Bytes;
use hyphae_time::Nanos;
use hyphae_wire::message::{ACK_RANGES_MAX, AckRange, ChunkLayout, ReplyFailure};

use hyphae_wire::OverlayAddress;

use crate::buffer::{Buffer, Pool};
use crate::{DeliveryKey, Topic};

/// Bytes charged for a message besides its own.
pub(crate) const OVERHEAD: usize = 1024;

/// Bytes per step of the digest: whole subtrees of BLAKE3, which are hashed in parallel.
const DIGEST_BLOCK: usize = 64 << 10;

/// Stage of an incoming message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Chunks are missing.
    Partial,
    /// Delivered to the caller, which decides.
    Delivered,
}

pub(crate) struct Incoming {
    pub(crate) address: OverlayAddress,
    pub(crate) topic: Topic,
    pub(crate) layout: ChunkLayout,
    pub(crate) digest: [u8; 32],
    pub(crate) failure: Option<ReplyFailure>,
    pub(crate) stage: Stage,
    pub(crate) progress_at: Nanos,
    /// A progress ack is queued.
    pub(crate) ack_queued: bool,
    /// Number of its opening packet in this layout; earlier packets belong to another layout.
    pub(crate) opened_by: u64,
    /// Number of its last packet.
    pub(crate) sequence: u64,
    /// Chunks received without a gap.
    have: u32,
    /// Their bytes.
    data: Buffer,
    /// Digest of the first bytes of a message of several chunks, and their number.
    hasher: Option<Box<(blake3::Hasher, usize)>>,
    /// Chunks beyond the gap.
    beyond: BTreeMap<u32, Box<[u8]>>,
    /// Ranges of `beyond`: first, end.
    ranges: BTreeMap<u32, u32>,
}

/// Effect of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkResult {
    /// It had been received.
    Duplicate,
    /// Its number or length is invalid.
    Invalid,
    /// It is new.
    Stored,
    /// It completes the message.
    Complete {
        /// The digest matches.
        valid: bool,
    },
}

impl Incoming {
    pub(crate) fn new(
        now: Nanos,
        address: OverlayAddress,
        topic: Topic,
        layout: ChunkLayout,
        digest: [u8; 32],
    ) -> Self {
        Self {
            address,
            topic,
            layout,
            digest,
            failure: None,
            stage: Stage::Partial,
            progress_at: now,
            ack_queued: false,
            opened_by: 0,
            sequence: 0,
            have: 0,
            data: Buffer::default(),
            hasher: (layout.first < layout.len).then(Box::default),
            beyond: BTreeMap::new(),
            ranges: BTreeMap::new(),
        }
    }

    /// When the last packet of a partial message was received; `None` for other messages.
    pub(crate) fn idle_since(
        incoming: &HashMap<DeliveryKey, Box<Self>, RandomState>,
        key: &DeliveryKey,
    ) -> Option<Nanos> {
        let partial = incoming.get(key).filter(|it| it.stage == Stage::Partial);
        partial.map(|incoming| incoming.progress_at)
    }

    /// Whether it is one packet long.
    pub(crate) fn is_single(&self) -> bool {
        self.layout.first == self.layout.len
    }

    /// Bytes charged to the budgets.
    pub(crate) fn cost(&self) -> usize {
        self.layout.len + OVERHEAD
    }

    /// Notes the number of its last packet for the next ack; true when an ack is queued.
    pub(crate) fn note_queued(&mut self, sequence: u64) -> bool {
        self.sequence = self.sequence.max(sequence);
        self.ack_queued
    }

    pub(crate) fn insert(
        &mut self,
        now: Nanos,
        number: u32,
        bytes: &[u8],
        pool: &Pool,
    ) -> ChunkResult {
        if self.stage != Stage::Partial || number < self.have {
            return ChunkResult::Duplicate;
        }
        if self.layout.range(number).map(|range| range.len()) != Some(bytes.len()) {
            return ChunkResult::Invalid;
        }
        if number > self.have {
            if self.beyond.contains_key(&number) {
                return ChunkResult::Duplicate;
            }
            self.beyond.insert(number, bytes.into());
            self.note_range(number);
        } else {
            self.append(bytes, pool);
            while let Some(next) = self.beyond.remove(&self.have) {
                self.append(&next, pool);
            }
            while let Some((first, end)) = self.ranges.first_key_value().map(|(f, e)| (*f, *e))
                && first <= self.have
            {
                debug_assert!(end <= self.have);
                self.ranges.remove(&first);
            }
        }
        self.progress_at = now;
        if self.have < self.layout.count() {
            return ChunkResult::Stored;
        }
        self.digest(1);
        let digest = match &self.hasher {
            Some(hasher) => hasher.0.finalize(),
            None => blake3::hash(self.data.as_ref()),
        };
        ChunkResult::Complete {
            valid: *digest.as_bytes() == self.digest,
        }
    }

    fn append(&mut self, bytes: &[u8], pool: &Pool) {
        self.data.append(bytes, self.layout.len, pool);
        self.digest(DIGEST_BLOCK);
        self.have += 1;
    }

    /// Digests new bytes, in whole blocks of this size.
    fn digest(&mut self, block: usize) {
        if let Some((hasher, done)) = self.hasher.as_deref_mut() {
            let end = self.data.len() / block * block;
            if let Some(fresh) = self.data.as_ref().get(*done..end) {
                hasher.update(fresh);
                *done = end;
            }
        }
    }

    fn note_range(&mut self, number: u32) {
        let (mut first, mut end) = (number, number + 1);
        let before = self.ranges.range(..number).next_back();
        if let Some((f, e)) = before.map(|(f, e)| (*f, *e))
            && e == number
        {
            first = f;
        }
        if let Some(e) = self.ranges.remove(&end) {
            end = e;
        }
        self.ranges.insert(first, end);
    }

    /// Chunks received without a gap, and ranges beyond.
    pub(crate) fn received(&self) -> (u32, Vec<AckRange>) {
        let ranges = self.ranges.iter().take(ACK_RANGES_MAX);
        let ranges = ranges.map(|(first, end)| AckRange {
            first: (*first).into(),
            end: (*end).into(),
        });
        (self.have, ranges.collect())
    }

    /// Takes the complete payload, to be delivered.
    pub(crate) fn take_payload(&mut self) -> Bytes {
        self.stage = Stage::Delivered;
        std::mem::take(&mut self.data).into()
    }

    /// Bytes of memory used for chunks.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        self.data.memory() + self.beyond.values().map(|b| b.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reassembles_chunks_in_any_order_with_memory_bounded_by_received_bytes() {
        in_any_order(20_000, 512);
        in_any_order(5_000_000, 8_800);
    }

    fn in_any_order(len: u32, chunk: usize) {
        let payload: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
        let layout = ChunkLayout {
            len: payload.len(),
            first: 100,
            chunk,
        };
        let digest = *blake3::hash(&payload).as_bytes();
        let (now, address, pool) = (Nanos(1), OverlayAddress::default(), Pool::default());
        let mut incoming = Incoming::new(now, address, Topic::default(), layout, digest);
        assert_eq!(incoming.memory(), 0);
        let count = layout.count();
        let mut received = 0;
        // 7 and the count are coprime, so this visits every chunk.
        for step in 0..count {
            let number = (step * 7 + 3) % count;
            let bytes = &payload[layout.range(number).unwrap()];
            received += bytes.len();
            let result = incoming.insert(now, number, bytes, &pool);
            if step + 1 < count {
                assert_eq!(result, ChunkResult::Stored);
                assert!(incoming.memory() <= 2 * received);
                assert!(
                    [ChunkResult::Duplicate].contains(&incoming.insert(now, number, bytes, &pool))
                );
            } else {
                assert_eq!(result, ChunkResult::Complete { valid: true });
            }
        }
        assert_eq!(incoming.received(), (count, Vec::new()));
        assert_eq!(incoming.take_payload(), payload);
    }

    #[test]
    fn refuses_invalid_lengths_and_numbers() {
        let layout = ChunkLayout {
            len: 1000,
            first: 100,
            chunk: 512,
        };
        let pool = Pool::default();
        let mut incoming = Incoming::new(
            Nanos(0),
            OverlayAddress::default(),
            Topic::default(),
            layout,
            [0; 32],
        );
        for (number, len) in [
            (0, 99),
            (0, 101),
            (1, 511),
            (2, 387),
            (3, 1),
            (u32::MAX, 512),
        ] {
            let result = incoming.insert(Nanos(0), number, &vec![0; len], &pool);
            assert_eq!(
                result,
                ChunkResult::Invalid,
                "chunk {number} of {len} bytes"
            );
        }
        for (number, len) in [(2, 388), (1, 512)] {
            assert_eq!(
                incoming.insert(Nanos(0), number, &vec![0; len], &pool),
                ChunkResult::Stored
            );
        }
        assert_eq!(
            incoming.received().1,
            [AckRange {
                first: 1.into(),
                end: 3.into()
            }]
        );
        assert_eq!(
            incoming.insert(Nanos(0), 0, &[0; 100], &pool),
            ChunkResult::Complete { valid: false }
        );
    }
}
