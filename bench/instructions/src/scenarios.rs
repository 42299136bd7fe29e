//! The counted scenarios. Each sets up its state, executes a fixed number of operations in [`counted`], and prints the
//! number.

use std::io::Write;

use anyhow::{bail, ensure};
use bytes::Bytes;
use hyphae_forward::parts::{Fib, Replay};
use hyphae_instructions::{Dimensions, Ends, Messengers, Relay, records};
use hyphae_shm::{RECORD_MAX, heap};
use hyphae_wire::Suite;

/// Names of all scenarios.
pub(crate) const SCENARIOS: [&str; 11] = [
    "relay-aes-256-gcm",
    "relay-chacha20-poly1305",
    "relay-lone",
    "seal",
    "open",
    "fib-hit",
    "fib-miss",
    "replay",
    "ring",
    "message",
    "messages",
];

/// Rounds of trains and of messages.
const ROUNDS: usize = 50;
/// Lookups, counters and records.
const STEPS: u64 = 20_000;
/// Packets of a train.
const TRAIN: u16 = 40;

/// Encloses the counted operations, and nothing else. Valgrind matches its name.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    let result = work();
    // Prevents a tail call.
    std::hint::black_box(());
    result
}

pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let operations = match name {
        "relay-aes-256-gcm" => relay(Suite::Aes256Gcm, TRAIN.into())?,
        "relay-chacha20-poly1305" => relay(Suite::ChaCha20Poly1305, TRAIN.into())?,
        "relay-lone" => relay(Suite::Aes256Gcm, 1)?,
        "seal" => seal()?,
        "open" => open()?,
        "fib-hit" => fib(0)?,
        "fib-miss" => fib(STEPS)?,
        "replay" => replay()?,
        "ring" => ring()?,
        "message" => messages(1)?,
        "messages" => messages(64)?,
        _ => bail!("no scenario {name}; one of {}", SCENARIOS.join(", ")),
    };
    Ok(writeln!(std::io::stdout(), "{operations}")?)
}

/// Packets relayed among few neighbours.
fn relay(suite: Suite, train: usize) -> anyhow::Result<u64> {
    let mut relay = Relay::new(Dimensions {
        suite,
        peers: 8,
        routes: 64,
        flows: 8,
        train,
        payload: 64,
    })?;
    let trains = ROUNDS * usize::from(TRAIN) / train;
    relay.prepare(1);
    relay.pass();
    relay.prepare(trains);
    let passed = counted(|| relay.pass());
    ensure!(passed == (trains * train) as u64, "every packet is relayed");
    Ok(passed)
}

fn ends() -> anyhow::Result<Ends> {
    let mut ends = Ends::new(Suite::Aes256Gcm, TRAIN, 1200)?;
    let mut first = ends.sealed()?;
    ends.open(&mut first);
    Ok(ends)
}

/// Packets split off a super-packet and sealed.
fn seal() -> anyhow::Result<u64> {
    let mut ends = ends()?;
    counted(|| {
        let mut packets = 0;
        for _ in 0..ROUNDS {
            packets += ends.seal(|train, _| {
                std::hint::black_box(train);
            })?;
        }
        Ok(packets)
    })
}

/// Packets opened.
fn open() -> anyhow::Result<u64> {
    let mut ends = ends()?;
    let mut trains = Vec::new();
    for _ in 0..ROUNDS {
        trains.extend(ends.sealed()?);
    }
    let opened = counted(|| ends.open(&mut trains));
    ensure!(
        opened == ROUNDS as u64 * u64::from(TRAIN),
        "every packet is opened"
    );
    Ok(opened)
}

/// Lookups in a table of 10,000; those from `first` on.
fn fib(first: u64) -> anyhow::Result<u64> {
    const ENTRIES: u64 = 10_000;
    let mut fib = Fib::new();
    for n in 0..ENTRIES {
        fib.replace(&records::route(records::network(n), 1), 1)?;
    }
    let addresses = (0..STEPS).map(|n| records::network(first + n % ENTRIES));
    let addresses: Vec<_> = addresses.collect();
    let found = counted(|| {
        let found = addresses
            .iter()
            .filter(|address| fib.lookup(**address).is_some());
        found.count() as u64
    });
    ensure!(
        found == if first == 0 { STEPS } else { 0 },
        "hits or misses"
    );
    Ok(STEPS)
}

/// Counters in order, except every eighth, which is late.
fn replay() -> anyhow::Result<u64> {
    let mut window = Replay::new();
    let order = (0..STEPS).map(|n| if n % 8 == 7 { n - 7 } else { n + 1 });
    let order: Vec<u64> = order.collect();
    let fresh = counted(|| {
        let mut fresh = 0;
        for counter in &order {
            if window.is_fresh(*counter) {
                window.note(*counter);
                fresh += 1;
            }
        }
        fresh
    });
    ensure!(fresh > STEPS / 2, "most counters are new");
    Ok(STEPS)
}

/// Records of 64 bytes, published in batches of 16.
fn ring() -> anyhow::Result<u64> {
    let (mut producer, mut consumer) = heap(1 << 16);
    let (record, mut scratch) = ([7; 64], vec![0; RECORD_MAX]);
    counted(|| {
        for _ in 0..STEPS / 16 {
            for _ in 0..16 {
                producer.push(1, &[&record])?;
            }
            std::hint::black_box(producer.publish());
            while consumer.pop(&mut scratch)?.is_some() {}
            consumer.release();
        }
        Ok(STEPS)
    })
}

/// Messages of 128 bytes in batches, until their read receipts.
fn messages(together: u64) -> anyhow::Result<u64> {
    let mut messengers = Messengers::new()?;
    let payload = Bytes::from(vec![7; 128]);
    messengers.exchange(&payload, together)?;
    counted(|| {
        for _ in 0..ROUNDS * 10 {
            messengers.exchange(&payload, together)?;
        }
        Ok(ROUNDS as u64 * 10 * together)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_runs_to_its_end() {
        for scenario in SCENARIOS {
            assert!(run(scenario).is_ok(), "{scenario}");
        }
        assert!(run("elsewhere").is_err());
    }
}
