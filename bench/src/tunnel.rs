//! Traffic of hosts through complete nodes: real processes with TUN devices in namespaces.
//!
//! ```text
//! namespace "client" ── veth ── namespace "relay" ── veth ── namespace "server"
//! ```
//!
//! Client and server reach only the relay. The baseline is the same traffic over the veths, forwarded by the kernel of
//! the relay. Other overlays, if installed, are set up in the same topology.

mod peers;
mod traffic;
mod underlay;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::{Args as ClapArgs, Subcommand};

use crate::output::{Measured, show_measured};
use crate::process::need_root;
use crate::stats::Times;
use peers::{Absent, Named, Network};
use underlay::Place;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// TCP through nodes with TUN devices, to the relay and through it, and CPU time per gigabyte; small UDP packets
    /// per second at 1 % loss, and under three times that load. Against the same traffic over the veths.
    #[command(
        after_help = "Examples:\n  sudo hyphae-bench tunnel\n  sudo hyphae-bench tunnel \
        --streams 1 --seconds 5 --json"
    )]
    Tunnel(TunnelArgs),
    /// Round trips of small packets through the relay, idle and beside a TCP stream, with workers that sleep
    /// and with workers that poll, against an echo over the same veths.
    #[command(
        after_help = "Examples:\n  sudo hyphae-bench latency\n  sudo hyphae-bench latency --json"
    )]
    Latency(LatencyArgs),
    /// Both for other installed overlays, and the interruption when the relay is killed and restarted; overlays that
    /// are not installed are reported as missing.
    #[command(
        after_help = "Examples:\n  sudo hyphae-bench versus\n  sudo hyphae-bench versus \
        --peers hyphae,tinc --json\n  sudo hyphae-bench versus --mycelium ./mycelium"
    )]
    Versus(VersusArgs),
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct TunnelArgs {
    /// Concurrent TCP streams.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    streams: Vec<usize>,
    /// Seconds per row.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct LatencyArgs {
    /// Round trips per row.
    #[arg(long, default_value_t = 5000)]
    samples: usize,
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct VersusArgs {
    /// Networks to measure; all by default.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Named>,
    /// A `mycelium` binary; by default the one on the path.
    #[arg(long)]
    mycelium: Option<PathBuf>,
    #[command(flatten)]
    tunnel: TunnelArgs,
    #[command(flatten)]
    latency: LatencyArgs,
}

pub(crate) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    need_root()?;
    let mut rows = Vec::new();
    let baseline = "the same traffic over the veths, forwarded by the kernel";
    match command {
        Command::Tunnel(args) => {
            let plain = tunnel(&mut *peers::plain()?, args)?;
            let mut hyphae = peers::start(Named::Hyphae, None)?;
            compare(&mut rows, tunnel(&mut *hyphae, args)?, &plain);
            show_measured("tunnel", &rows, baseline, json)
        }
        Command::Latency(args) => {
            let plain = latency(&mut *peers::plain()?, args)?;
            for named in [Named::Hyphae, Named::HyphaePolling] {
                let own = latency(&mut *peers::start(named, None)?, args)?;
                compare(&mut rows, own, &plain);
            }
            show_measured("latency", &rows, baseline, json)
        }
        Command::Versus(args) => {
            versus(args, &mut rows)?;
            show_measured("versus", &rows, baseline, json)
        }
    }
}

fn versus(args: &VersusArgs, rows: &mut Vec<Measured>) -> anyhow::Result<()> {
    let both = |network: &mut dyn Network| -> anyhow::Result<Vec<Measured>> {
        let mut rows = tunnel(network, &args.tunnel)?;
        if let (Some(version), Some(row)) = (network.version(), rows.first_mut()) {
            row.note = Some(version);
        }
        rows.extend(latency(network, &args.latency)?);
        Ok(rows)
    };
    let plain = both(&mut *peers::plain()?)?;
    let all = if args.peers.is_empty() {
        &Named::ALL[..]
    } else {
        &args.peers
    };
    for named in all {
        match peers::start(*named, args.mycelium.as_deref()) {
            Ok(mut network) => {
                compare(rows, both(&mut *network)?, &plain);
                rows.push(heal(&mut *network)?);
            }
            Err(error) => {
                // A missing program is a result; any other error is a failure.
                let absent = error.downcast::<Absent>()?;
                eprintln!("{named}: {absent}");
                let row = Measured::new("missing", named.to_string(), 0.0, "-");
                rows.push(row.note(absent.to_string()));
            }
        }
    }
    Ok(())
}

/// Adds rows, each with the matching row of the baseline.
fn compare(rows: &mut Vec<Measured>, own: Vec<Measured>, plain: &[Measured]) {
    for row in own {
        let like = plain
            .iter()
            .find(|other| other.what == row.what && other.size == row.size);
        rows.push(match like {
            Some(like) if like.value > 0.0 => row.against(like.value),
            Some(_) | None => row,
        });
    }
}

/// Name of the row of the interruption.
const HEAL: &str = "relay killed and started, without packets";

/// Destinations from the client.
const PATHS: [(&str, Place); 2] = [("direct", Place::Relay), ("relayed", Place::Server)];

