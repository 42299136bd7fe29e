//! The same for four frames at a time, one in each quarter of a register, where the processor has vectors of
//! 512 bits for the cipher and the multiplication.

use std::arch::x86_64::{
    __m128i, __m512i, _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_broadcast_i32x4,
    _mm512_bslli_epi128, _mm512_castsi128_si512, _mm512_clmulepi64_epi128,
    _mm512_extracti32x4_epi32, _mm512_inserti32x4, _mm512_maskz_mov_epi64, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_shuffle_epi32, _mm512_unpackhi_epi64, _mm512_xor_si512,
};

use hyphae_wire::frame::TAG_LEN;
use zerocopy::transmute;

use super::{
    BLOCKS, FIELD, Key, ROUNDS, byte_order, bytes, first_block, from_halves, key_of, load,
    load_half,
};
use crate::train::{LINK_TAG_AT, PAYLOAD_AT, SEALED_HEADERS_AT};

/// Frames at a time.
const FRAMES: usize = 4;
/// The lower halves of all quarters.
const LOWER: u8 = 0b0101_0101;

type Frames<'a> = [&'a mut [u8]; FRAMES];

pub(super) fn is_possible() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// How many of the first frames of a train come in fours, and their bytes.
#[inline]
pub(super) fn in_fours(len: usize, segment: usize) -> (usize, usize) {
    let count = len.div_ceil(segment) / FRAMES * FRAMES;
    (count, len.min(count * segment))
}

fn frames(group: &mut [u8], segment: usize) -> Frames<'_> {
    let mut frames = group.chunks_mut(segment);
    std::array::from_fn(|_| frames.next().unwrap_or_default())
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(super) fn seal(key: &Key, train: &mut [u8], segment: usize) {
    for group in train.chunks_mut(FRAMES * segment) {
        let mut frames = frames(group, segment);
        let stream = key_stream(key, &frames);
        let text = text(&frames);
        let text = [
            xor(text[0], stream[1]),
            xor(text[1], stream[2]),
            xor(text[2], stream[3]),
            // The last block is half of one.
            xor(text[3], _mm512_maskz_mov_epi64(LOWER, stream[4])),
        ];
        let tags = split(xor(hash(key, &frames, text), stream[0]));
        store_text(&mut frames, text);
        for (frame, tag) in frames.into_iter().zip(tags) {
            frame[LINK_TAG_AT..PAYLOAD_AT].copy_from_slice(&bytes(tag));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
pub(super) fn open(key: &Key, train: &mut [u8], segment: usize, authentic: &mut [bool]) {
    let groups = train.chunks_mut(FRAMES * segment);
    for (group, verdicts) in groups.zip(authentic.chunks_mut(FRAMES)) {
        let mut frames = frames(group, segment);
        let stream = key_stream(key, &frames);
        let sealed = text(&frames);
        let expected = xor(hash(key, &frames, sealed), stream[0]);
        let difference = split(xor(expected, gather(&frames, LINK_TAG_AT)));
        for (verdict, difference) in verdicts.iter_mut().zip(difference) {
            let difference: u128 = transmute!(bytes(difference));
            *verdict = difference == 0;
        }
        let text = [
            xor(sealed[0], stream[1]),
            xor(sealed[1], stream[2]),
            xor(sealed[2], stream[3]),
            xor(sealed[3], _mm512_maskz_mov_epi64(LOWER, stream[4])),
        ];
        // What is not authentic stays as it came.
        for (frame, authentic) in frames.iter_mut().zip(&*verdicts) {
            if !authentic {
                *frame = &mut [];
            }
        }
        store_text(&mut frames, text);
    }
}

/// As [`super::key_stream`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn key_stream(key: &Key, frames: &Frames<'_>) -> [__m512i; BLOCKS] {
    let first = join([
        first_block(frames[0]),
        first_block(frames[1]),
        first_block(frames[2]),
        first_block(frames[3]),
    ]);
    let mut blocks = [first; BLOCKS];
    let whitening = broadcast(key_of(key.rounds[0]));
    for (block, n) in blocks.iter_mut().zip(1u32..) {
        let number = broadcast(from_halves(0, u64::from(n.swap_bytes()) << 32));
        *block = xor(xor(*block, number), whitening);
    }
    for round in &key.rounds[1..ROUNDS] {
        let round = broadcast(key_of(*round));
        for block in &mut blocks {
            *block = _mm512_aesenc_epi128(*block, round);
        }
    }
    let last = broadcast(key_of(key.rounds[ROUNDS]));
    for block in &mut blocks {
        *block = _mm512_aesenclast_epi128(*block, last);
    }
    blocks
}

/// As [`super::hash`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn hash(key: &Key, frames: &Frames<'_>, text: [__m512i; 4]) -> __m512i {
    let [a, b, c, d] = text;
    let tags = join([
        load(frames[0], frames[0].len() - TAG_LEN),
        load(frames[1], frames[1].len() - TAG_LEN),
        load(frames[2], frames[2].len() - TAG_LEN),
        load(frames[3], frames[3].len() - TAG_LEN),
    ]);
    let blocks = [gather(frames, 0), tags, a, b, c, d];
    let order = broadcast(byte_order());
    let zero = _mm512_setzero_si512();
    let (mut low, mut middle, mut high) = (zero, zero, zero);
    for (block, power) in blocks.into_iter().zip(&key.powers) {
        let (a, b) = (_mm512_shuffle_epi8(block, order), broadcast(key_of(*power)));
        low = xor(low, _mm512_clmulepi64_epi128::<0x00>(a, b));
        high = xor(high, _mm512_clmulepi64_epi128::<0x11>(a, b));
        let both = xor(
            _mm512_clmulepi64_epi128::<0x01>(a, b),
            _mm512_clmulepi64_epi128::<0x10>(a, b),
        );
        middle = xor(middle, both);
    }
    // As `Product::reduced`.
    let field = broadcast(from_halves(FIELD, FIELD));
    let low = xor(low, _mm512_bslli_epi128::<8>(middle));
    let high = xor(high, _mm512_unpackhi_epi64(middle, zero));
    let once = _mm512_shuffle_epi32::<0x4e>(_mm512_clmulepi64_epi128::<0x00>(low, field));
    let folded = xor(low, once);
    let twice = _mm512_clmulepi64_epi128::<0x11>(folded, field);
    let sum = xor(xor(high, folded), twice);
    _mm512_shuffle_epi8(xor(sum, broadcast(key_of(key.lengths))), order)
}

/// The sealed headers: three blocks and a half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn text(frames: &Frames<'_>) -> [__m512i; 4] {
    let halves = join([
        load_half(frames[0], 64),
        load_half(frames[1], 64),
        load_half(frames[2], 64),
        load_half(frames[3], 64),
    ]);
    [
        gather(frames, 16),
        gather(frames, 32),
        gather(frames, 48),
        halves,
    ]
}

