//! The message bus between two real nodes.
//!
//! ```text
//! this program ── rpc.sock ── node A ── UDP on loopback ── node B ── rpc.sock ── this program
//!     client   ── outbound socket                        forward socket ── server
//! ```
//!
//! All processes, this one included, share the cores of one host: their total cost of a message limits the rate.

mod lossy;
mod messages;
mod node;
mod sockets;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};

use hyphae_wire::frame::MTU_DEFAULT;

use crate::output::{Measured, show_measured};
use crate::process::hyphae;
use crate::stats::median;
use node::{Kind, Pair};

/// Bytes of the longest message.
const LARGE: usize = 64 << 20;
/// MTU over links of 9000 bytes.
const MTU_JUMBO: u16 = 8848;
/// Transfers of [`LARGE`], alternating with TCP; the median of each is reported.
const ROUNDS: usize = 5;
/// One packet in `LOSS` is lost.
const LOSS: u32 = 100;

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// The `hyphae` program; by default the one beside this one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Parts to run; all by default.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Number of messages in the rate and burst parts.
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Bytes of a small message.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Seconds per row of the socket proxy.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Short messages per second, sent and received in batches.
    Rate,
    /// Latency of one short message at a time.
    Latency,
    /// A message of 64 MiB, against TCP.
    Large,
    /// Memory used by many unread messages.
    Burst,
    /// Requests through the socket proxy.
    Sockets,
    /// A message of 64 MiB over a lossy link with 1 % loss, against no loss.
    Loss,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let binary = hyphae(args.binary.as_deref())?;
    let mut rows = Vec::new();
    for durable in [false, true] {
        let of = if durable { "durable" } else { "memory" };
        let start = |mtu| Pair::start(&binary, Kind { durable, mtu }, Ok);
        if args.wants(Part::Rate) || args.wants(Part::Latency) {
            let pair = start(MTU_DEFAULT)?;
            small(args, &pair, of, &mut rows)?;
        }
        if args.wants(Part::Large) {
            for mtu in [MTU_DEFAULT, MTU_JUMBO] {
                large(&start(mtu)?, (of, mtu), &mut rows)?;
            }
        }
        if args.wants(Part::Burst) {
            eprintln!("{of}: burst");
            // Fresh nodes: their memory before the burst is the baseline.
            let [before, full, after] =
                messages::burst(&start(MTU_DEFAULT)?, args.messages, args.size)?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let grown = mib(full) - mib(before);
            let row = Measured::new("burst", of, grown, "MiB").size(args.messages);
            rows.push(row.note(format!(
                "receiver's memory {:.0} before, {:.0} with all, {:.0} MiB after",
                mib(before),
                mib(full),
                mib(after)
            )));
        }
        if args.wants(Part::Sockets) {
            proxies(args, &start(MTU_DEFAULT)?, of, &mut rows)?;
        }
    }
    if args.wants(Part::Loss) {
        loss(&binary, &mut rows)?;
    }
    show_measured(
        "bus",
        &rows,
        "TCP, the server's own socket, the same stretch without loss",
        json,
    )
}

fn small(
    args: &Args,
    pair: &Pair,
    of: &'static str,
    rows: &mut Vec<Measured>,
) -> anyhow::Result<()> {
    if args.wants(Part::Rate) {
        eprintln!("{of}: {} messages of {} bytes", args.messages, args.size);
        let rate = messages::rate(pair, args.messages, args.size)?;
        let [a, b, c, d] = rate.cpu_micros;
        let row = Measured::new("one to one, batched", of, rate.per_second, "msg/s");
        rows.push(row.size(args.size).note(format!(
            "us of CPU per message: sender {a:.1} + {b:.1}, receiver {c:.1} + {d:.1} (control, data)"
        )));
    }
    if args.wants(Part::Latency) {
        eprintln!("{of}: latency");
        let latency = messages::latency(pair, 1000, args.size)?;
        for (name, per_mille) in [("p50", 500), ("p99", 990)] {
            let what = format!("push to pop, {name}");
            let row = Measured::new(what, of, latency.micros(per_mille), "us");
            rows.push(row.size(args.size));
        }
    }
    Ok(())
}

fn large(
    pair: &Pair,
    (of, mtu): (&'static str, u16),
    rows: &mut Vec<Measured>,
) -> anyhow::Result<()> {
    eprintln!("{of}: 64 MiB in packets of {mtu}");
    messages::large(pair, 1 << 20).context("warm-up")?;
    // TCP, received, taken out.
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let [received, taken] = messages::large(pair, LARGE)?;
        for (times, seconds) in times
            .iter_mut()
            .zip([messages::tcp(LARGE)?, received, taken])
        {
            times.push(seconds);
        }
    }
    let [plain, received, taken] = times.map(|times| LARGE as f64 / median(times) / 1e6);
    for (what, rate) in [("received", received), ("taken out", taken)] {
        let row = Measured::new(format!("64 MiB, {what}"), of, rate, "MB/s");
        rows.push(
            row.size(mtu.into())
                .against(plain)
                .note("packets of this size; against TCP"),
        );
    }
    Ok(())
}

fn proxies(
    args: &Args,
    pair: &Pair,
    of: &'static str,
    rows: &mut Vec<Measured>,
) -> anyhow::Result<()> {
    let proxy = sockets::prepare(pair)?;
    let time = Duration::from_secs_f64(args.seconds);
    for clients in [1, 64] {
        eprintln!("{of}: socket proxy, {clients} clients");
        let (direct, direct_latency) = sockets::measure(&proxy.direct, clients, time)?;
        let (rate, latency) = sockets::measure(&proxy.proxied, clients, time)?;
        let row = |name: &str, value, unit, baseline| {
            let what = format!("socket proxy, {name}");
            Measured::new(what, of, value, unit)
                .size(clients)
                .against(baseline)
        };
        rows.push(row("rate", rate, "req/s", direct));
        for (name, per_mille) in [("p50", 500), ("p99", 990)] {
            let (own, other) = (latency.micros(per_mille), direct_latency.micros(per_mille));
            rows.push(row(name, own, "us", other));
        }
    }
    Ok(())
}

fn loss(binary: &std::path::Path, rows: &mut Vec<Measured>) -> anyhow::Result<()> {
    let measure = |one_in| -> anyhow::Result<f64> {
        eprintln!("64 MiB, loss of 1 packet in {one_in}");
        let kind = Kind {
            durable: false,
            mtu: MTU_DEFAULT,
        };
        let pair = Pair::start(binary, kind, |far| lossy::start(far, one_in))?;
        messages::large(&pair, 1 << 20).context("warm-up")?;
        Ok(LARGE as f64 / messages::large(&pair, LARGE)?[0] / 1e6)
    };
    let (without, with) = (measure(0)?, measure(LOSS)?);
    let row = Measured::new("64 MiB, 1 % loss", "memory", with, "MB/s");
    rows.push(
        row.against(without)
            .note("against the same stretch without loss"),
    );
    Ok(())
}
