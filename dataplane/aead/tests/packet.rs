//! Covers the AEADs of the packet path against the pure Rust implementations, and that any change
//! to what was sealed is noticed.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "helpers of tests; positions are cut to their range"
)]

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use hyphae_aead::{Aead, AuthError};
use hyphae_wire::Suite;
use hyphae_wire::frame::nonce;
use proptest::prelude::*;

/// What another implementation makes of it: ciphertext and tag.
fn reference(suite: Suite, key: &[u8; 32], counter: u64, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let (mut bytes, nonce) = (plain.to_vec(), nonce(counter));
    let tag = match suite {
        Suite::ChaCha20Poly1305 => ChaCha20Poly1305::new(key.into())
            .encrypt_in_place_detached((&nonce).into(), aad, &mut bytes)
            .unwrap(),
        Suite::Aes256Gcm => Aes256Gcm::new(key.into())
            .encrypt_in_place_detached((&nonce).into(), aad, &mut bytes)
            .unwrap(),
    };
    bytes.extend(tag);
    bytes
}

fn sealed(suite: Suite, key: &[u8; 32], counter: u64, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut bytes = plain.to_vec();
    let tag = Aead::new(suite, key).seal(counter, aad, &mut bytes);
    bytes.extend(tag);
    bytes
}

fn suites() -> impl Strategy<Value = Suite> {
    prop_oneof![Just(Suite::ChaCha20Poly1305), Just(Suite::Aes256Gcm)]
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=most)
}

proptest! {
    #[test]
    fn seals_as_others_do_and_opens_what_they_seal(
        suite in suites(),
        key in any::<[u8; 32]>(),
        counter in any::<u64>(),
        aad in bytes(100),
        plain in bytes(3000),
    ) {
        let expected = reference(suite, &key, counter, &aad, &plain);
        prop_assert_eq!(&sealed(suite, &key, counter, &aad, &plain), &expected);
        let mut opened = expected;
        Aead::new(suite, &key).open(counter, &aad, &mut opened).unwrap();
        prop_assert_eq!(&opened[..plain.len()], &plain[..]);
    }

    #[test]
    fn any_flipped_bit_is_noticed(
        suite in suites(),
        key in any::<[u8; 32]>(),
        counter in any::<u64>(),
        aad in bytes(72),
        plain in bytes(300),
        at in any::<u64>(),
    ) {
        let good = sealed(suite, &key, counter, &aad, &plain);
        // A bit of the text, tag, associated data, counter or key.
        let bit = (at % (8 * (good.len() + aad.len() + 8 + 32) as u64)) as usize;
        let (mut byte, mask) = (bit / 8, 1u8 << (bit % 8));
        let (mut good, mut aad, mut key) = (good, aad, key);
        let mut count = counter.to_le_bytes();
        for part in [&mut good[..], &mut aad[..], &mut count[..], &mut key[..]] {
            if byte < part.len() {
                part[byte] ^= mask;
                break;
            }
            byte -= part.len();
        }
        let aead = Aead::new(suite, &key);
        prop_assert_eq!(aead.open(u64::from_le_bytes(count), &aad, &mut good), Err(AuthError));
    }

    #[test]
    fn any_other_length_is_noticed(suite in suites(), plain in bytes(100), more in any::<u8>()) {
        let (key, aad) = ([7; 32], [1, 2, 3]);
        let good = sealed(suite, &key, 5, &aad, &plain);
        let aead = Aead::new(suite, &key);
        for len in 0..good.len() {
            prop_assert_eq!(aead.open(5, &aad, &mut good[..len].to_vec()), Err(AuthError));
        }
        let mut longer = [&good[..], &[more]].concat();
        prop_assert_eq!(aead.open(5, &aad, &mut longer), Err(AuthError));
    }
}

#[test]
fn suites_do_not_open_each_others_text() {
    let mut good = sealed(Suite::Aes256Gcm, &[9; 32], 1, b"", b"hello");
    let other = Aead::new(Suite::ChaCha20Poly1305, &[9; 32]);
    assert_eq!(other.open(1, b"", &mut good), Err(AuthError));
}

/// Every number of blocks and every part of one, of text and of associated data: steps of several kinds follow each
/// other in one packet.
#[test]
fn every_length_is_sealed_as_on_any_processor() {
    let (key, bytes) = ([0x3c; 32], [0xa7; 9000]);
    let lengths = (0..1100).map(|len| (len, 56));
    let lengths = lengths.chain((0..600).map(|aad| (77, aad)));
    let lengths = lengths.chain([(1340, 0), (8848, 56), (9000, 56)]);
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        let (ours, other) = (Aead::new(suite, &key), Aead::general(suite, &key));
        for (len, aad) in lengths.clone() {
            // Block numbers and counters carry into each other's neighbourhood, not into each other.
            let counter = u64::MAX - len as u64;
            let (mut text, mut expected) = (bytes[..len].to_vec(), bytes[..len].to_vec());
            let tag = ours.seal(counter, &bytes[..aad], &mut text);
            let expected_tag = other.seal(counter, &bytes[..aad], &mut expected);
            assert_eq!(tag, expected_tag, "{suite:?} {len} {aad}");
            assert_eq!(text, expected, "{suite:?} {len} {aad}");
            text.extend(tag);
            ours.open(counter, &bytes[..aad], &mut text).unwrap();
            assert_eq!(text[..len], bytes[..len], "{suite:?} {len} {aad}");
        }
    }
}

/// What is not authentic leaves nothing behind that could be taken for text.
#[test]
fn what_does_not_open_is_not_decrypted() {
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        for len in [1, 16, 255, 256, 1340] {
            let plain = vec![0x61; len];
            let mut bytes = sealed(suite, &[9; 32], 1, b"", &plain);
            *bytes.last_mut().unwrap() ^= 1;
            let aead = Aead::new(suite, &[9; 32]);
            assert_eq!(aead.open(1, b"", &mut bytes), Err(AuthError));
            assert_ne!(bytes[..len], plain, "{suite:?} {len}");
        }
    }
}
