//! The host's side of the TUN device: address, MTU, up. The route to the overlay follows from the
//! address, whose prefix is the overlay's range; others lead to prefixes behind gateways, or limit
//! the size of packets to a node. All of it goes when the dataplane closes the device.
//!
//! Other programs may change any of it at any time. A task stores the desired state; whenever the kernel notifies a
//! change that may concern the device, it compares and repairs the difference, rate-limited by [`RepairBackoff`]. A
//! device that was set down or moved to another namespace is reported and not fought.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyphae_time::{Nanos, RepairBackoff};
use hyphae_wire::address::OVERLAY_RANGE;

use hyphae_wire::Prefix;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use crate::error::HostError;
use crate::kernel::{self, Kernel, Link, TABLE_MAIN};
use crate::report::{Part, Problem, Report};
use crate::rules::{self, Rule};
use crate::watch::Change;
use hyphae_time::monotonic as now;

/// Changes are looked at this long after the first, all at once.
const SETTLE: Duration = Duration::from_millis(200);
/// A repair that failed is tried again after this at the earliest; sooner when something changes.
const RETRY: Duration = Duration::from_secs(5);
/// A device that has gone for no longer than this is being made again.
const GONE_BRIEFLY: Duration = Duration::from_secs(1);

/// What a route of ours is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// There, with a limit of the size of packets, bytes.
    There(Option<u16>),
    /// Gone.
    Gone,
}

#[derive(Debug, Default)]
struct Wishes {
    changed: BTreeMap<Prefix, Wish>,
    /// All that is to be left of the routes outside of the overlay.
    only: Option<BTreeSet<Prefix>>,
    /// Underlay addresses of peers.
    links: Option<BTreeSet<Ipv6Addr>>,
}

/// The host's routes on the device; a task sets them.
///
/// Those to nodes whose path carries less than the device are a help for new connections, which
/// then never send what does not fit; without them the ICMPv6 errors of the dataplane still say so.
#[derive(Debug)]
pub struct HostRoutes {
    wishes: Arc<Mutex<Wishes>>,
    wake: mpsc::Sender<()>,
    /// See [`HostRoutes::wants_links`].
    wants_links: Arc<AtomicBool>,
}

impl HostRoutes {
    /// Whether it counts where the peers are: underlay packets cannot be told apart from others.
    pub fn wants_links(&self) -> bool {
        self.wants_links.load(Ordering::Relaxed)
    }

    /// These are the underlay addresses of peers: no route may cover them.
    pub fn links(&self, addresses: BTreeSet<Ipv6Addr>) {
        self.wish(|wishes| wishes.links = Some(addresses));
    }

    /// Limits packets to a /64 of the overlay, or ends the limit.
    pub fn limit(&self, subnet: Prefix, mtu: Option<u16>) {
        let wish = mtu.map_or(Wish::Gone, |mtu| Wish::There(Some(mtu)));
        self.wish(|wishes| {
            wishes.changed.insert(subnet, wish);
        });
    }

    /// A prefix outside of the overlay is, or is no longer, reached through the device.
    pub fn reach(&self, prefix: Prefix, there: bool) {
        let wish = if there { Wish::There(None) } else { Wish::Gone };
        self.wish(|wishes| {
            wishes.changed.insert(prefix, wish);
        });
    }

    /// These are all that are reached through the device.
    pub fn reach_only(&self, prefixes: BTreeSet<Prefix>) {
        self.wish(|wishes| {
            for prefix in &prefixes {
                wishes.changed.insert(*prefix, Wish::There(None));
            }
            wishes.only = Some(prefixes);
        });
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner));
        // One that waits is as good as two.
        let _ = self.wake.try_send(());
    }
}

/// The device as it is to be.
#[derive(Clone, Debug)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Overlay address of this host.
    pub address: Ipv6Addr,
    /// MTU, bytes.
    pub mtu: u16,
    /// Mark of the dataplane's packets; 0 when it does not mark them.
    pub mark: u32,
}

