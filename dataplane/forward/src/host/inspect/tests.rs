//! Reading of inner packets: what is accepted, and which packets share a flow hash.

use proptest::prelude::*;

use super::*;
use crate::host::testing::{ICMPV6, Spec, TCP, address, ipv6};

fn hash(packet: &[u8]) -> u16 {
    inspect(packet).unwrap().flow_hash
}

#[test]
fn fields_are_those_of_the_header() {
    let inner = inspect(&Spec::tcp(3).build()).unwrap();
    assert_eq!(inner.source.0, address(1));
    assert_eq!(inner.destination.0, address(2));
    assert_eq!(inner.hop_limit, 61);
}

#[test]
fn anything_but_exactly_one_ipv6_packet_is_refused() {
    let packet = Spec::udp(9).build();
    for len in 0..packet.len() {
        assert_eq!(inspect(&packet[..len]), Err(NotIpv6::Length), "{len}");
    }
    let mut longer = packet.clone();
    longer.push(0);
    assert_eq!(inspect(&longer), Err(NotIpv6::Length));
    let mut ipv4 = packet;
    ipv4[0] = 0x45;
    assert_eq!(inspect(&ipv4), Err(NotIpv6::Version));
    assert_eq!(inspect(&ipv4[..1]), Err(NotIpv6::Version));
}

#[test]
fn drop_reasons_tell_the_host_from_the_overlay() {
    assert_eq!(NotIpv6::Version.host_reason(), DropReason::TunNotIpv6);
    assert_eq!(NotIpv6::Length.host_reason(), DropReason::TunMalformed);
    assert_eq!(
        NotIpv6::Version.overlay_reason(),
        DropReason::InnerMalformed
    );
}

#[test]
fn flow_hash_is_that_of_the_five_tuple_alone() {
    let base = Spec::tcp(10);
    let same = Spec {
        class_label: 0,
        hop_limit: 1,
        sequence: 5,
        window: 6,
        options: vec![],
        payload: vec![1],
        ..base.clone()
    };
    assert_eq!(hash(&base.build()), hash(&same.build()));
    assert_eq!(hash(&base.build()), hash(&base.build_extended(60)));
    assert_eq!(hash(&base.build()), hash(&base.build_extended(0)));
    for other in [
        Spec {
            protocol: 17,
            options: vec![],
            ..base.clone()
        },
        Spec {
            ports: (443, 40_000),
            ..base.clone()
        },
        Spec {
            source: address(2),
            destination: address(1),
            ..base.clone()
        },
        Spec {
            destination: address(3),
            ..base.clone()
        },
    ] {
        assert_ne!(hash(&base.build()), hash(&other.build()), "{other:?}");
    }
}

#[test]
fn fragments_of_one_packet_share_a_hash() {
    let spec = Spec::udp(0);
    let fragment = |offset: u8, payload: &[u8]| {
        let header = [&[17, 0, 0, offset, 0, 0, 0, 9][..], payload].concat();
        hash(&ipv6(&spec, 44, &header))
    };
    assert_eq!(fragment(1, &[1, 2, 3, 4, 5]), fragment(8, &[9; 40]));
    assert_eq!(fragment(1, &[]), fragment(8, &[9; 40]));
    let relabelled = ipv6(
        &Spec {
            class_label: 1,
            ..spec.clone()
        },
        44,
        &[17, 0, 0, 0, 0, 0, 0, 9],
    );
    assert_ne!(fragment(8, &[]), hash(&relabelled));
}

#[test]
fn extension_headers_without_end_are_not_followed_for_ever() {
    let spec = Spec::tcp(0);
    let endless = ipv6(&spec, 60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(8_000));
    let outside = ipv6(&spec, 60, &[TCP, 255, 0, 0, 0, 0, 0, 0]);
    let empty = ipv6(&spec, 60, &[]);
    let short = ipv6(&spec, TCP, &[1, 2, 3]);
    let unknown = ipv6(&spec, ICMPV6, &[128, 0, 1, 2, 3, 4, 5, 6]);
    let hashes = [endless, outside, empty, short, unknown].map(|packet| hash(&packet));
    assert_eq!(hashes, [hashes[0]; 5], "addresses and label are the same");
    let behind = |extensions: usize| {
        let mut payload = [60, 0, 0, 0, 0, 0, 0, 0].repeat(extensions);
        payload[8 * (extensions - 1)] = TCP;
        payload.extend(&spec.build()[40..]);
        hash(&ipv6(&spec, 60, &payload))
    };
    assert_eq!(behind(8), hash(&spec.build()));
    assert_eq!(behind(9), hashes[0]);
}

/// Flows that differ in few bits spread evenly over any number of next hops, by any bits of the
/// hash.
#[test]
fn similar_flows_spread_over_next_hops() {
    let similar: [fn(u16) -> Spec; 3] = [
        |n| Spec {
            ports: (32_768 + n, 443),
            ..Spec::tcp(1)
        },
        |n| Spec {
            ports: (443, n),
            source: address(9),
            ..Spec::udp(1)
        },
        |n| {
            let mut spec = Spec::tcp(1);
            spec.source[6..8].copy_from_slice(&n.to_be_bytes());
            spec
        },
    ];
    for spec in similar {
        let hashes: Vec<_> = (0..8_000).map(|n| hash(&spec(n).build())).collect();
        let mut seen = hashes.clone();
        seen.sort_unstable();
        seen.dedup();
        // 65,536 values hold 7,528 different ones of 8,000 drawn at random.
        assert!(
            (7_400..7_650).contains(&seen.len()),
            "{} different",
            seen.len()
        );
        for (ways, choose) in (2..=8).flat_map(|ways: u16| {
            let choices: [Box<dyn Fn(u16) -> u16>; 3] = [
                Box::new(move |hash| hash % ways),
                Box::new(move |hash| (hash >> 8) % ways),
                Box::new(move |hash| {
                    u16::try_from((u32::from(hash) * u32::from(ways)) >> 16).unwrap()
                }),
            ];
            choices.map(|choice| (ways, choice))
        }) {
            let mut counts = vec![0_i64; usize::from(ways)];
            hashes
                .iter()
                .for_each(|hash| counts[usize::from(choose(*hash))] += 1);
            let fair = 8_000 / i64::from(ways);
            let fits = counts
                .iter()
                .all(|count| (count - fair).abs() < fair / 6 + 40);
            assert!(fits, "{ways} ways: {counts:?}");
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), fix: bool) {
        if fix && bytes.len() >= 40 {
            bytes[0] = 0x60 | bytes[0] & 0xf;
            let len = u16::try_from(bytes.len() - 40).unwrap();
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes[6] = [0, 6, 17, 43, 44, 51, 58, 60, 132][usize::from(bytes[6]) % 9];
            prop_assert!(inspect(&bytes).is_ok());
        }
        let _ = inspect(&bytes);
    }
}
