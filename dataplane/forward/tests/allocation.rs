//! Covers the promise that nothing allocates for a packet: trains of transit frames and of packets
//! of the host, after the first few.

mod common;

use allocation_counter::measure;
use common::{Host, Line, NOW, depart, trains};
use hyphae_forward::Verdict;
use hyphae_forward::host::Splitter;
use hyphae_wire::Suite;

const TRAINS: usize = 10_000;
const WARM_UP: usize = 10;
const SEGMENTS: usize = 4;

/// Frames of the client as the relay gets them, all trains in a row.
fn input(line: &mut Line, count: usize) -> (Vec<u8>, usize) {
    let host = Host::udp(line.client.address, line.server.address);
    let packet = host.packet(SEGMENTS * 100);
    let mut bytes = Vec::new();
    let mut segment = 0;
    for _ in 0..count {
        for (train, frames) in trains(line.client.engine(), &host.offload(100), &packet) {
            segment = train.segment;
            bytes.extend(frames);
        }
    }
    (bytes, segment)
}

#[test]
fn transit_and_delivery_allocate_nothing() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let (mut bytes, segment) = input(&mut line, TRAINS + WARM_UP);
    let len = segment * SEGMENTS;
    let mut verdicts = Vec::with_capacity(64);
    let (client, relay) = (line.client.endpoint, line.relay.endpoint);
    let (mut transmitted, mut delivered, mut told) = (0, 0, 0);
    let mut run = |part: &mut [u8]| {
        for train in part.chunks_mut(len) {
            verdicts.clear();
            let engine = line.relay.engine();
            engine.receive(NOW, client, train, segment, &mut verdicts);
            for verdict in &verdicts {
                if let Verdict::Transmit(lane) = verdict {
                    transmitted += 1;
                    engine.note_sent(*lane, 1, segment as u64, 1444);
                }
            }
            engine.drain_traffic(|_, traffic| told += traffic.rx_packets);
            engine.handle_timeout(NOW);
            verdicts.clear();
            let engine = line.server.engine();
            engine.receive(NOW, relay, train, segment, &mut verdicts);
            let is_delivered = |verdict: &&Verdict| matches!(verdict, Verdict::Deliver { .. });
            delivered += verdicts.iter().filter(is_delivered).count();
        }
    };
    let (warm, rest) = bytes.split_at_mut(len * WARM_UP);
    run(warm);
    let info = measure(|| run(rest));
    assert_eq!(info.count_total, 0, "{info:?}");
    let all = (TRAINS + WARM_UP) * SEGMENTS;
    assert_eq!((transmitted, delivered, told), (all, all, all as u64));
}

#[test]
fn frames_that_are_dropped_allocate_nothing() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let (mut bytes, segment) = input(&mut line, 100);
    bytes
        .iter_mut()
        .skip(40)
        .step_by(segment)
        .for_each(|byte| *byte ^= 1);
    let mut verdicts = Vec::with_capacity(bytes.len() / segment + 1);
    let from = line.client.endpoint;
    let engine = line.relay.engine();
    let info = measure(|| engine.receive(NOW, from, &mut bytes, segment, &mut verdicts));
    assert_eq!(info.count_total, 0, "{info:?}");
    assert!(
        verdicts
            .iter()
            .all(|verdict| matches!(verdict, Verdict::Drop(_)))
    );
}

#[test]
fn origination_allocates_nothing() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let host = Host::tcp(line.client.address, line.server.address);
    let (header, packet) = (host.offload(1000), host.packet(SEGMENTS * 1000));
    let mut space = vec![0; 65_507];
    let engine = line.client.engine();
    let mut run = |count: usize| {
        for _ in 0..count {
            let departure = depart(engine, NOW, &header, &packet);
            let mut splitter = Splitter::new(&header, &packet, departure.mtu()).unwrap();
            let train = engine.originate(NOW, &departure, &mut splitter, &mut space);
            let train = train.unwrap();
            assert_eq!(train.len.div_ceil(train.segment), SEGMENTS);
            engine.note_sent(
                common::lane_of(&train),
                SEGMENTS as u64,
                train.len as u64,
                1444,
            );
            engine.drain_traffic(|_, _| {});
        }
    };
    run(WARM_UP);
    let info = measure(|| run(TRAINS));
    assert_eq!(info.count_total, 0, "{info:?}");
}
