//! A few speakers joined by perfect links; loss, delay, churn and size are tests/sim.

use std::collections::BTreeMap;

use hyphae_wire::babel::{Packet, Writer};

use super::*;

mod room;

/// Speakers by number; a link has the number of the neighbour.
struct Net {
    now: Nanos,
    nodes: BTreeMap<u32, Speaker>,
    links: BTreeSet<(u32, u32)>,
    delay: BTreeMap<(u32, u32), Duration>,
    /// Packets in flight.
    wire: BTreeMap<(Nanos, u64), (u32, u32, Vec<u8>)>,
    sent: u64,
}

fn secret(n: u32) -> SecretKey {
    let mut bytes = [0x5a; 32];
    bytes[8..12].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_bytes(&bytes).unwrap()
}

fn subnet(n: u32) -> Prefix {
    secret(n).public_key().address().subnet()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Net {
    fn new(nodes: u32) -> Self {
        let mut net = Self {
            now: Nanos(1_000_000_000),
            nodes: BTreeMap::new(),
            links: BTreeSet::new(),
            delay: BTreeMap::new(),
            wire: BTreeMap::new(),
            sent: 0,
        };
        for n in 0..nodes {
            net.start(n, 100, |_| {});
        }
        net
    }

    fn start(&mut self, n: u32, epoch: u32, change: impl FnOnce(&mut Config)) {
        let mut config = Config::new(secret(n), epoch);
        change(&mut config);
        let speaker = Speaker::new(self.now, config, u64::from(n) + 77, Box::new(Xeddsa));
        self.nodes.insert(n, speaker);
        let neighbours: Vec<u32> = self
            .links
            .iter()
            .filter(|(a, _)| *a == n)
            .map(|(_, b)| *b)
            .collect();
        for b in neighbours {
            let now = self.now;
            self.node(n).link_up(now, b, secret(b).public_key());
        }
    }

    fn node(&mut self, n: u32) -> &mut Speaker {
        self.nodes.get_mut(&n).unwrap()
    }

    fn join(&mut self, a: u32, b: u32, delay: Duration) {
        for (a, b) in [(a, b), (b, a)] {
            self.links.insert((a, b));
            self.delay.insert((a, b), delay);
            let now = self.now;
            self.node(a).link_up(now, b, secret(b).public_key());
        }
    }

    fn cut(&mut self, a: u32, b: u32) {
        for (a, b) in [(a, b), (b, a)] {
            self.links.remove(&(a, b));
        }
    }

    fn part(&mut self, a: u32, b: u32) {
        self.cut(a, b);
        let now = self.now;
        self.node(a).link_down(now, b);
        self.node(b).link_down(now, a);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for (a, node) in &mut self.nodes {
                while let Some(Transmit { link, packet }) = node.poll_transmit() {
                    if self.links.contains(&(*a, link)) {
                        self.sent += 1;
                        let at = self.now + self.delay[&(*a, link)];
                        self.wire.insert((at, self.sent), (*a, link, packet));
                    }
                }
            }
            let timer = self
                .nodes
                .iter()
                .filter_map(|(n, s)| Some((s.poll_timeout()?, *n)))
                .min();
            let packet = self.wire.keys().next().map(|(at, _)| *at);
            let next = [timer.map(|(at, _)| at), packet]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let now = self.now;
            if packet == Some(next) {
                let (_, (from, to, bytes)) = self.wire.pop_first().unwrap();
                self.node(to).handle_packet(now, from, now, &bytes);
            } else {
                self.node(timer.unwrap().1).handle_timeout(now);
            }
        }
        self.now = end;
    }

    /// Next hops of a node towards another.
    fn hops(&self, from: u32, to: u32) -> Vec<u32> {
        let route = self.nodes[&from].route(subnet(to));
        route.map_or(Vec::new(), |r| r.next_hops.iter().map(|h| h.link).collect())
    }

    fn connected(&self) -> bool {
        let nodes: Vec<u32> = self.nodes.keys().copied().collect();
        nodes.iter().all(|a| {
            nodes
                .iter()
                .all(|b| a == b || !self.hops(*a, *b).is_empty())
        })
    }
}

const LAN: Duration = Duration::from_micros(300);

