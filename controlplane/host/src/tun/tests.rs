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

/// A configured device with routes to two gateways; one of them covers the address of a peer.
struct Host {
    kernel: Kernel,
    reconciler: Reconciler,
    index: u32,
    wide: Prefix,
    near: Prefix,
}

impl Host {
    async fn new() -> Self {
        let links = Arc::new(AtomicBool::new(false));
        let mut reconciler = Reconciler::new(device(), links, Arc::new(Report::default()));
        let kernel = Kernel::connect(&reconciler.device.name).unwrap();
        reconciler.check(&kernel).await;
        assert_eq!(reconciler.report.sentence(), None);
        Self {
            index: reconciler.index.unwrap(),
            kernel,
            reconciler,
            wide: prefix("2000::/3"),
            near: prefix("fd12::/48"),
        }
    }

    async fn apply(&mut self, requests: Requests) {
        self.reconciler.apply(&self.kernel, requests).await;
        self.reconciler.request_links();
    }

    async fn reach(&mut self) {
        let both = [self.wide, self.near];
        let changed = both.map(|it| (it, RouteRequest::Set(None))).into();
        let only = Some(both.into());
        self.apply(Requests {
            changed,
            only,
            links: None,
        })
        .await;
    }

    async fn check(&mut self) {
        self.reconciler.check(&self.kernel).await;
        self.reconciler.request_links();
    }

    /// The addresses of peers, requested only while they matter.
    async fn links(&mut self) {
        assert!(self.reconciler.wants_links.load(Ordering::Relaxed));
        let links = Some(["2001:db8::2".parse().unwrap()].into());
        self.apply(Requests {
            links,
            ..Requests::default()
        })
        .await;
        self.check().await;
    }

    async fn routes(&self) -> Vec<(u32, Prefix)> {
        let mut routes = self.kernel.routes(self.index).await.unwrap();
        routes.retain(|(_, prefix), route| route.ours && *prefix != OVERLAY_RANGE);
        routes.into_keys().collect()
    }

    /// The route that covers a peer is withdrawn, the other one is in the main table, and the report has the reason.
    async fn assert_withdrawn(&self, reason: &str) {
        assert_eq!(self.routes().await, [(TABLE_MAIN, self.near)]);
        let reported = self.reconciler.report.sentence().unwrap();
        assert!(reported.starts_with("no route to 2000::/3"), "{reported}");
        assert!(reported.contains(reason), "{reported}");
        // The next attempt needs no change.
        assert_eq!(self.reconciler.due, self.reconciler.rules_at);
    }

    async fn retry_rules(&mut self) {
        self.reconciler.rules_at = Some(now());
        self.check().await;
    }

    /// Rules exist, and both routes are in the table of the device.
    async fn assert_restored(&self) {
        let own = rules::table(self.index);
        assert_eq!(self.routes().await, [(own, self.wide), (own, self.near)]);
        let wrong = self.reconciler.wrong_rules(&self.kernel, self.index).await;
        assert_eq!(wrong.unwrap(), (vec![], vec![]));
        assert_eq!(self.reconciler.report.sentence(), None);
        assert!(!self.reconciler.wants_links.load(Ordering::Relaxed));
    }
}

/// Runs a test in a thread of its own: namespace and capabilities are those of a thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it makes a network namespace");
        return;
    }
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(run).join().unwrap();
}

fn ip(arguments: &str) {
    let mut ip = Command::new("ip");
    assert!(ip.args(arguments.split(' ')).status().unwrap().success());
}

#[test]
fn rules_that_failed_are_set_later_and_routes_that_cover_peers_wait_for_them() {
    in_namespace(async || {
        let mut host = Host::new().await;
        allow(false);
        host.reach().await;
        allow(true);
        host.check().await;
        let none: [(u32, Prefix); 0] = [];
        assert_eq!(host.routes().await, none, "the peers are unknown");
        host.links().await;
        host.assert_withdrawn("Operation not permitted").await;
        host.retry_rules().await;
        host.assert_restored().await;
        // Nothing else has changed the device.
        assert_eq!(host.reconciler.report.repairs(), BTreeMap::new());
    });
}

#[test]
fn routes_that_cover_peers_are_withdrawn_when_permission_for_the_rules_is_lost() {
    in_namespace(async || {
        let mut host = Host::new().await;
        host.reach().await;
        host.assert_restored().await;
        let rules = host.kernel.rules(host.index).await.unwrap();
        for rule in rules.ours {
            host.kernel.delete_rule(rule).await.unwrap();
        }
        allow(false);
        host.reconciler.set_rules(&host.kernel, host.index).await;
        allow(true);
        host.check().await;
        host.links().await;
        host.assert_withdrawn("Operation not permitted").await;
        host.retry_rules().await;
        host.assert_restored().await;
    });
}

#[test]
fn routes_that_cover_peers_are_withdrawn_while_another_rule_takes_the_place_of_ours() {
    in_namespace(async || {
        let mut host = Host::new().await;
        host.reach().await;
        host.assert_restored().await;
        // The same selectors without `not`: underlay packets would use the table. The kernel refuses ours beside it.
        let rules = host.kernel.rules(host.index).await.unwrap();
        let own = rules::table(host.index);
        let taken = rules.ours.iter().find(|rule| rule.table == own).unwrap();
        host.kernel.delete_rule(*taken).await.unwrap();
        let (priority, length) = (taken.priority, taken.suppress);
        let foreign = format!(
            "pref {priority} fwmark 150/0xffffffff lookup {own} suppress_prefixlength {length} protocol kernel"
        );
        ip(&format!("-6 rule add {foreign}"));
        host.check().await;
        host.links().await;
        host.assert_withdrawn(&format!("rule {priority} of policy routing cannot be set"))
            .await;
        ip(&format!("-6 rule del {foreign}"));
        host.retry_rules().await;
        host.assert_restored().await;
    });
}
