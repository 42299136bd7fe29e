//! Merging against the oracle of [`crate::host::testing`]: what the kernel makes of the writes must
//! be the packets that were pushed, in the order of their flows.

use proptest::prelude::*;

use super::*;
use crate::host::testing::{
    ICMPV6, Memory, Spec, TCP, UDP, address, complete, deliver, ipv6, noise, split, super_packet,
};

/// Pushes partial packets, flushes, and returns how many packets each write holds, after checking
/// that they come out whole.
fn shape(udp: bool, specs: &[Spec]) -> Vec<usize> {
    let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(udp));
    let mut expected = Vec::new();
    for spec in specs {
        let mut packet = spec.build();
        // What the field holds does not matter.
        let at = if spec.protocol == TCP { 56 } else { 46 };
        let mut sent = packet.clone();
        sent[at..at + 2].copy_from_slice(&[0xba, 0xd0]);
        memory.push(&mut coalescer, &sent, true).unwrap();
        complete(&mut packet);
        expected.push(packet);
    }
    coalescer.flush(&mut memory);
    let written = memory.writes.len();
    coalescer.flush(&mut memory);
    assert_eq!(
        memory.writes.len(),
        written,
        "nothing is left after a flush"
    );
    assert_eq!(memory.delivered(), expected);
    memory.shape()
}

/// Consecutive segments of these payload lengths.
fn stream(base: &Spec, lengths: &[usize]) -> Vec<Spec> {
    let mut sequence = base.sequence;
    let next = |(n, len): (usize, &usize)| {
        let payload = noise(*len, u32::try_from(n).unwrap());
        let spec = Spec {
            sequence,
            payload,
            ..base.clone()
        };
        sequence = sequence.wrapping_add(u32::try_from(*len).unwrap());
        spec
    };
    lengths.iter().enumerate().map(next).collect()
}

proptest! {
    #[test]
    fn split_and_merged_is_the_super_packet_again((spec, size) in super_packet(), push: bool) {
        let size = size.max(spec.payload.len().div_ceil(64)).min(1_240);
        let spec = Spec { flags: 0x10 | if push { spec.flags & 9 } else { 0 }, ..spec };
        let packet = spec.build();
        let (segments, partial) = split(&spec.offload(size), &packet, 1_340).unwrap();
        prop_assert!(partial);
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
        for segment in &segments {
            memory.push(&mut coalescer, segment, true).unwrap();
        }
        coalescer.flush(&mut memory);
        let single = TunHeader { gso_type: 0, gso_size: 0.into(), hdr_len: 0.into(), ..spec.offload(0) };
        let header = if segments.len() > 1 { spec.offload(size) } else { single };
        prop_assert!(memory.writes == [(header, packet)]);
    }
}

#[test]
fn consecutive_segments_become_one_write() {
    for base in [Spec::tcp(0), Spec::udp(0)] {
        assert_eq!(shape(true, &stream(&base, &[900, 900, 900])), [3]);
        assert_eq!(shape(true, &stream(&base, &[900, 900, 20])), [3]);
        assert_eq!(shape(true, &stream(&base, &[1])), [1]);
    }
}

#[test]
fn shorter_segment_closes_and_longer_one_begins_anew() {
    for base in [Spec::tcp(0), Spec::udp(0)] {
        assert_eq!(shape(true, &stream(&base, &[900, 20, 900, 900])), [2, 2]);
        assert_eq!(shape(true, &stream(&base, &[20, 900, 900])), [1, 2]);
        assert_eq!(shape(true, &stream(&base, &[900, 0, 900])), [1, 1, 1]);
    }
}

#[test]
fn group_ends_at_64_segments_and_at_the_length_limit() {
    for base in [Spec::tcp(0), Spec::udp(0)] {
        assert_eq!(shape(true, &stream(&base, &[100; 150])), [64, 64, 22]);
        let headers = base.headers_len();
        let fits = (65_535 - headers) / 1_200;
        assert_eq!(shape(true, &stream(&base, &[1_200; 60])), [fits, 60 - fits]);
        let rest = 65_535 - headers - fits * 1_200;
        let full = [&vec![1_200; fits][..], &[rest]].concat();
        assert_eq!(shape(true, &stream(&base, &full)), [fits + 1]);
        let over = [&vec![1_200; fits][..], &[rest + 1]].concat();
        assert_eq!(shape(true, &stream(&base, &over)), [fits, 1]);
    }
}

