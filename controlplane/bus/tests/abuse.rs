//! Access control, and bounded cost of hostile peers.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test; its numbers are small"
)]

mod common;

use std::time::Duration;

use common::{CLEAN, Net, Random, key, message, payload};
use hyphae_bus::topics::{ADMIN_TOPIC, DefaultAction, TopicClass, TopicConfig, Topics};
use hyphae_bus::{AbortReason, DeliveryKey, MessageId, MessageState, Refuse, Rejection, Topic};
use hyphae_time::Nanos;
use hyphae_wire::message::{AckRange, Body, ChunkLayout, Packet, Status, parse};

use hyphae_wire::{Prefix, PublicKey};

const MINUTE: Duration = Duration::from_secs(60);

fn unknown_peer(n: u64) -> PublicKey {
    let mut key = [0xee; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    PublicKey(key)
}

fn packet(id: u64, sequence: u64, body: Body<'_>) -> Vec<u8> {
    let packet = Packet {
        id: id.to_be_bytes(),
        reply: false,
        sequence,
        body,
    };
    packet.encode()
}

fn opening(id: u64, len: usize, topic: &[u8], data: &[u8], digest: &[u8; 32]) -> Vec<u8> {
    let layout = ChunkLayout {
        len,
        first: data.len(),
        chunk: 1300,
    };
    packet(
        id,
        id,
        Body::Open {
            layout,
            digest,
            topic,
            failure: None,
            data,
        },
    )
}

#[test]
fn partial_messages_use_bounded_memory_and_are_evicted() {
    let mut net = Net::new(2, 1, CLEAN);
    let max = 4096;
    for n in 0..100_000 {
        let bytes = opening(n, 60 << 20, b"", &[0; 1200], &[0; 32]);
        net.inject(unknown_peer(n % 1000), 1, &bytes);
    }
    let stats = net.nodes[1].bus.stats();
    assert!(
        stats.incoming <= max && stats.incoming_bytes <= 512 << 20,
        "{stats:?}"
    );
    // A short message fits the budget; a long one evicts idle messages.
    net.run_for(Duration::from_secs(3));
    let before = net.nodes[1].bus.stats();
    let short = net.push(0, message(key(2), "", "x"));
    let long = net.push(0, message(key(2), "", payload(40 << 20, 1)));
    net.run_for(Duration::from_secs(20));
    assert_eq!(net.state(0, short), MessageState::Received);
    assert_eq!(net.state(0, long), MessageState::Received);
    let after = net.nodes[1].bus.stats();
    let evicted = u64::try_from(before.incoming - after.incoming).unwrap();
    assert!(evicted > 0);
    let counted = (
        after.expired - before.expired,
        after.displaced - before.displaced,
    );
    assert_eq!(counted, (evicted, 0));
    net.run_for(MINUTE);
    let stats = net.nodes[1].bus.stats();
    assert_eq!((stats.incoming, stats.incoming_bytes), (0, 0));
}

/// Four keys fill the table with partial messages.
fn filled(net: &mut Net) {
    for n in 0..4 * 16_384 {
        net.inject(
            unknown_peer(n % 4),
            1,
            &opening(n, 3000, b"", &[0; 1200], &[0; 32]),
        );
    }
    assert_eq!(net.nodes[1].bus.stats().incoming, 65_536);
}

#[test]
fn a_table_filled_by_few_keys_evicts_at_once_for_others() {
    let mut net = Net::new(2, 1, CLEAN);
    filled(&mut net);
    let ids: Vec<_> = (0..50)
        .map(|n| net.push(0, message(key(2), "", payload(5000, n))))
        .collect();
    // Less than the idle time after which any message is evicted.
    net.run_for(Duration::from_secs(1));
    for id in ids {
        assert_eq!(net.state(0, id), MessageState::Received);
    }
    let stats = net.nodes[1].bus.stats();
    assert!(
        stats.incoming > 65_000 && (1..=60).contains(&stats.displaced),
        "one for one: {stats:?}"
    );
    // The four keys get no further share.
    for n in 0..1000 {
        let bytes = opening(1 << 40 | n, 3000, b"", &[0; 1200], &[0; 32]);
        net.inject(unknown_peer(n % 4), 1, &bytes);
    }
    assert!(net.nodes[1].bus.stats().incoming <= 65_536);
}

#[test]
fn the_cost_of_an_opening_is_independent_of_the_fill_level() {
    let mut net = Net::new(2, 1, CLEAN);
    filled(&mut net);
    let began = std::time::Instant::now();
    let count = 50_000;
    for n in 0..count {
        net.inject(
            unknown_peer(4),
            1,
            &opening(n, 3000, b"", &[0; 1200], &[0; 32]),
        );
    }
    for n in 0..count {
        let abort = packet(n, n, Body::Abort);
        net.inject(unknown_peer(5), 1, &abort);
    }
    // A scan of the table per opening would take 6 thousand million steps.
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(30),
        "{took:?} for {count} openings"
    );
}

