//! One step alone, without a kernel: cost by size, against the same with nothing of ours around it.
//!
//! Ways that are compared run turn by turn, so that what disturbs the machine disturbs all of them.

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
    /// Handshakes of a core, initiator and responder, and strangers without a cookie, against bare
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

/// What one turn of something did, and what it took.
type Turn = anyhow::Result<(u64, Duration)>;

/// Times some work.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Nanoseconds per operation of each of these: the median over their turns, of which they take as
/// many as fit the time.
fn nanos<const N: usize>(
    time: Duration,
    mut ways: [&mut dyn FnMut() -> Turn; N],
) -> anyhow::Result<[f64; N]> {
    let start = Instant::now();
    let mut turns: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    // The first turn fills caches and is not counted.
    for way in &mut ways {
        way()?;
    }
    while start.elapsed() < time || turns[0].len() < 3 {
        for (way, turns) in ways.iter_mut().zip(&mut turns) {
            let (operations, took) = way()?;
            anyhow::ensure!(operations > 0, "a turn did nothing");
            turns.push(took.as_nanos() as f64 / operations as f64);
        }
    }
    Ok(turns.map(median))
}
