//! XEdDSA against an independent Ed25519 verifier, and against everything that must be refused.

use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::VerifyingKey;
use proptest::collection::vec;
use proptest::prelude::*;
use sha2::{Digest, Sha512};

use crate::{PublicKey, SecretKey, Signature, SignatureError};

/// The group order, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

fn secret(bytes: [u8; 32]) -> SecretKey {
    SecretKey::from_bytes(&bytes).unwrap()
}

/// The Edwards form of a key with sign bit 0: y = (u - 1) / (u + 1).
fn edwards(key: &PublicKey) -> [u8; 32] {
    curve25519_dalek::montgomery::MontgomeryPoint(key.0)
        .to_edwards(0)
        .unwrap()
        .compress()
        .to_bytes()
}

/// s + n * L of a signature, while it fits into 32 bytes.
fn malleate(signature: &Signature, times: u8) -> Option<Signature> {
    let mut forged = *signature;
    for _ in 0..times {
        let mut carry = 0u16;
        for (byte, add) in forged.0[32..].iter_mut().zip(ORDER) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(forged)
}

proptest! {
    #![proptest_config(super::config())]

    #[test]
    fn a_signature_verifies_here_and_as_ed25519(
        key in any::<[u8; 32]>(), message in vec(any::<u8>(), 0..200), random in vec(any::<u8>(), 64),
    ) {
        prop_assume!(key != [0; 32]);
        let key = secret(key);
        let random: [u8; 64] = random.try_into().unwrap();
        let signature = key.sign(&message, &random);
        prop_assert_eq!(key.public_key().verify(&message, &signature), Ok(()));
        let verifier = VerifyingKey::from_bytes(&edwards(&key.public_key())).unwrap();
        let ed25519 = ed25519_dalek::Signature::from_bytes(&signature.0);
        prop_assert!(verifier.verify_strict(&message, &ed25519).is_ok());
    }

    #[test]
    fn random_bytes_are_no_signature(
        key in any::<[u8; 32]>(), message in vec(any::<u8>(), 0..40), bytes in vec(any::<u8>(), 64),
    ) {
        let bytes: [u8; 64] = bytes.try_into().unwrap();
        prop_assert!(PublicKey(key).verify(&message, &Signature(bytes)).is_err());
        // Also with a scalar in range, so that the point is compared and not the range alone.
        let mut bytes = bytes;
        bytes[63] &= 0x0f;
        prop_assert!(secret([7; 32]).public_key().verify(&message, &Signature(bytes)).is_err());
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (key, message) = (secret([3; 32]), *b"prefix, router-id, seqno");
    let public = key.public_key();
    let signature = key.sign(&message, &[9; 64]);
    let bits = |len: usize| (0..len * 8).map(|bit| (bit / 8, 1u8 << (bit % 8)));
    for (byte, mask) in bits(64) {
        let mut other = signature;
        other.0[byte] ^= mask;
        assert!(
            public.verify(&message, &other).is_err(),
            "signature byte {byte}"
        );
    }
    for (byte, mask) in bits(message.len()) {
        let mut other = message;
        other[byte] ^= mask;
        assert_eq!(
            public.verify(&other, &signature),
            Err(SignatureError::Mismatch)
        );
    }
    for (byte, mask) in bits(32) {
        let mut other = public;
        other.0[byte] ^= mask;
        assert!(
            other.verify(&message, &signature).is_err(),
            "key byte {byte}"
        );
    }
    for cut in 0..message.len() {
        assert!(public.verify(&message[..cut], &signature).is_err());
    }
}

#[test]
fn another_key_does_not_verify() {
    let signature = secret([1; 32]).sign(b"message", &[0; 64]);
    let other = secret([2; 32]).public_key();
    assert_eq!(
        other.verify(b"message", &signature),
        Err(SignatureError::Mismatch)
    );
}

#[test]
fn a_scalar_beyond_the_order_is_refused() {
    let key = secret([5; 32]);
    let signature = key.sign(b"message", &[1; 64]);
    let mut tried = 0;
    while let Some(forged) = malleate(&signature, tried + 1) {
        tried += 1;
        assert_ne!(forged, signature);
        assert_eq!(
            key.public_key().verify(b"message", &forged),
            Err(SignatureError::Form)
        );
    }
    assert!(tried >= 14);
    let mut marked = signature;
    marked.0[63] |= 0x80;
    assert_eq!(
        key.public_key().verify(b"message", &marked),
        Err(SignatureError::Form)
    );
}

#[test]
fn a_public_key_beyond_the_prime_is_refused() {
    // X25519 itself masks the high bit away and reduces the rest; a signed key has one encoding.
    let key = secret([5; 32]);
    let signature = key.sign(b"message", &[1; 64]);
    let mut high = key.public_key();
    high.0[31] |= 0x80;
    assert_eq!(
        high.verify(b"message", &signature),
        Err(SignatureError::Key)
    );
    for low in 0xed..=0xff {
        let mut beyond = [0xff; 32];
        (beyond[0], beyond[31]) = (low, 0x7f);
        let refused = PublicKey(beyond).verify(b"message", &signature);
        assert_eq!(refused, Err(SignatureError::Key), "p + {}", low - 0xed);
    }
}

#[test]
fn a_key_of_small_order_signs_nothing() {
    // With A of small order, R = sB verifies for many messages; u of all points of small order
    // that lie on the curve: 0, 1 and the two of order eight.
    let eight = |text: &str| text.parse::<PublicKey>().unwrap();
    let mut one = [0; 32];
    one[0] = 1;
    let small = [
        PublicKey([0; 32]),
        PublicKey(one),
        eight("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        eight("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ];
    let s = Scalar::from(77u8);
    let point = curve25519_dalek::EdwardsPoint::mul_base(&s).compress();
    let mut forged = [0; 64];
    forged[..32].copy_from_slice(point.as_bytes());
    forged[32..].copy_from_slice(s.as_bytes());
    for key in small {
        for n in 0..32u8 {
            assert_eq!(
                key.verify(&[n], &Signature(forged)),
                Err(SignatureError::Key),
                "{key}"
            );
        }
    }
}

#[test]
fn a_nonce_point_of_small_order_is_refused() {
    // Only the holder of the key can make this one: R is the neutral point, s = h * a.
    let key = secret([6; 32]);
    let k = Scalar::from_bytes_mod_order(curve25519_dalek::scalar::clamp_integer([6; 32]));
    let point = curve25519_dalek::EdwardsPoint::mul_base(&k).compress();
    let a = if point.as_bytes()[31] >> 7 == 1 {
        -k
    } else {
        k
    };
    let mut nonce = [0; 32];
    nonce[0] = 1;
    let hash = Sha512::new()
        .chain_update(nonce)
        .chain_update(edwards(&key.public_key()))
        .chain_update(b"message");
    let h = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
    let mut forged = [0; 64];
    forged[..32].copy_from_slice(&nonce);
    forged[32..].copy_from_slice((h * a).as_bytes());
    let refused = key.public_key().verify(b"message", &Signature(forged));
    assert_eq!(refused, Err(SignatureError::Form));
}

#[test]
fn the_nonce_depends_on_randomness_and_message() {
    let key = secret([8; 32]);
    let nonce = |message: &[u8], random: u8| key.sign(message, &[random; 64]).0[..32].to_vec();
    assert_eq!(nonce(b"a", 1), nonce(b"a", 1));
    assert_ne!(nonce(b"a", 1), nonce(b"a", 2));
    assert_ne!(nonce(b"a", 1), nonce(b"b", 1));
}