#[test]
fn a_dropped_message_frees_exactly_its_share_of_the_budget() {
    let mut net = Net::new(2, 12, CLEAN);
    let used = |net: &Net| {
        let stats = net.nodes[1].bus.stats();
        (stats.incoming, stats.incoming_bytes)
    };
    for id in 0..3 {
        let bytes = opening(id, 3000, b"", &[0; 1200], &[0; 32]);
        net.inject(unknown_peer(0), 1, &bytes);
    }
    let (_, all) = used(&net);
    net.inject(unknown_peer(0), 1, &packet(1, 9, Body::Abort));
    assert_eq!(used(&net), (2, all / 3 * 2));
}

#[test]
fn forbidden_topics_use_no_memory() {
    let mut net = Net::new(2, 2, CLEAN);
    net.set_topics(
        1,
        Topics {
            default_action: DefaultAction::Reject,
            ..Topics::default()
        },
    );
    for n in 0..10_000u64 {
        let topic = n.to_be_bytes();
        net.inject(unknown_peer(n), 1, &opening(n, 0, &topic, &[], &[0; 32]));
    }
    let stats = net.nodes[1].bus.stats();
    let forbidden = (Rejection::Forbidden, TopicClass::Unlisted);
    assert_eq!(stats.rejected[&forbidden], 10_000);
    assert_eq!((stats.incoming, stats.completed), (0, 0));
    let id = net.push(0, message(key(2), "", "x"));
    net.run_for(MINUTE);
    let reason = net.nodes[0].bus.info(id).unwrap().reason;
    assert_eq!(reason, Some(AbortReason::Rejected(Rejection::Forbidden)));
}

#[test]
fn a_topic_accepts_its_subnets_and_keys() {
    let listed = |config: TopicConfig| Topics {
        default_action: DefaultAction::Accept,
        topics: [("t".parse::<Topic>().unwrap(), config)].into(),
    };
    let subnet = Prefix::new(key(1).address(), 64);
    let other = Prefix::new(key(3).address(), 64);
    let config = |subnets: &[Prefix], pubkeys: &[PublicKey]| TopicConfig {
        subnets: subnets.to_vec(),
        pubkeys: pubkeys.to_vec(),
        ..TopicConfig::default()
    };
    for (topics, taken) in [
        (Topics::default(), true),
        (listed(config(&[], &[])), false),
        (listed(config(&[subnet], &[])), true),
        (listed(config(&[other], &[])), false),
        (listed(config(&[other, subnet], &[])), true),
        (listed(config(&[], &[key(1)])), true),
        (listed(config(&[], &[key(3)])), false),
        (listed(config(&[other], &[key(1)])), true),
        (listed(config(&[subnet], &[key(3)])), true),
    ] {
        let mut net = Net::new(2, 3, CLEAN);
        net.set_topics(1, topics.clone());
        let id = net.push(0, message(key(2), "t", payload(5000, 3)));
        net.run_for(MINUTE);
        let received = net.state(0, id) == MessageState::Received;
        assert_eq!(received, taken, "{topics:?}");
        assert_eq!(net.nodes[1].inbox.len(), usize::from(taken));
    }
}

#[test]
fn administration_is_always_accepted_up_to_1_mib() {
    let mut net = Net::new(2, 4, CLEAN);
    net.set_topics(
        1,
        Topics {
            default_action: DefaultAction::Reject,
            ..Topics::default()
        },
    );
    let call = net.push(0, message(key(2), ADMIN_TOPIC, "{}"));
    let long = net.push(0, message(key(2), ADMIN_TOPIC, payload(2 << 20, 4)));
    net.run_for(MINUTE);
    assert_eq!(net.state(0, call), MessageState::Received);
    assert_eq!(net.state(0, long), MessageState::Aborted);
}

