//! A flood of forged first messages, which must not affect an established flow through the relay and joining nodes.

mod flow;
mod generator;
mod joining;
mod sources;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use clap::Args as ClapArgs;
use hyphae_rpc::method::Status;
use serde::Serialize;

use super::relay::{Options, Relay};
use crate::output::{self, Table, number};
use crate::process::Activity;
use crate::stats::median;
use flow::FlowPhase;
use generator::Generator;
use hyphae_test_hostile::Claims;
use sources::Sources;

/// Required of a node that joins during a flood, milliseconds.
const JOIN_MAX_MS: f64 = 1000.0;
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
    /// Origin of the flood.
    #[arg(long, value_enum, default_value_t)]
    sources: Sources,
    /// In addition, unauthenticated nodes of the same origin (of one address, if forged) finish their handshakes, each
    /// with a new key; all claim this number of workers (1 to 64).
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
    /// Echo requests over an established session with the attacked node, and its answers, over both phases.
    echoes: Option<[u64; 2]>,
    before: PhaseReport,
    during: PhaseReport,
    /// The flow continued, every newcomer joined within [`JOIN_MAX_MS`], and the established session answered.
    held: bool,
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(
        args.rate > 0 && args.seconds > 0 && args.flow > 0,
        "rates and times above 0"
    );
    match args.sources {
        Sources::Forged | Sources::Relayed => attack(args, json),
        Sources::Site => {
            let args = args.clone();
            // Threads and processes that it starts are inside, too.
            sources::namespace()?.run(move || attack(&args, json))?
        }
    }
}

fn attack(args: &Args, json: bool) -> anyhow::Result<()> {
    eprintln!("starting the relay and a flow through it");
    let options = Options {
        cores: &args.cores,
        any_address: args.sources == Sources::Site,
        ..Options::default()
    };
    let relay = Relay::start(&options)?;
    let behind = Options {
        peer: Some(relay.target.at),
        ..options
    };
    let behind = (args.sources == Sources::Relayed).then(|| Relay::start(&behind));
    let behind = behind.transpose()?;
    let attacked = behind.as_ref().unwrap_or(&relay);
    let clockwork = Clockwork(AtomicU8::new(0));
    let (through, target) = (relay.target, attacked.target);
    let session = behind.as_ref().map(|node| node.target.key.address());
    let claims = args.claims.map_or_else(Claims::default, Claims::workers);
    let mut flow = flow::Flow::start(through, session)?;
    let report = std::thread::scope(|scope| {
        let flowing = scope.spawn(|| {
            let phases = flow.run(args.flow, &clockwork)?;
            Ok::<_, anyhow::Error>((phases, flow.renewed(), flow.echoes()))
        });
        let newcomers = scope.spawn(|| joining::join(through, session, &clockwork));
        let claiming = args.claims.map(|_| {
            let claim = || joining::claim(args.sources, through, target, &claims, &clockwork);
            scope.spawn(claim)
        });
        let measured = measure(args, attacked, &clockwork, || {
            Generator::new(args.sources, through, target, &claims)
        });
        // Ends all threads, also after an error.
        while clockwork.phase() != Phase::Over {
            clockwork.next();
        }
        let panicked = |_| anyhow!("a load thread has panicked");
        let (flow, renewed, echoes) = flowing.join().map_err(panicked)??;
        let newcomers = newcomers.join().map_err(panicked)??;
        let claimed = claiming.map(|claiming| claiming.join().map_err(panicked));
        let claimed = claimed.transpose()?.transpose()?.unwrap_or_default();
        let (sent, before, during) = measured?;
        Ok::<_, anyhow::Error>(report(
            (sent, claimed, renewed, echoes),
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
    generator: impl FnOnce() -> anyhow::Result<Generator>,
) -> anyhow::Result<(f64, Seen, Seen)> {
    let time = Duration::from_secs(args.seconds);
    eprintln!("{} s without a flood", args.seconds);
    let ((), before) = watch(relay, || {
        std::thread::sleep(time);
        Ok(())
    })?;
    eprintln!("{} s with {} first messages/s", args.seconds, args.rate);
    // Its link with a relay would not outlive the phase before.
    let mut generator = generator()?;
    clockwork.next();
    let (sent, during) = watch(relay, || generator.flood(args.rate, time))?;
    clockwork.next();
    std::thread::sleep(LINGER);
    clockwork.next();
    Ok((sent as f64 / during.seconds, before, during))
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
    (sent, claimed, renewed, echoes): (f64, usize, u64, Option<[u64; 2]>),
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
        echoes,
        // The same flow and as many newcomers ran before.
        received_per_second: received(&during) - received(&before),
        held: during.flow.lost_permille() < 10.0
            && during.newcomers.never == 0
            && during.newcomers.max_ms < JOIN_MAX_MS
            && echoes.is_none_or(|[asked, answered]| answered * 100 >= asked * 99),
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
    if let Some([asked, answered]) = report.echoes {
        table = table.note(format!(
            "echoes over the established session: {answered} of {asked} answered"
        ));
    }
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