fn tcp(network: &mut dyn Network, args: &TunnelArgs) -> anyhow::Result<Vec<Measured>> {
    ensure!(args.seconds > 0.0, "some time");
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    for (path, to) in PATHS {
        for streams in &args.streams {
            ensure!((1..=64).contains(streams), "1 to 64 streams");
            eprintln!("{}: TCP, {path}, {streams} streams", network.name());
            let target = traffic::Target::new(network, to)?;
            let flow = traffic::Tcp::start(&target, *streams)?;
            let before = network.cpu()?;
            let (bytes, seconds) = flow.watch(time)?;
            let after = network.cpu()?;
            flow.stop()?;
            let gigabytes = bytes as f64 / 1e9;
            ensure!(bytes > 0, "nothing arrived");
            let mut total = 0.0;
            let mut each = Vec::new();
            for ((name, before), (_, after)) in before.iter().zip(&after) {
                let seconds = after.saturating_sub(*before).as_secs_f64() / gigabytes;
                total += seconds;
                if seconds >= 0.01 {
                    each.push(format!("{name} {seconds:.2}"));
                }
            }
            let name = network.name();
            let rate = Measured::new(
                format!("TCP, {path}"),
                &name,
                gigabytes * 8.0 / seconds,
                "Gbit/s",
            );
            rows.push(rate.size(*streams));
            let cpu = Measured::new(format!("CPU, {path}"), &name, total, "s/GB");
            rows.push(cpu.size(*streams).note(each.join(", ")));
        }
    }
    Ok(rows)
}

fn tunnel(network: &mut dyn Network, args: &TunnelArgs) -> anyhow::Result<Vec<Measured>> {
    let mut rows = tcp(network, args)?;
    rows.extend(small(network, args)?);
    Ok(rows)
}

/// Tolerated loss of small packets.
const LOSS_MAX: f64 = 0.01;
/// Initial rate of the search, packets per second, and its bisection steps.
const FIRST: f64 = 5000.0;
const HALVINGS: usize = 4;
/// Rate of a flood, as a multiple of the rate with tolerated loss.
const FLOOD: f64 = 3.0;

/// Maximum rate of small packets with tolerated loss, and the received rate under a flood.
fn small(network: &mut dyn Network, args: &TunnelArgs) -> anyhow::Result<Vec<Measured>> {
    eprintln!("{}: small UDP packets, relayed", network.name());
    let time = Duration::from_secs_f64(args.seconds / 4.0);
    let name = network.name();
    let target = traffic::Target::new(network, Place::Server)?;
    let packets = traffic::Small::new(&target)?;
    packets.go(FIRST, time)?;
    // One failed attempt may be noise.
    let passes = |rate: f64| -> anyhow::Result<Option<traffic::Went>> {
        for _ in 0..2 {
            let went = packets.go(rate, time)?;
            if went.lost() <= LOSS_MAX {
                return Ok(Some(went));
            }
        }
        Ok(None)
    };
    let (mut low, mut best) = (0.0, None);
    let mut high = FIRST;
    while let Some(went) = passes(high)? {
        (low, best) = (high, Some(went));
        if went.offered() < 0.95 * high {
            // Limit of the generator.
            break;
        }
        high *= 2.0;
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        match passes(middle)? {
            Some(went) => (low, best) = (middle, Some(went)),
            None => high = middle,
        }
    }
    let peak = best.map_or(0.0, |went| went.rate());
    let flood = packets.go(FLOOD * peak.max(FIRST), time * 2)?;
    let what = "small UDP";
    let row = |of: &str, value, note| {
        let row = Measured::new(format!("{what}, {of}"), &name, value, "packets/s");
        row.size(traffic::SMALL).note(note)
    };
    Ok(vec![
        row("1 % loss", peak, format!("{low:.0} offered")),
        row(
            "flood",
            flood.rate(),
            format!(
                "{:.2} of the rate at 1 % loss, at {:.1} times the load",
                flood.rate() / peak,
                flood.offered() / peak
            ),
        ),
    ])
}

/// Limit of the interruption.
const HEAL_MAX: Duration = Duration::from_secs(60);

/// Measures the interruption when the relay is killed and restarted.
fn heal(network: &mut dyn Network) -> anyhow::Result<Measured> {
    eprintln!("{}: the relay is killed", network.name());
    let beat = traffic::Beat::new(&traffic::Target::new(network, Place::Server)?)?;
    let gap = beat.gap(HEAL_MAX, || network.restart_relay())?;
    let row = |gap: Duration| Measured::new(HEAL, network.name(), gap.as_secs_f64() * 1e3, "ms");
    Ok(match gap {
        Some(gap) => row(gap),
        None => row(HEAL_MAX).note("not by then"),
    })
}

fn latency(network: &mut dyn Network, args: &LatencyArgs) -> anyhow::Result<Vec<Measured>> {
    let mut rows = Vec::new();
    for loaded in [false, true] {
        let of = if loaded { "beside TCP" } else { "idle" };
        eprintln!("{}: round trips, {of}", network.name());
        let target = traffic::Target::new(network, Place::Server)?;
        let load = if loaded {
            let flow = traffic::Tcp::start(&target, 1)?;
            flow.watch(Duration::from_millis(300))?;
            Some(flow)
        } else {
            None
        };
        let (times, lost): (Times, usize) = traffic::round_trips(&target, args.samples)?;
        if let Some(flow) = load {
            flow.stop()?;
        }
        ensure!(times.len() > args.samples / 2, "most probes were lost");
        for (name, per_mille) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
            let what = format!("round trip, {of}, {name}");
            let row = Measured::new(what, network.name(), times.micros(per_mille), "us");
            rows.push(row.note(format!("{lost} of {} lost", args.samples)));
        }
    }
    Ok(rows)
}
