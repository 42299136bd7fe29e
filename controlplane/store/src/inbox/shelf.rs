//! Shelves: which of their messages are removed, and when to rewrite one.

use super::batch::Removal;
use super::record::{self, Place};
use super::types::MessageNumber;

/// Bytes from which a shelf is rewritten when less than a quarter of them is live.
const SHELF_SMALL: u64 = 64 << 10;

/// Bookkeeping of a shelf.
pub(super) struct Shelf {
    /// Messages that are not removed.
    pub(super) left: u64,
    /// Bytes of their payloads.
    pub(super) useful: u64,
    /// Its size, bytes.
    pub(super) size: u64,
    /// Pieces of its only message.
    pub(super) pieces: u32,
    pub(super) taken: Vec<u8>,
}

impl Shelf {
    pub(super) fn new(size: usize) -> Self {
        Self {
            left: 0,
            useful: 0,
            size: size as u64,
            pieces: 0,
            taken: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, payload: usize) {
        self.left += 1;
        self.useful += payload as u64;
    }

    pub(super) fn take(&mut self, first: u64, removal: &Removal) {
        let (byte, bit) = bit_of(first, removal.number.0);
        if self.taken.len() <= byte {
            self.taken.resize(byte + 1, 0);
        }
        if let Some(bits) = self.taken.get_mut(byte) {
            *bits |= bit;
        }
        self.left = self.left.saturating_sub(1);
        self.useful = self.useful.saturating_sub(removal.len);
    }

    pub(super) fn is_wasteful(&self) -> bool {
        self.size >= SHELF_SMALL && self.useful < self.size / 4
    }
}

fn bit_of(first: u64, number: u64) -> (usize, u8) {
    let at = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
    (at / 8, 1 << (at % 8))
}

pub(super) fn is_taken(bits: &[u8], first: u64, number: u64) -> bool {
    let (byte, bit) = bit_of(first, number);
    bits.get(byte).is_some_and(|bits| bits & bit != 0)
}

/// A shelf without its removed messages, and the new places of the others.
pub(super) fn tidied(
    old: &[u8],
    first: u64,
    taken: &[u8],
) -> (Vec<u8>, Vec<(MessageNumber, Place)>) {
    let (mut bytes, mut moved) = (Vec::new(), Vec::new());
    for record in record::records(old).flatten() {
        if !is_taken(taken, first, record.number) {
            let at = record::append(&mut bytes, record.number, record.head, record.payload);
            moved.push((MessageNumber(record.number), Place { shelf: first, at }));
        }
    }
    (bytes, moved)
}
