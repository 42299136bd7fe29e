//! Metrics of the control plane: every family is declared once, with the function that reads it from a snapshot of the
//! node.
//!
//! Counters of the workers are read from the segment, without their help.

#![forbid(unsafe_code)]

mod calls;
mod families;
mod family;
mod per_peer;
mod reloads;
#[cfg(test)]
mod tests;

use families::Source;
use hyphae_node::snapshot::Snapshot;

pub use calls::CallLatency;
pub use reloads::{ReloadCounts, Reloads, unix_seconds};

/// All families but those of calls, in the text format. Slow for thousands of peers: not for the engine thread.
pub fn render(mut node: Snapshot, proxies: &hyphae_proxy::Stats, reloads: ReloadCounts) -> Vec<u8> {
    let per_peer = node.per_peer.take();
    let source = Source {
        node,
        proxies: proxies.all(),
        reloads,
    };
    let mut text = families::render(&source).into_bytes();
    if let Some((mut peers, peers_max)) = per_peer {
        let traffic = |peer| {
            let workers = source.node.workers.iter();
            let workers = workers.map(|worker| worker.peer(peer));
            workers.fold([0; 2], |[received, sent], peer| {
                [received + peer.rx_bytes, sent + peer.tx_bytes]
            })
        };
        per_peer::render(&mut peers, peers_max, traffic, &mut text);
    }
    text
}
