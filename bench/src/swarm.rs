//! Many light nodes against one real relay.
//!
//! A light node has the engines of a real node (overlay, forwarding, routing) and a UDP socket, but no processes. Each
//! has an address of its own in 127.0.0.0/8, so limits per source apply per node. A thousand light nodes fit a few
//! processes, and send the packets of real nodes.
//!
//! ```text
//! peers ── relay: hyphae up (two processes)       flood ── relay
//!       ── swarm processes ── light nodes ...           ── flow: two light nodes through the relay
//!                                                       ── newcomers: one light node per second
//!                                                       ── generator: first messages, any source
//! ```

mod flood;
mod loopback;
mod peers;
mod relay;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

pub(crate) use peers::{Row as PeersRow, table as peers_table};

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Idle peers on one relay: memory and CPU time of its two processes, and join rate.
    #[command(
        after_help = "Examples:\n  hyphae-bench peers\n  hyphae-bench peers --peers 10,1000 --json"
    )]
    Peers(peers::Args),
    /// First handshake messages against a relay that carries a flow, or a node behind it, while new nodes join.
    #[command(after_help = "Examples:\n  hyphae-bench flood\n  hyphae-bench flood \
        --rate 50000 --seconds 20 --json\n  hyphae-bench flood --sources relayed --claims 64")]
    Flood(flood::Args),
    /// Light nodes in this process until standard input ends; `peers` starts it.
    #[command(hide = true)]
    Swarm(peers::SwarmArgs),
}

pub(crate) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Peers(args) => peers::run(args, json),
        Command::Flood(args) => flood::run(args, json),
        Command::Swarm(args) => peers::swarm(args),
    }
}

/// Loopback address of the `n`th node, any port; relay and generator use other addresses.
fn place(n: usize) -> SocketAddr {
    let [.., c, d] = n.to_be_bytes();
    let b = u8::try_from(n >> 16).unwrap_or(u8::MAX).min(15);
    SocketAddrV4::new(Ipv4Addr::new(127, 16 + b, c, d), 0).into()
}
