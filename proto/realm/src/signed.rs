//! Signed values.
//!
//! ```text
//! signed  = length varint, body, signature (64)
//! message = context string ‖ 0x00 ‖ body
//! ```
//!
//! The body is the encoding of the value, retained as received, so that fields of newer versions stay covered. The
//! signature is XEdDSA by the key that the value names; each type has its own context string, so that a signature is
//! valid for one purpose only.

use hyphae_wire::signature::SIGNATURE_LEN;
use hyphae_wire::{PublicKey, SecretKey, Signature, SignatureError};

use crate::codec::{Format, FormatError, put_varint, take_bytes};

/// A type of signed values.
pub trait Signable: Format {
    /// Begin of the signed message.
    const CONTEXT: &'static str;

    /// The key that signs it.
    fn signer(&self) -> PublicKey;
}

/// A value with the signature of the key that it names. Decoding does not verify it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    body: Vec<u8>,
    signature: Signature,
}

impl<T: Signable> Signed<T> {
    /// Bound of the encoding, bytes.
    pub const LEN_MAX: usize = T::LEN_MAX + 4 + SIGNATURE_LEN;

    /// Signs a value. `random` comes from a cryptographic source.
    ///
    /// # Panics
    /// When the value names another key.
    pub fn sign(value: T, key: &SecretKey, random: &[u8; 64]) -> Self {
        assert_eq!(value.signer(), key.public_key(), "a value names its signer");
        let body = value.encode();
        let signature = key.sign(&message::<T>(&body), random);
        Self {
            value,
            body,
            signature,
        }
    }

    /// Decodes a value; its signature is not verified.
    ///
    /// # Errors
    /// When the bytes are not a signed value of this type.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut rest = bytes;
        let body = take_bytes(&mut rest)?;
        let signature = rest.try_into().map_err(|_| FormatError::Truncated)?;
        Ok(Self {
            value: T::decode(body)?,
            body: body.to_vec(),
            signature: Signature(signature),
        })
    }

    /// Its encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        put_varint(&mut bytes, self.body.len());
        bytes.extend_from_slice(&self.body);
        bytes.extend_from_slice(&self.signature.0);
        bytes
    }

    /// Bytes of its encoding, at most 3 more.
    pub fn encoded_len(&self) -> usize {
        self.body.len() + SIGNATURE_LEN + 4
    }

    /// Verifies the signature.
    ///
    /// # Errors
    /// When it was not made by the key that the value names, for this type and content.
    pub fn verify(&self) -> Result<(), SignatureError> {
        let signer = self.value.signer();
        signer.verify(&message::<T>(&self.body), &self.signature)
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value, without its signature.
    pub fn into_value(self) -> T {
        self.value
    }

    /// Hash of body and signature: a name of exactly this encoding.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("hyphae signed value v1");
        hasher.update(T::CONTEXT.as_bytes()).update(&[0]);
        hasher.update(&self.body).update(&self.signature.0);
        hasher.finalize().into()
    }
}

fn message<T: Signable>(body: &[u8]) -> Vec<u8> {
    [T::CONTEXT.as_bytes(), &[0], body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hlc::UnixMillis;
    use crate::{Grant, GrantId, Holder, Object, RealmId, TopicFilter, Unknown, Verb};

    fn grant(key: &SecretKey) -> Signed<Grant> {
        let grant = Grant {
            id: GrantId([1; 16]),
            realm: RealmId([2; 16]),
            issuer: key.public_key(),
            holder: Holder::AllMembers,
            module: None,
            verb: Verb::Publish,
            filter: TopicFilter::all(),
            not_before: UnixMillis(1),
            expires: UnixMillis(2),
            renew: true,
            unknown: Unknown::default(),
        };
        Signed::sign(grant, key, &[7; 64])
    }

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_bytes(&[seed; 32]).expect("a key")
    }

    #[test]
    fn a_signature_is_valid_for_its_value_only() {
        let signed = grant(&key(1));
        assert_eq!(signed.verify(), Ok(()));
        let bytes = signed.encode();
        assert_eq!(Signed::decode(&bytes), Ok(signed));
        for at in 1..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            if let Ok(bad) = Signed::<Grant>::decode(&bad) {
                assert!(bad.verify().is_err(), "byte {at}");
            }
        }
        assert!(Signed::<Grant>::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(Signed::<Grant>::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_signature_of_one_type_is_invalid_for_another() {
        let contexts = [
            Grant::CONTEXT,
            Object::CONTEXT,
            crate::StateHead::CONTEXT,
            crate::Realm::CONTEXT,
        ];
        let distinct: std::collections::BTreeSet<_> = contexts.into_iter().collect();
        assert_eq!(distinct.len(), contexts.len());
        let signed = grant(&key(1));
        let other = Object::CONTEXT.as_bytes();
        let message = [other, &[0], &signed.body].concat();
        assert!(
            key(1)
                .public_key()
                .verify(&message, &signed.signature)
                .is_err()
        );
    }

    #[test]
    #[should_panic(expected = "a value names its signer")]
    fn nobody_signs_for_another() {
        let value = grant(&key(1)).into_value();
        let _ = Signed::sign(value, &key(2), &[7; 64]);
    }
}