fn line(nodes: u32) -> Net {
    let mut net = Net::new(nodes);
    for n in 1..nodes {
        net.join(n - 1, n, LAN);
    }
    net
}

#[test]
fn a_line_converges_at_once_and_then_is_nearly_silent() {
    let mut net = line(8);
    net.run(Duration::from_millis(400));
    assert!(net.connected(), "within 400 ms");
    assert_eq!(net.hops(0, 7), [1]);
    net.run(seconds(60));
    let before: Vec<_> = net.nodes.values().map(|s| *s.counters()).collect();
    net.run(seconds(600));
    for (speaker, before) in net.nodes.values().zip(before) {
        let links = speaker.links().count() as u64;
        let bits = (speaker.counters().bytes_sent - before.bytes_sent) * 8 / 600 / links;
        assert!(bits < 300, "{bits} bit/s of routing packets per idle link");
        assert_eq!(speaker.counters().retransmitted, 0);
        assert_eq!(speaker.counters().malformed + speaker.counters().ignored, 0);
        assert_eq!(speaker.counters().route_changes, before.route_changes);
    }
}

#[test]
fn a_drained_node_is_bypassed_and_stays_reachable() {
    let mut net = Net::new(4);
    // The path over 1 is short, the one over 2 is long.
    for via in [1, 2] {
        let delay = if via == 1 { LAN } else { LAN * 20 };
        net.join(0, via, delay);
        net.join(via, 3, delay);
    }
    net.run(seconds(60));
    assert_eq!((net.hops(0, 3), net.hops(3, 0)), (vec![1], vec![1]));
    let now = net.now;
    net.node(1).drain(now, true);
    net.run(seconds(1));
    assert_eq!((net.hops(0, 3), net.hops(3, 0)), (vec![2], vec![2]));
    assert_eq!((net.hops(0, 1), net.hops(3, 1)), (vec![1], vec![1]));
    assert!(net.connected());
    // Without another path it is used further.
    net.part(0, 2);
    net.run(seconds(10));
    assert_eq!((net.hops(0, 3), net.hops(3, 0)), (vec![1], vec![1]));
    net.join(0, 2, LAN * 20);
    net.run(seconds(60));
    assert_eq!(net.hops(0, 3), [2]);
    let now = net.now;
    net.node(1).drain(now, false);
    net.run(seconds(30));
    assert_eq!((net.hops(0, 3), net.hops(3, 0)), (vec![1], vec![1]));
}

#[test]
fn equal_paths_share_the_flows_and_a_worse_one_does_not() {
    let mut net = Net::new(5);
    for via in [1, 2, 3] {
        net.join(0, via, if via == 3 { seconds(1) / 50 } else { LAN });
        net.join(via, 4, LAN);
    }
    net.run(seconds(30));
    assert_eq!(net.hops(0, 4), [1, 2]);
    assert_eq!(
        net.node(0)
            .fallbacks()
            .filter(|(p, ..)| *p == subnet(4))
            .count(),
        1
    );
}

#[test]
fn a_link_that_reports_its_end_is_left_at_once() {
    let mut net = line(4);
    net.join(0, 3, LAN);
    net.run(seconds(10));
    assert_eq!(net.hops(0, 3), [3]);
    net.part(0, 3);
    net.run(Duration::from_millis(100));
    assert_eq!(net.hops(0, 3), [1]);
    assert!(net.connected());
}

#[test]
fn a_link_that_falls_silent_is_left_within_three_hellos() {
    let mut net = line(4);
    net.join(0, 3, LAN);
    net.run(seconds(10));
    net.cut(0, 3);
    net.run(Duration::from_millis(2990));
    assert_eq!(net.hops(0, 3), [1]);
    assert!(net.connected());
}

#[test]
fn a_partitioned_node_has_no_route_until_it_is_connected_again() {
    let mut net = line(5);
    net.run(seconds(5));
    net.part(2, 3);
    net.run(seconds(5));
    assert_eq!(net.hops(0, 3), []);
    assert_eq!(net.hops(0, 2), [1]);
    net.join(2, 3, LAN);
    net.run(Duration::from_millis(500));
    assert!(net.connected(), "within 500 ms");
}

