//! The same driver without cryptography: changes 16 bytes of each segment, sends the train on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyphae_uring::{Driver, Event, Span, udp};
use hyphae_wire::Endpoint;

use super::load::{address, generator, open, sink, spawn};
use super::{Args, Net, PORT, RELAY_TO_SOURCE, SINK, SOURCE, Sample};

pub(super) fn measure(
    net: &Net,
    args: &Args,
    frame: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    let received = Arc::new(AtomicU64::new(0));
    let sinking = sink(&net.sink, address(SINK, PORT)?, Arc::clone(&received))?;
    let at = address("0.0.0.0", PORT)?;
    let socket = net
        .relay
        .run(move || udp::bind(at, udp::SocketOptions::default()))??
        .0;
    let (kind, to) = (args.driver, Endpoint::from(address(SINK, PORT)?));
    let forwarded = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&forwarded);
    let cpu = Arc::new(AtomicU64::new(0));
    let used = Arc::clone(&cpu);
    let forwarding = spawn(&net.relay, args.core, move |stop| {
        let mut driver = open(socket, kind)?;
        let mut held = Vec::with_capacity(64);
        while !stop.load(Ordering::Relaxed) {
            driver.wait(Some(Duration::from_millis(50)))?;
            while let Some(event) = driver.next() {
                let Event::Datagrams {
                    buffer,
                    offset,
                    len,
                    segment,
                    ..
                } = event
                else {
                    continue;
                };
                let span = Span {
                    buffer,
                    offset,
                    len,
                };
                for one in driver.spans(span).chunks_mut(segment as usize) {
                    one.iter_mut()
                        .take(16)
                        .for_each(|byte| *byte = byte.wrapping_add(1));
                }
                // A full slab is loss, as it would be in the relay.
                let sent = driver.send(&to, u16::try_from(segment)?, &[span]).is_ok();
                counter.fetch_add(
                    u64::from(sent) * u64::from(len.div_ceil(segment)),
                    Ordering::Relaxed,
                );
                held.push(buffer);
            }
            driver.submit()?;
            held.drain(..).for_each(|buffer| driver.release(buffer));
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let nanos = time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs();
            used.store(nanos, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let (from, to) = (address(SOURCE, PORT)?, address(RELAY_TO_SOURCE, PORT)?);
    let generating = generator(&net.source, from, to, frame, train, |frame| frame[0] = 1)?;
    std::thread::sleep(Duration::from_millis(300));
    let before = (
        forwarded.load(Ordering::Relaxed),
        cpu.load(Ordering::Relaxed),
        Instant::now(),
    );
    std::thread::sleep(time);
    let sample = Sample {
        packets: forwarded.load(Ordering::Relaxed) - before.0,
        seconds: before.2.elapsed().as_secs_f64(),
        cpu: Duration::from_nanos(cpu.load(Ordering::Relaxed) - before.1),
    };
    generating.stop()?;
    forwarding.stop()?;
    sinking.stop()?;
    Ok(sample)
}
