//! Comparison of the device with its desired state, and repair of the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyphae_time::{Nanos, RepairBackoff, monotonic as now};
use hyphae_wire::Prefix;
use hyphae_wire::address::OVERLAY_RANGE;

use super::request::{Device, Requests, RouteRequest};
use crate::error::HostError;
use crate::kernel::{self, Kernel, Link};
use crate::report::{Part, Problem, Report};
use crate::watch::Change;

/// Time from the first notification of a change to the comparison, which covers further changes.
const SETTLE: Duration = Duration::from_millis(200);
/// Shortest time to the retry of a failed repair, without further changes.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// A device that has been absent for less than this may be about to be created again.
const ABSENT_BRIEFLY: Duration = Duration::from_secs(1);

/// Desired and known state of the device.
pub(super) struct Reconciler {
    pub(super) device: Device,
    /// Last known index of the device.
    pub(super) index: Option<u32>,
    /// Index of the device that was configured last.
    pub(super) prepared: Option<u32>,
    /// The desired state was reached once.
    pub(super) configured: bool,
    /// It is in another network namespace.
    pub(super) moved: bool,
    pub(super) absent_since: Option<Nanos>,
    /// Desired routes with their path MTU, besides the one that follows from the address.
    pub(super) routes: BTreeMap<Prefix, Option<u16>>,
    /// `routes` contains all routes to gateways; until then those of an earlier control plane are preserved.
    pub(super) learned: bool,
    /// Why underlay packets cannot be distinguished from others, if they cannot.
    pub(super) unmarked: Option<String>,
    /// Time of the next attempt to set rules, after a failure.
    pub(super) rules_at: Option<Nanos>,
    pub(super) rules_backoff: RepairBackoff,
    pub(super) wants_links: Arc<AtomicBool>,
    /// Underlay addresses of peers; `None` until they were received, and while they are not needed.
    pub(super) links: Option<BTreeSet<Ipv6Addr>>,
    /// Time of the next comparison.
    pub(super) due: Option<Nanos>,
    pub(super) backoff: RepairBackoff,
    pub(super) report: Arc<Report>,
}

impl Reconciler {
    pub(super) fn new(device: Device, wants_links: Arc<AtomicBool>, report: Arc<Report>) -> Self {
        Self {
            unmarked: (device.mark == 0).then(|| "underlay packets are not marked".to_owned()),
            wants_links,
            rules_at: None,
            rules_backoff: RepairBackoff::default(),
            links: None,
            learned: false,
            device,
            index: None,
            prepared: None,
            configured: false,
            moved: false,
            absent_since: None,
            routes: BTreeMap::new(),
            due: Some(now()),
            backoff: RepairBackoff::default(),
            report,
        }
    }

    /// Handles a notification of the kernel.
    pub(super) fn note(&mut self, change: &Change) {
        let ours = |index: &u32| Some(*index) == self.index;
        let concerns = match change {
            Change::Link { index, name } => ours(index) || *name == self.device.name,
            Change::LinkRemoved { index, .. } | Change::Address { index } => ours(index),
            Change::Route { index, destination } => {
                index.as_ref().is_some_and(ours)
                    || destination.is_some_and(|prefix| self.routes.contains_key(&prefix))
            }
            Change::Rule => self.learned,
            Change::Lost => true,
        };
        if let Change::LinkRemoved { moved, .. } = change
            && concerns
        {
            // A device that returns is down and not configured.
            (self.moved, self.prepared) = (*moved, None);
        }
        if concerns {
            self.check_after(SETTLE);
        }
    }

    fn check_after(&mut self, wait: Duration) {
        self.check_at(now() + wait);
    }

    pub(super) fn check_at(&mut self, at: Nanos) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Requests the addresses of peers if they are needed, and drops them if not.
    pub(super) fn request_links(&mut self) {
        let wanted = self.unmarked.is_some() && !self.lengths().is_empty();
        self.wants_links.store(wanted, Ordering::Relaxed);
        if !wanted {
            self.links = None;
        }
    }

