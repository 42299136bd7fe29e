//! What the workers' counters say about a link: frames leave, and nothing comes back.
//!
//! Probes are rare on purpose, so a link that fails is noticed late by them alone. A link that
//! carries traffic shows it at once: its counter of sent frames grows while nothing authentic
//! arrives. Then probes go out fast ([`Overlay::probe_due`]), and the link is given up after
//! [`crate::Config::lost_after`]. A link on which nothing is sent costs nothing more than before.

use std::time::Duration;

use hyphae_time::Nanos;

use crate::Overlay;
use crate::session::{Liveness, Owner};

/// Silence, while frames are sent, after which probes go out fast.
const QUIET: Duration = Duration::from_secs(1);
/// The same for a peer that has another address to go to.
const QUIET_WITH_ALTERNATE: Duration = Duration::from_millis(500);
/// Time between fast probes.
pub(crate) const PROBE_FAST: Duration = Duration::from_millis(250);
/// The same on a path so long that answers need more.
const PROBE_FAST_MAX: Duration = Duration::from_secs(2);

/// What all workers together have counted for a peer since its number was given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Frames sent, those of the control plane included.
    pub sent: u64,
    /// When the last authentic frame came; 0 for never.
    pub heard: Nanos,
}

impl Liveness {
    /// Something authentic came.
    pub(crate) fn alive(&mut self, at: Nanos) {
        if at > self.heard {
            self.heard = at;
            self.urgent = false;
            self.unanswered = None;
        }
    }

    /// How long frames have gone out without anything coming back.
    pub(crate) fn unanswered_for(&self, now: Nanos) -> Duration {
        self.unanswered
            .map_or(Duration::ZERO, |since| now.since(since.max(self.heard)))
    }

    /// Time between fast probes: an answer must be able to come in between.
    pub(crate) fn probe_fast(&self) -> Duration {
        let rtt = self.rtt.smoothed().unwrap_or_default();
        (rtt * 2).clamp(PROBE_FAST, PROBE_FAST_MAX)
    }
}

impl Overlay {
    /// Numbers of the peers that are up: those whose traffic is of interest.
    pub fn peers_up(&self) -> impl Iterator<Item = u32> {
        self.associations
            .iter()
            .filter_map(|(owner, association)| match owner {
                Owner::Peer(peer) if association.up => Some(*peer),
                Owner::Peer(_) | Owner::Remote(_) => None,
            })
    }

    /// Takes a reading of a peer's counters, a few times per second while it carries traffic. True
    /// while it does; then the next reading should follow soon.
    pub fn note_traffic(&mut self, now: Nanos, peer: u32, traffic: PeerTraffic) -> bool {
        let owner = Owner::Peer(peer);
        let Some(association) = self.associations.get_mut(&owner).filter(|a| a.up) else {
            return false;
        };
        let quiet = if association.has_alternate() {
            QUIET_WITH_ALTERNATE
        } else {
            QUIET
        };
        let liveness = &mut association.liveness;
        // What this engine sends itself is no traffic.
        let data = traffic.sent.saturating_sub(liveness.own_sent);
        let before = liveness.reading.replace((now, data));
        let Some((read_at, data_before)) = before else {
            liveness.alive(traffic.heard.min(now));
            return false;
        };
        let grown = data > data_before;
        if traffic.heard > liveness.heard {
            liveness.alive(traffic.heard.min(now));
            return grown;
        }
        if grown {
            liveness.unanswered.get_or_insert(read_at);
        } else {
            // A frame of our own was noted here before the worker has sent it.
            liveness.reading = Some((now, data_before));
        }
        if !liveness.urgent && liveness.unanswered_for(now) >= quiet {
            liveness.urgent = true;
            liveness.probe_at = now;
            self.schedule(owner);
            return true;
        }
        grown || liveness.unanswered.is_some()
    }
}
