//! The routing table of a control plane by its size: what a change costs, and a question.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use hyphae_routing::Rib;
use hyphae_routing::babel::{DynamicNextHop, DynamicRoute};
use hyphae_wire::babel::Serial;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey, SecretKey};
use serde::{Deserialize, Serialize};

use crate::output::{self, Table, number};

/// Changes and questions that are timed per size.
const TIMED: usize = 20_000;
const PEERS: u32 = 16;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Sizes of the table, prefixes.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000,10000,100000,1000000"
    )]
    prefixes: Vec<usize>,
}

/// Nanoseconds per operation; the replay in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) prefixes: usize,
    /// A route of a new prefix, including the record for the workers.
    pub(crate) add_ns: f64,
    /// A new next hop for a known prefix, likewise.
    pub(crate) change_ns: f64,
    /// The longest match of an address.
    pub(crate) lookup_ns: f64,
    /// Replay of all entries for restarted workers.
    pub(crate) replay_ms: f64,
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for prefixes in &args.prefixes {
        eprintln!("rib: {prefixes} prefixes");
        rows.push(measure(*prefixes)?);
    }
    output::show("rib", &rows, &table(&rows), json)
}

/// All rows.
pub(crate) fn table(rows: &[Row]) -> Table {
    let columns = ["prefixes", "add ns", "change ns", "lookup ns", "replay ms"];
    Table::new(columns, rows, |row| {
        [
            row.prefixes.to_string(),
            number(row.add_ns),
            number(row.change_ns),
            number(row.lookup_ns),
            number(row.replay_ms),
        ]
    })
}

fn key(seed: u32) -> anyhow::Result<PublicKey> {
    let mut bytes = [0x5a; 32];
    bytes[8..12].copy_from_slice(&seed.to_le_bytes());
    Ok(SecretKey::from_bytes(&bytes).context("a key")?.public_key())
}

/// The `n`th node's /64, distributed like hashes.
fn address(n: usize) -> OverlayAddress {
    let spread = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&spread.to_be_bytes());
    bytes[0] = 4 | bytes[0] & 1;
    OverlayAddress(bytes)
}

fn measure(prefixes: usize) -> anyhow::Result<Row> {
    let mut rib = Rib::new(key(0)?.address());
    for peer in 1..=PEERS {
        rib.peer_up(peer, key(peer)?);
    }
    let origin = key(PEERS + 1)?;
    let route = |n: usize, turn: u32| {
        let link = u32::try_from(n % 1_000_000).unwrap_or(0) + turn;
        let link = link % PEERS + 1;
        let route = DynamicRoute {
            next_hops: vec![DynamicNextHop { link, weight: 1 }],
            metric: 100,
            serial: Serial(1),
            origin,
        };
        (Prefix::new(address(n), 64), route)
    };
    let mut set = |n: usize, turn: u32| {
        let (prefix, route) = route(n, turn);
        rib.set_dynamic(prefix, Some(route));
        while let Some(change) = rib.poll_fib() {
            black_box(change);
        }
    };
    let timed = TIMED.min(prefixes);
    (0..prefixes - timed).for_each(|n| set(n, 0));
    let each = |time: Duration| time.as_nanos() as f64 / timed as f64;
    let start = Instant::now();
    (prefixes - timed..prefixes).for_each(|n| set(n, 0));
    let add_ns = each(start.elapsed());
    // Spread over the whole table.
    let step = prefixes / timed;
    let start = Instant::now();
    (0..timed).for_each(|n| set(n * step, 1));
    let change_ns = each(start.elapsed());
    let start = Instant::now();
    for n in 0..timed {
        ensure!(
            black_box(rib.lookup(address(n * step))).is_some(),
            "a route"
        );
    }
    let lookup_ns = each(start.elapsed());
    let start = Instant::now();
    let all = black_box(rib.replay_all());
    let replay_ms = start.elapsed().as_secs_f64() * 1e3;
    ensure!(all.len() == prefixes + PEERS as usize, "every entry");
    Ok(Row {
        prefixes,
        add_ns,
        change_ns,
        lookup_ns,
        replay_ms,
    })
}
