//! The page: machine, plots, and all figures.

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
        "Generator, relay and sink run in separate namespaces; generator and sink share one core, the forwarder \
         has another. Rates are counted at the sink. ns is CPU time of the forwarder per packet, \"all cores\" that \
         of the whole machine. The ratio is packets per CPU second, relative to the same driver without cryptography. The \
         second of two workers shares the core of generator and sink: these rows show cost per packet, not the rate of two cores.",
    ),
    (
        "scale",
        "Cost as a relay grows",
        "The engine alone, 64-byte payloads, trains of 16 unless noted, AES-256-GCM. The ratio is relative to the first \
         row of a group. Consecutive packets to one destination share a lookup, which the rows with one flow or one route \
         show. Workers: cost per packet of one worker while all run.",
    ),
    (
        "versus",
        "Against other overlays",
        "Client, relay and server run in separate namespaces; client and server reach only the relay. Every network uses its \
         defaults, its ciphers and its method of relaying: WireGuard's relay is the kernel between two tunnels. The \
         ratio is relative to the same traffic without an overlay. Networks that were not installed are missing.",
    ),
    (
        "tunnel",
        "TCP through whole nodes",
        "Real nodes with TUN devices; the notes give the CPU time by process. All processes, including the TCP endpoints, \
         share the two cores.",
    ),
    (
        "latency",
        "Round trips",
        "UDP packets of 64 bytes through the relay, one at a time, idle and beside a TCP stream.",
    ),
    (
        "peers",
        "Peers on one relay",
        "Light nodes that connect at the same time and then idle.",
    ),
    (
        "bus",
        "Messages",
        "Two nodes and the benchmark program on loopback.",
    ),
    (
        "aead",
        "Ciphers",
        "Sealing and opening in place, with the 32 bytes of associated data of a frame.",
    ),
    (
        "fib",
        "Forwarding table",
        "Random addresses, against the hash map of the standard library.",
    ),
    (
        "ring",
        "The ring between the planes",
        "Records through shared memory, against a channel.",
    ),
    ("handshake", "Handshakes", "Both sides on one core."),
    (
        "rib",
        "Routing table of the control plane",
        "Nanoseconds per change and lookup.",
    ),
];

pub(super) fn write(documents: &[Document], plots: &[Plot]) -> anyhow::Result<String> {
    let mut page = String::from(
        "# Performance\n\nWritten by `hyphae-bench report`; do not edit. To repeat (root, an idle machine, 15 minutes):\n\n\
         ```sh\ncargo build --release -p hyphae -p hyphae-bench\nsudo target/release/hyphae-bench report --run\n```\n\n\
         Compare ratios to a baseline of the same run, not figures of different machines.\n\n",
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
