//! The implementations of each suite that vectors are held against.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use hyphae_wire::Suite;

/// One AEAD under one key.
pub(crate) trait Aead {
    /// Ciphertext and tag.
    fn seal(&self, nonce: [u8; 12], aad: &[u8], plaintext: &[u8]) -> Vec<u8>;
    /// The plaintext, if ciphertext and tag are authentic.
    fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>>;
}

/// Every implementation of the suite, by name.
pub(crate) fn implementations(suite: Suite, key: &[u8; 32]) -> Vec<(&'static str, Box<dyn Aead>)> {
    let algorithm = match suite {
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Suite::Aes256Gcm => &AES_256_GCM,
    };
    let fast = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    let mut all: Vec<(_, Box<dyn Aead>)> = vec![("aws-lc-rs", Box::new(fast))];
    if suite == Suite::ChaCha20Poly1305 {
        all.push((
            "chacha20poly1305",
            Box::new(ChaCha20Poly1305::new(key.into())),
        ));
    }
    all
}

impl Aead for LessSafeKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut bytes = plaintext.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.seal_in_place_append_tag(nonce, Aad::from(aad), &mut bytes)
            .unwrap();
        bytes
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.open_in_place(nonce, Aad::from(aad), &mut bytes)
            .ok()
            .map(|opened| opened.to_vec())
    }
}

impl Aead for ChaCha20Poly1305 {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], msg: &[u8]) -> Vec<u8> {
        self.encrypt(&nonce.into(), Payload { msg, aad }).unwrap()
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], msg: &[u8]) -> Option<Vec<u8>> {
        self.decrypt(&nonce.into(), Payload { msg, aad }).ok()
    }
}
