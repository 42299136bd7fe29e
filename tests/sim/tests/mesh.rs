//! Meshes of real routing engines through bad times. The checkers are tested in `checkers.rs`.
//!
//! A failure names its seed: `HYPHAE_SIM_SEED=<seed> cargo test -p hyphae-test-sim` runs that one
//! again, `HYPHAE_SIM_TRACE=1` prints its faults and routes. `HYPHAE_SIM_SEEDS=<n>` runs more.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use hyphae_test_sim::Shape;
use hyphae_test_sim::scenario::{self, Chaos};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs `test` with many seeds, or with the one that was asked for.
fn with_seeds(count: u64, test: impl Fn(u64) -> Result<(), hyphae_test_sim::Violation>) {
    let seeds = match number("HYPHAE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HYPHAE_SIM_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        if let Err(violation) = test(seed) {
            panic!(
                "seed {seed}: {violation}\nagain: HYPHAE_SIM_SEED={seed} cargo test -p hyphae-test-sim"
            );
        }
    }
}

#[test]
fn fifty_nodes_survive_cuts_restarts_and_bad_links() {
    let chaos = Chaos {
        faults: 60,
        within: Duration::from_secs(90),
        cut_max: Duration::from_secs(40),
        spared: 0,
    };
    with_seeds(4, |seed| {
        let shape = Shape::ALL[usize::try_from(seed % 4).unwrap()];
        scenario::run(seed, 50, shape, &chaos)
    });
}