#[test]
fn topics_round_trip_through_toml() {
    let mut topics = Topics::default();
    let mut random = Random(5);
    for len in 0..=255u16 {
        let bytes: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[0]).collect();
        let config = TopicConfig {
            subnets: vec![key(1).address().subnet()],
            pubkeys: vec![key(2)],
            forward_socket: Some("/run/a b\"c.sock".into()),
            ..TopicConfig::default()
        };
        topics.topics.insert(Topic::new(bytes).unwrap(), config);
    }
    for name in [
        "", " ", "plain", "hex:", "hex:00", "a.b", "\"", "ü", "\n", "\u{7f}",
    ] {
        let topic = Topic::new(name.as_bytes().to_vec()).unwrap();
        topics.topics.insert(topic, TopicConfig::default());
    }
    let text = toml::to_string(&topics).unwrap();
    assert_eq!(toml::from_str::<Topics>(&text).unwrap(), topics);
    assert!(Topic::new(vec![0; 256]).is_err());
    for bad in ["hex:0", "hex:zz", "hex:+1"] {
        assert!(bad.parse::<Topic>().is_err(), "{bad}");
    }
    assert!(toml::from_str::<Topics>("[topics.a]\nsubnet = []").is_err());
}

#[test]
fn a_peer_cannot_affect_messages_of_another() {
    let mut net = Net::new(3, 6, CLEAN);
    let whole = payload(300_000, 6);
    let id = net.push(0, message(key(2), "", whole.clone()));
    net.run_for(Duration::from_millis(18));
    assert_eq!(net.nodes[1].bus.stats().incoming, 1);
    let number = u64::from_be_bytes(id.0);
    // Another peer aborts, overwrites, acknowledges and reads the same id, at both ends.
    let ranges = [AckRange {
        first: 0.into(),
        end: u32::MAX.into(),
    }];
    let last = net.nodes[0].last_packet;
    for sequence in last - 300..last + 10 {
        for body in [
            Body::Abort,
            Body::Query,
            Body::Read { ids: &[id.0] },
            Body::BatchAck {
                delay_us: 0,
                stored: &ranges,
                received: &ranges,
            },
            Body::Data {
                number: 3,
                data: &[9; 1316],
            },
            Body::Ack {
                status: Status::Received,
                number: u32::MAX,
                ranges: &ranges,
            },
            Body::Ack {
                status: Status::Forbidden,
                number: 0,
                ranges: &[],
            },
        ] {
            let bytes = packet(number, sequence, body);
            net.inject(key(3), 1, &bytes);
            net.inject(key(3), 0, &bytes);
        }
    }
    let fake = blake3_of(b"fake");
    net.inject(key(3), 1, &opening(number, 4, b"", b"fake", &fake));
    net.run_for(MINUTE);
    assert_eq!(net.state(0, id), MessageState::Received);
    let inbox = &net.nodes[1].inbox;
    let from = |n: u8| inbox.iter().find(|i| i.source_key == key(n)).unwrap();
    assert_eq!(from(1).payload, whole);
    assert_eq!(from(3).payload, "fake");
    assert_eq!(inbox.len(), 2);
}

fn blake3_of(bytes: &[u8]) -> [u8; 32] {
    // Digest from a packet of the engine.
    let mut net = Net::new(1, 0, CLEAN);
    net.push(0, message(key(2), "", bytes.to_vec()));
    let now = net.now;
    let bus = &mut net.nodes[0].bus;
    bus.session_up(now, key(2).address(), key(2), 1340);
    let transmit = bus.poll_transmit(now).unwrap();
    match parse(&transmit.payload).unwrap().body {
        Body::Open { digest, .. } => *digest,
        Body::Data { .. }
        | Body::Ack { .. }
        | Body::Query
        | Body::Read { .. }
        | Body::ReadAck
        | Body::BatchAck { .. }
        | Body::Abort => panic!("a short message is one opening packet"),
    }
}

#[test]
fn a_wrong_digest_is_rejected_permanently() {
    let mut net = Net::new(2, 7, CLEAN);
    let bytes = opening(1, 4, b"", b"data", &[0; 32]);
    for _ in 0..3 {
        net.inject(key(1), 1, &bytes);
    }
    assert!(net.nodes[1].inbox.is_empty());
    let stats = net.nodes[1].bus.stats();
    let malformed = (Rejection::Malformed, TopicClass::Unlisted);
    assert_eq!((stats.rejected[&malformed], stats.incoming), (1, 0));
    let mut forged = message(key(2), "", "x");
    forged.digest = Some([1; 32]);
    let id = net.push(0, forged);
    net.run_for(MINUTE);
    assert_eq!(net.state(0, id), MessageState::Aborted);
}

