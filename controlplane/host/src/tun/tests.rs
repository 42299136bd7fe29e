use std::collections::BTreeMap;
use std::process::Command;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use hyphae_wire::address::OVERLAY_RANGE;

use super::routes::place;
use super::*;
use crate::kernel::TABLE_MAIN;
use crate::rules;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn without_rules_no_route_covers_a_peer_and_none_is_set_before_the_peers_are_known() {
    let (wide, near) = (prefix("2000::/3"), prefix("fd12::/48"));
    let links = BTreeSet::from(["2001:db8::2".parse().unwrap()]);
    for known in [None, Some(&links)] {
        assert_eq!(place(wide, Some(7), known), Some(7), "its own table");
        assert_eq!(place(wide, None, known), None);
        assert_eq!(place(prefix("400::/64"), None, known), Some(TABLE_MAIN));
    }
    assert_eq!(place(near, None, None), None);
    assert_eq!(place(near, None, Some(&links)), Some(TABLE_MAIN));
    assert_eq!(place(wide, None, Some(&BTreeSet::new())), Some(TABLE_MAIN));
}

/// Whether this thread may change the network of the host.
fn allow(may: bool) {
    let mut sets = capabilities(None).unwrap();
    sets.effective.set(CapabilitySet::NET_ADMIN, may);
    set_capabilities(None, sets).unwrap();
}

/// A device in a network namespace of this thread.
fn device() -> Device {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let name = "overlay";
    let mut make = Command::new("ip");
    make.args(["tuntap", "add", "dev", name, "mode", "tun"]);
    assert!(make.status().unwrap().success());
    Device {
        name: name.to_owned(),
        address: "400::1".parse().unwrap(),
        mtu: 1400,
        mark: 150,
    }
}

async fn rules_fail_and_are_set_later() {
    let report = Arc::new(Report::default());
    let wants_links = Arc::new(AtomicBool::new(false));
    let mut reconciler = Reconciler::new(device(), Arc::clone(&wants_links), Arc::clone(&report));
    let kernel = Kernel::connect(&reconciler.device.name).unwrap();
    reconciler.check(&kernel).await;
    assert_eq!(report.sentence(), None);
    let index = reconciler.index.unwrap();
    let (wide, near) = (prefix("2000::/3"), prefix("fd12::/48"));
    let routes = async || {
        let mut routes = kernel.routes(index).await.unwrap();
        routes.retain(|(_, prefix), route| route.ours && *prefix != OVERLAY_RANGE);
        routes.into_keys().collect::<Vec<_>>()
    };
    let reach = Requests {
        changed: [wide, near].map(|it| (it, RouteRequest::Set(None))).into(),
        only: Some([wide, near].into()),
        links: None,
    };
    allow(false);
    reconciler.apply(&kernel, reach).await;
    reconciler.ask_for_links();
    allow(true);
    reconciler.check(&kernel).await;
    assert_eq!(routes().await, [], "it is not known where the peers are");
    assert!(wants_links.load(Ordering::Relaxed));
    let links = Requests {
        links: Some(["2001:db8::2".parse().unwrap()].into()),
        ..Requests::default()
    };
    reconciler.apply(&kernel, links).await;
    reconciler.check(&kernel).await;
    assert_eq!(routes().await, [(TABLE_MAIN, near)]);
    let said = report.sentence().unwrap();
    assert!(said.starts_with("no route to 2000::/3"), "{said}");
    // They are tried again without anything changing.
    assert_eq!(reconciler.due, reconciler.rules_at);
    reconciler.rules_at = Some(now());
    reconciler.check(&kernel).await;
    reconciler.ask_for_links();
    let own = rules::table(index);
    assert_eq!(routes().await, [(own, wide), (own, near)]);
    let (missing, excess) = reconciler.wrong_rules(&kernel, index).await.unwrap();
    assert_eq!((missing, excess), (vec![], vec![]));
    assert_eq!(report.sentence(), None);
    assert!(!wants_links.load(Ordering::Relaxed));
    // Nothing else has changed the device.
    assert_eq!(report.repairs(), BTreeMap::new());
}

#[test]
fn rules_that_failed_are_set_later_and_routes_that_cover_peers_wait_for_them() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it makes a network namespace");
        return;
    }
    // Namespace and capabilities are those of a thread.
    let test = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(rules_fail_and_are_set_later());
    };
    std::thread::spawn(test).join().unwrap();
}
