//! The same for four frames at a time, one in each quarter of a vector.

use std::arch::x86_64::{__m512i, _mm512_maskz_mov_epi64};

use hyphae_wire::frame::TAG_LEN;
use zerocopy::transmute;

use super::{BLOCKS, Key, first_block, load, load_half};
use crate::gcm::wide::{Product, WIDTH as FRAMES, broadcast, encrypt, join, reversed, split, xor};
use crate::gcm::{bytes, from_halves, key_of};
use crate::train::{LINK_TAG_AT, PAYLOAD_AT, SEALED_HEADERS_AT};

/// The lower halves of all quarters.
const LOWER: u8 = 0b0101_0101;

type Frames<'a> = [&'a mut [u8]; FRAMES];

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
    for (block, n) in blocks.iter_mut().zip(1u32..) {
        let number = broadcast(from_halves(0, u64::from(n.swap_bytes()) << 32));
        *block = xor(*block, number);
    }
    encrypt(&key.rounds, blocks)
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
    let mut sum = Product::zero();
    for (block, power) in blocks.into_iter().zip(&key.powers) {
        sum.add(reversed(block), broadcast(key_of(*power)));
    }
    reversed(xor(sum.reduced(), broadcast(key_of(key.lengths))))
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