#[test]
fn udp_is_merged_only_for_a_device_that_takes_it() {
    assert_eq!(shape(false, &stream(&Spec::udp(0), &[900; 3])), [1, 1, 1]);
    assert_eq!(shape(false, &stream(&Spec::tcp(0), &[900; 3])), [3]);
}

#[test]
fn push_and_fin_close_and_other_flags_stay_alone() {
    let with = |at: usize, flags: u8| {
        let mut specs = stream(&Spec::tcp(0), &[500; 5]);
        specs[at].flags = flags;
        shape(true, &specs)
    };
    assert_eq!(with(2, 0x18), [3, 2]);
    assert_eq!(with(2, 0x11), [3, 2]);
    assert_eq!(with(0, 0x18), [1, 4]);
    for flags in [0x00, 0x12, 0x14, 0x30, 0x50, 0x90] {
        assert_eq!(with(2, flags), [2, 1, 2], "{flags:#x}");
    }
    let mut accurate_ecn = Memory::default();
    let mut coalescer = Coalescer::new(true);
    for spec in stream(&Spec::tcp(0), &[500; 2]) {
        let mut packet = spec.build();
        packet[52] |= 1;
        accurate_ecn.push(&mut coalescer, &packet, true).unwrap();
    }
    assert_eq!(accurate_ecn.shape(), [1, 1]);
}

#[test]
fn any_difference_in_the_headers_keeps_packets_apart() {
    let changes: [fn(&mut Spec); 8] = [
        |spec| spec.class_label ^= 1,
        |spec| spec.class_label ^= 1 << 20,
        |spec| spec.hop_limit -= 1,
        |spec| spec.sequence ^= 1,
        |spec| spec.acknowledgment += 1,
        |spec| spec.window += 1,
        |spec| spec.options[11] ^= 1,
        |spec| spec.options.extend([1, 1, 1, 1]),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut specs = stream(&Spec::tcp(0), &[700; 4]);
        change(&mut specs[2]);
        change(&mut specs[3]);
        assert_eq!(shape(true, &specs), [2, 2], "{n}");
    }
}

#[test]
fn flows_are_merged_side_by_side_and_one_too_many_ends_one() {
    for flows in [2, 8, 9, 20] {
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
        let streams: Vec<_> = (0..flows)
            .map(|n| {
                stream(
                    &Spec {
                        ports: (n, 80),
                        ..Spec::tcp(0)
                    },
                    &[400; 4],
                )
            })
            .collect();
        for n in 0..4 {
            for stream in &streams {
                memory
                    .push(&mut coalescer, &stream[n].build(), true)
                    .unwrap();
            }
        }
        coalescer.flush(&mut memory);
        if flows <= 8 {
            assert_eq!(memory.shape(), vec![4; usize::from(flows)]);
        }
        for port in 0..flows {
            let mut sent: Vec<_> = streams[usize::from(port)].iter().map(Spec::build).collect();
            sent.iter_mut().for_each(|packet| complete(packet));
            let mut delivered = memory.delivered();
            delivered.retain(|packet| packet[40..42] == port.to_be_bytes());
            assert_eq!(delivered, sent);
        }
    }
}

#[test]
fn complete_checksum_is_written_without_any_offload() {
    let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
    for spec in stream(&Spec::tcp(0), &[300; 2]) {
        let mut packet = spec.build();
        complete(&mut packet);
        memory.push(&mut coalescer, &packet, false).unwrap();
        assert_eq!(memory.writes.pop(), Some((TunHeader::default(), packet)));
    }
}

#[test]
fn lone_partial_packets_are_seeded_for_their_protocol() {
    let spec = Spec::udp(0);
    let icmp = ipv6(&spec, ICMPV6, &noise(16, 2));
    let ack = Spec::tcp(0).build();
    for (mut packet, offset) in [(icmp, 2_u16), (ack, 16), (Spec::udp(0).build(), 6)] {
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(false));
        memory.push(&mut coalescer, &packet, true).unwrap();
        let (header, written) = memory.writes.pop().unwrap();
        let expected = TunHeader {
            flags: TunHeader::NEEDS_CSUM,
            csum_start: 40.into(),
            csum_offset: offset.into(),
            ..TunHeader::default()
        };
        assert_eq!(header, expected);
        crate::host::testing::seed(&mut packet);
        complete(&mut packet);
        assert_eq!(deliver(&header, &written), [packet]);
    }
}

