//! `hyphae peer`.

use clap::Subcommand;
use hyphae_rpc::method::{EndpointParams, Peer};

use super::status::age;
use super::{NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// List all peers, configured and inbound.
    #[command(after_help = "Examples:\n  hyphae peer list\n  hyphae peer list --json")]
    List(NodeRef),
    /// Connect to a peer, now and after every restart.
    #[command(
        after_help = "Examples:\n  hyphae peer add udp://192.0.2.1:9670#KEY\n  hyphae \
                            peer add tcp://192.0.2.1:443#KEY"
    )]
    Add {
        /// udp://HOST:PORT, or tcp://HOST:PORT for TCP only; optionally #KEY.
        endpoint: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Stop connecting to a peer and end the link.
    #[command(after_help = "Examples:\n  hyphae peer remove udp://192.0.2.1:9670")]
    Remove {
        /// udp://HOST:PORT or tcp://HOST:PORT, as it was added or as `hyphae peer list` shows it.
        endpoint: String,
        #[command(flatten)]
        node: NodeRef,
    },
}

pub(crate) fn run(command: PeerCommand, json: bool) -> anyhow::Result<()> {
    match command {
        PeerCommand::List(node) => list(&node, json),
        PeerCommand::Add { endpoint, node } => {
            output::changed(node.client().add_peer(EndpointParams { endpoint })?, json)
        }
        PeerCommand::Remove { endpoint, node } => output::changed(
            node.client().delete_peer(EndpointParams { endpoint })?,
            json,
        ),
    }
}

fn list(node: &NodeRef, json: bool) -> anyhow::Result<()> {
    let peers = node.client().get_peers()?;
    if json {
        return output::document(&peers);
    }
    let heads = [
        "STATE", "ENDPOINT", "RTT", "LOSS", "TX/RX", "SUITE", "LANES", "SINCE", "TYPE", "KEY",
        "ERROR",
    ];
    Ok(output::table(
        &heads,
        &peers.iter().map(row).collect::<Vec<_>>(),
    )?)
}

fn row(peer: &Peer) -> Vec<String> {
    let none = || "-".to_owned();
    vec![
        peer.connection_state.clone(),
        format!("{}://{}", peer.endpoint.proto, peer.endpoint.socket_addr),
        peer.rtt_micros
            .map_or_else(none, |us| format!("{:.2} ms", us as f64 / 1e3)),
        peer.loss_permille
            .map_or_else(none, |loss| format!("{:.1} %", f64::from(loss) / 10.0)),
        format!("{}/{}", bytes(peer.tx_bytes), bytes(peer.rx_bytes)),
        peer.suite.clone().unwrap_or_else(none),
        format!("{}/{}", peer.lanes_active, peer.lanes),
        peer.last_connected.map_or_else(none, age),
        peer.kind.clone(),
        match (&peer.pubkey, &peer.name) {
            (Some(key), Some(name)) => format!("{key} ({name})"),
            (Some(key), None) => key.clone(),
            (None, _) => none(),
        } + &duplicate(peer),
        peer.error.clone().unwrap_or_else(none),
    ]
}

/// Suffix for a key that two hosts use.
fn duplicate(peer: &Peer) -> String {
    let Some(duplicate) = &peer.duplicate else {
        return String::new();
    };
    let finding = if duplicate.own {
        "DUPLICATE, reported by the peer: this node's key"
    } else {
        "DUPLICATE: this key"
    };
    let places = duplicate.places.join(" and ");
    format!(" {finding} is on two hosts, {places}")
}

fn bytes(n: u64) -> String {
    let mut scaled = n as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{n} B")
    } else {
        format!("{scaled:.1} {unit}")
    }
}
