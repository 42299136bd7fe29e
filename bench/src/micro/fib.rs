//! The forwarding table of a worker.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use hyphae_forward::parts::{Fib, Target};
use hyphae_instructions::{Spread, records};
use hyphae_wire::OverlayAddress;

use super::{nanos, timed};
use crate::output::{Measured, show_measured};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Sizes of the table, prefixes.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000,10000,100000,1000000"
    )]
    prefixes: Vec<u64>,
    /// Seconds per row.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
}

/// Addresses of one round: their entries exceed the processor's caches.
const ADDRESSES: u64 = 65_536;

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    for prefixes in &args.prefixes {
        ensure!(*prefixes > 0, "a table with entries");
        eprintln!("fib: {prefixes} prefixes");
        rows.extend(measure(*prefixes, time)?);
    }
    let baseline = "HashMap of the standard library, with the same keys and values";
    show_measured("fib", &rows, baseline, json)
}

fn measure(prefixes: u64, time: Duration) -> anyhow::Result<Vec<Measured>> {
    let mut fib = Fib::new();
    let mut map: HashMap<u64, Target> = HashMap::new();
    for n in 0..prefixes {
        let address = records::network(n);
        let peer = u32::try_from(n % 16)?;
        fib.replace(&records::route(address, peer), 1)?;
        map.insert(
            address.subnet_id(),
            fib.lookup(address).context("an entry")?,
        );
    }
    let mut spread = Spread(1);
    let mut rows = Vec::new();
    for (what, first) in [("hit", 0), ("miss", prefixes)] {
        let picks =
            (0..ADDRESSES).map(|_| records::network(first + spread.next_number() % prefixes));
        let addresses: Vec<OverlayAddress> = picks.collect();
        let expected = if first == 0 { addresses.len() } else { 0 };
        let count = |found: &dyn Fn(OverlayAddress) -> bool| {
            let (hits, took) = timed(|| addresses.iter().filter(|a| found(**a)).count());
            ensure!(hits == expected, "{hits} found, not {expected}");
            Ok((ADDRESSES, took))
        };
        let [own, base] = nanos(
            time,
            [
                &mut || count(&|address| black_box(fib.lookup(address)).is_some()),
                &mut || count(&|a| black_box(map.get(&a.subnet_id()).copied()).is_some()),
            ],
        )?;
        let row = Measured::new("lookup", what, own, "ns").size(usize::try_from(prefixes)?);
        rows.push(row.against(base));
    }
    Ok(rows)
}