#[test]
fn a_neighbour_that_restarts_on_the_same_link_receives_all_routes() {
    let mut net = line(4);
    net.run(seconds(5));
    net.start(1, 101, |_| {});
    net.run(Duration::from_millis(500));
    assert!(net.connected());
    assert_eq!(net.hops(1, 3), [2]);
}

#[test]
fn a_node_restored_with_old_serials_continues_from_the_newest() {
    let mut net = line(4);
    net.run(seconds(5));
    // Days before, by a clock that was set back.
    net.start(0, 7, |_| {});
    net.run(seconds(2));
    assert!(net.connected());
    let route = net.nodes[&3].route(subnet(0)).unwrap();
    assert!(
        route.serial > hyphae_wire::babel::Serial::new(100, 1),
        "{:?}",
        route.serial
    );
}

#[test]
fn nodes_without_a_feasible_route_request_a_seqno_and_recover() {
    // 3 is far on one path and near on the other; when the near one breaks, only a new number makes
    // the far one feasible.
    let mut net = Net::new(4);
    net.join(0, 1, LAN);
    net.join(1, 2, LAN);
    net.join(2, 3, LAN);
    net.join(1, 3, LAN);
    net.run(seconds(5));
    net.part(1, 3);
    net.run(Duration::from_millis(600));
    assert!(net.connected());
    assert_eq!(net.hops(0, 3), [1]);
}

#[test]
fn announcements_of_others_prefixes_are_refused() {
    let mut net = line(3);
    net.run(seconds(2));
    // 1 signs a prefix of 2 with its own key, and one outside the overlay that 0 does not import.
    let now = net.now;
    let stolen = subnet(2);
    net.node(1).withdraw(now, stolen);
    let foreign: Prefix = "2001:db8::/48".parse().unwrap();
    net.node(1).announce(now, foreign);
    net.run(seconds(2));
    assert_eq!(net.nodes[&0].route(foreign), None);
    let refused = net.node(0).poll_refusal().unwrap();
    assert_eq!(
        (refused.prefix, refused.reason),
        (foreign, RefusalReason::Filter)
    );
    let mut config = Config::new(secret(9), 5);
    config.announce = vec![subnet(2)];
    let mut thief = Speaker::new(now, config, 3, Box::new(Xeddsa));
    thief.link_up(now, 0, secret(0).public_key());
    let now = net.now;
    net.node(0).link_up(now, 9, secret(9).public_key());
    for _ in 0..50 {
        while let Some(packet) = net.node(0).poll_transmit() {
            if packet.link == 9 {
                thief.handle_packet(now, 0, now, &packet.packet);
            }
        }
        while let Some(packet) = thief.poll_transmit() {
            net.node(0).handle_packet(now, 9, now, &packet.packet);
        }
        thief.handle_timeout(now + seconds(1));
        net.node(0).handle_timeout(now + Duration::from_millis(10));
    }
    assert_eq!(net.hops(0, 2), [1]);
    assert_eq!(net.nodes[&0].route(subnet(9)).unwrap().next_hops[0].link, 9);
    assert!(net.nodes[&0].counters().refused[0] > 0);
}

#[test]
fn a_changed_signature_and_an_old_announcement_never_win() {
    let mut net = line(2);
    net.run(seconds(2));
    let now = net.now;
    let (key, id) = (
        secret(5).public_key(),
        RouterId::of(&secret(5).public_key()),
    );
    let forge = |serial: Serial, metric: u16, signed: Serial| {
        let message = Origin::message(subnet(5), id, signed);
        let origin = Origin {
            key,
            serial,
            signature: secret(5).sign(&message, &[1; 64]),
        };
        let update = hyphae_wire::babel::Update {
            prefix: Some(subnet(5)),
            router_id: Some(id),
            interval: 60_000,
            seqno: serial.seqno(),
            metric,
            origin: Some(origin),
        };
        let mut writer = Writer::new();
        assert!(writer.push(&Tlv::Update(update)));
        writer.take()
    };
    use hyphae_wire::babel::Serial;
    let genuine = forge(Serial::new(9, 9), 500, Serial::new(9, 9));
    let old = forge(Serial::new(9, 8), 0, Serial::new(9, 8));
    let changed = forge(Serial::new(9, 10), 0, Serial::new(9, 9));
    net.node(0).link_up(now, 7, secret(7).public_key());
    net.node(0).link_up(now, 8, secret(8).public_key());
    net.node(0).handle_packet(now, 7, now, &genuine);
    net.run(seconds(1));
    let now = net.now;
    net.node(0).handle_packet(now, 8, now, &old);
    net.node(0).handle_packet(now, 8, now, &changed);
    assert_eq!(net.hops(0, 5), [7]);
    assert_eq!(net.nodes[&0].counters().refused[2], 1);
}

