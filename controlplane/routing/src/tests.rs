//! The RIB against small topologies. The effect of FIB entries is tested in dataplane/forward.

use hyphae_shm::record::{ACTION_FORWARD, ACTION_GATEWAY};
use hyphae_wire::babel::Serial;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey, SecretKey};

use crate::babel::{DynamicNextHop, DynamicRoute};
use crate::{FibChange, METRIC_STATIC, Rib, RouteError, RouteSource, StaticRoute, Via};

fn key(seed: u8) -> PublicKey {
    SecretKey::from_bytes(&[seed; 32]).unwrap().public_key()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn via(prefix: Prefix, via: Via) -> StaticRoute {
    StaticRoute {
        prefix,
        via,
        metric: METRIC_STATIC,
    }
}

/// Drains the changes: prefix and peer, or no peer for a removal.
fn changes(rib: &mut Rib) -> Vec<(Prefix, Option<u32>)> {
    std::iter::from_fn(|| rib.poll_fib())
        .map(|change| match change {
            FibChange::Replace(r) => {
                assert_eq!((r.action, r.next_hop_count), (ACTION_FORWARD, 1));
                assert_eq!(r.next_hops[0].weight.get(), 1);
                (
                    Prefix::new(r.prefix, r.prefix_len),
                    Some(r.next_hops[0].peer.get()),
                )
            }
            FibChange::Remove(r) => (Prefix::new(r.prefix, r.prefix_len), None),
        })
        .collect()
}

fn rib() -> Rib {
    Rib::new(key(1).address())
}

#[test]
fn a_peer_brings_its_subnet_and_takes_it_away() {
    let mut rib = rib();
    let subnet = key(2).address().subnet();
    rib.peer_up(7, key(2));
    assert_eq!(changes(&mut rib), [(subnet, Some(7))]);
    rib.peer_up(7, key(2));
    assert_eq!(changes(&mut rib), []);
    rib.peer_up(8, key(2));
    assert_eq!(changes(&mut rib), [(subnet, Some(8))]);
    rib.peer_down(&key(2));
    assert_eq!(changes(&mut rib), [(subnet, None)]);
    assert_eq!(rib.routes().count(), 0);
}

#[test]
fn a_static_route_waits_for_its_next_hop() {
    let mut rib = rib();
    assert_eq!(
        rib.add_static(via(prefix("400::/7"), Via::Peer(key(2)))),
        Ok(true)
    );
    assert_eq!(
        rib.add_static(via(prefix("400::/7"), Via::Peer(key(2)))),
        Ok(false)
    );
    assert_eq!(changes(&mut rib), []);
    rib.peer_up(3, key(2));
    assert!(changes(&mut rib).contains(&(prefix("400::/7"), Some(3))));
    rib.peer_down(&key(2));
    assert!(changes(&mut rib).contains(&(prefix("400::/7"), None)));
    assert_eq!(rib.static_routes().count(), 1);
}

#[test]
fn an_address_resolves_through_other_routes_but_never_through_itself() {
    let mut rib = rib();
    let (a, b, c) = (key(2), key(3), key(4));
    rib.add_static(via(c.address().subnet(), Via::Address(b.address())))
        .unwrap();
    rib.add_static(via(b.address().subnet(), Via::Address(a.address())))
        .unwrap();
    rib.peer_up(1, a);
    let next = |rib: &Rib, k: PublicKey| rib.lookup(k.address()).map(|r| r.next_hops[0].peer);
    assert_eq!((next(&rib, b), next(&rib, c)), (Some(1), Some(1)));
    rib.peer_up(2, b);
    assert_eq!((next(&rib, b), next(&rib, c)), (Some(2), Some(2)));
    rib.peer_down(&a);
    rib.peer_down(&b);
    // Now two that lead to each other, and a default route through what it covers itself.
    rib.add_static(via(a.address().subnet(), Via::Address(b.address())))
        .unwrap();
    rib.add_static(via(prefix("400::/7"), Via::Address(c.address())))
        .unwrap();
    assert_eq!(rib.routes().count(), 0);
}

#[test]
fn the_longest_prefix_wins_then_the_metric_then_connected() {
    let mut rib = rib();
    let (a, b) = (key(2), key(3));
    rib.peer_up(1, a);
    rib.peer_up(2, b);
    rib.add_static(via(prefix("400::/7"), Via::Peer(a)))
        .unwrap();
    rib.add_static(StaticRoute {
        prefix: prefix("400::/7"),
        via: Via::Peer(b),
        metric: 9,
    })
    .unwrap();
    rib.add_static(StaticRoute {
        prefix: b.address().subnet(),
        via: Via::Peer(a),
        metric: 0,
    })
    .unwrap();
    let other: OverlayAddress = "500::1".parse::<std::net::Ipv6Addr>().unwrap().into();
    assert_eq!(rib.lookup(other).unwrap().next_hops[0].peer, 2);
    assert_eq!(
        rib.lookup(b.address()).unwrap().origin,
        RouteSource::Connected
    );
    // A host route is more specific than the peer's own subnet.
    rib.add_static(via(Prefix::new(b.address(), 128), Via::Peer(a)))
        .unwrap();
    assert_eq!(rib.lookup(b.address()).unwrap().next_hops[0].peer, 1);
    assert!(rib.remove_static(prefix("400::/7"), Some(Via::Peer(b))));
    assert_eq!(rib.lookup(other).unwrap().next_hops[0].peer, 1);
    assert!(rib.remove_static(prefix("400::/7"), None));
    assert!(!rib.remove_static(prefix("400::/7"), None));
    assert!(rib.lookup(other).is_none());
}

#[test]
fn routes_that_can_never_work_are_refused() {
    let mut rib = rib();
    let own = key(1).address();
    let add = |rib: &mut Rib, p, v| rib.add_static(via(p, v)).unwrap_err();
    assert_eq!(
        add(&mut rib, prefix("2001:db8::/32"), Via::Peer(key(2))),
        RouteError::OutsideOverlay(prefix("2001:db8::/32"))
    );
    assert_eq!(
        add(&mut rib, Prefix::new(own, 128), Via::Peer(key(2))),
        RouteError::OwnSubnet(Prefix::new(own, 128))
    );
    assert_eq!(
        add(&mut rib, prefix("400::/7"), Via::Peer(key(1))),
        RouteError::OwnNextHop(prefix("400::/7"), own)
    );
}

#[test]
fn a_replay_names_everything_and_leaves_nothing_to_poll() {
    let mut rib = rib();
    rib.peer_up(1, key(2));
    rib.peer_up(2, key(3));
    rib.add_static(via(prefix("400::/7"), Via::Address(key(3).address())))
        .unwrap();
    let replay = rib.replay_all();
    assert_eq!(replay.len(), 3);
    assert_eq!(changes(&mut rib), []);
    assert!(
        replay
            .iter()
            .any(|r| r.prefix_len == 7 && r.next_hops[0].peer.get() == 2)
    );
}

#[test]
fn prefixes_behind_gateways_are_entries_only_where_they_are_used() {
    let (site, own) = (prefix("fd12:3456::/48"), prefix("fd99::/48"));
    let announced = |seed: u8| DynamicRoute {
        next_hops: vec![DynamicNextHop { link: 7, weight: 1 }],
        metric: 96,
        serial: Serial::default(),
        origin: key(seed),
    };
    let entry = |rib: &mut Rib| match rib.poll_fib() {
        Some(FibChange::Replace(r)) => (Prefix::new(r.prefix, r.prefix_len), r.action, r.gateway),
        other => panic!("{other:?}"),
    };
    let mut rib = rib();
    rib.peer_up(7, key(2));
    changes(&mut rib);
    // A relay that only advertises it.
    rib.set_dynamic(site, Some(announced(3)));
    assert_eq!(changes(&mut rib), [(site, None)]);
    assert_eq!(rib.routes().count(), 2);
    // A host that uses it, and is a gateway itself.
    rib.set_gateways(&[own], &[prefix("fd12::/16")]);
    assert_eq!(entry(&mut rib), (site, ACTION_GATEWAY, key(3).address()));
    assert_eq!(entry(&mut rib), (own, ACTION_GATEWAY, key(1).address()));
    assert!(rib.uses(site) && !rib.uses(own));
    // Another gateway is nearer from now on; this node's own prefix is not affected.
    rib.set_dynamic(site, Some(announced(4)));
    assert_eq!(entry(&mut rib), (site, ACTION_GATEWAY, key(4).address()));
    rib.set_dynamic(own, Some(announced(4)));
    assert_eq!(entry(&mut rib), (own, ACTION_GATEWAY, key(1).address()));
    assert_eq!(rib.replay_all().len(), 3);
    rib.set_dynamic(site, None);
    assert_eq!(changes(&mut rib), [(site, None)]);
}

/// Each of them is looked at when it is added, not all of them each time; what follows another route
/// still does.
#[test]
fn ten_thousand_static_routes_are_added_and_removed_one_by_one() {
    const ROUTES: u32 = 10_000;
    let mut rib = rib();
    rib.peer_up(7, key(2));
    let nth = |n: u32| {
        let mut address = [0; 16];
        address[0] = 4;
        address[4..8].copy_from_slice(&n.to_be_bytes());
        Prefix::new(OverlayAddress(address), 64)
    };
    let follower = prefix("500::/64");
    let far = nth(ROUTES - 1).address();
    rib.add_static(via(follower, Via::Address(far))).unwrap();
    changes(&mut rib);
    for n in 0..ROUTES {
        rib.add_static(via(nth(n), Via::Peer(key(2)))).unwrap();
    }
    let added = changes(&mut rib);
    assert_eq!(added.len(), 10_001);
    assert!(added.contains(&(follower, Some(7))));
    for n in 0..ROUTES {
        assert!(rib.remove_static(nth(n), None));
    }
    assert_eq!(changes(&mut rib).len(), 10_001);
    assert_eq!(rib.routes().count(), 1, "the peer's own");
}
