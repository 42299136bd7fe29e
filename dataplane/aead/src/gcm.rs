//! What AES-256-GCM (NIST SP 800-38D) is made of, with AES-NI and carry-less multiplication: the key schedule,
//! and the field of the hash.
//!
//! The hash is computed as POLYVAL with reversed bytes (RFC 8452, appendix A), whose reduction is two
//! multiplications. Blocks are multiplied by powers of its key and their sum is reduced once (Gueron and Kounavis,
//! "Intel Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode", 2014).
//!
//! No table is looked up and no branch taken by what is secret.

pub(crate) mod wide;

use std::arch::x86_64::{
    __m128i, _mm_aesenc_si128, _mm_aesenclast_si128, _mm_aeskeygenassist_si128,
    _mm_clmulepi64_si128, _mm_set_epi8, _mm_set_epi64x, _mm_setzero_si128, _mm_shuffle_epi8,
    _mm_shuffle_epi32, _mm_slli_si128, _mm_unpackhi_epi64, _mm_xor_si128,
};

use zerocopy::transmute;

pub(crate) const ROUNDS: usize = 14;
/// Keys of the rounds.
pub(crate) type Rounds = [[u8; 16]; ROUNDS + 1];

/// The polynomial of the field, from x^64 on.
const FIELD: u64 = 0xc200_0000_0000_0000;

/// Whether the processor has the instructions.
pub(crate) fn is_possible() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("avx")
}

/// FIPS 197, section 5.2, into its place, so that no copy stays behind; gives the key of the hash.
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub(crate) fn expand(key: &[u8; 32], rounds: &mut Rounds) -> __m128i {
    let [low, high]: [[u8; 16]; 2] = transmute!(*key);
    let (mut even, mut odd) = (key_of(low), key_of(high));
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
    let [zeros] = encrypt(rounds, [from_halves(0, 0)]);
    key_of(times_x(bytes(reversed(zeros))))
}

/// Blocks through the cipher, side by side.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub(crate) fn encrypt<const N: usize>(rounds: &Rounds, mut blocks: [__m128i; N]) -> [__m128i; N] {
    let whitening = key_of(rounds[0]);
    for block in &mut blocks {
        *block = xor(*block, whitening);
    }
    for round in &rounds[1..ROUNDS] {
        let round = key_of(*round);
        for block in &mut blocks {
            *block = _mm_aesenc_si128(*block, round);
        }
    }
    let last = key_of(rounds[ROUNDS]);
    for block in &mut blocks {
        *block = _mm_aesenclast_si128(*block, last);
    }
    blocks
}

/// A product in the field.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub(crate) fn times(a: __m128i, b: __m128i) -> __m128i {
    let mut product = Product::zero();
    product.add(a, b);
    product.reduced()
}

/// A product before it is reduced: low, middle and high part, each of two words.
pub(crate) struct Product {
    pub(crate) low: __m128i,
    pub(crate) middle: __m128i,
    pub(crate) high: __m128i,
}

impl Product {
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq,avx")]
    pub(crate) fn zero() -> Self {
        let zero = _mm_setzero_si128();
        Self {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq,avx")]
    pub(crate) fn add(&mut self, a: __m128i, b: __m128i) {
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
    pub(crate) fn reduced(self) -> __m128i {
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
pub(crate) fn reversed(block: __m128i) -> __m128i {
    _mm_shuffle_epi8(block, byte_order())
}

/// Of a block that is reversed.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub(crate) fn byte_order() -> __m128i {
    _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
fn swapped(block: __m128i) -> __m128i {
    _mm_shuffle_epi32::<0x4e>(block)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub(crate) fn xor(a: __m128i, b: __m128i) -> __m128i {
    _mm_xor_si128(a, b)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub(crate) fn from_halves(low: u64, high: u64) -> __m128i {
    _mm_set_epi64x(high.cast_signed(), low.cast_signed())
}

#[inline]
pub(crate) fn key_of(bytes: [u8; 16]) -> __m128i {
    transmute!(bytes)
}

#[inline]
pub(crate) fn bytes(block: __m128i) -> [u8; 16] {
    transmute!(block)
}
