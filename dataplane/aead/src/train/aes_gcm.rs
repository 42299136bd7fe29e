//! AES-256-GCM of link parts.
//!
//! A link part takes five blocks of the cipher, one for the tag, and six blocks of the hash before
//! that of the lengths, which is the same for all. The five go through the rounds side by side; the
//! six are multiplied by powers of the hash key and reduced once. Nothing in a frame depends
//! on the one before, so the processor overlaps neighbours by itself.
//!
//! No branch is taken by what is secret, but the one by the verdict.

mod wide;

use std::arch::x86_64::{__m128i, _mm_cvtsi64_si128, _mm_cvtsi128_si64};

use hyphae_wire::frame::TAG_LEN;
use zerocopy::transmute;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::gcm::{
    self, Product, ROUNDS, Rounds, bytes, encrypt, from_halves, key_of, reversed, times, xor,
};

use super::{AAD_LEN, LINK_TAG_AT, PAYLOAD_AT, SEALED_HEADERS_AT, SEALED_HEADERS_LEN, part};

/// Bytes of a cache line.
const LINE: usize = 64;
/// Blocks of the cipher: for the tag, and for the text.
const BLOCKS: usize = 1 + SEALED_HEADERS_LEN.div_ceil(TAG_LEN);
/// Blocks of the hash but the last, which has the lengths: associated data and text.
const HASHED: usize = AAD_LEN / TAG_LEN + SEALED_HEADERS_LEN.div_ceil(TAG_LEN);

/// An expanded key, on cache lines of its own.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(super) struct Key {
    rounds: Rounds,
    /// Powers of the hash key, the highest first: what the first block is multiplied with.
    powers: [[u8; 16]; HASHED],
    /// What the block of the lengths comes to.
    lengths: [u8; 16],
    /// Whether four frames at a time are possible.
    #[zeroize(skip)]
    wide: bool,
}

impl Key {
    /// Expands a key; `None` when the processor lacks the instructions.
    pub(super) fn new(key: &[u8; 32]) -> Option<Box<Self>> {
        let mut expanded = gcm::is_possible().then(|| {
            Box::new(Self {
                rounds: [[0; 16]; ROUNDS + 1],
                powers: [[0; 16]; HASHED],
                lengths: [0; 16],
                wide: gcm::wide::is_possible(),
            })
        })?;
        // SAFETY: the processor has what the function is compiled for.
        unsafe { expand(key, &mut expanded) };
        Some(expanded)
    }

    #[inline]
    pub(super) fn warm(&self) -> u8 {
        let lines = self.rounds.iter().step_by(LINE / TAG_LEN);
        let more = self.powers.iter().step_by(LINE / TAG_LEN);
        let ends = lines.chain(more).chain([&self.lengths]);
        ends.fold(0, |sum, block| sum ^ block[0])
    }

    pub(super) fn seal(&self, frames: &mut [u8], segment: usize) {
        let (many, few) = frames.split_at_mut(self.in_fours(frames.len(), segment).1);
        if !many.is_empty() {
            // SAFETY: there are some only where the processor has what the function is compiled for.
            unsafe { wide::seal(self, many, segment) }
        }
        // SAFETY: a key exists only where the processor has what the function is compiled for.
        unsafe { seal(self, few, segment) }
    }

    pub(super) fn open(&self, frames: &mut [u8], segment: usize, authentic: &mut [bool]) {
        let (count, len) = self.in_fours(frames.len(), segment);
        let ((many, few), (first, last)) =
            (frames.split_at_mut(len), authentic.split_at_mut(count));
        if !many.is_empty() {
            // SAFETY: there are some only where the processor has what the function is compiled for.
            unsafe { wide::open(self, many, segment, first) }
        }
        // SAFETY: a key exists only where the processor has what the function is compiled for.
        unsafe { open(self, few, segment, last) }
    }

    /// Frames of a train that are worked on four at a time, and their bytes.
    fn in_fours(&self, len: usize, segment: usize) -> (usize, usize) {
        if self.wide {
            wide::in_fours(len, segment)
        } else {
            (0, 0)
        }
    }
}

