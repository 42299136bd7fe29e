//! Cost of a relayed packet by the sizes of a relay's tables, in the engine without system calls.

use std::sync::Barrier;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args as ClapArgs;
use hyphae_instructions::{Dimensions, Relay};
use hyphae_wire::Suite;

use super::{Round, nanos, timed};
use crate::output::{Measured, show_measured};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Numbers of peers, each with a link.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000,10000")]
    peers: Vec<u32>,
    /// Sizes of the forwarding table.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,100000,1000000")]
    routes: Vec<u64>,
    /// Destinations that packets go to at the same time, of 100,000.
    #[arg(long, value_delimiter = ',', default_value = "1,10,1000,100000")]
    flows: Vec<u64>,
    /// Workers, each with an engine and a core of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,
    /// Packets of a train.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    trains: Vec<usize>,
    /// Cipher suite of the links.
    #[arg(long, default_value = "aes-256-gcm")]
    suite: Suite,
    /// Seconds per row.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
}

/// Packets of one round; at 168 bytes they fit a core's own cache.
const PACKETS: usize = 4096;

/// The relay that each group of rows varies one dimension of.
fn usual(suite: Suite) -> Dimensions {
    Dimensions {
        suite,
        peers: 8,
        routes: 64,
        flows: 8,
        train: 16,
        payload: 64,
    }
}

/// Group, size and relay of each row.
fn variants(args: &Args) -> Vec<(&'static str, u64, Dimensions)> {
    let usual = usual(args.suite);
    let peers = args.peers.iter().map(|peers| {
        let routes = u64::from(*peers).max(64);
        let relay = Dimensions {
            peers: *peers,
            routes,
            flows: routes,
            ..usual
        };
        ("peers", u64::from(*peers), relay)
    });
    let routes = args.routes.iter().map(|routes| {
        let relay = Dimensions {
            routes: *routes,
            flows: usual.flows.min(*routes),
            ..usual
        };
        ("routes", *routes, relay)
    });
    let flows = args.flows.iter().map(|flows| {
        let relay = Dimensions {
            routes: 100_000.max(*flows),
            flows: *flows,
            ..usual
        };
        ("flows", *flows, relay)
    });
    let trains = args.trains.iter().map(|train| {
        let relay = Dimensions {
            train: *train,
            ..usual
        };
        ("packets of a train", *train as u64, relay)
    });
    peers.chain(routes).chain(flows).chain(trains).collect()
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    let mut first: Option<(&str, f64)> = None;
    for (what, size, dimensions) in variants(args) {
        eprintln!("{what}: {size}");
        let mut relay = Relay::new(dimensions)?;
        let [own] = nanos(time, [&mut || pass(&mut relay, dimensions.train)])?;
        let base = first
            .filter(|(of, _)| *of == what)
            .map_or(own, |(_, base)| base);
        first = Some((what, base));
        rows.push(row(what, size, own).against(base));
    }
    let mut base = None;
    for workers in &args.workers {
        eprintln!("workers: {workers}");
        let own = together(usual(args.suite), *workers, time)?;
        let base = *base.get_or_insert(own);
        rows.push(
            row("workers", *workers as u64, own)
                .against(base)
                .note("per packet of one worker"),
        );
    }
    show_measured("scale", &rows, "the first row of the same kind", json)
}

fn row(what: &str, size: u64, nanos: f64) -> Measured {
    let row = Measured::new(what, "relayed packet", nanos, "ns");
    row.size(usize::try_from(size).unwrap_or(usize::MAX))
}

/// Relays new trains, which are written outside of the measured time.
fn pass(relay: &mut Relay, train: usize) -> Round {
    let trains = PACKETS / train;
    relay.prepare(trains);
    let (passed, took) = timed(|| relay.pass());
    ensure!(
        passed == (trains * train) as u64,
        "every packet is passed on"
    );
    Ok((passed, took))
}

/// Nanoseconds per packet of one of several concurrent workers.
fn together(dimensions: Dimensions, workers: usize, time: Duration) -> anyhow::Result<f64> {
    ensure!(workers > 0, "at least one worker");
    let start = Barrier::new(workers);
    let each = std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut relay = Relay::new(dimensions)?;
                    start.wait();
                    let [own] = nanos(time, [&mut || pass(&mut relay, dimensions.train)])?;
                    anyhow::Ok(own)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .map_err(|_| anyhow!("a worker has panicked"))?
            })
            .collect::<anyhow::Result<Vec<f64>>>()
    })?;
    Ok(each.iter().sum::<f64>() / workers as f64)
}