#[test]
fn an_old_route_never_passes_for_a_new_one_with_the_same_lower_bits() {
    use hyphae_wire::babel::Serial;
    let mut net = line(1);
    let now = net.now;
    let (key, id) = (
        secret(5).public_key(),
        RouterId::of(&secret(5).public_key()),
    );
    let (old, new) = (Serial::new(100, 1), Serial::new(200, 1));
    let tell = |serial: Serial, metric: u16, proof: bool| {
        let message = Origin::message(subnet(5), id, serial);
        let signature = secret(5).sign(&message, &[1; 64]);
        let origin = Origin {
            key,
            serial,
            signature,
        };
        let update = hyphae_wire::babel::Update {
            prefix: Some(subnet(5)),
            router_id: Some(id),
            interval: 60_000,
            seqno: serial.seqno(),
            metric,
            origin: proof.then_some(origin),
        };
        let mut writer = Writer::new();
        assert!(writer.push(&Tlv::Update(update)));
        writer.take()
    };
    for link in [6, 7, 8] {
        net.node(0).link_up(now, link, secret(link).public_key());
    }
    // Neighbour 7 still uses the route of before its origin restarted, and its metric changes.
    net.node(0)
        .handle_packet(now, 7, now, &tell(old, 500, true));
    net.node(0)
        .handle_packet(now, 8, now, &tell(new, 400, true));
    net.node(0)
        .handle_packet(now, 7, now, &tell(old, 300, false));
    // Neighbour 6 has proved nothing: a proof is requested.
    net.node(0)
        .handle_packet(now, 6, now, &tell(old, 100, false));
    let offered: Vec<(u32, Serial, u16)> = net.nodes[&0].table[&subnet(5)]
        .candidates
        .iter()
        .map(|c| (c.link, c.serial, c.metric))
        .collect();
    assert_eq!(offered, [(7, old, 300), (8, new, 400)]);
}

#[test]
fn announcements_of_gateways_are_accepted_where_a_rule_allows_them() {
    let outside: Prefix = "fd12:3456::/32".parse().unwrap();
    let mut net = line(1);
    net.start(1, 100, |config| config.announce = vec![outside]);
    net.start(2, 100, |config| {
        let rule = Rule {
            prefix: Some(outside),
            origin: Some(secret(1).public_key()),
            neighbour: None,
            action: Action::Accept,
        };
        config.import.rules.push(rule);
    });
    net.join(0, 1, LAN);
    net.join(1, 2, LAN);
    net.run(seconds(2));
    assert_eq!(net.nodes[&0].route(outside), None);
    let route = net.nodes[&2].route(outside).unwrap();
    assert_eq!(route.origin, secret(1).public_key());
    let now = net.now;
    net.node(1).withdraw(now, outside);
    net.run(seconds(1));
    assert_eq!(net.nodes[&2].route(outside), None);
}

fn rule(prefix: Prefix, action: Action) -> Rule {
    Rule {
        prefix: Some(prefix),
        origin: None,
        neighbour: None,
        action,
    }
}