#[target_feature(enable = "aes,pclmulqdq,avx")]
fn seal(key: &Key, frames: &mut [u8], segment: usize) {
    for frame in frames.chunks_mut(segment) {
        let stream = key_stream(key, frame);
        let text = [
            xor(load(frame, 16), stream[1]),
            xor(load(frame, 32), stream[2]),
            xor(load(frame, 48), stream[3]),
            // The last block is half of one.
            xor(load_half(frame, 64), half(stream[4])),
        ];
        store_text(frame, text);
        let tag = xor(hash(key, frame, text), stream[0]);
        frame[LINK_TAG_AT..PAYLOAD_AT].copy_from_slice(&bytes(tag));
    }
}

#[target_feature(enable = "aes,pclmulqdq,avx")]
fn open(key: &Key, frames: &mut [u8], segment: usize, authentic: &mut [bool]) {
    for (frame, authentic) in frames.chunks_mut(segment).zip(authentic) {
        let stream = key_stream(key, frame);
        let sealed = [
            load(frame, 16),
            load(frame, 32),
            load(frame, 48),
            load_half(frame, 64),
        ];
        let expected = xor(hash(key, frame, sealed), stream[0]);
        let difference: u128 = transmute!(bytes(xor(expected, load(frame, LINK_TAG_AT))));
        *authentic = difference == 0;
        if difference == 0 {
            let text = [
                xor(sealed[0], stream[1]),
                xor(sealed[1], stream[2]),
                xor(sealed[2], stream[3]),
                xor(sealed[3], half(stream[4])),
            ];
            store_text(frame, text);
        }
    }
}

/// The blocks of counter mode: for the tag, and for the text.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn key_stream(key: &Key, frame: &[u8]) -> [__m128i; BLOCKS] {
    let first = first_block(frame);
    let mut blocks = [first; BLOCKS];
    for (block, n) in blocks.iter_mut().zip(1u32..) {
        let number = from_halves(0, u64::from(n.swap_bytes()) << 32);
        *block = xor(*block, number);
    }
    encrypt(&key.rounds, blocks)
}

/// A frame's block of counter mode, without the number: four zero bytes, the counter in little-endian, and the
/// number of the block in big-endian.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn first_block(frame: &[u8]) -> __m128i {
    let [low, high]: [u32; 2] = transmute!(part::<8>(frame, super::COUNTER_AT));
    from_halves(u64::from(low) << 32, u64::from(high))
}

/// GHASH of a frame's associated data and ciphertext.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn hash(key: &Key, frame: &[u8], text: [__m128i; 4]) -> __m128i {
    let [a, b, c, d] = text;
    let blocks = [
        load(frame, 0),
        load(frame, frame.len() - TAG_LEN),
        a,
        b,
        c,
        d,
    ];
    let mut sum = Product::zero();
    for (block, power) in blocks.into_iter().zip(&key.powers) {
        sum.add(reversed(block), key_of(*power));
    }
    reversed(xor(sum.reduced(), key_of(key.lengths)))
}

/// The schedule of a key, and the powers of the key of its hash.
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn expand(key: &[u8; 32], into: &mut Key) {
    let one = gcm::expand(key, &mut into.rounds);
    // Bits of associated data and of text.
    let lengths = from_halves(8 * SEALED_HEADERS_LEN as u64, 8 * AAD_LEN as u64);
    into.lengths = bytes(times(lengths, one));
    let mut power = one;
    for place in into.powers.iter_mut().rev() {
        power = times(power, one);
        *place = bytes(power);
    }
}

/// The lower half of a block.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn half(block: __m128i) -> __m128i {
    _mm_cvtsi64_si128(_mm_cvtsi128_si64(block))
}

#[inline]
fn load(frame: &[u8], at: usize) -> __m128i {
    transmute!(part::<16>(frame, at))
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn load_half(frame: &[u8], at: usize) -> __m128i {
    from_halves(u64::from_le_bytes(part(frame, at)), 0)
}

fn store_text(frame: &mut [u8], text: [__m128i; 4]) {
    let text: [u8; 64] = transmute!(text);
    frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(&text[..SEALED_HEADERS_LEN]);
}
