//! Cutting of super-packets against the oracle of [`crate::host::testing`], and every refusal.
//! What becomes of the segments at the other end is tested with the coalescer.

use proptest::prelude::*;

use super::*;
use crate::host::testing::{
    ICMPV6, Spec, TCP, UDP, address, complete, complete_at, deliver, ipv6, noise, split,
    super_packet, verifies,
};

const MTU: u16 = 1_340;

proptest! {
    #[test]
    fn segments_are_what_the_kernel_would_have_cut((spec, size) in super_packet()) {
        let packet = spec.build();
        let header = spec.offload(size);
        let (mut segments, partial) = split(&header, &packet, MTU).unwrap();
        prop_assert!(partial);
        segments.iter_mut().for_each(|segment| complete(segment));
        prop_assert_eq!(segments, deliver(&header, &packet));
    }

    #[test]
    fn random_bytes_never_panic(
        offload: [u8; 10],
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        mtu: u16,
        sane: bool,
    ) {
        let (mut header, _) = TunHeader::split(&offload).map(|(h, p)| (*h, p)).unwrap();
        if sane && bytes.len() >= 48 {
            bytes[0] = 0x60;
            let len = u16::try_from(bytes.len() - 40).unwrap();
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes[6] = [0, 6, 6, 17, 17, 43, 44, 51, 60][usize::from(bytes[6]) % 9];
            if bytes[6] == 17 && bytes[7] > 50 {
                bytes[44..46].copy_from_slice(&len.to_be_bytes());
            }
            header.flags &= 3;
            header.gso_type = [0, 1, 4, 0x84, 5][usize::from(header.gso_type) % 5];
            header.hdr_len = 40.into();
            header.csum_start = (40 + header.csum_start.get() % 2 * 8).into();
            header.csum_offset = [16, 6, 2, 300][usize::from(header.csum_offset.get()) % 4].into();
        }
        if let Ok((segments, _)) = split(&header, &bytes, mtu) {
            prop_assert!(segments.iter().all(|segment| segment.len() <= usize::from(mtu)));
        }
    }

    #[test]
    fn a_changed_byte_never_panics((spec, size) in super_packet(), at in 0..100_usize, to: u8) {
        let mut read = [&spec.offload(size).to_bytes()[..], &spec.build()].concat();
        let at = at % read.len();
        read[at] = to;
        let (header, packet) = TunHeader::split(&read).unwrap();
        let _ = split(header, packet, MTU);
    }
}

#[test]
fn sequence_numbers_wrap_and_flags_stay_where_they_belong() {
    let spec = Spec {
        flags: 0x80 | 0x40 | 0x10 | 0x08 | 0x01,
        ..Spec::tcp(2_500)
    };
    let header = TunHeader {
        gso_type: 0x84,
        ..spec.offload(1_000)
    };
    let (segments, _) = split(&header, &spec.build(), MTU).unwrap();
    let seen: Vec<_> = segments
        .iter()
        .map(|s| {
            (
                s.len(),
                s[53],
                u32::from_be_bytes(s[44..48].try_into().unwrap()),
            )
        })
        .collect();
    let first = 0xffff_fc00_u32;
    assert_eq!(
        seen,
        [
            (1_072, 0xd0, first),
            (1_072, 0x50, first.wrapping_add(1_000)),
            (572, 0x59, first.wrapping_add(2_000)),
        ]
    );
}

#[test]
fn other_packets_pass_as_they_are() {
    let spec = Spec::tcp(100);
    let mut packet = spec.build();
    let partial = TunHeader {
        gso_type: 0,
        gso_size: 0.into(),
        ..spec.offload(0)
    };
    assert_eq!(
        split(&partial, &packet, MTU),
        Ok((vec![packet.clone()], true))
    );
    let verified = TunHeader {
        flags: TunHeader::DATA_VALID,
        ..TunHeader::default()
    };
    complete(&mut packet);
    assert_eq!(
        split(&verified, &packet, MTU),
        Ok((vec![packet.clone()], false))
    );
    assert_eq!(
        split(&TunHeader::default(), &packet, MTU),
        Ok((vec![packet], false))
    );
    let empty = ipv6(&spec, 59, &[]);
    assert_eq!(
        split(&TunHeader::default(), &empty, 40),
        Ok((vec![empty], false))
    );
}

