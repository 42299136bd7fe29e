//! The same in vectors of 512 bits: four blocks at a time.

use std::arch::x86_64::{
    __m128i, __m512i, _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_broadcast_i32x4,
    _mm512_bslli_epi128, _mm512_castsi128_si512, _mm512_clmulepi64_epi128,
    _mm512_extracti32x4_epi32, _mm512_inserti32x4, _mm512_setzero_si512, _mm512_shuffle_epi8,
    _mm512_shuffle_epi32, _mm512_unpackhi_epi64, _mm512_xor_si512,
};

use super::{FIELD, ROUNDS, Rounds, byte_order, from_halves, key_of};

/// Blocks of a vector.
pub(crate) const WIDTH: usize = 4;

/// Whether the processor has the instructions.
pub(crate) fn is_possible() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// Blocks through the cipher, side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(crate) fn encrypt<const N: usize>(rounds: &Rounds, mut blocks: [__m512i; N]) -> [__m512i; N] {
    let whitening = broadcast(key_of(rounds[0]));
    for block in &mut blocks {
        *block = xor(*block, whitening);
    }
    for round in &rounds[1..ROUNDS] {
        let round = broadcast(key_of(*round));
        for block in &mut blocks {
            *block = _mm512_aesenc_epi128(*block, round);
        }
    }
    let last = broadcast(key_of(rounds[ROUNDS]));
    for block in &mut blocks {
        *block = _mm512_aesenclast_epi128(*block, last);
    }
    blocks
}

/// Sums of products before they are reduced, each quarter by itself: low, middle and high part.
pub(crate) struct Product {
    pub(crate) low: __m512i,
    pub(crate) middle: __m512i,
    pub(crate) high: __m512i,
}

impl Product {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    pub(crate) fn zero() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    pub(crate) fn add(&mut self, a: __m512i, b: __m512i) {
        self.low = xor(self.low, _mm512_clmulepi64_epi128::<0x00>(a, b));
        self.high = xor(self.high, _mm512_clmulepi64_epi128::<0x11>(a, b));
        let middle = xor(
            _mm512_clmulepi64_epi128::<0x01>(a, b),
            _mm512_clmulepi64_epi128::<0x10>(a, b),
        );
        self.middle = xor(self.middle, middle);
    }

    /// As [`super::Product::reduced`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    pub(crate) fn reduced(self) -> __m512i {
        let field = broadcast(from_halves(FIELD, FIELD));
        let low = xor(self.low, _mm512_bslli_epi128::<8>(self.middle));
        let high = xor(
            self.high,
            _mm512_unpackhi_epi64(self.middle, _mm512_setzero_si512()),
        );
        let once = _mm512_shuffle_epi32::<0x4e>(_mm512_clmulepi64_epi128::<0x00>(low, field));
        let folded = xor(low, once);
        let twice = _mm512_clmulepi64_epi128::<0x11>(folded, field);
        xor(xor(high, folded), twice)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(crate) fn reversed(blocks: __m512i) -> __m512i {
    _mm512_shuffle_epi8(blocks, broadcast(byte_order()))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(crate) fn join([a, b, c, d]: [__m128i; WIDTH]) -> __m512i {
    let joined = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
    let joined = _mm512_inserti32x4::<2>(joined, c);
    _mm512_inserti32x4::<3>(joined, d)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(crate) fn split(joined: __m512i) -> [__m128i; WIDTH] {
    [
        _mm512_extracti32x4_epi32::<0>(joined),
        _mm512_extracti32x4_epi32::<1>(joined),
        _mm512_extracti32x4_epi32::<2>(joined),
        _mm512_extracti32x4_epi32::<3>(joined),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(crate) fn broadcast(block: __m128i) -> __m512i {
    _mm512_broadcast_i32x4(block)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(crate) fn xor(a: __m512i, b: __m512i) -> __m512i {
    _mm512_xor_si512(a, b)
}
