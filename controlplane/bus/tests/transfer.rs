//! Messages over a simulated network: complete, exactly once, in time. Access control and hostile peers are covered in
//! `abuse.rs`, replies in `replies.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test; its numbers are small"
)]

mod common;

use std::time::Duration;

use common::{CLEAN, Link, Net, ROUGH, key, message, payload};
use hyphae_bus::{AbortReason, Destination, MessageState, PushError};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_short_message_takes_one_packet_and_one_round_trip() {
    let mut net = Net::new(2, 1, CLEAN);
    // The first message establishes the session.
    net.push(0, message(key(2), "", "hello"));
    net.run_for(MINUTE);
    let (before, start) = (net.packets, net.now);
    let id = net.push(0, message(key(2), "topic", payload(1200, 1)));
    let took = net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
    assert_eq!((net.packets - before, took), (2, CLEAN.delay * 2));
    assert_eq!(net.nodes[1].inbox[1].payload, payload(1200, 1));
    // A hundred in sequence: a hundred round trips without timers in between.
    for n in 0..100 {
        let id = net.push(0, message(key(2), "", payload(n, 2)));
        net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
    }
    assert_eq!(net.now.since(start), CLEAN.delay * 2 * 101);
    assert_eq!(net.nodes[0].bus.stats().retransmissions, 0);
}

#[test]
fn every_size_class_is_delivered_completely() {
    let mut net = Net::new(2, 2, CLEAN);
    // More than two chunks for any topic: covers every remainder.
    let sizes: Vec<usize> = (0..4200).collect();
    for size in &sizes {
        net.push(0, message(key(2), "t", payload(*size, *size as u64)));
    }
    let count = sizes.len();
    net.run_while(MINUTE, |net| net.nodes[0].finished.len() < count);
    net.check_once();
    let mut inbox = std::mem::take(&mut net.nodes[1].inbox);
    inbox.sort_by_key(|inbound| inbound.payload.len());
    for (inbound, size) in inbox.iter().zip(&sizes) {
        assert_eq!(inbound.payload, payload(*size, *size as u64));
        assert_eq!(inbound.topic.as_bytes(), b"t");
    }
    assert_eq!(inbox.len(), count);
}

#[test]
fn packets_follow_the_path_mtu() {
    for (seed, link) in [(31, CLEAN), (32, ROUGH)] {
        let jumbo = |config: &mut hyphae_bus::Config| config.mtu = 8848;
        let mut net = Net::with(2, seed, link, jumbo);
        net.push(0, message(key(2), "", payload(400_000, seed)));
        net.run_while(MINUTE, |net| net.nodes[0].finished.is_empty());
        let packets = net.nodes[0].bus.stats().packets_sent;
        assert!(packets > 40 && packets < 200, "{packets} packets");

        // During long, short and single messages, the path MTU decreases, increases, and decreases again.
        let mut sizes: Vec<usize> = (0..40).map(|n| n * 997).collect();
        sizes.extend([1_000_000, 8784, 8785, 1216, 1217]);
        for size in &sizes {
            net.push(0, message(key(2), "", payload(*size, *size as u64)));
        }
        for mtu in [3000, 9000, 1280] {
            let more = net.nodes[0].finished.len() + 3;
            net.run_while(MINUTE, |net| net.nodes[0].finished.len() < more);
            net.path_mtu = mtu;
            let address = key(2).address();
            if mtu > 3000 {
                net.nodes[0].bus.path_mtu(address, mtu);
            }
            net.push(0, message(key(2), "", payload(300_000, 300_000)));
            sizes.push(300_000);
        }
        sizes.push(400_000);
        net.run_while(MINUTE * 5, |net| net.nodes[0].finished.len() < sizes.len());
        net.check_once();
        let came = |inbox: &[hyphae_bus::Inbound]| -> Vec<usize> {
            let mut came: Vec<usize> = inbox.iter().map(|inbound| inbound.payload.len()).collect();
            came.sort_unstable();
            came
        };
        sizes.sort_unstable();
        assert_eq!(came(&net.nodes[1].inbox), sizes);
        for inbound in &net.nodes[1].inbox {
            let len = inbound.payload.len();
            let seed = if len == 400_000 { seed } else { len as u64 };
            assert_eq!(inbound.payload, payload(len, seed));
        }
        let stats = net.nodes[1].bus.stats();
        assert_eq!((stats.malformed, stats.rejected.len()), (0, 0));
    }
}

