//! Published vectors of the primitives: RFC 8439, NIST AES-256-GCM, RFC 7748, BLAKE3. They show
//! that the crates we build on are what their names say. Frames are in `frames.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod aead;

use hyphae_test_golden::{Case, load};
use hyphae_wire::{SecretKey, Suite};

fn check_aead(case: &Case) {
    let (key, nonce, aad) = (case.array("key"), case.array("nonce"), case.bytes("aad"));
    let (plaintext, sealed) = (case.bytes("plaintext"), case.bytes("sealed"));
    for (name, aead) in aead::implementations(case.parsed("suite"), &key) {
        let at = format!("{} by {name}", case.at());
        assert_eq!(aead.seal(nonce, &aad, &plaintext), sealed, "{at}");
        assert_eq!(
            aead.open(nonce, &aad, &sealed),
            Some(plaintext.clone()),
            "{at}"
        );
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 0x80;
            assert_eq!(aead.open(nonce, &aad, &bent), None, "{name}, byte {at}");
        }
    }
}

#[test]
fn chacha20_poly1305_is_that_of_rfc_8439() {
    load("rfc8439").iter().for_each(check_aead);
}

#[test]
fn aes_256_gcm_is_that_of_nist() {
    load("nist-aes-256-gcm").iter().for_each(check_aead);
}

/// No published vector has this protocol's shapes (56 bytes of headers, nonces that start with
/// zeros), so the two implementations of ChaCha20-Poly1305 are held against each other as well.
#[test]
fn implementations_agree_at_every_length_up_to_a_packet() {
    let key = std::array::from_fn(|i| u8::try_from(i * 7).unwrap());
    let all = aead::implementations(Suite::ChaCha20Poly1305, &key);
    let bytes: Vec<u8> = (0..1500u32)
        .map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
        .collect();
    for len in (0..300).chain([1339, 1340, 1400, 1499]) {
        let nonce = hyphae_wire::frame::nonce(u64::try_from(len).unwrap() << 33);
        let sealed: Vec<_> = all
            .iter()
            .map(|(_, aead)| aead.seal(nonce, &bytes[..len % 97], &bytes[..len]))
            .collect();
        assert!(
            sealed.windows(2).all(|pair| pair[0] == pair[1]),
            "{len} bytes"
        );
    }
    assert_eq!(all.len(), 2);
}

#[test]
fn x25519_is_that_of_rfc_7748() {
    const BASE: [u8; 32] = x25519_dalek::X25519_BASEPOINT_BYTES;
    for case in load("rfc7748") {
        let output: [u8; 32] = case.array("output");
        if case.has("rounds") {
            let (mut scalar, mut u) = (BASE, BASE);
            for _ in 0..case.number::<u32>("rounds") {
                (scalar, u) = (x25519_dalek::x25519(scalar, u), scalar);
            }
            assert_eq!(scalar, output, "{}", case.at());
            continue;
        }
        let (scalar, u) = (case.array("scalar"), case.array("u"));
        assert_eq!(x25519_dalek::x25519(scalar, u), output, "{}", case.at());
        if u == BASE {
            let secret = SecretKey::from_bytes(&scalar).unwrap();
            assert_eq!(secret.public_key().0, output, "{}", case.at());
        }
    }
}

#[test]
fn blake3_is_blake3() {
    const CONTEXT: &str = "BLAKE3 2019-12-27 16:29:52 test vectors context";
    for case in load("blake3") {
        let input: Vec<u8> = (0..=250).cycle().take(case.number("input_len")).collect();
        let hash: [u8; 32] = case.array("hash");
        assert_eq!(*blake3::hash(&input).as_bytes(), hash, "{}", case.at());
        let derived: [u8; 32] = case.array("derive_key");
        assert_eq!(
            blake3::derive_key(CONTEXT, &input),
            derived,
            "{}",
            case.at()
        );
    }
}
