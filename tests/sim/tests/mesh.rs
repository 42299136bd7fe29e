//! Meshes of real routing engines under faults. The checkers are tested in `checkers.rs`.
//!
//! A failure names its seed: `HYPHAE_SIM_SEED=<seed> cargo test -p hyphae-test-sim` runs that one
//! again, `HYPHAE_SIM_TRACE=1` prints its faults and routes. `HYPHAE_SIM_SEEDS=<n>` runs more.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use hyphae_test_sim::Shape;
use hyphae_test_sim::measure::{Case, measure};
use hyphae_test_sim::scenario::{self, Chaos};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs `test` with several seeds, or with the requested one.
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
    with_seeds(5, |seed| {
        let shape = Shape::ALL[usize::try_from(seed).unwrap() % Shape::ALL.len()];
        scenario::run(seed, 50, shape, &chaos)
    });
}

#[test]
fn a_thousand_nodes_converge() {
    // 400,000 routes in all; `hyphae-bench mesh` has the million.
    let case = Case {
        nodes: 1000,
        shape: Shape::Random,
        announcing: 400,
        seed: 1,
        idle: Duration::from_secs(2),
    };
    let measured = measure(&case, |_| {}).unwrap();
    // Each node advertises 400 prefixes to each of its four neighbours, and some of them up to three times on
    // average until the best routes are known.
    let per_node = measured.until_calm.updates / 1000;
    assert!((400..4800).contains(&per_node), "{per_node} updates");
    let after_sessions = measured.complete.saturating_sub(measured.sessions);
    assert!(after_sessions < Duration::from_secs(5), "{measured:?}");
}

#[test]
fn a_long_path_around_a_thousand_nodes_is_found() {
    // 250 hops from one side to the other.
    let case = Case {
        nodes: 1000,
        shape: Shape::Lattice,
        announcing: 100,
        seed: 2,
        idle: Duration::from_secs(2),
    };
    let measured = measure(&case, |_| {}).unwrap();
    assert!(measured.complete < Duration::from_secs(30), "{measured:?}");
}