/// Sets the device up, then keeps it and routes on it until the handle is dropped.
pub fn start(
    device: Device,
    changes: broadcast::Receiver<Change>,
    report: Arc<Report>,
) -> HostRoutes {
    let (wake, woken) = mpsc::channel(1);
    let wishes = Arc::new(Mutex::new(Wishes::default()));
    let wants_links = Arc::new(AtomicBool::new(false));
    let keeper = Keeper::new(device, Arc::clone(&wants_links), report);
    tokio::spawn(keep(keeper, Arc::clone(&wishes), woken, changes));
    HostRoutes {
        wishes,
        wake,
        wants_links,
    }
}

async fn keep(
    mut keeper: Keeper,
    wishes: Arc<Mutex<Wishes>>,
    mut woken: mpsc::Receiver<()>,
    mut changes: broadcast::Receiver<Change>,
) {
    let kernel = match Kernel::connect(&keeper.device.name) {
        Ok(kernel) => kernel,
        Err(error) => {
            return keeper
                .report
                .problem(Some(Problem::Failed(error.to_string())));
        }
    };
    loop {
        let due = keeper.due;
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep(at.since(now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            woken = woken.recv() => {
                let Some(()) = woken else { return };
                let wishes =
                    std::mem::take(&mut *wishes.lock().unwrap_or_else(PoisonError::into_inner));
                keeper.apply(&kernel, wishes).await;
            }
            change = changes.recv() => match change {
                Ok(change) => keeper.note(&change),
                Err(RecvError::Lagged(_)) => keeper.note(&Change::Lost),
                // The node ends.
                Err(RecvError::Closed) => return,
            },
            () = wait => keeper.check(&kernel).await,
        }
        keeper.ask_for_links();
    }
}

/// Routes that are not as they are wanted.
#[derive(Debug, Default)]
struct WrongRoutes {
    /// Table, destination and limit of the size of packets.
    missing: Vec<(u32, Prefix, Option<u16>)>,
    misplaced: Vec<(u32, Prefix)>,
}

/// What the task knows.
struct Keeper {
    device: Device,
    /// Of the device when it was last seen.
    index: Option<u32>,
    /// Of the device that was set up and brought up last.
    prepared: Option<u32>,
    /// All was as wanted once.
    configured: bool,
    /// It lives in another network namespace.
    moved: bool,
    gone_since: Option<Nanos>,
    /// Routes that are wanted besides the one that follows from the address.
    routes: BTreeMap<Prefix, Option<u16>>,
    /// All routes to gateways are among them; before, an earlier control plane's are left as they are.
    learnt: bool,
    /// Why underlay packets cannot be told apart from others, if they cannot.
    unmarked: Option<String>,
    /// Rules could not be set; they are tried again then.
    rules_at: Option<Nanos>,
    rules_pace: RepairBackoff,
    wants_links: Arc<AtomicBool>,
    /// Underlay addresses of peers; `None` until they have come since they count.
    links: Option<BTreeSet<Ipv6Addr>>,
    /// When to compare what is wanted with what there is.
    due: Option<Nanos>,
    pace: RepairBackoff,
    report: Arc<Report>,
}

impl Keeper {
    fn new(device: Device, wants_links: Arc<AtomicBool>, report: Arc<Report>) -> Self {
        Self {
            unmarked: (device.mark == 0).then(|| "underlay packets are not marked".to_owned()),
            wants_links,
            rules_at: None,
            rules_pace: RepairBackoff::default(),
            links: None,
            learnt: false,
            device,
            index: None,
            prepared: None,
            configured: false,
            moved: false,
            gone_since: None,
            routes: BTreeMap::new(),
            due: Some(now()),
            pace: RepairBackoff::default(),
            report,
        }
    }

    /// The kernel reports a change.
    fn note(&mut self, change: &Change) {
        let ours = |index: &u32| Some(*index) == self.index;
        let concerns = match change {
            Change::Link { index, name } => ours(index) || *name == self.device.name,
            Change::LinkGone { index, .. } | Change::Address { index } => ours(index),
            Change::Route { index, destination } => {
                index.as_ref().is_some_and(ours)
                    || destination.is_some_and(|prefix| self.routes.contains_key(&prefix))
            }
            Change::Rule => self.learnt,
            Change::Lost => true,
        };
        if let Change::LinkGone { moved, .. } = change
            && concerns
        {
            // Wherever it comes from, it comes back down and bare.
            (self.moved, self.prepared) = (*moved, None);
        }
        if concerns {
            self.check_after(SETTLE);
        }
    }

    fn check_after(&mut self, wait: Duration) {
        self.check_at(now() + wait);
    }

    fn check_at(&mut self, at: Nanos) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Says whether it counts where the peers are. What was known is forgotten when it no longer does.
    fn ask_for_links(&mut self) {
        let wanted = self.unmarked.is_some() && !self.lengths().is_empty();
        self.wants_links.store(wanted, Ordering::Relaxed);
        if !wanted {
            self.links = None;
        }
    }

    /// Carries out what is wished of routes.
    async fn apply(&mut self, kernel: &Kernel, wishes: Wishes) {
        let Wishes {
            changed,
            only,
            links,
        } = wishes;
        let before = self.lengths();
        let moved = links.is_some() && self.links != links;
        if moved {
            self.links = links;
            self.check_after(Duration::ZERO);
        }
        if let Some(only) = only {
            self.learnt = true;
            self.routes
                .retain(|prefix, _| prefix.overlaps(OVERLAY_RANGE) || only.contains(prefix));
            let stale = |prefix: Prefix| !prefix.overlaps(OVERLAY_RANGE) && !only.contains(&prefix);
            if let Err(error) = self.clear_routes(kernel, stale).await {
                tracing::warn!(%error, "routes to gateways that have gone are still there");
            }
        }
        for (prefix, wish) in &changed {
            match wish {
                Wish::There(mtu) => self.routes.insert(*prefix, *mtu),
                Wish::Gone => self.routes.remove(prefix),
            };
        }
        // Without a device all is set when it is there again.
        let Some(index) = self.index.filter(|_| !self.report.is_broken()) else {
            return;
        };
        let marked = self.unmarked.is_none();
        if self.lengths() != before && self.rules_at.is_none() {
            self.set_rules(kernel, index).await;
        }
        if (moved || marked != self.unmarked.is_none())
            && let Err(error) = self.set_routes(kernel, index).await
        {
            tracing::warn!(%error, "the host's routes were not changed");
            self.check_after(SETTLE);
        }
        for (prefix, wish) in changed {
            let done = match wish {
                Wish::There(mtu) => match self.table(index, prefix) {
                    Some(table) => kernel.set_route(index, table, prefix, mtu).await,
                    None => Ok(()),
                },
                Wish::Gone => self.delete_route(kernel, index, prefix).await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, %prefix, "the host's route was not changed");
                self.check_after(SETTLE);
            }
        }
    }

    /// Removes a route from whichever table it may be in.
    async fn delete_route(
        &self,
        kernel: &Kernel,
        index: u32,
        prefix: Prefix,
    ) -> Result<(), HostError> {
        if !prefix.overlaps(OVERLAY_RANGE) {
            kernel
                .delete_route(index, rules::table(index), prefix)
                .await?;
        }
        kernel.delete_route(index, TABLE_MAIN, prefix).await
    }

    /// Lengths of the prefixes outside of the overlay that are routed.
    fn lengths(&self) -> BTreeSet<u8> {
        let outside = self.routes.keys();
        let outside = outside.filter(|prefix| !prefix.overlaps(OVERLAY_RANGE));
        outside.map(|prefix| prefix.len()).collect()
    }

    /// Where a route belongs; `None` where it would lead the node's own packets into the device.
    fn table(&self, index: u32, prefix: Prefix) -> Option<u32> {
        let own = self.unmarked.is_none().then(|| rules::table(index));
        place(prefix, own, self.links.as_ref())
    }

    /// Rules that are wanted and not there, and that are there and not wanted.
    async fn wrong_rules(
        &self,
        kernel: &Kernel,
        index: u32,
    ) -> Result<(Vec<Rule>, Vec<Rule>), HostError> {
        let found = kernel.rules(index).await?;
        let mut excess: Vec<_> = found.dead.iter().copied().collect();
        if !self.learnt {
            return Ok((Vec::new(), excess));
        }
        let lengths = match self.device.mark {
            0 => BTreeSet::new(),
            _ => self.lengths(),
        };
        let wanted = rules::wanted(index, self.device.mark, lengths.into_iter());
        let unwanted = found.ours.difference(&wanted);
        excess.extend(unwanted.filter(|rule| !found.shared.contains(rule)));
        Ok((wanted.difference(&found.ours).copied().collect(), excess))
    }

    /// Sets rules. Where that fails, routes that could cover the address of a peer are left out until it is done.
    async fn set_rules(&mut self, kernel: &Kernel, index: u32) {
        match self.try_rules(kernel, index).await {
            Ok(()) => {
                if self.rules_at.take().is_some() {
                    self.unmarked = None;
                    tracing::info!("rules of policy routing are set");
                }
            }
            // None are needed; those that are left lead to an empty table.
            Err(error) if self.device.mark == 0 => {
                tracing::debug!(%error, "rules of an earlier control plane are still there");
            }
            Err(error) => {
                if self.rules_at.is_none() {
                    tracing::error!(%error, "rules of policy routing cannot be set; they are tried again");
                }
                self.unmarked = Some(error.to_string());
                let at = now();
                self.rules_pace.record(at);
                let next = self.rules_pace.next(at).max(at + RETRY);
                self.rules_at = Some(next);
                self.check_at(next);
            }
        }
    }

    async fn try_rules(&self, kernel: &Kernel, index: u32) -> Result<(), HostError> {
        let (missing, excess) = self.wrong_rules(kernel, index).await?;
        for rule in excess {
            kernel.delete_rule(rule).await?;
        }
        for rule in missing {
            kernel.add_rule(rule).await?;
        }
        Ok(())
    }

    /// Removes those of our routes on the device that `stale` says.
    async fn clear_routes(
        &self,
        kernel: &Kernel,
        stale: impl Fn(Prefix) -> bool,
    ) -> Result<(), HostError> {
        let Some(index) = self.index else {
            return Ok(());
        };
        for ((table, prefix), route) in kernel.routes(index).await? {
            if route.ours && prefix != OVERLAY_RANGE && stale(prefix) {
                kernel.delete_route(index, table, prefix).await?;
            }
        }
        Ok(())
    }

    /// Compares what is wanted with what there is, repairs what differs, and reports.
    async fn check(&mut self, kernel: &Kernel) {
        self.due = None;
        let problem = match self.repair(kernel).await {
            Ok(problem) => problem,
            Err(error) => {
                self.due = Some(self.pace.next(now()).max(now() + RETRY));
                Some(Problem::Failed(error.to_string()))
            }
        };
        if let Some(at) = self.rules_at {
            self.check_at(at);
        }
        self.report.problem(problem);
    }

    async fn repair(&mut self, kernel: &Kernel) -> Result<Option<Problem>, HostError> {
        let Some(link) = kernel.link(self.index).await? else {
            return Ok(Some(self.gone()));
        };
        (self.gone_since, self.moved) = (None, false);
        if !link.is_tun {
            return Ok(Some(Problem::Foreign(link.name)));
        }
        self.index = Some(link.index);
        let new = self.prepared != self.index;
        if !new && !link.up {
            return Ok(Some(Problem::Down(link.name)));
        }
        if self.rules_at.is_some_and(|at| at <= now()) {
            self.set_rules(kernel, link.index).await;
            if self.rules_at.is_none() {
                self.set_routes(kernel, link.index).await?;
            }
        }
        self.withdraw(kernel, link.index).await?;
        let broken = self.compare(kernel, &link, new).await?;
        if broken.is_empty() {
            return Ok(self.captured(link.index));
        }
        let at = now();
        let next = self.pace.next(at);
        if next > at {
            self.due = Some(next);
            return Ok(Some(Problem::HeldBack(broken.into_keys().collect())));
        }
        let done = self.configure(kernel, &link, &broken).await;
        // What has to be switched on by others works as soon as they do.
        let paced = match &done {
            Ok(()) => self.configured,
            Err(error) => !matches!(error, HostError::Ipv6Off(..)),
        };
        if paced {
            self.pace.record(at);
        }
        done?;
        if std::mem::replace(&mut self.configured, true) {
            self.report.repaired(&link.name, &broken);
        } else {
            let Device { address, mtu, .. } = self.device;
            tracing::info!(device = link.name, %address, mtu, "TUN device is up");
            // Limits that an earlier control plane left here are found out anew. The other routes stay
            // while this one learns what is behind which gateway.
            let wanted = &self.routes;
            let stale =
                |prefix: Prefix| prefix.overlaps(OVERLAY_RANGE) && !wanted.contains_key(&prefix);
            if let Err(error) = self.clear_routes(kernel, stale).await {
                tracing::warn!(%error, "routes of an earlier control plane are still there");
            }
        }
        Ok(self.captured(link.index))
    }

    /// Routes that are left out, as a problem.
    fn captured(&self, index: u32) -> Option<Problem> {
        // Before it is known where the peers are, in a moment, nothing can be said.
        self.links.as_ref()?;
        let prefixes = self.withdrawn(index);
        let why = self.unmarked.clone().filter(|_| !prefixes.is_empty())?;
        Some(Problem::Captured { prefixes, why })
    }

    /// There is no such device.
    fn gone(&mut self) -> Problem {
        (self.index, self.prepared) = (None, None);
        let at = now();
        let since = *self.gone_since.get_or_insert(at);
        let problem = match self.moved {
            true => Problem::Moved(self.device.name.clone()),
            false => Problem::Gone(self.device.name.clone()),
        };
        if at.since(since) < GONE_BRIEFLY && !self.moved {
            self.due = Some(since + GONE_BRIEFLY);
            return Problem::Briefly(Box::new(problem));
        }
        problem
    }

    /// What is not as wanted, and how much of it.
    async fn compare(
        &self,
        kernel: &Kernel,
        link: &Link,
        new: bool,
    ) -> Result<BTreeMap<Part, usize>, HostError> {
        let mut broken = BTreeMap::new();
        let mut note = |part, count| {
            if count > 0 {
                broken.insert(part, count);
            }
        };
        note(Part::Device, usize::from(new));
        let mtu = link.mtu != u32::from(self.device.mtu);
        note(Part::Mtu, usize::from(mtu));
        let off = kernel::ipv6_is_off(&link.name)?;
        note(Part::Ipv6, usize::from(off));
        let address = kernel.has_address(link.index, self.device.address).await?;
        note(Part::Address, usize::from(!address));
        let wrong = self.wrong_routes(kernel, link.index).await?;
        note(Part::Route, wrong.missing.len() + wrong.misplaced.len());
        // Those that could not be set are tried again by themselves.
        if self.rules_at.is_none() {
            let wrong = match self.wrong_rules(kernel, link.index).await {
                Ok((missing, excess)) => missing.len() + excess.len(),
                // A kernel may have none of the kind.
                Err(_) => usize::from(self.unmarked.is_none()),
            };
            note(Part::Rule, wrong);
        }
        Ok(broken)
    }

    /// Routes that are wanted and not there as they are wanted, with their tables, and those that are in a wrong one.
    async fn wrong_routes(&self, kernel: &Kernel, index: u32) -> Result<WrongRoutes, HostError> {
        let there = kernel.routes(index).await?;
        let mut wrong = WrongRoutes::default();
        for (prefix, mtu) in &self.routes {
            let Some(table) = self.table(index, *prefix) else {
                continue;
            };
            let route = there.get(&(table, *prefix));
            if route.is_none_or(|route| !route.ours || route.mtu != mtu.map(u32::from)) {
                wrong.missing.push((table, *prefix, *mtu));
            }
        }
        // It usually follows from the address, so it may be the kernel's.
        if !there.contains_key(&(TABLE_MAIN, OVERLAY_RANGE)) {
            wrong.missing.push((TABLE_MAIN, OVERLAY_RANGE, None));
        }
        let misplaced = there.iter().filter(|((table, prefix), route)| {
            route.ours
                && self.routes.contains_key(prefix)
                && self.table(index, *prefix) != Some(*table)
        });
        wrong.misplaced = misplaced.map(|(at, _)| *at).collect();
        Ok(wrong)
    }

    /// Prefixes whose routes are left out.
    fn withdrawn(&self, index: u32) -> Vec<Prefix> {
        let prefixes = self.routes.keys().copied();
        prefixes
            .filter(|prefix| self.table(index, *prefix).is_none())
            .collect()
    }

    /// Makes the device what it is to be. Doing it again changes nothing.
    async fn configure(
        &mut self,
        kernel: &Kernel,
        link: &Link,
        broken: &BTreeMap<Part, usize>,
    ) -> Result<(), HostError> {
        let wrong = |part| broken.contains_key(&part);
        // Before IPv6, which the kernel switches off below its smallest MTU.
        if wrong(Part::Mtu) {
            kernel.set_mtu(link.index, self.device.mtu).await?;
        }
        if wrong(Part::Device) {
            kernel.prepare(link.index).await?;
            self.prepared = Some(link.index);
        }
        if kernel::ipv6_is_off(&link.name)? {
            kernel::switch_ipv6_on(&link.name)
                .map_err(|source| HostError::Ipv6Off(link.name.clone(), source))?;
        }
        // Its route comes with it.
        if wrong(Part::Address) {
            kernel.add_address(link.index, self.device.address).await?;
        }
        if wrong(Part::Rule) {
            self.set_rules(kernel, link.index).await;
        }
        self.set_routes(kernel, link.index).await
    }

    /// Puts every route where it belongs.
    async fn set_routes(&self, kernel: &Kernel, index: u32) -> Result<(), HostError> {
        let wrong = self.wrong_routes(kernel, index).await?;
        for (table, prefix) in wrong.misplaced {
            kernel.delete_route(index, table, prefix).await?;
        }
        for (table, prefix, mtu) in wrong.missing {
            kernel.set_route(index, table, prefix, mtu).await?;
        }
        Ok(())
    }

    /// Removes routes that would lead the node's own packets into the device. That is never held back.
    async fn withdraw(&self, kernel: &Kernel, index: u32) -> Result<(), HostError> {
        if self.withdrawn(index).is_empty() {
            return Ok(());
        }
        for (table, prefix) in self.wrong_routes(kernel, index).await?.misplaced {
            if self.table(index, prefix).is_none() {
                kernel.delete_route(index, table, prefix).await?;
            }
        }
        Ok(())
    }
}

/// Where a route belongs: outside of the overlay in the table for it, where the node's own packets can be told apart;
/// else in the main table, if it covers none of the peers' addresses and these are known.
fn place(
    prefix: Prefix,
    own_table: Option<u32>,
    links: Option<&BTreeSet<Ipv6Addr>>,
) -> Option<u32> {
    if prefix.overlaps(OVERLAY_RANGE) {
        return Some(TABLE_MAIN);
    }
    let covers = |link: &Ipv6Addr| prefix.contains((*link).into());
    own_table.or_else(|| (!links?.iter().any(covers)).then_some(TABLE_MAIN))
}

#[cfg(test)]
mod tests;