#[test]
fn short_messages_are_acknowledged_in_batches() {
    let mut net = Net::new(2, 21, CLEAN);
    for n in 0..5000 {
        net.push(0, message(key(2), "", payload(100, n)));
    }
    net.run_while(MINUTE, |net| net.nodes[0].finished.len() < 5000);
    let answers = net.nodes[1].bus.stats().packets_sent;
    assert!(answers < 1000, "{answers} packets answer 5000 messages");
    let before = net.nodes[1].bus.stats().packets_sent;
    while net.nodes[1].inbox.len() > 1000 {
        let now = net.now;
        let read = net.nodes[1].inbox.pop().unwrap();
        net.nodes[1].bus.mark_read(now, read.key());
    }
    net.drain(1);
    net.run_for(MINUTE);
    assert_eq!(net.nodes[0].bus.stats().read, 4000);
    let receipts = net.nodes[1].bus.stats().packets_sent - before;
    assert_eq!(receipts, 4000u64.div_ceil(128));
    assert_eq!(net.nodes[0].bus.stats().retransmissions, 0);
}

#[test]
fn late_decisions_out_of_order_cause_no_retransmissions() {
    for (seed, slow) in [(31, 2), (32, 8), (33, 100), (34, 3000)] {
        let mut net = Net::new(2, seed, CLEAN);
        net.nodes[1].slow = Duration::from_millis(slow);
        // The first message establishes the session.
        net.push(0, message(key(2), "", "hello"));
        net.run_for(MINUTE);
        for n in 0..3000 {
            net.push(0, message(key(2), "", payload(n as usize % 200, n)));
            if n % 10 == 0 {
                net.run_for(Duration::from_millis(1));
            }
        }
        net.push(0, message(key(2), "", payload(300_000, seed)));
        net.run_while(MINUTE, |net| net.nodes[0].finished.len() < 3002);
        net.check_once();
        let states = net.nodes[0].finished.values();
        assert!(
            states
                .into_iter()
                .all(|state| *state == MessageState::Received)
        );
        let again = net.nodes[0].bus.stats().retransmissions;
        assert_eq!(again, 0, "the store takes up to {slow} ms");
        assert_eq!(net.nodes[1].bus.stats().deferred, 0);
    }
}

#[test]
fn undecided_messages_bound_the_sender() {
    let mut net = Net::new(2, 35, CLEAN);
    net.nodes[1].slow = Duration::from_secs(5);
    for n in 0..20_000 {
        net.push(0, message(key(2), "", payload(50, n)));
    }
    net.run_while(MINUTE * 10, |net| net.nodes[0].finished.len() < 20_000);
    net.check_once();
    assert_eq!(net.nodes[1].inbox.len(), 20_000);
    let stats = net.nodes[1].bus.stats();
    assert_eq!((stats.deferred, stats.incoming), (0, 0));
}

#[test]
fn delivers_exactly_once_under_loss_duplication_and_reordering() {
    for seed in 0..40 {
        let mut net = Net::new(3, seed, ROUGH);
        let mut sent = 0;
        for n in 0..30u64 {
            let (from, to) = ((n % 3) as usize, ((n + 1) % 3) as u8 + 1);
            let size = net.random.below(if n == 0 { 400_000 } else { 8_000 }) as usize;
            net.push(from, message(key(to), "", payload(size, seed * 100 + n)));
            sent += 1;
        }
        let done = |net: &Net| net.nodes.iter().map(|n| n.finished.len()).sum::<usize>();
        net.run_while(MINUTE * 5, |net| done(net) < sent);
        net.check_once();
        let received: usize = net.nodes.iter().map(|node| node.inbox.len()).sum();
        assert_eq!(received, sent, "seed {seed}");
        for node in &net.nodes {
            assert!(
                node.finished.values().all(|s| *s == MessageState::Received),
                "seed {seed}"
            );
            let stats = node.bus.stats();
            assert_eq!((stats.outgoing, stats.outgoing_bytes), (0, 0));
            for inbound in &node.inbox {
                let same = (0..30)
                    .any(|n| inbound.payload == payload(inbound.payload.len(), seed * 100 + n));
                assert!(same, "seed {seed}: a payload is not one that was sent");
            }
        }
        net.run_for(MINUTE * 10);
        assert!(net.nodes.iter().all(|node| node.bus.stats().incoming == 0));
    }
}

