//! Events of the overlay as log lines and totals. Refusals are logged once per cause and minute.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_overlay::{Event, Refusal};
use hyphae_wire::Nanos;

/// How often the same refusal is logged.
const REFUSAL_AGAIN: Duration = Duration::from_secs(60);
/// Causes remembered for that.
const REFUSALS_MAX: usize = 1024;

/// Totals since start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) peers_up: u64,
    pub(crate) peers_down: u64,
    pub(crate) sessions_up: u64,
    pub(crate) sessions_down: u64,
    pub(crate) sessions_failed: u64,
    pub(crate) peer_moves: u64,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    logged: BTreeMap<String, Nanos>,
}

impl Totals {
    pub(crate) fn note(&mut self, now: Nanos, event: &Event) {
        match event {
            Event::PeerUp { key, endpoint, .. } => {
                self.peers_up += 1;
                tracing::info!(%key, %endpoint, "peer is up");
            }
            Event::PeerDown { key, reason, .. } => {
                self.peers_down += 1;
                tracing::warn!(%key, %reason, "peer is down");
            }
            Event::PeerMoved { key, endpoint, .. } => {
                self.peer_moves += 1;
                tracing::info!(%key, %endpoint, "peer has moved");
            }
            Event::SessionUp { address, key } => {
                self.sessions_up += 1;
                tracing::info!(%address, %key, "session is up");
            }
            Event::SessionDown {
                address, reason, ..
            } => {
                self.sessions_down += 1;
                tracing::info!(%address, %reason, "session has ended");
            }
            Event::SessionFailed { address } => {
                self.sessions_failed += 1;
                tracing::warn!(%address, "no session: nobody answers at this address");
            }
            Event::Refused { key, from, reason } => {
                *self.refusals.entry(refusal_name(reason)).or_default() += 1;
                let line = format!("{key:?} {from} {reason}");
                let due = self
                    .logged
                    .get(&line)
                    .is_none_or(|at| now.since(*at) >= REFUSAL_AGAIN);
                if due {
                    if self.logged.len() >= REFUSALS_MAX {
                        self.logged.clear();
                    }
                    self.logged.insert(line, now);
                    let key = key.map_or_else(|| "unknown".to_owned(), |key| key.to_string());
                    tracing::warn!(key, %from, %reason, "handshake refused");
                }
            }
            Event::EchoReply { .. } | Event::ResyncFib { .. } => {}
        }
    }
}

fn refusal_name(reason: &Refusal) -> &'static str {
    match reason {
        Refusal::Pinned { .. } => "pinned",
        Refusal::OwnKey => "own_key",
        Refusal::Version(_) => "version",
        Refusal::Suite(_) => "suite",
        Refusal::Offer => "offer",
        Refusal::Address => "address",
        Refusal::PeersMax => "peers_max",
        Refusal::SessionsMax => "sessions_max",
        Refusal::Slots => "slots",
    }
}
