//! From a finished handshake to the keys of each lane.

use hyphae_shm::record::LaneKeys;
use hyphae_wire::Lane;
use zeroize::{Zeroize, ZeroizeOnDrop};

const CONTEXT: &str = "hyphae v1 lane keys";

/// Scope of a handshake or session. It is part of every transcript and key derivation, so neither kind can be
/// used as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Two neighbours.
    Link,
    /// Two ends.
    EndToEnd,
}

impl Kind {
    /// Noise prologue: both sides must mean the same protocol and kind.
    pub(crate) fn prologue(self) -> &'static [u8] {
        match self {
            Self::Link => b"hyphae v1 link",
            Self::EndToEnd => b"hyphae v1 e2e",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Link => 0,
            Self::EndToEnd => 1,
        }
    }
}

/// Result of a handshake.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secrets {
    pub(crate) to_responder: [u8; 32],
    pub(crate) to_initiator: [u8; 32],
    pub(crate) hash: [u8; 32],
}

impl Secrets {
    /// Keys of a lane, for the initiator or the responder. Every lane and direction has its own, so
    /// no two counters ever share a key.
    pub(crate) fn lane(&self, kind: Kind, lane: Lane, initiator: bool) -> LaneKeys {
        let derive = |secret: &[u8; 32]| {
            let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
            hasher
                .update(secret)
                .update(&self.hash)
                .update(&[kind.code()]);
            *hasher.update(&lane.0.to_le_bytes()).finalize().as_bytes()
        };
        let (to_responder, to_initiator) = (derive(&self.to_responder), derive(&self.to_initiator));
        if initiator {
            LaneKeys {
                receive: to_initiator,
                send: to_responder,
            }
        } else {
            LaneKeys {
                receive: to_responder,
                send: to_initiator,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_agree_and_nothing_is_used_twice() {
        let secrets = Secrets {
            to_responder: [1; 32],
            to_initiator: [2; 32],
            hash: [3; 32],
        };
        let mut seen = std::collections::BTreeSet::new();
        for kind in [Kind::Link, Kind::EndToEnd] {
            for lane in 0..64 {
                let ours = secrets.lane(kind, Lane(lane), true);
                let theirs = secrets.lane(kind, Lane(lane), false);
                assert_eq!((ours.send, ours.receive), (theirs.receive, theirs.send));
                assert!(seen.insert(ours.send) && seen.insert(ours.receive));
            }
        }
    }

    #[test]
    fn derivation_is_fixed() {
        let secrets = Secrets {
            to_responder: [1; 32],
            to_initiator: [2; 32],
            hash: [3; 32],
        };
        let mut input = vec![1; 32];
        input.extend([3; 32]);
        input.extend([1, 5, 0]);
        let expected = blake3::derive_key("hyphae v1 lane keys", &input);
        assert_eq!(secrets.lane(Kind::EndToEnd, Lane(5), true).send, expected);
    }
}