#[test]
fn a_hostile_receiver_cannot_corrupt_its_sender() {
    let mut random = Random(8);
    let mut net = Net::new(2, 8, CLEAN);
    // Answers of the other node are random.
    net.nodes[1].partitioned = true;
    let now = net.now;
    net.nodes[0]
        .bus
        .session_up(now, key(2).address(), key(2), 1340);
    let mut ids = Vec::new();
    for n in 0..50 {
        ids.push(net.push(0, message(key(2), "", payload(n * 3000 + 2000, 8))));
        net.nodes[0]
            .bus
            .session_up(net.now, key(2).address(), key(2), 1340);
        net.drain(0);
    }
    let last = net.nodes[0].last_packet;
    for _ in 0..20_000 {
        let id = ids[random.below(50) as usize];
        let mut ends: Vec<u32> = (0..2 * random.below(4))
            .map(|_| random.below(300) as u32)
            .collect();
        ends.sort_unstable();
        let ranges: Vec<AckRange> = ends
            .chunks_exact(2)
            .map(|ends| AckRange {
                first: ends[0].into(),
                end: (ends[1] + 1).into(),
            })
            .collect();
        let status = [
            Status::Progress,
            Status::Unknown,
            Status::Full,
            Status::Resume,
        ];
        let number = random.next() as u32 >> random.below(32);
        let body = if !ranges.is_empty() && random.chance(20) {
            // No message is one packet long.
            Body::BatchAck {
                delay_us: number,
                stored: &ranges,
                received: &ranges,
            }
        } else {
            Body::Ack {
                status: status[random.below(4) as usize],
                number,
                ranges: &ranges,
            }
        };
        let sequence = last - 300 + random.below(500);
        let bytes = packet(u64::from_be_bytes(id.0), sequence, body);
        net.inject(key(2), 0, &bytes);
        if random.chance(5) {
            net.run_for(Duration::from_millis(random.below(200)));
        }
    }
    net.run_for(MINUTE * 6);
    for id in ids {
        assert_eq!(net.state(0, id), MessageState::Aborted);
    }
    let stats = net.nodes[0].bus.stats();
    assert_eq!((stats.outgoing, stats.outgoing_bytes), (0, 0));
}

#[test]
fn malformed_packets_are_counted_without_effect() {
    let mut random = Random(9);
    let mut net = Net::new(2, 9, CLEAN);
    for _ in 0..50_000 {
        let len = random.below(120) as usize;
        let mut bytes = payload(len, random.next());
        if let Some(kind) = bytes.first_mut() {
            *kind %= 10;
        }
        net.inject(unknown_peer(random.below(20)), 1, &bytes);
    }
    let stats = net.nodes[1].bus.stats();
    // Bundles count per packet.
    assert!(stats.packets_received >= 50_000, "{stats:?}");
    assert!(
        stats.malformed > 20_000 && stats.incoming < 100,
        "{stats:?}"
    );
    let id = net.push(0, message(key(2), "", "x"));
    net.run_for(MINUTE);
    assert_eq!(net.state(0, id), MessageState::Received);
}

#[test]
fn one_peer_cannot_exhaust_the_budget() {
    let mut net = Net::new(2, 10, CLEAN);
    for n in 0..20_000 {
        let bytes = opening(n, 5000, b"", &[0; 1200], &[0; 32]);
        net.inject(unknown_peer(0), 1, &bytes);
    }
    assert_eq!(net.nodes[1].bus.stats().incoming, 16_384);
    let id = net.push(0, message(key(2), "", payload(1 << 20, 10)));
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.state(0, id), MessageState::Received);
}

#[test]
fn decisions_about_unknown_messages_are_ignored() {
    let mut net = Net::new(2, 11, CLEAN);
    let key = DeliveryKey {
        peer: key(1),
        id: MessageId([1; 8]),
        reply: false,
    };
    let bus = &mut net.nodes[1].bus;
    let before = bus.stats();
    bus.accepted(Nanos(5), key);
    bus.refused(Nanos(5), key, Refuse::Full);
    bus.refused(Nanos(5), key, Refuse::Rejected);
    assert_eq!(bus.stats(), before);
    assert_eq!(bus.poll_transmit(Nanos(5)), None);
}
