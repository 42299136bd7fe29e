//! Invariants that hold after a quiet time.

use std::time::Duration;

use super::World;
use crate::engine::Engine;
use crate::topology::NodeId;
use crate::violation::Violation;

impl<E: Engine> World<E> {
    /// Checks that every node reaches every node of its partition and has no route to others, some time after
    /// the last fault. Pairs of a hostile node are exempt.
    ///
    /// The first violation.
    pub fn check_reachability(&self) -> Result<(), Violation> {
        let at = self.now;
        let component = self.components();
        let carries = |from: NodeId, to: NodeId| {
            let link = self.nodes[usize::from(from)].links.get(&to);
            link.is_some_and(|link| self.links[*link].agrees() && !self.links[*link].is_cut())
        };
        let mut first = None;
        let mut missing = 0;
        for destination in self.owners.values().copied() {
            let arrives = self.forwarding.arrivals(destination, carries);
            for (node, arrives) in (0..).zip(arrives) {
                let connected = component[usize::from(node)] == component[usize::from(destination)];
                let state = &self.nodes[usize::from(node)];
                let wants = state.engine.is_some() && !state.hostile;
                if connected && !arrives && wants && node != destination {
                    first = first.or(Some((node, destination)));
                    missing += 1;
                }
                if !connected && !self.forwarding.hops(destination, node).nodes().is_empty() {
                    return Err(Violation::Stale {
                        at,
                        node,
                        destination,
                    });
                }
            }
        }
        match first {
            Some((source_node, destination)) => Err(Violation::Unreachable {
                at,
                source_node,
                destination,
                missing,
            }),
            None => Ok(()),
        }
    }

    /// As [`Self::check_reachability`], but waits for it: a route whose metric grew beyond its feasible
    /// distance is missing until its origin has answered.
    ///
    /// # Errors
    /// When it does not come true in that many seconds, or another invariant is violated.
    pub fn await_reachability(&mut self, seconds: u32) -> Result<(), Violation> {
        for _ in 0..seconds {
            if self.check_reachability().is_ok() {
                return Ok(());
            }
            self.run_for(Duration::from_secs(1))?;
        }
        self.check_reachability()
    }

    /// Number of the partition of each node.
    fn components(&self) -> Vec<usize> {
        let mut component: Vec<usize> = (0..self.nodes.len()).collect();
        let mut changed = true;
        while changed {
            changed = false;
            for link in self.links.iter().filter(|link| !link.is_cut()) {
                let [a, b] = link.ends.map(usize::from);
                if self.nodes[a].engine.is_none() || self.nodes[b].engine.is_none() {
                    continue;
                }
                let least = component[a].min(component[b]);
                changed |= component[a] != least || component[b] != least;
                (component[a], component[b]) = (least, least);
            }
        }
        component
    }

    /// Runs without faults, and checks the average of packets per second and session.
    ///
    /// # Errors
    /// When they do, or another invariant is violated.
    pub fn run_quiet(&mut self, time: Duration, most: u64) -> Result<(), Violation> {
        let before = self.sent().0;
        self.run_for(time)?;
        let sessions = self.links.iter().filter(|link| link.agrees()).count();
        let sessions = u64::try_from(sessions).unwrap_or(1).max(1);
        let packets = (self.sent().0 - before).div_ceil(sessions * time.as_secs().max(1));
        if packets > most {
            return Err(Violation::Chatter { packets, most });
        }
        Ok(())
    }
}