#[test]
fn filters_change_while_it_runs_and_touch_only_what_they_name() {
    let outside: Prefix = "fd12:3456::/32".parse().unwrap();
    let mut net = line(2);
    net.start(2, 100, |config| config.announce = vec![outside]);
    net.join(1, 2, LAN);
    net.run(seconds(2));
    assert_eq!(net.nodes[&1].route(outside), None);
    // 1 accepts it from now on, though 2 advertised it before; then 0, one hop further, may too.
    let mut import = Filter::import_default();
    import.rules.push(rule(outside, Action::Accept));
    let (now, before) = (net.now, net.nodes[&0].counters().route_changes);
    net.node(1)
        .set_filters(now, import.clone(), Filter::accept_all());
    net.node(0).set_filters(now, import, Filter::accept_all());
    net.run(seconds(2));
    assert_eq!(net.hops(0, 2), [1]);
    assert!(net.nodes[&0].route(outside).is_some());
    let gained = net.nodes[&0].counters().route_changes - before;
    assert_eq!(gained, 1, "the others stayed as they were");
    // It is no longer advertised to 0, whatever 0 accepts; 1 retains it.
    let (now, import) = (net.now, net.nodes[&1].config.import.clone());
    let mut export = Filter::accept_all();
    export.rules.push(rule(outside, Action::Refuse));
    export.rules.push(rule(subnet(1), Action::Refuse));
    net.node(1).set_filters(now, import, export.clone());
    net.run(seconds(2));
    assert_eq!(net.nodes[&0].route(outside), None);
    assert_eq!(net.nodes[&0].route(subnet(1)), None, "an own one ends too");
    assert!(net.nodes[&1].route(outside).is_some());
    assert_eq!(net.hops(0, 2), [1]);
    // 1 accepts it no longer; everything is advertised again.
    let now = net.now;
    net.node(1)
        .set_filters(now, Filter::import_default(), Filter::accept_all());
    net.run(seconds(2));
    assert_eq!(net.nodes[&1].route(outside), None);
    assert!(net.connected());
}

#[test]
fn a_filter_knows_what_it_accepts_from_no_neighbour() {
    let (neighbour, origin) = (secret(1).public_key(), secret(2).public_key());
    let mut of_one = rule(subnet(1), Action::Refuse);
    of_one.neighbour = Some(neighbour);
    for (rules, otherwise, may) in [
        (vec![], Action::Accept, true),
        (vec![], Action::Refuse, false),
        (vec![of_one], Action::Accept, true),
        (vec![of_one], Action::Refuse, false),
        (vec![rule(subnet(1), Action::Refuse)], Action::Accept, false),
        (vec![rule(subnet(2), Action::Refuse)], Action::Accept, true),
        (
            vec![of_one, rule(subnet(1), Action::Accept)],
            Action::Refuse,
            true,
        ),
    ] {
        let filter = Filter { rules, otherwise };
        assert_eq!(filter.may_accept(subnet(1), &origin), may, "{filter:?}");
        if filter.accepts(subnet(1), &origin, &neighbour) {
            assert!(may, "{filter:?}");
        }
    }
}

#[test]
fn routes_that_are_exported_to_no_neighbour_are_not_queued() {
    let waiting = |net: &Net| -> usize { net.nodes[&1].links().map(|link| link.pending).sum() };
    let mut net = line(3);
    net.run(seconds(5));
    let (now, import) = (net.now, Filter::import_default());
    let mut export = Filter::accept_all();
    export.rules.push(rule(subnet(1), Action::Accept));
    net.node(1).set_filters(now, import.clone(), export.clone());
    assert!(waiting(&net) > 0, "all is advertised again");
    net.run(seconds(2));
    export.otherwise = Action::Refuse;
    export.rules.clear();
    net.node(1).set_filters(now, import.clone(), export.clone());
    assert!(waiting(&net) > 0, "retractions of what was advertised");
    net.run(seconds(2));
    assert_eq!(net.nodes[&0].route(subnet(2)), None);
    // Other rules with the same result: nothing is advertised, and no selection runs again.
    export.rules.push(rule(subnet(2), Action::Refuse));
    let now = net.now;
    net.node(1).set_filters(now, import.clone(), export);
    assert_eq!(waiting(&net), 0);
    net.node(1).set_filters(now, import, Filter::accept_all());
    net.run(seconds(2));
    assert!(net.connected());
}

#[test]
fn a_filtered_neighbour_gains_nothing_from_the_proofs_of_others() {
    let mut net = line(3);
    net.join(0, 2, Duration::from_millis(50));
    net.run(seconds(5));
    let rules = vec![Rule {
        prefix: Some(subnet(2)),
        origin: None,
        neighbour: Some(secret(1).public_key()),
        action: Action::Refuse,
    }];
    let mut import = Filter::import_default();
    import.rules.splice(0..0, rules);
    let now = net.now;
    net.node(0).set_filters(now, import, Filter::accept_all());
    net.run(seconds(30));
    assert_eq!(
        net.hops(0, 2),
        [2],
        "the slow path, because the other is filtered"
    );
    assert_eq!(
        net.nodes[&0]
            .fallbacks()
            .filter(|(p, _, _)| *p == subnet(2))
            .count(),
        0
    );
}

