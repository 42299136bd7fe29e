//! The ring between the planes, over ordinary memory.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args as ClapArgs;
use hyphae_shm::{PushError, RECORD_MAX, heap};

use super::{Round, nanos, timed};
use crate::output::{Measured, show_measured};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Records that are published together.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    batches: Vec<u64>,
    /// Seconds per row.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
}

/// Bytes of the ring, equal to the capacity of the channel.
const ROOM: usize = 1 << 20;
/// Records of one round between two threads.
const RECORDS: u64 = 200_000;

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    for batch in &args.batches {
        ensure!((1..=500).contains(batch), "batches of 1 to 500 records");
        eprintln!("ring: batches of {batch}");
        rows.extend(measure::<64>(*batch, time)?);
        rows.extend(measure::<1400>(*batch, time)?);
    }
    let baseline = "a bounded channel of the standard library that carries arrays of that size";
    show_measured("ring", &rows, baseline, json)
}

fn measure<const SIZE: usize>(batch: u64, time: Duration) -> anyhow::Result<[Measured; 2]> {
    let alone = nanos(
        time,
        [&mut || ring_alone::<SIZE>(batch), &mut || {
            channel_alone::<SIZE>(batch)
        }],
    )?;
    let across = nanos(time, [&mut || ring::<SIZE>(batch), &mut channel::<SIZE>])?;
    let of = if batch == 1 {
        "one at a time".to_owned()
    } else {
        format!("batches of {batch}")
    };
    let row = |what, unit, [own, base]: [f64; 2]| {
        Measured::new(what, of.clone(), own, unit)
            .size(SIZE)
            .against(base)
    };
    let millions = across.map(|nanos| 1000.0 / nanos);
    Ok([
        row("in and out in one thread", "ns", alone),
        row("from thread to thread", "million/s", millions),
    ])
}

fn ring_alone<const SIZE: usize>(batch: u64) -> Round {
    let (mut producer, mut consumer) = heap(ROOM);
    let (record, mut scratch) = ([7; SIZE], vec![0; RECORD_MAX]);
    let rounds = 20_000 / batch;
    let (result, took) = timed(|| {
        let mut popped = 0;
        for _ in 0..rounds {
            for _ in 0..batch {
                producer.push(1, &[&record])?;
            }
            // The reader polls: no wakeup is due.
            let _ = producer.publish();
            while consumer.pop(&mut scratch)?.is_some() {
                popped += 1;
            }
            consumer.release();
        }
        anyhow::Ok(popped)
    });
    ensure!(result? == rounds * batch, "what goes in comes out");
    Ok((rounds * batch, took))
}

fn channel_alone<const SIZE: usize>(batch: u64) -> Round {
    let (sender, receiver) = sync_channel(ROOM / SIZE);
    let record = [7; SIZE];
    let rounds = 20_000 / batch;
    let (popped, took) = timed(|| {
        let mut popped = 0;
        for _ in 0..rounds {
            for _ in 0..batch {
                // The receiver exists.
                let _ = sender.send(std::hint::black_box(record));
            }
            popped += receiver.try_iter().map(std::hint::black_box).count() as u64;
        }
        popped
    });
    ensure!(popped == rounds * batch, "what goes in comes out");
    Ok((popped, took))
}

/// One thread writes, this one reads and counts.
fn ring<const SIZE: usize>(batch: u64) -> Round {
    let (mut producer, mut consumer) = heap(ROOM);
    let writing = std::thread::spawn(move || -> anyhow::Result<()> {
        let record = [7; SIZE];
        for n in 1..=RECORDS {
            while let Err(error) = producer.push(1, &[&record]) {
                ensure!(error == PushError::Full, "{error}");
                let _ = producer.publish();
                std::thread::yield_now();
            }
            if n % batch == 0 {
                // The reader yields instead of sleeping.
                let _ = producer.publish();
            }
        }
        let _ = producer.publish();
        Ok(())
    });
    let mut scratch = vec![0; RECORD_MAX];
    let (result, took) = timed(|| {
        let mut popped = 0;
        while popped < RECORDS {
            let before = popped;
            while consumer.pop(&mut scratch)?.is_some() {
                popped += 1;
                if popped % 64 == 0 {
                    consumer.release();
                }
            }
            consumer.release();
            if popped == before {
                ensure!(!consumer.is_corrupt(), "the ring is whole");
                std::thread::yield_now();
            }
        }
        anyhow::Ok(popped)
    });
    let written = writing
        .join()
        .map_err(|_| anyhow!("the writer has panicked"))?;
    written?;
    Ok((result?, took))
}

fn channel<const SIZE: usize>() -> Round {
    let (sender, receiver) = sync_channel(ROOM / SIZE);
    let writing = std::thread::spawn(move || {
        let record = [7; SIZE];
        // Ends early only if the receiver does.
        (0..RECORDS).try_for_each(|_| sender.send(std::hint::black_box(record)))
    });
    let (popped, took) = timed(|| receiver.iter().map(std::hint::black_box).count() as u64);
    let written = writing
        .join()
        .map_err(|_| anyhow!("the writer has panicked"))?;
    written?;
    ensure!(popped == RECORDS, "what goes in comes out");
    Ok((popped, took))
}
