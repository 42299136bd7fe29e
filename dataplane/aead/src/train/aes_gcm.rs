//! AES-256-GCM (NIST SP 800-38D) of link parts, with AES-NI and carry-less multiplication.
//!
//! A link part takes five blocks of the cipher, one for the tag, and six blocks of the hash before
//! that of the lengths, which is the same for all. The five go through the rounds side by side; the
//! six are multiplied by powers of the hash key and reduced once (Gueron and Kounavis, "Intel
//! Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode", 2014). Nothing in a frame depends
//! on the one before, so the processor overlaps neighbours by itself. The hash is computed as POLYVAL with
//! reversed bytes (RFC 8452, appendix A), whose reduction is two multiplications.
//!
//! No table is looked up and no branch taken by what is secret, but the one by the verdict.

mod wide;

use std::arch::x86_64::{
    __m128i, _mm_aesenc_si128, _mm_aesenclast_si128, _mm_aeskeygenassist_si128,
    _mm_clmulepi64_si128, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_set_epi8, _mm_set_epi64x,
    _mm_setzero_si128, _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_slli_si128, _mm_unpackhi_epi64,
    _mm_xor_si128,
};

use hyphae_wire::frame::TAG_LEN;
use zerocopy::transmute;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{AAD_LEN, LINK_TAG_AT, PAYLOAD_AT, SEALED_HEADERS_AT, SEALED_HEADERS_LEN, part};

const ROUNDS: usize = 14;
/// Blocks of the cipher: for the tag, and for the text.
const BLOCKS: usize = 1 + SEALED_HEADERS_LEN.div_ceil(TAG_LEN);
/// Blocks of the hash but the last, which has the lengths: associated data and text.
const HASHED: usize = AAD_LEN / TAG_LEN + SEALED_HEADERS_LEN.div_ceil(TAG_LEN);

/// The polynomial of the field, from x^64 on.
const FIELD: u64 = 0xc200_0000_0000_0000;

/// An expanded key.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Key {
    rounds: [[u8; 16]; ROUNDS + 1],
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
    pub(super) fn new(key: &[u8; 32]) -> Option<Self> {
        let able = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("avx");
        // SAFETY: the processor has what the function is compiled for.
        able.then(|| unsafe { expand(key) })
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
    let whitening = key_of(key.rounds[0]);
    for (block, n) in blocks.iter_mut().zip(1u32..) {
        let number = from_halves(0, u64::from(n.swap_bytes()) << 32);
        *block = xor(xor(*block, number), whitening);
    }
    for round in &key.rounds[1..ROUNDS] {
        let round = key_of(*round);
        for block in &mut blocks {
            *block = _mm_aesenc_si128(*block, round);
        }
    }
    let last = key_of(key.rounds[ROUNDS]);
    for block in &mut blocks {
        *block = _mm_aesenclast_si128(*block, last);
    }
    blocks
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

/// A product before it is reduced: low, middle and high part, each of two words.
struct Product {
    low: __m128i,
    middle: __m128i,
    high: __m128i,
}

impl Product {
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq,avx")]
    fn zero() -> Self {
        let zero = _mm_setzero_si128();
        Self {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq,avx")]
    fn add(&mut self, a: __m128i, b: __m128i) {
        self.low = xor(self.low, _mm_clmulepi64_si128::<0x00>(a, b));
        self.high = xor(self.high, _mm_clmulepi64_si128::<0x11>(a, b));
        let middle = xor(
            _mm_clmulepi64_si128::<0x01>(a, b),
            _mm_clmulepi64_si128::<0x10>(a, b),
        );
        self.middle = xor(self.middle, middle);
    }

    /// The product times x^-128 modulo x^128 + x^127 + x^126 + x^121 + 1.
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq,avx")]
    fn reduced(self) -> __m128i {
        let field = from_halves(FIELD, FIELD);
        let low = xor(self.low, _mm_slli_si128::<8>(self.middle));
        let high = xor(
            self.high,
            _mm_unpackhi_epi64(self.middle, _mm_setzero_si128()),
        );
        let once = swapped(_mm_clmulepi64_si128::<0x00>(low, field));
        let folded = xor(low, once);
        let twice = _mm_clmulepi64_si128::<0x11>(folded, field);
        xor(xor(high, folded), twice)
    }
}

/// FIPS 197, section 5.2, and the powers of the hash key.
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn expand(key: &[u8; 32]) -> Key {
    let [low, high]: [[u8; 16]; 2] = transmute!(*key);
    let (mut even, mut odd) = (key_of(low), key_of(high));
    let mut rounds = [[0; 16]; ROUNDS + 1];
    rounds[0] = low;
    rounds[1] = high;
    macro_rules! step {
        ($n:expr, $constant:expr) => {
            let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(odd));
            even = xor(spread(even), word);
            rounds[$n] = bytes(even);
            if let Some(place) = rounds.get_mut($n + 1) {
                let word = _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(even));
                odd = xor(spread(odd), word);
                *place = bytes(odd);
            }
        };
    }
    step!(2, 0x01);
    step!(4, 0x02);
    step!(6, 0x04);
    step!(8, 0x08);
    step!(10, 0x10);
    step!(12, 0x20);
    step!(14, 0x40);
    let mut block = key_of(rounds[0]);
    for round in &rounds[1..ROUNDS] {
        block = _mm_aesenc_si128(block, key_of(*round));
    }
    block = _mm_aesenclast_si128(block, key_of(rounds[ROUNDS]));
    let hash_key = times_x(bytes(reversed(block)));
    let times = |a: __m128i, b: __m128i| {
        let mut product = Product::zero();
        product.add(a, b);
        product.reduced()
    };
    let one = key_of(hash_key);
    // Bits of associated data and of text.
    let lengths = from_halves(8 * SEALED_HEADERS_LEN as u64, 8 * AAD_LEN as u64);
    let mut power = one;
    let mut powers = [[0; 16]; HASHED];
    for place in powers.iter_mut().rev() {
        power = times(power, one);
        *place = bytes(power);
    }
    Key {
        rounds,
        powers,
        lengths: bytes(times(lengths, one)),
        wide: wide::is_possible(),
    }
}

/// Every word with those below it added: what the key schedule does to four words.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn spread(words: __m128i) -> __m128i {
    let words = xor(words, _mm_slli_si128::<4>(words));
    xor(words, _mm_slli_si128::<8>(words))
}

/// `mulX_POLYVAL` of RFC 8452, appendix A.
fn times_x(element: [u8; 16]) -> [u8; 16] {
    let value = u128::from_le_bytes(element);
    let carried = 0u128.wrapping_sub(value >> 127);
    ((value << 1) ^ (carried & (0xc2 << 120 | 1))).to_le_bytes()
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn reversed(block: __m128i) -> __m128i {
    _mm_shuffle_epi8(block, byte_order())
}

/// Of a block that is reversed.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn byte_order() -> __m128i {
    _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn swapped(block: __m128i) -> __m128i {
    _mm_shuffle_epi32::<0x4e>(block)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn xor(a: __m128i, b: __m128i) -> __m128i {
    _mm_xor_si128(a, b)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn from_halves(low: u64, high: u64) -> __m128i {
    _mm_set_epi64x(high.cast_signed(), low.cast_signed())
}

/// The lower half of a block.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn half(block: __m128i) -> __m128i {
    _mm_cvtsi64_si128(_mm_cvtsi128_si64(block))
}

#[inline]
fn key_of(bytes: [u8; 16]) -> __m128i {
    transmute!(bytes)
}

#[inline]
fn bytes(block: __m128i) -> [u8; 16] {
    transmute!(block)
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