    /// Applies requested changes of routes.
    pub(super) async fn apply(&mut self, kernel: &Kernel, requests: Requests) {
        let Requests {
            changed,
            only,
            links,
        } = requests;
        let before = self.lengths();
        let moved = links.is_some() && self.links != links;
        if moved {
            self.links = links;
            self.check_after(Duration::ZERO);
        }
        if let Some(only) = only {
            self.learned = true;
            self.routes
                .retain(|prefix, _| prefix.overlaps(OVERLAY_RANGE) || only.contains(prefix));
            let stale = |prefix: Prefix| !prefix.overlaps(OVERLAY_RANGE) && !only.contains(&prefix);
            if let Err(error) = self.clear_routes(kernel, stale).await {
                tracing::warn!(%error, "routes to former gateways were not deleted");
            }
        }
        for (prefix, request) in &changed {
            match request {
                RouteRequest::Set(mtu) => self.routes.insert(*prefix, *mtu),
                RouteRequest::Delete => self.routes.remove(prefix),
            };
        }
        // Without a device, all is set when it exists again.
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
        for (prefix, request) in changed {
            let done = match request {
                RouteRequest::Set(mtu) => match self.table(index, prefix) {
                    Some(table) => kernel.set_route(index, table, prefix, mtu).await,
                    None => Ok(()),
                },
                RouteRequest::Delete => self.delete_route(kernel, index, prefix).await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, %prefix, "the host's route was not changed");
                self.check_after(SETTLE);
            }
        }
    }

    /// Compares desired and actual state, repairs the difference, and reports.
    pub(super) async fn check(&mut self, kernel: &Kernel) {
        self.due = None;
        let problem = match self.repair(kernel).await {
            Ok(problem) => problem,
            Err(error) => {
                self.due = Some(self.backoff.next(now()).max(now() + RETRY));
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
            return Ok(Some(self.absent()));
        };
        (self.absent_since, self.moved) = (None, false);
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
        let next = self.backoff.next(at);
        if next > at {
            self.due = Some(next);
            return Ok(Some(Problem::BackingOff(broken.into_keys().collect())));
        }
        let done = self.configure(kernel, &link, &broken).await;
        // IPv6 that others have to enable is retried without back-off.
        let counts = match &done {
            Ok(()) => self.configured,
            Err(error) => !matches!(error, HostError::Ipv6Off(..)),
        };
        if counts {
            self.backoff.record(at);
        }
        done?;
        if std::mem::replace(&mut self.configured, true) {
            self.report.repaired(&link.name, &broken);
        } else {
            let Device { address, mtu, .. } = self.device;
            tracing::info!(device = link.name, %address, mtu, "TUN device is up");
            // Path MTUs of an earlier control plane are discovered again. Its other routes stay until this one has
            // learned the gateways.
            let wanted = &self.routes;
            let stale =
                |prefix: Prefix| prefix.overlaps(OVERLAY_RANGE) && !wanted.contains_key(&prefix);
            if let Err(error) = self.clear_routes(kernel, stale).await {
                tracing::warn!(%error, "routes of an earlier control plane were not deleted");
            }
        }
        Ok(self.captured(link.index))
    }

    /// Withdrawn routes, as a problem.
    fn captured(&self, index: u32) -> Option<Problem> {
        // Unknown until the addresses of peers were received.
        self.links.as_ref()?;
        let prefixes = self.withdrawn(index);
        let why = self.unmarked.clone().filter(|_| !prefixes.is_empty())?;
        Some(Problem::Captured { prefixes, why })
    }

    /// The device does not exist.
    fn absent(&mut self) -> Problem {
        (self.index, self.prepared) = (None, None);
        let at = now();
        let since = *self.absent_since.get_or_insert(at);
        let problem = match self.moved {
            true => Problem::Moved(self.device.name.clone()),
            false => Problem::Absent(self.device.name.clone()),
        };
        if at.since(since) < ABSENT_BRIEFLY && !self.moved {
            self.due = Some(since + ABSENT_BRIEFLY);
            return Problem::Briefly(Box::new(problem));
        }
        problem
    }

    /// Differences by part, with their number.
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
        // Rules that could not be set have a retry of their own.
        if self.rules_at.is_none() {
            let wrong = match self.wrong_rules(kernel, link.index).await {
                Ok((missing, excess)) => missing.len() + excess.len(),
                // The kernel may lack policy routing.
                Err(_) => usize::from(self.unmarked.is_none()),
            };
            note(Part::Rule, wrong);
        }
        Ok(broken)
    }

    /// Applies the desired state; idempotent.
    async fn configure(
        &mut self,
        kernel: &Kernel,
        link: &Link,
        broken: &BTreeMap<Part, usize>,
    ) -> Result<(), HostError> {
        let wrong = |part| broken.contains_key(&part);
        // Before IPv6, which the kernel disables below its minimum MTU.
        if wrong(Part::Mtu) {
            kernel.set_mtu(link.index, self.device.mtu).await?;
        }
        if wrong(Part::Device) {
            kernel.prepare(link.index).await?;
            self.prepared = Some(link.index);
        }
        if kernel::ipv6_is_off(&link.name)? {
            kernel::enable_ipv6(&link.name)
                .map_err(|source| HostError::Ipv6Off(link.name.clone(), source))?;
        }
        // The kernel adds its route.
        if wrong(Part::Address) {
            kernel.add_address(link.index, self.device.address).await?;
        }
        if wrong(Part::Rule) {
            self.set_rules(kernel, link.index).await;
        }
        self.set_routes(kernel, link.index).await
    }
}
