//! Parameters that a hostile node claims in a handshake, and its side of the Noise exchange.

use anyhow::{Context, anyhow, ensure};
use hyphae_wire::frame::MTU_DEFAULT;
use hyphae_wire::guard::Token;
use hyphae_wire::handshake::{NOISE_MAX, NOISE_PATTERN, Offer};
use hyphae_wire::{Lane, PublicKey, SecretKey, SessionIndex, Suite, SuiteSet};
use snow::{Builder, HandshakeState};

use crate::chain::{agree, secrets};
use crate::{LaneKeys, Secret};

/// Kind of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A link with a neighbour.
    Link,
    /// An end-to-end session.
    EndToEnd,
}

/// Claims in the offers of a handshake. [`Claims::default`] is honest.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Workers.
    pub workers: u16,
    /// Largest inner packet.
    pub mtu: u16,
    /// Port of each worker; `None` for the socket's own for every worker (links), or no ports (end to end).
    pub ports: Option<Vec<u16>>,
    /// Suites of the first message; a hostile node itself speaks only ChaCha20-Poly1305.
    pub suites: SuiteSet,
    /// Indices of the third message; `None` for valid ones, as many as the other side lists.
    pub lanes: Option<Vec<SessionIndex>>,
    /// Reset tokens of the third message.
    pub resets: Vec<Token>,
    /// Instance number, in the third message.
    pub instance: u64,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            workers: 1,
            mtu: MTU_DEFAULT,
            ports: None,
            suites: SuiteSet::only(Suite::ChaCha20Poly1305),
            lanes: None,
            resets: Vec::new(),
            instance: 0,
        }
    }
}

impl Claims {
    /// Honest except for the number of workers.
    pub fn workers(workers: u16) -> Self {
        Self {
            workers,
            ..Self::default()
        }
    }

    /// The offer of a message that lists these lanes.
    pub fn offer(&self, purpose: Purpose, port: u16, lanes: Vec<SessionIndex>) -> Offer {
        let ports = match purpose {
            Purpose::Link => vec![port; usize::from(self.workers)],
            Purpose::EndToEnd => Vec::new(),
        };
        Offer {
            suites: self.suites,
            workers: self.workers,
            mtu: self.mtu,
            ports: self.ports.clone().unwrap_or(ports),
            resets: if lanes.is_empty() {
                Vec::new()
            } else {
                self.resets.clone()
            },
            instance: if lanes.is_empty() { 0 } else { self.instance },
            lanes,
        }
    }

    /// Indices for `lanes` lanes, each at the worker that would own it.
    fn indices(&self, lanes: usize) -> Vec<SessionIndex> {
        let valid = || {
            let lane = |n: u16| SessionIndex::new(Lane(n).worker(self.workers), 1, n);
            (0..u16::try_from(lanes).unwrap_or(u16::MAX))
                .map(lane)
                .collect()
        };
        self.lanes.clone().unwrap_or_else(valid)
    }
}

/// One side of a handshake in flight.
pub struct Handshake {
    purpose: Purpose,
    noise: HandshakeState,
    identity: SecretKey,
    ephemeral: SecretKey,
    claims: Claims,
    port: u16,
}

/// A finished handshake.
pub struct Secrets {
    /// Key of the other side.
    pub key: PublicKey,
    /// Its last offer.
    pub offer: Offer,
    /// Keys and indices of each lane.
    pub lanes: Vec<LaneKeys>,
    /// Secrets that both sides passed through, the split keys last.
    pub passed: Vec<Secret>,
}

impl Handshake {
    /// Begins a handshake. `port` is the one that an honest offer names.
    ///
    /// # Errors
    /// When the Noise pattern is not built in, or without randomness.
    pub fn new(
        identity: &SecretKey,
        purpose: Purpose,
        claims: &Claims,
        port: u16,
    ) -> anyhow::Result<Self> {
        let prologue: &[u8] = match purpose {
            Purpose::Link => b"hyphae v1 link",
            Purpose::EndToEnd => b"hyphae v1 e2e",
        };
        let ephemeral = SecretKey::generate().map_err(|error| anyhow!("no randomness: {error}"))?;
        let noise = Builder::new(NOISE_PATTERN.parse()?)
            .local_private_key(identity.as_bytes())?
            .fixed_ephemeral_key_for_testing_only(ephemeral.as_bytes())
            .prologue(prologue)?
            .build_initiator()?;
        Ok(Self {
            purpose,
            noise,
            identity: identity.clone(),
            ephemeral,
            claims: claims.clone(),
            port,
        })
    }

    /// The first Noise message.
    ///
    /// # Errors
    /// When it was begun already.
    pub fn first(&mut self) -> anyhow::Result<Vec<u8>> {
        let offer = self.claims.offer(self.purpose, self.port, Vec::new());
        self.write(&offer)
    }

    /// Handles the answer; returns the third Noise message and the secrets.
    ///
    /// When the answer is invalid.
    pub fn finish(mut self, answer: &[u8]) -> anyhow::Result<(Vec<u8>, Secrets)> {
        let mut payload = vec![0; answer.len()];
        let len = self.noise.read_message(answer, &mut payload)?;
        let theirs = Offer::parse(&payload[..len])?;
        let key = self.noise.get_remote_static().context("a key")?;
        let key = PublicKey(key.try_into()?);
        let ours = self.claims.indices(theirs.lanes.len());
        let mut choice = self.claims.offer(self.purpose, self.port, ours.clone());
        choice.suites = theirs.suites;
        let third = self.write(&choice)?;
        let (to_responder, to_initiator) = self.noise.dangerously_get_raw_split();
        let theirs_ephemeral = answer.get(..32).context("an ephemeral key")?;
        let results = [
            agree(&self.ephemeral, theirs_ephemeral)?,
            agree(&self.ephemeral, &key.0)?,
            agree(&self.identity, theirs_ephemeral)?,
        ];
        let passed = secrets(&results, [to_responder, to_initiator])?;
        let hash = self.noise.get_handshake_hash();
        let derive = |secret: &[u8; 32], lane: u16| {
            let mut hasher = blake3::Hasher::new_derive_key("hyphae v1 lane keys");
            let kind = u8::from(self.purpose == Purpose::EndToEnd);
            hasher.update(secret).update(hash).update(&[kind]);
            *hasher.update(&lane.to_le_bytes()).finalize().as_bytes()
        };
        let lanes = (0u16..).zip(theirs.lanes.iter().zip(&ours));
        let lanes = lanes
            .map(|(lane, (send, receive))| {
                let keys = (derive(&to_responder, lane), derive(&to_initiator, lane));
                LaneKeys::new(*send, *receive, keys)
            })
            .collect();
        let secrets = Secrets {
            key,
            offer: theirs,
            lanes,
            passed,
        };
        Ok((third, secrets))
    }

    fn write(&mut self, offer: &Offer) -> anyhow::Result<Vec<u8>> {
        let mut message = vec![0; NOISE_MAX];
        let payload = offer.encode();
        ensure!(payload.len() < NOISE_MAX, "such an offer fits no message");
        let len = self.noise.write_message(&payload, &mut message)?;
        message.truncate(len);
        Ok(message)
    }
}
