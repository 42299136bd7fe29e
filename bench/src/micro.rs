//! Micro-benchmarks of single steps, without system calls: cost by size, against a baseline.
//!
//! Compared implementations alternate in short rounds, so that noise of the machine affects all of them.

mod aead;
mod fib;
mod handshake;
mod ring;
mod scale;

use std::time::{Duration, Instant};

use clap::Subcommand;

use crate::stats::median;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sealing and opening by suite and size, against the bare cipher.
    #[command(after_help = "Examples:\n  hyphae-bench aead\n  hyphae-bench aead --sizes 64 --json")]
    Aead(aead::Args),
    /// Lookups in the forwarding table by its size, against a hash map of the standard library.
    #[command(
        after_help = "Examples:\n  hyphae-bench fib\n  hyphae-bench fib --prefixes 100000 --json"
    )]
    Fib(fib::Args),
    /// The ring between the planes, between two threads and in one, against a channel.
    #[command(after_help = "Examples:\n  hyphae-bench ring\n  hyphae-bench ring --json")]
    Ring(ring::Args),
    /// Handshakes of one core, initiator and responder, and first messages of unauthenticated sources, against bare
    /// X25519.
    #[command(after_help = "Examples:\n  hyphae-bench handshake\n  hyphae-bench handshake --json")]
    Handshake(handshake::Args),
    /// A relayed packet by the number of peers, routes, flows, workers, and packets of a train.
    #[command(
        after_help = "Examples:\n  hyphae-bench scale\n  hyphae-bench scale --peers 1,10000 --json"
    )]
    Scale(scale::Args),
}

pub(crate) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Aead(args) => aead::run(args, json),
        Command::Fib(args) => fib::run(args, json),
        Command::Ring(args) => ring::run(args, json),
        Command::Handshake(args) => handshake::run(args, json),
        Command::Scale(args) => scale::run(args, json),
    }
}

/// Operations and duration of one round.
type Round = anyhow::Result<(u64, Duration)>;

/// Measures the duration of some work.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Nanoseconds per operation of each implementation: the median over as many rounds as fit the time.
fn nanos<const N: usize>(
    time: Duration,
    mut implementations: [&mut dyn FnMut() -> Round; N],
) -> anyhow::Result<[f64; N]> {
    let start = Instant::now();
    let mut rounds: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    // The first round warms caches and is not measured.
    for implementation in &mut implementations {
        implementation()?;
    }
    while start.elapsed() < time || rounds[0].len() < 3 {
        for (implementation, rounds) in implementations.iter_mut().zip(&mut rounds) {
            let (operations, took) = implementation()?;
            anyhow::ensure!(operations > 0, "a round did nothing");
            rounds.push(took.as_nanos() as f64 / operations as f64);
        }
    }
    Ok(rounds.map(median))
}
