//! Poly1305 (RFC 8439, section 2.5) of four messages of whole blocks side by side, each under its own
//! one-time key: a message a lane, five limbs of 26 bits (Bernstein and Schwabe, "NEON crypto", 2012). No
//! branch depends on what is secret.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_mul_epu32, _mm256_or_si256,
    _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_slli_epi64, _mm256_srli_epi64,
};
use std::array;

use zerocopy::transmute;

use super::part;

/// Messages side by side.
pub(super) const LANES: usize = 4;

const BITS: i32 = 26;
const MASK: u64 = (1 << BITS) - 1;

/// A number of every lane, limb by limb, the lowest first.
type Limbs = [__m256i; 5];

/// The tags of messages under one-time keys. Block `n` of all messages comes before block `n + 1`.
#[target_feature(enable = "avx2")]
pub(super) fn tags<const BLOCKS: usize>(
    keys: [&[u8; 32]; LANES],
    blocks: [[[u8; 16]; LANES]; BLOCKS],
) -> [[u8; 16]; LANES] {
    let clamped = keys.map(|key| {
        const CLAMP: u128 = 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
        (u128::from_le_bytes(part(key, 0)) & CLAMP).to_le_bytes()
    });
    let r = limbs(clamped, 0);
    // What runs over 130 bits comes back times five.
    let s = array::from_fn(|n| times_five(r[n]));
    let mut h = [_mm256_setzero_si256(); 5];
    for block in blocks {
        // Every block has a bit set above its 128.
        let block = limbs(block, 1 << 24);
        for (h, block) in h.iter_mut().zip(block) {
            *h = _mm256_add_epi64(*h, block);
        }
        h = times(h, r, s);
    }
    let h: [[u64; LANES]; 5] = transmute!(h);
    array::from_fn(|lane| finish(h.map(|limb| limb[lane]), part(keys[lane], 16)))
}

/// 128 bits of every lane as limbs, `above` added to the highest.
#[inline]
#[target_feature(enable = "avx2")]
fn limbs(words: [[u8; 16]; LANES], above: u64) -> Limbs {
    let low: __m256i = transmute!(words.map(|word| part::<8>(&word, 0)));
    let high: __m256i = transmute!(words.map(|word| part::<8>(&word, 8)));
    let between = _mm256_or_si256(_mm256_srli_epi64::<52>(low), _mm256_slli_epi64::<12>(high));
    [
        masked(low),
        masked(_mm256_srli_epi64::<26>(low)),
        masked(between),
        masked(_mm256_srli_epi64::<14>(high)),
        _mm256_or_si256(_mm256_srli_epi64::<40>(high), all(above)),
    ]
}

/// A product modulo 2^130 - 5, carried so far that it can be a factor again; `s` is `r` times five.
#[inline]
#[target_feature(enable = "avx2")]
fn times(h: Limbs, r: Limbs, s: Limbs) -> Limbs {
    let sum = |factors: [__m256i; 5]| {
        let mut sum = _mm256_mul_epu32(h[0], factors[0]);
        for (h, factor) in h.iter().zip(factors).skip(1) {
            sum = _mm256_add_epi64(sum, _mm256_mul_epu32(*h, factor));
        }
        sum
    };
    let mut d = [
        sum([r[0], s[4], s[3], s[2], s[1]]),
        sum([r[1], r[0], s[4], s[3], s[2]]),
        sum([r[2], r[1], r[0], s[4], s[3]]),
        sum([r[3], r[2], r[1], r[0], s[4]]),
        sum([r[4], r[3], r[2], r[1], r[0]]),
    ];
    // Two chains that do not wait for each other.
    for (from, to) in [(0, 1), (3, 4), (1, 2), (4, 0), (2, 3), (0, 1), (3, 4)] {
        let carry = _mm256_srli_epi64::<BITS>(d[from]);
        d[from] = masked(d[from]);
        let carry = if to == 0 { times_five(carry) } else { carry };
        d[to] = _mm256_add_epi64(d[to], carry);
    }
    d
}

/// Reduces fully and adds the second half of the key.
fn finish(mut h: [u64; 5], pad: [u8; 16]) -> [u8; 16] {
    for _ in 0..2 {
        for n in 0..4 {
            h[n + 1] += h[n] >> BITS;
            h[n] &= MASK;
        }
        h[0] += (h[4] >> BITS) * 5;
        h[4] &= MASK;
    }
    h[1] += h[0] >> BITS;
    h[0] &= MASK;
    // Five more runs over 130 bits exactly when the number is not below 2^130 - 5.
    let over = h.iter().fold(5, |carry, limb| (limb + carry) >> BITS);
    let [a, b, c, d, e] = h.map(u128::from);
    let number = a | b << 26 | c << 52 | d << 78 | e << 104;
    let reduced = number.wrapping_add(u128::from(5 * over));
    reduced.wrapping_add(u128::from_le_bytes(pad)).to_le_bytes()
}

#[inline]
#[target_feature(enable = "avx2")]
fn times_five(number: __m256i) -> __m256i {
    _mm256_add_epi64(number, _mm256_slli_epi64::<2>(number))
}

#[inline]
#[target_feature(enable = "avx2")]
fn masked(number: __m256i) -> __m256i {
    _mm256_and_si256(number, all(MASK))
}

#[inline]
#[target_feature(enable = "avx2")]
fn all(word: u64) -> __m256i {
    _mm256_set1_epi64x(word.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag<const BLOCKS: usize>(key: u128, pad: u128, message: [u128; BLOCKS]) -> Option<u128> {
        if !is_x86_feature_detected!("avx2") {
            hyphae_test_skip::skip("this processor has no AVX2");
            return None;
        }
        let other = [0x5a; 32];
        let ours: [u8; 32] = transmute!([key.to_le_bytes(), pad.to_le_bytes()]);
        let blocks = message.map(|block| {
            let mut lanes = [[0xa5; 16]; LANES];
            lanes[2] = block.to_le_bytes();
            lanes
        });
        // SAFETY: the processor has what the function is compiled for.
        let tags = unsafe { tags([&other, &other, &ours, &other], blocks) };
        Some(u128::from_le_bytes(tags[2]))
    }

    /// RFC 8439, appendix A.3, vectors 7 to 11: numbers around 2^130 - 5, words as they are read there.
    #[test]
    fn numbers_at_the_edge_are_reduced() {
        const ALL: u128 = u128::MAX;
        let Some(seventh) = tag(2, 0, [ALL]) else {
            return;
        };
        assert_eq!(seventh, 3);
        assert_eq!(tag(2, ALL, [2]), Some(3));
        let eighth = [ALL, !0xf, 0x11];
        assert_eq!(tag(1, 0, eighth), Some(5));
        let ninth = [
            ALL,
            0xfefe_fefe_fefe_fefe_fefe_fefe_fefe_fefe - 3,
            0x0101_0101_0101_0101_0101_0101_0101_0101,
        ];
        assert_eq!(tag(1, 0, ninth), Some(0));
        assert_eq!(tag(2, 0, [ALL - 2]), Some(ALL - 5));
    }
}
