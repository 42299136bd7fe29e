//! A full table, and a neighbour that fills it.

use hyphae_wire::OverlayAddress;
use hyphae_wire::babel::{INFINITY, Serial, Update};

use super::*;

/// The neighbour that floods, by the number of its link and key.
const FLOODER: u32 = 99;

/// A packet with the announcement of a prefix by a key.
fn announcement(prefix: Prefix, n: u32, serial: Serial, metric: u16) -> Vec<u8> {
    let key = secret(n).public_key();
    let id = RouterId::of(&key);
    let message = Origin::message(prefix, id, serial);
    let origin = Origin {
        key,
        serial,
        signature: secret(n).sign(&message, &[1; 64]),
    };
    let update = Update {
        prefix: Some(prefix),
        router_id: Some(id),
        interval: 60_000,
        seqno: serial.seqno(),
        metric,
        origin: Some(origin),
    };
    let mut writer = Writer::new();
    assert!(writer.push(&Tlv::Update(update)));
    writer.take()
}

impl Net {
    /// The flooder announces the /64 of many keys to a node.
    fn flood(&mut self, node: u32, keys: std::ops::Range<u32>) {
        for n in keys {
            let packet = announcement(subnet(n), n, Serial::new(50, 1), 0);
            let now = self.now;
            self.node(node).handle_packet(now, FLOODER, now, &packet);
            self.node(node).handle_timeout(now);
        }
        self.run(Duration::from_millis(1));
    }

    fn join_flooder(&mut self, node: u32) {
        let now = self.now;
        let key = secret(FLOODER).public_key();
        self.node(node).link_up(now, FLOODER, key);
    }

    fn offers(&self, node: u32, link: u32) -> usize {
        self.nodes[&node].links[&link].offers.len()
    }

    fn check_room(&self, node: u32) {
        let speaker = &self.nodes[&node];
        let offered = speaker.table.values().filter(|d| !d.candidates.is_empty());
        let candidates: usize = offered.clone().map(|d| d.candidates.len()).sum();
        let offers: usize = speaker.links.values().map(|link| link.offers.len()).sum();
        assert_eq!(candidates, offers, "offers are those of the table");
        let max = speaker.config.routes_max + speaker.links.len();
        assert!(offered.count() <= max);
        for destination in speaker.table.values() {
            assert!(destination.sources.len() <= destination.candidates.len());
        }
    }
}

fn small(n: u32, net: &mut Net, routes_max: usize) {
    net.start(n, 100, |config| config.routes_max = routes_max);
}

#[test]
fn a_neighbour_that_fills_the_table_takes_no_route_from_others() {
    let mut net = Net::new(7);
    small(0, &mut net, 300);
    // 1 and 2 are neighbours, 4 is behind 3; 5, and 6 behind 3, join when the table is full.
    for (a, b) in [(0, 1), (0, 2), (0, 3), (3, 4)] {
        net.join(a, b, LAN);
    }
    net.run(seconds(1));
    net.join_flooder(0);
    net.flood(0, 1000..1320);
    assert!(net.nodes[&0].counters().refused[4] > 0, "the table is full");
    assert_eq!(net.nodes[&0].destinations(), 300);
    for (a, b) in [(0, 5), (3, 6)] {
        net.join(a, b, LAN);
    }
    net.run(seconds(2));
    net.flood(0, 2000..2100);
    for n in 1..7 {
        assert!(!net.hops(0, n).is_empty(), "{n}");
    }
    for (from, to) in [(1, 2), (2, 1), (1, 5), (2, 6), (4, 1), (6, 5)] {
        assert!(!net.hops(from, to).is_empty(), "{from} to {to}");
    }
    assert!(net.nodes[&0].counters().displaced > 0);
    net.check_room(0);
}

#[test]
fn routes_of_configured_peers_have_preference() {
    let mut net = Net::new(1);
    small(0, &mut net, 100);
    net.join_flooder(0);
    net.flood(0, 1000..1100);
    let (now, peer) = (net.now, 7);
    net.node(0).link_up(now, peer, secret(peer).public_key());
    net.node(0).prefer(peer, true);
    for n in 2000..2090 {
        let packet = announcement(subnet(n), n, Serial::new(50, 1), 0);
        net.node(0).handle_packet(now, peer, now, &packet);
        net.node(0).handle_timeout(now);
    }
    assert_eq!((net.offers(0, peer), net.offers(0, FLOODER)), (75, 25));
    net.check_room(0);
}

