//! The command line.

use clap::{Parser, Subcommand};

use crate::{bus, mesh, micro, report, rib, swarm, transit, tunnel};

#[derive(Debug, Parser)]
#[command(
    name = "hyphae-bench",
    version,
    about = "Measures Hyphae against baselines in the same run"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A relay worker on a core of its own: cost of a forwarded packet, against the same driver without cryptography.
    #[command(
        after_help = "Examples:\n  sudo hyphae-bench transit\n  sudo hyphae-bench transit \
        --sizes 64,1400 --suites aes-256-gcm --seconds 2 --json"
    )]
    Transit(transit::Args),
    /// Meshes of real routing engines in virtual time: convergence time and cost.
    #[command(
        after_help = "Examples:\n  hyphae-bench mesh\n  hyphae-bench mesh --nodes 10000 \
        --announcing 500 --shape lattice,random,scale-free --json"
    )]
    Mesh(mesh::Args),
    /// The routing table by its size: cost of a change and of a lookup.
    #[command(
        after_help = "Examples:\n  hyphae-bench rib\n  hyphae-bench rib --prefixes 100000 --json"
    )]
    Rib(rib::Args),
    #[command(flatten)]
    Micro(micro::Command),
    #[command(flatten)]
    Tunnel(tunnel::Command),
    #[command(flatten)]
    Swarm(swarm::Command),
    /// Write a page with plots from earlier results, or run all benchmarks for it.
    #[command(
        after_help = "Examples:\n  sudo hyphae-bench report --run\n  hyphae-bench report \
        docs/performance.json"
    )]
    Report(report::Args),
    /// Messages between two nodes on this host: rate, latency, long messages, a burst, socket proxies, against TCP and
    /// the server's own socket. Needs no privileges.
    #[command(
        after_help = "Examples:\n  hyphae-bench bus\n  hyphae-bench bus --only rate,latency --json"
    )]
    Bus(bus::Args),
}

impl Cli {
    /// Runs the subcommand.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match &self.command {
            Command::Transit(args) => transit::run(args, self.json),
            Command::Mesh(args) => mesh::run(args, self.json),
            Command::Rib(args) => rib::run(args, self.json),
            Command::Micro(command) => micro::run(command, self.json),
            Command::Tunnel(command) => tunnel::run(command, self.json),
            Command::Swarm(command) => swarm::run(command, self.json),
            Command::Report(args) => report::run(args),
            Command::Bus(args) => bus::run(args, self.json),
        }
    }
}
