//! The AEADs of the packet path: keys expanded once, nonces from counters, everything in place.

#[cfg(target_arch = "x86_64")]
mod aes_gcm;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use hyphae_wire::Suite;
use hyphae_wire::frame::{TAG_LEN, nonce};

/// The tag did not verify, or the counter is beyond its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message authentication failed")]
pub struct AuthError;

/// One key of one direction of one lane.
pub struct Aead {
    way: Way,
}

enum Way {
    General(LessSafeKey),
    #[cfg(target_arch = "x86_64")]
    Aes(Box<aes_gcm::Key>),
}

impl Aead {
    /// Expands a key.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if suite == Suite::Aes256Gcm
            && let Some(key) = aes_gcm::Key::new(key)
        {
            let way = Way::Aes(key);
            return Self { way };
        }
        Self::general(suite, key)
    }

    /// A key that is used as on any processor: what the other is held against.
    ///
    /// # Panics
    /// Never: both suites take 32 bytes.
    pub fn general(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        let Ok(key) = UnboundKey::new(algorithm, key) else {
            unreachable!("both suites take keys of 32 bytes")
        };
        Self {
            way: Way::General(LessSafeKey::new(key)),
        }
    }

    /// Encrypts `bytes` in place under `counter`, which the caller never uses again with this key.
    pub fn seal(&self, counter: u64, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let key = match &self.way {
            Way::General(key) => key,
            #[cfg(target_arch = "x86_64")]
            Way::Aes(key) => return key.seal(counter, aad, bytes),
        };
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        let Ok(tag) = key.seal_in_place_separate_tag(nonce, Aad::from(aad), bytes) else {
            unreachable!("sealing fails only beyond 64 GiB")
        };
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Decrypts `bytes`, ciphertext and tag, in place; the plaintext is all but the last 16 bytes.
    ///
    /// # Errors
    /// When the tag does not verify. The bytes are then not to be used.
    pub fn open(&self, counter: u64, aad: &[u8], bytes: &mut [u8]) -> Result<(), AuthError> {
        let key = match &self.way {
            Way::General(key) => key,
            #[cfg(target_arch = "x86_64")]
            Way::Aes(key) => {
                let (text, tag) = bytes.split_last_chunk_mut().ok_or(AuthError)?;
                let authentic = key.open(counter, aad, text, tag);
                return authentic.then_some(()).ok_or(AuthError);
            }
        };
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        key.open_in_place(nonce, Aad::from(aad), bytes)
            .map(drop)
            .map_err(|_| AuthError)
    }
}

/// Whether this processor has the instructions that make AES-256-GCM the faster suite.
pub fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}
