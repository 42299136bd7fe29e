//! An incoming message: chunks in any order become bytes in order, and a digest on the way.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyphae_time::Nanos;
use hyphae_wire::message::{ACK_RANGES_MAX, AckRange, Cut, ReplyFailure};

use hyphae_wire::OverlayAddress;

use crate::Topic;
use crate::buffer::{Buffer, Pool};

/// Bytes that an incoming message costs besides its own.
pub(crate) const OVERHEAD: usize = 1024;

/// Bytes that are digested at once: whole subtrees of BLAKE3's, which it then works on side by side.
const DIGEST_BLOCK: usize = 64 << 10;

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Chunks are missing.
    Partial,
    /// The caller has it and decides.
    Undecided,
}

pub(crate) struct Incoming {
    pub(crate) address: OverlayAddress,
    pub(crate) topic: Topic,
    pub(crate) cut: Cut,
    pub(crate) digest: [u8; 32],
    pub(crate) failure: Option<ReplyFailure>,
    pub(crate) stage: Stage,
    pub(crate) progress_at: Nanos,
    /// An answer is queued.
    pub(crate) answering: bool,
    /// Number of the packet that opened it in this cut. What came before that is of another one.
    pub(crate) opened_by: u64,
    /// Number of the last packet of it.
    pub(crate) sequence: u64,
    /// Chunks from the first on without a gap.
    have: u32,
    /// Their bytes.
    data: Buffer,
    /// Of a message of several chunks: of their first bytes, so many of them.
    hasher: Option<Box<(blake3::Hasher, usize)>>,
    /// Chunks beyond a gap.
    beyond: BTreeMap<u32, Box<[u8]>>,
    /// The same as ranges: first and end.
    ranges: BTreeMap<u32, u32>,
}

/// What a chunk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    /// It was there already.
    Nothing,
    /// It is not as long as it must be, or there is no such chunk.
    Mismatch,
    /// It is new.
    Chunk,
    /// It was the last one, and the digest is right or not.
    Whole(bool),
}

impl Incoming {
    pub(crate) fn new(
        now: Nanos,
        address: OverlayAddress,
        topic: Topic,
        cut: Cut,
        digest: [u8; 32],
    ) -> Self {
        Self {
            address,
            topic,
            cut,
            digest,
            failure: None,
            stage: Stage::Partial,
            progress_at: now,
            answering: false,
            opened_by: 0,
            sequence: 0,
            have: 0,
            data: Buffer::default(),
            hasher: (cut.first < cut.len).then(Box::default),
            beyond: BTreeMap::new(),
            ranges: BTreeMap::new(),
        }
    }

    /// Whether it is one packet long.
    pub(crate) fn is_single(&self) -> bool {
        self.cut.first == self.cut.len
    }

    /// What it counts for in the budgets.
    pub(crate) fn cost(&self) -> usize {
        self.cut.len + OVERHEAD
    }

    /// Remembers the number of a packet of it for the next answer; true when that waits to be sent already.
    pub(crate) fn noted(&mut self, sequence: u64) -> bool {
        self.sequence = self.sequence.max(sequence);
        self.answering
    }

    pub(crate) fn take(&mut self, now: Nanos, number: u32, bytes: &[u8], pool: &Pool) -> Took {
        if self.stage != Stage::Partial || number < self.have {
            return Took::Nothing;
        }
        if self.cut.range(number).map(|range| range.len()) != Some(bytes.len()) {
            return Took::Mismatch;
        }
        if number > self.have {
            if self.beyond.contains_key(&number) {
                return Took::Nothing;
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
        if self.have < self.cut.count() {
            return Took::Chunk;
        }
        self.digest(1);
        let digest = match &self.hasher {
            Some(hasher) => hasher.0.finalize(),
            None => blake3::hash(self.data.as_ref()),
        };
        Took::Whole(*digest.as_bytes() == self.digest)
    }

    fn append(&mut self, bytes: &[u8], pool: &Pool) {
        self.data.append(bytes, self.cut.len, pool);
        self.digest(DIGEST_BLOCK);
        self.have += 1;
    }

    /// Digests what has not been, in whole blocks of this size.
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

    /// What an ack says: chunks without a gap, and ranges beyond.
    pub(crate) fn have(&self) -> (u32, Vec<AckRange>) {
        let ranges = self.ranges.iter().take(ACK_RANGES_MAX);
        let ranges = ranges.map(|(first, end)| AckRange {
            first: (*first).into(),
            end: (*end).into(),
        });
        (self.have, ranges.collect())
    }

    /// The whole message, for the caller to decide about.
    pub(crate) fn hand_over(&mut self) -> Bytes {
        self.stage = Stage::Undecided;
        std::mem::take(&mut self.data).into()
    }

    /// Bytes of memory in use for chunks.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        self.data.memory() + self.beyond.values().map(|b| b.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_in_any_order_make_the_message_and_memory_follows_what_came() {
        in_any_order(20_000, 512);
        in_any_order(5_000_000, 8_800);
    }

    fn in_any_order(len: u32, chunk: usize) {
        let payload: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
        let cut = Cut {
            len: payload.len(),
            first: 100,
            chunk,
        };
        let digest = *blake3::hash(&payload).as_bytes();
        let (now, address, pool) = (Nanos(1), OverlayAddress::default(), Pool::default());
        let mut incoming = Incoming::new(now, address, Topic::default(), cut, digest);
        assert_eq!(incoming.memory(), 0);
        let count = cut.count();
        let mut came = 0;
        // 7 and the count have no common divisor, so this visits every chunk.
        for step in 0..count {
            let number = (step * 7 + 3) % count;
            let bytes = &payload[cut.range(number).unwrap()];
            came += bytes.len();
            let took = incoming.take(now, number, bytes, &pool);
            if step + 1 < count {
                assert_eq!(took, Took::Chunk);
                assert!(incoming.memory() <= 2 * came);
                assert!([Took::Nothing].contains(&incoming.take(now, number, bytes, &pool)));
            } else {
                assert_eq!(took, Took::Whole(true));
            }
        }
        assert_eq!(incoming.have(), (count, Vec::new()));
        assert_eq!(incoming.hand_over(), payload);
    }

    #[test]
    fn wrong_lengths_and_numbers_are_refused() {
        let cut = Cut {
            len: 1000,
            first: 100,
            chunk: 512,
        };
        let pool = Pool::default();
        let mut incoming = Incoming::new(
            Nanos(0),
            OverlayAddress::default(),
            Topic::default(),
            cut,
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
            let took = incoming.take(Nanos(0), number, &vec![0; len], &pool);
            assert_eq!(took, Took::Mismatch, "chunk {number} of {len} bytes");
        }
        for (number, len) in [(2, 388), (1, 512)] {
            assert_eq!(
                incoming.take(Nanos(0), number, &vec![0; len], &pool),
                Took::Chunk
            );
        }
        assert_eq!(
            incoming.have().1,
            [AckRange {
                first: 1.into(),
                end: 3.into()
            }]
        );
        assert_eq!(
            incoming.take(Nanos(0), 0, &[0; 100], &pool),
            Took::Whole(false)
        );
    }
}
