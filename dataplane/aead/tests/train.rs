//! Covers the link parts of trains: sealed as other implementations seal one by one, opened likewise,
//! and any change noticed, whatever way the processor allows.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "helpers of tests; positions are cut to their range"
)]

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use hyphae_aead::LinkAead;
use hyphae_wire::Suite;
use hyphae_wire::frame::{
    LINK_HEADER_LEN, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT, TAG_LEN, nonce,
};
use proptest::prelude::*;

/// Both ways of both suites.
const WAYS: [(Suite, Way); 4] = [
    (Suite::Aes256Gcm, LinkAead::new),
    (Suite::Aes256Gcm, LinkAead::one_by_one),
    (Suite::ChaCha20Poly1305, LinkAead::new),
    (Suite::ChaCha20Poly1305, LinkAead::one_by_one),
];

type Way = fn(Suite, &[u8; 32]) -> LinkAead;

/// Seals the link part of a frame with another implementation.
fn reference(suite: Suite, key: &[u8; 32], frame: &mut [u8]) {
    let counter = u64::from_le_bytes(frame[8..16].try_into().unwrap());
    let aad = [&frame[..LINK_HEADER_LEN], &frame[frame.len() - TAG_LEN..]].concat();
    let (nonce, text) = (nonce(counter), &mut frame[SEALED_HEADERS_AT..LINK_TAG_AT]);
    let tag = match suite {
        Suite::ChaCha20Poly1305 => ChaCha20Poly1305::new(key.into())
            .encrypt_in_place_detached((&nonce).into(), &aad, text)
            .unwrap(),
        Suite::Aes256Gcm => Aes256Gcm::new(key.into())
            .encrypt_in_place_detached((&nonce).into(), &aad, text)
            .unwrap(),
    };
    frame[LINK_TAG_AT..PAYLOAD_AT].copy_from_slice(&tag);
}

/// Random bytes as a train: up to 64 frames of one length, the last maybe shorter.
fn trains() -> impl Strategy<Value = (Vec<u8>, usize)> {
    (OVERHEAD..400, 1..=64usize).prop_flat_map(|(segment, frames)| {
        let last = OVERHEAD..=segment;
        last.prop_flat_map(move |last| {
            let bytes = prop::collection::vec(any::<u8>(), (frames - 1) * segment + last);
            (bytes, Just(segment))
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn seals_as_others_do_and_opens_what_they_seal(key in any::<[u8; 32]>(), (plain, segment) in trains()) {
        for (suite, way) in WAYS {
            let mut expected = plain.clone();
            expected.chunks_mut(segment).for_each(|frame| reference(suite, &key, frame));
            let aead = way(suite, &key);
            let mut train = plain.clone();
            aead.seal(&mut train, segment);
            prop_assert_eq!(&train, &expected);
            let mut authentic = [false; 64];
            aead.open(&mut train, segment, &mut authentic);
            let frames = plain.len().div_ceil(segment);
            prop_assert_eq!(authentic.iter().filter(|authentic| **authentic).count(), frames);
            // All but the tags is as it was.
            for (frame, before) in train.chunks(segment).zip(plain.chunks(segment)) {
                prop_assert_eq!(&frame[..LINK_TAG_AT], &before[..LINK_TAG_AT]);
                prop_assert_eq!(&frame[PAYLOAD_AT..], &before[PAYLOAD_AT..]);
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed_in_its_frame_alone(
        key in any::<[u8; 32]>(),
        (plain, segment) in trains(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        for (suite, way) in WAYS {
            let aead = way(suite, &key);
            let mut train = plain.clone();
            aead.seal(&mut train, segment);
            let at = at.index(train.len());
            train[at] ^= 1 << bit;
            let (hit, place) = (at / segment, at % segment);
            let len = train.chunks(segment).nth(hit).unwrap().len();
            // The payload is not the link's concern.
            let noticed = place < PAYLOAD_AT || place >= len - TAG_LEN;
            let mut authentic = [true; 64];
            aead.open(&mut train, segment, &mut authentic);
            for (n, authentic) in authentic.iter().enumerate() {
                prop_assert_eq!(*authentic, n != hit || !noticed, "{:?}, frame {}", suite, n);
            }
        }
    }
}

/// Tags at the edges of the field, where a reduction that is not complete shows: keys and texts that are all
/// zeros or all ones, and counters at both ends.
#[test]
fn extremes_are_sealed_as_others_do() {
    for (suite, way) in WAYS {
        for key in [[0; 32], [0xff; 32]] {
            for fill in [0, 0xff] {
                for counter in [0u64, 1, u64::from(u32::MAX), 1 << 32, u64::MAX] {
                    let mut frame = [fill; OVERHEAD + 1];
                    frame[8..16].copy_from_slice(&counter.to_le_bytes());
                    let len = frame.len();
                    // Alone, and among as many as are sealed at once.
                    for frames in [1, 5] {
                        let mut train = frame.repeat(frames);
                        let mut expected = train.clone();
                        let sealed = expected.chunks_mut(len);
                        sealed.for_each(|frame| reference(suite, &key, frame));
                        way(suite, &key).seal(&mut train, len);
                        assert_eq!(train, expected, "{suite:?} {fill} {counter}");
                    }
                }
            }
        }
    }
}

#[test]
fn one_frame_opens_alone_and_under_no_other_key() {
    for (suite, way) in WAYS {
        let mut frame = vec![7; 200];
        way(suite, &[1; 32]).seal(&mut frame, 200);
        for (key, authentic) in [([2; 32], false), ([1; 32], true)] {
            let mut opened = [!authentic];
            way(suite, &key).open(&mut frame.clone(), 200, &mut opened);
            assert_eq!(opened, [authentic]);
        }
    }
}