#[test]
fn checksum_that_the_receiver_could_not_find_is_completed() {
    for (spec, at) in [(Spec::tcp(3_001), 16), (Spec::udp(3_001), 6)] {
        let packet = spec.build_extended(60);
        let header = TunHeader {
            csum_start: 48.into(),
            ..spec.offload(1_000)
        };
        let (segments, partial) = split(&header, &packet, MTU).unwrap();
        assert!(!partial);
        assert_eq!(segments.len(), 4);
        for segment in &segments {
            assert!(verifies(segment, spec.protocol, 48));
        }
        let plain = TunHeader {
            gso_type: 0,
            ..header
        };
        let single = Spec {
            payload: noise(99, 4),
            ..spec
        }
        .build_extended(60);
        let mut expected = single.clone();
        complete_at(&mut expected, 48, at);
        assert_eq!(split(&plain, &single, MTU), Ok((vec![expected], false)));
    }
    // The inner checksum of a tunnel, and one of a protocol without a known place for it.
    for next_header in [UDP, 136] {
        let packet = ipv6(&Spec::udp(0), next_header, &noise(61, 3));
        let header = TunHeader {
            flags: TunHeader::NEEDS_CSUM,
            csum_start: 60.into(),
            csum_offset: 6.into(),
            ..TunHeader::default()
        };
        let mut expected = packet.clone();
        complete_at(&mut expected, 60, 6);
        assert_eq!(split(&header, &packet, MTU), Ok((vec![expected], false)));
    }
}

#[test]
fn segment_longer_than_the_mtu_is_too_big() {
    let spec = Spec::tcp(5_000);
    let fits = split(&spec.offload(1_268), &spec.build(), MTU).unwrap().0;
    assert_eq!(fits[0].len(), usize::from(MTU));
    let refused = |spec: &Spec, size| split(&spec.offload(size), &spec.build(), MTU).unwrap_err();
    assert_eq!(refused(&spec, 1_269), DropReason::TunTooBig);
    let single = Spec::udp(1_293).build();
    let error = split(&TunHeader::default(), &single, MTU).unwrap_err();
    assert_eq!(error, DropReason::TunTooBig);
    // The stated size is larger, but all there is fits.
    let small = Spec::udp(1_292);
    assert_eq!(
        split(&small.offload(9_000), &small.build(), MTU)
            .unwrap()
            .0
            .len(),
        1
    );
}

#[test]
fn segments_can_be_written_again_and_not_into_too_little_room() {
    let spec = Spec::udp(2_100);
    let packet = spec.build();
    let mut splitter = Splitter::new(&spec.offload(1_000), &packet, MTU).unwrap();
    let (mut out, mut again) = ([0; 2_000], [0; 2_000]);
    assert_eq!((splitter.segment_len(), splitter.remaining()), (1_048, 3));
    assert_eq!(splitter.write_next(&mut out[..1_047]), None);
    assert_eq!(splitter.write_next(&mut out), Some(1_048));
    let position = splitter.position();
    splitter.write_next(&mut out);
    splitter.seek(position);
    splitter.write_next(&mut again);
    assert_eq!(out, again);
    assert_eq!((splitter.remaining(), splitter.next_len()), (1, Some(148)));
    splitter.seek(100);
    assert_eq!((splitter.remaining(), splitter.next_len()), (0, None));
}

