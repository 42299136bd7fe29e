//! The plots of the page. Plots of subcommands without results are omitted.

use std::collections::BTreeSet;

use super::rows_of;
use super::svg::{Bar, GREY, Series, bars, lines};
use crate::output::{Document, Measured, number};
use crate::swarm::PeersRow;
use crate::transit::Row as TransitRow;

/// A plot in a file of its own.
pub(super) struct Plot {
    /// Subcommand whose section contains it.
    pub(super) bench: &'static str,
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    pub(super) svg: String,
}

pub(super) fn all(documents: &[Document]) -> anyhow::Result<Vec<Plot>> {
    let transit: Vec<TransitRow> = rows_of(documents, "transit")?;
    let versus: Vec<Measured> = rows_of(documents, "versus")?;
    let plots = [
        trains(&transit, Trains::Small),
        trains(&transit, Trains::Large),
        stages(documents, &transit)?,
        scale(&rows_of(documents, "scale")?),
        memory(&rows_of(documents, "peers")?),
        against(&versus, Versus::Throughput),
        against(&versus, Versus::Cost),
        against(&versus, Versus::Latency),
    ];
    Ok(plots.into_iter().flatten().collect())
}

enum Trains {
    Small,
    Large,
}

/// Throughput against the length of trains.
fn trains(rows: &[TransitRow], which: Trains) -> Option<Plot> {
    let sizes = rows.iter().map(|row| row.payload_bytes);
    let (size, file, title) = match which {
        Trains::Small => (
            sizes.min()?,
            "trains-small.svg",
            "Relayed packets by the length of trains, smallest payload, million per second at the sink",
        ),
        Trains::Large => (
            sizes.max()?,
            "trains-large.svg",
            "Relayed traffic by the length of trains, largest payload, Gbit/s at the sink",
        ),
    };
    let rows: Vec<&TransitRow> = rows
        .iter()
        .filter(|row| row.payload_bytes == size && !row.forwarder.ends_with("workers"))
        .collect();
    let trains: BTreeSet<usize> = rows.iter().map(|row| row.train).collect();
    let mut names: Vec<&str> = Vec::new();
    for row in &rows {
        if !names.contains(&row.forwarder.as_str()) {
            names.push(&row.forwarder);
        }
    }
    let value = |row: &TransitRow| match which {
        Trains::Small => row.million_packets_per_second,
        Trains::Large => row.gbit_per_second,
    };
    let series = names.into_iter().map(|name| {
        let at = |train: &usize| {
            let row = rows
                .iter()
                .find(|row| row.forwarder == name && row.train == *train);
            row.map(|row| value(row))
        };
        Series {
            name: name.to_owned(),
            values: trains.iter().map(at).collect(),
        }
    });
    let series: Vec<Series> = series.collect();
    let categories: Vec<String> = trains.iter().map(usize::to_string).collect();
    Some(Plot {
        bench: "transit",
        file,
        title,
        svg: lines(title, "packets of a train", &categories, &series),
    })
}

/// Nanoseconds of the stages of a relayed packet.
struct Stages {
    open: f64,
    seal: f64,
    lookup: f64,
    /// The engine with one flow: consecutive packets to one destination share a lookup.
    one_flow: f64,
    /// The engine with several flows.
    many_flows: f64,
    driver: f64,
}

impl Stages {
    /// The stages, if all benchmarks they come from were run. `driver` is from `transit`.
    fn read(
        documents: &[Document],
        suite: &str,
        driver: Option<f64>,
    ) -> anyhow::Result<Option<Self>> {
        let aead: Vec<Measured> = rows_of(documents, "aead")?;
        let fib: Vec<Measured> = rows_of(documents, "fib")?;
        let scale: Vec<Measured> = rows_of(documents, "scale")?;
        let longest = |what: &str| {
            let rows = aead
                .iter()
                .filter(|row| row.what == what && row.of == suite);
            rows.max_by_key(|row| row.size).map(|row| row.value)
        };
        let hits = fib
            .iter()
            .filter(|row| row.what == "lookup" && row.of == "hit");
        let flows = || scale.iter().filter(|row| row.what == "flows");
        let stages = || {
            Some(Self {
                open: longest("open link parts")?,
                seal: longest("seal link parts")?,
                lookup: hits.min_by_key(|row| row.size)?.value,
                one_flow: flows().find(|row| row.size == Some(1))?.value,
                many_flows: flows().find(|row| row.size > Some(1))?.value,
                driver: driver?,
            })
        };
        Ok(stages())
    }

    fn bar(&self, name: &str, engine: f64, lookup: f64) -> Bar {
        let rest = (engine - self.open - self.seal - lookup).max(0.0);
        let parts = vec![self.open, lookup, self.seal, rest, self.driver];
        Bar {
            name: name.to_owned(),
            label: format!("{} ns", number(parts.iter().sum())),
            parts,
            colour: 0,
        }
    }
}

