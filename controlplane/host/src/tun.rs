//! The host's side of the TUN device: address, MTU, up. The route to the overlay follows from the
//! address, whose prefix is the overlay's range; others are for prefixes behind gateways, or limit
//! the size of packets to a node. The kernel removes all of it with the device.
//!
//! Other programs may change any of it at any time. A task stores the desired state; whenever the kernel notifies a
//! change that may concern the device, it compares and repairs the difference, rate-limited by [`RepairBackoff`]. A
//! device that was set down or moved to another namespace is reported and not repaired.

mod policy;
mod reconciler;
mod request;
mod routes;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyphae_time::monotonic as now;
use hyphae_wire::Prefix;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use crate::kernel::Kernel;
use crate::report::{Problem, Report};
use crate::watch::Change;
use reconciler::Reconciler;
pub use request::Device;
use request::{Requests, RouteRequest};

/// The host's routes on the device; a task sets them.
///
/// A route to a node with a smaller path MTU lets new connections send packets that fit from the start; without it they
/// depend on the ICMPv6 errors of the dataplane.
#[derive(Debug)]
pub struct HostRoutes {
    requests: Arc<Mutex<Requests>>,
    wake: mpsc::Sender<()>,
    /// See [`HostRoutes::wants_links`].
    wants_links: Arc<AtomicBool>,
}

impl HostRoutes {
    /// Whether the addresses of peers are needed, because underlay packets cannot be distinguished.
    pub fn wants_links(&self) -> bool {
        self.wants_links.load(Ordering::Relaxed)
    }

    /// Sets the underlay addresses of peers, which no route may cover.
    pub fn links(&self, addresses: BTreeSet<Ipv6Addr>) {
        self.request(|requests| requests.links = Some(addresses));
    }

    /// Sets or removes the path MTU to a /64 of the overlay.
    pub fn limit(&self, subnet: Prefix, mtu: Option<u16>) {
        let request = mtu.map_or(RouteRequest::Delete, |mtu| RouteRequest::Set(Some(mtu)));
        self.request(|requests| {
            requests.changed.insert(subnet, request);
        });
    }

    /// Adds or removes the route to a prefix outside of the overlay.
    pub fn reach(&self, prefix: Prefix, reachable: bool) {
        let request = if reachable {
            RouteRequest::Set(None)
        } else {
            RouteRequest::Delete
        };
        self.request(|requests| {
            requests.changed.insert(prefix, request);
        });
    }

    /// Sets all prefixes outside of the overlay that are reached through the device.
    pub fn reach_only(&self, prefixes: BTreeSet<Prefix>) {
        self.request(|requests| {
            for prefix in &prefixes {
                requests.changed.insert(*prefix, RouteRequest::Set(None));
            }
            requests.only = Some(prefixes);
        });
    }

    fn request(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        // A full channel has a wake-up already.
        let _ = self.wake.try_send(());
    }
}

/// Configures the device and maintains it and its routes until the handle is dropped.
pub fn start(
    device: Device,
    changes: broadcast::Receiver<Change>,
    report: Arc<Report>,
) -> HostRoutes {
    let (wake, woken) = mpsc::channel(1);
    let requests = Arc::new(Mutex::new(Requests::default()));
    let wants_links = Arc::new(AtomicBool::new(false));
    let reconciler = Reconciler::new(device, Arc::clone(&wants_links), report);
    tokio::spawn(maintain(reconciler, Arc::clone(&requests), woken, changes));
    HostRoutes {
        requests,
        wake,
        wants_links,
    }
}

async fn maintain(
    mut reconciler: Reconciler,
    requests: Arc<Mutex<Requests>>,
    mut woken: mpsc::Receiver<()>,
    mut changes: broadcast::Receiver<Change>,
) {
    let kernel = match Kernel::connect(&reconciler.device.name) {
        Ok(kernel) => kernel,
        Err(error) => {
            return reconciler
                .report
                .problem(Some(Problem::Failed(error.to_string())));
        }
    };
    loop {
        let due = reconciler.due;
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep(at.since(now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            woken = woken.recv() => {
                let Some(()) = woken else { return };
                let requests =
                    std::mem::take(&mut *requests.lock().unwrap_or_else(PoisonError::into_inner));
                reconciler.apply(&kernel, requests).await;
            }
            change = changes.recv() => match change {
                Ok(change) => reconciler.note(&change),
                Err(RecvError::Lagged(_)) => reconciler.note(&Change::Lost),
                // The node is stopping.
                Err(RecvError::Closed) => return,
            },
            () = wait => reconciler.check(&kernel).await,
        }
        reconciler.request_links();
    }
}

#[cfg(test)]
mod tests;