#[test]
fn partial_checksum_that_is_nowhere_is_malformed() {
    let spec = Spec::tcp(10);
    let whole = spec.build();
    let mut longer = whole.clone();
    longer.push(0);
    let mut ipv4 = whole.clone();
    ipv4[0] = 0x45;
    let extended = spec.build_extended(60);
    for (packet, partial) in [
        (&ipv6(&spec, 132, &[0; 40])[..], true),
        (&ipv6(&spec, 59, &[]), true),
        (&ipv6(&spec, TCP, &[0; 19]), true),
        (&ipv6(&spec, UDP, &[0; 7]), true),
        (&ipv6(&spec, ICMPV6, &[0; 3]), true),
        (&extended, true),
        (&longer, false),
        (&ipv4, false),
        (&whole[..39], false),
        (&[], false),
    ] {
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
        let result = memory.push(&mut coalescer, packet, partial);
        assert_eq!(result, Err(DropReason::InnerMalformed), "{packet:?}");
        coalescer.flush(&mut memory);
        assert!(memory.writes.is_empty());
        if partial {
            assert_eq!(memory.push(&mut coalescer, packet, false), Ok(()));
        }
    }
}

#[test]
fn misshapen_transport_headers_are_written_alone() {
    let bad_offset = |to: u8| {
        let mut packet = Spec::tcp(40).build();
        packet[52] = to;
        packet
    };
    let mut bad_length = Spec::udp(40).build();
    bad_length[45] += 1;
    for packet in [
        bad_offset(0x40),
        bad_offset(0xff),
        bad_offset(0x00),
        bad_length,
    ] {
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
        memory.push(&mut coalescer, &packet, true).unwrap();
        assert_eq!(memory.writes.len(), 1);
        assert_eq!(memory.writes[0].0.gso_type, TunHeader::GSO_NONE);
    }
}

/// One packet of an interleaving: which flow, and what is special about it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Next { flow: u8, len: usize, flags: u8 },
    Gap { flow: u8 },
    Bare { flow: u8 },
    Complete { flow: u8 },
    Fragment { flow: u8 },
    Echo { flow: u8 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let flow = 0..12_u8;
    let len = prop_oneof![8 => Just(600_usize), 1 => Just(50), 1 => Just(900)];
    let flags = prop_oneof![12 => Just(0x10_u8), 1 => Just(0x18), 1 => Just(0x11), 1 => Just(0x90)];
    prop_oneof![
        40 => (flow.clone(), len, flags).prop_map(|(flow, len, flags)| Step::Next { flow, len, flags }),
        2 => flow.clone().prop_map(|flow| Step::Gap { flow }),
        2 => flow.clone().prop_map(|flow| Step::Bare { flow }),
        2 => flow.clone().prop_map(|flow| Step::Complete { flow }),
        2 => flow.clone().prop_map(|flow| Step::Fragment { flow }),
        2 => flow.prop_map(|flow| Step::Echo { flow }),
        1 => Just(Step::Flush),
    ]
}

/// A packet as it should be delivered, and what it must not overtake: its two ends, and of these
/// its flow, if it has ports.
struct Sent {
    packet: Vec<u8>,
    ends: u8,
    flow: Option<u8>,
}

