//! ChaCha20-Poly1305 (RFC 8439) of link parts, with AVX2.
//!
//! A link part takes two blocks of the cipher: one that gives the key of the tag, and one for the text.
//! They lie in the two halves of four vectors, a row of the state each, and differ in one word. Four frames
//! are computed at a time, so that no instruction waits for the one before, and so are their hashes of
//! seven blocks.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_broadcastsi128_si256, _mm256_or_si256, _mm256_set_epi8,
    _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_slli_epi32, _mm256_srli_epi32,
    _mm256_xor_si256,
};
use std::array;

use hyphae_wire::frame::TAG_LEN;
use zerocopy::transmute;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{AAD_LEN, LINK_TAG_AT, PAYLOAD_AT, SEALED_HEADERS_LEN, counter_of, part, poly1305};

/// Frames at a time. One alone takes longer than with another implementation, two do not.
pub(super) const FRAMES: usize = poly1305::LANES;
/// Blocks of the hash: associated data, text and lengths.
const HASHED: usize = AAD_LEN / TAG_LEN + SEALED_HEADERS_LEN.div_ceil(TAG_LEN) + 1;

/// The key of a frame's tag, and the key stream of its text.
type Stream = ([u8; 32], [u8; 64]);

/// A key, as rows of the state.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Key([[u8; 16]; 2]);

impl Key {
    /// Takes a key; `None` when the processor lacks the instructions.
    pub(super) fn new(key: &[u8; 32]) -> Option<Self> {
        is_x86_feature_detected!("avx2").then(|| Self(transmute!(*key)))
    }

    /// Seals up to [`FRAMES`] frames.
    pub(super) fn seal(&self, group: &mut [u8], segment: usize) {
        let streams = self.streams(group, segment);
        for (frame, (_, stream)) in group.chunks_mut(segment).zip(&streams) {
            mix(frame, stream);
        }
        let tags = hash(&streams, group, segment);
        for (frame, tag) in group.chunks_mut(segment).zip(tags) {
            frame[LINK_TAG_AT..PAYLOAD_AT].copy_from_slice(&tag);
        }
    }

    /// Opens up to [`FRAMES`] frames.
    pub(super) fn open(&self, group: &mut [u8], segment: usize, authentic: &mut [bool]) {
        let streams = self.streams(group, segment);
        let tags = hash(&streams, group, segment);
        for (n, frame) in group.chunks_mut(segment).enumerate() {
            let expected = u128::from_ne_bytes(tags[n]);
            let given = u128::from_ne_bytes(part(frame, LINK_TAG_AT));
            authentic[n] = expected ^ given == 0;
            if authentic[n] {
                mix(frame, &streams[n].1);
            }
        }
    }

    fn streams(&self, group: &[u8], segment: usize) -> [Stream; FRAMES] {
        let mut counters = [0; FRAMES];
        for (counter, frame) in counters.iter_mut().zip(group.chunks(segment)) {
            *counter = counter_of(frame);
        }
        // SAFETY: a key exists only where the processor has what the function is compiled for.
        unsafe {
            if group.len() > 2 * segment {
                return streams(&self.0, counters);
            }
            let [first, second] = streams(&self.0, [counters[0], counters[1]]);
            let none = ([0; 32], [0; 64]);
            [first, second, none, none]
        }
    }
}

/// Encrypts or decrypts the text of a frame.
fn mix(frame: &mut [u8], stream: &[u8; 64]) {
    for at in [16, 32, 48] {
        let key = u128::from_ne_bytes(part(stream, at - 16));
        let mixed = u128::from_ne_bytes(part(frame, at)) ^ key;
        frame[at..at + 16].copy_from_slice(&mixed.to_ne_bytes());
    }
    let key = u64::from_ne_bytes(part(stream, 48));
    let mixed = u64::from_ne_bytes(part(frame, 64)) ^ key;
    frame[64..LINK_TAG_AT].copy_from_slice(&mixed.to_ne_bytes());
}

