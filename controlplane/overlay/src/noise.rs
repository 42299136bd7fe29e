//! The Noise XX exchange of one handshake, by `snow`.

use hyphae_wire::handshake::{NOISE_MAX, NOISE_PATTERN, NOISE_PATTERN_PRIVATE};
use hyphae_wire::identity::KEY_LEN;
use hyphae_wire::{Network, PublicKey, SecretKey};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};
use zeroize::Zeroizing;

use crate::keys::{Kind, Secrets};
use hyphae_random::Rng;

/// One side of a handshake. Boxed from the start, and wiped where it is when it is freed, with what it
/// holds of `snow` (see `hyphae_shm::WipingAllocator`).
pub(crate) struct Noise(HandshakeState);

/// `snow`'s own primitives, but for keys: the node's is used where it is and never copied.
struct Primitives {
    identity: SecretKey,
    /// Of the random source, in simulations.
    seed: Option<Zeroizing<[u8; 32]>>,
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        match &self.seed {
            Some(seed) => Some(Box::new(Seeded(Rng::new(**seed)))),
            None => DefaultResolver.resolve_rng(),
        }
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| {
            Box::new(Curve {
                identity: self.identity.clone(),
                key: None,
            }) as Box<dyn Dh>
        })
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The random source of simulations.
struct Seeded(Rng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        self.0.fill(out);
        Ok(())
    }
}

/// X25519 with the node's key, once `snow` sets that, or with one of its own.
struct Curve {
    identity: SecretKey,
    key: Option<SecretKey>,
}

/// What `snow` is given as the node's key; [`Curve`] knows the true one.
const STAND_IN: [u8; KEY_LEN] = [0; KEY_LEN];

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, _stand_in: &[u8]) {
        self.key = Some(self.identity.clone());
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        self.key = Some(SecretKey::filled(|bytes| rng.try_fill_bytes(bytes))?);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        let key = self.key.as_ref();
        key.map_or(&STAND_IN[..], |key| &key.public_bytes()[..])
    }

    fn privkey(&self) -> &[u8] {
        &STAND_IN
    }

    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(Error::Dh)?;
        let theirs = theirs.first_chunk().ok_or(Error::Dh)?;
        let out = out.first_chunk_mut().ok_or(Error::Dh)?;
        key.agree(&PublicKey(*theirs), out);
        Ok(())
    }
}

impl Noise {
    /// Starts a side, in a private network with its key in the third message. `seed` is for
    /// simulations; without it ephemeral keys are the operating system's.
    ///
    /// # Panics
    /// When the pattern of this protocol is not built into `snow`: a broken build.
    pub(crate) fn new(
        identity: &SecretKey,
        kind: Kind,
        initiator: bool,
        network: Option<&Network>,
        seed: Option<[u8; 32]>,
    ) -> Box<Self> {
        let pattern = match network {
            Some(_) => NOISE_PATTERN_PRIVATE,
            None => NOISE_PATTERN,
        };
        let build = || {
            let params: NoiseParams = pattern.parse()?;
            let primitives = Primitives {
                identity: identity.clone(),
                seed: seed.map(Zeroizing::new),
            };
            let builder = Builder::with_resolver(params, Box::new(primitives))
                .local_private_key(&STAND_IN)?
                .prologue(kind.prologue())?;
            let builder = match network {
                Some(network) => builder.psk(3, network.psk())?,
                None => builder,
            };
            if initiator {
                builder.build_initiator()
            } else {
                builder.build_responder()
            }
        };
        match build() {
            Ok(state) => Box::new(Self(state)),
            Err::<_, Error>(error) => panic!("snow lacks {pattern}: {error}"),
        }
    }

    /// The next message of this side. `None` when the operating system has no randomness to give,
    /// or the exchange is not at that point.
    pub(crate) fn write(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let mut message = vec![0; NOISE_MAX];
        let len = self.0.write_message(payload, &mut message).ok()?;
        message.truncate(len);
        Some(message)
    }

