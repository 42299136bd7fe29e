//! A flood of forged first messages, which must not affect an established flow through the relay and joining nodes.

mod flow;
mod generator;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use clap::Args as ClapArgs;
use hyphae_rpc::method::Status;
use serde::Serialize;

use super::loopback::Swarm;
use super::place;
use super::relay::Relay;
use crate::output::{self, Table, number};
use crate::process::Activity;
use crate::stats::median;
use flow::FlowPhase;
use hyphae_test_hostile::{Claims, Hostile, Target};
use hyphae_test_light::Spec;
use hyphae_time::monotonic;

/// Time between newcomers.
const JOIN_EVERY: Duration = Duration::from_secs(1);
/// Time for packets in flight to arrive after the flood.
const LINGER: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// First messages per second.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Seconds of the flood, and of the phase before it for comparison.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Packets per second of the flow.
    #[arg(long, default_value_t = 1000)]
    flow: u64,
    /// In addition, unauthenticated peers of one address that finish their handshakes, each with a new key, and claim
    /// this number of workers (1 to 64).
    #[arg(long, value_name = "WORKERS", value_parser = clap::value_parser!(u16).range(1..=64))]
    claims: Option<u16>,
    /// Cores of the relay's workers, as `hyphae up --cores`.
    #[arg(long, default_value = "any:1")]
    cores: String,
}

/// Phase of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Before,
    During,
    /// No new work.
    After,
    Over,
}

/// The phase, shared by all threads.
struct Clockwork(AtomicU8);

impl Clockwork {
    fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Before,
            1 => Phase::During,
            2 => Phase::After,
            _ => Phase::Over,
        }
    }

    fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Nodes that joined.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Newcomers {
    joined: usize,
    never: usize,
    median_ms: f64,
    max_ms: f64,
}

/// One phase.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PhaseReport {
    seconds: f64,
    flow: FlowPhase,
    newcomers: Newcomers,
    dataplane: Activity,
    controlplane: Activity,
    /// Non-zero counters of the workers, per second.
    counters_per_second: BTreeMap<String, f64>,
    drops_per_second: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    sent_per_second: f64,
    /// Of them, received by the relay; the rest overran its socket.
    received_per_second: f64,
    /// Handshakes finished by unauthenticated peers with claims.
    claimed: usize,
    /// Links and sessions of the flow that were renewed, over both phases.
    renewed: u64,
    before: PhaseReport,
    during: PhaseReport,
    /// The flow continued and every newcomer joined.
    held: bool,
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(
        args.rate > 0 && args.seconds > 0 && args.flow > 0,
        "rates and times above 0"
    );
    eprintln!("starting the relay and a flow through it");
    let relay = Relay::start(1000, &args.cores, "")?;
    let clockwork = Clockwork(AtomicU8::new(0));
    let time = Duration::from_secs(args.seconds);
    let target = relay.target;
    let mut flow = flow::Flow::start(target)?;
    let report = std::thread::scope(|scope| {
        let flowing = scope.spawn(|| {
            let phases = flow.run(args.flow, &clockwork)?;
            Ok::<_, anyhow::Error>((phases, flow.renewed()))
        });
        let newcomers = scope.spawn(|| join(target, &clockwork));
        let claiming = args.claims.map(|workers| {
            let clockwork = &clockwork;
            scope.spawn(move || claim(target, &Claims::workers(workers), clockwork))
        });
        let measured = measure(args, &relay, &clockwork, time);
        // Ends all threads, also after an error.
        while clockwork.phase() != Phase::Over {
            clockwork.next();
        }
        let panicked = |_| anyhow!("a load thread has panicked");
        let (flow, renewed) = flowing.join().map_err(panicked)??;
        let newcomers = newcomers.join().map_err(panicked)??;
        let claimed = claiming.map(|claiming| claiming.join().map_err(panicked));
        let claimed = claimed.transpose()?.transpose()?.unwrap_or_default();
        let (sent, before, during) = measured?;
        Ok::<_, anyhow::Error>(report(
            (sent, claimed, renewed),
            [
                (before, flow[0], &newcomers[0]),
                (during, flow[1], &newcomers[1]),
            ],
        ))
    })?;
    show(&report, json)
}

/// Observations of the relay over a phase.
struct Seen {
    seconds: f64,
    activity: [Activity; 2],
    counters: BTreeMap<String, f64>,
    drops: BTreeMap<String, f64>,
}

/// Observes the relay while `work` runs.
fn watch<T>(relay: &Relay, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Seen)> {
    let (first, status) = (relay.usage()?, relay.status()?);
    let began = Instant::now();
    let result = work()?;
    let seconds = began.elapsed().as_secs_f64();
    let (last, after): (_, Status) = (relay.usage()?, relay.status()?);
    let rates = |before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>| {
        after
            .iter()
            .map(|(name, n)| (name, n - before.get(name).copied().unwrap_or(0).min(*n)))
            .filter(|(_, n)| *n > 0)
            .map(|(name, n)| (name.clone(), n as f64 / seconds))
            .collect()
    };
    let seen = Seen {
        seconds,
        activity: [0, 1].map(|n| first[n].until(&last[n])),
        counters: rates(&status.counters, &after.counters),
        drops: rates(&status.drops, &after.drops),
    };
    Ok((result, seen))
}

