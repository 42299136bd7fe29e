//! The same driver without cryptography: changes 16 bytes of each segment and forwards the train.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyphae_driver::{Driver, Event, Span, udp};
use hyphae_wire::Endpoint;

use super::load::{Meter, Plain, address, open, spawn};
use super::{Args, Net, PORT, SINK, Sample};

pub(super) fn measure(
    net: &Net,
    args: &Args,
    frame: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    let at = address("0.0.0.0", PORT)?;
    let socket = net
        .relay
        .run(move || udp::bind(at, udp::SocketOptions::default()))??
        .0;
    let (kind, to) = (args.driver, Endpoint::from(address(SINK, PORT)?));
    let meter = Arc::new(Meter::default());
    let counter = Arc::clone(&meter);
    let forwarding = spawn(&net.relay, args.core, move |stop| {
        let mut driver = open(socket, kind)?;
        let mut buffers = Vec::with_capacity(64);
        while !stop.load(Ordering::Relaxed) {
            driver.wait(Some(Duration::from_millis(50)))?;
            let mut packets = 0;
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
                touch(driver.spans(span), segment as usize);
                // A full slab counts as loss, as in the relay.
                let sent = driver.send(to, u16::try_from(segment)?, &[span]).is_ok();
                packets += u64::from(sent) * u64::from(len.div_ceil(segment));
                buffers.push(buffer);
            }
            driver.submit()?;
            buffers.drain(..).for_each(|buffer| driver.release(buffer));
            counter.add(packets);
        }
        Ok(())
    })?;
    let sample = Plain::start(net, frame, train)?.watch(time, || Ok(Some(meter.read())));
    forwarding.stop()?;
    sample
}

/// Changes the first bytes of each segment, as every forwarder must.
pub(super) fn touch(train: &mut [u8], segment: usize) {
    for one in train.chunks_mut(segment) {
        let head = one.iter_mut().take(16);
        head.for_each(|byte| *byte = byte.wrapping_add(1));
    }
}
