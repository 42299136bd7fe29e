//! Deadlines by name, in order of time: what every sans-I/O engine keeps for its `poll_timeout`.

use std::collections::{BTreeMap, BTreeSet};

use crate::Nanos;

/// One deadline per name; [`Nanos::NEVER`] is none.
#[derive(Debug)]
pub struct Timers<K> {
    by_name: BTreeMap<K, Nanos>,
    by_time: BTreeSet<(Nanos, K)>,
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// No deadlines.
    pub const fn new() -> Self {
        Self {
            by_name: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// Sets the deadline of a name, or takes it away.
    pub fn set(&mut self, name: K, at: Nanos) {
        if let Some(before) = self.by_name.remove(&name) {
            self.by_time.remove(&(before, name));
        }
        if at != Nanos::NEVER {
            self.by_name.insert(name, at);
            self.by_time.insert((at, name));
        }
    }

    /// The deadline of a name.
    pub fn get(&self, name: &K) -> Option<Nanos> {
        self.by_name.get(name).copied()
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Nanos> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The earliest deadline and its name.
    pub fn first(&self) -> Option<(Nanos, K)> {
        self.by_time.first().copied()
    }

    /// Takes what is due at `now`: each name at most once, so a deadline that its owner sets to the
    /// past cannot hold the caller.
    pub fn take_due(&mut self, now: Nanos) -> Vec<K> {
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
