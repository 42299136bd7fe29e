//! The relay's worker under load.
//!
//! ```text
//! namespace "source"          namespace "relay"               namespace "sink"
//! generator thread  ── veth ──  the real dataplane process  ── veth ──  sink thread
//!     core 0                        core 1, one worker                      core 0
//! ```
//!
//! The generator seals every header, because the relay refuses replays, and sends trains. Rates are counted at the
//! sink. This program is the relay's control plane: it attaches to the dataplane and installs two links and a route.
//! Baselines in the same namespaces: forwarders on the relay's core that change 16 bytes of each segment (over the
//! relay's driver, and over recvmmsg and sendmmsg, with and without UDP offloads), and the kernel's IPv6 forwarding,
//! which runs on the generator's core.

mod baseline;
mod kernel;
mod load;
mod messages;
mod relay;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use hyphae::lab::Namespace;
use hyphae_wire::Suite;
use serde::{Deserialize, Serialize};

use crate::output::{self, Table, maybe, number};
use crate::process::need_root;
use crate::stats::median;

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Bytes of payload per packet, without 104 bytes of headers and tags.
    #[arg(long, value_delimiter = ',', default_value = "64,512,1292")]
    sizes: Vec<usize>,
    /// Packets per train, limited to 65,507 bytes.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    trains: Vec<usize>,
    /// Cipher suites of the links.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "aes-256-gcm,chacha20-poly1305"
    )]
    suites: Vec<Suite>,
    /// 'uring' or 'epoll', for the relay and the baseline.
    #[arg(long, default_value = "uring")]
    driver: hyphae_driver::DriverKind,
    /// Seconds per row.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Runs per row; the median is shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Core of the relay's worker.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Workers of the relay, on that core and the following ones, modulo the cores. Generator and sink stay on the
    /// first core: a worker that shares it measures cost, not rate.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    workers: Vec<u16>,
    /// Measure only the relay, and the same driver without cryptography.
    #[arg(long)]
    brief: bool,
}

/// A forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarder {
    Hyphae(Suite, u16),
    /// The same driver, without cryptography.
    Driver,
    /// recvmmsg and sendmmsg, with UDP's offloads or without.
    Messages {
        offload: bool,
    },
    Kernel,
}

impl fmt::Display for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hyphae(suite, 1) => write!(f, "hyphae {suite}"),
            Self::Hyphae(suite, workers) => write!(f, "hyphae {suite}, {workers} workers"),
            Self::Driver => f.write_str("same driver, no cryptography"),
            Self::Messages { offload: true } => f.write_str("recvmmsg, GRO and GSO"),
            Self::Messages { offload: false } => f.write_str("recvmmsg"),
            Self::Kernel => f.write_str("kernel IPv6"),
        }
    }
}

/// One row: medians over the runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) forwarder: String,
    pub(crate) payload_bytes: usize,
    pub(crate) train: usize,
    /// Received by the sink.
    pub(crate) million_packets_per_second: f64,
    /// Of whole frames.
    pub(crate) gbit_per_second: f64,
    /// CPU time of the forwarder per forwarded packet; `None` for the kernel.
    pub(crate) cpu_nanos_per_packet: Option<f64>,
    /// CPU time of all cores per received packet: generator, forwarder, sink.
    pub(crate) machine_nanos_per_packet: f64,
    /// Share of a core that the forwarder used.
    pub(crate) busy: Option<f64>,
    /// Share of the forwarded packets; the sink shares its core with the generator.
    pub(crate) arrived: Option<f64>,
    /// Packets per CPU second relative to the same driver without cryptography.
    pub(crate) ratio: Option<f64>,
}

/// Counts of one run.
#[derive(Clone, Copy, Debug)]
struct Sample {
    arrived: u64,
    seconds: f64,
    machine: Duration,
    /// Packets and CPU time as reported by the forwarder.
    own: Option<(u64, Duration)>,
}

impl Sample {
    fn nanos(&self) -> Option<f64> {
        let (packets, cpu) = self.own?;
        Some(cpu.as_nanos() as f64 / packets.max(1) as f64)
    }
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    need_root()?;
    ensure!(
        args.runs > 0 && args.seconds > 0.0,
        "at least one run of some length"
    );
    let mut rows = Vec::new();
    for size in &args.sizes {
        for train in &args.trains {
            eprintln!("{size} bytes, trains of {train}");
            rows.extend(measure(args, *size, *train)?);
        }
    }
    show(&rows, json)
}