#[test]
fn a_prefix_that_is_withdrawn_and_announced_again_is_taken_again_at_once() {
    let outside: Prefix = "fd12:3456::/32".parse().unwrap();
    let mut net = line(2);
    let mut import = Filter::import_default();
    import.rules.push(rule(outside, Action::Accept));
    let now = net.now;
    net.node(0).set_filters(now, import, Filter::accept_all());
    for _ in 0..3 {
        let now = net.now;
        net.node(1).announce(now, outside);
        net.run(seconds(1));
        assert!(net.nodes[&0].route(outside).is_some());
        let now = net.now;
        net.node(1).withdraw(now, outside);
        net.run(seconds(1));
        assert_eq!(net.nodes[&0].route(outside), None);
    }
}

#[test]
fn hostile_bytes_are_counted_and_change_nothing() {
    let mut net = line(2);
    net.run(seconds(2));
    let now = net.now;
    let mut state = 7_u64;
    for _ in 0..20_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let len = (state >> 33) as usize % 120;
        let mut bytes: Vec<u8> = (0..len)
            .map(|i| state.to_le_bytes()[i % 8] ^ u8::try_from(i).unwrap())
            .collect();
        if let [a, b, c, d, ..] = &mut bytes[..] {
            (*a, *b, *c, *d) = (42, 2, 0, u8::try_from(len - 4).unwrap());
        }
        assert!(len < 4 || Packet::parse(&bytes).is_ok());
        net.node(0).handle_packet(now, 1, now, &bytes);
    }
    assert!(net.node(0).counters().malformed > 0);
    net.run(seconds(20));
    assert!(net.connected());
}

#[test]
fn a_speaker_that_takes_over_receives_all_routes_and_none_is_withdrawn() {
    let mut net = line(4);
    net.run(seconds(5));
    let changes = net.nodes[&0].counters().route_changes;
    let now = net.now;
    let speaker = Speaker::new(now, Config::new(secret(1), 101), 5, Box::new(Xeddsa));
    net.nodes.insert(1, speaker);
    for b in [0, 2] {
        net.node(1).link_adopted(now, b, secret(b).public_key());
    }
    net.run(Duration::from_millis(500));
    assert!(net.connected());
    net.run(seconds(30));
    assert!(net.connected());
    assert_eq!(net.nodes[&0].counters().route_changes, changes);
}

#[test]
fn a_route_that_grows_longer_stays_in_use() {
    let mut net = line(3);
    net.run(seconds(5));
    // The far link becomes slow: 2's metric as advertised by 1 grows beyond what 0 once advertised.
    for pair in [(1, 2), (2, 1)] {
        net.delay.insert(pair, Duration::from_millis(200));
    }
    let changes = net.nodes[&0].counters().route_changes;
    net.run(seconds(60));
    assert_eq!(net.hops(0, 2), [1]);
    assert_eq!(net.nodes[&0].counters().route_changes, changes);
    assert!(net.nodes[&0].route(subnet(2)).unwrap().metric > 500);
}

#[test]
fn a_neighbour_with_very_many_links_is_not_sent_more_hellos_than_it_sends() {
    const LEAVES: u32 = 6;
    let mut net = Net::new(0);
    net.start(0, 100, |config| config.hello_links = 1);
    for n in 1..=LEAVES {
        net.start(n, 100, |_| {});
        net.join(0, n, Duration::from_millis(1));
    }
    net.run(seconds(60));
    let sent = |net: &mut Net, time| {
        let before = net.node(1).counters().packets_sent;
        net.run(seconds(time));
        net.node(1).counters().packets_sent - before
    };
    // Beside a tenth of jitter and an eighth: every 6 s, not every second.
    let followed = sent(&mut net, 120);
    assert!((20..=40).contains(&followed), "{followed} in 120 s");
    assert!(net.node(1).route(subnet(2)).is_some());
    (2..=LEAVES).for_each(|n| net.part(0, n));
    net.run(seconds(60));
    let alone = sent(&mut net, 60);
    assert!(alone >= 55, "{alone} in 60 s, with nobody to follow");
}
