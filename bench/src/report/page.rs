//! The page: what was measured on what, plots, and every figure.

use std::fmt::Write;

use super::plots::Plot;
use crate::output::{Document, Measured, number};
use crate::swarm::PeersRow;
use crate::transit::Row as TransitRow;

/// Heading and explanation of each subcommand, in the order of the page.
const SECTIONS: [(&str, &str, &str); 12] = [
    (
        "transit",
        "A relay's worker",
        "Generator, relay and sink in namespaces of their own; generator and sink share one core, the forwarder \
         has another. Rates are counted at the sink. ns is CPU time of the forwarder per packet, \"all cores\" that \
         of the whole machine. The ratio is packets per CPU second, to the same driver without cryptography.",
    ),
    (
        "scale",
        "Cost as a relay grows",
        "The engine alone, 64-byte payloads, trains of 16 unless said otherwise, AES-256-GCM. The ratio is to the first \
         row of a kind. One peer is the worst case of all: its lane's counters depend on each other. Workers: cost \
         per packet in one of them while all work.",
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
        "# Performance\n\nWritten by `hyphae-bench report`; do not edit. To measure again (root, a quiet machine, 8 minutes):\n\n\
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
        page += &match bench {
            "transit" => transit(&document.rows_as()?),
            "peers" => peers(&document.rows_as()?),
            "rib" => rib(&document.rows_as()?),
            _ => measured(&document.rows_as()?),
        };
        page += "\n";
    }
    Ok(page)
}

fn table<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| {
        // A bar would end the cell.
        let cells: Vec<String> = cells.map(|cell| cell.replace('|', "/")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = line(&mut columns.iter().map(|column| (*column).to_owned()));
    out += &line(&mut columns.iter().map(|_| "---".to_owned()));
    for row in rows {
        out += &line(&mut row.into_iter());
    }
    out
}

fn maybe(value: Option<f64>) -> String {
    value.map_or_else(String::new, number)
}

fn measured(rows: &[Measured]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.what.clone(),
            row.of.clone(),
            row.size.map_or_else(String::new, |size| size.to_string()),
            format!("{} {}", number(row.value), row.unit),
            maybe(row.baseline),
            maybe(row.ratio),
            row.note.clone().unwrap_or_default(),
        ]
    });
    table(
        ["what", "of", "size", "value", "baseline", "ratio", "note"],
        cells,
    )
}

fn transit(rows: &[TransitRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.forwarder.clone(),
            row.payload_bytes.to_string(),
            row.train.to_string(),
            number(row.million_packets_per_second),
            number(row.gbit_per_second),
            maybe(row.cpu_nanos_per_packet),
            number(row.machine_nanos_per_packet),
            maybe(row.ratio),
        ]
    });
    let columns = [
        "forwarder",
        "payload",
        "train",
        "Mpps",
        "Gbit/s",
        "ns",
        "all cores ns",
        "ratio",
    ];
    table(columns, cells)
}

fn peers(rows: &[PeersRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.peers.to_string(),
            number(row.handshakes_per_second),
            row.dataplane.resident_kib_after.to_string(),
            row.controlplane.resident_kib_after.to_string(),
            number(row.kib_per_peer),
            number(row.cpu_percent),
        ]
    });
    let columns = [
        "peers",
        "joined per second",
        "dataplane KiB",
        "control plane KiB",
        "KiB per peer",
        "idle CPU %",
    ];
    table(columns, cells)
}

fn rib(rows: &[crate::rib::Row]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.prefixes.to_string(),
            number(row.add_ns),
            number(row.change_ns),
            number(row.lookup_ns),
        ]
    });
    table(["prefixes", "add ns", "change ns", "lookup ns"], cells)
}