/// Cost of a relayed packet of a long train by stage.
fn stages(documents: &[Document], transit: &[TransitRow]) -> anyhow::Result<Option<Plot>> {
    let title = "A relayed packet of a long train by stage, smallest payload, ns of CPU time";
    let small = transit.iter().map(|row| row.payload_bytes).min();
    let longest = transit.iter().map(|row| row.train).max();
    let cost = |name: &str| {
        let mut rows = transit.iter();
        let row = rows.find(|row| {
            row.forwarder == name && Some(row.payload_bytes) == small && Some(row.train) == longest
        });
        row.and_then(|row| row.cpu_nanos_per_packet)
    };
    let suite = "aes-256-gcm";
    let driver = cost("same driver, no cryptography");
    let Some(stages) = Stages::read(documents, suite, driver)? else {
        return Ok(None);
    };
    let parts = [
        "open header",
        "look up",
        "seal header",
        "rest of the engine",
        "driver and kernel",
    ];
    let mut rows = vec![
        stages.bar("sum, several flows", stages.many_flows, stages.lookup),
        stages.bar("sum, one flow", stages.one_flow, 0.0),
    ];
    if let Some(whole) = cost(&format!("hyphae {suite}")) {
        rows.push(Bar {
            name: "whole relay, one flow".to_owned(),
            parts: vec![whole],
            colour: GREY,
            label: format!("{} ns", number(whole)),
        });
    }
    Ok(Some(Plot {
        bench: "scale",
        file: "stages.svg",
        title,
        svg: bars(title, &parts.map(str::to_owned), &rows),
    }))
}

/// Cost against the number of peers, routes and flows.
fn scale(rows: &[Measured]) -> Option<Plot> {
    let title = "A relayed packet by the number of peers, routes, flows: engine alone, ns";
    let kinds = ["peers", "routes", "flows"];
    let rows: Vec<&Measured> = rows
        .iter()
        .filter(|row| kinds.contains(&row.what.as_str()))
        .collect();
    let sizes: BTreeSet<u64> = rows.iter().filter_map(|row| row.size).collect();
    if sizes.is_empty() {
        return None;
    }
    let series = kinds.map(|kind| {
        let at = |size: &u64| {
            let row = rows
                .iter()
                .find(|row| row.what == kind && row.size == Some(*size));
            row.map(|row| row.value)
        };
        Series {
            name: kind.to_owned(),
            values: sizes.iter().map(at).collect(),
        }
    });
    let categories: Vec<String> = sizes.iter().map(u64::to_string).collect();
    Some(Plot {
        bench: "scale",
        file: "scale.svg",
        title,
        svg: lines(title, "how many", &categories, &series),
    })
}

/// Memory against peers.
fn memory(rows: &[PeersRow]) -> Option<Plot> {
    let title = "Memory of a relay by its peers, MiB resident";
    if rows.is_empty() {
        return None;
    }
    let mib = |kib: u64| Some(kib as f64 / 1024.0);
    let planes = [
        (
            "dataplane",
            rows.iter()
                .map(|row| mib(row.dataplane.resident_kib_after))
                .collect(),
        ),
        (
            "control plane",
            rows.iter()
                .map(|row| mib(row.controlplane.resident_kib_after))
                .collect(),
        ),
    ];
    let series = planes.map(|(name, values)| Series {
        name: name.to_owned(),
        values,
    });
    let categories: Vec<String> = rows.iter().map(|row| row.peers.to_string()).collect();
    Some(Plot {
        bench: "peers",
        file: "memory.svg",
        title,
        svg: lines(title, "peers", &categories, &series),
    })
}

enum Versus {
    Throughput,
    Cost,
    Latency,
}

/// Ratios to the same traffic without an overlay, or CPU time.
fn against(rows: &[Measured], which: Versus) -> Option<Plot> {
    let (file, title, what, unit) = match which {
        Versus::Throughput => (
            "versus-throughput.svg",
            "One TCP stream through the relay, Gbit/s",
            "TCP, relayed",
            "Gbit/s",
        ),
        Versus::Cost => (
            "versus-cost.svg",
            "CPU time of all three nodes per gigabyte through the relay, seconds (less is better)",
            "CPU, relayed",
            "s/GB",
        ),
        Versus::Latency => (
            "versus-latency.svg",
            "Round trip through an idle relay, median, microseconds (less is better)",
            "round trip, idle, p50",
            "us",
        ),
    };
    let of = |row: &&Measured| row.what == what;
    let rows: Vec<&Measured> = rows.iter().filter(of).collect();
    let own = rows.iter().find(|row| row.of == "hyphae")?.value;
    let mut drawn: Vec<Bar> = Vec::new();
    let plain = rows.iter().find_map(|row| row.baseline);
    let all = rows.iter().map(|row| (row.of.as_str(), row.value));
    for (name, value) in all.chain(plain.map(|value| ("no overlay", value))) {
        drawn.push(Bar {
            name: name.to_owned(),
            parts: vec![value],
            colour: if name == "hyphae" { 0 } else { GREY },
            label: format!("{} {unit}, {:.2}x", number(value), value / own),
        });
    }
    Some(Plot {
        bench: "versus",
        file,
        title,
        svg: bars(title, &[], &drawn),
    })
}