/// Twelve flows between three pairs of ends, every other UDP. Makes the packet of `step`.
fn make(step: Step, specs: &mut [Spec], serial: u32) -> Option<(Vec<u8>, bool, Sent)> {
    let (flow, len, flags, partial) = match step {
        Step::Next { flow, len, flags } => (flow, len, flags, true),
        Step::Gap { flow } => {
            let spec = &mut specs[usize::from(flow)];
            spec.sequence = spec.sequence.wrapping_add(5_000);
            (flow, 600, 0x10, true)
        }
        Step::Bare { flow } => (flow, 0, 0x10, true),
        Step::Complete { flow } => (flow, 600, 0x10, false),
        Step::Fragment { flow } | Step::Echo { flow } => (flow, 600, 0x10, false),
        Step::Flush => return None,
    };
    let spec = &mut specs[usize::from(flow)];
    let mut this = Spec {
        flags,
        payload: noise(len, serial),
        ..spec.clone()
    };
    let ends = this.destination[15];
    if let Step::Fragment { .. } | Step::Echo { .. } = step {
        let fragment = matches!(step, Step::Fragment { .. });
        let mut packet = ipv6(&this, if fragment { 44 } else { ICMPV6 }, &this.payload);
        let sent = packet.clone();
        if !fragment {
            crate::host::testing::seed(&mut packet);
            let mut done = packet.clone();
            complete(&mut done);
            return Some((
                packet,
                true,
                Sent {
                    packet: done,
                    ends,
                    flow: None,
                },
            ));
        }
        return Some((
            packet,
            false,
            Sent {
                packet: sent,
                ends,
                flow: None,
            },
        ));
    }
    if len == 0 {
        // Bare acknowledgments are told apart in the test by their window.
        this.window = u16::try_from(serial).unwrap();
        this.hop_limit = u8::try_from(serial % 250).unwrap();
    }
    spec.sequence = spec.sequence.wrapping_add(u32::try_from(len).unwrap());
    let packet = this.build();
    let mut done = packet.clone();
    complete(&mut done);
    let pushed = if partial { packet } else { done.clone() };
    Some((
        pushed,
        partial,
        Sent {
            packet: done,
            ends,
            flow: Some(flow),
        },
    ))
}

proptest! {
    #[test]
    fn order_within_flows_is_kept(steps in prop::collection::vec(step(), 0..200), udp: bool) {
        let mut specs: Vec<_> = (0..12_u8)
            .map(|flow| {
                let base = if flow % 2 == 0 { Spec::tcp(0) } else { Spec::udp(0) };
                let ports = (1_000 + u16::from(flow), 443);
                Spec { ports, destination: address(100 + flow % 3), ..base }
            })
            .collect();
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(udp));
        let mut sent = Vec::new();
        for (serial, step) in (1..).zip(steps) {
            match make(step, &mut specs, serial) {
                None => coalescer.flush(&mut memory),
                Some((packet, partial, expected)) => {
                    memory.push(&mut coalescer, &packet, partial).unwrap();
                    sent.push(expected);
                }
            }
        }
        coalescer.flush(&mut memory);
        let delivered = memory.delivered();
        prop_assert_eq!(delivered.len(), sent.len());
        let place = |sent: &Sent| delivered.iter().position(|packet| *packet == sent.packet);
        let places: Vec<_> = sent.iter().map(place).collect();
        prop_assert!(places.iter().all(Option::is_some), "a packet was changed");
        for (n, later) in sent.iter().enumerate() {
            for (earlier, place) in sent.iter().zip(&places).take(n) {
                let portless = earlier.flow.is_none() || later.flow.is_none();
                let ordered = earlier.ends == later.ends && (portless || earlier.flow == later.flow);
                prop_assert!(!ordered || *place < places[n], "a packet was overtaken");
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..150), any::<bool>(), any::<bool>()),
            0..30,
        ),
    ) {
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
        for (mut bytes, partial, sane) in packets {
            if sane && bytes.len() >= 40 {
                let len = u16::try_from(bytes.len() - 40).unwrap();
                let next_header = [6, 17, 58, 44][usize::from(bytes[6]) % 4];
                let like = Spec::tcp(0);
                bytes = ipv6(&like, next_header, &bytes[40..40 + usize::from(len)]);
            }
            let _ = memory.push(&mut coalescer, &bytes, partial);
        }
        coalescer.flush(&mut memory);
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0..200_usize, to: u8, udp: bool) {
        let base = if udp { Spec::udp(0) } else { Spec::tcp(0) };
        let (mut memory, mut coalescer) = (Memory::default(), Coalescer::new(true));
        for spec in stream(&base, &[120, 120, 120]) {
            let mut packet = spec.build();
            let at = at % packet.len();
            packet[at] = to;
            let _ = memory.push(&mut coalescer, &packet, true);
        }
        coalescer.flush(&mut memory);
        memory.shape();
    }
}