    /// Payload of the other side's next message; `None` when it is not authentic, and then nothing
    /// has changed.
    pub(crate) fn read(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut payload = vec![0; message.len()];
        let len = self.0.read_message(message, &mut payload).ok()?;
        payload.truncate(len);
        Some(payload)
    }

    /// The other side's key, once its message that carries it was read.
    pub(crate) fn remote_key(&self) -> Option<PublicKey> {
        self.0.get_remote_static()?.try_into().ok().map(PublicKey)
    }

    /// The result, after the third message.
    pub(crate) fn secrets(&mut self) -> Secrets {
        let (to_responder, to_initiator) = self.0.dangerously_get_raw_split();
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.get_handshake_hash());
        Secrets {
            to_responder,
            to_initiator,
            hash,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Networks<'a> = (Option<&'a Network>, Option<&'a Network>);

    fn pair(kind: (Kind, Kind), networks: Networks<'_>) -> (Box<Noise>, Box<Noise>) {
        let key = |n| SecretKey::from_bytes(&[n; 32]).unwrap();
        (
            Noise::new(&key(1), kind.0, true, networks.0, Some([1; 32])),
            Noise::new(&key(2), kind.1, false, networks.1, Some([2; 32])),
        )
    }

    #[test]
    fn both_sides_reach_the_same_secrets_and_know_each_other() {
        let garden = network(1);
        for member in [None, Some(&garden)] {
            same_secrets(pair((Kind::Link, Kind::Link), (member, member)));
        }
    }

    fn same_secrets((mut i, mut r): (Box<Noise>, Box<Noise>)) {
        assert_eq!(r.read(&i.write(b"one").unwrap()).unwrap(), b"one");
        let two = r.write(b"two").unwrap();
        let mut bent = two.clone();
        bent[40] ^= 1;
        assert!(i.read(&bent).is_none());
        assert_eq!(i.read(&two).unwrap(), b"two");
        assert_eq!(r.read(&i.write(b"three").unwrap()).unwrap(), b"three");
        assert_eq!(
            r.remote_key().unwrap(),
            SecretKey::from_bytes(&[1; 32]).unwrap().public_key()
        );
        let (i, r) = (i.secrets(), r.secrets());
        assert_eq!(
            (i.to_responder, i.to_initiator, i.hash),
            (r.to_responder, r.to_initiator, r.hash)
        );
        assert_ne!(i.to_responder, i.to_initiator);
    }

    #[test]
    fn kinds_do_not_mix() {
        let (mut i, mut r) = pair((Kind::Link, Kind::EndToEnd), (None, None));
        r.read(&i.write(b"one").unwrap()).unwrap();
        assert!(i.read(&r.write(b"two").unwrap()).is_none());
    }

    fn network(key: u8) -> Network {
        let key = hyphae_wire::network::NetworkKey::parse(&format!("{key:02x}").repeat(32));
        Network::new("garden", &key.unwrap())
    }

    #[test]
    fn a_node_with_another_network_key_never_finishes() {
        let (garden, other) = (network(1), network(2));
        let networks = [(None, Some(&garden)), (Some(&garden), None)];
        for networks in networks {
            let (mut i, mut r) = pair((Kind::Link, Kind::Link), networks);
            // The messages differ in form already, or fail at the second.
            let one = i.write(b"one").unwrap();
            let two = r.read(&one).and_then(|_| r.write(b"two"));
            assert!(two.is_none_or(|two| i.read(&two).is_none()));
        }
        let (mut i, mut r) = pair((Kind::Link, Kind::Link), (Some(&garden), Some(&other)));
        r.read(&i.write(b"one").unwrap()).unwrap();
        i.read(&r.write(b"two").unwrap()).unwrap();
        assert!(r.read(&i.write(b"three").unwrap()).is_none());
    }
}
