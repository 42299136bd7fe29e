//! Counts of requests by side and outcome.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Side of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// From a local program to another node.
    Outbound,
    /// From another node to a local server.
    Forward,
}

impl Side {
    /// Label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Forward => "forward",
        }
    }
}

/// Counts of outcomes; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Stats(Arc<Mutex<BTreeMap<(Side, &'static str), u64>>>);

impl Stats {
    pub(super) fn note(&self, side: Side, outcome: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((side, outcome)).or_default() += 1;
    }

    /// All counts by side and outcome.
    pub fn all(&self) -> BTreeMap<(Side, &'static str), u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Count of one outcome.
    pub fn count(&self, side: Side, outcome: &'static str) -> u64 {
        self.all().get(&(side, outcome)).copied().unwrap_or(0)
    }
}