#[test]
fn acknowledged_messages_survive_restarts_exactly_once() {
    for seed in 0..40 {
        let mut net = Net::new(2, 1000 + seed, ROUGH);
        let mut ids = Vec::new();
        for n in 0..20 {
            let size = net.random.below(60_000) as usize;
            ids.push(net.push(0, message(key(2), "", payload(size, n))));
        }
        for _ in 0..6 {
            let millis = net.random.below(120);
            net.run_for(Duration::from_millis(millis));
            net.restart(1);
        }
        net.run_while(MINUTE * 5, |net| net.nodes[0].finished.len() < ids.len());
        net.check_once();
        assert_eq!(net.nodes[1].inbox.len(), ids.len(), "seed {seed}");
        // A restarted sender has no state; earlier acknowledgements stay valid.
        let id = net.push(0, message(key(2), "", payload(100_000, 99)));
        net.run_for(Duration::from_millis(30));
        net.restart(0);
        net.run_for(MINUTE * 6);
        assert_eq!(net.nodes[0].bus.info(id), None);
        net.check_once();
        assert_eq!(net.nodes[1].bus.stats().incoming, 0, "seed {seed}");
    }
}

#[test]
fn the_longest_message_fills_the_window() {
    let mut net = Net::new(2, 3, CLEAN);
    let whole = payload(64 << 20, 3);
    let id = net.push(0, message(key(2), "", whole.clone()));
    let took = net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
    // One window of 1 MiB per round trip of 10 ms, after the slow start.
    assert!(took < Duration::from_millis(1200), "{took:?}");
    assert_eq!(net.nodes[1].inbox[0].payload, whole);
    let stats = net.nodes[0].bus.stats();
    assert_eq!((stats.retransmissions, stats.outgoing_bytes), (0, 0));
}

#[test]
fn a_bottleneck_is_filled_without_excessive_loss() {
    let link = Link {
        rate: Some((12_500_000, 100_000)),
        ..CLEAN
    };
    let mut net = Net::new(2, 4, link);
    let id = net.push(0, message(key(2), "", payload(16 << 20, 4)));
    let took = net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
    let least = Duration::from_secs_f64(f64::from(16 << 20) * 1.11 / 12_500_000.0);
    assert!(
        took < least * 5 / 4,
        "{took:?} where {least:?} is the least"
    );
    assert!(
        net.dropped * 20 < net.packets,
        "{} of {}",
        net.dropped,
        net.packets
    );
}

#[test]
fn a_path_with_1_percent_loss_keeps_half_its_throughput() {
    let took = |loss_percent| {
        let mut net = Net::new(
            2,
            4,
            Link {
                loss_percent,
                ..CLEAN
            },
        );
        let id = net.push(0, message(key(2), "", payload(32 << 20, 4)));
        net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received)
    };
    let (without, with) = (took(0), took(1));
    assert!(with < without * 2, "{with:?} instead of {without:?}");
}

#[test]
fn loss_at_a_small_bottleneck_stays_near_the_tolerance() {
    for queue in [10_000, 30_000] {
        let link = Link {
            rate: Some((1_250_000, queue)),
            ..CLEAN
        };
        let mut net = Net::new(2, 4, link);
        let id = net.push(0, message(key(2), "", payload(4 << 20, 4)));
        net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
        assert!(
            net.dropped * 20 < net.packets,
            "{} of {}",
            net.dropped,
            net.packets
        );
    }
}

