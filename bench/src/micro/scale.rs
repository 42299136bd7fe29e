//! What a relayed packet costs as a relay grows. Engines without a kernel: what grows is tables.

use std::sync::Barrier;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args as ClapArgs;
use hyphae_instructions::{Crowd, Relay};
use hyphae_wire::Suite;

use super::{Turn, nanos, timed};
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

/// Packets of one turn; with their 168 bytes they fit a core's own cache.
const PACKETS: usize = 4096;

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let usual = Crowd {
        suite: args.suite,
        peers: 8,
        routes: 64,
        flows: 8,
        train: 16,
        payload: 64,
    };
    let peers = args.peers.iter().map(|peers| {
        let routes = u64::from(*peers).max(64);
        (
            "peers",
            u64::from(*peers),
            Crowd {
                peers: *peers,
                routes,
                flows: routes,
                ..usual
            },
        )
    });
    let routes = args.routes.iter().map(|routes| {
        (
            "routes",
            *routes,
            Crowd {
                routes: *routes,
                flows: usual.flows.min(*routes),
                ..usual
            },
        )
    });
    let flows = args.flows.iter().map(|flows| {
        let routes = 100_000.max(*flows);
        (
            "flows",
            *flows,
            Crowd {
                routes,
                flows: *flows,
                ..usual
            },
        )
    });
    let trains = args.trains.iter().map(|train| {
        (
            "packets of a train",
            *train as u64,
            Crowd {
                train: *train,
                ..usual
            },
        )
    });
    let mut rows = Vec::new();
    let mut first: Option<(&str, f64)> = None;
    for (what, size, crowd) in peers.chain(routes).chain(flows).chain(trains) {
        eprintln!("{what}: {size}");
        let mut relay = Relay::new(crowd)?;
        let [own] = nanos(time, [&mut || pass(&mut relay, crowd.train)])?;
        let base = first
            .filter(|(of, _)| *of == what)
            .map_or(own, |(_, base)| base);
        first = Some((what, base));
        rows.push(row(what, size, own).against(base));
    }
    let mut base = None;
    for workers in &args.workers {
        eprintln!("workers: {workers}");
        let own = together(usual, *workers, time)?;
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

/// New trains, which are written outside of the time, pass.
fn pass(relay: &mut Relay, train: usize) -> Turn {
    let trains = PACKETS / train;
    relay.prepare(trains);
    let (passed, took) = timed(|| relay.pass());
    ensure!(
        passed == (trains * train) as u64,
        "every packet is passed on"
    );
    Ok((passed, took))
}

/// Nanoseconds per packet of one of several workers that work at the same time.
fn together(crowd: Crowd, workers: usize, time: Duration) -> anyhow::Result<f64> {
    ensure!(workers > 0, "at least one worker");
    let start = Barrier::new(workers);
    let each = std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut relay = Relay::new(crowd)?;
                    start.wait();
                    let [own] = nanos(time, [&mut || pass(&mut relay, crowd.train)])?;
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