/// The tags of frames whose text is sealed.
fn hash(streams: &[Stream; FRAMES], group: &[u8], segment: usize) -> [[u8; TAG_LEN]; FRAMES] {
    let lengths = [AAD_LEN as u64, SEALED_HEADERS_LEN as u64].map(u64::to_le_bytes);
    let mut blocks = [[[0; TAG_LEN]; FRAMES]; HASHED];
    for (n, frame) in group.chunks(segment).enumerate() {
        blocks[0][n] = part(frame, 0);
        blocks[1][n] = part(frame, frame.len() - TAG_LEN);
        blocks[2][n] = part(frame, 16);
        blocks[3][n] = part(frame, 32);
        blocks[4][n] = part(frame, 48);
        // The last block of the text is half of one.
        blocks[5][n][..8].copy_from_slice(&frame[64..LINK_TAG_AT]);
        blocks[6][n] = transmute!(lengths);
    }
    let [a, b, c, d] = streams;
    // SAFETY: a key exists only where the processor has what the function is compiled for.
    unsafe { poly1305::tags([&a.0, &b.0, &c.0, &d.0], blocks) }
}

/// Rows of two blocks.
type State = [__m256i; 4];

/// Blocks 0 and 1 for each of the counters.
#[target_feature(enable = "avx2")]
fn streams<const COUNT: usize>(key: &[[u8; 16]; 2], counters: [u64; COUNT]) -> [Stream; COUNT] {
    let twice = |row: [u8; 16]| _mm256_broadcastsi128_si256(transmute!(row));
    let [low, high] = *key;
    let (constants, low, high) = (twice(*b"expand 32-byte k"), twice(low), twice(high));
    let starts: [State; COUNT] = array::from_fn(|n| {
        let [first, second]: [u32; 2] = transmute!(counters[n].to_le_bytes());
        // The number of the block, and the nonce: zero and the counter.
        let numbers = [0, 0, first, second, 1, 0, first, second];
        [constants, low, high, transmute!(numbers)]
    });
    let mut states = starts;
    for _ in 0..10 {
        quarters(&mut states);
        for [_, b, c, d] in &mut states {
            *b = _mm256_shuffle_epi32::<0x39>(*b);
            *c = _mm256_shuffle_epi32::<0x4e>(*c);
            *d = _mm256_shuffle_epi32::<0x93>(*d);
        }
        quarters(&mut states);
        for [_, b, c, d] in &mut states {
            *b = _mm256_shuffle_epi32::<0x93>(*b);
            *c = _mm256_shuffle_epi32::<0x4e>(*c);
            *d = _mm256_shuffle_epi32::<0x39>(*d);
        }
    }
    array::from_fn(|n| {
        let rows: [[[u8; 16]; 2]; 4] =
            array::from_fn(|row| transmute!(_mm256_add_epi32(states[n][row], starts[n][row])));
        let [a, b, c, d] = rows;
        (
            transmute!([a[0], b[0]]),
            transmute!([a[1], b[1], c[1], d[1]]),
        )
    })
}

/// Quarter rounds down all columns.
#[inline]
#[target_feature(enable = "avx2")]
fn quarters<const COUNT: usize>(states: &mut [State; COUNT]) {
    for [a, b, _, d] in &mut *states {
        *a = _mm256_add_epi32(*a, *b);
        *d = left_16(_mm256_xor_si256(*d, *a));
    }
    for [_, b, c, d] in &mut *states {
        *c = _mm256_add_epi32(*c, *d);
        *b = left::<12, 20>(_mm256_xor_si256(*b, *c));
    }
    for [a, b, _, d] in &mut *states {
        *a = _mm256_add_epi32(*a, *b);
        *d = left_8(_mm256_xor_si256(*d, *a));
    }
    for [_, b, c, d] in &mut *states {
        *c = _mm256_add_epi32(*c, *d);
        *b = left::<7, 25>(_mm256_xor_si256(*b, *c));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn left<const LEFT: i32, const RIGHT: i32>(words: __m256i) -> __m256i {
    _mm256_or_si256(
        _mm256_slli_epi32::<LEFT>(words),
        _mm256_srli_epi32::<RIGHT>(words),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn left_16(words: __m256i) -> __m256i {
    let order = _mm256_set_epi8(
        13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2, 13, 12, 15, 14, 9, 8, 11, 10, 5, 4,
        7, 6, 1, 0, 3, 2,
    );
    _mm256_shuffle_epi8(words, order)
}

#[inline]
#[target_feature(enable = "avx2")]
fn left_8(words: __m256i) -> __m256i {
    let order = _mm256_set_epi8(
        14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3, 14, 13, 12, 15, 10, 9, 8, 11, 6, 5,
        4, 7, 2, 1, 0, 3,
    );
    _mm256_shuffle_epi8(words, order)
}
