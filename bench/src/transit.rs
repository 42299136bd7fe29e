//! The relay's worker under load.
//!
//! ```text
//! namespace "source"          namespace "relay"               namespace "sink"
//! generator thread  ── veth ──  the real dataplane process  ── veth ──  sink thread
//!     core 0                        core 1, one worker                      core 0
//! ```
//!
//! The generator seals every header (the relay refuses replays) and sends whole trains; the sink
//! counts. This program is the relay's control plane: it attaches to the dataplane and installs
//! two links, a route, and nothing else. The baseline is a forwarder over the same driver, on the
//! same core, in the same namespaces, that changes 16 bytes of each segment and sends the train on.

mod baseline;
mod load;
mod relay;

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use hyphae::lab::Namespace;
use hyphae_wire::Suite;
use serde::Serialize;

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Bytes of payload per packet; 104 bytes of headers and tags come on top.
    #[arg(long, value_delimiter = ',', default_value = "64,512,1292")]
    sizes: Vec<usize>,
    /// Packets per train; cut to what fits 65,507 bytes.
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
    driver: hyphae_uring::DriverKind,
    /// Seconds per row.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Runs per row; the median is shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Core of the relay's worker.
    #[arg(long, default_value_t = 1)]
    core: usize,
}

/// One row: medians over the runs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    suite: String,
    payload_bytes: usize,
    train: usize,
    million_packets_per_second: f64,
    gbit_per_second: f64,
    /// CPU time of the relay per packet.
    cpu_nanos_per_packet: f64,
    /// Share of a core that the relay used.
    busy: f64,
    /// Of the baseline in the same run.
    baseline_million_packets_per_second: f64,
    /// See above.
    baseline_cpu_nanos_per_packet: f64,
    /// Packets per CPU second, relay to baseline: what the worker would reach on a full core.
    ratio: f64,
}

/// What one run saw.
#[derive(Clone, Copy, Debug)]
struct Sample {
    packets: u64,
    seconds: f64,
    cpu: Duration,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.packets as f64 / self.seconds
    }

    fn nanos(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.packets.max(1) as f64
    }
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root"
    );
    ensure!(
        args.runs > 0 && args.seconds > 0.0,
        "at least one run of some length"
    );
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    for suite in &args.suites {
        for size in &args.sizes {
            for train in &args.trains {
                eprintln!("{suite}, {size} bytes, trains of {train}");
                rows.push(row(args, *suite, *size, *train, time)?);
            }
        }
    }
    show(&rows, json)
}

fn row(
    args: &Args,
    suite: Suite,
    payload: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Row> {
    let frame = payload + hyphae_wire::frame::OVERHEAD;
    let train = train.min(65_507 / frame).clamp(1, 64);
    let (mut relayed, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let net = Net::new()?;
        relayed.push(relay::measure(&net, args, suite, payload, train, time)?);
        let net = Net::new()?;
        plain.push(baseline::measure(&net, args, frame, train, time)?);
    }
    let median = |samples: &[Sample], value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let rate = median(&relayed, Sample::rate);
    let (nanos, plain_nanos) = (
        median(&relayed, Sample::nanos),
        median(&plain, Sample::nanos),
    );
    Ok(Row {
        suite: suite.to_string(),
        payload_bytes: payload,
        train,
        million_packets_per_second: rate / 1e6,
        gbit_per_second: rate * frame as f64 * 8.0 / 1e9,
        cpu_nanos_per_packet: nanos,
        busy: median(&relayed, |sample| sample.cpu.as_secs_f64() / sample.seconds),
        baseline_million_packets_per_second: median(&plain, Sample::rate) / 1e6,
        baseline_cpu_nanos_per_packet: plain_nanos,
        ratio: plain_nanos / nanos,
    })
}

/// Three namespaces in a row.
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

#[allow(clippy::print_stdout, reason = "this is what standard output is for")]
fn show(rows: &[Row], json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(rows)?);
        return Ok(());
    }
    println!(
        "{:<18} {:>5} {:>5} {:>8} {:>8} {:>8} {:>6} {:>13} {:>12} {:>6}",
        "suite",
        "bytes",
        "train",
        "Mpps",
        "Gbit/s",
        "ns/pkt",
        "busy",
        "baseline Mpps",
        "baseline ns",
        "ratio"
    );
    for row in rows {
        println!(
            "{:<18} {:>5} {:>5} {:>8.2} {:>8.2} {:>8.0} {:>5.0}% {:>13.2} {:>12.0} {:>6.2}",
            row.suite,
            row.payload_bytes,
            row.train,
            row.million_packets_per_second,
            row.gbit_per_second,
            row.cpu_nanos_per_packet,
            row.busy * 100.0,
            row.baseline_million_packets_per_second,
            row.baseline_cpu_nanos_per_packet,
            row.ratio
        );
    }
    Ok(())
}
