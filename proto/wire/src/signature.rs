//! Signatures by the key pair of an identity: XEdDSA over X25519.
//!
//! Implements "The XEdDSA and VXEdDSA Signature Schemes" (Signal, revision 1) with a stricter verifier: besides
//! a `u` that is not below the prime, it refuses an `s` that is not below the group order and points of small
//! order, so that a signature has exactly one valid encoding. The result is an Ed25519 signature under the
//! Edwards form of the public key with sign bit 0; tests compare it with an Ed25519 implementation.
//!
//! Callers prefix the message with a context string, so that a signature is valid for one purpose only.

use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use sha2::{Digest, Sha512};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use crate::{PublicKey, SecretKey, on_wiped_stack};

/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 64;

/// Prefix of the nonce derivation: 2^256 - 2, which is no valid encoding of a point, so that this hash is
/// disjoint from the one over `R`.
const NONCE_PREFIX: [u8; 32] = {
    let mut prefix = [0xff; 32];
    prefix[0] = 0xfe;
    prefix
};

/// An XEdDSA signature: the point `R`, then the scalar `s`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Signature(pub [u8; SIGNATURE_LEN]);

/// Why a signature is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The key is not a canonical point of the curve, or has small order, under which anyone can sign.
    #[error("the public key is not a usable point of the curve")]
    Key,
    /// The scalar is not below the group order, or the nonce point has small order.
    #[error("the signature is not in its canonical form")]
    Form,
    /// Made by another key, or over another message.
    #[error("the signature does not match key and message")]
    Mismatch,
}

impl SecretKey {
    /// Signs a message. `random` comes from a cryptographic source; a repeated value is harmless, because the
    /// nonce depends on key and message as well.
    pub fn sign(&self, message: &[u8], random: &[u8; 64]) -> Signature {
        on_wiped_stack(|| self.sign_here(message, random))
    }

    fn sign_here(&self, message: &[u8], random: &[u8; 64]) -> Signature {
        let clamped = Zeroizing::new(clamp_integer(*self.as_bytes()));
        let k = Zeroizing::new(Scalar::from_bytes_mod_order(*clamped));
        let edwards = EdwardsPoint::mul_base(&k).compress();
        let sign = edwards.as_bytes()[31] >> 7;
        let mut public = edwards.to_bytes();
        public[31] &= 0x7f;
        // Negates k where the sign of the point is 1, without a branch.
        let a = Zeroizing::new(*k * (Scalar::ONE - Scalar::from(2 * sign)));

        let nonce = Sha512::new()
            .chain_update(NONCE_PREFIX)
            .chain_update(a.as_bytes())
            .chain_update(message)
            .chain_update(random);
        let r = Zeroizing::new(scalar(nonce));
        let point = EdwardsPoint::mul_base(&r).compress();
        let s = *r + challenge(point.as_bytes(), &public, message) * *a;

        let mut signature = [0; SIGNATURE_LEN];
        signature[..32].copy_from_slice(point.as_bytes());
        signature[32..].copy_from_slice(s.as_bytes());
        Signature(signature)
    }
}

impl PublicKey {
    /// Verifies that `signature` was made over `message` by the secret half of this key. All inputs are public,
    /// so the time depends on them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        if !below_prime(&self.0) {
            return Err(SignatureError::Key);
        }
        let key = MontgomeryPoint(self.0)
            .to_edwards(0)
            .filter(|key| !key.is_small_order())
            .ok_or(SignatureError::Key)?;
        let mut nonce = [0; 32];
        let mut s = [0; 32];
        nonce.copy_from_slice(&signature.0[..32]);
        s.copy_from_slice(&signature.0[32..]);
        let s =
            Option::<Scalar>::from(Scalar::from_canonical_bytes(s)).ok_or(SignatureError::Form)?;
        let h = challenge(&nonce, key.compress().as_bytes(), message);
        let expected = EdwardsPoint::vartime_double_scalar_mul_basepoint(&h, &-key, &s);
        // Comparing encodings refuses other encodings of the same point.
        if expected.compress().to_bytes() != nonce {
            return Err(SignatureError::Mismatch);
        }
        if expected.is_small_order() {
            return Err(SignatureError::Form);
        }
        Ok(())
    }
}

/// The scalar that binds a signature to its nonce, key and message.
fn challenge(nonce: &[u8; 32], key: &[u8; 32], message: &[u8]) -> Scalar {
    scalar(
        Sha512::new()
            .chain_update(nonce)
            .chain_update(key)
            .chain_update(message),
    )
}

fn scalar(hash: Sha512) -> Scalar {
    let wide = Zeroizing::new(<[u8; 64]>::from(hash.finalize()));
    Scalar::from_bytes_mod_order_wide(&wide)
}

/// Whether a little-endian number is below 2^255 - 19.
fn below_prime(u: &[u8; 32]) -> bool {
    let all_ones = u[31] == 0x7f && u[1..31].iter().all(|byte| *byte == 0xff);
    u[31] < 0x80 && !(all_ones && u[0] >= 0xed)
}