#[test]
fn messages_share_one_window_and_short_ones_overtake() {
    let link = Link {
        rate: Some((12_500_000, 100_000)),
        ..CLEAN
    };
    let mut net = Net::new(2, 5, link);
    net.push(0, message(key(2), "", payload(32 << 20, 5)));
    net.run_for(Duration::from_millis(500));
    let id = net.push(0, message(key(2), "", "short"));
    let took = net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn an_unreachable_receiver_aborts_at_the_deadline_and_frees_the_memory() {
    let mut net = Net::new(3, 6, CLEAN);
    net.nodes[1].partitioned = true;
    let id = net.push(0, message(key(2), "", payload(1 << 20, 6)));
    let mut short = message(key(2), "", "x");
    short.try_for = Some(Duration::from_secs(10));
    let short = net.push(0, short);
    assert_eq!(net.state(0, id), MessageState::Pending);
    net.run_for(Duration::from_secs(11));
    assert_eq!(net.state(0, short), MessageState::Aborted);
    assert_eq!(net.state(0, id), MessageState::Pending);
    // Messages to other nodes are not blocked.
    let other = net.push(0, message(key(3), "", "y"));
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.state(0, other), MessageState::Received);
    net.run_for(Duration::from_secs(288));
    assert_eq!(net.state(0, id), MessageState::Aborted);
    let info = net.nodes[0].bus.info(id).unwrap();
    assert_eq!(info.reason, Some(AbortReason::Deadline));
    assert_eq!(info.deadline.since(info.created), Duration::from_secs(300));
    assert_eq!(net.nodes[0].bus.stats().outgoing_bytes, 0);
}

#[test]
fn a_receiver_gets_pending_messages_when_it_returns() {
    let mut net = Net::new(2, 7, CLEAN);
    let first = net.push(0, message(key(2), "", payload(3_000_000, 7)));
    net.run_for(Duration::from_millis(40));
    assert_eq!(net.state(0, first), MessageState::Sending);
    net.nodes[1].partitioned = true;
    net.nodes[0].bus.session_down(net.now, key(2).address());
    net.drain(0);
    net.run_for(MINUTE);
    net.nodes[1].partitioned = false;
    net.restart(1);
    let took = net.run_while(MINUTE, |net| net.state(0, first) != MessageState::Received);
    assert!(took < Duration::from_secs(6), "{took:?}");
    net.check_once();
}