/// Writes the sealed headers of the frames that are not empty.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn store_text(frames: &mut Frames<'_>, text: [__m512i; 4]) {
    let [a, b, c, d] = [
        split(text[0]),
        split(text[1]),
        split(text[2]),
        split(text[3]),
    ];
    for (n, frame) in frames.iter_mut().enumerate() {
        if let Some(place) = frame.get_mut(SEALED_HEADERS_AT..LINK_TAG_AT) {
            place[..16].copy_from_slice(&bytes(a[n]));
            place[16..32].copy_from_slice(&bytes(b[n]));
            place[32..48].copy_from_slice(&bytes(c[n]));
            place[48..].copy_from_slice(&bytes(d[n])[..8]);
        }
    }
}

/// A block of each frame.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn gather(frames: &Frames<'_>, at: usize) -> __m512i {
    join([
        load(frames[0], at),
        load(frames[1], at),
        load(frames[2], at),
        load(frames[3], at),
    ])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn join([a, b, c, d]: [__m128i; FRAMES]) -> __m512i {
    let joined = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
    let joined = _mm512_inserti32x4::<2>(joined, c);
    _mm512_inserti32x4::<3>(joined, d)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn split(joined: __m512i) -> [__m128i; FRAMES] {
    [
        _mm512_extracti32x4_epi32::<0>(joined),
        _mm512_extracti32x4_epi32::<1>(joined),
        _mm512_extracti32x4_epi32::<2>(joined),
        _mm512_extracti32x4_epi32::<3>(joined),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn broadcast(block: __m128i) -> __m512i {
    _mm512_broadcast_i32x4(block)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn xor(a: __m512i, b: __m512i) -> __m512i {
    _mm512_xor_si512(a, b)
}