#[test]
fn a_prefix_without_room_is_asked_for_when_there_is_some() {
    let mut net = Net::new(3);
    small(0, &mut net, 3);
    net.join(1, 2, LAN);
    net.join(0, 1, LAN);
    net.run(seconds(1));
    net.join_flooder(0);
    net.flood(0, 1000..1003);
    assert!(!net.hops(0, 2).is_empty());
    let (flooded, now) = (net.offers(0, FLOODER), net.now);
    assert_eq!(flooded, 1);
    while net.node(0).poll_transmit().is_some() {}
    // The routes of 1 end; the next hellos request another one of the flooder.
    net.node(0).link_down(now, 1);
    net.cut(0, 1);
    net.node(0)
        .handle_timeout(now + seconds(1) + seconds(1) / 2);
    let asked = std::iter::from_fn(|| net.node(0).poll_transmit()).any(|transmit| {
        let packet = Packet::parse(&transmit.packet).unwrap();
        let asks = |tlv: &Tlv| matches!(tlv, Tlv::RouteRequest { prefix: Some(_) });
        transmit.link == FLOODER && packet.tlvs().flatten().any(|tlv| asks(&tlv))
    });
    assert!(asked);
}

#[test]
fn what_was_advertised_bounds_feasibility_after_the_route_was_displaced() {
    let mut net = Net::new(1);
    small(0, &mut net, 4);
    for link in [7, 8] {
        let now = net.now;
        net.node(0).link_up(now, link, secret(link).public_key());
        // The opening is acknowledged, so that routes are advertised on the link.
        let mut writer = Writer::new();
        assert!(writer.push(&Tlv::Ack { opaque: 1 }));
        let packet = writer.take();
        net.node(0).handle_packet(now, link, now, &packet);
    }
    let serial = Serial::new(50, 1);
    let tell = |net: &mut Net, link, metric| {
        let (now, packet) = (net.now, announcement(subnet(5), 5, serial, metric));
        net.node(0).handle_packet(now, link, now, &packet);
        net.run(seconds(1));
    };
    for n in 1000..1003 {
        let (now, packet) = (net.now, announcement(subnet(n), n, serial, 0));
        net.node(0).handle_packet(now, 7, now, &packet);
    }
    tell(&mut net, 7, 10);
    assert_eq!(net.hops(0, 5), [7]);
    net.join_flooder(0);
    net.flood(0, 2000..2001);
    assert_eq!(net.hops(0, 5), [], "displaced");
    let distance = |net: &Net| net.nodes[&0].distances.len();
    assert_eq!(distance(&net), 1);
    // 8 may have learnt it from here: it is longer than what was advertised.
    tell(&mut net, 8, 400);
    assert_eq!(net.nodes[&0].table[&subnet(5)].candidates.len(), 1);
    assert_eq!(net.hops(0, 5), [], "not feasible");
    tell(&mut net, 8, 5);
    assert_eq!(net.hops(0, 5), [8]);
    net.check_room(0);
}

#[test]
fn many_origins_of_one_prefix_take_the_room_of_one() {
    let outside: Prefix = "fd12:3456::/32".parse().unwrap();
    let mut net = Net::new(1);
    net.start(0, 100, |config| {
        config.routes_max = 50;
        config.import = Filter::accept_all();
    });
    net.join_flooder(0);
    let now = net.now;
    for n in 1000..1300 {
        let packet = announcement(outside, n, Serial::new(50, 1), 0);
        net.node(0).handle_packet(now, FLOODER, now, &packet);
        net.node(0).handle_timeout(now);
    }
    assert_eq!(net.nodes[&0].table[&outside].sources.len(), 1);
    assert!(net.nodes[&0].distances.len() <= 50);
    net.check_room(0);
}

#[test]
fn a_neighbour_that_asks_for_everything_all_the_time_is_answered_a_few_times() {
    let mut net = line(2);
    net.run(seconds(5));
    let mut writer = Writer::new();
    assert!(writer.push(&Tlv::RouteRequest { prefix: None }));
    let (now, packet) = (net.now, writer.take());
    for _ in 0..1000 {
        net.node(0).handle_packet(now, 1, now, &packet);
    }
    let before = net.node(0).counters().updates_sent;
    net.run(seconds(5));
    let sent = net.node(0).counters().updates_sent - before;
    assert!((1..=30).contains(&sent), "{sent} updates");
    assert!(net.connected());
}

