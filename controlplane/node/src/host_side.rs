//! The host as the node uses it: routes of the TUN device, changes of links and addresses, discovery.

use std::sync::Arc;

use hyphae_host::discovery::Discovery;
use hyphae_host::{Change, Device, HostRoutes, Part, Report, Underlay, start};
use tokio::sync::broadcast;

/// The host's side of a node.
pub(crate) struct HostSide {
    /// Routes of the host into the TUN device; `None` without one.
    pub(crate) routes: Option<HostRoutes>,
    /// State of the host's side of the TUN device.
    report: Arc<Report>,
    /// Changes of links and addresses, as the kernel reports them.
    changes: broadcast::Sender<Change>,
    /// Changes that concern the underlay.
    pub(crate) underlay: Underlay,
    pub(crate) discovery: Discovery,
}

impl HostSide {
    /// `tun`: name of the TUN device, whose changes do not concern the underlay.
    pub(crate) fn new(
        changes: broadcast::Sender<Change>,
        tun: Option<String>,
        discovery: Discovery,
    ) -> Self {
        Self {
            routes: None,
            report: Arc::default(),
            underlay: Underlay::new(changes.subscribe(), tun),
            changes,
            discovery,
        }
    }

    /// Maintains address and routes of a TUN device from now on.
    pub(crate) fn maintain(&mut self, device: Device) {
        let (changes, report) = (self.changes.subscribe(), Arc::clone(&self.report));
        self.routes = Some(start(device, changes, report));
    }

    /// Why the host's traffic does not pass the TUN device.
    pub(crate) fn problem(&self) -> Option<String> {
        self.routes.as_ref().and_then(|_| self.report.sentence())
    }

    /// Whether the host's traffic passes the TUN device; `None` without one.
    pub(crate) fn is_up(&self) -> Option<bool> {
        let routes = self.routes.as_ref();
        routes.map(|_| self.report.sentence().is_none())
    }

    /// Repairs of each part of the TUN device's configuration.
    pub(crate) fn repairs(&self) -> Vec<(&'static str, u64)> {
        let repairs = self.report.repairs();
        let of = |part: &Part| (part.name(), repairs.get(part).copied().unwrap_or(0));
        Part::ALL.iter().map(of).collect()
    }
}
