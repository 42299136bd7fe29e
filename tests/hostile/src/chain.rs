//! The secrets that a Noise XX handshake passes through, computed from its Diffie-Hellman results.

use anyhow::{Context, ensure};
use hyphae_wire::SecretKey;
use hyphae_wire::handshake::NOISE_PATTERN;
use snow::params::{DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};

/// A secret of a handshake.
pub type Secret = [u8; 32];

/// Diffie-Hellman of a key pair and another public key.
pub(crate) fn agree(own: &SecretKey, other: &[u8]) -> anyhow::Result<Secret> {
    let choice = DHChoice::Curve25519;
    let mut curve = DefaultResolver.resolve_dh(&choice).context("Curve25519")?;
    let mut shared = [0; 32];
    curve.set(own.as_bytes());
    curve.dh(other, &mut shared)?;
    Ok(shared)
}

/// Every secret of a handshake with these Diffie-Hellman results, in order: the results, the chaining key after each,
/// and the two keys of the split, which have to be `split`.
pub(crate) fn secrets(results: &[Secret], split: [Secret; 2]) -> anyhow::Result<Vec<Secret>> {
    let choice = HashChoice::Blake2s;
    let mut hash = DefaultResolver.resolve_hash(&choice).context("BLAKE2s")?;
    let mut chaining = [0; 32];
    hash.input(NOISE_PATTERN.as_bytes());
    hash.result(&mut chaining);
    let mut derive = |chaining: &Secret, input: &[u8]| {
        let mut keys = [[0; 32]; 2];
        let [first, second] = &mut keys;
        hash.hkdf(chaining, input, 2, first, second, &mut []);
        keys
    };
    let mut all = results.to_vec();
    for shared in results {
        let [next, key] = derive(&chaining, shared);
        all.extend([next, key]);
        chaining = next;
    }
    ensure!(derive(&chaining, &[]) == split, "another handshake");
    all.extend(split);
    Ok(all)
}