#[test]
fn every_contradiction_is_refused() {
    let (tcp, udp) = (Spec::tcp(3_000), Spec::udp(3_000));
    let check = |name: &str, spec: &Spec, header: TunHeader, packet: &[u8], wanted| {
        assert_eq!(
            split(&header, packet, MTU).err(),
            Some(wanted),
            "{name} {}",
            spec.protocol
        );
    };
    for spec in [&tcp, &udp] {
        let (good, packet) = (spec.offload(1_000), spec.build());
        let malformed = |name: &str, header, packet: &[u8]| {
            check(name, spec, header, packet, DropReason::TunMalformed);
        };
        let other = if spec.protocol == TCP { 5 } else { 4 };
        for (name, header) in [
            (
                "size 0",
                TunHeader {
                    gso_size: 0.into(),
                    ..good
                },
            ),
            (
                "headers past the end",
                TunHeader {
                    hdr_len: 60_000.into(),
                    ..good
                },
            ),
            ("no partial checksum", TunHeader { flags: 0, ..good }),
            ("unknown flag", TunHeader { flags: 5, ..good }),
            (
                "checksum before the header",
                TunHeader {
                    csum_start: 39.into(),
                    ..good
                },
            ),
            (
                "checksum within the header",
                TunHeader {
                    csum_start: 44.into(),
                    ..good
                },
            ),
            (
                "checksum outside",
                TunHeader {
                    csum_start: 60_000.into(),
                    ..good
                },
            ),
            (
                "checksum elsewhere",
                TunHeader {
                    csum_offset: 8.into(),
                    ..good
                },
            ),
            (
                "IPv4",
                TunHeader {
                    gso_type: TunHeader::GSO_TCPV4,
                    ..good
                },
            ),
            (
                "other protocol",
                TunHeader {
                    gso_type: other,
                    ..good
                },
            ),
            (
                "old UDP fragmentation",
                TunHeader {
                    gso_type: 3,
                    ..good
                },
            ),
            (
                "unknown type",
                TunHeader {
                    gso_type: 9,
                    ..good
                },
            ),
            (
                "ECN without TCP",
                TunHeader {
                    gso_type: 0x85,
                    ..good
                },
            ),
            (
                "ECN without segmentation",
                TunHeader {
                    gso_type: 0x80,
                    ..good
                },
            ),
        ] {
            malformed(name, header, &packet);
        }
        let changed = |at: usize, to: u8| {
            let mut packet = packet.clone();
            packet[at] = to;
            packet
        };
        malformed("shorter than stated", good, &packet[..packet.len() - 1]);
        malformed("longer than stated", good, &[&packet[..], &[0]].concat());
        malformed("fragment", good, &changed(6, 44));
        malformed("extension headers past the end", good, &changed(6, 60)[..]);
        malformed("empty", good, &[]);
        let bare = Spec {
            payload: vec![],
            ..spec.clone()
        };
        malformed("no payload", good, &bare.build());
        check(
            "IPv4",
            spec,
            good,
            &changed(0, 0x45),
            DropReason::TunNotIpv6,
        );
        let cut = ipv6(spec, spec.protocol, &packet[40..47]);
        malformed(
            "no transport header",
            TunHeader {
                hdr_len: 0.into(),
                ..good
            },
            &cut,
        );
        for (start, offset) in [(39, 16), (0, 60), (40, 2_999 + 40), (u16::MAX, u16::MAX)] {
            let single = Spec {
                payload: vec![7; 500],
                ..spec.clone()
            }
            .build();
            let (csum_start, csum_offset) = (start.into(), offset.into());
            let header = TunHeader {
                gso_type: 0,
                csum_start,
                csum_offset,
                ..good
            };
            malformed("checksum of a single packet", header, &single);
        }
    }
    let (good, packet) = (tcp.offload(1_000), tcp.build());
    for (at, to) in [(52, 0x40), (53, 0x12), (53, 0x14)] {
        let mut packet = packet.clone();
        packet[at] = to;
        check(
            "data offset or flags",
            &tcp,
            good,
            &packet,
            DropReason::TunMalformed,
        );
    }
    let mut short = Spec {
        payload: vec![1; 4],
        options: vec![],
        ..tcp.clone()
    }
    .build();
    short[52] = 0xf0;
    let header = TunHeader {
        hdr_len: 60.into(),
        ..good
    };
    check(
        "data offset outside",
        &tcp,
        header,
        &short,
        DropReason::TunMalformed,
    );
    let mut length = udp.build();
    length[45] ^= 1;
    check(
        "UDP length",
        &udp,
        udp.offload(1_000),
        &length,
        DropReason::TunMalformed,
    );
}

#[test]
fn length_of_the_linear_part_is_only_a_hint() {
    let spec = Spec::tcp(2_000);
    let packet = spec.build();
    for hint in [0, 54, 2_072] {
        let header = TunHeader {
            hdr_len: hint.into(),
            ..spec.offload(1_000)
        };
        assert_eq!(split(&header, &packet, MTU).unwrap().0.len(), 2, "{hint}");
    }
}

#[test]
fn partial_icmpv6_travels_partial() {
    let mut packet = ipv6(&Spec::udp(0), ICMPV6, &noise(64, 5));
    packet[8..24].copy_from_slice(&address(7));
    let header = TunHeader {
        flags: TunHeader::NEEDS_CSUM,
        csum_start: 40.into(),
        csum_offset: 2.into(),
        ..TunHeader::default()
    };
    assert_eq!(split(&header, &packet, MTU), Ok((vec![packet], true)));
}
