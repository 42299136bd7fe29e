//! Packets of the message bus, alone and in a row.

use std::collections::BTreeSet;

use hyphae_bus::topics::Topics;
use hyphae_bus::{Bus, Config, Destination, Event, MessageId, Outgoing, Topic};
use hyphae_time::Nanos;
use hyphae_wire::message::{Body, packets, parse};

use hyphae_wire::PublicKey;

use crate::take;

/// A packet: what is read is written back as the same bytes, but for those that readers ignore.
pub fn message(data: &[u8]) {
    let Some(packet) = parse(data) else {
        return;
    };
    let again = packet.encode();
    assert_eq!(again.len(), data.len());
    assert_eq!(parse(&again).as_ref(), Some(&packet));
    if let Body::Open { layout, .. } = packet.body {
        let last = layout.count() - 1;
        assert_eq!(layout.range(last).map(|range| range.end), Some(layout.len));
        assert_eq!(layout.range(last + 1), None);
    }
}

/// What ways carry.
const CARRIES: [usize; 4] = [1280, 1340, 4000, 9000];

/// Packets of three peers, one after the other (peer and what the way to it carries u8, length u16, bytes), to an
/// engine that also sends: budgets hold, nothing is delivered twice, and no packet is larger than its way carries.
pub fn bus(mut data: &[u8]) {
    let key = |n: u8| PublicKey([n; 32]);
    let mut config = Config::new(key(9));
    config.mtu = CARRIES[3];
    config.incoming_max = 4;
    config.incoming_bytes_max = 1 << 20;
    config.incoming_per_peer_max = 2;
    config.completed_max = 1024;
    config.control_max = 16;
    let mut bus = Bus::new(config, Topics::default(), [7; 32]);
    let mut now = Nanos(1);
    let mut ids = Vec::new();
    for peer in [1, 2] {
        let pushed = bus.push(
            now,
            Outgoing {
                destination: Destination::Key(key(peer)),
                topic: Topic::default(),
                payload: vec![0; 9000].into(),
                digest: Some([0; 32]),
                try_for: None,
                reply_within: Some(std::time::Duration::from_secs(9)),
                failure: None,
            },
        );
        ids.extend(pushed);
        bus.session_up(now, key(peer).address(), key(peer), CARRIES[3]);
    }
    let mut carries = [CARRIES[3]; 3];
    let mut delivered = BTreeSet::new();
    let mut step = 0u64;
    while let Some([peer, low, high]) = take(&mut data) {
        let len = usize::from(u16::from_le_bytes([low, high])).min(data.len());
        let (packet, rest) = data.split_at(len);
        data = rest;
        step += 1;
        now = Nanos(now.0 + step * 1_000_000);
        let way = usize::from(peer % 3);
        carries[way] = CARRIES[usize::from(peer >> 6)];
        let peer = key(peer % 3 + 1);
        bus.path_mtu(peer.address(), carries[way]);
        // A packet about id zero is about a message of this node.
        let mut packet = packet.to_vec();
        if let (Some(at), Some(MessageId(id))) = (packet.get_mut(16..24), ids.first())
            && at.iter().all(|byte| *byte == 0)
        {
            at.copy_from_slice(id);
        }
        bus.handle_packet(now, peer, peer.address(), &packet);
        bus.handle_timeout(now);
        while let Some(event) = bus.poll_event() {
            if let Event::Deliver(inbound) = event {
                assert!(delivered.insert(inbound.key()), "delivered twice");
                bus.accepted(now, inbound.key());
            }
        }
        let stats = bus.stats();
        assert!(stats.incoming <= 4 && stats.incoming_bytes <= 1 << 20);
        while let Some(transmit) = bus.poll_transmit(now) {
            let way = (0..3).find(|n| key(*n + 1).address() == transmit.address);
            let carries = way.map(|way| carries[usize::from(way)]);
            assert!(Some(transmit.payload.len()) <= carries);
            for packet in packets(&transmit.payload) {
                assert!(packet.and_then(parse).is_some());
            }
        }
    }
    // Deadlines pass, and nothing is left.
    for _ in 0..10_000 {
        let Some(at) = bus.poll_timeout() else {
            break;
        };
        bus.handle_timeout(at);
        while bus.poll_event().is_some() {}
        while bus.poll_transmit(at).is_some() {}
    }
    let stats = bus.stats();
    assert_eq!(
        (stats.incoming, stats.outgoing, bus.poll_timeout()),
        (0, 0, None)
    );
}
