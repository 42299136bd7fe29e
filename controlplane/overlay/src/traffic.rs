//! Detection of silence under traffic, by the workers' counters.
//!
//! Probes are rare on purpose, so they alone detect a failure late. A link with traffic shows it at once: its
//! counter of sent frames grows while no authentic frame arrives. Then probes are sent fast
//! ([`crate::probes`]), and the link is abandoned after [`crate::Config::lost_after`]. Idle links cost nothing
//! more.

use std::time::Duration;

use hyphae_time::Nanos;

use crate::Overlay;
use crate::ids::Owner;

/// Silence, while frames are sent, after which probes go out fast.
const QUIET: Duration = Duration::from_secs(1);
/// The same for a peer that has another address to go to.
const QUIET_WITH_ALTERNATE: Duration = Duration::from_millis(500);
/// Counters of a peer, summed over workers, since its number was assigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Frames sent, those of the control plane included.
    pub sent: u64,
    /// When the last authentic frame came; 0 for never.
    pub heard: Nanos,
}

impl Overlay {
    /// Numbers of the peers that are up, whose traffic is to be read.
    pub fn peers_up(&self) -> impl Iterator<Item = u32> {
        self.associations
            .iter()
            .filter_map(|(owner, association)| match owner {
                Owner::Peer(peer) if association.up => Some(*peer),
                Owner::Peer(_) | Owner::Remote(_) => None,
            })
    }

    /// Records a reading of a peer's counters, a few times per second while it carries traffic. True while it
    /// does; the next reading should then follow soon.
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
        // Frames of this engine are not traffic.
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
            // A frame of this engine was counted here before the worker sent it.
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