fn measure(
    args: &Args,
    relay: &Relay,
    clockwork: &Clockwork,
    time: Duration,
) -> anyhow::Result<(f64, Seen, Seen)> {
    eprintln!("{} s without a flood", args.seconds);
    let ((), before) = watch(relay, || {
        std::thread::sleep(time);
        Ok(())
    })?;
    eprintln!("{} s with {} first messages/s", args.seconds, args.rate);
    clockwork.next();
    let (sent, during) = watch(relay, || generator::flood(relay.target, args.rate, time))?;
    clockwork.next();
    std::thread::sleep(LINGER);
    clockwork.next();
    Ok((sent as f64 / during.seconds, before, during))
}

/// Joins new nodes one after the other; returns the join times before and during the flood.
fn join(relay: Target, clockwork: &Clockwork) -> anyhow::Result<[Vec<Option<Duration>>; 2]> {
    let mut swarm = Swarm::new()?;
    let mut during = Vec::new();
    let mut next = monotonic();
    while clockwork.phase() != Phase::Over {
        let phase = clockwork.phase();
        if monotonic() >= next && phase != Phase::After {
            next = monotonic() + JOIN_EVERY;
            swarm.add(&Spec {
                at: place(1000 + swarm.nodes.len()),
                relay: relay.at,
                relay_key: relay.key,
                learns: false,
                rekey_after: None,
            })?;
            during.push(phase == Phase::During);
        }
        swarm.turn(monotonic() + Duration::from_millis(10))?;
    }
    let of = |flooded: bool| {
        let nodes = swarm.nodes.iter().zip(&during);
        nodes
            .filter(|(_, during)| **during == flooded)
            .map(|(node, _)| node.joined)
            .collect()
    };
    Ok([of(false), of(true)])
}

/// Unauthenticated peers with excessive claims, one after the other during the flood; returns how many succeeded.
fn claim(relay: Target, claims: &Claims, clockwork: &Clockwork) -> anyhow::Result<usize> {
    let mut finished = 0;
    while clockwork.phase() == Phase::Before {
        std::thread::sleep(Duration::from_millis(1));
    }
    while clockwork.phase() == Phase::During {
        let peer = Hostile::new(([127, 0, 0, 1], 0).into())?;
        // A refused peer is an error of its handshake.
        finished += usize::from(peer.link(relay.at, claims).is_ok());
    }
    Ok(finished)
}

fn newcomers(times: &[Option<Duration>]) -> Newcomers {
    let mut joined: Vec<f64> = times
        .iter()
        .flatten()
        .map(|time| time.as_secs_f64() * 1000.0)
        .collect();
    joined.sort_by(f64::total_cmp);
    Newcomers {
        joined: joined.len(),
        never: times.len() - joined.len(),
        median_ms: median(joined.iter().copied()),
        max_ms: joined.last().copied().unwrap_or(0.0),
    }
}

fn report(
    (sent, claimed, renewed): (f64, usize, u64),
    phases: [(Seen, FlowPhase, &Vec<Option<Duration>>); 2],
) -> Report {
    let [before, during] = phases.map(|(seen, flow, times)| PhaseReport {
        seconds: seen.seconds,
        flow,
        newcomers: newcomers(times),
        dataplane: seen.activity[0],
        controlplane: seen.activity[1],
        counters_per_second: seen.counters,
        drops_per_second: seen.drops,
    });
    let received = |phase: &PhaseReport| {
        let counters = &phase.counters_per_second;
        counters.get("underlay_rx_packets").copied().unwrap_or(0.0)
    };
    Report {
        sent_per_second: sent,
        claimed,
        renewed,
        // The same flow and as many newcomers ran before.
        received_per_second: received(&during) - received(&before),
        held: during.flow.lost_permille() < 10.0 && during.newcomers.never == 0,
        before,
        during,
    }
}

fn show(report: &Report, json: bool) -> anyhow::Result<()> {
    let phases = [("before", &report.before), ("during", &report.during)];
    let columns = [
        "phase",
        "flow sent",
        "lost",
        "per mille",
        "silence ms",
        "joined",
        "never",
        "median ms",
        "max ms",
        "dataplane CPU %",
        "control CPU %",
    ];
    let table = Table::new(columns, &phases, |(name, phase)| {
        let (flow, new) = (&phase.flow, &phase.newcomers);
        [
            (*name).to_owned(),
            flow.sent.to_string(),
            flow.sent.saturating_sub(flow.received).to_string(),
            number(flow.lost_permille()),
            number(flow.silence_max_ms),
            new.joined.to_string(),
            new.never.to_string(),
            number(new.median_ms),
            number(new.max_ms),
            number(phase.dataplane.cpu_percent),
            number(phase.controlplane.cpu_percent),
        ]
    });
    let mut table = table.note(format!(
        "first messages/s: {:.0} sent, {:.0} received by the relay; {}",
        report.sent_per_second,
        report.received_per_second,
        if report.held { "held" } else { "NOT held" }
    ));
    table = table.note(format!(
        "renewed in the flow: {}; finished handshakes of unauthenticated peers: {}",
        report.renewed, report.claimed
    ));
    for (name, phase) in phases {
        let shown = ["cookies_sent", "cookies_refused", "punts", "punt_overruns"]
            .into_iter()
            .chain(["socket_overruns", "tx_backpressure", "tx_errors"]);
        let (counters, drops) = (&phase.counters_per_second, &phase.drops_per_second);
        let line: Vec<String> = shown
            .filter_map(|name| Some((name, counters.get(name)?)))
            .chain(drops.iter().map(|(name, rate)| (name.as_str(), rate)))
            .map(|(name, rate)| format!("{name} {rate:.1}/s"))
            .collect();
        table = table.note(format!("{name}: {}", line.join(", ")));
    }
    output::show("flood", std::slice::from_ref(report), &table, json)
}