/// Runs all forwarders in turn.
fn measure(args: &Args, payload: usize, train: usize) -> anyhow::Result<Vec<Row>> {
    let frame = payload + hyphae_wire::frame::OVERHEAD;
    let train = train.min(65_507 / frame).clamp(1, 64);
    let time = Duration::from_secs_f64(args.seconds);
    let of = |suite: &Suite| {
        let suite = *suite;
        let of = move |workers: &u16| Forwarder::Hyphae(suite, *workers);
        args.workers.iter().map(of)
    };
    let mut forwarders: Vec<_> = args.suites.iter().flat_map(of).collect();
    forwarders.push(Forwarder::Driver);
    if !args.brief {
        let messages = [true, false].map(|offload| Forwarder::Messages { offload });
        forwarders.extend(messages);
        forwarders.push(Forwarder::Kernel);
    }
    let mut samples = vec![Vec::new(); forwarders.len()];
    for _ in 0..args.runs {
        for (samples, forwarder) in samples.iter_mut().zip(&forwarders) {
            let net = Net::new()?;
            let sample = match *forwarder {
                Forwarder::Hyphae(suite, workers) => {
                    relay::measure(&net, args, (suite, workers), payload, train, time)
                }
                Forwarder::Driver => baseline::measure(&net, args, frame, train, time),
                Forwarder::Messages { offload } => {
                    messages::measure(&net, args.core, offload, frame, train, time)
                }
                Forwarder::Kernel => kernel::measure(&net, frame, train, time),
            };
            let sample = sample.with_context(|| forwarder.to_string())?;
            ensure!(sample.arrived > 0, "{forwarder}: nothing arrived");
            samples.push(sample);
        }
    }
    let of = |samples: &[Sample], value: &dyn Fn(&Sample) -> Option<f64>| {
        let values: Option<Vec<f64>> = samples.iter().map(value).collect();
        values.map(median)
    };
    let plain = forwarders
        .iter()
        .position(|forwarder| *forwarder == Forwarder::Driver)
        .and_then(|at| of(&samples[at], &Sample::nanos));
    let row = |(samples, forwarder): (&Vec<Sample>, &Forwarder)| {
        let rate = |sample: &Sample| sample.arrived as f64 / sample.seconds;
        let rate = median(samples.iter().map(rate));
        let machine = |sample: &Sample| sample.machine.as_nanos() as f64 / sample.arrived as f64;
        let nanos = of(samples, &Sample::nanos);
        Row {
            forwarder: forwarder.to_string(),
            payload_bytes: payload,
            train,
            million_packets_per_second: rate / 1e6,
            gbit_per_second: rate * frame as f64 * 8.0 / 1e9,
            cpu_nanos_per_packet: nanos,
            machine_nanos_per_packet: median(samples.iter().map(machine)),
            busy: of(samples, &|s| Some(s.own?.1.as_secs_f64() / s.seconds)),
            arrived: of(samples, &|s| {
                Some(s.arrived as f64 / s.own?.0.max(1) as f64)
            }),
            ratio: plain.zip(nanos).map(|(plain, nanos)| plain / nanos),
        }
    };
    Ok(samples.iter().zip(&forwarders).map(row).collect())
}

fn show(rows: &[Row], json: bool) -> anyhow::Result<()> {
    let note = "rates are counted at the sink; ns/packet is the forwarder's CPU time; ratio: packets per CPU second, \
                to the same driver without cryptography";
    output::show("transit", rows, &table(rows).note(note), json)
}

/// All rows.
pub(crate) fn table(rows: &[Row]) -> Table {
    let columns = [
        "forwarder",
        "bytes",
        "train",
        "Mpps",
        "Gbit/s",
        "ns/packet",
        "busy %",
        "arrived %",
        "all cores ns",
        "ratio",
    ];
    Table::new(columns, rows, |row| {
        [
            row.forwarder.clone(),
            row.payload_bytes.to_string(),
            row.train.to_string(),
            number(row.million_packets_per_second),
            number(row.gbit_per_second),
            maybe(row.cpu_nanos_per_packet),
            maybe(row.busy.map(|busy| busy * 100.0)),
            maybe(row.arrived.map(|arrived| arrived * 100.0)),
            number(row.machine_nanos_per_packet),
            maybe(row.ratio),
        ]
    })
}

/// Three namespaces in a line.
struct Net {
    source: Namespace,
    relay: Namespace,
    sink: Namespace,
}

const SOURCE: &str = "198.18.1.2";
const RELAY_TO_SOURCE: &str = "198.18.1.1";
const RELAY_TO_SINK: &str = "198.18.2.1";
const SINK: &str = "198.18.2.2";
const PORT: u16 = 9670;

impl Net {
    fn new() -> anyhow::Result<Self> {
        let net = Self {
            source: Namespace::new()?,
            relay: Namespace::new()?,
            sink: Namespace::new()?,
        };
        let at = |ip: &str| -> anyhow::Result<_> { Ok((ip.parse().context("address")?, 24)) };
        let Self {
            source,
            relay,
            sink,
        } = &net;
        relay.join(
            "to-source",
            at(RELAY_TO_SOURCE)?,
            source,
            "to-relay",
            at(SOURCE)?,
        )?;
        relay.join("to-sink", at(RELAY_TO_SINK)?, sink, "to-relay", at(SINK)?)?;
        Ok(net)
    }
}