#[test]
fn a_flood_of_updates_does_not_defer_those_of_others() {
    let mut net = Net::new(2);
    net.join(0, 1, LAN);
    net.run(seconds(1));
    net.join_flooder(0);
    let now = net.now;
    // More than are checked at once, without time in between.
    for n in 1000..4000 {
        let packet = announcement(subnet(n), n, Serial::new(50, 1), 0);
        net.node(0).handle_packet(now, FLOODER, now, &packet);
    }
    let packet = announcement(subnet(5), 5, Serial::new(50, 1), 0);
    net.node(0).handle_packet(now, 1, now, &packet);
    net.node(0).handle_timeout(now);
    assert_eq!(net.hops(0, 5), [1]);
}

#[test]
fn retracted_routes_leave_the_table_when_that_is_acknowledged() {
    let mut net = line(3);
    net.run(seconds(2));
    assert_eq!(net.nodes[&0].destinations(), 2);
    net.part(1, 2);
    net.run(seconds(2));
    assert_eq!(net.nodes[&0].destinations(), 1);
    assert_eq!(net.nodes[&1].destinations(), 1);
    let retraction = Tlv::Update(Update {
        prefix: Some(subnet(1)),
        router_id: None,
        interval: 0,
        seqno: 0,
        metric: INFINITY,
        origin: None,
    });
    let mut writer = Writer::new();
    assert!(writer.push(&retraction));
    let (now, packet) = (net.now, writer.take());
    net.node(0).handle_packet(now, 1, now, &packet);
    assert_eq!(net.nodes[&0].destinations(), 0);
}

#[test]
fn a_neighbour_that_causes_the_most_requests_displaces_none_of_others() {
    let mut net = Net::new(2);
    net.join(0, 1, LAN);
    net.run(seconds(1));
    net.join_flooder(0);
    let now = net.now;
    let name = |n: u64| {
        let mut address = OverlayAddress([4; 16]);
        address.0[..8].copy_from_slice(&(4 << 56 | n).to_be_bytes());
        (address.subnet(), RouterId(n.to_be_bytes()))
    };
    let mut cause = |link, names: std::ops::Range<u64>| {
        for (prefix, id) in names.map(name) {
            let wanted = (id, Serial::new(50, 1), link);
            net.node(0).query(now, prefix, wanted);
        }
        net.nodes[&0].queries.len()
    };
    let max = u64::try_from(request::QUERIES_MAX).unwrap();
    assert_eq!(cause(FLOODER, 0..max + 100), request::QUERIES_MAX);
    // The newest of the flooder are displaced.
    assert_eq!(cause(1, max + 100..max + 200), request::QUERIES_MAX);
    assert_eq!(cause(FLOODER, max + 200..max + 300), request::QUERIES_MAX);
    let pending = |n: u64| net.nodes[&0].queries.contains_key(&name(n));
    assert!((max + 100..max + 200).all(pending));
    assert!((0..max - 100).all(pending));
    assert!(!(max - 100..max + 100).any(pending));
    assert!(!(max + 200..max + 300).any(pending));
}

#[test]
fn a_neighbour_whose_cost_alternates_causes_a_bounded_number_of_selections() {
    let mut net = line(2);
    net.run(seconds(5));
    let now = net.now;
    let mut changes = 0;
    let mut cost = net.nodes[&0].links[&1].cost;
    let mut report = |net: &mut Net, rxcost| {
        let mut writer = Writer::new();
        assert!(writer.push(&Tlv::Ihu {
            rxcost,
            interval: 300,
            echo: None,
        }));
        net.node(0).handle_packet(now, 1, now, &writer.take());
        let new = net.nodes[&0].links[&1].cost;
        changes += u32::from(new != cost);
        cost = new;
        (changes, cost)
    };
    let mut low = 0;
    for _ in 0..1000 {
        report(&mut net, 10_000);
        (_, low) = report(&mut net, 256);
    }
    // The limit includes changes since the last hello.
    let (changed, suppressed) = report(&mut net, 10_000);
    assert!((6..=link::COST_CHANGES_MAX).contains(&changed), "{changed}");
    net.node(0)
        .handle_timeout(now + seconds(1) + seconds(1) / 2);
    let applied = net.nodes[&0].links[&1].cost;
    assert!(suppressed == low && applied > low, "with the next hello");
}
