//! XEdDSA signatures, byte for byte. What must be refused is tested beside the code.

#![allow(clippy::unwrap_used, reason = "a test")]

use hyphae_test_golden::load;
use hyphae_wire::{PublicKey, SecretKey, Signature};

#[test]
fn signatures_are_those_of_the_specification() {
    for case in load("signature") {
        let key = SecretKey::from_bytes(&case.array::<32>("secret")).unwrap();
        let public: PublicKey = case.parsed("public");
        let message = case.bytes("message");
        let expected = Signature(case.array("signature"));
        assert_eq!(key.public_key(), public, "{}", case.at());
        let signature = key.sign(&message, &case.array("random"));
        assert_eq!(signature, expected, "{}", case.at());
        assert_eq!(public.verify(&message, &expected), Ok(()), "{}", case.at());
    }
}
