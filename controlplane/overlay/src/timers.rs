//! Deadlines by name, in order of time.

use std::collections::{BTreeMap, BTreeSet};

use hyphae_wire::Nanos;

/// One deadline per name; [`Nanos::NEVER`] is none.
pub(crate) struct Timers<K> {
    by_name: BTreeMap<K, Nanos>,
    by_time: BTreeSet<(Nanos, K)>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Self {
        Self {
            by_name: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    pub(crate) fn set(&mut self, name: K, at: Nanos) {
        if let Some(before) = self.by_name.remove(&name) {
            self.by_time.remove(&(before, name));
        }
        if at != Nanos::NEVER {
            self.by_name.insert(name, at);
            self.by_time.insert((at, name));
        }
    }

    pub(crate) fn next(&self) -> Option<Nanos> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The next deadline and its name, for tests.
    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<(Nanos, K)> {
        self.by_time.first().copied()
    }

    /// Takes what is due at `now`: each name at most once, so a deadline that its owner sets to the
    /// past cannot hold the caller.
    pub(crate) fn take_due(&mut self, now: Nanos) -> Vec<K> {
        let mut due = Vec::new();
        while let Some((at, name)) = self.by_time.first().copied()
            && at <= now
        {
            self.set(name, Nanos::NEVER);
            due.push(name);
        }
        due
    }
}
