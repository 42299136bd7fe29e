//! The page: what was measured on what, plots, and every figure.

use std::fmt::Write;

use super::plots::Plot;
use crate::output::{Document, measured_table};
use crate::swarm::peers_table;
use crate::{rib, transit};

/// Heading and explanation of each subcommand, in the order of the page.
const SECTIONS: [(&str, &str, &str); 12] = [
    (
        "transit",
        "A relay's worker",
        "Generator, relay and sink in namespaces of their own; generator and sink share one core, the forwarder \
         has another. Rates are counted at the sink. ns is CPU time of the forwarder per packet, \"all cores\" that \
         of the whole machine. The ratio is packets per CPU second, to the same driver without cryptography. The second \
         of two workers shares the core of generator and sink: that shows what a packet costs then, not what two cores can do.",
    ),
    (
        "scale",
        "Cost as a relay grows",
        "The engine alone, 64-byte payloads, trains of 16 unless said otherwise, AES-256-GCM. The ratio is to the first \
         row of a kind. A packet to where the one before it went takes the same way without being looked up again: one flow \
         or one route shows that. Workers: cost per packet in one of them while all work.",
    ),
    (
        "versus",
        "Against other overlays",
        "Client, relay and server in namespaces of their own; client and server reach only the relay. Every network with its \
         own defaults, its own ciphers and its own way of relaying: WireGuard's relay is the kernel between two tunnels. \
         The ratio is to the same traffic without an overlay. One that was not installed is missing.",
    ),
    (
        "tunnel",
        "TCP through whole nodes",
        "Real nodes with TUN devices; the notes say which process used the CPU time. The two cores are shared by \
         everything, TCP's ends among it.",
    ),
    (
        "latency",
        "Round trips",
        "UDP packets of 64 bytes through the relay, one at a time, with nothing else and beside a TCP stream.",
    ),
    (
        "peers",
        "Peers on one relay",
        "Light nodes that connect at once and then idle.",
    ),
    (
        "bus",
        "Messages",
        "Two nodes on loopback, and the program that sends and receives.",
    ),
    (
        "aead",
        "Ciphers",
        "Sealing and opening in place, with the 32 bytes of associated data of a frame.",
    ),
    (
        "fib",
        "Forwarding table",
        "Random addresses, against a hash map of the standard library.",
    ),
    (
        "ring",
        "The ring between the planes",
        "Records through memory that both sides share, against a channel.",
    ),
    ("handshake", "Handshakes", "One core does both sides."),
    (
        "rib",
        "Routing table of the control plane",
        "Nanoseconds per change and question.",
    ),
];

pub(super) fn write(documents: &[Document], plots: &[Plot]) -> anyhow::Result<String> {
    let mut page = String::from(
        "# Performance\n\nWritten by `hyphae-bench report`; do not edit. To measure again (root, a quiet machine, 15 minutes):\n\n\
         ```sh\ncargo build --release -p hyphae -p hyphae-bench\nsudo target/release/hyphae-bench report --run\n```\n\n\
         Figures of different machines say little about each other; ratios to a baseline of the same run say more.\n\n",
    );
    let mut machines: Vec<String> = Vec::new();
    for document in documents {
        let machine = document.machine.to_string();
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    let dates = documents.iter().map(|document| &document.date);
    let (first, last) = (dates.clone().min(), dates.max());
    if let (Some(first), Some(last)) = (first, last) {
        writeln!(
            page,
            "Measured from {first} to {last} on: {}.\n",
            machines.join("; ")
        )?;
    }
    for (bench, heading, text) in SECTIONS {
        let Some(document) = documents.iter().find(|document| document.bench == bench) else {
            continue;
        };
        writeln!(page, "## {heading}\n\n{text}\n")?;
        for plot in plots.iter().filter(|plot| plot.bench == bench) {
            writeln!(page, "![{}](performance/{})\n", plot.title, plot.file)?;
        }
        let table = match bench {
            "transit" => transit::table(&document.rows_as()?),
            "peers" => peers_table(&document.rows_as()?),
            "rib" => rib::table(&document.rows_as()?),
            _ => measured_table(&document.rows_as()?),
        };
        page += &table.markdown();
        page += "\n";
    }
    Ok(page)
}
