//! Routes on the device: their tables, and the difference from those of the kernel.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use hyphae_wire::Prefix;
use hyphae_wire::address::OVERLAY_RANGE;

use super::reconciler::Reconciler;
use crate::error::HostError;
use crate::kernel::{Kernel, TABLE_MAIN};
use crate::rules;

/// Differences from the desired routes.
#[derive(Debug, Default)]
pub(super) struct WrongRoutes {
    /// Table, destination and path MTU.
    pub(super) missing: Vec<(u32, Prefix, Option<u16>)>,
    pub(super) misplaced: Vec<(u32, Prefix)>,
}

impl Reconciler {
    /// Lengths of the prefixes outside of the overlay that are routed.
    pub(super) fn lengths(&self) -> BTreeSet<u8> {
        let outside = self.routes.keys();
        let outside = outside.filter(|prefix| !prefix.overlaps(OVERLAY_RANGE));
        outside.map(|prefix| prefix.len()).collect()
    }

    /// Table of a route; `None` if it would capture the node's own packets.
    pub(super) fn table(&self, index: u32, prefix: Prefix) -> Option<u32> {
        let own = self.unmarked.is_none().then(|| rules::table(index));
        place(prefix, own, self.links.as_ref())
    }

    /// Removes our routes on the device that are `stale`.
    pub(super) async fn clear_routes(
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

    /// Removes a route from any table.
    pub(super) async fn delete_route(
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

    /// Missing or different routes, and routes in a wrong table.
    pub(super) async fn wrong_routes(
        &self,
        kernel: &Kernel,
        index: u32,
    ) -> Result<WrongRoutes, HostError> {
        let actual = kernel.routes(index).await?;
        let mut wrong = WrongRoutes::default();
        for (prefix, mtu) in &self.routes {
            let Some(table) = self.table(index, *prefix) else {
                continue;
            };
            let route = actual.get(&(table, *prefix));
            if route.is_none_or(|route| !route.ours || route.mtu != mtu.map(u32::from)) {
                wrong.missing.push((table, *prefix, *mtu));
            }
        }
        // The kernel usually adds it with the address.
        if !actual.contains_key(&(TABLE_MAIN, OVERLAY_RANGE)) {
            wrong.missing.push((TABLE_MAIN, OVERLAY_RANGE, None));
        }
        let misplaced = actual.iter().filter(|((table, prefix), route)| {
            route.ours
                && self.routes.contains_key(prefix)
                && self.table(index, *prefix) != Some(*table)
        });
        wrong.misplaced = misplaced.map(|(at, _)| *at).collect();
        Ok(wrong)
    }

    /// Prefixes whose routes are withdrawn.
    pub(super) fn withdrawn(&self, index: u32) -> Vec<Prefix> {
        let prefixes = self.routes.keys().copied();
        prefixes
            .filter(|prefix| self.table(index, *prefix).is_none())
            .collect()
    }

    /// Sets every route in its table.
    pub(super) async fn set_routes(&self, kernel: &Kernel, index: u32) -> Result<(), HostError> {
        let wrong = self.wrong_routes(kernel, index).await?;
        for (table, prefix) in wrong.misplaced {
            kernel.delete_route(index, table, prefix).await?;
        }
        for (table, prefix, mtu) in wrong.missing {
            kernel.set_route(index, table, prefix, mtu).await?;
        }
        Ok(())
    }

    /// Removes routes that would capture the node's own packets, without back-off.
    pub(super) async fn withdraw(&self, kernel: &Kernel, index: u32) -> Result<(), HostError> {
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

/// Table of a route. A prefix outside of the overlay is in `own_table` if the node's own packets can be distinguished;
/// else in the main table, if the addresses of peers are known and it covers none of them.
pub(super) fn place(
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
