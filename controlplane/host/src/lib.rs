//! The host around a node.
//!
//! * `tun`: address, MTU, routes and rules of the TUN device: repaired when they change; `kernel`, `rules` and `report`
//!   belong to it
//! * `watch`: change notifications of the kernel (rtnetlink)
//! * [`discovery`]: beacons on local networks; `interfaces` belongs to it
//! * `lookups`, `resolver`: schedule and execution of lookups of names of peers
//! * `watchdog`: readiness, status and watchdog of the service manager

#![forbid(unsafe_code)]

pub mod discovery;
mod error;
mod interfaces;
mod kernel;
mod lookups;
mod report;
mod resolver;
mod rules;
mod tun;
mod watch;
mod watchdog;

pub use lookups::{APART, LookupSchedule, Name};
pub use report::{Part, Report};
pub use resolver::{Resolved, Resolver};
pub use tun::{Device, HostRoutes, start};
pub use watch::{Change, Underlay, start as watch};
pub use watchdog::Watchdog;

/// Identifier of this boot of the host; empty where the kernel provides none.
pub fn boot_id() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