#[test]
fn a_first_loss_costs_the_retransmission_delay_and_no_more() {
    let mut net = Net::new(2, 8, CLEAN);
    let warm = net.push(0, message(key(2), "", "x"));
    net.run_while(MINUTE, |net| net.state(0, warm) != MessageState::Received);
    net.nodes[1].partitioned = true;
    let id = net.push(0, message(key(2), "", "y"));
    net.run_for(Duration::from_millis(1));
    net.nodes[1].partitioned = false;
    let took = net.run_while(MINUTE, |net| net.state(0, id) != MessageState::Received);
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn reports_states_of_known_ids() {
    let mut net = Net::new(2, 9, CLEAN);
    let id = net.push(0, message(key(2), "", payload(50_000, 9)));
    assert_eq!(net.state(0, id), MessageState::Pending);
    net.run_for(Duration::from_millis(12));
    assert_eq!(net.state(0, id), MessageState::Sending);
    net.run_for(MINUTE);
    assert_eq!(net.state(0, id), MessageState::Received);
    assert_eq!(net.pop(1).unwrap().id, id);
    net.run_for(MINUTE);
    assert_eq!(net.state(0, id), MessageState::Read);
    assert_eq!(
        net.nodes[0].bus.info("0123456789abcdef".parse().unwrap()),
        None
    );
    let id = net.push(0, message(key(2), "", payload(5_000_000, 9)));
    net.run_for(Duration::from_millis(20));
    assert!(net.nodes[0].bus.cancel(net.now, id));
    net.drain(0);
    net.run_for(MINUTE);
    assert_eq!(net.state(0, id), MessageState::Aborted);
    assert_eq!(net.nodes[1].bus.stats().incoming, 0);
}

#[test]
fn read_receipts_survive_loss() {
    let mut net = Net::new(2, 10, ROUGH);
    let ids: Vec<_> = (0..50)
        .map(|n| net.push(0, message(key(2), "", payload(n, 10))))
        .collect();
    net.run_while(MINUTE, |net| net.nodes[1].inbox.len() < 50);
    while net.pop(1).is_some() {}
    net.run_for(MINUTE);
    let read = ids
        .iter()
        .filter(|id| net.state(0, **id) == MessageState::Read);
    assert_eq!(read.count(), 50);
}

#[test]
fn a_full_inbox_defers_senders_until_there_is_room() {
    let mut net = Net::new(2, 11, CLEAN);
    net.nodes[1].capacity = 3;
    let ids: Vec<_> = (0..10)
        .map(|n| net.push(0, message(key(2), "", payload(n * 900, 11))))
        .collect();
    net.run_for(Duration::from_secs(20));
    let in_state = |net: &Net, state| ids.iter().filter(|id| net.state(0, **id) == state).count();
    assert_eq!(in_state(&net, MessageState::Received), 3);
    assert_eq!(in_state(&net, MessageState::Sending), 7);
    assert!(net.nodes[1].bus.stats().deferred >= 7);
    // Deferred senders do not poll.
    let before = net.packets;
    net.run_for(Duration::from_secs(20));
    assert!(
        net.packets - before < 7 * 2 * 30,
        "{}",
        net.packets - before
    );
    for left in (0..7).rev() {
        net.pop(1).unwrap();
        let took = net.run_while(MINUTE, |net| in_state(net, MessageState::Sending) > left);
        assert!(took < Duration::from_millis(5_100), "{took:?}");
    }
    net.check_once();
}

#[test]
fn refuses_invalid_messages() {
    let mut net = Net::with(1, 12, CLEAN, |config| config.outgoing_max = 2);
    let now = net.now;
    let bus = &mut net.nodes[0].bus;
    let long = message(key(2), "", vec![0; (64 << 20) + 1]);
    assert_eq!(bus.push(now, long), Err(PushError::TooLong((64 << 20) + 1)));
    let mut foreign = message(key(2), "", "x");
    foreign.destination =
        Destination::Address("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().into());
    assert!(matches!(
        bus.push(now, foreign),
        Err(PushError::NotOverlay(_))
    ));
    for _ in 0..2 {
        bus.push(now, message(key(2), "", "x")).unwrap();
    }
    let full = PushError::QueueFull {
        messages: 2,
        bytes: 2,
    };
    assert_eq!(bus.push(now, message(key(2), "", "x")), Err(full));
}

#[test]
fn delivers_to_an_address_and_to_the_node_itself() {
    let mut net = Net::new(2, 13, CLEAN);
    let mut by_address = message(key(2), "", "a");
    by_address.destination = Destination::Address(key(2).address());
    let by_address = net.push(0, by_address);
    let own = net.push(0, message(key(1), "", "b"));
    net.run_for(MINUTE);
    assert_eq!(net.state(0, by_address), MessageState::Received);
    assert_eq!(net.state(0, own), MessageState::Received);
    assert_eq!(net.nodes[1].inbox[0].payload, "a");
    assert_eq!(net.nodes[0].inbox[0].payload, "b");
    net.pop(0).unwrap();
    assert_eq!(net.state(0, own), MessageState::Read);
    // Not delivered to another key at the address.
    let id = net.push(0, message(key(9), "", "c"));
    net.nodes[0]
        .bus
        .session_up(net.now, key(9).address(), key(8), 1340);
    net.drain(0);
    assert_eq!(
        net.nodes[0].bus.info(id).unwrap().reason,
        Some(AbortReason::OtherKey)
    );
}

#[test]
fn an_idle_engine_has_no_timers() {
    let mut net = Net::new(2, 14, CLEAN);
    for n in 0..10_000 {
        net.push(0, message(key(2), "", payload(n % 50, 14)));
    }
    net.run_while(MINUTE, |net| net.nodes[0].finished.len() < 10_000);
    net.check_once();
    net.run_for(MINUTE);
    assert_eq!(net.next(), None, "no timer is left");
}

#[test]
fn a_receiver_without_news_sends_nothing() {
    let mut net = Net::new(2, 36, CLEAN);
    net.nodes[1].capacity = 3;
    for n in 0..40 {
        net.push(0, message(key(2), "", payload(50, n)));
    }
    net.run_for(Duration::from_secs(5));
    while net.nodes[0].finished.len() < 40 {
        net.pop(1);
        net.run_for(Duration::from_secs(1));
    }
    net.check_once();
    // A new path numbers packets from another base, and is accepted at once.
    for round in 0..20 {
        net.restart(0);
        net.pop(1);
        net.push(0, message(key(2), "", payload(50, round)));
        net.run_for(Duration::from_secs(1));
        net.pop(1);
        assert_eq!(net.nodes[0].bus.stats().received, 1);
        assert_eq!(net.nodes[0].bus.stats().retransmissions, 0, "{round}");
    }
    let malformed = |node: usize| net.nodes[node].bus.stats().malformed;
    assert_eq!((malformed(0), malformed(1)), (0, 0));
}
